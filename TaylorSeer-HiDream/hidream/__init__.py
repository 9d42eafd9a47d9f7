"""HiDream-I1: text-to-image transformer with experts, its sampler and weights."""

from hidream.config import CONFIGS, HiDreamConfig, hidream_config
from hidream.model import HiDream
from hidream.sampler import Sampler, sample

__all__ = ["CONFIGS", "HiDream", "HiDreamConfig", "Sampler", "hidream_config", "sample"]
