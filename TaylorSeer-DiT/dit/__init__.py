"""DiT: class-conditional diffusion transformer, its samplers and weights."""

from dit.config import CONFIGS, DiTConfig, dit_config
from dit.model import DiT
from dit.sampler import Sampler, sample

__all__ = ["CONFIGS", "DiT", "DiTConfig", "Sampler", "dit_config", "sample"]
