"""Flags of sample.py and sample_ddp.py, and what they ask for before a model is loaded; needs no torch."""

import argparse
import re
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dic import UserError
from cache_dic.errors import shown
from dit.config import CONFIGS, PUBLISHED_SIZES, TRAIN_STEPS, VAES, DiTConfig, dit_config
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, positive_int, refuse_without_effect
from seerkit.command.flags import add_device_flags, add_model_flag, add_sampling_flags, report_no_weights
from seerkit.data.fashion_mnist import CLASS_NAMES

if TYPE_CHECKING:
    from cache_dic import Cache

EMBEDDED, PUBLISHED = "fashion-mnist", "DiT-XL/2"
WITH_WEIGHTS = (CONFIGS[EMBEDDED], *(dit_config(PUBLISHED, image_size=size) for size in PUBLISHED_SIZES))
DEFAULT_VAE = "ema"
NUM_STEPS, PRECISION = 50, "fp32"
SHOWN_GUIDANCE = 2.0  # of samples to look at
FID_GUIDANCE, FID_SAMPLES, FID_BATCH = 1.5, 50000, 32  # of the official sample_ddp.py
SHOWN_PER_CLASS = 4
IMAGENET_SHOWN = [207, 360, 387, 974, 88, 979, 417, 279]  # the classes of the official sample.py
ALSO = {"--num-steps": "--num-sampling-steps", "--guidance-scale": "--cfg-scale", "--seed": "--global-seed"}
"""Spellings of facebookresearch/DiT where they are others."""


def add_class_flag(parser: Parser) -> None:
    """--classes."""
    parser.section("prompts").add_argument(
        "--classes", metavar="LIST", help="comma-separated numbers or names (default: all, or the official eight)"
    )


def add_flags(parser: Parser, *, guidance_scale: float) -> None:
    """Flags of the model, the sampler, the caches and the device; guidance_scale: the command's default."""
    add_model_flag(parser, (PUBLISHED, *(name for name in CONFIGS if name != PUBLISHED)), EMBEDDED, ALSO)
    model = parser.section("model")
    model.add_argument(
        "--image-size",
        type=positive_int,
        metavar="PIXELS",
        help="side in pixels; 256 or 512 for DiT-XL/2 (default: the model's own)",
    )
    model.add_argument("--num-classes", type=positive_int, metavar="N", help="of the model; checked against it")
    model.add_argument(
        "--ckpt", type=Path, metavar="PATH", help="checkpoint file or folder (default: the embedded or published one)"
    )
    model.add_argument(
        "--vae",
        metavar="PATH",
        help=f"{', '.join(VAES)}, a folder or a hub repository; of latent models (default: {DEFAULT_VAE})",
    )
    add_sampling_flags(
        parser,
        ALSO,
        sample="image",
        condition="class",
        num_steps=str(NUM_STEPS),
        guidance=f"1 switches it off (default: {guidance_scale:g})",
    )
    sampling = parser.section("sampling")
    sampling.add_argument("--guide-all-channels", action="store_true", help="guide the fourth latent channel, too")
    solver = sampling.add_mutually_exclusive_group()
    solver.add_argument(
        "--solver",
        choices=("ddim", "ddpm"),
        default="ddim",
        help="DDIM with eta 0, as in the paper, or DDPM with learned variance",
    )
    for name in ("ddim", "ddpm"):
        solver.add_argument(
            f"--{name}-sample", action="store_const", const=name, dest="solver", help=f"--solver {name}, officially"
        )
    add_cache_flags(parser, "dit")
    add_device_flags(parser, precision=PRECISION)
    parser.section("device").add_argument(
        "--offload",
        action="store_true",
        help="keep what is idle in host memory: the autoencoder, and the modulation weights, a third of the model",
    )
    parser.set_defaults(num_steps=NUM_STEPS, guidance_scale=guidance_scale, precision=PRECISION)


def add_fid_flags(parser: Parser) -> None:
    """Flags of the samples of an FID evaluation, `add_flags` among them."""
    parser.section("prompts").add_argument(
        "--balanced", action="store_true", help="class i mod num_classes (default: drawn uniformly)"
    )
    add_flags(parser, guidance_scale=FID_GUIDANCE)
    sampling, output = parser.section("sampling"), parser.section("output")
    sampling.add_argument(
        "--num-fid-samples", type=positive_int, default=FID_SAMPLES, metavar="N", help="images in the .npz"
    )
    sampling.add_argument(
        "--batch-size",
        "--per-proc-batch-size",
        type=positive_int,
        default=FID_BATCH,
        metavar="N",
        help="images per model call, which is always full",
    )
    output.add_argument(
        "--output-dir",
        "--sample-dir",
        type=Path,
        default=Path("outputs/samples"),
        metavar="DIR",
        help="gets a folder and a .npz for every configuration; shared by all nodes",
    )
    output.add_argument(
        "--resume",
        action=BooleanOptionalAction,
        default=True,
        help="keep the images that are there, make those missing; --no-resume makes all again",
    )
    parser.section("device").add_argument(
        "--tf32", action=BooleanOptionalAction, default=True, help="TF32 matrix products on CUDA"
    )


def caches(args: argparse.Namespace) -> "dict[str, Cache]":
    """The caches that the flags ask for, each checked against the number of steps, of which training had TRAIN_STEPS."""
    if args.num_steps > TRAIN_STEPS:
        raise UserError(f"number of sampling steps {args.num_steps} must lie between 1 and {TRAIN_STEPS}")
    return caches_from_flags(args, "dit", num_steps=args.num_steps)


def config_of(args: argparse.Namespace) -> DiTConfig:
    """The configuration that the flags ask for; UserError for what does not suit it."""
    config = dit_config(args.model, image_size=args.image_size)
    if args.ckpt is None and config not in WITH_WEIGHTS:
        size = f" at {args.image_size} pixels" if args.image_size else ""
        hint = f"; did you mean --model {PUBLISHED}?" if args.model == EMBEDDED else ""
        sizes = " and ".join(map(str, PUBLISHED_SIZES))
        report_no_weights(
            args,
            f"no weights are published for {args.model}{size}, only for {PUBLISHED} at {sizes} pixels and for {EMBEDDED}",
            hint,
        )
    if args.num_classes not in (None, config.num_classes):
        raise UserError(f"--num-classes {args.num_classes} does not fit {args.model}, which has {config.num_classes}")
    if not config.is_latent:
        refuse_without_effect(args, f"{args.model}, a model of pixels", "--vae", "--guide-all-channels")
    elif args.guide_all_channels and args.guidance_scale == 1:
        raise UserError(
            "--guide-all-channels has no effect with --guidance-scale 1, which is no guidance; leave it out"
        )
    elif args.vae is None:
        args.vae = DEFAULT_VAE
    return config


def class_names(config: DiTConfig) -> list[str]:
    """Names where they are known, else numbers."""
    known = CLASS_NAMES if config.num_classes == len(CLASS_NAMES) else ()
    return list(known) or [str(i) for i in range(config.num_classes)]


def chosen_classes(text: str | None, config: DiTConfig) -> list[int]:
    """Class numbers from `0,3,sandal`; None takes all of a small model, the official eight of ImageNet."""
    names = class_names(config)
    if text is None:
        return IMAGENET_SHOWN if config.num_classes == 1000 else list(range(config.num_classes))
    chosen = []
    for part in (part.strip() for part in text.split(",")):
        is_number = re.fullmatch(r"\d{1,9}", part, re.ASCII)
        number = names.index(part) if part in names else int(part) if is_number else -1
        if not 0 <= number < config.num_classes:
            known = f" or a name: {', '.join(names)}" if names[0] != "0" else ""
            raise UserError(f"class {shown(part)} is not known; give numbers 0 … {config.num_classes - 1}{known}")
        chosen.append(number)
    return chosen
