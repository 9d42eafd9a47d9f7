"""HunyuanVideo's noise levels: evenly spaced, then shifted (hyvideo/diffusion/schedulers/scheduling_flow_match_discrete.py)."""

import torch
from torch import Tensor

from cache_dic import UserError
from seerkit.sampling.flow_solvers import shift_sigmas


def sampling_sigmas(num_steps: int, shift: float = 7.0, reverse: bool = True) -> Tensor:
    """Noise levels (num_steps + 1,) in float64, computed in float32 as the official code does, so that they agree to the bit.

    reverse (--flow-reverse, which all official scripts set and the released weights were trained for): from 1, noise, to 0,
    the video. Without it the same levels counted from the other end, 1 - sigma: time runs from 0, noise, to 1, the video,
    for a model whose velocity is x0 - noise; Euler's method alone takes those.
    """
    if num_steps < 1:
        raise UserError(f"number of sampling steps {num_steps} must be at least 1")
    sigmas = shift_sigmas(torch.linspace(1, 0, num_steps + 1, dtype=torch.float32), shift)
    return (sigmas if reverse else 1 - sigmas).double()


def sampling_timesteps(sigmas: Tensor) -> Tensor:
    """What the model is given at each step: 1000 sigma, (S,) in float32 without the last level."""
    return (1000 * sigmas[:-1]).float()
