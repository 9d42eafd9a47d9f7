"""FLUX.1: text-to-image rectified flow transformer, its sampler and weights."""

from flux.config import CONFIGS, FluxConfig, flux_config
from flux.model import Flux
from flux.sampler import Sampler, sample

__all__ = ["CONFIGS", "Flux", "FluxConfig", "Sampler", "flux_config", "sample"]
