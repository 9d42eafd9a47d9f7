"""Samples of a published pipeline by all processes together: loaded, shared, cached, called, saved."""

import argparse
import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from cache_dic import Cache, UserError
from seerkit.devices.distributed import World, num_processes, on_main, start_world, stop_world
from seerkit.devices.parallel import sequence_degrees
from seerkit.io.files import writable_directory
from seerkit.io.media import finite_rows, save_mp4, save_png
from seerkit.sampling.compare import UNCACHED
from seerkit.sampling.seeds import generator
from taylorseers_diffusers import enable
from taylorseers_diffusers.model import NotFiniteError
from taylorseers_xdit.families import XFUSER, Family
from taylorseers_xdit.shared import PARTS, share, xfuser_class


def run(args: argparse.Namespace, family: Family, caches: Mapping[str, Cache]) -> None:
    """Carry out a command line. UserError where there is no GPU, no xfuser, or no such model, and for a sample with NaN or
    infinity, which ends the command.
    """
    if not torch.cuda.is_available():
        raise UserError(
            f"{args.backend} attends on GPUs, and torch {torch.__version__} sees none; on CPUs our own command runs on several "
            f"processes, {family.own}"
        )
    config, kind = find(args.model), transformer_class(args.backend, family)
    heads = kind.load_config(args.model, subfolder=PARTS[0])["num_attention_heads"]
    sequence_degrees(num_processes(), heads, args.ulysses_degree, args.ring_degree)
    world = start_world()
    on_main(world, functools.partial(writable_directory, args.output_dir))
    pipe = load(args, family, config, kind, world.device)
    share(pipe, args.backend, ulysses=args.ulysses_degree, ring=args.ring_degree)
    plain: dict[int, np.ndarray] = {}  # uncached, where that is asked for

    def keep(label: str, number: int, pixels: np.ndarray | None, seconds: float) -> None:
        if pixels is None:
            calmer = "" if label == UNCACHED else "lower --interval or --max-order, or "
            raise UserError(
                f"sample {number} of {label} came out with NaN or infinity: it is not written, the samples before it are kept; "
                f"{calmer}take a lower --guidance-scale, or {family.own} with --precision fp32"
            )
        path = save(args.output_dir / f"{label}-{number:03d}", pixels, family)
        if label == UNCACHED:
            plain[number] = pixels
        beside = f", PSNR {psnr(pixels, plain[number])}" if number in plain and label != UNCACHED else ""
        print(f"{path}: {seconds:.2f} s on {world.size} processes by {args.backend}{beside}\n{pipe.cache_report()}")

    for label, cache in caches.items():
        enable(pipe, cache)
        for number in range(len(args.prompt)):
            pixels, seconds = sample(pipe, args, number, world)
            on_main(world, functools.partial(keep, label, number, pixels, seconds))
    stop_world()


def transformer_class(backend: str, family: Family) -> type[Any]:
    return xfuser_class(family) if backend == XFUSER else getattr(diffusers, family.classes[0])


def find(model: str) -> Mapping[str, Any]:
    """A pipeline's index, from its folder or the hub; UserError for one that is nowhere."""
    try:
        return diffusers.DiffusionPipeline.load_config(model)
    except OSError as error:
        where = "has no model_index.json" if Path(model).is_dir() else "is no folder, and the hub does not give it"
        raise UserError(
            f"--model {model} {where}: fetch all of the pipeline by `hf download NAME --local-dir FOLDER`, then give --model "
            "FOLDER"
        ) from error


def load(
    args: argparse.Namespace, family: Family, config: Mapping[str, Any], kind: type[Any], device: torch.device
) -> Any:
    """The pipeline in bf16 on this process's device."""
    given = {"torch_dtype": torch.bfloat16}
    parts = {
        name: kind.from_pretrained(args.model, subfolder=name, **given)
        for name in PARTS
        if config.get(name, [None])[0] is not None
    }
    pipe = getattr(diffusers, family.pipeline).from_pretrained(args.model, **parts, **given)
    if args.enable_model_cpu_offload:
        pipe.enable_model_cpu_offload(device=device)
        return pipe
    return pipe.to(device)


def sample(pipe: Any, args: argparse.Namespace, number: int, world: World) -> tuple[np.ndarray | None, float]:
    """Image (H, W, 3) or video (F, H, W, 3) of a prompt as uint8, and the seconds that it took.

    None where it, or its last latents, of whose infinity pipelines make white or black, are not finite.
    """
    chosen = ("height", "width", "guidance_scale", "num_frames", "max_sequence_length", "negative_prompt")
    given = {name: value for name in chosen if (value := vars(args).get(name)) is not None}
    noise = generator(args.seed, number)
    last: dict[str, Tensor] = {}

    def after_step(_: Any, __: int, ___: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last.update(tensors)
        return tensors

    pipe.set_progress_bar_config(disable=not world.is_main)
    began = time.perf_counter()
    try:
        (output,) = pipe(
            args.prompt[number], num_inference_steps=args.num_steps, generator=noise, output_type="np",
            callback_on_step_end=after_step, **given,
        )[0]  # fmt: skip
    except NotFiniteError:
        return None, time.perf_counter() - began
    seconds = time.perf_counter() - began
    finite = np.isfinite(output).all() and all(all(finite_rows(latents)) for latents in last.values())
    return (output * 255).round().astype("uint8") if finite else None, seconds


def save(path: Path, pixels: np.ndarray, family: Family) -> Path:
    """Write them to a PNG or MP4 of that name."""
    if family.num_frames:
        path = path.with_name(f"{path.name}.mp4")
        save_mp4(path, pixels, family.fps)
    else:
        path = path.with_name(f"{path.name}.png")
        save_png(path, pixels)
    return path


def psnr(pixels: np.ndarray, expected: np.ndarray) -> str:
    """In dB, of uint8."""
    error = np.square(pixels.astype(np.float64) - expected).mean()
    return "identical" if error == 0 else f"{10 * math.log10(255**2 / error):.2f} dB"
