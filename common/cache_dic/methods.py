"""The registry of caching methods and `make_cache`, the way in.

A method is a forecaster with a schedule. To add one, write a frozen dataclass with `weights` and register it:

    @register("damped", schedule="taylorseer")
    @dataclass(frozen=True, kw_only=True)
    class Damped:
        damping: float = 0.5

        def weights(self, full_steps, step):
            ...

Its fields become settings of `make_cache("damped", damping=…)` and of every command's `--set damping=…`.
"""

import inspect
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, is_dataclass
from typing import TYPE_CHECKING, Any

from cache_dic.errors import UserError, check_choice, run_of_user_code, source_of, suggestion
from cache_dic.forecast import Forecaster, Newton, Reuse, Taylor
from cache_dic.presets import PRESETS
from cache_dic.schedule import MAX_STEPS, SCHEDULES, SEARCHED
from cache_dic.searched import is_schedule_file, read_schedule, rule_name
from cache_dic.settings import (
    GROUP_BYTES,
    check_kind,
    check_name,
    from_text,
    full_steps_tuple,
    init_fields,
    integer,
    plain,
)

if TYPE_CHECKING:
    import torch

    from cache_dic.cache import Cache


@dataclass(frozen=True)
class Method:
    """A forecaster class, its usual schedule, and defaults of the schedule's settings."""

    forecaster: type
    schedule: str
    defaults: dict[str, Any]


METHODS: dict[str, Method] = {}


def register(name: str, *, schedule: str = "taylorseer", **defaults: Any):
    """A class decorator that makes a forecaster a method called `name`; defaults are settings of its schedule.

    UserError for a name that is taken or cannot be part of a file's name, and for a class that is not a dataclass with
    `weights` or has a field that `make_cache` takes for itself.
    """
    check_name(name)
    check_choice("schedule", schedule, SCHEDULES)
    for part in name.split("-")[1:]:
        if part in SCHEDULES or re.fullmatch(r"[NWO]\d+", part):
            raise UserError(f"{part!r} in the name {name!r} reads as part of a label; choose another name")
    if name in METHODS:
        raise UserError(f"a method called {name!r} is registered already; choose another name")
    unknown = defaults.keys() - _schedule_settings(schedule).keys()
    if unknown:
        raise UserError(f"schedule {schedule!r} of method {name!r} has no setting {', '.join(sorted(unknown))}")

    def add(forecaster: type):
        if not isinstance(forecaster, type) or not is_dataclass(forecaster):
            raise UserError(f"method {name!r} is no dataclass; write @dataclass(…) between @register(…) and the class")
        if not callable(getattr(forecaster, "weights", None)):
            raise UserError(f"method {name!r}: class {forecaster.__name__} has no weights(self, full_steps, step)")
        reserved = {f.name for f in init_fields(forecaster)} & inspect.signature(make_cache).parameters.keys()
        if reserved:
            raise UserError(
                f"method {name!r}: {', '.join(sorted(reserved))} cannot be a field, every cache has that setting"
            )
        METHODS[name] = Method(forecaster, schedule, defaults)
        return forecaster

    return add


def accepted_settings(method: str, schedule: str | os.PathLike[str] | None = None) -> set[str]:
    """Names of the settings that `make_cache` takes for a method under a schedule (None: the method's own).

    Raises UserError for an unknown method or schedule. A schedule's file, which may stand for its name, is no setting.
    """
    check_choice("method", method, METHODS)
    rule = METHODS[method].schedule if schedule is None else rule_name(schedule)
    return {
        *(_schedule_settings(rule) if rule != SEARCHED else ()),
        *_forecaster_settings(method),
    }


def read_setting(method: str, name: str, text: str) -> Any:
    """The value that a setting written as text has for a method, by the type of the forecaster's field."""
    return from_text(text, _forecaster_settings(method).get(name))


def _schedule_settings(schedule: str) -> dict[str, Any]:
    """Annotations by name."""
    check_choice("schedule", schedule, SCHEDULES)
    parameters = inspect.signature(SCHEDULES[schedule]).parameters
    return {name: parameter.annotation for name, parameter in parameters.items() if name != "num_steps"}


def _forecaster_settings(method: str) -> dict[str, Any]:
    """Annotations by name."""
    return {f.name: f.type for f in init_fields(METHODS[method].forecaster)}


def make_cache(
    method: str = "taylorseer",
    *,
    preset: str | None = None,
    engine: str = "folded",
    schedule: str | os.PathLike[str] | None = None,
    accumulator_dtype: "torch.dtype | None" = None,
    group_bytes: int = GROUP_BYTES,
    static_shapes: bool = False,
    telemetry: bool = False,
    memory_limit: int | None = None,
    **settings: Any,
) -> "Cache":
    """A cache by the name of its method.

    preset: a backbone of `PRESETS`, whose published interval, warm-up and order stand where nothing else is asked for, and
    where a method of one's own does not say otherwise. schedule: a rule's name, or the file of a searched schedule, whose name
    ends in .json.
    settings: those of the method's forecaster (taylorseer: max_order, warmup_steps) and of its schedule (interval,
    warmup_steps; `explicit`: full_steps). `full_steps=…` alone implies the explicit schedule. Others as in `Cache` and
    `EngineSettings`. Raises UserError for an unknown method, preset, engine, schedule or setting, and for values of a wrong
    type or out of range.
    """
    from cache_dic.cache import Cache
    from cache_dic.engine import EngineSettings

    if schedule is None and "full_steps" in settings:
        schedule = "explicit"
    accepted = accepted_settings(method, schedule)
    chosen = METHODS[method]
    of_file = {"file": read_schedule(schedule)} if is_schedule_file(schedule) else {}
    schedule = chosen.schedule if schedule is None else rule_name(schedule)
    for name in settings:
        if name not in accepted:
            raise UserError(
                f"method {method!r} with schedule {schedule!r} has no setting {name!r}; "
                f"it accepts: {', '.join(sorted(accepted))}{suggestion(name, accepted)}"
            )
    if method == "uncached" and (settings or schedule != chosen.schedule):
        vain = ", ".join(settings) or f"schedule {schedule!r}"
        raise UserError(f"method 'uncached' computes every step; leave out {vain}, or name another method")
    usual = _preset_settings(preset, () if method == "uncached" else accepted, settings)
    own = {**_own_fields(method), **chosen.defaults}
    given = {**own, **usual, **settings} if method in SHIPPED else {**usual, **own, **settings}
    needed = [name for name in _schedule_settings(schedule) if name not in of_file]
    of_schedule = {name: given[name] for name in needed if name in given}
    if missing := [name for name in needed if name not in given]:
        raise UserError(f"schedule {schedule!r} needs {', '.join(sorted(missing))}")
    for name, value in of_schedule.items():
        whole = integer(name, value, at_least=1, at_most=MAX_STEPS) if name != "full_steps" else full_steps_tuple(value)
        of_schedule[name] = whole
    return Cache(
        method=method,
        schedule=schedule,
        schedule_settings={**of_file, **of_schedule},
        own_schedule=chosen.schedule,
        default_warmup="warmup_steps" not in settings,
        forecaster=_make_forecaster(method, {**given, **of_schedule}),
        engine=engine,
        engine_settings=EngineSettings(
            accumulator_dtype=accumulator_dtype,
            static_shapes=static_shapes,
            group_bytes=group_bytes,
        ),
        telemetry=telemetry,
        memory_limit=memory_limit,
    )


def _preset_settings(preset: str | None, accepted: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's settings of those accepted; for the interval that is given, where it can be one."""
    if preset is None:
        return {}
    check_choice("preset", preset, PRESETS)
    interval = plain(given.get("interval"))
    usual = PRESETS[preset].settings(interval if type(interval) is int else None)
    return {name: value for name, value in usual.items() if name in accepted}


def _own_fields(method: str) -> dict[str, Any]:
    """Values that a forecaster gives the fields of its own body."""
    forecaster = METHODS[method].forecaster
    here = vars(forecaster).get("__annotations__", {})
    return {f.name: f.default for f in init_fields(forecaster) if f.name in here and f.default is not MISSING}


def _make_forecaster(method: str, given: dict[str, Any]) -> Forecaster:
    """The forecaster with those of the given settings that are fields of it, checked against their annotations."""
    make = METHODS[method].forecaster
    missing = [
        f.name
        for f in init_fields(make)
        if f.name not in given and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise UserError(f"method {method!r} needs {', '.join(missing)}")
    known = _forecaster_settings(method)
    settings = {name: check_kind(name, given[name], known[name]) for name in known if name in given}
    with run_of_user_code(f"method {method!r} cannot be made", *source_of(make)):
        return make(**settings)


register("taylorseer", interval=4, warmup_steps=3)(Taylor)
register("newton", interval=4, warmup_steps=3)(Newton)
register("fora", interval=4, warmup_steps=3)(Reuse)
register("uncached", schedule="taylorseer", interval=1, warmup_steps=1)(Reuse)

SHIPPED = frozenset(METHODS)
"""The methods that come with the package."""
