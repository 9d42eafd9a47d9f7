"""A sampling run of a method that computes part of a step, without computing it: what it would ask of every site.

Sites are called as the blocks call them, in their order and with as many tokens, which have one channel and are zeros. That
takes no model and tells what is computed wherever that follows from steps, times and shapes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Cache, Parts, Site, Streams, Tokens
from cache_dic.partial import ATTENTION, FUSED
from cache_dic.partial_run import PartialRun, PartialSite


@dataclass(frozen=True)
class Place:
    """A site as a block calls it: length, of its tokens; fused: whether it is handed its attention."""

    name: str
    length: int
    part: slice | None
    reaches_output: bool
    fused: bool


class _Noting(Site):
    def __init__(self) -> None:
        self.places: list[Place] = []

    def __call__(
        self,
        x: Tensor,
        gate: Tensor | None,
        feature: Any,
        part: slice | None = None,
        *,
        name: str | None = None,
        reaches_output: bool = True,
        attended: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        assert name is not None, "sites carry names"
        self.places.append(Place(name, x.shape[1], part, reaches_output, attended is not None))
        return x


def outline(parts: Parts, num_blocks: int) -> list[list[Place]]:
    """The sites of every block, from a call in parts of a model on the meta device."""
    streams, blocks = parts.enter(), []
    for block in range(num_blocks):
        site = _Noting()
        parts.walk(streams, site, block, block + 1)
        blocks.append(site.places)
    return blocks


def _same(x: Tensor, *_: Tensor) -> Tensor:
    """Stands for a module."""
    return x


class Outline:
    """Stands for a model in a run: answers what shapes tell, and is walked site by site."""

    def __init__(self, model: nn.Module, blocks: Sequence[Sequence[Place]], shape: Sequence[int]) -> None:
        self.model, self.blocks, self.shape = model, blocks, tuple(shape)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    TIME = "t"

    def step_flops(self, latents: Tensor, **conditions: Any) -> tuple[int, int]:
        return self.model.step_flops(torch.empty(self.shape, device="meta"), **conditions)

    def tokens(self, latents: Tensor) -> Tokens:
        return replace(self.model.tokens(torch.empty(self.shape, device="meta")), dim=1)

    def token_grid(self, latents: Tensor, **conditions: Any) -> tuple[int, ...]:
        """Where a model's grid stands in positions, which a count has not, all tokens are in one row."""
        try:
            return self.model.token_grid(torch.empty(self.shape, device="meta"), **conditions)
        except (NotImplementedError, RuntimeError):
            return 1, self.tokens(latents).length

    def modulation_table(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(factors=None, gates=None, at=lambda step: None, forget_before=lambda step: None)

    def walk(self, streams: Streams, site: Site, start: int, stop: int | None) -> Streams:
        assert isinstance(site, PartialSite), "the run is of a method that computes part of a step"
        for block, places in enumerate(self.blocks[start:stop], start):
            longest = max(place.length for place in places)
            if site.method.observes is not None and any(
                site.kinds[place.name] in (ATTENTION, FUSED) for place in places
            ):
                site.state.observed[block] = {"": torch.zeros(len(streams.x), longest)}
            for place in places:
                x = torch.zeros(len(streams.x), place.length, 1)
                attended = partial(_same, x) if place.fused else None
                names: dict[str, Any] = {
                    "name": place.name,
                    "reaches_output": place.reaches_output,
                    "attended": attended,
                }
                site(x, None, _same, place.part, **names)
        return streams


def outlined_runs(
    model: nn.Module,
    blocks: Sequence[Sequence[Place]],
    cache: Cache,
    shape: Sequence[int],
    times: Tensor,
    branches: int,
    conditions: dict[str, Any],
) -> tuple[list[PartialRun], int]:
    """The runs of guidance branches with calls of their own, over timesteps (S,), and the most bytes that they would keep.

    shape: of the latents of a call; conditions may be on the meta device.
    """
    stand_in = Outline(model, blocks, shape)
    whole = model.tokens(torch.empty(tuple(shape), device="meta"))
    feature_bytes, kept = whole.dim * whole.dtype.itemsize, 0
    latents, start = torch.zeros(tuple(shape)), Streams(torch.zeros(whole.batch, whole.length, 1))
    cache, tokens = replace(cache, branches=branches), stand_in.tokens(latents)
    runs: list[PartialRun] = []
    for _ in range(branches):
        run = cache.start(stand_in, latents, times, leader=runs[0] if runs else None, **conditions)
        assert isinstance(run, PartialRun), "of a method that computes part of a step"
        runs.append(run)
    parts = Parts(
        latents=latents,
        modulated=lambda: start.x,
        enter=lambda: start,
        walk=stand_in.walk,
        leave=lambda streams: latents,
    )
    for step in range(len(times)):
        for run in runs:
            run.at(step)(tokens, lambda site: latents, lambda advance: latents, parts)
        found = {id(t): t for run in runs for t in run.state.tensors(vars(run.method))}.values()
        sizes = (
            math.prod(t.shape) * (feature_bytes if t.ndim == 3 else t.element_size())
            for t in {id(t): t for t in found}.values()
        )
        kept = max(kept, sum(sizes))
    return runs, kept
