"""Flags of generate.py, and what they ask for before a model is loaded; needs no torch but for the first frame."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dic import UserError
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, positive_int, refuse_without_effect, true_or_false
from seerkit.command.flags import (
    LOOKED_IN,
    add_device_flags,
    add_guidance_parallel_flag,
    add_model_flag,
    add_prompt_flags,
    check_sizes,
    refuse_two_sizes,
    require_weights,
    spellings,
)
from seerkit.command.images import fill_in
from seerkit.command.videos import add_clip_flags, add_process_flags, sequence_parallel, shipped_or_given_list
from seerkit.data.captions import word_indices
from seerkit.text.prompts import Listed, require
from wan.config import CONFIGS, REPOS, USAGE, latent_shape, wan_config

if TYPE_CHECKING:
    from cache_dic import Cache

EMBEDDED = "wan-tiny"
QUALITY = 8  # of H.264 files, as the official command writes them
I2V = "wan-i2v-14B"
VARIANTS = {I2V: (f"{I2V}-720P", f"{I2V}-480P")}
"""The models that a name stands for; the size says which, and the default size is of the first."""
PREFIX = "wan-"
SOLVERS = ("unipc", "dpm++")
ALSO = {
    "--model": "--task",
    "--ckpt": "--ckpt-dir",
    "--num-steps": "--sample-steps",
    "--guidance-scale": "--sample-guide-scale",
    "--num-frames": "--frame-num",
    "--shift": "--sample-shift",
    "--solver": "--sample-solver",
    "--seed": "--base-seed",
    "--ulysses-degree": "--ulysses-size",
    "--ring-degree": "--ring-size",
}
"""Spellings of Wan-Video/Wan2.1 where they are others; its names of models lack PREFIX."""
NOT_TAKEN = dict.fromkeys(
    (
        f"--{name}"
        for name in ("use-prompt-extend", "prompt-extend-method", "prompt-extend-model", "prompt-extend-target-lang")
    ),
    "lengthen the prompts yourself and hand them over by --prompt-file",
)
"""Official flags that have no counterpart, and what to do instead."""


def add_flags(parser: Parser) -> None:
    """Flags of model, prompts, sampling, caching and device."""
    parser.not_taken = NOT_TAKEN
    add_model_flag(parser, (*CONFIGS, *VARIANTS), EMBEDDED, ALSO, prefix=PREFIX)
    model = parser.section("model")
    model.add_argument(
        *spellings("--ckpt", ALSO),
        type=Path,
        metavar="PATH",
        help=f"checkpoint file or folder (default: $WAN_T2V_14B for that model, {LOOKED_IN})",
    )
    model.add_argument(
        "--vae", type=Path, metavar="PATH", help=f"autoencoder file or folder (default: $WAN_VAE, {LOOKED_IN})"
    )
    model.add_argument("--t5", type=Path, metavar="DIR", help="folder of the UMT5-XXL encoder and its tokenizer")
    model.add_argument("--clip", type=Path, metavar="DIR", help="folder of the CLIP ViT-H/14 image encoder, for i2v")
    add_prompt_flags(parser, embedded=EMBEDDED)
    prompts = parser.section("prompts")
    prompts.add_argument("--image", type=Path, metavar="FILE", help="the first frame, for i2v")
    prompts.add_argument(
        "--negative-prompt",
        metavar="TEXT",
        help="prompt of the second branch (default: the official one; wan-tiny: empty)",
    )
    prompts.add_argument(
        "--embeddings", type=Path, metavar="DIR", help="folder that keeps prompt embeddings from one run to the next"
    )
    add_clip_flags(
        parser,
        ALSO,
        num_steps="50; i2v: 40",
        guidance="1 for none (default: 5; wan-tiny: 2)",
        batch_size="1; wan-tiny: 4",
        height="720; wan-t2v-1.3B: 480; wan-tiny: 24",
        width="1280; wan-t2v-1.3B: 832; wan-tiny: 24",
        num_frames="4n + 1 (default: 81; wan-tiny: 8)",
        shift="5; i2v in 480P and wan-tiny: 3",
    )
    sampling = parser.section("sampling")
    sampling.add_argument(
        "--size",
        type=width_and_height,
        metavar="W*H",
        help="width and height in one flag, in pixels; for i2v they say the area, the first frame says the shape, and of "
        f"{I2V} they choose 480P or 720P",
    )
    sampling.add_argument(
        *spellings("--solver", ALSO), choices=SOLVERS, default="unipc", help="for the flow's equation, both of order 2"
    )
    sampling.add_argument(
        "--batched-guidance", action="store_true", help="both guidance branches in one model call and cache"
    )
    add_cache_flags(parser, "wan")
    add_device_flags(parser, precision="bf16; wan-tiny: fp32")
    device = parser.section("device")
    device.add_argument("--t5-cpu", action="store_true", help="encode the prompts on the CPU")
    device.add_argument(
        "--offload-model",
        type=true_or_false,
        metavar="BOOL",
        help="accepted as official; text encoder, transformer and autoencoder always take turns on the device",
    )
    processes = add_process_flags(parser, ALSO)
    processes.add_argument(
        "--t5-fsdp", action="store_true", help="share the text encoder's weights among those processes"
    )
    add_guidance_parallel_flag(processes)


def width_and_height(text: str) -> tuple[int, int]:
    """An argparse type: WIDTH*HEIGHT."""
    try:
        width, height = map(positive_int, text.replace("x", "*").split("*"))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text[:40]} is not WIDTH*HEIGHT, such as 832*480") from None
    return width, height


def fill_defaults(args: argparse.Namespace) -> None:
    """Set the model, and what was not given to its own settings; UserError for what does not fit it."""
    if args.model.startswith(I2V):
        require(args.image, f"{args.model} needs --image, the first frame of the video")
    else:
        if args.image:
            raise UserError(
                f"--image {args.image} has no effect on {args.model}, which makes videos of texts; use --model {I2V}"
            )
        refuse_without_effect(args, args.model, "--clip")
    if args.model not in (*VARIANTS, *REPOS):
        refuse_without_effect(args, args.model, "--vae", "--t5", "--embeddings", "--t5-cpu", "--t5-fsdp")
    _choose_size_and_model(args)
    usage, negative_prompt = USAGE[args.model], args.negative_prompt
    fill_in(
        args,
        num_frames=usage.frames,
        num_steps=usage.num_steps,
        shift=usage.shift,
        guidance_scale=usage.guidance,
        batch_size=usage.batch_size,
        precision=usage.precision,
        negative_prompt=usage.negative_prompt,
    )
    small = (args.width, args.height) in USAGE["wan-t2v-1.3B"].sizes
    check_sizes(
        args,
        lambda: latent_shape(args.model, args.height, args.width, args.num_frames),
        embedded=EMBEDDED,
        published="wan-t2v-1.3B" if small else "wan-t2v-14B",
    )
    require_weights(args, (*REPOS, EMBEDDED))
    if args.guidance_scale == 1:
        for flag, given in (
            ("--negative-prompt", negative_prompt),
            ("--batched-guidance", args.batched_guidance),
            ("--guidance-parallel", args.guidance_parallel),
        ):
            if given:
                raise UserError(f"{flag} has no effect with --guidance-scale 1, which is no guidance; leave it out")
    if args.guidance_parallel and (args.batched_guidance or sequence_parallel(args)):
        raise UserError(
            "--guidance-parallel gives each guidance branch a process with calls of its own; leave out --batched-guidance, "
            "--ulysses-degree and --ring-degree"
        )
    for flag, given in (("--dit-fsdp", args.dit_fsdp), ("--t5-fsdp", args.t5_fsdp)):
        if given and not sequence_parallel(args):
            raise UserError(
                f"{flag} shares weights among processes that share videos; give --ulysses-degree or --ring-degree"
            )
    if args.t5_fsdp and args.t5_cpu:
        raise UserError("--t5-fsdp and --t5-cpu exclude each other; give one of them")


def _choose_size_and_model(args: argparse.Namespace) -> None:
    """Set height and width, of image to video in the first frame's shape, and of VARIANTS the model that the size is of."""
    if args.size:
        refuse_two_sizes(args, "--size")
        args.width, args.height = args.size
    models = VARIANTS.get(args.model, (args.model,))
    width, height = USAGE[models[0]].sizes[0]
    fill_in(args, width=width, height=height)
    if models[0] not in REPOS:
        return
    size = args.width, args.height
    fitting = [name for name in models if size in USAGE[name].sizes]
    if not fitting:
        choices = ", ".join("{}*{}".format(*known) for name in models for known in USAGE[name].sizes)
        raise UserError(
            f"size {'{}*{}'.format(*size)} is not one of {args.model}; choose from {choices} (width*height)"
        )
    (args.model,) = fitting
    if args.image:
        from wan.image import output_size, read_image

        unit = USAGE[args.model].factor * wan_config(args.model).patch_size[1]
        args.height, args.width = output_size(*read_image(args.image).shape[-2:], args.width * args.height, unit)


def prompts_of(args: argparse.Namespace) -> list[Listed]:
    """The prompts that the flags ask for; UserError if there are none or two sources of them, and for unknown words."""
    listed = shipped_or_given_list(args, published=args.model in REPOS)
    if args.model not in REPOS:
        word_indices(args.negative_prompt)
    return listed


def caches(args: argparse.Namespace) -> "dict[str, Cache]":
    """The caches that the flags ask for, each checked against the number of steps."""
    return caches_from_flags(args, "wan", num_steps=args.num_steps)
