"""What generate.py is made of: flags, prompts, the search for weights, and the pipeline from prompts to videos."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, UserError
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import (
    Parser,
    device_name,
    guidance_weight,
    non_negative_int,
    positive_float,
    positive_int,
    refuse_without_effect,
    true_or_false,
)
from seerkit.data.moving_objects import PROMPTS, encode
from seerkit.devices.compile import compile_steps
from seerkit.devices.distributed import World
from seerkit.devices.dtypes import PRECISIONS, torch_dtype
from seerkit.devices.parallel import parallelize, sequence_degrees, shard_weights, start_sequence
from seerkit.layers.attention import BACKENDS
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.encoders import encoder_files, find_encoder
from seerkit.text.prompts import Batch, Listed, chosen_list, require
from seerkit.weights.autoencoders import Pixels, autoencoder_files
from seerkit.weights.checkpoints import Published, checkpoint_files
from seerkit.weights.missing import Part, find_parts
from wan.config import CONFIGS, USAGE, latent_shape, wan_config
from wan.decode import ENV as VAE
from wan.decode import OFFICIAL_FILE as VAE_FILE
from wan.decode import find_autoencoder, load_autoencoder
from wan.image import CLIP, ImageEncoder, first_frame_condition, output_size, read_image
from wan.sampler import Branches, Sampler
from wan.text import NEGATIVE_PROMPT, NEGATIVE_PROMPT_I2V, T5, TextEncoder
from wan.weights import DIFFUSERS_REPOS, ENV, REPOS, find_wan, load_wan, published

PIXEL_TASKS = ("tiny", "debug")  # models of pixels, with one-hot words as texts
TASKS = (*PIXEL_TASKS, "t2v-1.3B", "t2v-14B", "i2v-14B")
SOLVERS = ("unipc", "dpm++")
_480P_AREA = 832 * 480


def add_flags(parser: Parser) -> None:
    """Flags of the model, the prompts and the sampler; names the official command has are its own."""
    parser.add_argument("--task", choices=TASKS, default="tiny", help="tiny is the embedded text-to-video model")
    parser.add_argument("--size", help="WIDTH*HEIGHT, of an i2v video its area (default: 1280*720; 1.3B 832*480)")
    parser.add_argument("--frame_num", type=positive_int, help="frames, 4n + 1 (default: 81; tiny: 16)")
    parser.add_argument(
        "--ckpt_dir", type=Path, help="checkpoint file or folder (default: $WAN_T2V_14B and its like, …)"
    )
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="one or more prompts, each in quotes")
    parser.add_argument("--image", type=Path, help="the first frame, for i2v")
    parser.add_argument(
        "--negative-prompt", help="what the second branch is told (default: the official one; tiny: empty)"
    )
    parser.add_argument(
        "--base_seed", type=non_negative_int, default=0, help="video i depends on its prompt, this and i alone"
    )
    parser.add_argument("--sample_solver", choices=SOLVERS, default="unipc")
    parser.add_argument("--sample_steps", type=positive_int, help="sampling steps (default: 50; i2v: 40)")
    parser.add_argument(
        "--sample_shift", type=positive_float, help="of the noise levels (default: 5; i2v in 480p and tiny: 3)"
    )
    parser.add_argument(
        "--sample_guide_scale", type=guidance_weight, help="guidance weight, 1 for none (default: 5; tiny: 2)"
    )
    parser.add_argument(
        "--batched-guidance", action="store_true", help="both guidance branches in one model call and cache"
    )
    parser.add_argument("--batch-size", type=positive_int, help="videos a model call (default: 1; tiny: 4)")
    parser.add_argument("--save_file", type=Path, help="also write the one video that is made to this MP4")
    parser.add_argument(
        "--output-dir", type=Path, help="gets a folder for every cache (default: outputs/wan/MODEL-DIGEST)"
    )
    parser.add_argument("--vae", type=Path, help="autoencoder file or folder (default: $WAN_VAE, …)")
    parser.add_argument("--t5", type=Path, help="folder of the UMT5-XXL encoder and its tokenizer")
    parser.add_argument("--clip", type=Path, help="folder of the CLIP ViT-H/14 image encoder, for i2v")
    parser.add_argument("--embeddings", type=Path, help="folder that keeps prompt embeddings from one run to the next")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), help="of the blocks (default: bf16; tiny: fp32)")
    parser.add_argument("--attention", choices=BACKENDS, default="sdpa")
    parser.add_argument("--compile", action="store_true", help="torch.compile full and forecast steps, a graph each")
    parser.add_argument(
        "--offload_model",
        type=true_or_false,
        metavar="BOOL",
        help="accepted as official; text encoder, transformer and autoencoder always take turns on the device",
    )
    parser.add_argument("--t5_cpu", action="store_true", help="encode the prompts on the CPU")
    group = parser.add_argument_group(
        "several processes", "under torchrun; without degrees the processes share the prompts"
    )
    group.add_argument("--ulysses_size", type=positive_int, help="processes that share a video, by heads in attention")
    group.add_argument("--ring_size", type=positive_int, help="processes that share a video, by a ring in attention")
    group.add_argument("--dit_fsdp", action="store_true", help="share the transformer's weights among those processes")
    group.add_argument("--t5_fsdp", action="store_true", help="share the text encoder's weights among those processes")
    add_cache_flags(parser, "wan")


def fill_defaults(args: argparse.Namespace) -> None:
    """Set the model, and what was not given to its own settings; UserError for what does not fit it."""
    if args.task == "i2v-14B":
        require(args.image, "--task i2v-14B needs --image, the first frame of the video")
    elif args.image:
        raise UserError(
            f"--image {args.image} has no effect on {args.task}, which makes videos of texts; use --task i2v-14B"
        )
    if args.task in PIXEL_TASKS:
        refuse_without_effect(args, f"--task {args.task}", "--vae", "--t5", "--embeddings", "--t5_cpu", "--t5_fsdp")
    if args.task != "i2v-14B":
        refuse_without_effect(args, f"--task {args.task}", "--clip")
    asked = _size(args.size) if args.size else None
    args.model_name = f"wan-{args.task}"
    if args.task == "i2v-14B":
        small = asked is not None and asked[0] * asked[1] <= _480P_AREA
        args.model_name += "-480P" if small else "-720P"
    usage = USAGE[args.model_name]
    sizes = [size for name in REPOS if name.startswith(f"wan-{args.task}") for size in USAGE[name].sizes]
    if asked and sizes and asked not in sizes:
        choices = ", ".join(f"{width}*{height}" for width, height in sizes)
        raise UserError(f"--size {args.size} is not one of {args.task}; choose from {choices}")
    args.width, args.height = asked or usage.sizes[0]
    if args.image:
        patch = usage.factor * wan_config(args.model_name).patch_size[1]
        args.height, args.width = output_size(*read_image(args.image).shape[-2:], args.width * args.height, patch)
    negative = args.negative_prompt
    own = {
        "frame_num": usage.frames,
        "sample_steps": usage.num_steps,
        "sample_shift": usage.shift,
        "sample_guide_scale": usage.guidance,
        "batch_size": usage.batch_size,
        "precision": usage.precision,
        "negative_prompt": _negative_prompt(args),
    }
    for name, value in own.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    latent_shape(args.model_name, args.height, args.width, args.frame_num)
    if args.sample_guide_scale == 1:
        for flag, given in (("--negative-prompt", negative), ("--batched-guidance", args.batched_guidance)):
            if given:
                raise UserError(f"{flag} has no effect with --sample_guide_scale 1, which is no guidance; leave it out")
    for flag in ("dit_fsdp", "t5_fsdp"):
        if getattr(args, flag) and not sequence_parallel(args):
            raise UserError(
                f"--{flag} shares weights among processes that share videos; give --ulysses_size or --ring_size"
            )
    if args.t5_fsdp and args.t5_cpu:
        raise UserError("--t5_fsdp and --t5_cpu exclude each other; give one of them")


def _negative_prompt(args: argparse.Namespace) -> str:
    if args.task in PIXEL_TASKS:
        return ""
    return NEGATIVE_PROMPT_I2V if args.image else NEGATIVE_PROMPT


def _size(text: str) -> tuple[int, int]:
    """Width and height of `WIDTH*HEIGHT`."""
    try:
        width, height = map(positive_int, text.replace("x", "*").split("*"))
    except (ValueError, argparse.ArgumentTypeError):
        raise UserError(f"--size {text[:40]} is not WIDTH*HEIGHT, such as 832*480") from None
    return width, height


def sequence_parallel(args: argparse.Namespace) -> bool:
    """Whether all processes make one video together."""
    return args.ulysses_size is not None or args.ring_size is not None


def prompts_of(args: argparse.Namespace) -> list[Listed]:
    """The prompts that the flags ask for; UserError if there are none or two sources of them."""
    default = (lambda: list(PROMPTS)) if args.task in PIXEL_TASKS else None
    listed = chosen_list(
        args.prompt, args.prompt_file, flag="--prompt-file", model=f"--task {args.task}", default=default
    )
    if args.task in PIXEL_TASKS:
        encode([*(one.prompt for one in listed), args.negative_prompt])  # names words that the model does not know
    return listed


def caches(args: argparse.Namespace) -> dict[str, Cache]:
    """The caches that the flags ask for, each checked against the number of steps."""
    return caches_from_flags(args, "wan", num_steps=args.sample_steps)


def autoencoder_of(args: argparse.Namespace) -> Path | None:
    """--vae, or the autoencoder in the folder of an official checkpoint; None where that has none."""
    beside = args.ckpt_dir / VAE_FILE if args.ckpt_dir else None
    return args.vae or (beside if beside is not None and beside.is_file() else None)


def find_everything(args: argparse.Namespace, world: World) -> dict[str, list[Path]]:
    """Check the division into processes, and find, or download, every file, by the part that it is of.

    MissingError with all that is missing.
    """
    if sequence_parallel(args):
        sequence_degrees(world.size, wan_config(args.model_name).num_heads, args.ulysses_size, args.ring_size)
        if args.compile and world.size > 1:
            raise UserError("--compile works in one process a video; leave out --ulysses_size and --ring_size")
    for flag in ("dit_fsdp", "t5_fsdp"):
        if getattr(args, flag) and world.size == 1:
            raise UserError(f"--{flag} shares weights among processes, and this is one; use torchrun or leave it out")

    def transformer() -> list[Path]:
        return checkpoint_files(find_wan(args.model_name, args.ckpt_dir))

    if args.model_name not in REPOS:
        return {"transformer": transformer()}
    name, diffusers, vae = args.model_name, DIFFUSERS_REPOS[args.model_name], autoencoder_of(args)
    parts = {
        "transformer": Part(
            name="transformer", origin=published(name)[0], flag="--ckpt_dir", given=args.ckpt_dir, env=ENV[name],
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
        self.published = args.model_name in REPOS
        self.fps = USAGE[args.model_name].fps
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
            y = first_frame_condition(image, args.frame_num, args.height, args.width, autoencoder)
            self.first_frame = {"clip_fea": tokens, "y": y.cpu()}

    def load(self, world: World) -> None:
        args = self.args
        shared = sequence_parallel(args)
        on_host = shared and args.dit_fsdp
        self.model = load_wan(
            args.model_name,
            args.ckpt_dir,
            device="cpu" if on_host else self.device,
            dtype=self.dtype,
            attention=args.attention,
        )
        if shared:
            heads = self.model.config.num_heads
            shard = start_sequence(world, heads=heads, ulysses=args.ulysses_size, ring=args.ring_size)
            parallelize(self.model, shard, args.attention)
        if on_host:
            shard_weights(self.model, world)
        if args.compile:
            compile_steps(self.model)
        self.sampler = Sampler(
            self.model,
            args.sample_steps,
            solver=args.sample_solver,
            shift=args.sample_shift,
            guidance=args.sample_guide_scale,
            batched=args.batched_guidance,
        )

    def sample(
        self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Branches]:
        args = self.args
        shape = latent_shape(args.model_name, args.height, args.width, args.frame_num)
        noise = SampleGenerators(args.base_seed, batch.indices).randn(*shape, device=self.device)
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
        "model": args.model_name,
        "ckpt": str(args.ckpt_dir) if args.ckpt_dir else None,
        "config": json.loads(json.dumps(asdict(CONFIGS[args.model_name]))),
        "prompts": list(prompts),
        "negative_prompt": args.negative_prompt,
        "image": str(args.image) if args.image else None,
        "width": args.width,
        "height": args.height,
        "frames": args.frame_num,
        "num_steps": args.sample_steps,
        "solver": args.sample_solver,
        "shift": args.sample_shift,
        "guidance": args.sample_guide_scale,
        "batched_guidance": args.batched_guidance,
        "seed": args.base_seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "attention": args.attention,
        "compile": args.compile,
        "ulysses_size": args.ulysses_size or 1,
        "ring_size": args.ring_size or 1,
    }
