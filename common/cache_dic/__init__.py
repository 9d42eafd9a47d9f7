"""Forecast caching for diffusion transformers: when to compute (schedule), what to predict (forecast), where to keep (engine).

    from cache_dic import make_cache
    cache = make_cache("taylorseer", preset="flux")

Needs torch alone, and that only where something is computed: methods, schedules and presets are named without it.
"""

from typing import TYPE_CHECKING

from cache_dic.decide import Decider
from cache_dic.errors import UserError
from cache_dic.lazy import lazy_names
from cache_dic.partial import ATTENTION, CROSS, EVERYTHING, FUSED, MLP, NOTHING, REST, TEMPORAL, Call, Partial, Range
from cache_dic.plan import Plan
from cache_dic.presets import PRESETS, Preset
from cache_dic.registry import METHODS, accepted_settings, compared_rows, make_cache, read_setting, register
from cache_dic.schedule import SCHEDULES
from cache_dic.settings import ENGINE_NAMES

import cache_dic.methods  # noqa: F401, registers them  # isort: skip

if TYPE_CHECKING:
    from cache_dic.cache import Cache
    from cache_dic.engine import ENGINES, Forecast, GateFactors, Tokens
    from cache_dic.look import Look, Parts, Streams
    from cache_dic.run import Run, Step
    from cache_dic.site import Addition, Site, once, residual

__all__ = [
    "ATTENTION", "CROSS", "ENGINES", "ENGINE_NAMES", "EVERYTHING", "FUSED", "METHODS", "MLP", "NOTHING", "PRESETS", "REST",
    "SCHEDULES", "TEMPORAL", "Addition", "Cache", "Call", "Decider", "Forecast", "GateFactors", "Look", "Partial", "Parts",
    "Plan", "Preset", "Range", "Run", "Site", "Step", "Streams", "Tokens", "UserError", "accepted_settings", "compared_rows",
    "make_cache", "once", "read_setting", "register", "residual",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "cache": ("Cache",),
        "engine": ("ENGINES", "Forecast", "GateFactors", "Tokens"),
        "look": ("Look", "Parts", "Streams"),
        "run": ("Run", "Step"),
        "site": ("Addition", "Site", "once", "residual"),
    },
)
