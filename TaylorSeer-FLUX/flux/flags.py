"""Flags of sample.py, and what they ask for before a model is loaded; needs no torch."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flux.config import CONFIGS, REPOS, USAGE, latent_shape
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, positive_int, refuse_without_effect
from seerkit.command.flags import (
    LOOKED_IN,
    add_device_flags,
    add_model_flag,
    add_prompt_flags,
    add_sampling_flags,
    check_sizes,
    require_weights,
)
from seerkit.command.images import fill_image_settings, shipped_or_given_prompts

if TYPE_CHECKING:
    from cache_dic import Cache

EMBEDDED = "flux-tiny"
ALSO = {"--model": "--model-name", "--guidance-scale": "--guidance"}
"""Spellings of black-forest-labs/flux where they are others."""
NOT_TAKEN = {"--name": "give --model flux-dev or --model flux-schnell"}
"""Official flags that have no counterpart, and what to do instead."""


def add_flags(parser: Parser) -> None:
    """Flags of model, prompts, sampling, caching and device."""
    parser.not_taken = NOT_TAKEN
    add_model_flag(parser, tuple(CONFIGS), EMBEDDED, ALSO)
    model = parser.section("model")
    model.add_argument(
        "--ckpt",
        type=Path,
        metavar="PATH",
        help=f"checkpoint file or folder (default: $FLUX_DEV or $FLUX_SCHNELL, {LOOKED_IN})",
    )
    model.add_argument(
        "--ae", type=Path, metavar="PATH", help=f"autoencoder file or folder (default: $AE, {LOOKED_IN})"
    )
    model.add_argument("--t5", type=Path, metavar="DIR", help="folder of the T5-v1.1-XXL encoder")
    model.add_argument("--clip", type=Path, metavar="DIR", help="folder of the CLIP-L text encoder")
    add_prompt_flags(parser, embedded=EMBEDDED)
    parser.section("prompts").add_argument(
        "--embeddings", type=Path, metavar="DIR", help="folder that keeps prompt embeddings from one run to the next"
    )
    add_sampling_flags(
        parser,
        ALSO,
        sample="image",
        num_steps="50; flux-schnell: 4",
        guidance="which the model takes as an input (default: 3.5; flux-tiny: 3)",
        batch_size="1; flux-tiny: 8",
    )
    for side in ("--width", "--height"):
        parser.section("sampling").add_argument(
            side, type=positive_int, metavar="PIXELS", help="in pixels (default: 1024; flux-tiny: 32)"
        )
    add_cache_flags(parser, "flux")
    add_device_flags(parser, precision="bf16; flux-tiny: fp32")
    device = parser.section("device")
    device.add_argument("--fp8", action="store_true", help="store the weights of the blocks' linear layers in 8 bits")
    device.add_argument(
        "--offload-modulation",
        action="store_true",
        help="keep the modulation weights in host memory (6.5 GB of FLUX.1)",
    )
    device.add_argument(
        "--offload", action="store_true", help="keep what is idle in host memory, those weights too: FLUX.1 in 24 GB"
    )


def fill_defaults(args: argparse.Namespace) -> None:
    """Set what was not given to the model's own settings; UserError for what does not fit it."""
    if args.model not in REPOS:
        refuse_without_effect(args, args.model, "--ae", "--t5", "--clip", "--embeddings")
    fill_image_settings(args, USAGE[args.model])
    check_sizes(
        args,
        lambda: latent_shape(args.model, args.height, args.width),
        embedded=EMBEDDED,
        published="flux-dev",
    )
    require_weights(args, (*REPOS, EMBEDDED))


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The prompts that the flags ask for; UserError if there are none or two sources of them."""
    return shipped_or_given_prompts(args, published=args.model in REPOS)


def caches(args: argparse.Namespace) -> "dict[str, Cache]":
    """The caches that the flags ask for, each checked against the number of steps."""
    return caches_from_flags(args, "flux", num_steps=args.num_steps)
