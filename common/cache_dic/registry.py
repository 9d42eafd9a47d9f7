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
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, is_dataclass
from typing import TYPE_CHECKING, Any

from cache_dic.decide import Decider
from cache_dic.errors import UserError, check_choice, run_of_user_code, source_of, suggestion
from cache_dic.forecast import Forecaster, Reuse
from cache_dic.presets import PRESETS
from cache_dic.schedule import MAX_STEPS, SCHEDULES, schedule_defaults, schedule_settings
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

    presets: by model or by backbone, rows of settings as published: the first stands where nothing else is asked for, a
    comparison shows all. Without presets a method has the settings that `PRESETS` gives a backbone. undefined: by backbone or
    model, why the method cannot be had there. paper: where it is described. shipped: whether it comes with the package.
    """

    forecaster: type
    schedule: str
    defaults: Settings
    engine: str = "folded"
    presets: Mapping[str, Sequence[Settings]] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    paper: str = ""
    shipped: bool = True

    def rows(self, model: str | None, backbone: str | None) -> Sequence[Settings]:
        """The published rows for a model, or else for its backbone, or else for any ("*")."""
        found = (self.presets[key] for key in (model, backbone, "*") if key is not None and key in self.presets)
        return next(found, ())

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
            engine=engine,
            presets=presets or {},
            undefined=undefined or {},
            paper=paper,
            shipped=made.__module__.split(".")[0] == __package__,
        )
        return made

    return add


def _check_defaults(method: str, schedule: str, defaults: Settings) -> None:
    """UserError for a default of a method that its schedule does not take."""
    unknown = defaults.keys() - schedule_settings(schedule).keys()
    if unknown:
        raise UserError(f"schedule {schedule!r} of method {method!r} has no setting {', '.join(sorted(unknown))}")


def accepted_settings(method: str, schedule: str | None = None) -> set[str]:
    """Names of the settings that `make_cache` takes for a method under a schedule (None: the method's own).

    Raises UserError for an unknown method or schedule.
    """
    check_choice("method", method, METHODS)
    return {
        *schedule_settings(METHODS[method].schedule if schedule is None else schedule),
        *_forecaster_settings(method),
    }


def read_setting(method: str, name: str, text: str) -> Any:
    """The value that a setting written as text has for a method, by its annotation."""
    return from_text(text, {**schedule_settings(METHODS[method].schedule), **_forecaster_settings(method)}.get(name))


def _forecaster_settings(method: str) -> dict[str, Any]:
    """Annotations by name."""
    return {f.name: f.type for f in init_fields(METHODS[method].forecaster)}


def make_cache(
    method: str = "taylorseer",
    *,
    preset: str | None = None,
    model: str | None = None,
    engine: str | None = None,
    schedule: str | None = None,
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
    model. engine, schedule: None for the method's own.
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
    engine, schedule = engine or own_engine, own_schedule if schedule is None else schedule
    accepted = accepted_settings(method, schedule)
    for name in settings:
        if name not in accepted:
            raise UserError(
                f"method {method!r} with schedule {schedule!r} has no setting {name!r}; "
                f"it accepts: {', '.join(sorted(accepted))}{suggestion(name, accepted)}"
            )
    if method == "uncached" and (settings or schedule != chosen.schedule):
        vain = ", ".join(settings) or f"schedule {schedule!r}"
        raise UserError(f"method 'uncached' computes every step; leave out {vain}, or name another method")
    if chosen.presets:
        usual = {name: value for name, value in row.items() if name in accepted}
    else:
        usual = _preset_settings(preset, () if method == "uncached" else accepted, settings)
    own = {**schedule_defaults(schedule), **_own_fields(method), **chosen.defaults}
    given = {**own, **usual, **settings} if chosen.shipped else {**usual, **own, **settings}
    of_schedule = _schedule_values(method, schedule, given)
    return Cache(
        method=method,
        schedule=schedule,
        schedule_settings=of_schedule,
        own_schedule=own_schedule,
        own_engine=own_engine,
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


def _schedule_values(method: str, schedule: str, given: Settings) -> dict[str, Any]:
    """The settings of a schedule among those given, checked against their annotations and by the schedule itself."""
    known = schedule_settings(schedule)
    missing = known.keys() - given.keys()
    if missing:
        raise UserError(f"schedule {schedule!r} needs {', '.join(sorted(missing))}")
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
            rule(**values)
    return values


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
