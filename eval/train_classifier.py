"""Train the Fashion-MNIST classifier that judges samples: SGD with a cosine rate on shifted and mirrored images."""

import argparse
import shlex
import sys
from argparse import BooleanOptionalAction
from pathlib import Path

from cache_dic import UserError
from seerkit.command.cli import (
    Parser,
    integer,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    run_command,
    share,
)
from seerkit.command.flags import add_device_flag, add_dry_run_flag
from seerkit.data.fashion_mnist import IMAGE_SIZE

EXAMPLES = """
python eval/train_classifier.py --out outputs/classifier.safetensors
python eval/train_classifier.py --out outputs/classifier.safetensors --epochs 20 --seed 1 --overwrite
python eval/train_classifier.py --validate 10000 --epochs 4 --no-flip
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    output, training = parser.section("output"), parser.section("training")
    output.add_argument(
        "--out", type=Path, metavar="FILE", help="the .safetensors file to write, its card as .json beside it"
    )
    output.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    parser.section("data").add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder with the four IDX files of Fashion-MNIST (default: where they are found)",
    )
    training.add_argument(
        "--epochs", type=positive_int, metavar="N", default=12, help="passes over the training images"
    )
    training.add_argument("--batch-size", type=positive_int, metavar="N", default=128, help="images per step")
    training.add_argument(
        "--lr", type=positive_float, metavar="RATE", default=0.1, help="peak learning rate, after one epoch of warm-up"
    )
    training.add_argument("--momentum", type=share, metavar="SHARE", default=0.9, help="of SGD, in Nesterov's form")
    training.add_argument(
        "--weight-decay",
        type=non_negative_float,
        metavar="RATE",
        default=5e-4,
        help="of convolution and linear weights",
    )
    training.add_argument(
        "--max-shift",
        type=integer(0, IMAGE_SIZE - 1),
        metavar="PIXELS",
        default=1,
        help="random shift of an image both ways, in pixels",
    )
    training.add_argument("--flip", action=BooleanOptionalAction, default=True, help="mirror half of the images")
    parser.section("device").add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="of convolutions (autocast)"
    )
    add_device_flag(parser)
    training.add_argument(
        "--seed", type=non_negative_int, metavar="N", default=0, help="of first weights, batches, shifts and mirroring"
    )
    training.add_argument(
        "--validate",
        type=non_negative_int,
        default=0,
        metavar="N",
        help="to choose settings: hold out the last N training images, measure on them, write nothing",
    )
    add_dry_run_flag(parser, "the resolved configuration")
    args = parser.parse_args(argv)
    if args.out is None and not args.validate:
        raise UserError("name the file to write with --out, or measure only with --validate N")
    if args.out is not None and args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out} must end in .safetensors")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.classifier_training import make_classifier

    make_classifier(args, f"python eval/train_classifier.py {shlex.join(sys.argv[1:] if argv is None else argv)}")


if __name__ == "__main__":
    run_command(main)
