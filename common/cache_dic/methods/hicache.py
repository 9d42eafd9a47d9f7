"""HiCache (arXiv 2508.16984): TaylorSeer's factors on Hermite polynomials of a contracted argument instead of powers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cache_dic.forecast import Taylor, weighted_sum
from cache_dic.registry import register
from cache_dic.settings import number


@dataclass(frozen=True, kw_only=True)
class HiCache(Taylor):
    """Σ_i c^i H_i(c x) / i! · F^(i), x steps after the last full one; factors F^(i), warm-up and schedule are TaylorSeer's.

    contraction: c, in (0, 1]. It damps Taylor's sum: order 1 takes 2 c² of its slope, half of it at 0.5 and all of it at √½.
    The paper says 0.5, the released launch scripts 0.6 and 0.7. There c x is rounded to the features' dtype; here it is not.
    """

    contraction: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        number("contraction", self.contraction, above=0, at_most=1)

    def weights(self, full_steps: Sequence[int], step: float) -> Sequence[float]:
        factors, c = self.factors(full_steps), self.contraction
        values = hermite(c * (step - full_steps[-1]), len(factors))
        return weighted_sum([c**i * value / math.factorial(i) for i, value in enumerate(values)], factors)


def hermite(u: float, count: int) -> list[float]:
    """H_0(u) … H_{count - 1}(u), the physicists' polynomials: H_{i+1} = 2 u H_i - 2 i H_{i-1}."""
    values, previous = [1.0], 0.0
    for i in range(count - 1):
        values.append(2 * u * values[-1] - 2 * i * previous)
        previous = values[-2]
    return values


PRESETS = {
    "flux": (
        {"interval": 6, "max_order": 1, "warmup_steps": 3, "contraction": 0.5},
        {"interval": 6, "max_order": 2, "warmup_steps": 3, "contraction": 0.6},
        {"interval": 7, "max_order": 2, "warmup_steps": 3, "contraction": 0.7},
    ),
}
register("hicache", interval=6, warmup_steps=3, presets=PRESETS, paper="arXiv 2508.16984")(HiCache)
