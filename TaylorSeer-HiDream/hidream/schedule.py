"""HiDream-I1's noise levels and timesteps: shifted twice, by the scheduler's construction and by its use.

The official pipeline (pipeline_hidream_image.py) builds each scheduler with the variant's nominal shift, which moves the ends
of the range that the levels are spaced over, and shifts the spaced levels again: UniPC's by a shift that follows from the
number of tokens of the largest image, whatever the image's own, the flash scheduler's by the nominal shift once more.
"""

import math

import numpy as np
import torch
from torch import Tensor

from seerkit.sampling.flow_solvers import shift_mu, shift_sigmas

TRAIN_STEPS = 1000


def unipc_sigmas(num_steps: int, shift: float, max_tokens: int) -> Tensor:
    """Levels (num_steps + 1,) in float64, to 0, of Full; its effective shift is exp(1.15) (schedulers/fm_solvers_unipc.py)."""
    highest = np.float32(shift_sigmas(np.float32(1 - 1 / TRAIN_STEPS), np.float32(shift)))  # held in float32
    levels = np.linspace(float(highest), 0.0, num_steps + 1)
    return torch.from_numpy(shift_sigmas(levels, math.exp(shift_mu(max_tokens))))


def flash_sigmas(num_steps: int, shift: float) -> Tensor:
    """Levels (num_steps + 1,) in float64 of Dev and Fast; the last but one is above 0 (schedulers/flash_flow_match.py)."""
    lowest = np.float32(shift_sigmas(np.float32(1 / TRAIN_STEPS), np.float32(shift)))
    levels = np.linspace(1.0, float(lowest), num_steps)
    return torch.from_numpy(np.append(shift_sigmas(levels, shift), 0.0))


def unipc_timesteps(sigmas: Tensor) -> Tensor:
    """What the model is given: 1000 sigma truncated, (S,) int64, without the last level."""
    return (TRAIN_STEPS * sigmas[:-1]).long()


def flash_timesteps(sigmas: Tensor) -> Tensor:
    """What the model is given: 1000 sigma, (S,) float32, without the last level."""
    return TRAIN_STEPS * sigmas[:-1].float()
