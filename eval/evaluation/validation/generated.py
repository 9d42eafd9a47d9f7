"""Samples of an embedded model whose order is known, with fewer and fewer steps, and by caching methods; kept shard by shard.

Sample i has the same prompt and noise in every row. Beneath a work folder, which may serve any number of counts:

    LABEL-DIGEST/000000.safetensors    the pixels of a shard; the digest is that of settings, weights, cache and shard size
    LABEL-DIGEST/claim.json            what the digest is of
"""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from cache_dic import Cache, UserError, make_cache
from evaluation.backbones import PACKAGES
from evaluation.families import FAMILIES
from evaluation.images import decode_finite
from evaluation.jobs import digests, make_claim
from evaluation.variants import UNCACHED, Setup, method_rows
from seerkit.command.cli import Parser
from seerkit.devices.distributed import World
from seerkit.io.claims import PROMPTS, claimed_folder, open_claimed
from seerkit.io.media import finite_rows, to_uint8, video_to_uint8
from seerkit.text.prompts import Batch
from seerkit.weights.checkpoints import save_tensors

STEPS = (50, 20, 10, 5)
"""Of the uncached sampler. The order of quality is known: a solver with fewer steps is a coarser one of the same equation."""
METHODS = ("taylorseer", "fora")
"""Caching methods whose differences a measure should tell, each at the fastest setting that comparisons show."""
SHARD = {"image": 25, "video": 5}  # samples


@dataclass(frozen=True, kw_only=True)
class Row:
    """A way to sample: a number of steps and a cache."""

    label: str
    num_steps: int
    cache: Cache


def rows_of(model: str) -> list[Row]:
    """Of an embedded model: uncached at all STEPS, then METHODS at the first of them."""
    found = [Row(label=steps_label(steps), num_steps=steps, cache=make_cache(UNCACHED)) for steps in STEPS]
    setup = Setup(model=model, package=PACKAGES[model], num_steps=STEPS[0])
    for method in METHODS:
        settings = method_rows(method, setup)[-1]
        cache = make_cache(method, preset=setup.package, model=model, **settings)
        found.append(Row(label=cache.label, num_steps=STEPS[0], cache=cache))
    return found


def steps_label(steps: int) -> str:
    return f"{UNCACHED}-{steps}"


class _Made:
    """A row of a model with its job, the sampler's own flags and the folder of its shards."""

    def __init__(self, row: Row, args: Any, family: Any, prompts: Sequence[str], work: Path, world: World) -> None:
        self.row, self.prompts = row, prompts
        self.args = copy.copy(args)
        self.args.num_steps = row.num_steps
        self.shard = SHARD[family.makes]
        self.job = family.job("eval/validate_measures.py", self.args, list(prompts[: self.shard]), {})
        self.settings = {name: value for name, value in self.job.settings.items() if name != PROMPTS}
        contents = digests(self.job.find(world))
        claim = make_claim(self.settings, contents, row.cache, row.num_steps, None, self.job.dtype, world.device)
        self.claim = json.loads(json.dumps({**claim, "shard": self.shard}))
        self.folder = claimed_folder(work, row.label, self.claim)

    def batch(self, number: int) -> Batch:
        """Always whole, so that a sample has the same neighbours however many are asked for."""
        indices = list(range(number * self.shard, (number + 1) * self.shard))
        return Batch(indices, [self.prompts[index % len(self.prompts)] for index in indices])

    def path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"

    def read(self, number: int) -> np.ndarray | None:
        """Pixels (B, T, H, W, C) of a shard, None where it is missing, damaged or of other prompts."""
        try:
            with safe_open(self.path(number), framework="np") as file:
                if json.loads((file.metadata() or {}).get(PROMPTS, "null")) != self.batch(number).prompts:
                    return None
                return file.get_tensor("pixels")
        except (OSError, ValueError, SafetensorError):
            return None

    def write(self, number: int, pixels: np.ndarray) -> None:
        told = json.dumps(self.batch(number).prompts)
        save_tensors(self.path(number), {"pixels": torch.from_numpy(np.ascontiguousarray(pixels))}, {PROMPTS: told})


class Generated:
    """The rows of a model, made where they are missing.

    prompts: of sample 0 and on, begun anew where there are fewer. flags: further ones of the model's sampling command.
    """

    def __init__(
        self,
        model: str,
        prompts: Sequence[str],
        work: Path,
        world: World,
        *,
        seed: int = 0,
        rows: Sequence[Row] | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self.family = FAMILIES[PACKAGES[model]]
        self.is_video = self.family.makes == "video"
        args = _own_flags(self.family, model, seed, SHARD[self.family.makes], flags)
        self.world, self.work = world, work
        self.made = [_Made(row, args, self.family, prompts, work, world) for row in rows or rows_of(model)]
        self.shard, self.settings = self.made[0].shard, self.made[0].settings

    def _numbers(self, count: int) -> range:
        return range(-(-count // self.shard))

    def missing(self, count: int) -> list[tuple[int, _Made]]:
        """Shards that are to be made, with their rows; shard by shard, so that what there is of all rows is equally much."""
        return [(number, one) for number in self._numbers(count) for one in self.made if one.read(number) is None]

    def make(self, count: int, *, quiet: bool = False) -> None:
        """Make what is missing of the first `count` samples of every row."""
        missing = self.missing(count)
        if not missing:
            return
        for one in self.made:
            open_claimed(one.folder, one.claim)
        pipeline = self._pipeline(missing)
        samplers = {one.row.num_steps: pipeline.make_sampler(one.args) for one in self.made}
        total = sum(one.row.num_steps for _, one in missing)
        with tqdm(total=total, unit="step", mininterval=1, disable=quiet) as bar:
            for number, one in missing:
                bar.set_description(f"{one.row.label} {number + 1}/{len(self._numbers(count))}")
                pipeline.sampler = samplers[one.row.num_steps]
                latents, _ = pipeline.sample(one.row.cache, one.batch(number), lambda *_: bar.update())
                one.write(number, self._pixels(pipeline, latents, one.row.label))

    def _pipeline(self, missing: Sequence[tuple[int, _Made]]) -> Any:
        batches = [one.batch(number) for number, one in missing]
        job = self.made[0].job
        if not self.is_video:
            return job.make_pipeline(batches, self.world.device)
        pipeline = job.make_pipeline(self.world)
        pipeline.encode(batches)
        pipeline.load(self.world)
        return pipeline

    def _pixels(self, pipeline: Any, latents: torch.Tensor, label: str) -> np.ndarray:
        """(B, T, H, W, C) uint8; UserError for samples that are not finite."""
        if self.is_video:
            images = torch.cat([pipeline.decode(one[None]) for one in latents])
        else:
            images = decode_finite(pipeline, latents)
        if not all(finite_rows(images)):
            raise UserError(f"samples of {label} came out with NaN or infinity")
        return video_to_uint8(images) if self.is_video else np.asarray(to_uint8(images))[:, None]

    def pixels(self, count: int) -> Mapping[str, Callable[[], np.ndarray]]:
        """By label, what reads the first `count` samples, (N, T, H, W, C) uint8; UserError where some are missing."""
        return {one.row.label: lambda one=one: self._read(one, count) for one in self.made}

    def _read(self, one: _Made, count: int) -> np.ndarray:
        parts = [one.read(number) for number in self._numbers(count)]
        if any(part is None for part in parts):
            raise UserError(f"samples in {one.folder} went missing meanwhile; run the command again")
        return np.concatenate([part for part in parts if part is not None])[:count]


def _own_flags(family: Any, model: str, seed: int, batch_size: int, flags: Sequence[str]) -> Any:
    """What the sampling command of a model would parse with all its defaults but `flags`."""
    parser = Parser("", "")
    family.add_flags(parser)
    args = parser.parse_args(
        ["--model", model, "--num-steps", str(STEPS[0]), "--batch-size", str(batch_size), "--seed", str(seed), *flags]
    )
    args.output_dir = None
    family.fill(args)
    return args
