"""DiT: class-conditional diffusion transformer, its samplers and weights."""

from typing import TYPE_CHECKING

from cache_dic.lazy import lazy_names
from dit.config import CONFIGS, DiTConfig, dit_config

if TYPE_CHECKING:
    from dit.model import DiT
    from dit.sampler import Sampler, sample

__all__ = ["CONFIGS", "DiT", "DiTConfig", "Sampler", "dit_config", "sample"]

__getattr__, __dir__ = lazy_names(__name__, {"model": ("DiT",), "sampler": ("Sampler", "sample")})
