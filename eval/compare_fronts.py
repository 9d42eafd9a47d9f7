"""Compare caches on diffusers' FluxPipeline in one run: this front, diffusers' own hooks, cache-dit.

By front: operations that a forecast step dispatches, time of full and forecast steps, bytes kept, graphs when blocks are
compiled. Models have random weights: a narrow one as deep as FLUX.1 and the embedded one's shape; on a GPU FLUX.1-dev's.
"""

import argparse
import json

from cache_dic import PRESETS
from seerkit.command.cli import Parser, non_negative_int, positive_int, run_command
from seerkit.command.flags import add_device_flag, add_record_flags
from seerkit.devices.dtypes import PRECISIONS
from seerkit.io.files import writable_file, write_json

EXAMPLES = """
python eval/compare_fronts.py
python eval/compare_fronts.py --out results/flux/fronts-cpu.json
python eval/compare_fronts.py --sizes flux-dev --precision bf16 --device cuda --out results/flux/fronts-gpu.json
"""
SIZES = ("flux-tiny", "flux-depth", "flux-dev")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__ or "", EXAMPLES)
    parser.section("model").add_argument(
        "--sizes",
        nargs="+",
        choices=SIZES,
        default=list(SIZES[:2]),
        metavar="NAME",
        help=f"of {', '.join(SIZES)}: that of the embedded model, FLUX.1's depth in a narrow model, FLUX.1-dev (24 GB in bf16)",
    )
    parser.section("sampling").add_argument(
        "--num-steps", type=positive_int, default=22, metavar="N", help="sampling steps"
    )
    measuring = parser.section("measuring")
    measuring.add_argument("--repeats", type=positive_int, default=5, metavar="N", help="timed runs")
    measuring.add_argument("--dropped", type=non_negative_int, default=1, metavar="N", help="runs before them, untimed")
    measuring.add_argument("--no-compile", action="store_true", help="do not count graphs")
    add_device_flag(parser)
    parser.section("device").add_argument(
        "--precision", choices=tuple(PRECISIONS), default="fp32", help="of weights and features"
    )
    add_record_flags(parser)
    args = parser.parse_args(argv)
    least = PRESETS["flux"].warmup_steps + PRESETS["flux"].interval
    if args.num_steps <= least:
        parser.error(f"--num-steps {args.num_steps} must be above {least}, for forecasts from full steps far apart")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.out:
        writable_file(args.out)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.fronts import compare, text
    from seerkit.devices.distributed import start_world

    record = compare(args, start_world(args.device).device)
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


if __name__ == "__main__":
    run_command(main)
