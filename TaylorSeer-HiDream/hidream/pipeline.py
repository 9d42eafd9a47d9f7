"""What sampling.py and inference.py run: the search for weights, and the pipeline from prompts to images."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, Run
from hidream.config import CONFIGS, REPOS, USAGE, latent_shape
from hidream.decode import ENV as AE
from hidream.decode import PUBLISHED as PUBLISHED_AE
from hidream.decode import find_autoencoder, load_autoencoder
from hidream.sampler import Sampler, Texts
from hidream.text import CLIP_G, CLIP_L, LLAMA, MAX_LENGTH, T5, TextEncoders, by_layer
from hidream.weights import ENV, PUBLISHED, find_hidream, load_hidream
from seerkit.command.flags import guidance_parallel
from seerkit.devices.compile import compile_steps
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.guidance import split_guidance
from seerkit.devices.offload import nf4_kernels, offload_modulation, store_fp8, store_nf4
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

    MissingError with all that is missing. UserError for --nf4 where bitsandbytes is missing, or cannot pack on the device.
    """
    if args.nf4:
        nf4_kernels(resolve_device(args.device))
    if args.model not in REPOS:
        transformer = find_hidream(args.model, args.ckpt)
        return {"transformer": checkpoint_files(transformer), "texts": [TEXT_TABLE]}
    name, given = args.model, {T5: args.t5, CLIP_L: args.clip_l, CLIP_G: args.clip_g, LLAMA: args.llama}
    parts = {
        "the transformer": Part(
            name="transformer", origin=PUBLISHED[name], flag="--ckpt", given=args.ckpt, env=ENV[name],
            search=lambda: checkpoint_files(find_hidream(name, args.ckpt)),
        ),
        "the autoencoder": Part(
            name="autoencoder", origin=PUBLISHED_AE[name], flag="--ae", given=args.ae, env=AE,
            search=lambda: autoencoder_files(find_autoencoder(name, args.ae)),
        ),
    }  # fmt: skip
    for encoder, folder in given.items():
        parts[f"the {encoder.name}"] = Part(
            name=encoder.name, origin=encoder.source(REPOS[name]), flag=encoder.flag, given=folder, hint=encoder.hint,
            search=lambda encoder=encoder, folder=folder: encoder_files(find_encoder(encoder, folder)),
        )  # fmt: skip
    return find_parts(name, parts)


def encode_prompts(
    args: argparse.Namespace, prompts: Sequence[str], device: torch.device
) -> Callable[[Sequence[str]], Texts]:
    """What gives the model's texts of any of the prompts, on the CPU.

    They wait in files; the encoders, in bf16 or 4 bits, are gone when this returns.
    """
    if args.model not in REPOS:
        table = TextTable.load(TEXT_TABLE)
        table.encode(prompts)  # those that are not in it together

        def look_up(some: Sequence[str]) -> Texts:
            txt, y = table.encode(some)
            return txt, txt[None], y

        return look_up
    encoders = TextEncoders(
        args.t5,
        args.clip_l,
        args.clip_g,
        args.llama,
        max_length=MAX_LENGTH[args.model],
        device=device,
        offload=args.offload,
        nf4=args.nf4,
    )
    cache = encoders.encode_to_files(prompts, args.embeddings)
    return lambda some: by_layer(cache.load_batch(some))


class Pipeline:
    """A loaded model with its sampler and decoder: batches in, latents and images out.

    batches: those that will be sampled; their prompts are encoded before the model is loaded, and the encoders freed.
    """

    def __init__(self, args: argparse.Namespace, batches: Sequence[Batch], device: torch.device) -> None:
        self.args, self.device = args, device
        self.is_guided = args.guidance_scale > 1
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        prompts = list(dict.fromkeys([*prompts, args.negative_prompt] if self.is_guided else prompts))
        self.texts = encode_prompts(args, prompts, device)
        dtype = torch_dtype(args.precision)
        # What is changed before it goes to the device is loaded on the host.
        made_on_host = args.offload or args.offload_modulation or args.fp8 or args.nf4
        model = load_hidream(
            args.model, args.ckpt, device="cpu" if made_on_host else device, dtype=dtype, attention=args.attention
        )
        if args.fp8:
            store_fp8(model, device)
        if args.nf4:
            store_nf4(model, device)
        if args.offload or args.offload_modulation:
            offload_modulation(model)
        self.model = model.to(device)
        if args.compile:
            compile_steps(self.model)
        self.sampler = self.make_sampler(args)
        self.autoencoder = load_autoencoder(args.model, args.ae, "cpu" if args.offload else device, dtype)

    def make_sampler(self, args: argparse.Namespace) -> Sampler:
        """The sampler that flags ask for, of this pipeline's model."""
        usage = USAGE[args.model]
        return Sampler(
            self.model,
            args.num_steps,
            solver=usage.solver,
            shift=usage.shift,
            guidance_scale=args.guidance_scale,
            split=split_guidance() if guidance_parallel(args) else None,
        )

    def sample(
        self, cache: Cache | None, batch: Batch, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Run]:
        """Final latents (B, C, h, w) in float32 and the run; an image's noise comes from its own number."""
        shape = latent_shape(self.args.model, self.args.height, self.args.width)
        generators = SampleGenerators(self.args.seed, batch.indices)
        noise = generators.randn(*shape, device=self.device)
        negative = self.texts([self.args.negative_prompt] * len(noise)) if self.is_guided else None
        return self.sampler.run(
            noise,
            *self.texts(batch.prompts),
            negative=negative,
            generators=generators,
            cache=cache,
            callback=callback,
        )

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] on the CPU."""
        return decode_singly(self.autoencoder, latents, self.device, offload=self.args.offload)


def settings_of(args: argparse.Namespace, prompts: Sequence[str]) -> dict[str, Any]:
    """What the images depend on, but for caches: for --dry-run, records and the folders of images."""
    usage = USAGE[args.model]
    return {
        "model": args.model,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "config": json.loads(json.dumps(asdict(CONFIGS[args.model]))),
        "prompts": list(prompts),
        "negative_prompt": args.negative_prompt if args.guidance_scale > 1 else None,
        "width": args.width,
        "height": args.height,
        "num_steps": args.num_steps,
        "solver": usage.solver,
        "shift": usage.shift,
        "guidance": args.guidance_scale,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "fp8": args.fp8,
        "nf4": args.nf4,
        "attention": args.attention,
        "compile": args.compile,
        **({"guidance_parallel": True} if guidance_parallel(args) else {}),
    }
