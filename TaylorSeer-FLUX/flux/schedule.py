"""FLUX's sampling times: rectified flow with a shift that grows with the number of image tokens (flux sampling.py)."""

import math

import torch
from torch import Tensor

from cache_dic import UserError
from seerkit.sampling.flow_solvers import shift_mu, shift_sigmas

LARGEST_MU = 700.0  # its exponential still is a float, beyond which nothing moves


def shift_times(t: Tensor, mu: float) -> Tensor:
    """Times in [0, 1] moved towards the noise: t -> e^mu / (e^mu + 1/t - 1); the ends stay."""
    return shift_sigmas(t, math.exp(min(mu, LARGEST_MU)))


def sampling_times(num_steps: int, num_tokens: int, *, shift: bool = True) -> Tensor:
    """Times (num_steps + 1,) in float64 from 1, noise, to 0, the image; `shift` for all models but schnell."""
    if num_steps < 1:
        raise UserError(f"number of sampling steps {num_steps} must be at least 1")
    t = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
    return shift_times(t, shift_mu(num_tokens)) if shift else t
