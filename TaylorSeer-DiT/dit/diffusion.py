"""The Gaussian diffusion process of DiT: linear schedule, respacing, learned variance, training loss.

Notation of Ho et al. 2020 (DDPM, arXiv 2006.11239) and Nichol & Dhariwal 2021 (improved DDPM, arXiv 2102.09672): β_t, ᾱ_t.
All coefficients are float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cache_dic import UserError
from dit.config import TRAIN_STEPS


def linear_betas(num_steps: int = TRAIN_STEPS) -> Tensor:
    """β from 1e-4 to 0.02 at 1000 steps, scaled to other counts, float64 (num_steps,)."""
    scale = 1000 / num_steps
    return torch.linspace(scale * 1e-4, scale * 0.02, num_steps, dtype=torch.float64)


def respaced_timesteps(num_steps: int, train_steps: int = TRAIN_STEPS) -> list[int]:
    """The training timesteps that `num_steps` sampling steps use, ascending.

    A fractional stride over 0 … train_steps - 1 with both ends and Python's rounding (sample.py of facebookresearch/DiT
    respaces with str(num_steps)); this is not DDIM's `range(0, 1000, 20)`.
    """
    if not 1 <= num_steps <= train_steps:
        raise UserError(f"number of sampling steps {num_steps} must lie between 1 and {train_steps}")
    stride = (train_steps - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    position, steps = 0.0, []
    for _ in range(num_steps):
        steps.append(round(position))
        position += stride
    return steps


@dataclass(frozen=True)
class Diffusion:
    """Coefficients of a (respaced) process. Index i counts up with noise; `timesteps[i]` is what the model gets."""

    timesteps: Tensor  # (S,) int64, ascending
    betas: Tensor  # (S,) float64

    @classmethod
    def respaced(cls, num_steps: int = TRAIN_STEPS, train_steps: int = TRAIN_STEPS) -> "Diffusion":
        """The process that visits `num_steps` of the training timesteps with the same ᾱ there."""
        kept = torch.tensor(respaced_timesteps(num_steps, train_steps))
        alphas_bar = torch.cumprod(1 - linear_betas(train_steps), dim=0)[kept]
        previous = torch.cat([alphas_bar.new_ones(1), alphas_bar[:-1]])
        return cls(kept, 1 - alphas_bar / previous)

    def __post_init__(self) -> None:
        alphas_bar = torch.cumprod(1 - self.betas, dim=0)
        previous = torch.cat([alphas_bar.new_ones(1), alphas_bar[:-1]])
        variance = self.betas * (1 - previous) / (1 - alphas_bar)
        # The posterior variance at i = 0 is zero; its logarithm takes the next one's (improved-diffusion).
        clipped = torch.cat([variance[1:2], variance[1:]]) if len(variance) > 1 else self.betas
        for name, value in {
            "alphas_bar": alphas_bar,
            "alphas_bar_previous": previous,
            "log_variance_min": clipped.log(),
            "log_variance_max": self.betas.log(),
            "mean_x0": self.betas * previous.sqrt() / (1 - alphas_bar),
            "mean_xt": (1 - previous) * (1 - self.betas).sqrt() / (1 - alphas_bar),
        }.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.betas)

    def add_noise(self, x0: Tensor, i: Tensor, noise: Tensor) -> Tensor:
        """q(x_i | x0): x0, noise (B, C, H, W), i (B,) indices."""
        alpha_bar = self.at("alphas_bar", i, x0)
        return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise

    def at(self, name: str, i: Tensor, like: Tensor) -> Tensor:
        """Coefficient `name` at indices i (B,), shaped (B, 1, 1, 1), in float64 rounded to the dtype of `like`."""
        values = getattr(self, name).to(i.device)[i]
        return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1)).to(like.device)

    def predict_x0(self, xi: Tensor, i: Tensor, eps: Tensor) -> Tensor:
        """x0 from noise: inverts `add_noise`."""
        alpha_bar = self.at("alphas_bar", i, xi)
        return (xi - (1 - alpha_bar).sqrt() * eps) / alpha_bar.sqrt()

    def posterior_mean(self, x0: Tensor, xi: Tensor, i: Tensor) -> Tensor:
        """Mean of q(x_{i-1} | x_i, x0) (DDPM Eq. 7)."""
        return self.at("mean_x0", i, xi) * x0 + self.at("mean_xt", i, xi) * xi

    def log_variance(self, v: Tensor, i: Tensor) -> Tensor:
        """Learned log variance: v in [-1, 1] interpolates between the two bounds (improved DDPM Eq. 15)."""
        low, high = self.at("log_variance_min", i, v), self.at("log_variance_max", i, v)
        fraction = (v + 1) / 2
        return fraction * high + (1 - fraction) * low

    def training_loss(self, output: Tensor, x0: Tensor, noise: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
        """L_simple and L_vlb of the model's output at x_i, each (B,) (improved DDPM §3.1; L_vlb trains the variance alone).

        output: (B, 2C, H, W), noise beside variance, or (B, C, H, W), whose L_vlb is zero.
        """
        eps, *rest = output.float().split(x0.shape[1], dim=1)
        simple = (eps - noise).square().flatten(1).mean(1)
        if not rest:
            return simple, torch.zeros_like(simple)
        xi = self.add_noise(x0, i, noise)
        mean = self.posterior_mean(self.predict_x0(xi, i, eps.detach()), xi, i)
        log_variance = self.log_variance(rest[0], i)
        true_mean, true_log_variance = self.posterior_mean(x0, xi, i), self.at("log_variance_min", i, xi)
        kl = normal_kl(true_mean, true_log_variance, mean, log_variance)
        decoder = -discretized_gaussian_log_likelihood(x0, mean, log_variance)
        bits = torch.where(i.reshape(-1, 1, 1, 1) == 0, decoder, kl) / math.log(2)
        return simple, bits.flatten(1).mean(1)


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) in nats, elementwise."""
    log_ratio = log_variance2 - log_variance1
    return 0.5 * (log_ratio - 1 + torch.exp(-log_ratio) + (mean1 - mean2).square() * torch.exp(-log_variance2))


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability of 8-bit pixels x in [-1, 1] under a Gaussian binned to 255ths (DDPM Eq. 13), elementwise, in nats."""
    scale = torch.exp(-0.5 * log_variance)

    def cdf(z: Tensor) -> Tensor:
        return torch.special.ndtr(z * scale)

    centred = x - mean
    upper = torch.where(x > 0.999, torch.ones_like(x), cdf(centred + 1 / 255))
    lower = torch.where(x < -0.999, torch.zeros_like(x), cdf(centred - 1 / 255))
    return (upper - lower).clamp(min=1e-12).log()
