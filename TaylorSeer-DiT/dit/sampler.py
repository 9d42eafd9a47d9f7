"""DDIM and DDPM sampling with learned variance and classifier-free guidance (facebookresearch/DiT sample.py)."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from cache_dic.settings import integer
from dit.diffusion import Diffusion
from dit.model import DiT
from seerkit.sampling.branches import Branches
from seerkit.sampling.checks import (
    check_noise,
    checked_cache,
    checked_generators,
    checked_model,
    checked_number,
    checked_steps,
)
from seerkit.sampling.seeds import SampleGenerators

Callback = Callable[[int, Tensor], None]
NUM_STEPS = 50  # as in TaylorSeer's tables
GUIDANCE_SCALE = 1.5  # at which the official model is measured


def sample(
    model: DiT,
    noise: Tensor,
    y: Tensor,
    num_steps: int = NUM_STEPS,
    *,
    guidance_scale: float = GUIDANCE_SCALE,
    solver: str = "ddim",
    guidance_channels: int | None = 3,
    seed: int | None = None,
    generators: SampleGenerators | None = None,
    cache: Cache | None = None,
    callback: Callback | None = None,
    return_run: bool = False,
) -> Tensor | tuple[Tensor, Run | Branches]:
    """Latents (B, C, H, W) sampled from standard normal noise of that shape for classes y (B,).

    guidance_scale, solver, guidance_channels: as in `Sampler`; seed, generators: as in `Sampler.run`.
    cache: from `make_cache`; None computes every step. callback(step, latents) is called after each step. return_run: give
    the run, too, whose `record()` tells what was computed. Raises UserError for classes, shapes or settings out of range.
    """
    sampler = Sampler(
        model, num_steps, guidance_scale=guidance_scale, solver=solver, guidance_channels=guidance_channels
    )
    latents, run = sampler.run(noise, y, seed=seed, generators=generators, cache=cache, callback=callback)
    return (latents, run) if return_run else latents


class Sampler:
    """A sampling procedure: number of steps, guidance and solver.

    guidance_scale 1 runs no unconditional branch. solver: "ddim" (eta 0) or "ddpm", which draws noise at every step.
    guidance_channels: the official code guides the first three latent channels only; None guides all.
    """

    SOLVERS = ("ddim", "ddpm")

    def __init__(
        self,
        model: DiT,
        num_steps: int = NUM_STEPS,
        *,
        guidance_scale: float = GUIDANCE_SCALE,
        solver: str = "ddim",
        guidance_channels: int | None = 3,
    ) -> None:
        config = checked_model(model).config
        if solver not in self.SOLVERS:
            raise UserError(f"solver {solver!r} is unknown; choose from {', '.join(self.SOLVERS)}")
        num_steps, guidance_scale = checked_steps(num_steps), checked_number("guidance_scale", guidance_scale)
        if guidance_channels is not None:
            guidance_channels = integer("guidance_channels", guidance_channels, at_least=1)
        if guidance_scale < 0:
            raise UserError(f"guidance_scale = {guidance_scale} must be at least 0 (1 is no guidance)")
        if guidance_scale != 1 and not config.has_null_class:
            raise UserError(f"guidance_scale = {guidance_scale} needs a model trained with class dropout; use 1")
        self.model, self.num_steps, self.solver, self.guidance_scale = model, num_steps, solver, guidance_scale
        self.guided_channels = min(guidance_channels or config.in_channels, config.in_channels)
        self.diffusion = Diffusion.respaced(num_steps)

    @torch.inference_mode()
    def run(
        self,
        noise: Tensor,
        y: Tensor,
        *,
        seed: int | None = None,
        generators: SampleGenerators | None = None,
        cache: Cache | None = None,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Run | Branches]:
        """Final latents, in the dtype of `noise`, and the run with its record of what was computed.

        Both branches go through the model as one batch and share a cache, but for methods that may leave one out, which have
        two calls and two runs.
        seed: of the noise that ddpm draws, for samples 0 … B - 1, 0 if None; generators: of other samples, having drawn
        `noise`.
        """
        check_noise(noise)
        self._check(noise, y)
        cache = checked_cache(cache)
        generators = checked_generators(generators, seed, noise, solver=self.solver, draws=self.solver == "ddpm")
        indices = range(self.num_steps - 1, -1, -1)  # the process runs from most to least noise
        timesteps = self.diffusion.timesteps.flip(0).to(noise.device)
        guided = self.guidance_scale != 1
        labels = [y, torch.full_like(y, self.model.config.num_classes)] if guided else [y]
        batched = guided and not cache.separate_branches
        if batched:
            labels = [torch.cat(labels)]

        def rows() -> Tensor:
            """What the model gets: conditional and unconditional rows in one batch, in the model's dtype."""
            latents = x.to(self.model.dtype)
            return torch.cat([latents, latents]) if batched else latents

        x = noise
        # Uncached runs take their modulation from the table, too, so that interval 1 equals them to the bit.
        cache, runs = replace(cache, branches=len(labels)), []
        for of_branch in labels:
            leader = runs[0] if runs else None
            runs.append(cache.start(self.model, rows(), timesteps, leader=leader, y=of_branch))
        for step, index in enumerate(indices):
            batch = rows()
            t = timesteps[step].expand(len(batch))
            answers = [self.model(batch, t, y, cache=run.at(step)) for y, run in zip(labels, runs, strict=True)]
            output = torch.cat(answers)
            x = self._solve(
                x, torch.full((len(x),), index, device=x.device), self._guide(output.to(x.dtype)), generators
            )
            if callback is not None:
                callback(step, x)
        return x, runs[0] if len(runs) == 1 else Branches(runs)

    def _guide(self, output: Tensor) -> Tensor:
        return output if self.guidance_scale == 1 else guide(output, self.guidance_scale, self.guided_channels)

    def _solve(self, x: Tensor, index: Tensor, output: Tensor, generators: SampleGenerators | None) -> Tensor:
        eps, v = output[:, : x.shape[1]], output[:, x.shape[1] :]
        if self.solver == "ddim":
            return ddim_step(self.diffusion, x, index, eps)
        log_variance = self.diffusion.log_variance(v, index) if self.model.config.learn_sigma else None
        noise = generators.randn(*x.shape[1:], device=x.device, dtype=x.dtype)
        return ddpm_step(self.diffusion, x, index, eps, log_variance, noise)

    def _check(self, noise: Tensor, y: Tensor) -> None:
        classes = self.model.config.num_classes
        if y.ndim != 1 or len(y) != len(noise) or y.dtype != torch.int64:
            raise UserError(f"{len(noise)} samples need as many int64 classes, got {tuple(y.shape)} of {y.dtype}")
        if len(y) and not 0 <= y.min() <= y.max() < classes:
            wrong = [c for c in y.tolist() if not 0 <= c < classes]
            raise UserError(f"class {wrong[0]} is out of range; the model knows 0 … {classes - 1}")


def guide(output: Tensor, guidance_scale: float, channels: int) -> Tensor:
    """Classifier-free guidance: output (2B, C, …), conditional half first -> (B, C, …).

    Only the first `channels` channels are guided; the rest (variance, and DiT's fourth latent channel) stay conditional, as
    in the official code.
    """
    conditional, unconditional = output.chunk(2)
    guided = unconditional[:, :channels] + guidance_scale * (conditional - unconditional)[:, :channels]
    return torch.cat([guided, conditional[:, channels:]], dim=1)


def ddim_step(diffusion: Diffusion, x: Tensor, index: Tensor, eps: Tensor) -> Tensor:
    """x_i -> x_{i-1} without noise (DDIM, arXiv 2010.02502, Eq. 12 with σ = 0)."""
    alpha_bar = diffusion.at("alphas_bar_previous", index, x)
    return alpha_bar.sqrt() * diffusion.predict_x0(x, index, eps) + (1 - alpha_bar).sqrt() * eps


def ddpm_step(
    diffusion: Diffusion, x: Tensor, index: Tensor, eps: Tensor, log_variance: Tensor | None, noise: Tensor
) -> Tensor:
    """x_i -> x_{i-1} by the posterior (DDPM, arXiv 2006.11239, Eq. 6 and 7); the last step, i = 0, adds no noise.

    log_variance: learned, or None for the upper bound β (DDPM's fixed-large choice).
    """
    mean = diffusion.posterior_mean(diffusion.predict_x0(x, index, eps), x, index)
    if log_variance is None:
        log_variance = diffusion.at("log_variance_max", index, x)
    noisy = (index > 0).to(x).reshape(-1, 1, 1, 1)
    return mean + noisy * torch.exp(0.5 * log_variance) * noise
