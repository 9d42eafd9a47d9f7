"""What sample.py and sample_ddp.py run: the search for weights, and the pipeline from classes to images."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, Run
from dit.config import DiTConfig
from dit.decode import find_autoencoder, is_folder, load_autoencoder
from dit.decode import published as published_vae
from dit.flags import class_names, config_of
from dit.model import DiT
from dit.sampler import Sampler
from dit.weights import ENV, PUBLISHED, find_dit, load_dit
from seerkit.devices.compile import compile_steps
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.offload import offload_modulation
from seerkit.devices.staging import staged_on
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.prompts import Batch
from seerkit.weights.autoencoders import autoencoder_files
from seerkit.weights.checkpoints import checkpoint_files
from seerkit.weights.missing import Part, find_parts

DECODED_TOGETHER = 16  # samples


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
        self.sampler = self.make_sampler(args)
        self.autoencoder = load_autoencoder(self.config, args.vae, host)

    def make_sampler(self, args: argparse.Namespace) -> Sampler:
        """The sampler that flags ask for, of this pipeline's model."""
        return Sampler(self.model, args.num_steps, **sampler_settings(args))

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
        "solver": args.solver,
        "guidance_scale": args.guidance_scale,
        "guidance_channels": None if args.guide_all_channels else 3,
    }


def settings_of(args: argparse.Namespace, config: DiTConfig) -> dict[str, Any]:
    """The configuration as it will run, for --dry-run and records; `compile` is there where it is set."""
    return {
        "model": args.model,
        "config": asdict(config),
        "num_steps": args.num_steps,
        **sampler_settings(args),
        "precision": args.precision,
        "attention": args.attention,
        "seed": args.seed,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "vae": args.vae,
        **({"compile": True} if args.compile else {}),
    }
