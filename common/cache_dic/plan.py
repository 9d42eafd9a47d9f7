"""What is forecast from what, and what is live when: of a schedule that is known before the first step, worked out whole
(`Plan`); of one that is decided while sampling, as it goes (`OpenPlan`)."""

import hashlib
import heapq
import json
from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Real
from typing import Any

from cache_dic.errors import UserError, code_of, is_ours, run_of_user_code, shown, source_of
from cache_dic.forecast import Forecaster
from cache_dic.settings import json_value, plain, values_of

MAX_WEIGHT = 2.0**24
"""The largest weight of a forecast: float32 rounds a feature to one part in 2^24, so past it the rounding alone is as large
as the feature. Taylor's weights stay below the interval on its own schedule; Newton's reach 10^6 at order 4 and interval 40."""


Weight = Any
"""A number for all sites, or what holds one for each site (sites, 1), or for each site and channel (sites, D)."""

Row = dict[int, Weight]
"""By full step, its weight in a forecast."""


def weights_of(forecaster: Forecaster, so_far: Sequence[int], step: int, method: str | None = None) -> Row:
    """What a forecaster gives for a step after those full steps, checked.

    UserError if it fails, or gives anything but numbers up to MAX_WEIGHT, or tensors (sites, 1) or (sites, D) of them. Zeros
    are left out but for a forecaster with bands, whose other band may need those features.
    """
    name = type(forecaster).__name__
    who = f"{name} of method {method!r}" if method else name
    file, line = source_of(type(forecaster))
    place = f" ({file}:{line})" if file and not is_ours(file) else ""
    with run_of_user_code(f"{who} failed at step {step}", file, line):
        given = forecaster.weights(so_far, step)
    if isinstance(given, str | bytes | Mapping) or not (hasattr(given, "__getitem__") and hasattr(given, "__len__")):
        raise UserError(f"{who} gave {shown(given)} for step {step}, where a list of weights is wanted{place}")
    with run_of_user_code(f"{who} failed at step {step}", file, line):
        row = [plain(weight) for weight in given]
    if not 1 <= len(row) <= len(so_far):
        raise UserError(
            f"{who} gave {len(row)} weights for step {step} after full steps ({describe_steps(so_far, ', ')}); "
            f"between 1 and {len(so_far)} are possible{place}"
        )
    for m, weight in zip(so_far[-len(row) :], row, strict=True):
        if not _is_weight(weight):
            raise UserError(
                f"{who} gave {shown(weight)} as the weight of full step {m} for step {step}, where a number within "
                f"±{MAX_WEIGHT:.0f} is wanted; a smaller order or interval gives smaller weights{place}"
            )
    return {
        m: float(w) if isinstance(w, Real) else w
        for m, w in zip(so_far[-len(row) :], row, strict=True)
        if magnitude(w) != 0 or hasattr(forecaster, "bands")
    }


def _is_weight(weight: Any) -> bool:
    if getattr(weight, "ndim", 0) == 2:
        return magnitude(weight) <= MAX_WEIGHT
    return isinstance(weight, Real) and not isinstance(weight, bool) and bool(-MAX_WEIGHT <= weight <= MAX_WEIGHT)  # type: ignore[operator]


def magnitude(weight: Weight) -> float:
    """|weight|, the largest where it differs by site."""
    return float(abs(weight) if isinstance(weight, Real) else abs(weight).max())


def exact(weight: Weight) -> str:
    """What tells weights apart to the last bit."""
    if isinstance(weight, float):
        return weight.hex()
    return hashlib.sha256(json.dumps(weight.tolist()).encode()).hexdigest()


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
    weights: dict[int, Row] = field(init=False, repr=False, compare=False)
    foreseen = True

    def __post_init__(self) -> None:
        table: dict[int, Row] = {}
        so_far: tuple[int, ...] = ()
        for step in self.predicted_steps:
            count = bisect_left(self.full_steps, step)
            if count != len(so_far):
                so_far = self.full_steps[:count]
            table[step] = weights_of(self.forecaster, so_far, step, self.method)
        object.__setattr__(self, "weights", table)

    def is_full(self, step: int) -> bool:
        return step in self._full

    def row(self, step: int) -> Row:
        """The weights of full steps in the forecast of `step`."""
        return self.weights[step]

    def serves(self, full_step: int) -> bool:
        """Whether any later step is forecast from this one."""
        return bool(self.targets[full_step])

    def is_read_from(self, full_step: int, step: int) -> bool:
        """Whether a forecast of `step` or of a later one reads this full step."""
        return next(reversed(self.targets[full_step]), -1) >= step

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

    @property
    def least_full(self) -> int:
        """The fewest full steps that a run may have."""
        return len(self.full_steps)

    @cached_property
    def max_weight(self) -> float:
        """The largest |weight|, 0 without forecasts: what the errors of features are multiplied by, at most."""
        return max((magnitude(weight) for row in self.weights.values() for weight in row.values()), default=0.0)

    @cached_property
    def by_site(self) -> bool:
        """Whether weights differ by site or channel."""
        return any(not isinstance(weight, float) for row in self.weights.values() for weight in row.values())

    def claim(self) -> dict[str, Any]:
        """What samples depend on: the number of steps, the full steps, and a digest of the weights of every forecast.

        The digest is of the exact numbers, wherever they come from, and tells nothing of `observed`. Bands are asked for while
        sampling: of those the settings stand there, and the code that a plugin brings.
        """
        rows = [
            [step, [[m, exact(weight)] for m, weight in self.weights[step].items()]] for step in self.forecast_steps
        ]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
        claim = {"num_steps": self.num_steps, "full_steps": list(self.full_steps), "forecast_weights": digest}
        if not hasattr(self.forecaster, "bands"):
            return claim
        return claim | {"bands": json_value(values_of(self.forecaster))} | code_of(type(self.forecaster))

    @cached_property
    def targets(self) -> dict[int, Row]:
        """targets[m][step]: the same weights seen from full step m, the later steps that its features serve, ascending."""
        table: dict[int, Row] = {m: {} for m in self.full_steps}
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


class OpenPlan:
    """A run whose full steps are decided while it samples: they are added as they are taken, from the first on.

    horizon: the most forecasts in a row that its schedule allows, None for no bound. rule, decider: name, settings and class of
    the schedule. The rest as in `Plan`.
    """

    foreseen = False
    by_site = False

    def __init__(
        self,
        num_steps: int,
        forecaster: Forecaster,
        *,
        horizon: int | None = None,
        observed: bool = False,
        method: str | None = None,
        rule: Mapping[str, Any] | None = None,
        decider: type = object,
    ) -> None:
        self.num_steps, self.forecaster, self.observed, self.method = num_steps, forecaster, observed, method
        self.horizon = num_steps - 1 if horizon is None else min(horizon, num_steps - 1)
        self.rule, self.decider = dict(rule or {}), decider
        self.full_steps: list[int] = []
        self.max_weight = 0.0

    def add(self, step: int) -> None:
        """`step` is a full one."""
        insort(self.full_steps, step)

    def row(self, step: int) -> Row:
        """The weights of full steps in the forecast of `step`."""
        so_far = tuple(self.full_steps[: bisect_left(self.full_steps, step)])
        row = weights_of(self.forecaster, so_far, step, self.method)
        if not all(isinstance(weight, float) for weight in row.values()):
            raise UserError(
                f"{type(self.forecaster).__name__} gave weights by site for step {step}; weights by site need full steps that "
                "are known before the run; take another schedule"
            )
        if len(so_far) > self.history and row.keys() - set(so_far[-self.history :]):
            raise UserError(
                f"{type(self.forecaster).__name__} reaches further back than {self.history} full steps at step {step}; where "
                "they are decided while sampling, a forecaster gives no more weights than after all earlier steps were full"
            )
        self.max_weight = max((self.max_weight, *map(magnitude, row.values())))
        return row

    def serves(self, full_step: int) -> bool:
        """Whether any later step may be forecast from this one."""
        return self.horizon > 0 and full_step < self.num_steps - 1

    def is_read_from(self, full_step: int, step: int) -> bool:
        """Whether a forecast of `step` or of a later one may read this full step."""
        return step < self.num_steps and full_step in self.full_steps[-self.history :]

    @cached_property
    def history(self) -> int:
        """The most full steps back that a forecast reaches."""
        most = max(1, self.num_steps - 1)
        return max(len(weights_of(self.forecaster, tuple(range(n)), n, self.method)) for n in {1, most})

    @property
    def least_full(self) -> int:
        """The fewest full steps that the horizon allows."""
        return -(-self.num_steps // (self.horizon + 1))

    def claim(self) -> dict[str, Any]:
        """What samples depend on: the number of steps, the rule of the schedule, the forecaster's weights, and the code of
        either that a plugin brings, since what it will answer is not known before."""
        most = max(1, self.num_steps - 1)
        rows = [
            [[m, exact(w)] for m, w in weights_of(self.forecaster, steps, step, self.method).items()]
            for steps, step in (((0,), most), (tuple(range(most)), most), (tuple(range(0, most, 3)), most))
        ]
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
        claim = {"num_steps": self.num_steps, "schedule": self.rule, "forecast_weights": digest}
        return claim | code_of(self.decider, type(self.forecaster))


AnyPlan = Plan | OpenPlan


def describe_steps(steps: Sequence[int], separator: str = " ") -> str:
    """Steps as text, 0-based: `0 1 5 9 … 49` keeps every number up to 20 of them."""
    texts = [str(s) for s in steps]
    return separator.join(texts if len(texts) <= 20 else [*texts[:10], "…", *texts[-4:]])
