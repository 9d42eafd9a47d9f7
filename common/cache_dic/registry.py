"""The registry of caching methods and `make_cache`, the way in.

A method is a forecaster, a schedule and an engine. To add one, write a dataclass and register it:

    @register("damped", schedule="taylorseer")
    @dataclass(frozen=True, kw_only=True)
    class Damped:
        damping: float = 0.5

        def weights(self, full_steps, step):
            ...

A class with `weights` is a forecaster; one that derives from `Decider` and has `decide` is a schedule, which other methods
may take by its name, too; one with both is both. Its fields become settings of `make_cache("damped", damping=…)` and of every
command's `--set damping=…`.
"""

import inspect
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any

from cache_dic.decide import Decider, check_traits
from cache_dic.errors import UserError, check_choice, run_of_user_code, shown, source_of, suggestion
from cache_dic.forecast import Forecaster, Reuse
from cache_dic.partial import Partial
from cache_dic.presets import PRESETS
from cache_dic.schedule import MAX_STEPS, SCHEDULES, SEARCHED, schedule_defaults, schedule_settings
from cache_dic.searched import is_schedule_file, read_schedule, rule_name
from cache_dic.settings import (
    ENGINE_NAMES,
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


Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A forecaster class, its usual schedule and engine, and defaults of the schedule's settings.

    presets: by model, by backbone or for any other ("*"), rows of settings as published: the first stands where nothing else
    is asked for, a comparison shows all. Where there is no row a method has the settings that `PRESETS` gives a backbone.
    undefined: by backbone or model, why the method cannot be had there. paper: where it is described.
    """

    forecaster: type
    schedule: str
    defaults: Settings
    engine: str = "folded"
    presets: Mapping[str, Sequence[Settings]] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    paper: str = ""

    def rows(self, model: str | None, backbone: str | None) -> Sequence[Settings]:
        """The published rows for a model, or else for its backbone, or else for any ("*")."""
        found = (self.presets[key] for key in (model, backbone, "*") if key is not None and key in self.presets)
        return next(found, ())

    @property
    def is_ours(self) -> bool:
        """Whether it comes with the package, schedule and all."""
        return _is_ours(self.forecaster) and _is_ours(SCHEDULES[self.schedule])

    @property
    def own_interval(self) -> int | None:
        """That of a method of the user's own, as it was registered or as its class says; None to go by the backbone."""
        if self.is_ours:
            return None
        rule = SCHEDULES[self.schedule]
        of_class = {} if _is_ours(rule) else schedule_defaults(self.schedule)
        return self.defaults.get("interval", of_class.get("interval"))

    def check_defined(self, name: str, model: str | None, backbone: str | None) -> None:
        """UserError that says why, where the method cannot be had for a model."""
        for key in (model, backbone):
            if key is not None and key in self.undefined:
                raise UserError(f"method {name!r} is not defined for {model or backbone}: {self.undefined[key]}")


METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    schedule: str | None = None,
    engine: str = "folded",
    presets: Mapping[str, Sequence[Settings]] | None = None,
    undefined: Settings | None = None,
    paper: str = "",
    **defaults: Any,
):
    """A class decorator that makes a forecaster, a schedule or both a method called `name`.

    schedule: the usual one, "taylorseer" for a forecaster, its own for a class with `decide`. The rest as in `Method`; defaults
    are settings of its schedule. UserError for a name that is taken or cannot be part of a file's name, and for a class that
    is not a dataclass with `weights` or `decide` or has a field that `make_cache` takes for itself.
    """
    check_name(name)
    if schedule is not None:
        _check_defaults(name, schedule, defaults)
    check_choice("engine", engine, ENGINE_NAMES)
    for part in name.split("-")[1:]:
        if part in SCHEDULES or re.fullmatch(r"[NWO]\d+", part):
            raise UserError(f"{part!r} in the name {name!r} reads as part of a label; choose another name")
    if name in METHODS:
        raise UserError(f"a method called {name!r} is registered already; choose another name")
    _check_tables(name, presets or {}, undefined or {})

    def add(made: type):
        if not isinstance(made, type) or not is_dataclass(made):
            raise UserError(f"method {name!r} is no dataclass; write @dataclass(…) between @register(…) and the class")
        forecasts, decides = callable(getattr(made, "weights", None)), issubclass(made, Decider)
        if not forecasts and not decides:
            raise UserError(
                f"method {name!r}: class {made.__name__} has no weights(self, full_steps, step), nor is it a Decider with "
                "decide(self, look)"
            )
        if decides and getattr(made, "decide", None) is Decider.decide:
            raise UserError(f"method {name!r}: class {made.__name__} has no decide(self, look)")
        reserved = {f.name for f in init_fields(made)} & inspect.signature(make_cache).parameters.keys()
        if reserved:
            raise UserError(
                f"method {name!r}: {', '.join(sorted(reserved))} cannot be a field, every cache has that setting"
            )
        own = name if decides else "taylorseer"
        usual = own if schedule is None else schedule
        if decides:
            if name in SCHEDULES:
                raise UserError(f"a schedule called {name!r} is registered already; choose another name")
            SCHEDULES[name] = made
        _check_defaults(name, usual, defaults)
        METHODS[name] = Method(
            forecaster=made if forecasts else Reuse,
            schedule=usual,
            defaults=defaults,
            engine="partial" if issubclass(made, Partial) else engine,
            presets=presets or {},
            undefined=undefined or {},
            paper=paper,
        )
        return made

    return add


def _check_tables(method: str, presets: Any, undefined: Any) -> None:
    """UserError for what a method is registered with by model or backbone that `Method` cannot have."""

    def is_table(table: Any, fits: Callable[[Any], bool]) -> bool:
        return isinstance(table, Mapping) and all(isinstance(key, str) and fits(value) for key, value in table.items())

    def are_rows(rows: Any) -> bool:
        return isinstance(rows, list | tuple) and all(is_table(row, lambda _: True) for row in rows)

    if not is_table(presets, are_rows):
        raise UserError(
            f"presets = {shown(presets)} of method {method!r} must be lists of settings by model or backbone, such as "
            "{'flux': [{'interval': 4}]}"
        )
    if not is_table(undefined, lambda why: isinstance(why, str)):
        raise UserError(
            f"undefined = {shown(undefined)} of method {method!r} must be reasons by model or backbone, such as "
            "{'flux': 'it needs classes'}"
        )


def _check_defaults(method: str, schedule: str, defaults: Settings) -> None:
    """UserError for a default of a method that its schedule does not take."""
    unknown = defaults.keys() - schedule_settings(schedule).keys()
    if unknown:
        raise UserError(f"schedule {schedule!r} of method {method!r} has no setting {', '.join(sorted(unknown))}")


def accepted_settings(method: str, schedule: str | os.PathLike[str] | None = None) -> set[str]:
    """Names of the settings that `make_cache` takes for a method under a schedule (None: the method's own).

    Raises UserError for an unknown method or schedule. A schedule's file, which may stand for its name, is no setting.
    """
    check_choice("method", method, METHODS)
    rule = METHODS[method].schedule if schedule is None else rule_name(schedule)
    return {*(schedule_settings(rule) if rule != SEARCHED else ()), *_forecaster_settings(method)}


def compared_rows(
    method: str, backbone: str, model: str | None, schedule: str | os.PathLike[str] | None = None
) -> list[dict[str, Any]]:
    """Settings of a method that a comparison shows: its published rows, or those intervals that `PRESETS` has for a backbone.

    None of a method of the user's own that has an interval of its own, which is shown as it is, nor of one
    without rows that takes no interval under the schedule (None: its own).
    """
    chosen = METHODS[method]
    if rows := chosen.rows(model, backbone):
        return [dict(row) for row in rows]
    if chosen.own_interval is not None or "interval" not in accepted_settings(method, schedule):
        return []
    return [{"interval": interval} for interval in PRESETS[backbone].compare_intervals]


def read_setting(method: str, name: str, text: str, schedule: str | None = None) -> Any:
    """The value that a setting written as text has for a method under a schedule (None: its own), by its annotation."""
    of_schedule = schedule_settings(METHODS[method].schedule if schedule is None else rule_name(schedule))
    return from_text(text, {**of_schedule, **_forecaster_settings(method)}.get(name))


def _forecaster_settings(method: str) -> dict[str, Any]:
    """Annotations by name."""
    return {f.name: f.type for f in init_fields(METHODS[method].forecaster)}


def make_cache(
    method: str = "taylorseer",
    *,
    preset: str | None = None,
    model: str | None = None,
    engine: str | None = None,
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
    where a method of one's own does not say otherwise. model: its name ("flux-dev"), for methods with published settings by
    model. engine, schedule: None for the method's own; the schedule may be the file of a searched one, which ends in .json.
    settings: those of the method's forecaster (taylorseer: max_order, warmup_steps) and of its schedule (interval,
    warmup_steps; `explicit`: full_steps). `full_steps=…` alone implies the explicit schedule. Others as in `Cache` and
    `EngineSettings`. Raises UserError for an unknown method, preset, engine, schedule or setting, for values of a wrong
    type or out of range, and where the method is not defined for the model.
    """
    from cache_dic.cache import Cache
    from cache_dic.engine import EngineSettings

    check_choice("method", method, METHODS)
    chosen = METHODS[method]
    chosen.check_defined(method, model, preset)
    row = dict(next(iter(chosen.rows(model, preset)), {}))
    if schedule is None and "full_steps" in settings:
        schedule = "explicit"
    own_engine, own_schedule = row.pop("engine", chosen.engine), row.pop("schedule", chosen.schedule)
    file = {"file": read_schedule(schedule)} if is_schedule_file(schedule) else {}
    schedule = str(own_schedule if schedule is None else rule_name(schedule))
    accepted = accepted_settings(method, schedule)
    if schedule != own_schedule and schedule in METHODS:
        row |= next(iter(METHODS[schedule].rows(model, preset)), {})
    for name in settings:
        if name not in accepted:
            raise UserError(
                f"method {method!r} with schedule {schedule!r} has no setting {name!r}; "
                f"it accepts: {', '.join(sorted(accepted))}{suggestion(name, accepted)}"
            )
    if method == "uncached" and (settings or schedule != chosen.schedule):
        vain = ", ".join(settings) or f"schedule {schedule!r}"
        raise UserError(f"method 'uncached' computes every step; leave out {vain}, or name another method")
    idle = method == "uncached" or chosen.rows(model, preset)
    usual = _preset_settings(preset, () if idle else accepted, settings)
    # What a class of the user's says itself stands against the usual settings of a backbone, what one of ours says does not.
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] = {}
    (ours if _is_ours(SCHEDULES[schedule]) else theirs).update(schedule_defaults(schedule))
    (ours if chosen.is_ours else theirs).update(_own_fields(method), **chosen.defaults)
    of_row = {name: value for name, value in row.items() if name in accepted}
    given = {**ours, **usual, **theirs, **of_row, **settings, **file}
    of_schedule = _schedule_values(method, schedule, given, model or preset)
    forecaster = _make_forecaster(method, {**given, **of_schedule})
    own_engine = getattr(forecaster, "engine", own_engine)  # of one that is calibrated for a form
    return Cache(
        method=method,
        schedule=schedule,
        schedule_settings=of_schedule,
        own_schedule=own_schedule,
        own_engine=own_engine,
        default_warmup="warmup_steps" not in settings,
        forecaster=forecaster,
        engine=engine or own_engine,
        engine_settings=EngineSettings(
            accumulator_dtype=accumulator_dtype,
            static_shapes=static_shapes,
            group_bytes=group_bytes,
        ),
        telemetry=telemetry,
        memory_limit=memory_limit,
    )


def _schedule_values(method: str, schedule: str, given: Settings, model: str | None) -> dict[str, Any]:
    """The settings of a schedule among those given, checked against their annotations and by the schedule itself.

    model: a name for the message about settings that nobody has published for it.
    """
    known = schedule_settings(schedule)
    missing = ", ".join(sorted(known.keys() - given.keys()))
    if missing:
        of = METHODS[schedule if schedule in METHODS else method]
        known_for = f", which it has for {', '.join(of.presets)} and not for {model}" if of.presets and model else ""
        raise UserError(f"schedule {schedule!r} of method {method!r} needs {missing}{known_for}; give a value of each")
    values: dict[str, Any] = {}
    for name, annotation in known.items():
        value = given[name]
        if name in ("interval", "warmup_steps"):
            values[name] = integer(name, value, at_least=1, at_most=MAX_STEPS)
        else:
            values[name] = full_steps_tuple(value) if name == "full_steps" else check_kind(name, value, annotation)
    rule = SCHEDULES[schedule]
    if isinstance(rule, type):
        with run_of_user_code(f"method {method!r} cannot be made", *source_of(rule, "decide")):
            decider = rule(**values)
            check_traits(decider, Partial if isinstance(decider, Partial) else Decider)
            if decider.horizon is not None:
                integer(f"horizon of schedule {schedule!r}", decider.horizon, at_least=0)
    return values


def _preset_settings(preset: str | None, accepted: Collection[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """A preset's settings of those accepted; for the interval that is given, where it can be one."""
    if preset is None:
        return {}
    check_choice("preset", preset, PRESETS)
    interval = plain(given.get("interval"))
    usual = PRESETS[preset].settings(interval if type(interval) is int else None)
    return {name: value for name, value in usual.items() if name in accepted}


def _is_ours(made: Any) -> bool:
    """Whether a class or function is of this package."""
    return made.__module__.split(".")[0] == __package__


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
        made = make(**settings)
        labels = getattr(made, "labels", {})
        if not isinstance(labels, Mapping):
            raise UserError(
                f"labels = {shown(labels)} must have, by the name of a setting, what labels and records say of it"
            )
        if hasattr(made, "engine"):
            check_choice("engine", made.engine, ENGINE_NAMES)
    return made
