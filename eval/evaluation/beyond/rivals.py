"""Which settings of every other method stand beside a budget: those whose operations are nearest to it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_dic import METHODS, SCHEDULES, UserError, accepted_settings, make_cache
from cache_dic.forecast import Reuse
from cache_dic.partial import Partial
from evaluation.variants import UNCACHED, Setup, method_rows

LEAST_SHARE = 0.93
"""Of a budget's FLOPs ratio, that a rival must reach: fewer operations saved would not be a comparison at equal cost."""
NEAR = 1.07
"""Of a budget's FLOPs ratio, up to which a published row stands as it is and no other settings are looked for."""
KNOBS = ("interval", "threshold", "residual_diff_threshold", "base", "alpha")
"""Settings that move a method's operations, all of them upwards in FLOPs ratio: the first that a method has."""
MOST_INTERVAL = 16
FLAT = 2
"""Doublings in a row without effect, after which a method has reached what it can."""
DOUBLINGS, HALVINGS = 8, 6
"""Of a setting that is no interval: how often it is doubled or halved to enclose a budget, and then how often the enclosure is
cut in two."""
OURS, TAYLORSEER = "loopseer", "taylorseer"

Settings = Mapping[str, Any]
Ratio = Callable[[Settings], float | None]
"""The FLOPs ratio that a method has with some settings, None where it cannot be made with them."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Settings of a method for a budget, with their FLOPs ratio; or, with none, why there are none."""

    method: str
    settings: Settings | None = None
    ratio: float | None = None
    why: str | None = None


def nearest(found: Sequence[tuple[Settings, float]], target: float) -> tuple[Settings, float] | None:
    """The settings whose ratio is nearest to the target as a factor, of those that reach LEAST_SHARE of it."""
    able = [(settings, ratio) for settings, ratio in found if ratio >= LEAST_SHARE * target]
    return min(able, key=lambda one: abs(math.log(one[1] / target)), default=None)


def choose(
    method: str,
    rows: Sequence[Settings],
    knob: str | None,
    start: float | None,
    ratio: Ratio,
    target: float,
    earlier: Sequence[Settings] = (),
) -> Choice:
    """A method's settings for a FLOPs ratio.

    A published row that is near stands as it is, or else other settings that were tried `earlier` and are. Otherwise the
    method's knob is turned on what is nearest from either side, an interval through its whole range, another setting by
    doubling and halving its value from `start`.
    """
    known: list[tuple[Settings, float]] = []
    for given in (rows, earlier):
        known += [(row, made) for row in given if (made := ratio(row)) is not None]
        best = nearest(known, target)
        if best is not None and best[1] <= NEAR * target:
            return Choice(method=method, settings=best[0], ratio=best[1])
    if not known:
        return Choice(method=method, why="none of its settings can be had here")
    base = min(known, key=lambda one: abs(math.log(one[1] / target)))[0]
    if knob == "interval":
        turned: Sequence[float] = range(2, MOST_INTERVAL + 1)
        known += [(row, made) for value in turned if (made := ratio(row := {**base, knob: value})) is not None]
    elif knob is not None and start:
        known += _bisected(base, knob, base.get(knob, start), ratio, target)
    best = nearest(known, target)
    if best is None:
        return Choice(method=method, why=f"reaches {max(made for _, made in known):.2f}x")
    return Choice(method=method, settings=best[0], ratio=best[1])


def _bisected(base: Settings, knob: str, start: float, ratio: Ratio, target: float) -> list[tuple[Settings, float]]:
    """What was tried on the way to the target."""
    tried: list[tuple[Settings, float]] = []

    def at(value: float) -> float | None:
        settings = {**base, knob: float(f"{value:.4g}")}
        if (made := ratio(settings)) is not None:
            tried.append((settings, made))
        return made

    made = at(start)
    if made is None:
        return tried
    factor = 2.0 if made < target else 0.5
    low = high = start
    for _ in range(DOUBLINGS):
        before = [made for _, made in tried[-FLAT:]]
        low, high = (high, high * 2) if factor > 1 else (low / 2, low)
        reached = at(high if factor > 1 else low)
        if reached is None or (reached >= target) == (factor > 1):
            break
        if before == [reached] * FLAT:
            return tried
    for _ in range(HALVINGS):
        if (best := nearest(tried, target)) is not None and best[1] <= target / LEAST_SHARE:
            break
        middle = math.sqrt(low * high)
        reached = at(middle)
        low, high = (middle, high) if reached is not None and reached < target else (low, middle)
    return tried


# ------------------------------------------------------------------------------------------------------------- methods


def knob_of(method: str) -> str | None:
    accepted = accepted_settings(method)
    return next((knob for knob in KNOBS if knob in accepted), None)


def rivals(setup: Setup) -> dict[str, list[dict[str, Any]]]:
    """Published rows, or those of the usual intervals, of every other method that is defined for a model and has some.

    TaylorSeer has rows of its own at every budget.
    """
    names = [name for name in METHODS if name not in (UNCACHED, OURS, TAYLORSEER)]
    return {name: rows for name in names if (rows := method_rows(name, setup))}


def forecasters(setup: Setup) -> list[str]:
    """The methods among `rivals` that forecast on any list of full steps, each kind of forecast once."""
    seen: set[tuple[Any, str]] = set()
    found = []
    for name in rivals(setup):
        method = METHODS[name]
        rule = SCHEDULES[method.schedule]
        decides = isinstance(rule, type) or issubclass(method.forecaster, Partial)
        reuses_again = method.forecaster is Reuse and (Reuse, method.engine) in seen
        if decides or reuses_again:
            continue
        seen.add((method.forecaster, method.engine))
        found.append(name)
    return found


def start_of(method: str, setup: Setup, row: Settings, knob: str) -> float | None:
    """The value of a method's knob where a row does not say it; None where it cannot be made."""
    try:
        cache = make_cache(method, preset=setup.package, model=setup.model, **row)
    except UserError:
        return None
    values = {**vars(cache.forecaster), **cache.schedule_values}
    value = values.get(knob)
    return float(value) if isinstance(value, int | float) else None
