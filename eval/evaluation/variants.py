"""What a comparison compares: every registered method at its presets, where features are kept, which steps are full, and the
baselines that cache nothing: the same sampler with fewer steps, and another solver with fewer steps.

A method that is registered joins by that alone. Naming needs no torch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cache_dic import ENGINE_NAMES, METHODS, PRESETS, SCHEDULES, UserError, accepted_settings, make_cache
from cache_dic.errors import check_choice

if TYPE_CHECKING:
    from cache_dic import Cache

UNCACHED = "uncached"
BASELINES, FORMS, RULES = "fewer-steps", "forms", "schedules"
GROUPS = {
    BASELINES: "no cache and fewer steps, with the model's own solver and others that it has",
    FORMS: "taylorseer with its features kept in every form",
    RULES: "taylorseer with every rule for full steps",
}
"""What --methods takes beside names of methods and `all`."""
PREDICTOR = "taylorseer"  # of the groups that hold it fixed


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to sample.

    series: what plots join to a line and tell by colour and marker, settings apart. form: where features are kept.
    groups: those of GROUPS that it belongs to. changes: of the sampling command's flags, by name. cache: None where it could
    not be made, for which `error` says why.
    """

    label: str
    series: str
    form: str | None = None
    groups: frozenset[str] = frozenset()
    changes: Mapping[str, Any] = field(default_factory=dict)
    cache: "Cache | None" = None
    error: str | None = None


def choices() -> list[str]:
    """What --methods takes; methods of the user's own are among them once they are registered."""
    return ["all", *GROUPS, *(name for name in METHODS if name != UNCACHED)]


def variants(
    asked: Sequence[str], *, package: str, num_steps: int, solver: str | None, solvers: Sequence[str]
) -> list[Variant]:
    """The uncached run, and what is asked for, by `choices`; each label once.

    package: of the backbone, a key of PRESETS. solver: that the uncached run uses; solvers: others of the model's, where it has
    a choice. UserError for an unknown name.
    """
    for name in asked:
        check_choice("method", name, choices())
    wanted = {*asked} if "all" not in asked else {*choices()}
    found = {UNCACHED: Variant(label=UNCACHED, series=UNCACHED, cache=make_cache(UNCACHED))}
    candidates: list[Variant] = []
    if BASELINES in wanted:
        candidates += _baselines(package, num_steps, solver, solvers)
    for name in METHODS:
        if name in wanted and name != UNCACHED:
            rows = method_rows(name, package)
            candidates += [_cached(name, package, num_steps, **settings) for settings in rows]
    if FORMS in wanted:
        for settings in method_rows(PREDICTOR, package):
            candidates += [
                _cached(PREDICTOR, package, num_steps, group=FORMS, **settings, engine=engine)
                for engine in ENGINE_NAMES
            ]
    if RULES in wanted:
        candidates += _rules(package, num_steps)
    for one in candidates:
        before = found.setdefault(one.label, one)
        if before is not one:
            found[one.label] = replace(before, groups=before.groups | one.groups)
    return [*found.values()]


def method_rows(method: str, package: str) -> list[dict[str, Any]]:
    """Settings of a method that a comparison shows, for a backbone."""
    if "interval" in accepted_settings(method):
        return [{"interval": interval} for interval in PRESETS[package].compare_intervals]
    return [{}]


def _cached(method: str, package: str, num_steps: int, *, group: str | None = None, **settings: Any) -> Variant:
    """A method with some settings; where they do not suit the backbone or the number of steps, the variant says why."""
    form, rule = settings.get("engine", ENGINE_NAMES[0]), settings.get("schedule")
    series = ", ".join([method, *([form] if form != ENGINE_NAMES[0] else []), *([f"schedule {rule}"] if rule else [])])
    facts: dict[str, Any] = {"series": series, "form": form, "groups": frozenset([group] if group else [])}
    try:
        cache = make_cache(method, preset=package, **settings)
        cache.plan(num_steps)
    except UserError as error:
        label = "-".join([method, *(f"{name}={value}" for name, value in settings.items())])
        return Variant(label=label, error=str(error), **facts)
    return Variant(label=cache.label, cache=cache, **facts)


def _rules(package: str, num_steps: int) -> Iterator[Variant]:
    """The fixed predictor with every rule that its presets' settings are enough for."""
    for settings in method_rows(PREDICTOR, package):
        for rule in SCHEDULES:
            one = _cached(PREDICTOR, package, num_steps, group=RULES, **settings, schedule=rule)
            if one.error is None:
                yield one


def _baselines(package: str, num_steps: int, solver: str | None, solvers: Sequence[str]) -> Iterator[Variant]:
    """Runs without a cache of as many steps as the published settings compute in full, and of half of all."""
    counts = {num_steps // 2}
    for settings in method_rows(PREDICTOR, package):
        one = _cached(PREDICTOR, package, num_steps, **settings)
        if one.cache is not None:
            counts.add(len(one.cache.plan(num_steps).full_steps))
    cache = make_cache(UNCACHED)
    for other in dict.fromkeys([solver, *solvers]):
        name = BASELINES if other == solver else f"{BASELINES}-{other}"
        changes = {} if other == solver else {"solver": other}
        for count in sorted((count for count in counts if 0 < count < num_steps), reverse=True):
            yield Variant(
                label=f"{name}-{count}",
                series=name,
                groups=frozenset({BASELINES}),
                changes={"num_steps": count, **changes},
                cache=cache,
            )
