"""Wan2.1: text-to-video and image-to-video rectified flow transformer, its sampler and weights."""

from typing import TYPE_CHECKING

from cache_dic.lazy import lazy_names
from wan.config import CONFIGS, WanConfig, wan_config

if TYPE_CHECKING:
    from wan.model import Wan
    from wan.sampler import Sampler, sample

__all__ = ["CONFIGS", "Sampler", "Wan", "WanConfig", "sample", "wan_config"]

__getattr__, __dir__ = lazy_names(__name__, {"model": ("Wan",), "sampler": ("Sampler", "sample")})
