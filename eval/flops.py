"""Count the operations of a sampling run with and without a cache, on the meta device: no weights, no accelerator."""

import argparse
import json

from evaluation.flags import add_workload_flags, fill_num_steps
from seerkit.command.cli import Parser, positive_float, run_command
from seerkit.command.flags import add_record_flags
from seerkit.io.files import writable_file

EXAMPLES = """
python eval/flops.py --model DiT-XL/2 --interval 4 --max-order 4 --warmup-steps 2
python eval/flops.py --model DiT-XL/2 --method fora --interval 5 --json
python eval/flops.py --model DiT-XL/2 --image-size 512 --precision bf16 --engine layerwise
python eval/flops.py --model flux-dev --height 1024 --width 1024 --num-steps 50 --interval 6 --max-order 2 --warmup-steps 3
python eval/flops.py --model hunyuan-video --height 480 --width 640 --num-frames 65 --precision bf16 --kept-goal-gib 1.9
python eval/flops.py --model wan-t2v-1.3B --precision bf16 --json
python eval/flops.py --model hidream-full --precision bf16
python eval/flops.py --model flux-dev --method toca --precision bf16
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    add_workload_flags(parser, argv)
    parser.hide("--memory-limit-gib", "--telemetry", "--compare")
    parser.section("measuring").add_argument(
        "--kept-goal-gib",
        type=positive_float,
        metavar="GIB",
        help="what the folded engine should keep less than, for the record",
    )
    add_record_flags(parser, out="JSON file of rows to add this one to, in place of the same run's")
    args = parser.parse_args(argv)
    if args.memory_limit_gib:
        parser.error("--memory-limit-gib has no effect here: nothing is kept, and what would be kept is printed")
    if args.telemetry:
        parser.error("--telemetry has no effect here: nothing is sampled, and its work is not counted")
    fill_num_steps(args)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.flops import add_row, count, rows_of, text

    if args.out:
        rows_of(writable_file(args.out))  # what cannot be added to is reported before the count
    record = count(args)
    if args.out:
        add_row(args.out, record)
    print(json.dumps(record) if args.json else text(record))


if __name__ == "__main__":
    run_command(main)
