"""A sampling run of a method that computes part of a step, without computing it: what it would ask of every site.

Sites are called as the blocks call them, in their order and with as many tokens, which have one channel and are zeros of the
type that the model's have. That takes no model and tells what is computed and kept wherever it follows from steps, times and
shapes.
"""

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
from cache_dic.site import Addition


@dataclass(frozen=True)
class Place:
    """A site as a block calls it: length, of its tokens; fused: whether it is handed its attention."""

    name: str
    length: int
    part: slice | None
    reaches_output: bool
    fused: bool


@dataclass(frozen=True)
class CallShapes:
    """What a call of a model on the meta device tells: sites by block, and how many tokens are attended to in each; shapes of
    the latents as the call has them, of the streams that do not reach the output, and of the output."""

    blocks: Sequence[Sequence[Place]]
    keys: Sequence[int]
    latents: tuple[int, ...]
    others: Sequence[tuple[int, ...]]
    output: tuple[int, ...]


class _Noting(Site):
    def __init__(self) -> None:
        self.places: list[Place] = []
        self.keys = 0

    def add(self, addition: Addition) -> Tensor:
        assert addition.name is not None, "sites carry names"
        length, fused = addition.x.shape[1], addition.attended is not None
        self.places.append(Place(addition.name, length, addition.part, addition.reaches_output, fused))
        addition.value()
        return addition.x

    def attend(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *mask: Any, **streams: int
    ) -> Tensor:
        self.keys = sum(streams.values()) or k.shape[2]
        return attention(q, k, v, *mask)


def outline(parts: Parts, num_blocks: int) -> CallShapes:
    """What a call in parts of a model on the meta device tells."""
    streams, blocks, keys = parts.enter(), [], []
    for block in range(num_blocks):
        site = _Noting()
        parts.walk(streams, site, block, block + 1)
        blocks.append(site.places)
        keys.append(site.keys)
    others, output = [tuple(other.shape) for other in streams.others], parts.leave(streams)
    return CallShapes(blocks, keys, tuple(parts.latents.shape), others, tuple(output.shape))


def _zeros(shape: Sequence[int], whole: Tokens) -> Tensor:
    """Stands for tokens of a stream (B, L, D), with a channel in place of as many as the model's tokens have."""
    batch, length, dim = shape
    return torch.zeros(batch, length, max(1, dim // whole.dim), dtype=whole.stream_dtype or whole.dtype)


class Outline:
    """Stands for a model in a run: answers what shapes tell, and is walked site by site."""

    def __init__(self, model: nn.Module, call: CallShapes, shape: Sequence[int]) -> None:
        self.model, self.call, self.shape = model, call, tuple(shape)

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
        dtype = self.model.tokens(torch.empty(self.shape, device="meta")).dtype
        for block, places in enumerate(self.call.blocks[start:stop], start):
            keys = self.call.keys[block]
            if site.method.observes is not None and any(
                site.kinds[place.name] in (ATTENTION, FUSED) for place in places
            ):
                seen = torch.zeros(len(streams.x), keys, dtype=torch.promote_types(dtype, torch.float32))
                site.state.observed[block] = {"": seen}

            def made(x: Tensor, *_: Tensor) -> Tensor:
                """Stands for a module."""
                return x.to(dtype)

            for place in places:
                x = streams.x.new_zeros(len(streams.x), place.length, 1)
                attended = partial(made, x) if place.fused else None
                names: dict[str, Any] = {
                    "name": place.name,
                    "reaches_output": place.reaches_output,
                    "attended": attended,
                }
                site(x, None, made, place.part, **names)
        return streams


def outlined_runs(
    model: nn.Module,
    call: CallShapes,
    cache: Cache,
    shape: Sequence[int],
    times: Tensor,
    branches: int,
    conditions: dict[str, Any],
) -> tuple[list[PartialRun], int]:
    """The runs of guidance branches with calls of their own, over timesteps (S,), and the most bytes that they would keep.

    shape: of the latents of a call; conditions may be on the meta device.
    """
    stand_in = type(type(model).__name__, (Outline,), {})(model, call, shape)  # so that messages name the model
    whole = model.tokens(torch.empty(tuple(shape), device="meta"))
    latents, output = torch.zeros(tuple(shape)), torch.zeros(call.output)
    start = Streams(
        _zeros((whole.batch, whole.length, whole.dim), whole), tuple(_zeros(other, whole) for other in call.others)
    )
    cache = replace(cache, branches=branches, memory_limit=None, telemetry=False)  # of those the run itself tells
    tokens = stand_in.tokens(latents)
    runs: list[PartialRun] = []
    for _ in range(branches):
        run = cache.start(stand_in, latents, times, leader=runs[0] if runs else None, **conditions)
        assert isinstance(run, PartialRun), "of a method that computes part of a step"
        runs.append(run)
    parts = Parts(
        latents=torch.zeros(call.latents),
        modulated=lambda: start.x,
        enter=lambda: start,
        walk=stand_in.walk,
        leave=lambda streams: output,
    )
    most = [0] * len(runs)
    for step in range(len(times)):
        for i, run in enumerate(runs):
            run.at(step)(tokens, lambda site: output, lambda advance: output, parts)
            found = run.state.tensors(vars(run.method))
            size = sum(t.nbytes * (whole.dim if t.ndim == 3 and tuple(t.shape) != call.output else 1) for t in found)
            most[i] = max(most[i], size)
    return runs, sum(size for run, size in zip(runs, most, strict=True) if not run.shares)
