"""What every caching method adds to the steps of a model: seconds of its decisions and forecasts, at reduced depth where asked
for, and by count, at the model's full size, the features kept.

A method's own decisions are made and timed, but which steps are full is scripted, so that all are timed on the same steps.
"""

import argparse
import json

from cache_dic import METHODS
from evaluation.flags import add_any_model_flag
from seerkit.command.cli import Parser, positive_int, run_command
from seerkit.command.flags import add_record_flags
from seerkit.devices.dtypes import PRECISIONS
from seerkit.io.files import writable_file, write_json

EXAMPLES = """
python eval/method_costs.py --model flux-dev --depth 1 --height 256 --width 256 --out results/flux/method-costs.json
python eval/method_costs.py --model flux-tiny --methods teacache first_block_cache --json
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    model, sampling, device = (parser.section(title) for title in ("model", "sampling", "device"))
    add_any_model_flag(parser, "flux-dev")
    model.add_argument(
        "--depth", type=positive_int, metavar="N", help="blocks of what is timed, of two kinds where there are two"
    )
    for side in ("--height", "--width"):
        sampling.add_argument(side, type=positive_int, metavar="PIXELS", help="of what is timed (default: the model's)")
    sampling.add_argument("--num-frames", type=positive_int, metavar="N", help="of what is timed, for a video")
    parser.section("caching").add_argument(
        "--methods", nargs="+", metavar="NAME", help=f"of {', '.join(METHODS)} (default: all that the model has)"
    )
    device.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of weights and features")
    device.add_argument("--threads", type=positive_int, metavar="N", help="of the CPU (default: torch's)")
    add_record_flags(parser)
    args = parser.parse_args(argv)
    for name in args.methods or ():
        if name not in METHODS:
            parser.error(f"method {name!r} is unknown; choose from {', '.join(METHODS)}")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.out:
        writable_file(args.out)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.method_costs import measure, text

    record = measure(args)
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


if __name__ == "__main__":
    run_command(main)
