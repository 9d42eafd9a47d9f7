"""Forecast caching for diffusion transformers: when to compute (schedule), what to predict (forecast), where to keep (engine).

    from cache_dic import make_cache
    cache = make_cache(method="taylorseer", interval=4, max_order=4, warmup_steps=2)

Needs torch alone.
"""

from cache_dic.cache import Cache, Run, Step
from cache_dic.engine import ENGINES, Forecast, GateFactors, Tokens
from cache_dic.errors import UserError
from cache_dic.methods import METHODS, accepted_settings, make_cache, read_setting, register
from cache_dic.plan import Plan
from cache_dic.schedule import SCHEDULES
from cache_dic.site import Site, residual

__all__ = [
    "ENGINES", "METHODS", "SCHEDULES", "Cache", "Forecast", "GateFactors", "Plan", "Run", "Site", "Step", "Tokens", "UserError",
    "accepted_settings", "make_cache", "read_setting", "register", "residual",
]  # fmt: skip
