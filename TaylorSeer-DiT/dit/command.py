"""What sample.py and sample_ddp.py share: flags that choose model, sampler and classes, and what they make."""

import argparse
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from cache_dic.errors import shown
from dit.config import CONFIGS, DiTConfig, dit_config
from dit.decode import VAES, find_autoencoder, is_folder, load_autoencoder
from dit.decode import published as published_vae
from dit.model import DiT
from dit.sampler import Sampler
from dit.weights import ENV, PUBLISHED, find_dit, load_dit
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import (
    Parser,
    device_name,
    guidance_weight,
    non_negative_int,
    positive_int,
    refuse_without_effect,
)
from seerkit.data.fashion_mnist import CLASS_NAMES
from seerkit.devices.compile import compile_steps
from seerkit.devices.dtypes import PRECISIONS, torch_dtype
from seerkit.devices.offload import offload_modulation
from seerkit.devices.staging import staged_on
from seerkit.layers.names import ATTENTION_BACKENDS
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.prompts import Batch
from seerkit.weights.autoencoders import autoencoder_files
from seerkit.weights.checkpoints import checkpoint_files
from seerkit.weights.missing import Part, find_parts

EMBEDDED = "fashion-mnist"
DEFAULT_VAE = "ema"
DECODED_TOGETHER = 16  # samples
IMAGENET_SHOWN = [207, 360, 387, 974, 88, 979, 417, 279]  # the classes of the official sample.py


def add_model_flags(parser: Parser, *, guidance_scale: float) -> None:
    """Flags of the model and the sampler; names the reference has are the reference's."""
    parser.add_argument("--model", choices=tuple(CONFIGS), default=EMBEDDED, help="fashion-mnist is the embedded model")
    parser.add_argument(
        "--image-size", type=positive_int, help="pixels; 256 or 512 for DiT-XL/2 (default: the model's own)"
    )
    parser.add_argument("--num-classes", type=positive_int, help="of the model; checked against it")
    parser.add_argument("--ckpt", type=Path, help="checkpoint file or folder (default: the embedded or published one)")
    parser.add_argument(
        "--vae", help=f"{', '.join(VAES)}, a folder or a hub repository; of latent models (default: {DEFAULT_VAE})"
    )
    parser.add_argument("--num-sampling-steps", type=positive_int, default=50)
    parser.add_argument(
        "--cfg-scale", type=guidance_weight, default=guidance_scale, help="guidance weight; 1 switches it off"
    )
    parser.add_argument("--guide-all-channels", action="store_true", help="guide the fourth latent channel, too")
    solver = parser.add_mutually_exclusive_group()
    solver.add_argument("--ddim-sample", action="store_true", help="DDIM with eta 0, as in the paper (the default)")
    solver.add_argument("--ddpm-sample", action="store_true", help="DDPM with learned variance")
    parser.add_argument(
        "--seed", "--global-seed", type=non_negative_int, default=0, help="sample i depends on seed and i alone"
    )
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of weights and features")
    parser.add_argument("--attention", choices=ATTENTION_BACKENDS, default="sdpa")
    parser.add_argument(
        "--offload",
        action="store_true",
        help="keep what is idle in host memory: the autoencoder, and the modulation weights, a third of the model",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile full and forecast steps, a graph each")
    add_cache_flags(parser, "dit")


def caches(args: argparse.Namespace) -> dict[str, Cache]:
    """The caches that the flags ask for, each checked against the number of steps."""
    return caches_from_flags(args, "dit", num_steps=args.num_sampling_steps)


def config_of(args: argparse.Namespace) -> DiTConfig:
    """The configuration that the flags ask for; UserError for what does not suit it."""
    config = dit_config(args.model, image_size=args.image_size)
    if args.num_classes not in (None, config.num_classes):
        raise UserError(f"--num-classes {args.num_classes} does not fit {args.model}, which has {config.num_classes}")
    if not config.is_latent:
        refuse_without_effect(args, f"{args.model}, a model of pixels", "--vae", "--guide-all-channels")
    elif args.guide_all_channels and args.cfg_scale == 1:
        raise UserError("--guide-all-channels has no effect with --cfg-scale 1, which is no guidance; leave it out")
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


def find_everything(args: argparse.Namespace, config: DiTConfig) -> dict[str, list[Path]]:
    """Find, or download, all files of the model, by the part that they are of; MissingError with all that is missing."""

    def transformer() -> list[Path]:
        return checkpoint_files(find_dit(config, args.ckpt))

    found, parts = {}, {}
    if config in PUBLISHED:
        parts["transformer"] = Part(
            name="transformer",
            origin=PUBLISHED[config][0],
            search=transformer,
            flag="--ckpt",
            given=args.ckpt,
            env=ENV,
        )
    else:
        found["transformer"] = transformer()
    if config.is_latent:
        parts["autoencoder"] = Part(
            name="autoencoder",
            origin=published_vae(args.vae),
            search=lambda: autoencoder_files(find_autoencoder(args.vae))[::-1],  # the order that claims are digested in
            flag="--vae",
            given=args.vae if is_folder(args.vae) else None,
        )
    return {**found, **find_parts(args.model, parts)}


class Pipeline:
    """A loaded model with its sampler and decoder: batches in, latents and images out."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device, self.config = args, device, config_of(args)
        self.numbers = {name: number for number, name in enumerate(class_names(self.config))}
        dtype = torch_dtype(args.precision)
        # What is changed before it goes to the device is loaded on the host.
        host = torch.device("cpu") if args.offload else device
        model: DiT = load_dit(self.config, args.ckpt, device=host, dtype=dtype, attention=args.attention)
        if args.offload:
            offload_modulation(model)
        self.model = model.to(device)
        if args.compile:
            compile_steps(self.model)
        self.sampler = Sampler(self.model, args.num_sampling_steps, **sampler_settings(args))
        self.autoencoder = load_autoencoder(self.config, args.vae, host)

    def sample(
        self, cache: Cache | None, batch: Batch, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Run]:
        """Final latents (B, C, H, W) in float32 and the run; a sample's noise comes from its own index.

        The prompts of the batch are names of classes.
        """
        generators = SampleGenerators(self.args.seed, batch.indices)
        noise = generators.randn(
            self.config.in_channels, self.config.input_size, self.config.input_size, device=self.device
        )
        y = torch.tensor([self.numbers[name] for name in batch.prompts], device=self.device)
        return self.sampler.run(noise, y, cache=cache, generators=generators, callback=callback)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3 or 1, H, W) in [-1, 1] on the CPU."""
        with staged_on(self.device, self.autoencoder, self.args.offload) as autoencoder:
            parts = latents.split(DECODED_TOGETHER)
            return torch.cat([autoencoder.decode(part.to(self.device)).float().cpu() for part in parts])


def sampler_settings(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "solver": "ddpm" if args.ddpm_sample else "ddim",
        "guidance_scale": args.cfg_scale,
        "guidance_channels": None if args.guide_all_channels else 3,
    }


def resolved(args: argparse.Namespace, config: DiTConfig) -> dict[str, Any]:
    """The configuration as it will run, for --dry-run and records; `compile` is there where it is set."""
    return {
        "model": args.model,
        "config": asdict(config),
        "num_steps": args.num_sampling_steps,
        **sampler_settings(args),
        "precision": args.precision,
        "attention": args.attention,
        "seed": args.seed,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "vae": args.vae,
        **({"compile": True} if args.compile else {}),
    }
