"""Solvers of the flow-matching ODE dx/dsigma = v, and the shift of their noise levels.

Data x0 and noise lie at the ends of straight paths x = (1 - sigma) x0 + sigma · noise, and the model predicts the velocity
v = noise - x0, so x0 = x - sigma · v. With alpha = 1 - sigma and lambda = ln(alpha / sigma), a step that takes the data
prediction for constant over h = lambda_t - lambda_s is DDIM's (DPM-Solver++, arXiv 2211.01095, Section 4),

    x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^-h) x0,        alpha_t (1 - e^-h) = 1 - sigma_t / sigma_s,

on these paths a move from x_s straight towards x0, which is Euler's step too. The solvers of second order make the same
move towards a better x0. All of it is elementwise: a solver works on any part of the tokens alone.
"""

import math
from itertools import pairwise
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from cache_dic import UserError

Sigmas = TypeVar("Sigmas", float, np.ndarray, Tensor)

BASE_TOKENS, BASE_MU = 256, 0.5  # mu is linear in the token count, through these two points
MAX_TOKENS, MAX_MU = 4096, 1.15


def shift_mu(num_tokens: int) -> float:
    """Logarithm of the shift for a number of image tokens (flux sampling.py; HiDream-I1 pipeline_hidream_image.py)."""
    slope = (MAX_MU - BASE_MU) / (MAX_TOKENS - BASE_TOKENS)
    return BASE_MU + slope * (num_tokens - BASE_TOKENS)


def shift_sigmas(sigmas: Sigmas, shift: float) -> Sigmas:
    """Noise levels in [0, 1] moved towards the noise: shift · sigma / (1 + (shift - 1) sigma); the ends stay."""
    if not shift > 0:
        raise UserError(f"shift {shift} of the noise levels must be above 0; 1 leaves them as they are")
    return shift * sigmas / (1 + (shift - 1) * sigmas)


class Euler:
    """First order: along v by the difference of the noise levels, which may fall (noise at 1) or rise (noise at 0).

    sigmas: (S + 1,), read into float64. As in all solvers of this file, `step` computes in float32, or float64 for such x.
    """

    def __init__(self, sigmas: Tensor) -> None:
        if sigmas.ndim != 1 or len(sigmas) < 2:
            raise UserError(f"noise levels of shape {tuple(sigmas.shape)}: one dimension with at least two are needed")
        self.sigmas: list[float] = sigmas.double().tolist()
        self.num_steps = len(sigmas) - 1

    def step(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        """x at sigmas[i] and the model's velocity there -> x at sigmas[i + 1]."""
        x = _full_precision(x)
        return x + (self.sigmas[i + 1] - self.sigmas[i]) * velocity.to(x.dtype)


class DPMSolverPlusPlus(Euler):
    """DPM-Solver++(2M) (arXiv 2211.01095, Algorithm 2): x0 extrapolated to the middle of the step in lambda.

    The first step and the last, where lambda ends at infinity, are of first order. sigmas: falling from at most 1 to 0.
    Steps are taken in order; step 0 begins a new run. Order 1 is Euler's method.
    """

    def __init__(self, sigmas: Tensor, order: int = 2) -> None:
        super().__init__(sigmas)
        falling = all(a > b for a, b in pairwise(self.sigmas))
        if not falling or self.sigmas[0] > 1 or self.sigmas[-1] != 0:
            raise UserError(
                f"noise levels {self.sigmas} must fall at every step, from at most 1 to exactly 0; "
                "levels that rise, or repeat, can be sampled by Euler's method alone"
            )
        if order not in (1, 2):
            raise UserError(f"order {order} of the solver must be 1 or 2")
        self.order = order
        self.lambdas = [_half_log_snr(sigma) for sigma in self.sigmas]
        self._x0s: list[Tensor] = []  # data predictions of the last steps, newest last, at most two
        self._next = 0

    def step(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        x = _full_precision(x)
        return self._advance(i, x, self._data(i, velocity, x))

    def _data(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        """The model's prediction of x0, from its velocity at the x it was given."""
        assert i in (0, self._next), f"step {i} does not follow step {self._next - 1}"
        self._next = i + 1
        return x - self.sigmas[i] * velocity.to(x.dtype)

    def _order_of(self, i: int) -> int:
        return min(self.order, i + 1, self.num_steps - i)

    def _advance(self, i: int, x: Tensor, x0: Tensor) -> Tensor:
        """From sigmas[i] to sigmas[i + 1]; x0 joins the kept predictions."""
        target = x0
        if self._order_of(i) == 2:
            spacing = (self.lambdas[i] - self.lambdas[i - 1]) / (self.lambdas[i + 1] - self.lambdas[i])
            target = x0 + (0.5 / spacing) * (x0 - self._x0s[-1])
        self._x0s = [*self._x0s[-1:], x0]
        return self._towards(target, i, x)

    def _towards(self, x0: Tensor, i: int, x: Tensor) -> Tensor:
        """DDIM's step from sigmas[i] to sigmas[i + 1] for a given x0."""
        return torch.lerp(x, x0, 1 - self.sigmas[i + 1] / self.sigmas[i])


class UniPC(DPMSolverPlusPlus):
    """UniPC (arXiv 2302.04867), data prediction and B(h) = e^-h - 1: the model's newest output also corrects the last step.

    The predictor is DPM-Solver++'s. As in Wan's FlowUniPCMultistepScheduler (wan/utils/fm_solvers_unipc.py), a step of
    order p has the predictor UniP-p and the corrector UniC-p, one order better; the model is not called at the corrected x.
    """

    _x: Tensor  # where the last step started, corrected

    def step(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        x = _full_precision(x)
        x0 = self._data(i, velocity, x)
        if i:
            x = self._correct(i - 1, x0)
        self._x = x
        return self._advance(i, x, x0)

    def _correct(self, i: int, x0: Tensor) -> Tensor:
        """x at sigmas[i + 1], once more from sigmas[i], now that the data prediction x0 there is known (UniC, Section 3)."""
        start = self._x0s[-1]
        if self._order_of(i) == 1:
            return self._towards(start + 0.5 * (x0 - start), i, self._x)
        h = self.lambdas[i + 1] - self.lambdas[i]
        spacing = (self.lambdas[i] - self.lambdas[i - 1]) / h  # -r_1 in the paper; infinite after sigma 1
        b1 = -1 / math.expm1(-h) - 1 / h
        b2 = -1 / math.expm1(-h) - 2 * b1 / h
        rho1 = (b1 - b2) / (1 + spacing)  # rho1 + rho2 = b1 and r_1 rho1 + rho2 = b2
        target = start + (b1 - rho1) * (x0 - start) + (rho1 / spacing) * (start - self._x0s[-2])
        return self._towards(target, i, self._x)


SOLVERS: dict[str, type[Euler]] = {"unipc": UniPC, "dpm++": DPMSolverPlusPlus, "euler": Euler}
"""By the names of the official commands; each is built of the noise levels and serves one run at a time."""


def _half_log_snr(sigma: float) -> float:
    """lambda = ln((1 - sigma) / sigma), infinite at both ends."""
    if sigma in (0, 1):
        return math.inf if sigma == 0 else -math.inf
    return math.log1p(-sigma) - math.log(sigma)


def _full_precision(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
