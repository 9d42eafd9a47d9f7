"""Wan2.1's noise levels and timesteps, which depend on the solver (wan/text2video.py, wan/utils/fm_solvers*.py)."""

import numpy as np
import torch
from torch import Tensor

from cache_dic import UserError
from seerkit.sampling.flow_solvers import SOLVERS, shift_sigmas

# The highest level of the official scheduler's 1000 training steps, which it holds in float32.
UNIPC_START = float(np.float32(0.999))


def sampling_sigmas(solver: str, num_steps: int, shift: float) -> Tensor:
    """Noise levels (num_steps + 1,) in float64, evenly spaced before the shift.

    solver: a name in seerkit.sampling.flow_solvers.SOLVERS. UniPC starts from 0.999 before the shift, as its scheduler does by
    itself; DPM++ from 1, the levels that get_sampling_sigmas hands to it, and so does Euler, which the official code lacks.
    shift: 5, or 3 for image to video in 480p.
    """
    if solver not in SOLVERS:
        raise UserError(f"unknown solver {solver!r}; choose from {', '.join(SOLVERS)}")
    if num_steps < 1:
        raise UserError(f"number of sampling steps {num_steps} must be at least 1")
    # NumPy as in the official code: torch.linspace differs in the last bit, and the timesteps are truncated.
    sigmas = np.linspace(UNIPC_START if solver == "unipc" else 1.0, 0.0, num_steps + 1)
    return torch.from_numpy(shift_sigmas(sigmas, shift))


def sampling_timesteps(sigmas: Tensor) -> Tensor:
    """What the model is given at each step: 1000 sigma truncated, (S,) in int64 without the last level."""
    return (1000 * sigmas[:-1]).long()
