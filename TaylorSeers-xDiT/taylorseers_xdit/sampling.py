"""Samples of a published pipeline by all processes together: loaded, shared, cached, called, saved."""

import argparse
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from cache_dic import Cache, UserError
from seerkit.devices.distributed import World, num_processes, start_world, stop_world
from seerkit.devices.parallel import sequence_degrees
from seerkit.io.files import writable_directory
from seerkit.io.media import save_mp4, save_png
from seerkit.sampling.compare import UNCACHED
from seerkit.sampling.seeds import generator
from taylorseers_diffusers import enable
from taylorseers_xdit.families import XFUSER, Family
from taylorseers_xdit.shared import PARTS, share, xfuser_class


def run(args: argparse.Namespace, family: Family, caches: Mapping[str, Cache]) -> None:
    """Carry out a command line. UserError where there is no GPU, no xfuser, or no such model."""
    if not torch.cuda.is_available():
        raise UserError(
            f"{args.backend} attends on GPUs, and torch {torch.__version__} sees none; on CPUs our own command runs on several "
            f"processes, {family.own}"
        )
    config, kind = find(args.model), transformer_class(args.backend, family)
    heads = kind.load_config(args.model, subfolder=PARTS[0])["num_attention_heads"]
    sequence_degrees(num_processes(), heads, args.ulysses_degree, args.ring_degree)
    world = start_world()
    if world.is_main:
        writable_directory(args.output_dir)
    pipe = load(args, family, config, kind, world.device)
    share(pipe, args.backend, ulysses=args.ulysses_degree, ring=args.ring_degree)
    plain: dict[int, np.ndarray] = {}  # uncached, where that is asked for
    for label, cache in caches.items():
        enable(pipe, cache)
        for number in range(len(args.prompt)):
            pixels, seconds = sample(pipe, args, number, world)
            if label == UNCACHED:
                plain[number] = pixels
            if world.is_main:
                path = save(args.output_dir / f"{label}-{number:03d}", pixels, family)
                beside = f", PSNR {psnr(pixels, plain[number]):.2f} dB" if number in plain and label != UNCACHED else ""
                print(
                    f"{path}: {seconds:.2f} s on {world.size} processes by {args.backend}{beside}\n{pipe.cache_report()}"
                )
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


def sample(pipe: Any, args: argparse.Namespace, number: int, world: World) -> tuple[np.ndarray, float]:
    """Image (H, W, 3) or video (F, H, W, 3) of a prompt as uint8, and the seconds that it took."""
    chosen = ("height", "width", "guidance_scale", "num_frames", "max_sequence_length", "negative_prompt")
    given = {name: value for name in chosen if (value := vars(args).get(name)) is not None}
    noise = generator(args.seed, number)
    pipe.set_progress_bar_config(disable=not world.is_main)
    began = time.perf_counter()
    output = pipe(args.prompt[number], num_inference_steps=args.num_steps, generator=noise, output_type="np", **given)[
        0
    ][0]
    return (output * 255).round().astype("uint8"), time.perf_counter() - began


def save(path: Path, pixels: np.ndarray, family: Family) -> Path:
    """Write them to a PNG or MP4 of that name."""
    if family.num_frames:
        path = path.with_name(f"{path.name}.mp4")
        save_mp4(path, pixels, family.fps)
    else:
        path = path.with_name(f"{path.name}.png")
        save_png(path, pixels)
    return path


def psnr(pixels: np.ndarray, expected: np.ndarray) -> float:
    """In dB, of uint8; infinite where they are the same."""
    error = np.square(pixels.astype(np.float64) - expected).mean()
    return float("inf") if error == 0 else 10 * math.log10(255**2 / error)
