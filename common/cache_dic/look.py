"""What a model offers between its embedding and its head, and what a schedule that decides while sampling may look at.

Everything is paid for when it is asked for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from cache_dic.errors import UserError
from cache_dic.site import Site


class Streams(NamedTuple):
    """The state of a model between two blocks."""

    x: Tensor
    """Tokens that reach the output (B, L, D)."""
    others: tuple[Tensor, ...] = ()
    """Tokens that do not, such as those of the text (B, L', D) each."""
    context: Any = None
    """What the blocks read and leave as it is: rotations, masks, texts."""


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
    """What a run was started with: the model, latents and conditions as its calls get them, timesteps (S,)."""

    model: Any
    latents: Tensor
    timesteps: Tensor
    conditions: Mapping[str, Any] = field(default_factory=dict)

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
        data, noise = self.ask("noise_levels", self.timesteps.double().cpu())
        return list(zip(data.tolist(), noise.tolist(), strict=True))

    @cached_property
    def grid(self) -> tuple[int, ...]:
        return self.ask("token_grid", self.latents, **self.conditions)

    def total(self, sums: Tensor) -> Tensor:
        """Sums over this process's tokens, added up over the processes that share them."""
        shard = getattr(self.model, "shard", None)
        return sums if shard is None or shard.size == 1 else shard.total(sums)


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
        """The model's input."""
        return self.parts.latents

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

    def noise_level(self) -> tuple[float, float]:
        """Scale of the data and of the noise in this step's latents."""
        return self._inputs.noise_levels[self.step]

    @property
    def grid(self) -> tuple[int, ...]:
        """Frames (of videos), rows and columns of the tokens."""
        return self._inputs.grid

    def change(self, new: Tensor, old: Tensor) -> float:
        """mean |new - old| / mean |old| over everything, in float32; of all processes that share the tokens."""
        moved, size = self.sums((new.float() - old.float()).abs(), old.float().abs())
        return moved / size if size else (0.0 if not moved else float("inf"))

    def sums(self, *values: Tensor) -> list[float]:
        """Sums over everything, of all processes that share the tokens; they are brought to the host together."""
        return self._inputs.total(torch.stack([value.sum(dtype=torch.float64) for value in values])).tolist()

    def report(self, **numbers: float) -> None:
        """Put numbers into the record of the step; what is not finite as None."""
        for name, number in numbers.items():
            self.reported[name] = float(number) if abs(number) < float("inf") else None
