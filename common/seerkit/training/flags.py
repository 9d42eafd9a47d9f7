"""Flags that the training commands share; needs no torch."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seerkit.command.cli import Parser, non_negative_int, positive_float, positive_int, share
from seerkit.command.flags import add_device_flag, add_dry_run_flag
from seerkit.layers.names import ATTENTION_BACKENDS

ON_EMOJI = {"data": "folder that scripts/get_emoji.sh has made (default: data/emoji)", "steps": 40000}
ON_CLIPS = {"data": None, "steps": 40000, "batch_size": 64, "optimizer": "muon", "lr": 2e-3}
"""For `parse_training_args`: what the embedded text-to-image and text-to-video models are trained on, and how."""

OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon for the blocks' matrices, AdamW for the rest"}
"""Of --optimizer, in words."""


def parse_training_args(
    argv: Sequence[str] | None,
    *,
    description: str,
    examples: str,
    models: Sequence[str],
    default: str,
    data: str | None,
    **defaults: Any,
) -> argparse.Namespace:
    """The command line of a training command for one of `models`.

    data: what --data is, None where the data need no files. defaults: as `add_training_flags`.
    """
    parser = Parser(description, examples)
    parser.section("model").add_argument("--model", choices=models, default=default, help="shape of the model to train")
    if data is not None:
        parser.section("data").add_argument("--data", type=Path, metavar="DIR", help=data)
    add_training_flags(parser, **defaults)
    return parser.parse_args(argv)


def add_training_flags(
    parser: Parser, *, steps: int, batch_size: int = 128, optimizer: str = "adamw", lr: float = 1e-3
) -> None:
    """Flags of a training command; the arguments are defaults."""
    training, output, device = (parser.section(title) for title in ("training", "output", "device"))
    # In the order of settings.json and of the models' cards.
    output.add_argument(
        "--output-dir",
        "--out",
        dest="out",
        type=Path,
        metavar="DIR",
        required=True,
        help="gets checkpoints, grids of samples and the loss curve",
    )
    training.add_argument("--steps", type=positive_int, metavar="N", default=steps, help="optimiser steps")
    training.add_argument(
        "--batch-size", type=positive_int, metavar="N", default=batch_size, help="samples per step, over all processes"
    )
    training.add_argument(
        "--optimizer", choices=tuple(OPTIMIZERS), default=optimizer,
        help="AdamW for all weights, or Muon for the matrices of the blocks and AdamW for the rest",
    )  # fmt: skip
    training.add_argument("--lr", type=positive_float, metavar="RATE", default=lr, help="peak learning rate")
    training.add_argument(
        "--lr-schedule", choices=("cosine", "constant"), default="cosine", help="learning rate after the warm-up"
    )
    training.add_argument(
        "--lr-warmup-steps", type=non_negative_int, metavar="N", default=500, help="linear warm-up, in steps"
    )
    training.add_argument(
        "--ema-decay",
        type=share,
        metavar="SHARE",
        default=0.999,
        help="of the averaged weights that are sampled from, per step",
    )
    device.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of matrix products (autocast)")
    device.add_argument("--compile", action="store_true", help="torch.compile the model")
    device.add_argument(
        "--attention", choices=ATTENTION_BACKENDS, default="sdpa", help="kernels; reference is faster on CPUs in bf16"
    )
    add_device_flag(parser)
    training.add_argument(
        "--seed", type=non_negative_int, metavar="N", default=0, help="of first weights, batches and samples"
    )
    for flag, every, what in (
        ("--log-every", 50, "rows of loss.csv"),
        ("--save-every", 1000, "checkpoints"),
        ("--grid-every", 2000, "grids of samples"),
    ):
        output.add_argument(flag, type=positive_int, metavar="N", default=every, help=f"steps between {what}")
    output.add_argument("--resume", action="store_true", help="continue from the checkpoint in --output-dir")
    add_dry_run_flag(parser, "the resolved configuration")
