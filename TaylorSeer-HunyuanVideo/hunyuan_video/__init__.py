"""HunyuanVideo: text-to-video flow matching transformer, its sampler and weights."""

from typing import TYPE_CHECKING

from cache_dic.lazy import lazy_names
from hunyuan_video.config import CONFIGS, HunyuanVideoConfig, hunyuan_video_config

if TYPE_CHECKING:
    from hunyuan_video.model import HunyuanVideo
    from hunyuan_video.sampler import Sampler, sample

__all__ = ["CONFIGS", "HunyuanVideo", "HunyuanVideoConfig", "Sampler", "hunyuan_video_config", "sample"]

__getattr__, __dir__ = lazy_names(__name__, {"model": ("HunyuanVideo",), "sampler": ("Sampler", "sample")})
