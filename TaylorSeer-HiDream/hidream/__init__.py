"""HiDream-I1: text-to-image transformer with experts, its sampler and weights."""

from typing import TYPE_CHECKING

from cache_dic.lazy import lazy_names
from hidream.config import CONFIGS, HiDreamConfig, hidream_config

if TYPE_CHECKING:
    from hidream.model import HiDream
    from hidream.sampler import Sampler, sample

__all__ = ["CONFIGS", "HiDream", "HiDreamConfig", "Sampler", "hidream_config", "sample"]

__getattr__, __dir__ = lazy_names(__name__, {"model": ("HiDream",), "sampler": ("Sampler", "sample")})
