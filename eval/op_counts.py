"""Count the operations that a forecast step dispatches at the depth of FLUX.1: here, in diffusers, in cache-dit, as released.

The count depends on depth and order alone, so that a narrow model on a CPU serves; nothing is timed.
"""

import argparse
import json

from cache_dic import PRESETS
from flux.config import CONFIGS, USAGE
from seerkit.command.cli import Parser, non_negative_int, positive_int, run_command
from seerkit.command.flags import add_record_flags
from seerkit.devices.dtypes import PRECISIONS
from seerkit.io.files import writable_file, write_json

EXAMPLES = """
python eval/op_counts.py
python eval/op_counts.py --max-order 1 --json
python eval/op_counts.py --out results/flux/op-counts.json
"""
MODEL = "flux-debug"  # narrow; the depth comes from --depth


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    parser.section("caching").add_argument(
        "--max-order",
        type=non_negative_int,
        metavar="N",
        default=PRESETS["flux"].max_order,
        help="highest Taylor order",
    )
    parser.section("model").add_argument(
        "--depth",
        type=positive_int,
        metavar="N",
        default=CONFIGS["flux-dev"].depth,
        help="double blocks; single blocks are twice as many",
    )
    parser.section("device").add_argument(
        "--precision", choices=tuple(PRECISIONS), default="bf16", help="of weights and features"
    )
    add_record_flags(parser)
    args, num_steps = parser.parse_args(argv), USAGE[MODEL].num_steps
    if args.max_order >= num_steps:
        parser.error(f"--max-order {args.max_order} is too much; a run of {num_steps} steps has no such difference")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.out:
        writable_file(args.out)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.op_counts import count_all, text

    record = count_all(MODEL, args)
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


if __name__ == "__main__":
    run_command(main)
