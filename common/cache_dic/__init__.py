"""Forecast caching for diffusion transformers: when to compute (schedule), what to predict (forecast), where to keep (engine).

    from cache_dic import make_cache
    cache = make_cache("taylorseer", preset="flux")

Needs torch alone, and that only where something is computed: methods, schedules and presets are named without it.
"""

from typing import TYPE_CHECKING

from cache_dic.errors import UserError
from cache_dic.lazy import lazy_names
from cache_dic.methods import METHODS, accepted_settings, make_cache, read_setting, register
from cache_dic.plan import Plan
from cache_dic.presets import PRESETS, Preset
from cache_dic.schedule import SCHEDULES
from cache_dic.settings import ENGINE_NAMES

if TYPE_CHECKING:
    from cache_dic.cache import Cache, Run, Step
    from cache_dic.engine import ENGINES, Forecast, GateFactors, Tokens
    from cache_dic.site import Site, residual

__all__ = [
    "ENGINES", "ENGINE_NAMES", "METHODS", "PRESETS", "SCHEDULES", "Cache", "Forecast", "GateFactors", "Plan", "Preset", "Run",
    "Site", "Step", "Tokens", "UserError", "accepted_settings", "make_cache", "read_setting", "register", "residual",
]  # fmt: skip

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "cache": ("Cache", "Run", "Step"),
        "engine": ("ENGINES", "Forecast", "GateFactors", "Tokens"),
        "site": ("Site", "residual"),
    },
)
