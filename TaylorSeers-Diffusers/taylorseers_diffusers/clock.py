"""Which step of which run a call of the transformer belongs to, as the pipeline's scheduler has it.

Nothing is counted: a run is told by the list of timesteps that `set_timesteps` made for it, a step by the scheduler's index, or
by its timestep where the scheduler has none. So an interrupted run, another number of steps, or a start in the middle
(image to image) leave nothing behind.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cache_dic import UserError

SPAN = 1000.0
"""Timesteps of training."""

Reading = Callable[[Tensor], Tensor]

READINGS: tuple[Reading, ...] = (
    lambda t: t,
    lambda t: t / SPAN,
    lambda t: (SPAN - t) / SPAN,
    lambda t: SPAN - t,
)
"""What pipelines make of a scheduler's timestep before they give it to the transformer."""

NEARLY = 1e-2
"""Relative difference by which a timestep given to the transformer may miss the scheduler's, both in their own precision."""


@dataclass(frozen=True)
class Moment:
    """A step of a run: its number in the scheduler's list, the list (S,), and the noise levels where it is that of a flow.

    reading: what the pipeline makes of timesteps, None where it is something else. certain: False where it could be another of
    `READINGS`, as at the middle of the time, which t and 1000 - t are alike.
    """

    step: int
    timesteps: Tensor
    sigmas: Tensor | None
    reading: Reading | None
    certain: bool = True

    def argument(self, step: int, given: Tensor) -> Tensor:
        """The transformer's argument at another step, like the one `given` at this one; entries of another time stay."""
        assert self.reading is not None, "checked where gates of other steps are wanted"
        now, then = (self.reading(self.timesteps[s].to(given.device, given.dtype)) for s in (self.step, step))
        return torch.where((given - now).abs() <= NEARLY * now.abs().clamp(min=1e-3), then.to(given.dtype), given)

    def is_known(self, given: Tensor) -> bool:
        """Whether every entry of the argument is at this step's time or without noise, so that others' are known, too."""
        assert self.reading is not None, "checked where gates of other steps are wanted"
        entries = given.detach().flatten().double().cpu()
        times = torch.stack([self.timesteps[self.step].double().cpu(), torch.zeros((), dtype=torch.float64)])
        wanted = self.reading(times)[:, None]
        return bool(((entries - wanted).abs() <= NEARLY * wanted.abs().clamp(min=1e-3)).any(dim=0).all())


class Clock:
    """The schedulers of pipelines that share a transformer."""

    def __init__(self) -> None:
        self._pipelines: list[weakref.ref[Any]] = []
        self._seen: weakref.WeakKeyDictionary[Any, Tensor] = weakref.WeakKeyDictionary()  # the list that each had last
        self._current: Any = None
        self._last: Moment | None = None

    def add(self, pipe: Any) -> None:
        """A pipeline, whose scheduler tells a run once `set_timesteps` has been called."""
        if all(held is not pipe for held in self.pipelines):
            self._pipelines.append(weakref.ref(pipe))
            scheduler = getattr(pipe, "scheduler", None)
            if scheduler is not None and getattr(scheduler, "num_inference_steps", None) is None:
                self._seen[scheduler] = getattr(scheduler, "timesteps", None)

    @property
    def pipelines(self) -> list[Any]:
        """Those that are still there."""
        return [pipe for held in self._pipelines if (pipe := held()) is not None]

    def now(self, given: Tensor) -> Moment:
        """The step that the transformer is called for with this timestep; UserError where no scheduler is at it.

        Within a run whose scheduler has an index the timestep is not read, which a device would be waited for; `check` does.
        It is until there is one reading of it. Of several that of the step before stands; at first one by which a run begins.
        """
        schedulers, last, readings = self._set_up(), self._last, READINGS
        if last is not None and schedulers[0].timesteps is not last.timesteps:
            last = None
        if last is not None:
            step = _index(schedulers[0])
            if step is not None and step < len(last.timesteps) and (last.certain or step == last.step):
                return replace(last, step=step)
            if last.certain and last.reading is not None:
                readings = (last.reading,)
        value = _first(given)
        found = [(scheduler, *match) for scheduler in schedulers for match in _matches(scheduler, value, readings)]
        if not found:
            raise _nowhere(value)
        scheduler, reading, at = min(
            found, key=lambda match: (match[1] is None, match[2] > 0 if last is None else match[1] is not last.reading)
        )
        self._current, timesteps = scheduler, scheduler.timesteps
        sigmas = getattr(scheduler, "sigmas", None)
        is_flow = sigmas is not None and not hasattr(scheduler, "alphas_cumprod") and len(sigmas) >= len(timesteps)
        certain = sum(match[0] is scheduler for match in found) == 1
        self._last = Moment(at, timesteps, sigmas[: len(timesteps)] if is_flow else None, reading, certain)
        return self._last

    def check(self, moment: Moment, given: Tensor) -> None:
        """UserError where the transformer was called at another timestep than the scheduler is at."""
        if moment.reading is None:
            return
        value, here = _first(given), moment.timesteps[moment.step].to(torch.float64)
        if not _near(float(moment.reading(here)), value):
            raise _nowhere(value)

    def ended(self) -> None:
        """The run is over: a call without another one is none of a pipeline's."""
        self._current = self._last = None

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor] | None:
        """Scale of data and noise at timesteps (S,) of a scheduler of diffusion; None of another."""
        products = getattr(self._current, "alphas_cumprod", None)
        if products is None:
            return None
        kept = products.double().cpu()[timesteps.long().cpu().clamp(0, len(products) - 1)]
        return kept.sqrt(), (1 - kept).sqrt()

    def _set_up(self) -> list[Any]:
        """Schedulers whose timesteps were set since the last call, or else the one of the run under way."""
        schedulers = list(
            {id(s): s for pipe in self.pipelines if (s := getattr(pipe, "scheduler", None)) is not None}.values()
        )
        fresh = [s for s in schedulers if getattr(s, "timesteps", None) is not self._seen.get(s)]
        for scheduler in fresh:
            self._seen[scheduler] = scheduler.timesteps
        if fresh:
            return fresh
        if not any(self._current is scheduler for scheduler in schedulers):
            raise UserError(
                "the transformer was called outside of a run of a pipeline that the cache is enabled for, whose scheduler "
                "would tell the step; enable() it for the pipeline that you call, too, or disable() it first"
            )
        return [self._current]


def _index(scheduler: Any) -> int | None:
    """The step that a scheduler is at, where it has an index."""
    step = getattr(scheduler, "step_index", None)
    return getattr(scheduler, "begin_index", None) if step is None else step


def _first(given: Tensor) -> float:
    """The timestep (B,), or of tokens (B, L) of which some may be at another, without noise."""
    return float(given.detach().flatten()[0] if given.ndim < 2 else given.detach().max())


def _nowhere(value: float) -> UserError:
    return UserError(
        f"the transformer was called at timestep {value:g}, at which no scheduler of the pipelines with this cache is; "
        "enable the cache for the pipeline that you call, or call disable() before other uses of its transformer"
    )


def _matches(scheduler: Any, value: float, readings: Sequence[Reading]) -> list[tuple[Reading | None, int]]:
    """What makes the scheduler's timestep the transformer's, and the step; a step that is known stands without a reading."""
    timesteps, step = scheduler.timesteps.to(torch.float64), _index(scheduler)
    if step is not None and step >= len(timesteps):
        return []
    found: list[tuple[Reading | None, int]] = []
    for reading in readings:
        wanted = reading(timesteps)
        at = int((wanted - value).abs().argmin()) if step is None else step
        if _near(float(wanted[at]), value):
            found.append((reading, at))
    return found or ([] if step is None else [(None, step)])


def _near(wanted: float, value: float) -> bool:
    return abs(wanted - value) <= NEARLY * max(abs(wanted), 1e-3)
