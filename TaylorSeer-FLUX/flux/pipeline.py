"""What sample.py runs: the search for weights, and the pipeline from prompts to images."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, Run
from flux.config import CONFIGS, REPOS, FluxConfig, flux_config, latent_shape
from flux.decode import ENV as AE
from flux.decode import find_autoencoder, load_autoencoder
from flux.decode import published as published_autoencoder
from flux.sampler import Sampler
from flux.text import CLIP, MAX_LENGTH, T5, TextEncoders
from flux.weights import ENV, PUBLISHED, find_flux, licence_hint, load_flux
from seerkit.devices.compile import compile_steps
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.offload import offload_modulation, store_fp8
from seerkit.devices.staging import decode_singly
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.encoders import encoder_files, find_encoder
from seerkit.text.minilm import TEXT_TABLE, TextTable
from seerkit.text.prompts import Batch
from seerkit.weights.autoencoders import autoencoder_files
from seerkit.weights.checkpoints import checkpoint_files
from seerkit.weights.missing import Part, find_parts


def find_everything(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Find, or download, all files of the model, by the part that they are of.

    MissingError with all that is missing.
    """
    if args.model not in REPOS:
        transformer = find_flux(flux_config(args.model), args.ckpt)
        return {"transformer": checkpoint_files(transformer), "texts": [TEXT_TABLE]}
    config, repo = CONFIGS[args.model], REPOS[args.model]
    official, autoencoder = PUBLISHED[config][0], published_autoencoder(args.model)[0]
    hint = licence_hint(repo)
    return find_parts(
        args.model,
        {
            official.name: Part(
                name="transformer", origin=official, flag="--ckpt", given=args.ckpt, env=ENV[config], hint=hint,
                search=lambda: checkpoint_files(find_flux(flux_config(args.model), args.ckpt)),
            ),
            autoencoder.name: Part(
                name="autoencoder", origin=autoencoder, flag="--ae", given=args.ae, env=AE, hint=hint,
                search=lambda: autoencoder_files(find_autoencoder(args.model, args.ae)),
            ),
            "the T5 encoder": Part(
                name=T5.name, origin=T5.source(repo), flag=T5.flag, given=args.t5, hint=hint,
                search=lambda: encoder_files(find_encoder(T5, args.t5)),
            ),
            "the CLIP encoder": Part(
                name=CLIP.name, origin=CLIP.source(repo), flag=CLIP.flag, given=args.clip, hint=hint,
                search=lambda: encoder_files(find_encoder(CLIP, args.clip)),
            ),
        },
    )  # fmt: skip


def encode_prompts(
    args: argparse.Namespace, prompts: Sequence[str], device: torch.device
) -> Callable[[Sequence[str]], tuple[Tensor, Tensor]]:
    """What gives txt (B, L, D) and y (B, V) of any of the prompts, on the CPU.

    They wait in files; the encoders, in bf16 whatever --precision, are gone when this returns.
    """
    if args.model not in REPOS:
        table = TextTable.load(TEXT_TABLE)
        table.encode(prompts)  # those that are not in it together
        return table.encode
    encoders = TextEncoders(args.t5, args.clip, max_length=MAX_LENGTH[args.model], device=device)
    return encoders.encode_to_files(prompts, args.embeddings).load_batch


class Pipeline:
    """A loaded model with its sampler and decoder: batches in, latents and images out.

    batches: those that will be sampled; their prompts are encoded before the model is loaded, and the encoders freed.
    """

    def __init__(self, args: argparse.Namespace, batches: Sequence[Batch], device: torch.device) -> None:
        self.args, self.device, self.config = args, device, flux_config(args.model)
        prompts = list(dict.fromkeys(prompt for batch in batches for prompt in batch.prompts))
        self.texts = encode_prompts(args, prompts, device)
        dtype = torch_dtype(args.precision)
        # What is changed before it goes to the device is loaded on the host.
        made_on_host = args.offload or args.offload_modulation or args.fp8
        model = load_flux(
            self.config, args.ckpt, device="cpu" if made_on_host else device, dtype=dtype, attention=args.attention
        )
        if args.fp8:
            store_fp8(model)
        if args.offload or args.offload_modulation:
            offload_modulation(model)
        self.model = model.to(device)
        if args.compile:
            compile_steps(self.model)
        self.sampler = self.make_sampler(args)
        self.autoencoder = load_autoencoder(args.model, args.ae, "cpu" if args.offload else device, dtype)

    def make_sampler(self, args: argparse.Namespace) -> Sampler:
        """The sampler that flags ask for, of this pipeline's model."""
        return Sampler(self.model, args.num_steps, guidance_scale=args.guidance_scale)

    def sample(
        self, cache: Cache | None, batch: Batch, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Run]:
        """Final latents (B, C, h, w) in float32 and the run; an image's noise comes from its own number."""
        shape = latent_shape(self.args.model, self.args.height, self.args.width)
        noise = SampleGenerators(self.args.seed, batch.indices).randn(*shape, device=self.device)
        return self.sampler.run(noise, *self.texts(batch.prompts), cache=cache, callback=callback)

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] on the CPU."""
        return decode_singly(self.autoencoder, latents, self.device, offload=self.args.offload)


def settings_of(args: argparse.Namespace, prompts: Sequence[str]) -> dict[str, Any]:
    """What the images depend on, but for caches: for --dry-run, records and the folders of images."""
    config: FluxConfig = flux_config(args.model)
    return {
        "model": args.model,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "config": json.loads(json.dumps(asdict(config))),
        "prompts": list(prompts),
        "width": args.width,
        "height": args.height,
        "num_steps": args.num_steps,
        "guidance": args.guidance_scale if config.guidance_embed else None,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "fp8": args.fp8,
        "attention": args.attention,
        "compile": args.compile,
    }
