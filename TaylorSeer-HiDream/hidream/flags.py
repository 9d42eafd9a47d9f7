"""Flags of sampling.py and inference.py, and what they ask for before a model is loaded; needs no torch."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import UserError
from hidream.config import CONFIGS, REPOS, USAGE, latent_shape
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, non_negative_float, positive_int, refuse_without_effect
from seerkit.command.flags import (
    LOOKED_IN,
    add_device_flags,
    add_guidance_parallel_flag,
    add_image_flags,
    add_model_flag,
    add_prompt_flags,
    add_sampling_flags,
    check_sizes,
    guidance_parallel,
    require_weights,
    spellings,
)
from seerkit.command.images import fill_image_settings, shipped_or_given_prompts
from seerkit.limits import MAX_GUIDANCE

if TYPE_CHECKING:
    from cache_dic import Cache

EMBEDDED = "hidream-tiny"
PREFIX = "hidream-"
ALSO = {
    "--model": "--model-type",
    "--num-steps": "--num-inference-steps",
    "--guidance-scale": "--guidance",
    "--samples-per-prompt": "--num-images-per-prompt",
}
"""Spellings of HiDream-ai/HiDream-I1 and of the authors' sampling.py where they are others."""


def add_flags(parser: Parser) -> None:
    """All flags of sampling.py."""
    add_prompt_flags(parser, embedded=EMBEDDED)
    parser.section("prompts").add_argument(
        *spellings("--samples-per-prompt", ALSO),
        type=positive_int,
        default=1,
        metavar="N",
        help="images of every prompt",
    )
    add_single_image_flags(parser, batch_size="1; hidream-tiny: 8")
    add_image_flags(parser, ALSO, family="hidream")
    add_guidance_parallel_flag(
        parser.add_argument_group("two processes", "under torchrun, which else share the prompts")
    )


def add_single_image_flags(parser: Parser, *, batch_size: str | None = None) -> None:
    """Those that inference.py has too, of model, sampling, caching and device. batch_size: as `add_sampling_flags`."""
    add_model_flag(parser, tuple(CONFIGS), EMBEDDED, ALSO, prefix=PREFIX)
    model = parser.section("model")
    model.add_argument(
        "--ckpt",
        type=Path,
        metavar="PATH",
        help=f"checkpoint file or folder (default: $HIDREAM_FULL, $HIDREAM_DEV or $HIDREAM_FAST, {LOOKED_IN})",
    )
    model.add_argument(
        "--ae", type=Path, metavar="PATH", help=f"autoencoder file or folder (default: $HIDREAM_VAE, {LOOKED_IN})"
    )
    model.add_argument("--t5", type=Path, metavar="DIR", help="folder of the T5-v1.1-XXL encoder")
    model.add_argument("--clip-l", type=Path, metavar="DIR", help="folder of the CLIP-L text encoder")
    model.add_argument("--clip-g", type=Path, metavar="DIR", help="folder of the CLIP-bigG text encoder")
    model.add_argument("--llama", type=Path, metavar="DIR", help="folder of Llama-3.1-8B-Instruct")
    prompts = parser.section("prompts")
    prompts.add_argument("--negative-prompt", metavar="TEXT", help="prompt of the second branch (default: nothing)")
    prompts.add_argument(
        "--embeddings", type=Path, metavar="DIR", help="folder that keeps prompt embeddings from one run to the next"
    )
    add_sampling_flags(
        parser,
        ALSO,
        sample="image",
        num_steps="50; hidream-dev: 28; hidream-fast: 16",
        guidance="of the prompt over the negative one; up to 1 runs no second branch "
        "(default: 5; hidream-dev and -fast: 1; hidream-tiny: 3)",
        batch_size=batch_size,
        guidance_type=non_negative_float,
    )
    for side in ("--width", "--height"):
        parser.section("sampling").add_argument(
            side, type=positive_int, metavar="PIXELS", help="in pixels (default: 1024; hidream-tiny: 32)"
        )
    add_cache_flags(parser, "hidream")
    add_device_flags(parser, precision="bf16; hidream-tiny: fp32")
    device = parser.section("device")
    stored = device.add_mutually_exclusive_group()
    stored.add_argument("--fp8", action="store_true", help="store the weights of the blocks' linear layers in 8 bits")
    stored.add_argument(
        "--nf4", action="store_true", help="store those, and T5's and Llama's, in 4 bits, with bitsandbytes"
    )
    device.add_argument("--offload-modulation", action="store_true", help="keep the modulation weights in host memory")
    device.add_argument(
        "--offload",
        action="store_true",
        help="keep what is idle in host memory, those weights too: HiDream-I1 in 24 GB, with --nf4",
    )


def fill_defaults(args: argparse.Namespace) -> None:
    """Set what was not given to the model's own settings; UserError for what does not fit it."""
    if args.model not in REPOS:
        refuse_without_effect(args, args.model, "--ae", "--t5", "--clip-l", "--clip-g", "--llama", "--embeddings")
    fill_image_settings(args, USAGE[args.model])
    weight = args.guidance_scale
    if not 0 <= weight <= MAX_GUIDANCE:
        raise UserError(
            f"--guidance-scale {weight} must lie between 0 and {MAX_GUIDANCE:g}; up to 1 it runs no second branch"
        )
    if args.negative_prompt and weight <= 1:
        raise UserError(
            f"--negative-prompt {args.negative_prompt!r} has no effect with guidance {weight:g}; give --guidance-scale "
            "above 1"
        )
    if guidance_parallel(args) and weight <= 1:
        raise UserError(
            f"--guidance-parallel has no effect with guidance {weight:g}, which has one branch; give --guidance-scale above 1"
        )
    args.negative_prompt = args.negative_prompt or ""
    check_sizes(
        args,
        lambda: latent_shape(args.model, args.height, args.width),
        embedded=EMBEDDED,
        published="hidream-full",
    )
    require_weights(args, (*REPOS, EMBEDDED))


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The prompts that the flags ask for; UserError if there are none or two sources of them."""
    return shipped_or_given_prompts(args, published=args.model in REPOS)


def caches(args: argparse.Namespace) -> "dict[str, Cache]":
    """The caches that the flags ask for, each checked against the number of steps."""
    return caches_from_flags(args, "hidream", num_steps=args.num_steps)


def sizes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The workload of a sample, for `evaluation.backbones.workload`."""
    return {"height": args.height, "width": args.width, "cfg_scale": args.guidance_scale}
