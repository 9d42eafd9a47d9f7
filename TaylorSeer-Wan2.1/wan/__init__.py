"""Wan2.1: text-to-video and image-to-video rectified flow transformer, its sampler and weights."""

from wan.config import CONFIGS, WanConfig, wan_config
from wan.model import Wan
from wan.sampler import Sampler, sample

__all__ = ["CONFIGS", "Sampler", "Wan", "WanConfig", "sample", "wan_config"]
