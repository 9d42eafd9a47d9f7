"""A fixed schedule and a forecaster, worked out before the first step: what is forecast from what, and what is live when."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cache_dic.forecast import Forecaster


@dataclass(frozen=True)
class Plan:
    """Full steps of a run and the weights of every forecast.

    `observed` adds forecasts of full steps from those before them, for telemetry.
    """

    num_steps: int
    full_steps: tuple[int, ...]
    forecaster: Forecaster
    observed: bool = False

    def __post_init__(self) -> None:
        for step in self.predicted_steps:
            full, weights = self._before(step), self.forecaster.weights(self._before(step), step)
            if not 1 <= len(weights) <= len(full):
                raise ValueError(
                    f"{type(self.forecaster).__name__} gave {len(weights)} weights for step {step} after full steps "
                    f"{full}; between 1 and {len(full)} are possible"
                )

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

    def _before(self, step: int) -> tuple[int, ...]:
        return tuple(m for m in self.full_steps if m < step)

    @cached_property
    def weights(self) -> dict[int, dict[int, float]]:
        """weights[step][m]: weight of full step m in the forecast of `step`; zero weights are left out."""
        table = {}
        for step in self.predicted_steps:
            full = self._before(step)
            row = self.forecaster.weights(full, step)
            table[step] = {m: w for m, w in zip(full[-len(row) :], row, strict=True) if w != 0}
        return table

    @cached_property
    def targets(self) -> dict[int, dict[int, float]]:
        """targets[m][step]: the same weights seen from full step m, the later steps that its features serve."""
        table: dict[int, dict[int, float]] = {m: {} for m in self.full_steps}
        for step, row in self.weights.items():
            for m, weight in row.items():
                table[m][step] = weight
        return table

    @cached_property
    def history(self) -> int:
        """The most full steps back that a forecast reaches (order + 1 for Taylor), 0 without forecasts."""
        reach = [
            len(self._before(step)) - self._before(step).index(min(row)) for step, row in self.weights.items() if row
        ]
        return max(reach, default=0)

    @cached_property
    def slots(self) -> dict[int, int]:
        """An accumulator for each predicted step, reused once its step has passed; ascending first fit."""
        slots: dict[int, int] = {}
        live: dict[int, int] = {}  # predicted step -> slot
        for m in self.full_steps:
            live = {step: slot for step, slot in live.items() if step >= m}
            for step in self.targets[m]:
                if step not in live:
                    taken = set(live.values())
                    live[step] = next(slot for slot in range(len(taken) + 1) if slot not in taken)
                    slots[step] = live[step]
        return slots

    @cached_property
    def num_slots(self) -> int:
        """Accumulators alive at once: at most history · (interval - 1) for a periodic schedule."""
        return max(self.slots.values(), default=-1) + 1


def describe_steps(steps: Sequence[int]) -> str:
    """Steps as text, 0-based: `0 1 5 9 … 49` keeps every number up to 20 of them."""
    shown = [str(s) for s in steps]
    return " ".join(shown if len(shown) <= 20 else [*shown[:10], "…", *shown[-4:]])
