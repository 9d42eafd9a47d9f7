"""What: a forecaster gives the weights of the features at the last full steps, the same for every site.

    pred(step) = Σ_m weights(full_steps, step)[m] · F(full step m)

A forecaster is an object with `weights(full_steps, step)`: `full_steps` are all full steps so far, ascending, `step` a later
one. It returns one weight for each of the last K of them, oldest first; K ≥ 1 is its choice and may grow during a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer

MAX_ORDER = 20
"""The highest order of a forecast: differences of order 20 have long lost every digit of a float32 feature."""


class Forecaster(Protocol):
    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]: ...


class SmoothForecaster(Protocol):
    """One that has weights between steps, too."""

    def weights(self, full_steps: Sequence[int], step: float) -> Sequence[float]: ...


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """The latest feature as it is (FORA, arXiv 2407.01425)."""

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        return (1.0,)


@dataclass(frozen=True, kw_only=True)
class Taylor:
    """TaylorSeer (arXiv 2503.06923): backward differences for derivatives in a Taylor sum over step indices.

    Differences are divided by the latest gap only, as in the released code, so order 2 and up is not polynomial
    interpolation; `Newton` is. With `warmup_steps` w they are formed from step w - 1 on, one more order at each full step.
    """

    max_order: int = 1
    warmup_steps: int = 3

    def __post_init__(self) -> None:
        check_order(self.max_order)
        integer("warmup_steps", self.warmup_steps, at_least=1, at_most=MAX_STEPS)

    def weights(self, full_steps: Sequence[int], step: float) -> Sequence[float]:
        return taylor_sum(self.factors(full_steps), step - full_steps[-1])

    def factors(self, full_steps: Sequence[int]) -> list[list[float]]:
        """By order, a factor as weights of the last full steps, oldest first."""
        count = min(self.max_order + 1, len(full_steps))
        nodes = full_steps[-count:]
        # The recursion is linear in the features: run on unit vectors, its factors are the weights.
        units = [[float(i == j) for j in range(count)] for i in range(count)]
        factors: list[list[float]] = []
        for position, node in enumerate(nodes):
            gap = node - nodes[position - 1]
            differences = node > self.warmup_steps - 2
            factors = taylor_update(factors if differences else [], units[position], gap, self.max_order)
        return factors


@dataclass(frozen=True, kw_only=True)
class Newton:
    """Newton's divided differences over the last max_order + 1 full steps: the polynomial through those features.

    Exact for features polynomial in the step up to that degree, whatever the gaps; in Lagrange form.
    """

    max_order: int = 1

    def __post_init__(self) -> None:
        check_order(self.max_order)

    def weights(self, full_steps: Sequence[int], step: float) -> Sequence[float]:
        nodes = full_steps[-(self.max_order + 1) :]
        weights = []
        for node in nodes:
            weight = 1.0
            for other in nodes:
                if other != node:
                    weight *= (step - other) / (node - other)
            weights.append(weight)
        return weights


@dataclass(frozen=True, kw_only=True)
class Damped:
    """A forecast that is held back: for a step x after the last full one it is the forecaster's for damping · x.

    The term of order k is damping^k times as large, as HiCache (arXiv 2508.16984) contracts those of its sum; 1 changes none.
    """

    forecaster: SmoothForecaster
    damping: float

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        latest = full_steps[-1]
        return self.forecaster.weights(full_steps, latest + self.damping * (step - latest))


def taylor_update(factors: list[list[float]], feature: list[float], gap: int, max_order: int) -> list[list[float]]:
    """New factors after a full step (Eq. 6): order 0 is the feature, order i + 1 = (new order i - old order i) / gap.

    factors: old ones, lowest order first, empty to begin at order 0; all are vectors of one length.
    """
    new = [feature]
    for old in factors[:max_order]:
        new.append([(a - b) / gap for a, b in zip(new[-1], old, strict=True)])
    return new


def taylor_sum(factors: list[list[float]], offset: float) -> list[float]:
    """Σ_i factors[i] · offset^i / i!, the forecast `offset` steps after the last full one (Eq. 5)."""
    terms = [1.0]
    for order in range(1, len(factors)):
        terms.append(terms[-1] * (offset / order))
    return weighted_sum(terms, factors)


def weighted_sum(coefficients: Sequence[float], vectors: Sequence[Sequence[float]]) -> list[float]:
    """Σ_i coefficients[i] · vectors[i]; all vectors are of one length."""
    total = [0.0] * len(vectors[0])
    for coefficient, vector in zip(coefficients, vectors, strict=True):
        total = [t + coefficient * v for t, v in zip(total, vector, strict=True)]
    return total


def check_order(max_order: int) -> None:
    """UserError if a forecast cannot have this order; 0 reuses the latest feature."""
    integer("max_order", max_order, at_least=0, at_most=MAX_ORDER)
