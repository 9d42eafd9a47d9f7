"""What a model offers between its embedding and its head, and what a schedule that decides while sampling may look at.

Everything is paid for when it is asked for.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cache_dic.errors import UserError
from cache_dic.settings import check_kind
from cache_dic.site import Site

TRAINING_SPAN = 1000.0
"""Timesteps of training, from the image to noise; a model that is given others says where noise is, as TIME_SPAN."""


class Streams(NamedTuple):
    """The state of a model between two blocks."""

    x: Tensor
    """Tokens that reach the output (B, L, D)."""
    others: tuple[Tensor, ...] = ()
    """Tokens that do not, such as those of the text (B, L', D) each."""
    context: Any = None
    """What the blocks read and leave as it is: rotations, masks, texts."""


class BlockResult(NamedTuple):
    """What a block gave."""

    feature: Tensor
    """Of its last site, before the gate: of all tokens that the site works on (B, L', D)."""
    output: Tensor
    """Tokens that reach the output, after the block (B, L, D)."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A call of a model in parts, for methods that look into it or stop between blocks.

    latents: its input. modulated(): tokens after the first norm, shift and scale of block 0 (B, L, D). enter(): the state
    before block 0. walk(streams, site, start, stop): the state after blocks start … stop - 1, stop None for all.
    leave(streams): the output from the state after the last block.
    """

    latents: Tensor
    modulated: Callable[[], Tensor]
    enter: Callable[[], Streams]
    walk: Callable[[Streams, Site, int, int | None], Streams]
    leave: Callable[[Streams], Tensor]


class Observable(Protocol):
    """What schedules may ask of a model beside `Parts`; a model that lacks one cannot be sampled with those that ask for it."""

    def time_signals(self, timesteps: Tensor, **conditions: Any) -> Mapping[str, Tensor]:
        """By name, what timesteps (S,) are embedded as, (S, …)."""

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Scale of the data and of the noise in the latents at timesteps (S,), each (S,)."""

    def token_grid(self, latents: Tensor, **conditions: Any) -> tuple[int, ...]:
        """Frames (of videos), rows and columns of the tokens."""

    def block_sites(self) -> Sequence[Sequence[str]]:
        """Names of the sites by block."""


@dataclass(frozen=True)
class Inputs:
    """What a run was started with: the model, latents and conditions as its calls get them, timesteps (S,).

    sigmas: noise levels (S,) of a flow, which the timesteps may have rounded; None where only the model knows them. branch: of
    guidance, "cond" or "uncond"; branches: how many have model calls of their own. shard: processes that share the rows of the
    batch, as the model's shard those that share the tokens.
    """

    model: Any
    latents: Tensor
    timesteps: Tensor
    conditions: Mapping[str, Any] = field(default_factory=dict)
    sigmas: Tensor | None = None
    branch: str = "cond"
    branches: int = 1
    shard: Any = None

    def ask(self, name: str, *args: Any, **given: Any) -> Any:
        """The answer of a method of `Observable`; UserError for a model without."""
        method = getattr(self.model, name, None)
        if method is None:
            raise UserError(f"{type(self.model).__name__} offers no {name}, which this method looks at")
        return method(*args, **given)

    @cached_property
    def time_signals(self) -> Mapping[str, Tensor]:
        return self.ask("time_signals", self.timesteps, **self.conditions)

    @cached_property
    def noise_levels(self) -> list[tuple[float, float]]:
        """By step, scale of data and noise."""
        if self.sigmas is not None:
            data, noise = 1 - self.sigmas, self.sigmas
        else:
            data, noise = self.ask("noise_levels", self.timesteps.double().cpu())
        return list(zip(data.tolist(), noise.tolist(), strict=True))

    @cached_property
    def row_seeds(self) -> Tensor:
        """A number for each row of the batch (B,) int64, made of its first latents alone, so that no other row matters.

        Rows of the same latents, as those of two guidance branches, are told apart by the branch, and by their order, which is
        that in the whole batch where processes share it.
        """
        bits = self.latents.detach().to(torch.float64).flatten(1).view(torch.int64)
        places = mixed(torch.arange(bits.shape[1], device=bits.device)) | 1
        seeds = mixed((bits * places).sum(dim=1))
        same = (seeds[:, None] == seeds).tril(-1).sum(dim=1)
        place = 0 if self.shard is None else self.shard.place
        return mixed(seeds + same + (self.branch != "cond") + place)

    @cached_property
    def grid(self) -> tuple[int, ...]:
        return self.ask("token_grid", self.latents, **self.conditions)

    def total(self, sums: Tensor) -> Tensor:
        """Sums over this process's tokens and rows, added up over the processes that share them."""
        for shard in (getattr(self.model, "shard", None), self.shard):
            if shard is not None and shard.size > 1:
                sums = shard.total(sums)
        return sums


def mixed(values: Tensor) -> Tensor:
    """int64 numbers, each sent to one that looks random: the finisher of SplitMix64 (Steele et al. 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        values = (values ^ (values >> shift & (1 << 64 - shift) - 1)) * factor
    return values ^ (values >> 31 & (1 << 33) - 1)


class Look:
    """The view of one step that a schedule decides by.

    step, num_steps: 0-based, of how many. full_steps: those so far, ascending. before, after: tokens before and after the
    first blocks, for schedules that decide there (`first_blocks`).
    """

    def __init__(
        self, inputs: Inputs, step: int, num_steps: int, full_steps: Sequence[int], parts: Parts | None = None
    ) -> None:
        self._inputs, self._parts = inputs, parts
        self.step, self.num_steps, self.full_steps = step, num_steps, tuple(full_steps)
        self.before: Tensor | None = None
        self.after: Tensor | None = None
        self.reported: dict[str, float | str | None] = {}
        self.leading: Tensor | None = None  # the output of the leading guidance branch at this step
        self.calls = step  # of the model so far, of all guidance branches that share what is kept
        self._draws = 0

    @property
    def since(self) -> int:
        """Steps since the last full one: 1 at the step after it, also at step 0."""
        return self.step - self.full_steps[-1] if self.full_steps else 1

    @property
    def is_last(self) -> bool:
        return self.step == self.num_steps - 1

    @property
    def parts(self) -> Parts:
        """UserError for a model that is called without."""
        if self._parts is None:
            raise UserError(
                f"{type(self._inputs.model).__name__} hands no Parts to its steps, which this method needs; "
                "see docs/backbones.md"
            )
        return self._parts

    @property
    def latents(self) -> Tensor:
        """The model's input, (B, C, …, H, W), or patches of it (B, L, C · patch) where the model takes it apart."""
        return self.parts.latents

    def on_grid(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L, D) in their rows and columns, (B, D, …, rows, columns); UserError where processes share them."""
        if tokens.shape[1] != math.prod(self.grid):
            raise UserError(
                f"this method looks at tokens in rows and columns, and of the {math.prod(self.grid)} tokens "
                f"{tokens.shape[1]} are here: processes share them; take another method or signal, or one process a sample"
            )
        return tokens.unflatten(1, self.grid).movedim(-1, 1)

    def latent_image(self) -> Tensor:
        """The model's input (B, C, …, H, W); where its calls are given patches alone, as FLUX's are, those on their grid."""
        return self.image(self.latents)

    def image(self, values: Tensor) -> Tensor:
        """Latents or outputs of a call (B, C, …, H, W), of which it may have patches (B, L, C · patch), as `latent_image`."""
        if values.ndim != 3:
            return values
        image, patch = self.on_grid(values), self._patch
        if not patch:
            return image
        image = image.unflatten(1, (-1, *patch))  # (B, C, patch, grid)
        axes = [axis for i in range(len(patch)) for axis in (2 + len(patch) + i, 2 + i)]
        sizes = [count * size for count, size in zip(self.grid, patch, strict=True)]
        return image.permute(0, 1, *axes).reshape(*image.shape[:2], *sizes)

    def as_call(self, image: Tensor) -> Tensor:
        """What `image` made of latents or outputs, as the call has them."""
        if self.latents.ndim != 3:
            return image
        for axis, size in enumerate(reversed(self._patch)):
            image = image.unflatten(-1 - 2 * axis, (-1, size))  # (B, C, …, grid, patch) from the last axis on
        axes = range(2, image.ndim)
        split = [*axes[::2], 1, *axes[1::2]] if self._patch else [*axes, 1]
        return image.permute(0, *split).flatten(1 + len(self.grid)).flatten(1, len(self.grid))

    @property
    def _patch(self) -> list[int]:
        """Sizes of the patches that a call takes latents apart into; none where it was given them so."""
        shape = self._inputs.latents.shape
        return [size // count for size, count in zip(shape[2:], self.grid, strict=True)] if len(shape) > 3 else []

    @cached_property
    def _modulated(self) -> Tensor:
        return self.parts.modulated()

    def modulated(self) -> Tensor:
        """Tokens after the first norm, shift and scale of block 0 (B, L, D)."""
        self.reported["looked_at"] = "modulated"
        return self._modulated

    def added(self) -> Tensor:
        """What the first blocks add to the tokens (B, L, D)."""
        assert self.before is not None, "the schedule has first_blocks"
        assert self.after is not None, "the schedule has first_blocks"
        return self.after - self.before

    def time_signal(self, name: str) -> Tensor:
        """What this step's time is embedded as, by one of the model's names for it; UserError for another."""
        signals = self._inputs.time_signals
        if name not in signals:
            kind = type(self._inputs.model).__name__
            raise UserError(f"{kind} has no signal {name!r} of the time; it has {', '.join(signals)}")
        return signals[name][self.step]

    @property
    def timestep(self) -> float:
        return float(self._inputs.timesteps[self.step])

    @property
    def training_time(self) -> float:
        """This step's timestep as training counts it, from 1000, noise, to 0."""
        span = getattr(self._inputs.model, "TIME_SPAN", TRAINING_SPAN)
        return self.timestep * (TRAINING_SPAN / span)

    @property
    def branches(self) -> int:
        """Of guidance, with model calls of their own."""
        return self._inputs.branches

    @property
    def kinds(self) -> set[str]:
        """Of the model's sites."""
        return set(getattr(self._inputs.model, "SITE_KINDS", {}).values())

    @property
    def model_name(self) -> str:
        return type(self._inputs.model).__name__

    def noise_level(self) -> tuple[float, float]:
        """Scale of the data and of the noise in this step's latents."""
        return self._inputs.noise_levels[self.step]

    @property
    def grid(self) -> tuple[int, ...]:
        """Frames (of videos), rows and columns of the tokens."""
        return self._inputs.grid

    def random(self, length: int) -> Tensor:
        """Numbers in [0, 1), (B, length), of a row's own latents, this step and how many were asked for in it before."""
        seeds, self._draws = self._inputs.row_seeds, self._draws + 1
        number = mixed(seeds + (self.step << 32) + self._draws)
        values = mixed(number[:, None] + torch.arange(length, device=seeds.device))
        return (values & (1 << 24) - 1).float() / (1 << 24)

    def change(self, new: Tensor, old: Tensor) -> float:
        """mean |new - old| / mean |old| over everything, in float32; of all processes that share the tokens."""
        moved, size = self.sums((new.float() - old.float()).abs(), old.float().abs())
        return moved / size if size else (0.0 if not moved else float("inf"))

    def sums(self, *values: Tensor) -> list[float]:
        """Sums over everything, of all processes that share the tokens; they are brought to the host together."""
        return self._inputs.total(torch.stack([value.sum(dtype=torch.float64) for value in values])).tolist()

    def note(self, text: str) -> None:
        """Put a remark into the record of the step."""
        self.reported["note"] = check_kind("note", text, str)

    def report(self, **numbers: float) -> None:
        """Put numbers into the record of the step; what is not finite as None."""
        for name, number in numbers.items():
            self.reported[name] = float(number) if abs(number) < float("inf") else None
