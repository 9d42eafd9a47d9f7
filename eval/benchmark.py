"""Time full steps, forecast steps and whole runs, cached and not, with the same kernels in one process, on random weights.

Beside the times: operations that a forecast step dispatches, at the model's depth and at that of the deepest of its family,
and on CUDA peak memory.
"""

import argparse
import json

from evaluation.flags import add_workload_flags, fill_num_steps
from seerkit.command.cli import Parser, non_negative_int, positive_int, run_command
from seerkit.command.flags import add_device_flag, add_record_flags
from seerkit.io.files import writable_file, write_json

EXAMPLES = """
python eval/benchmark.py --model debug --device cpu
python eval/benchmark.py --model DiT-XL/2 --device cpu --whole-run --out results/dit/benchmark-cpu.json
python eval/benchmark.py --model DiT-XL/2 --precision bf16 --repeats 50 --whole-run --compile
python eval/benchmark.py --model flux-dev --precision bf16 --whole-run --compile --against-diffusers
python eval/benchmark.py --model flux-dev --depth 2 --height 256 --width 256 --device cpu
python eval/benchmark.py --model hunyuan-video --depth 1 --height 256 --width 256 --num-frames 17 --device cpu
python eval/benchmark.py --model wan-t2v-1.3B --depth 1 --height 256 --width 256 --num-frames 17 --device cpu
python eval/benchmark.py --model hidream-full --depth 1 --height 320 --width 320 --device cpu
"""
MOST = {"threads": 1024, "repeats": 10**4, "dropped": 10**4, "whole_repeats": 10**4, "seed": 2**63 - 1}
"""The largest values of flags, beyond which a benchmark would not end or torch has no such number."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    add_workload_flags(parser, argv)
    parser.hide("--engine", "--telemetry", "--compare")
    measuring = parser.section("measuring")
    measuring.add_argument(
        "--repeats", type=positive_int, metavar="N", default=10, help="timings kept of every kind of step"
    )
    measuring.add_argument(
        "--dropped", type=non_negative_int, metavar="N", default=1, help="timings dropped before them"
    )
    measuring.add_argument(
        "--whole-run", action="store_true", help="time whole sampling runs in turn, too (much longer)"
    )
    measuring.add_argument(
        "--whole-repeats",
        type=positive_int,
        metavar="N",
        help="whole runs of either kind, with --whole-run (default: 3)",
    )
    measuring.add_argument(
        "--against-diffusers",
        action="store_true",
        help="time full steps of diffusers' model, too (not DiT; as compiled)",
    )
    measuring.add_argument("--seed", type=non_negative_int, metavar="N", default=0, help="of weights and inputs")
    add_device_flag(parser)
    device = parser.section("device")
    device.add_argument("--threads", type=positive_int, metavar="N", help="of the CPU (default: torch's choice)")
    device.add_argument(
        "--compile",
        action="store_true",
        help="torch.compile full and forecast steps, one graph each; times the folded engine",
    )
    add_record_flags(parser)
    args = parser.parse_args(argv)
    if args.engine not in (None, "folded"):
        parser.error(f"--engine {args.engine} has no effect here: all engines are timed, and whole runs are folded")
    if args.telemetry:
        parser.error("--telemetry adds work to full steps; time without it")
    for name, most in MOST.items():
        if (getattr(args, name) or 0) > most:
            parser.error(f"--{name.replace('_', '-')} {getattr(args, name)} is too much; take at most {most}")
    if args.whole_repeats and not args.whole_run:
        parser.error("--whole-repeats has no effect without --whole-run")
    args.whole_repeats = args.whole_repeats or 3
    fill_num_steps(args)
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.out:
        writable_file(args.out)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.benchmark import measure, text

    record = measure(args)
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


if __name__ == "__main__":
    run_command(main)
