"""Multistep formulas of ordinary differential equations as forecasters: AB-Cache, and those that FoCa and HyCa choose from.

They are published for steps of one length. Here each is what the same formula says for any gaps: h and g are the latest gap
and the one before it, x the steps from the latest full one, to the forecast. At h = g = x the weights are the published ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cache_dic.errors import check_choice
from cache_dic.forecast import MAX_ORDER, Newton, weighted_sum
from cache_dic.registry import Settings, register
from cache_dic.settings import integer


@dataclass(frozen=True, kw_only=True)
class ABCache:
    """AB-Cache (arXiv 2504.10540): the output that makes the explicit and the implicit Adams formula of `order` agree.

    That is the polynomial through the last `order` outputs: 2, -1 one step on, then 3, -3, 1 and 4, -6, 4, -1. Outputs of full
    steps alone are taken, whatever their gaps: were forecasts taken as well, an error would return multiplied after every full
    step that comes alone. How the authors' code, which is not public, goes on from a forecast is not known.
    """

    order: int = 2

    def __post_init__(self) -> None:
        integer("order", self.order, at_least=1, at_most=MAX_ORDER)

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        return Newton(max_order=self.order - 1).weights(full_steps, step)


@dataclass(frozen=True, kw_only=True)
class Multistep:
    """One formula of `FORMULAS` on the last three features; the straight line through two, and reuse of one, while there are
    no more.

    "foca" is the predictor of FoCa (arXiv 2508.16211), "ab2" what its Heun correction makes of it; "tf", "ab2", "rk2", "bdf2"
    and "am" are HyCa's solvers (arXiv 2510.04188), which it chooses from by channel. How both go beyond one step is not public.
    """

    formula: str = "foca"

    def __post_init__(self) -> None:
        check_choice("formula", self.formula, FORMULAS)

    def weights(self, full_steps: Sequence[int], step: float) -> Sequence[float]:
        if len(full_steps) < 3:
            return Newton(max_order=1).weights(full_steps, step)
        oldest, previous, latest = full_steps[-3:]
        return FORMULAS[self.formula](step - latest, latest - previous, previous - oldest)[::-1]


Formula = Callable[[float, float, float], Sequence[float]]
"""(x, h, g) -> the weights of the last three features, newest first."""

LATEST = (1.0, 0.0, 0.0)


def _slopes(h: float, g: float) -> tuple[Sequence[float], Sequence[float]]:
    """Backward differences at the latest full step and at the one before it."""
    return (1 / h, -1 / h, 0.0), (0.0, 1 / g, -1 / g)


def tf(x: float, h: float, g: float) -> Sequence[float]:
    """The straight line through the last two features."""
    return weighted_sum((1.0, x), (LATEST, _slopes(h, g)[0]))


def ab2(x: float, h: float, g: float) -> Sequence[float]:
    """Adams-Bashforth of order 2 on backward differences; it is TaylorSeer of order 2."""
    return weighted_sum((1.0, x + x**2 / (2 * h), -(x**2) / (2 * h)), (LATEST, *_slopes(h, g)))


def rk2(x: float, h: float, g: float) -> Sequence[float]:
    """The slope over the last two gaps."""
    slope = 1 / (h + g)
    return weighted_sum((1.0, x), (LATEST, (slope, 0.0, -slope)))


def bdf2(x: float, h: float, g: float) -> Sequence[float]:
    """The second backward differentiation formula without its slope."""
    r = x / h
    return ((1 + r) ** 2 / (1 + 2 * r), -(r**2) / (1 + 2 * r), 0.0)


def foca(x: float, h: float, g: float) -> Sequence[float]:
    """The second backward differentiation formula with the slope of the parabola through three features at the latest one."""
    newer, older = _slopes(h, g)
    r, bend = x / h, h / (h + g)
    slope = weighted_sum((1 + bend, -bend), (newer, older))
    return weighted_sum((1.0, x * (1 + r) / (1 + 2 * r)), (bdf2(x, h, g), slope))


def am(x: float, h: float, g: float) -> Sequence[float]:
    """Adams-Moulton of order 3: the parabola through the slope towards `ab2`'s value and the last two slopes, integrated."""
    ahead = weighted_sum((1 / x, -1 / x), (ab2(x, h, g), LATEST))
    # ∫_0^x of the parabola through (x, ahead), (0, newer), (-h, older).
    a = x * (2 * x + 3 * h) / (6 * (x + h))
    b = x * (x + 3 * h) / (6 * h)
    c = -(x**3) / (6 * h * (x + h))
    return weighted_sum((1.0, a, b, c), (LATEST, ahead, *_slopes(h, g)))


FORMULAS: dict[str, Formula] = {"tf": tf, "ab2": ab2, "rk2": rk2, "bdf2": bdf2, "foca": foca, "am": am}

PRESETS: dict[str, dict[str, Sequence[Settings]]] = {
    "ab_cache": {"flux": ({"order": 2, "interval": 3}, {"order": 2, "interval": 6}, {"order": 4, "interval": 6})},
    "foca": {"flux": ({"interval": 6, "warmup_steps": 3}, {"interval": 4, "warmup_steps": 3})},
}
register(
    "ab_cache", engine="output", presets=PRESETS["ab_cache"], paper="arXiv 2504.10540", interval=6, warmup_steps=2
)(ABCache)
register("foca", presets=PRESETS["foca"], paper="arXiv 2508.16211", interval=6, warmup_steps=3)(Multistep)
