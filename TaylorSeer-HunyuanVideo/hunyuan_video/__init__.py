"""HunyuanVideo: text-to-video flow matching transformer, its sampler and weights."""

from hunyuan_video.config import CONFIGS, HunyuanVideoConfig, hunyuan_video_config
from hunyuan_video.model import HunyuanVideo
from hunyuan_video.sampler import Sampler, sample

__all__ = ["CONFIGS", "HunyuanVideo", "HunyuanVideoConfig", "Sampler", "hunyuan_video_config", "sample"]
