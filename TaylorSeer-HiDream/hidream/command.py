"""What sampling.py and inference.py share: flags, prompts, the search for weights, and the pipeline from prompts to images."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from hidream.config import CONFIGS, USAGE, latent_shape
from hidream.decode import ENV as AE
from hidream.decode import PUBLISHED as PUBLISHED_AE
from hidream.decode import find_autoencoder, load_autoencoder
from hidream.sampler import Sampler, Texts
from hidream.text import CLIP_G, CLIP_L, LLAMA, MAX_LENGTH, T5, TextEncoders, by_layer
from hidream.weights import ENV, PUBLISHED, REPOS, find_hidream, load_hidream
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import (
    Parser,
    device_name,
    non_negative_float,
    non_negative_int,
    positive_int,
    refuse_without_effect,
)
from seerkit.command.images import decode_singly, fill_settings, shipped_or_given_prompts
from seerkit.devices.compile import compile_steps
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import PRECISIONS, torch_dtype
from seerkit.devices.offload import nf4_kernels, offload_modulation, store_fp8, store_nf4
from seerkit.layers.attention import BACKENDS
from seerkit.limits import MAX_GUIDANCE
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.encoders import encoder_files, find_encoder
from seerkit.text.minilm import TEXT_TABLE, TextTable
from seerkit.text.prompts import Batch
from seerkit.weights.autoencoders import autoencoder_files
from seerkit.weights.checkpoints import checkpoint_files
from seerkit.weights.missing import Part, find_parts

EMBEDDED = "hidream-tiny"
PREFIX, _, EMBEDDED_TYPE = EMBEDDED.rpartition("-")
MODEL_TYPES = tuple(name.removeprefix(f"{PREFIX}-") for name in CONFIGS)


def add_flags(parser: Parser) -> None:
    """Flags of the model and the sampler; names the reference has are the reference's."""
    parser.add_argument("--model_type", choices=MODEL_TYPES, default=EMBEDDED_TYPE, help="tiny is the embedded model")
    parser.add_argument("--width", type=positive_int, help="pixels (default: 1024; tiny: 32)")
    parser.add_argument("--height", type=positive_int, help="pixels (default: 1024; tiny: 32)")
    parser.add_argument("--num_steps", type=positive_int, help="sampling steps (default: 50; dev: 28, fast: 16)")
    parser.add_argument(
        "--guidance",
        type=non_negative_float,
        help="weight of the prompt over the negative one, none up to 1 (default: 5; dev and fast: 1, tiny: 3)",
    )
    parser.add_argument("--negative_prompt", help="what the second branch is told (default: nothing)")
    parser.add_argument(
        "--seed", type=non_negative_int, default=0, help="image i depends on its prompt, the seed and i alone"
    )
    parser.add_argument("--ckpt", type=Path, help="checkpoint file or folder (default: $HIDREAM_FULL and its like, …)")
    parser.add_argument("--ae", type=Path, help="autoencoder file or folder (default: $HIDREAM_VAE, …)")
    parser.add_argument("--t5", type=Path, help="folder of the T5-v1.1-XXL encoder")
    parser.add_argument("--clip-l", type=Path, help="folder of the CLIP-L text encoder")
    parser.add_argument("--clip-g", type=Path, help="folder of the CLIP-bigG text encoder")
    parser.add_argument("--llama", type=Path, help="folder of Llama-3.1-8B-Instruct")
    parser.add_argument("--embeddings", type=Path, help="folder that keeps prompt embeddings from one run to the next")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--precision", choices=tuple(PRECISIONS), help="of weights and features (default: bf16; tiny: fp32)"
    )
    parser.add_argument("--attention", choices=BACKENDS, default="sdpa")
    stored = parser.add_mutually_exclusive_group()
    stored.add_argument("--fp8", action="store_true", help="store the weights of the blocks' linear layers in 8 bits")
    stored.add_argument(
        "--nf4", action="store_true", help="store those, and T5's and Llama's, in 4 bits, with bitsandbytes"
    )
    parser.add_argument("--offload-modulation", action="store_true", help="keep the modulation weights in host memory")
    parser.add_argument(
        "--offload", action="store_true", help="keep what is idle in host memory, those weights too; 24 GB with --nf4"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile full and forecast steps, a graph each")
    add_cache_flags(parser, "hidream")


def add_prompt_flags(parser: Parser) -> None:
    """Flags of a command for many prompts."""
    parser.add_argument("--prompt", nargs="+", metavar="TEXT", help="one or more prompts, each in quotes")
    parser.add_argument(
        "--prompt_file", type=Path, help="prompts, one a line (default for tiny: the ones shipped with it)"
    )
    parser.add_argument("--num_images_per_prompt", type=positive_int, default=1, metavar="N")
    parser.add_argument("--batch_size", type=positive_int, help="images a model call (default: 1; tiny: 8)")


def fill_defaults(args: argparse.Namespace) -> None:
    """Set the model, and what was not given to its own settings; UserError for what does not fit it."""
    args.model_name = f"{PREFIX}-{args.model_type}"
    if args.model_name not in REPOS:
        refuse_without_effect(args, args.model_name, "--ae", "--t5", "--clip-l", "--clip-g", "--llama", "--embeddings")
    fill_settings(args, USAGE[args.model_name])
    if not 0 <= args.guidance <= MAX_GUIDANCE:
        raise UserError(
            f"--guidance {args.guidance} must lie between 0 and {MAX_GUIDANCE:g}; up to 1 it runs no second branch"
        )
    if args.negative_prompt and args.guidance <= 1:
        raise UserError(
            f"--negative_prompt {args.negative_prompt!r} has no effect with guidance {args.guidance:g}; give --guidance "
            "above 1"
        )
    args.negative_prompt = args.negative_prompt or ""
    latent_shape(args.model_name, args.height, args.width)


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The prompts that the flags ask for; UserError if there are none or two sources of them."""
    return shipped_or_given_prompts(args, published=args.model_name in REPOS)


def caches(args: argparse.Namespace) -> dict[str, Cache]:
    """The caches that the flags ask for, each checked against the number of steps."""
    return caches_from_flags(args, "hidream", num_steps=args.num_steps)


def find_everything(args: argparse.Namespace) -> dict[str, list[Path]]:
    """Find, or download, all files of the model, by the part that they are of.

    MissingError with all that is missing. UserError for --nf4 where bitsandbytes is missing, or cannot pack on the device.
    """
    if args.nf4:
        nf4_kernels(resolve_device(args.device))
    if args.model_name not in REPOS:
        transformer = find_hidream(args.model_name, args.ckpt)
        return {"transformer": checkpoint_files(transformer), "texts": [TEXT_TABLE]}
    name, given = args.model_name, {T5: args.t5, CLIP_L: args.clip_l, CLIP_G: args.clip_g, LLAMA: args.llama}
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
    if args.model_name not in REPOS:
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
        max_length=MAX_LENGTH[args.model_name],
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
        self.is_guided = args.guidance > 1
        prompts = [prompt for batch in batches for prompt in batch.prompts]
        prompts = list(dict.fromkeys([*prompts, args.negative_prompt] if self.is_guided else prompts))
        self.texts = encode_prompts(args, prompts, device)
        dtype = torch_dtype(args.precision)
        # What is changed before it goes to the device is loaded on the host.
        made_on_host = args.offload or args.offload_modulation or args.fp8 or args.nf4
        model = load_hidream(
            args.model_name, args.ckpt, device="cpu" if made_on_host else device, dtype=dtype, attention=args.attention
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
        usage = USAGE[args.model_name]
        self.sampler = Sampler(
            self.model, args.num_steps, solver=usage.solver, shift=usage.shift, guidance=args.guidance
        )
        self.autoencoder = load_autoencoder(args.model_name, args.ae, "cpu" if args.offload else device, dtype)

    def sample(
        self, cache: Cache | None, batch: Batch, callback: Callable[[int, Tensor], None] | None = None
    ) -> tuple[Tensor, Run]:
        """Final latents (B, C, h, w) in float32 and the run; an image's noise comes from its own number."""
        shape = latent_shape(self.args.model_name, self.args.height, self.args.width)
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


def sizes_of(args: argparse.Namespace) -> dict[str, Any]:
    """The workload of a sample, for `evaluation.backbones.workload`."""
    return {"height": args.height, "width": args.width, "cfg_scale": args.guidance}


def settings_of(args: argparse.Namespace, prompts: Sequence[str]) -> dict[str, Any]:
    """What the images depend on, but for caches: for --dry-run, records and the folders of images."""
    usage = USAGE[args.model_name]
    return {
        "model": args.model_name,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "config": json.loads(json.dumps(asdict(CONFIGS[args.model_name]))),
        "prompts": list(prompts),
        "negative_prompt": args.negative_prompt if args.guidance > 1 else None,
        "width": args.width,
        "height": args.height,
        "num_steps": args.num_steps,
        "solver": usage.solver,
        "shift": usage.shift,
        "guidance": args.guidance,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "fp8": args.fp8,
        "nf4": args.nf4,
        "attention": args.attention,
        "compile": args.compile,
    }
