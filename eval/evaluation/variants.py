"""What a comparison compares: every registered method at its presets, where features are kept, which steps are full, and the
baselines that cache nothing: the same sampler with fewer steps, and another solver with fewer steps.

A method that is registered joins by that alone. Naming needs no torch.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import ENGINE_NAMES, METHODS, SCHEDULES, UserError, compared_rows, make_cache
from cache_dic.errors import check_choice
from cache_dic.settings import label_part
from evaluation.backbones import shipped_schedules

if TYPE_CHECKING:
    from cache_dic import Cache
    from evaluation.families import Family

UNCACHED = "uncached"
BASELINES, FORMS, RULES, SEARCHED = "fewer-steps", "forms", "schedules", "searched"
GROUPS = {
    BASELINES: "no cache and fewer steps, with the model's own solver and others that it has",
    FORMS: "taylorseer with its features kept in every form",
    RULES: "taylorseer with every rule for full steps",
    SEARCHED: "taylorseer on the schedules that ship for the model",
}
"""What --methods takes beside names of methods and `all`."""
UNDEFINED_FORMS = {"dit": ("latent",)}  # DiT predicts a variance, too, which its input has not
LONG_LABEL = 36  # characters, above which a table names the settings alone that a method's rows differ in
PREDICTOR = "taylorseer"  # of the groups that hold it fixed


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to sample. label: of folders. name: of tables, shorter where the label lists many settings.

    series: what plots join to a line and tell by colour and marker, settings apart. form: where features are kept.
    groups: those of GROUPS that it belongs to. changes: of the sampling command's flags, by name. cache: None where it could
    not be made, for which `error` says why.
    """

    label: str
    name: str = ""
    series: str
    form: str | None = None
    groups: frozenset[str] = frozenset()
    changes: Mapping[str, Any] = field(default_factory=dict)
    cache: "Cache | None" = None
    error: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.label)


def choices() -> list[str]:
    """What --methods takes; methods of the user's own are among them once they are registered."""
    return ["all", *GROUPS, *(name for name in METHODS if name != UNCACHED)]


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The uncached run that variants change. package: of the model's backbone, a key of PRESETS.

    solver: that it uses; solvers: those that the model has, where it has a choice.
    """

    model: str
    package: str
    num_steps: int
    solver: str | None = None
    solvers: Sequence[str] = ()


def setup_of(args: argparse.Namespace, family: "Family") -> Setup:
    """Of a command line whose defaults are filled in."""
    return Setup(
        model=args.model,
        package=family.package,
        num_steps=args.num_steps,
        solver=getattr(args, "solver", None) if family.solvers else None,
        solvers=family.solvers,
    )


def variants(asked: Sequence[str], setup: Setup) -> list[Variant]:
    """The uncached run, and what is asked for, by `choices`; each label once. UserError for an unknown name.

    Of `all`, methods are left out that are not defined for the model or have no settings for it; one that is asked for by name
    says so in its row.
    """
    for name in asked:
        check_choice("method", name, choices())
    wanted = {*asked} if "all" not in asked else {*choices()}
    found = {UNCACHED: Variant(label=UNCACHED, series=UNCACHED, cache=make_cache(UNCACHED))}
    candidates: list[Variant] = []
    if BASELINES in wanted:
        candidates += _baselines(setup)
    for name in METHODS:
        if name in wanted and name != UNCACHED:
            rows = method_rows(name, setup)
            made = [_cached(name, setup, **settings) for settings in rows or [{}]]
            candidates += [one for one in made if one.error is None or rows or name in asked]
    if FORMS in wanted:
        forms = [engine for engine in ENGINE_NAMES if engine not in UNDEFINED_FORMS.get(setup.package, ())]
        for settings in _ends(method_rows(PREDICTOR, setup)):
            candidates += [_cached(PREDICTOR, setup, group=FORMS, **settings, engine=engine) for engine in forms]
    if RULES in wanted:
        candidates += _rules(setup)
    if SEARCHED in wanted:
        files = shipped_schedules(setup.model, setup.num_steps)
        candidates += [_cached(PREDICTOR, setup, group=SEARCHED, schedule=str(path)) for path in files]
    for one in candidates:
        before = found.setdefault(one.label, one)
        if before is not one:
            found[one.label] = replace(before, groups=before.groups | one.groups)
    return [*found.values()]


def method_rows(method: str, setup: Setup) -> list[dict[str, Any]]:
    """Settings of a method that a comparison shows of a model; none where it is not defined, or where none are known."""
    if {setup.model, setup.package} & METHODS[method].undefined.keys():
        return []
    return compared_rows(method, setup.package, setup.model)


def _ends(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first and the last of some rows, which are enough where something else varies."""
    return [rows[0], *rows[1:][-1:]]


def _cached(method: str, setup: Setup, *, group: str | None = None, **settings: Any) -> Variant:
    """A method with some settings; where they do not suit the model or the number of steps, the variant says why."""
    groups = frozenset([group] if group else [])
    try:
        cache = make_cache(method, preset=setup.package, model=setup.model, **settings)
        cache.plan(setup.num_steps)
    except UserError as error:
        label = "-".join(
            [method, *(f"{name}={value}" for name, value in settings.items() if isinstance(value, int | float | str))]
        )
        return Variant(label=label, series=method, form=settings.get("engine"), groups=groups, error=str(error))
    series = [method]
    if cache.engine != cache.own_engine:
        series.append(cache.engine)
    if cache.schedule != cache.own_schedule:
        series.append(f"schedule {cache.schedule}")
    short = cache.label
    if group == SEARCHED:
        short = f"{method}-searched-{Path(settings['schedule']).stem.removeprefix(setup.model.replace('/', '-') + '-')}"
    elif len(short) > LONG_LABEL:
        rows = method_rows(method, setup)
        varied = [key for key in settings if len(rows) < 2 or any(row.get(key) != rows[0].get(key) for row in rows)]
        short = "-".join([method, *(label_part(key, settings[key]) for key in varied)])
    return Variant(
        label=cache.label, name=short, series=", ".join(series), form=cache.engine, groups=groups, cache=cache
    )


def _rules(setup: Setup) -> Iterator[Variant]:
    """The fixed predictor with every fixed rule that its presets' settings are enough for."""
    for settings in _ends(method_rows(PREDICTOR, setup)):
        for rule in (name for name, made in SCHEDULES.items() if not isinstance(made, type)):
            one = _cached(PREDICTOR, setup, group=RULES, **settings, schedule=rule)
            if one.error is None:
                yield one


def _baselines(setup: Setup) -> Iterator[Variant]:
    """Runs without a cache of as many steps as the published settings compute in full, and of half of all."""
    counts = {setup.num_steps // 2}
    for settings in method_rows(PREDICTOR, setup):
        one = _cached(PREDICTOR, setup, **settings)
        if one.cache is not None:
            counts.add(one.cache.plan(setup.num_steps).least_full)
    cache = make_cache(UNCACHED)
    for solver in dict.fromkeys([setup.solver, *setup.solvers]):
        name = BASELINES if solver == setup.solver else f"{BASELINES}-{solver}"
        changes = {} if solver == setup.solver else {"solver": solver}
        for count in sorted((count for count in counts if 0 < count < setup.num_steps), reverse=True):
            yield Variant(
                label=f"{name}-{count}",
                series=name,
                groups=frozenset({BASELINES}),
                changes={"num_steps": count, **changes},
                cache=cache,
            )
