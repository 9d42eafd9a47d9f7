"""Put the nearest training image beside every sample of an embedded text-to-image model: is it memory or imagination?

Distance is the root mean square difference of pixels in [0, 1]. Real images that were not trained on, those of the test
split, have distances of their own, which are the measure: samples much nearer than those are copies.
"""

import argparse
from pathlib import Path

from seerkit.command.cli import Parser, positive_int, run_command
from seerkit.training.flags import ON_EMOJI

EXAMPLES = """
python eval/nearest.py outputs/flux/flux-tiny-1a2b3c4d --out outputs/nearest
python eval/nearest.py outputs/flux/flux-tiny-1a2b3c4d --label taylorseer-N6-W3-O2 --out outputs/nearest
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    data, output = parser.section("data"), parser.section("output")
    data.add_argument(
        "samples",
        type=Path,
        help="output folder of TaylorSeer-FLUX/sample.py or TaylorSeer-HiDream/sampling.py",
    )
    data.add_argument("--label", default="uncached", help="the cache whose images are looked at")
    data.add_argument("--data", type=Path, metavar="DIR", help=ON_EMOJI["data"])
    output.add_argument("--shown", type=positive_int, metavar="N", default=16, help="samples in the picture")
    output.add_argument(
        "--out", type=Path, metavar="NAME", required=True, help="name of the picture (.png) and the record (.json)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.nearest import compare

    compare(args)


if __name__ == "__main__":
    run_command(main)
