"""What stands at a budget of full steps beside LoopSeer, and what each row is there to show. Naming needs no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cache_dic import PRESETS, UserError, make_cache
from cache_dic.plan import describe_steps
from evaluation.beyond.calibrations import Calibration
from evaluation.beyond.rivals import LEAST_SHARE, OURS, TAYLORSEER
from evaluation.calibration import even_steps
from evaluation.variants import BASELINES, UNCACHED, Setup, Variant

PUBLISHED, EVEN, ON_LIST, FITTED = "published rule", "even", "on the list", "fit on the published list"
FEWER, RIVAL, RIVAL_ON_LIST = "fewer steps", "other method", "other method on the list"
ROLES = {
    OURS: "LoopSeer",
    PUBLISHED: "TaylorSeer's published rule with as many full steps, at its published order",
    EVEN: "TaylorSeer, full steps evenly spaced",
    ON_LIST: "TaylorSeer on LoopSeer's full steps: what the schedule gives",
    FITTED: "LoopSeer's forecast fitted for the published rule's full steps: what the forecast gives",
    FEWER: "no cache and fewer steps",
    RIVAL: "the best other published method at its settings of nearest cost",
    RIVAL_ON_LIST: "the best other published forecast on LoopSeer's full steps",
}
"""What a row is at a budget."""
WHOLE = "the whole method"
"""Of a study, LoopSeer as it ships."""
OF_LIST = (ON_LIST, RIVAL_ON_LIST)
"""Roles of baselines that have LoopSeer's full steps."""
REFERENCE_INTERVAL = 4
"""Of the published setting whose quality LoopSeer is to reach with fewer full steps."""


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A way to sample in its role at a budget."""

    role: str
    variant: Variant


def cached(name: str, series: str, method: str, setup: Setup, **settings: Any) -> Variant:
    """A method with some settings under a name for tables; where it cannot be had, the variant says why."""
    try:
        cache = make_cache(method, preset=setup.package, model=setup.model, **settings)
        cache.plan(setup.num_steps)
    except UserError as error:
        return Variant(label=name, series=series, error=str(error))
    return Variant(label=cache.label, name=name, series=series, form=cache.engine, cache=cache)


def ours(one: Calibration, setup: Setup, name: str | None = None) -> Variant:
    return cached(name or f"{OURS}-{one.count}", OURS, OURS, setup, calibration=one.setting)


def published_list(setup: Setup, count: int) -> tuple[int, ...]:
    """TaylorSeer's rule with so many full steps."""
    from evaluation.search import published_steps

    return published_steps(setup.num_steps, count, PRESETS[setup.package].warmup_steps)


def fixed_rows(one: Calibration, fitted: Calibration | None, setup: Setup) -> Iterator[Placed]:
    """LoopSeer and TaylorSeer with as many full steps; fitted: LoopSeer's calibration for the published list, or None.

    UserError for one that is for another list.
    """
    count = one.count
    yield Placed(role=OURS, variant=ours(one, setup))
    lists: dict[str, Sequence[int]] = {
        PUBLISHED: published_list(setup, count),
        EVEN: even_steps(setup.num_steps, count),
        ON_LIST: one.full_steps,
    }
    for role, full_steps in lists.items():
        name, series = f"taylorseer-{role.replace(' ', '-')}-{count}", f"taylorseer, {role}"
        yield Placed(role=role, variant=cached(name, series, TAYLORSEER, setup, full_steps=list(full_steps)))
    if fitted is not None:
        if fitted.full_steps != tuple(lists[PUBLISHED]):
            raise UserError(
                f"calibration {fitted.path} is called one for the published rule's full steps, "
                f"{describe_steps(lists[PUBLISHED])}, and has {describe_steps(fitted.full_steps)}; give it another name"
            )
        yield Placed(role=FITTED, variant=ours(fitted, setup, f"{OURS}-published-{count}"))


def fewer_steps(ratio: float, setup: Setup) -> Iterator[Placed]:
    """The model's solver, and others that it has, with as many steps as come nearest to a FLOPs ratio."""
    able = [count for count in range(1, setup.num_steps) if setup.num_steps / count >= LEAST_SHARE * ratio]
    count = min(able, key=lambda count: abs(setup.num_steps / count / ratio - 1))
    for solver in dict.fromkeys([setup.solver, *setup.solvers]):
        other = {} if solver == setup.solver else {"solver": solver}
        series = BASELINES if not other else f"{BASELINES}, {solver}"
        name = f"{series.replace(', ', '-')}-{count}"
        changes = {"num_steps": count, **other}
        variant = Variant(label=name, series=series, changes=changes, cache=make_cache(UNCACHED))
        yield Placed(role=FEWER, variant=variant)


def reference(setup: Setup) -> Variant:
    """TaylorSeer at the published setting that is to be reached with fewer full steps."""
    name = f"taylorseer-N{REFERENCE_INTERVAL}"
    return cached(name, "taylorseer, own interval", TAYLORSEER, setup, interval=REFERENCE_INTERVAL)
