"""What sample_video.py is made of: flags, prompts, the search for weights, and the pipeline from prompts to videos."""

import argparse
import json
from argparse import BooleanOptionalAction
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from hunyuan_video.config import CONFIGS, USAGE, hunyuan_video_config, latent_shape
from hunyuan_video.decode import ENV as VAE
from hunyuan_video.decode import PUBLISHED as PUBLISHED_VAE
from hunyuan_video.decode import find_autoencoder, load_autoencoder
from hunyuan_video.sampler import Sampler
from hunyuan_video.text import CLIP, LLM, TextEncoders
from hunyuan_video.weights import DIFFUSERS_REPOS, ENV, PUBLISHED, REPOS, find_hunyuan_video, load_hunyuan_video
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import (
    Parser,
    device_name,
    guidance_weight,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_without_effect,
)
from seerkit.data.moving_objects import PROMPTS, encode, pooled
from seerkit.devices.compile import compile_steps
from seerkit.devices.distributed import World
from seerkit.devices.dtypes import PRECISIONS, torch_dtype
from seerkit.devices.offload import offload_modulation, store_fp8
from seerkit.devices.parallel import parallelize, sequence_degrees, shard_weights, start_sequence
from seerkit.layers.attention import BACKENDS
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.encoders import encoder_files, find_encoder
from seerkit.text.prompts import Batch, Listed, chosen_list
from seerkit.weights.autoencoders import Pixels, autoencoder_files
from seerkit.weights.checkpoints import checkpoint_files
from seerkit.weights.missing import Part, find_parts

EMBEDDED = "hunyuan-tiny"


def add_flags(parser: Parser) -> None:
    """Flags of the model, the prompts and the sampler; names the official command has are its own."""
    parser.add_argument("--model", choices=tuple(CONFIGS), default=EMBEDDED, help="hunyuan-tiny is the embedded model")
    parser.add_argument(
        "--video-size", nargs=2, type=positive_int, metavar=("H", "W"), help="default: 480 640; tiny: 32 32"
    )
    parser.add_argument("--video-length", type=positive_int, help="frames, 4n + 1 (default: 65; tiny: 16)")
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="one or more prompts, each in quotes")
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, help="video i depends on its prompt, this and i alone"
    )
    parser.add_argument("--infer-steps", type=positive_int, help="sampling steps (default: 50)")
    parser.add_argument("--flow-shift", type=positive_float, help="of the noise levels (default: 7; tiny: 3)")
    parser.add_argument(
        "--flow-reverse",
        action=BooleanOptionalAction,
        default=True,
        help="noise levels from 1 to 0, which the released weights are for",
    )
    parser.add_argument(
        "--embedded-cfg-scale", type=guidance_weight, help="guidance weight that the model takes (default: 6; tiny: 3)"
    )
    parser.add_argument("--batch-size", type=positive_int, help="videos a model call (default: 1; tiny: 4)")
    parser.add_argument(
        "--save-path", type=Path, help="gets a folder for every cache (default: outputs/hunyuan/MODEL-DIGEST)"
    )
    parser.add_argument("--dit-weight", type=Path, help="checkpoint file or folder (default: $HUNYUAN_VIDEO, …)")
    parser.add_argument("--vae", type=Path, help="autoencoder file or folder (default: $HUNYUAN_VAE, …)")
    parser.add_argument("--vae-tiling", action=BooleanOptionalAction, default=True, help="decode in overlapping tiles")
    parser.add_argument("--llm", type=Path, help="folder of the LLaVA-LLaMA-3 text encoder and its tokenizer")
    parser.add_argument("--clip", type=Path, help="folder of the CLIP-L text encoder")
    parser.add_argument("--embeddings", type=Path, help="folder that keeps prompt embeddings from one run to the next")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", choices=tuple(PRECISIONS), help="of weights and features (default: bf16; tiny: fp32)"
    )
    parser.add_argument("--attention", choices=BACKENDS, default="sdpa")
    parser.add_argument("--compile", action="store_true", help="torch.compile full and forecast steps, a graph each")
    parser.add_argument(
        "--use-fp8", action="store_true", help="store the weights of the blocks' linear layers in 8 bits"
    )
    parser.add_argument(
        "--use-cpu-offload",
        action="store_true",
        help="keep the modulation weights, a quarter of all, in host memory; encoders, transformer and autoencoder always "
        "take turns on the device",
    )
    group = parser.add_argument_group(
        "several processes", "under torchrun; without degrees the processes share the prompts"
    )
    group.add_argument(
        "--ulysses-degree", type=positive_int, help="processes that share a video, by heads in attention"
    )
    group.add_argument("--ring-degree", type=positive_int, help="processes that share a video, by a ring in attention")
    group.add_argument("--dit-fsdp", action="store_true", help="share the transformer's weights among those processes")
    add_cache_flags(parser, "hunyuan_video")


def fill_defaults(args: argparse.Namespace) -> None:
    """Set what was not given to the model's own settings; UserError for what does not fit it."""
    if args.model not in REPOS:
        refuse_without_effect(args, args.model, "--vae", "--llm", "--clip", "--embeddings")
    usage = USAGE[args.model]
    own = {
        "video_size": [usage.height, usage.width],
        "video_length": usage.frames,
        "infer_steps": usage.num_steps,
        "flow_shift": usage.flow_shift,
        "embedded_cfg_scale": usage.guidance,
        "batch_size": usage.batch_size,
        "precision": usage.precision,
    }
    for name, value in own.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    latent_shape(args.model, *args.video_size, args.video_length)
    if args.dit_fsdp and not sequence_parallel(args):
        raise UserError(
            "--dit-fsdp shares weights among processes that share videos; give --ulysses-degree or --ring-degree"
        )
    if args.dit_fsdp and (args.use_fp8 or args.use_cpu_offload):
        raise UserError("--dit-fsdp excludes --use-fp8 and --use-cpu-offload; the weights are shared instead")


def sequence_parallel(args: argparse.Namespace) -> bool:
    """Whether all processes make one video together."""
    return args.ulysses_degree is not None or args.ring_degree is not None


def prompts_of(args: argparse.Namespace) -> list[Listed]:
    """The prompts that the flags ask for; UserError if there are none or two sources of them."""
    embedded = args.model not in REPOS
    default = (lambda: list(PROMPTS)) if embedded else None
    listed = chosen_list(args.prompt, args.prompt_file, flag="--prompt-file", model=args.model, default=default)
    if embedded:
        encode([one.prompt for one in listed])  # names words that the model does not know
    return listed


def caches(args: argparse.Namespace) -> dict[str, Cache]:
    """The caches that the flags ask for, each checked against the number of steps."""
    return caches_from_flags(args, "hunyuan_video", num_steps=args.infer_steps)


def find_everything(args: argparse.Namespace, world: World) -> dict[str, list[Path]]:
    """Check the division into processes, and find, or download, every file, by the part that it is of.

    MissingError with all that is missing.
    """
    config = hunyuan_video_config(args.model)
    if sequence_parallel(args):
        sequence_degrees(world.size, config.heads_num, args.ulysses_degree, args.ring_degree)
        if args.compile and world.size > 1:
            raise UserError("--compile works in one process a video; leave out --ulysses-degree and --ring-degree")
    if args.dit_fsdp and world.size == 1:
        raise UserError("--dit-fsdp shares weights among processes, and this is one; use torchrun or leave it out")

    def transformer() -> list[Path]:
        return checkpoint_files(find_hunyuan_video(config, args.dit_weight))

    if args.model not in REPOS:
        return {"transformer": transformer()}
    diffusers = DIFFUSERS_REPOS[args.model]
    return find_parts(
        args.model,
        {
            "transformer": Part(
                name="transformer", origin=PUBLISHED[config][0], flag="--dit-weight", given=args.dit_weight,
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
        on_host = args.use_cpu_offload or args.use_fp8 or args.dit_fsdp
        self.model = load_hunyuan_video(
            self.config,
            args.dit_weight,
            device="cpu" if on_host else self.device,
            dtype=torch_dtype(args.precision),
            attention=args.attention,
        )
        if args.use_fp8:
            store_fp8(self.model)
        if args.use_cpu_offload:
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
        self.sampler = Sampler(
            self.model,
            args.infer_steps,
            shift=args.flow_shift,
            guidance=args.embedded_cfg_scale,
            reverse=args.flow_reverse,
        )

    def sample(
        self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Run]:
        args = self.args
        shape = latent_shape(args.model, *args.video_size, args.video_length)
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
        "ckpt": str(args.dit_weight) if args.dit_weight else None,
        "config": json.loads(json.dumps(asdict(config))),
        "prompts": list(prompts),
        "width": args.video_size[1],
        "height": args.video_size[0],
        "frames": args.video_length,
        "num_steps": args.infer_steps,
        "shift": args.flow_shift,
        "reverse": args.flow_reverse,
        "guidance": args.embedded_cfg_scale if config.guidance_embed else None,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "fp8": args.use_fp8,
        "attention": args.attention,
        "compile": args.compile,
        "ulysses_degree": args.ulysses_degree or 1,
        "ring_degree": args.ring_degree or 1,
        "vae_tiling": args.vae_tiling if args.model in REPOS else None,
    }
