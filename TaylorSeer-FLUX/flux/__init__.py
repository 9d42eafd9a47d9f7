"""FLUX.1: text-to-image rectified flow transformer, its sampler and weights."""

from typing import TYPE_CHECKING

from cache_dic.lazy import lazy_names
from flux.config import CONFIGS, FluxConfig, flux_config

if TYPE_CHECKING:
    from flux.model import Flux
    from flux.sampler import Sampler, sample

__all__ = ["CONFIGS", "Flux", "FluxConfig", "Sampler", "flux_config", "sample"]

__getattr__, __dir__ = lazy_names(__name__, {"model": ("Flux",), "sampler": ("Sampler", "sample")})
