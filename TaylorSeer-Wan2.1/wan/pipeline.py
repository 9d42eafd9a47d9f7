"""What generate.py runs: the search for weights, and the pipeline from prompts to videos."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache
from seerkit.command.videos import sequence_parallel
from seerkit.data.moving_objects import encode
from seerkit.devices.compile import compile_steps
from seerkit.devices.distributed import World
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.guidance import split_guidance
from seerkit.devices.parallel import parallelize, shard_weights, start_sequence
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.encoders import encoder_files, find_encoder
from seerkit.text.prompts import Batch
from seerkit.weights.autoencoders import Pixels, autoencoder_files
from seerkit.weights.checkpoints import Published, checkpoint_files
from seerkit.weights.missing import Part, find_parts
from wan.config import CONFIGS, DIFFUSERS_REPOS, REPOS, USAGE, latent_shape
from wan.decode import ENV as VAE
from wan.decode import OFFICIAL_FILE as VAE_FILE
from wan.decode import find_autoencoder, load_autoencoder
from wan.image import CLIP, ImageEncoder, first_frame_condition, read_image
from wan.sampler import Branches, Sampler
from wan.text import T5, TextEncoder
from wan.weights import ENV, find_wan, load_wan, published


def autoencoder_of(args: argparse.Namespace) -> Path | None:
    """--vae, or the autoencoder in the folder of an official checkpoint; None where that has none."""
    beside = args.ckpt / VAE_FILE if args.ckpt else None
    return args.vae or (beside if beside is not None and beside.is_file() else None)


def find_everything(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Find, or download, every file, by the part that it is of; MissingError with all that is missing."""

    def transformer() -> list[Path]:
        return checkpoint_files(find_wan(args.model, args.ckpt))

    if args.model not in REPOS:
        return {"transformer": transformer()}
    name, diffusers, vae = args.model, DIFFUSERS_REPOS[args.model], autoencoder_of(args)
    parts = {
        "transformer": Part(
            name="transformer", origin=published(name)[0], flag="--ckpt", given=args.ckpt, env=ENV[name],
            search=transformer,
        ),
        "autoencoder": Part(
            name="autoencoder", origin=Published(VAE_FILE, repo=REPOS[name]), flag="--vae", given=vae, env=VAE,
            search=lambda: autoencoder_files(find_autoencoder(vae)),
        ),
        T5.name: Part(
            name=T5.name, origin=T5.source(diffusers), flag=T5.flag, given=args.t5,
            search=lambda: encoder_files(find_encoder(T5, args.t5)),
        ),
    }  # fmt: skip
    if args.image:
        parts[CLIP.name] = Part(
            name=CLIP.name, origin=CLIP.source(diffusers), flag=CLIP.flag, given=args.clip,
            search=lambda: encoder_files(find_encoder(CLIP, args.clip)),
        )  # fmt: skip
    return {**find_parts(name, parts), **({"first frame": [args.image]} if args.image else {})}


class Pipeline:
    """From prompts to videos by Wan2.1; one component is on the device at a time."""

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        self.args, self.world, self.device = args, world, world.device
        self.published = args.model in REPOS
        self.fps = USAGE[args.model].fps
        self.dtype = torch_dtype(args.precision)
        self.text: Callable[[str], Tensor] = lambda prompt: encode([prompt])[0][0]  # of the pixel models
        self.first_frame: dict[str, Tensor] = {}
        self.decoder: Any = None

    def encode(self, batches: Sequence[Batch]) -> None:
        args = self.args
        if not self.published:
            return
        encoder = TextEncoder(
            args.t5, device="cpu" if args.t5_cpu else self.device, world=self.world if args.t5_fsdp else None
        )
        prompts = [*(prompt for batch in batches for prompt in batch.prompts), args.negative_prompt]
        cache = encoder.encode_to_files(prompts, args.embeddings)
        self.text = lambda prompt: cache.load(prompt)[0]
        if args.image:
            image = read_image(args.image)
            clip = ImageEncoder(args.clip, device=self.device)
            tokens = clip.encode(image).cpu()
            clip.drop()
            autoencoder = load_autoencoder(autoencoder_of(args), self.device)
            y = first_frame_condition(image, args.num_frames, args.height, args.width, autoencoder)
            self.first_frame = {"clip_fea": tokens, "y": y.cpu()}

    def load(self, world: World) -> None:
        args = self.args
        shared = sequence_parallel(args)
        on_host = shared and args.dit_fsdp
        self.model = load_wan(
            args.model,
            args.ckpt,
            device="cpu" if on_host else self.device,
            dtype=self.dtype,
            attention=args.attention,
        )
        if shared:
            heads = self.model.config.num_heads
            shard = start_sequence(world, heads=heads, ulysses=args.ulysses_degree, ring=args.ring_degree)
            parallelize(self.model, shard, args.attention)
        if on_host:
            shard_weights(self.model, world)
        if args.compile:
            compile_steps(self.model)
        self.sampler = self.make_sampler(args)

    def make_sampler(self, args: argparse.Namespace) -> Sampler:
        """The sampler that flags ask for, of this pipeline's model."""
        return Sampler(
            self.model,
            args.num_steps,
            solver=args.solver,
            shift=args.shift,
            guidance_scale=args.guidance_scale,
            batched=args.batched_guidance,
            split=split_guidance() if args.guidance_parallel else None,
        )

    def sample(
        self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Branches]:
        args = self.args
        shape = latent_shape(args.model, args.height, args.width, args.num_frames)
        noise = SampleGenerators(args.seed, batch.indices).randn(*shape, device=self.device)
        context = [self.text(prompt) for prompt in batch.prompts]
        negative = [self.text(args.negative_prompt)] * len(context)
        first = {name: value.expand(len(context), *value.shape[1:]) for name, value in self.first_frame.items()}
        return self.sampler.run(noise, context, negative, **first, cache=cache, callback=callback)

    def unload(self) -> None:
        del self.model, self.sampler
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        if self.decoder is None:
            self.decoder = load_autoencoder(autoencoder_of(self.args), self.device) if self.published else Pixels()
        return self.decoder.decode(latents.to(self.device)).float().cpu()


def settings_of(args: argparse.Namespace, prompts: Sequence[str]) -> dict[str, Any]:
    """What the videos depend on, but for caches: for --dry-run, records and the folders of videos."""
    return {
        "model": args.model,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "config": json.loads(json.dumps(asdict(CONFIGS[args.model]))),
        "prompts": list(prompts),
        "negative_prompt": args.negative_prompt,
        "image": str(args.image) if args.image else None,
        "width": args.width,
        "height": args.height,
        "frames": args.num_frames,
        "num_steps": args.num_steps,
        "solver": args.solver,
        "shift": args.shift,
        "guidance": args.guidance_scale,
        "batched_guidance": args.batched_guidance,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "attention": args.attention,
        "compile": args.compile,
        "ulysses_size": args.ulysses_degree or 1,
        "ring_size": args.ring_degree or 1,
        **({"guidance_parallel": True} if args.guidance_parallel else {}),
    }
