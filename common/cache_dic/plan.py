"""A fixed schedule and a forecaster, worked out before the first step: what is forecast from what, and what is live when."""

import hashlib
import heapq
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

from cache_dic.errors import UserError, is_ours, run_of_user_code, shown, source_of
from cache_dic.forecast import Forecaster
from cache_dic.settings import plain

MAX_WEIGHT = 2.0**24
"""The largest weight of a forecast: float32 rounds a feature to one part in 2^24, so past it the rounding alone is as large
as the feature. Taylor's weights stay below the interval on its own schedule; Newton's reach 10^6 at order 4 and interval 40."""


@dataclass(frozen=True)
class Plan:
    """Full steps of a run and the weights of every forecast.

    `observed` adds forecasts of full steps from those before them, for telemetry. method: a name for messages.

    weights[step][m] is the weight of full step m in the forecast of `step`; zero weights are left out. They are asked of the
    forecaster once, here: UserError if it fails, or gives anything but numbers up to MAX_WEIGHT.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    forecaster: Forecaster
    observed: bool = False
    method: str | None = None
    weights: dict[int, dict[int, float]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        table: dict[int, dict[int, float]] = {}
        so_far: tuple[int, ...] = ()
        for step in self.predicted_steps:
            count = bisect_left(self.full_steps, step)
            if count != len(so_far):
                so_far = self.full_steps[:count]
            row = self._row(so_far, step)
            table[step] = {m: w for m, w in zip(so_far[-len(row) :], row, strict=True) if w != 0}
        object.__setattr__(self, "weights", table)

    def _row(self, so_far: tuple[int, ...], step: int) -> list[float]:
        """What the forecaster gives for a step, checked, as floats."""
        name = type(self.forecaster).__name__
        who = f"{name} of method {self.method!r}" if self.method else name
        source = source_of(type(self.forecaster))
        with run_of_user_code(f"{who} failed at step {step}", *source):
            given = self.forecaster.weights(so_far, step)
        if isinstance(given, str | bytes | Mapping) or not (
            hasattr(given, "__getitem__") and hasattr(given, "__len__")
        ):
            raise self._refusal(f"{who} gave {shown(given)} for step {step}, where a list of weights is wanted")
        with run_of_user_code(f"{who} failed at step {step}", *source):
            row = [plain(weight) for weight in given]
        if not 1 <= len(row) <= len(so_far):
            raise self._refusal(
                f"{who} gave {len(row)} weights for step {step} after full steps ({describe_steps(so_far, ', ')}); "
                f"between 1 and {len(so_far)} are possible"
            )
        for m, weight in zip(so_far[-len(row) :], row, strict=True):
            if not isinstance(weight, Real) or isinstance(weight, bool) or not abs(weight) <= MAX_WEIGHT:  # type: ignore[operator]
                raise self._refusal(
                    f"{who} gave {shown(weight)} as the weight of full step {m} for step {step}, where a number within "
                    f"±{MAX_WEIGHT:.0f} is wanted; a smaller order or interval gives smaller weights"
                )
        return [float(weight) for weight in row]

    def _refusal(self, text: str) -> UserError:
        file, line = source_of(type(self.forecaster))
        return UserError(f"{text} ({file}:{line})" if file and not is_ours(file) else text)

    def is_full(self, step: int) -> bool:
        return step in self._full

    @cached_property
    def _full(self) -> frozenset[int]:
        return frozenset(self.full_steps)

    @cached_property
    def forecast_steps(self) -> tuple[int, ...]:
        return tuple(s for s in range(self.num_steps) if not self.is_full(s))

    @cached_property
    def predicted_steps(self) -> tuple[int, ...]:
        """Forecast steps; with `observed`, every step after the first."""
        return tuple(range(1, self.num_steps)) if self.observed else self.forecast_steps

    @cached_property
    def max_weight(self) -> float:
        """The largest |weight|, 0 without forecasts: what the errors of features are multiplied by, at most."""
        return max((abs(weight) for row in self.weights.values() for weight in row.values()), default=0.0)

    def claim(self) -> dict[str, Any]:
        """What samples depend on: the number of steps, the full steps, and a digest of the weights of every forecast.

        The digest is of the exact numbers, wherever they come from, and tells nothing of `observed`.
        """
        rows = [[step, [[m, weight.hex()] for m, weight in self.weights[step].items()]] for step in self.forecast_steps]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
        return {"num_steps": self.num_steps, "full_steps": list(self.full_steps), "forecast_weights": digest}

    @cached_property
    def targets(self) -> dict[int, dict[int, float]]:
        """targets[m][step]: the same weights seen from full step m, the later steps that its features serve, ascending."""
        table: dict[int, dict[int, float]] = {m: {} for m in self.full_steps}
        for step, row in self.weights.items():
            for m, weight in row.items():
                table[m][step] = weight
        return table

    @cached_property
    def history(self) -> int:
        """The most full steps back that a forecast reaches (order + 1 for Taylor), 0 without forecasts."""
        reach = (
            bisect_left(self.full_steps, step) - bisect_left(self.full_steps, min(row))
            for step, row in self.weights.items()
            if row
        )
        return max(reach, default=0)

    @cached_property
    def slots(self) -> dict[int, int]:
        """An accumulator for each predicted step, reused once its step has passed; ascending first fit."""
        slots: dict[int, int] = {}
        waiting: list[tuple[int, int]] = []  # heap of (predicted step, its slot)
        free: list[int] = []  # heap of slots that have been used
        used = 0
        for m in self.full_steps:
            while waiting and waiting[0][0] < m:
                heapq.heappush(free, heapq.heappop(waiting)[1])
            for step in self.targets[m]:
                if step not in slots:
                    if not free:
                        heapq.heappush(free, used)
                        used += 1
                    slots[step] = heapq.heappop(free)
                    heapq.heappush(waiting, (step, slots[step]))
        return slots

    @cached_property
    def num_slots(self) -> int:
        """Accumulators alive at once: at most history · (interval - 1) for a periodic schedule."""
        return max(self.slots.values(), default=-1) + 1


def describe_steps(steps: Sequence[int], separator: str = " ") -> str:
    """Steps as text, 0-based: `0 1 5 9 … 49` keeps every number up to 20 of them."""
    texts = [str(s) for s in steps]
    return separator.join(texts if len(texts) <= 20 else [*texts[:10], "…", *texts[-4:]])
