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
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch

from cache_dic.cache import Cache
from cache_dic.engine import EngineSettings
from cache_dic.fold import GROUP_BYTES
from cache_dic.forecast import Forecaster, Newton, Reuse, Taylor
from cache_dic.schedule import SCHEDULES


@dataclass(frozen=True)
class Method:
    """A forecaster class, its usual schedule, and defaults of the schedule's settings."""

    forecaster: Callable[..., Forecaster]
    schedule: str
    defaults: dict[str, Any]


METHODS: dict[str, Method] = {}


def register(name: str, *, schedule: str = "taylorseer", **defaults: Any):
    """A class decorator that makes a forecaster a method called `name`; defaults are settings of its schedule."""
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; choose from {', '.join(SCHEDULES)}")
    if name in METHODS:
        raise ValueError(f"a method called {name!r} is registered already")

    def add(forecaster: Callable[..., Forecaster]):
        METHODS[name] = Method(forecaster, schedule, defaults)
        return forecaster

    return add


register("taylorseer", interval=4, warmup_steps=3)(Taylor)
register("newton", interval=4, warmup_steps=3)(Newton)
register("fora", interval=4, warmup_steps=3)(Reuse)
register("uncached", schedule="taylorseer", interval=1, warmup_steps=1)(Reuse)


def accepted_settings(method: str, schedule: str | None = None) -> set[str]:
    """Names of the settings that `make_cache` takes for a method under a schedule (None: the method's own).

    Raises ValueError for an unknown method or schedule.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; choose from {', '.join(METHODS)}")
    return _schedule_settings(schedule or METHODS[method].schedule) | _forecaster_settings(method)


def _schedule_settings(schedule: str) -> set[str]:
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule!r} is unknown; choose from {', '.join(SCHEDULES)}")
    return set(inspect.signature(SCHEDULES[schedule]).parameters) - {"num_steps"}


def _forecaster_settings(method: str) -> set[str]:
    return {f.name for f in fields(METHODS[method].forecaster)}


def make_cache(
    method: str = "taylorseer",
    *,
    engine: str = "folded",
    schedule: str | None = None,
    accumulator_dtype: torch.dtype | None = None,
    group_bytes: int = GROUP_BYTES,
    static_shapes: bool = False,
    telemetry: bool = False,
    memory_limit: int | None = None,
    **settings: Any,
) -> Cache:
    """A cache by the name of its method.

    settings: those of the method's forecaster (taylorseer: max_order, warmup_steps) and of its schedule (interval,
    warmup_steps; `explicit`: full_steps). `full_steps=…` alone implies the explicit schedule. Others as in `Cache` and
    `EngineSettings`. Raises ValueError for an unknown method, engine, schedule or setting and for values out of range.
    """
    if schedule is None and "full_steps" in settings:
        schedule = "explicit"
    accepted = accepted_settings(method, schedule)
    chosen = METHODS[method]
    schedule = schedule or chosen.schedule
    for name in settings:
        if name not in accepted:
            raise ValueError(
                f"method {method!r} with schedule {schedule!r} has no setting {name!r}; "
                f"it accepts: {', '.join(sorted(accepted))}"
            )
    settings = {**chosen.defaults, **settings}
    of_schedule, of_forecaster = _schedule_settings(schedule), _forecaster_settings(method)
    schedule_settings = {k: v for k, v in settings.items() if k in of_schedule}
    missing = of_schedule - set(schedule_settings)
    if missing:
        raise ValueError(f"schedule {schedule!r} needs {', '.join(sorted(missing))}")
    for name in ("interval", "warmup_steps"):
        value = schedule_settings.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} = {value!r} must be an integer of at least 1")
    return Cache(
        method=method,
        schedule=schedule,
        schedule_settings=schedule_settings,
        forecaster=chosen.forecaster(**{k: v for k, v in settings.items() if k in of_forecaster}),
        engine=engine,
        engine_settings=EngineSettings(
            accumulator_dtype=accumulator_dtype, group_bytes=group_bytes, static_shapes=static_shapes
        ),
        telemetry=telemetry,
        memory_limit=memory_limit,
    )
