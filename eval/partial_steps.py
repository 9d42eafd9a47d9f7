"""What a step that computes part of a model takes beside one that computes all of it: seconds and processor time of the full,
partial and forecast steps of a method, taken in turn with uncached ones, and beside them their shares of the FLOPs.

Small models are all overhead: at a published width and reduced depth the products of matrices decide, as they do in use.
"""

import argparse
import json

from cache_dic import METHODS
from evaluation.flags import add_any_model_flag
from seerkit.command.cli import Parser, non_negative_int, positive_int, run_command
from seerkit.command.flags import add_device_flag, add_dry_run_flag, add_record_flags
from seerkit.devices.dtypes import PRECISIONS
from seerkit.io.files import writable_file, write_json

EXAMPLES = """
python eval/partial_steps.py --model flux-tiny --methods toca duca
python eval/partial_steps.py --model flux-dev --depth 1 --height 256 --width 256 --out results/flux/partial-steps.json
python eval/partial_steps.py --model DiT-XL/2 --depth 4 --methods toca --dry-run
"""
MOST = {"threads": 1024, "repeats": 10**4, "dropped": 10**4}
"""The largest values of flags, beyond which it would not end or torch has no such number."""
PARTIAL = tuple(name for name, method in METHODS.items() if method.engine == "partial")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    model, sampling, device = (parser.section(title) for title in ("model", "sampling", "device"))
    add_any_model_flag(parser, "flux-tiny")
    model.add_argument(
        "--depth",
        type=positive_int,
        metavar="N",
        help="number of blocks, of two kinds where there are two (default: all)",
    )
    for side in ("--height", "--width"):
        sampling.add_argument(side, type=positive_int, metavar="PIXELS", help="of the samples (default: the model's)")
    sampling.add_argument("--num-frames", type=positive_int, metavar="N", help="of a video (default: the model's)")
    parser.section("caching").add_argument(
        "--methods",
        "--method",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(PARTIAL)} (default: all that the model has)",
    )
    measuring = parser.section("measuring")
    measuring.add_argument(
        "--repeats", type=positive_int, metavar="N", default=5, help="timings kept of every kind of step"
    )
    measuring.add_argument(
        "--dropped", type=non_negative_int, metavar="N", default=1, help="timings dropped before them"
    )
    add_device_flag(parser)
    device.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of weights and features")
    device.add_argument("--threads", type=positive_int, metavar="N", help="of the CPU (default: torch's)")
    add_dry_run_flag(
        parser, "how many steps of each kind a run of each method has, and their shares of an uncached step's FLOPs"
    )
    add_record_flags(parser)
    args = parser.parse_args(argv)
    for name in args.methods or ():
        if name not in PARTIAL:
            parser.error(
                f"method {name!r} computes no part of a step; choose from {', '.join(PARTIAL)}"
                if name in METHODS
                else f"method {name!r} is unknown; choose from {', '.join(PARTIAL)}"
            )
    for name, most in MOST.items():
        if (getattr(args, name) or 0) > most:
            parser.error(f"--{name} {getattr(args, name)} is too much; take at most {most}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.out and not args.dry_run:
        writable_file(args.out)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.partial_steps import measure, plan, text

    if args.dry_run:
        print(json.dumps(plan(args), indent=2))
        return
    record = measure(args)
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


if __name__ == "__main__":
    run_command(main)
