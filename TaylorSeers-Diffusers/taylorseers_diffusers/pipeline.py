"""What run.py runs: a pipeline of diffusers, loaded, and sampled with caches on and off."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, UserError
from flux.config import REPOS, USAGE, flux_config, latent_shape, patch_side
from flux.latents import pack
from flux.weights import find_flux, licence_hint
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.media import finite_rows
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.minilm import TEXT_TABLE
from seerkit.text.prompts import Batch
from taylorseers_diffusers.embedded import NAME, embedded_flux
from taylorseers_diffusers.front import disable, enable
from taylorseers_diffusers.model import NotFiniteError

INDEX = "model_index.json"


# --------------------------------------------------------------------------------------------------------------- files


def find_files(args: argparse.Namespace, device: torch.device) -> dict[str, list[Path]]:
    """Find, or download, what the pipeline reads, by the part that it is of.

    UserError with how to get what is missing, and for a device from which nothing can be offloaded.
    """
    if args.offload is not None and device.type == "cpu":
        raise UserError(f"--offload {args.offload} has no effect on the CPU, where everything is; leave it out")
    if args.model == NAME:
        return {"transformer": [find_flux(flux_config(NAME))], "texts": [TEXT_TABLE]}
    return {"pipeline": [find_folder(args.model)]}


def find_folder(model: str) -> Path:
    """The folder of a pipeline: `model` itself, or what the hub, or its cache, has under that name."""
    from diffusers import DiffusionPipeline

    folder = Path(model)
    if folder.exists():
        if not (folder / INDEX).is_file():
            raise UserError(f"--model {model} is no folder of a pipeline: it has no {INDEX}; give the one that has it")
        return folder
    if model.count("/") != 1:
        meant = f"; did you mean {REPOS[model]}?" if model in REPOS else f", such as {REPOS['flux-dev']}"
        raise UserError(f"--model {model} is neither {NAME}, a folder nor a name on the hub{meant}")
    try:
        return Path(DiffusionPipeline.download(model))
    except (OSError, ValueError) as error:
        reason = str(_cause(error)).strip().splitlines()[0]
        hint = f"; {licence_hint(model)}" if model in REPOS.values() else ""
        size = " (FLUX.1: 34 GB)" if model in REPOS.values() else ""
        raise UserError(
            f"--model {model}{size} is no folder here, nor in the hub's cache, and not to be had: {reason}; where there is a "
            f"network, `hf download {model} --local-dir DIR`, then give --model DIR{hint}"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """What an error began with."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def load_pipeline(args: argparse.Namespace, device: torch.device) -> Any:
    """The pipeline on its device."""
    from diffusers import DiffusionPipeline

    dtype = torch_dtype(args.precision)
    if args.model == NAME:
        pipe = embedded_flux(dtype=dtype)
    else:
        pipe = DiffusionPipeline.from_pretrained(find_folder(args.model), torch_dtype=dtype)
    if args.compile_blocks:
        pipe.transformer.compile_repeated_blocks()
    if args.offload is None:
        pipe.to(device)
    elif args.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# ------------------------------------------------------------------------------------------------------------ pipeline


@dataclass(frozen=True)
class Ran:
    """What a call did, as commands ask a run for it."""

    done: dict[str, Any]

    def record(self) -> dict[str, Any]:
        return self.done


class Pipeline:
    """A pipeline that makes images of prompts. An image's noise comes from its own number, as in TaylorSeer-FLUX/sample.py."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.pipe = args, load_pipeline(args, device)

    def sample(
        self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None] = lambda *_: None
    ) -> tuple[Tensor, Ran]:
        """Images (B, 3, H, W) in [-1, 1] and what was done: a call of the pipeline, from prompts to pixels.

        NaN where the last latents are not finite: of infinity pipelines make white or black.
        """
        args = self.args
        last: dict[str, Tensor] = {}

        def after_step(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            last.update(tensors)
            callback(step, tensors["latents"])
            return tensors

        if cache.method == "uncached":
            disable(self.pipe)
        else:
            enable(self.pipe, cache)
        guidance = {} if args.guidance_scale is None else {"guidance_scale": args.guidance_scale}
        try:
            result = self.pipe(
                prompt=list(batch.prompts), height=args.height, width=args.width, num_inference_steps=args.num_steps,
                output_type="pt", callback_on_step_end=after_step, **guidance, **self._noise(batch),
            )  # fmt: skip
        except NotFiniteError:
            self.pipe.maybe_free_model_hooks()
            return torch.full((len(batch.indices), 3, args.height, args.width), torch.nan), Ran(self._record(cache))
        if not hasattr(result, "images"):
            raise UserError(
                f"{type(self.pipe).__name__} makes no images, which this command is for; call enable(pipe) in a script of yours"
            )
        images = result.images.float() * 2 - 1
        images[[not finite for finite in finite_rows(last["latents"])]] = torch.nan
        return images, Ran(self._record(cache))

    def _noise(self, batch: Batch) -> dict[str, Any]:
        generators = SampleGenerators(self.args.seed, batch.indices)
        if self.args.model != NAME:
            return {"generator": generators.generators}
        shape = latent_shape(NAME, self.args.height, self.args.width)
        patch = patch_side(self.pipe.transformer.config.in_channels, USAGE[NAME].latent_channels)
        return {"latents": pack(generators.randn(*shape), patch)}

    def _record(self, cache: Cache) -> dict[str, Any]:
        if cache.method == "uncached":
            steps = [{"step": step, "kind": "full"} for step in range(self.args.num_steps)]
            return {
                "method": cache.method, "engine": cache.engine, "num_steps": self.args.num_steps,
                "full_steps": list(range(self.args.num_steps)), "kept_bytes": 0, "steps": steps,
            }  # fmt: skip
        report = self.pipe.cache_report()
        first, *_ = next(iter(report.branches.values()))
        return {**first, "engine": report.engine, "branches": len(report.branches), "kept_bytes": report.num_bytes}

    def decode(self, latents: Tensor) -> Tensor:
        """What `sample` gave, which are images."""
        return latents.cpu()


def settings_of(args: argparse.Namespace, prompts: list[str]) -> dict[str, Any]:
    """What the images depend on, but for caches."""
    return {
        "model": args.model,
        "prompts": prompts,
        "width": args.width,
        "height": args.height,
        "num_steps": args.num_steps,
        "guidance": args.guidance_scale,
        "seed": args.seed,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "offload": args.offload,
        "compile": args.compile_blocks,
        "timed": "calls of the pipeline, from prompts to pixels",
    }
