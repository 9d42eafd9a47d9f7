"""What sample_video.py runs: the search for weights, and the pipeline from prompts to videos."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, Run
from hunyuan_video.config import DIFFUSERS_REPOS, REPOS, USAGE, hunyuan_video_config, latent_shape
from hunyuan_video.decode import ENV as VAE
from hunyuan_video.decode import PUBLISHED as PUBLISHED_VAE
from hunyuan_video.decode import find_autoencoder, load_autoencoder
from hunyuan_video.sampler import Sampler
from hunyuan_video.text import CLIP, LLM, TextEncoders
from hunyuan_video.weights import ENV, PUBLISHED, find_hunyuan_video, load_hunyuan_video
from seerkit.command.videos import sequence_parallel
from seerkit.data.moving_objects import encode, pooled
from seerkit.devices.compile import compile_steps
from seerkit.devices.distributed import World
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.offload import offload_modulation, store_fp8
from seerkit.devices.parallel import parallelize, shard_weights, start_sequence
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.encoders import encoder_files, find_encoder
from seerkit.text.prompts import Batch
from seerkit.weights.autoencoders import Pixels, autoencoder_files
from seerkit.weights.checkpoints import checkpoint_files
from seerkit.weights.missing import Part, find_parts


def find_everything(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Find, or download, every file, by the part that it is of; MissingError with all that is missing."""
    config = hunyuan_video_config(args.model)

    def transformer() -> list[Path]:
        return checkpoint_files(find_hunyuan_video(config, args.ckpt))

    if args.model not in REPOS:
        return {"transformer": transformer()}
    diffusers = DIFFUSERS_REPOS[args.model]
    return find_parts(
        args.model,
        {
            "transformer": Part(
                name="transformer", origin=PUBLISHED[config][0], flag="--ckpt", given=args.ckpt,
                env=ENV[config], search=transformer,
            ),
            "autoencoder": Part(
                name="autoencoder", origin=PUBLISHED_VAE[0], flag="--vae", given=args.vae, env=VAE,
                search=lambda: autoencoder_files(find_autoencoder(args.vae)),
            ),
            LLM.name: Part(
                name=LLM.name, origin=LLM.source(diffusers), flag=LLM.flag, given=args.llm,
                search=lambda: encoder_files(find_encoder(LLM, args.llm)),
            ),
            CLIP.name: Part(
                name=CLIP.name, origin=CLIP.source(diffusers), flag=CLIP.flag, given=args.clip,
                search=lambda: encoder_files(find_encoder(CLIP, args.clip)),
            ),
        },
    )  # fmt: skip


def _word_texts(prompts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Texts of the pixel models; padding counts, as in training."""
    words, _ = encode(prompts)
    return words, torch.ones(words.shape[:2], dtype=torch.bool), pooled(words)


class Pipeline:
    """From prompts to videos by HunyuanVideo; one component is on the device at a time."""

    def __init__(self, args: argparse.Namespace, world: World) -> None:
        self.args, self.device, self.config = args, world.device, hunyuan_video_config(args.model)
        self.published = args.model in REPOS
        self.fps = USAGE[args.model].fps
        self.texts: Callable[[Sequence[str]], tuple[Tensor, ...]] = _word_texts
        self.decoder: Any = None

    def encode(self, batches: Sequence[Batch]) -> None:
        args = self.args
        if self.published:
            prompts = [prompt for batch in batches for prompt in batch.prompts]
            encoders = TextEncoders(args.llm, args.clip, max_length=USAGE[args.model].text_tokens, device=self.device)
            self.texts = encoders.encode_to_files(prompts, args.embeddings).load_batch

    def load(self, world: World) -> None:
        args = self.args
        shared = sequence_parallel(args)
        # What is changed before it goes to the device is loaded on the host.
        on_host = args.offload or args.fp8 or args.dit_fsdp
        self.model = load_hunyuan_video(
            self.config,
            args.ckpt,
            device="cpu" if on_host else self.device,
            dtype=torch_dtype(args.precision),
            attention=args.attention,
        )
        if args.fp8:
            store_fp8(self.model)
        if args.offload:
            offload_modulation(self.model)
        if shared:
            shard = start_sequence(
                world, heads=self.config.heads_num, ulysses=args.ulysses_degree, ring=args.ring_degree
            )
            parallelize(self.model, shard, args.attention)
        if args.dit_fsdp:
            shard_weights(self.model, world)
        else:
            self.model.to(self.device)
        if args.compile:
            compile_steps(self.model)
        self.sampler = self.make_sampler(args)

    def make_sampler(self, args: argparse.Namespace) -> Sampler:
        """The sampler that flags ask for, of this pipeline's model."""
        return Sampler(
            self.model,
            args.num_steps,
            shift=args.shift,
            guidance_scale=args.guidance_scale,
            reverse=args.flow_reverse,
        )

    def sample(
        self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Run]:
        args = self.args
        shape = latent_shape(args.model, args.height, args.width, args.num_frames)
        noise = SampleGenerators(args.seed, batch.indices).randn(*shape, device=self.device)
        return self.sampler.run(noise, *self.texts(batch.prompts), cache=cache, callback=callback)

    def unload(self) -> None:
        del self.model, self.sampler
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        if self.decoder is None:
            args = self.args
            # The official command decodes in float16, which CPUs do not.
            dtype = torch.float16 if self.device.type == "cuda" else torch.float32
            self.decoder = Pixels()
            if self.published:
                self.decoder = load_autoencoder(args.vae, self.device, dtype, tiled=args.vae_tiling)
        return self.decoder.decode(latents.to(self.device)).float().cpu()


def settings_of(args: argparse.Namespace, prompts: Sequence[str]) -> dict[str, Any]:
    """What the videos depend on, but for caches: for --dry-run, records and the folders of videos."""
    config = hunyuan_video_config(args.model)
    return {
        "model": args.model,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "config": json.loads(json.dumps(asdict(config))),
        "prompts": list(prompts),
        "width": args.width,
        "height": args.height,
        "frames": args.num_frames,
        "num_steps": args.num_steps,
        "shift": args.shift,
        "reverse": args.flow_reverse,
        "guidance": args.guidance_scale if config.guidance_embed else None,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "fp8": args.fp8,
        "attention": args.attention,
        "compile": args.compile,
        "ulysses_degree": args.ulysses_degree or 1,
        "ring_degree": args.ring_degree or 1,
        "vae_tiling": args.vae_tiling if args.model in REPOS else None,
    }
