"""Guidance branches of a sampling, each with a run of its own, and which of them a call belongs to."""

from collections.abc import Hashable
from dataclasses import dataclass, field

from torch import Tensor

from cache_dic import Run
from taylorseers_diffusers.model import CachedTransformer
from taylorseers_diffusers.reports import Record

TIME_NAMES = ("timestep", "timesteps", "t")
"""Arguments by which transformers take the timestep."""

Key = tuple[Hashable, int]
"""Of a guidance branch: what its calls are made for, and which call of a step for that."""


@dataclass
class Branch:
    """A run, and the model as the run sees it; first: the step of the sampling that is its first one."""

    model: CachedTransformer
    run: Run
    first: int

    def fits(self, step: int, latents: Tensor) -> bool:
        """Whether its next step is at hand, for latents of the same form, and decided where another run decides."""
        before, leader = self.model.latents, self.run.leader
        return (
            step - self.first == len(self.run.steps)
            and not self.run.broken
            and (leader is None or len(leader.steps) > step - self.first)
            and (latents.shape, latents.dtype, latents.device) == (before.shape, before.dtype, before.device)
        )

    def record(self) -> Record:
        return {"first_step": self.first, **self.run.record()}


@dataclass(kw_only=True)
class Branches:
    """Those under way. step: the last that a call was made for; calls: how many it had so far, by what they are made for."""

    branches: dict[Key, Branch] = field(default_factory=dict)
    step: int = -1
    calls: dict[Hashable, int] = field(default_factory=dict)

    def key(self, step: int, made_for: Hashable) -> Key:
        """The branch that a call at a step belongs to."""
        if step != self.step:
            self.step, self.calls = step, {}
        number = self.calls.get(made_for, 0)
        self.calls[made_for] = number + 1
        return made_for, number
