"""Flags of sample_video.py, and what they ask for before a model is loaded; needs no torch."""

import argparse
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dic import UserError
from hunyuan_video.config import CONFIGS, REPOS, USAGE, latent_shape
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, positive_int, refuse_without_effect
from seerkit.command.flags import (
    LOOKED_IN,
    add_device_flags,
    add_model_flag,
    add_prompt_flags,
    check_sizes,
    refuse_two_sizes,
    require_weights,
    spellings,
)
from seerkit.command.images import fill_in
from seerkit.command.videos import add_clip_flags, add_process_flags, sequence_parallel, shipped_or_given_list
from seerkit.text.prompts import Listed

if TYPE_CHECKING:
    from cache_dic import Cache

EMBEDDED = "hunyuan-tiny"
QUALITY = 5  # of H.264 files, as the official command writes them
ALSO = {
    "--ckpt": "--dit-weight",
    "--num-steps": "--infer-steps",
    "--guidance-scale": "--embedded-cfg-scale",
    "--num-frames": "--video-length",
    "--shift": "--flow-shift",
    "--output-dir": "--save-path",
    "--fp8": "--use-fp8",
    "--offload": "--use-cpu-offload",
}
"""Spellings of Tencent-Hunyuan/HunyuanVideo where they are others."""
OFFICIAL_NAMES = {"HYVideo-T/2-cfgdistill": "hunyuan-video"}
NOT_TAKEN = {
    "--model-base": "name files and folders by --ckpt, --vae, --llm and --clip",
    "--model-resolution": "the weights are the same for all; give --height and --width",
    "--num-videos": "give --samples-per-prompt",
    "--cfg-scale": "the model has distilled guidance alone, --guidance-scale",
    "--neg-prompt": "the model has distilled guidance alone, which has no negative prompt",
}
"""Official flags that have no counterpart, and what to do instead."""


def add_flags(parser: Parser) -> None:
    """Flags of model, prompts, sampling, caching and device."""
    parser.not_taken = NOT_TAKEN
    add_model_flag(parser, tuple(CONFIGS), EMBEDDED, ALSO, official=OFFICIAL_NAMES)
    model = parser.section("model")
    model.add_argument(
        *spellings("--ckpt", ALSO),
        type=Path,
        metavar="PATH",
        help=f"checkpoint file or folder (default: $HUNYUAN_VIDEO, {LOOKED_IN})",
    )
    model.add_argument(
        "--vae", type=Path, metavar="PATH", help=f"autoencoder file or folder (default: $HUNYUAN_VAE, {LOOKED_IN})"
    )
    model.add_argument("--vae-tiling", action=BooleanOptionalAction, default=True, help="decode in overlapping tiles")
    model.add_argument(
        "--llm", type=Path, metavar="DIR", help="folder of the LLaVA-LLaMA-3 text encoder and its tokenizer"
    )
    model.add_argument("--clip", type=Path, metavar="DIR", help="folder of the CLIP-L text encoder")
    add_prompt_flags(parser, embedded=EMBEDDED)
    parser.section("prompts").add_argument(
        "--embeddings", type=Path, metavar="DIR", help="folder that keeps prompt embeddings from one run to the next"
    )
    add_clip_flags(
        parser,
        ALSO,
        num_steps="50",
        guidance="which the model takes as an input (default: 6; hunyuan-tiny: 3)",
        batch_size="1; hunyuan-tiny: 4",
        height="480; hunyuan-tiny: 24",
        width="640; hunyuan-tiny: 24",
        num_frames="4n + 1 (default: 65; hunyuan-tiny: 8)",
        shift="7; hunyuan-tiny: 3",
    )
    sampling = parser.section("sampling")
    sampling.add_argument(
        "--video-size", nargs=2, type=positive_int, metavar=("H", "W"), help="height and width in one flag, in pixels"
    )
    sampling.add_argument(
        "--flow-reverse",
        action=BooleanOptionalAction,
        default=True,
        help="noise levels from 1 to 0, which the released weights are for",
    )
    add_cache_flags(parser, "hunyuan_video")
    add_device_flags(parser, precision="bf16; hunyuan-tiny: fp32")
    device = parser.section("device")
    device.add_argument(
        *spellings("--fp8", ALSO),
        action="store_true",
        help="store the weights of the blocks' linear layers in 8 bits",
    )
    device.add_argument(
        *spellings("--offload", ALSO),
        action="store_true",
        help="keep the modulation weights, a quarter of all, in host memory; encoders, transformer and autoencoder always "
        "take turns on the device",
    )
    add_process_flags(parser, ALSO)


def fill_defaults(args: argparse.Namespace) -> None:
    """Set what was not given to the model's own settings; UserError for what does not fit it."""
    if args.model not in REPOS:
        refuse_without_effect(args, args.model, "--vae", "--llm", "--clip", "--embeddings")
    if args.video_size:
        refuse_two_sizes(args, "--video-size")
        args.height, args.width = args.video_size
    usage = USAGE[args.model]
    fill_in(
        args,
        height=usage.height,
        width=usage.width,
        num_frames=usage.frames,
        num_steps=usage.num_steps,
        shift=usage.flow_shift,
        guidance_scale=usage.guidance,
        batch_size=usage.batch_size,
        precision=usage.precision,
    )
    check_sizes(
        args,
        lambda: latent_shape(args.model, args.height, args.width, args.num_frames),
        embedded=EMBEDDED,
        published="hunyuan-video",
    )
    require_weights(args, (*REPOS, EMBEDDED))
    if args.dit_fsdp and not sequence_parallel(args):
        raise UserError(
            "--dit-fsdp shares weights among processes that share videos; give --ulysses-degree or --ring-degree"
        )
    if args.dit_fsdp and (args.fp8 or args.offload):
        raise UserError("--dit-fsdp excludes --fp8 and --offload; the weights are shared instead")


def prompts_of(args: argparse.Namespace) -> list[Listed]:
    """The prompts that the flags ask for; UserError if there are none or two sources of them, and for unknown words."""
    return shipped_or_given_list(args, published=args.model in REPOS)


def caches(args: argparse.Namespace) -> "dict[str, Cache]":
    """The caches that the flags ask for, each checked against the number of steps."""
    return caches_from_flags(args, "hunyuan_video", num_steps=args.num_steps)
