"""Sampling HiDream-I1: UniPC with classifier-free guidance for Full, renoising for the distilled Dev and Fast."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from hidream.config import Usage
from hidream.model import HiDream
from hidream.schedule import flash_sigmas, flash_timesteps, unipc_sigmas, unipc_timesteps
from seerkit.devices.guidance import GuidanceSplit, check_split
from seerkit.sampling.branches import Branches
from seerkit.sampling.checks import (
    check_noise,
    checked_cache,
    checked_generators,
    checked_model,
    checked_number,
    checked_steps,
)
from seerkit.sampling.flow_solvers import Euler, UniPC
from seerkit.sampling.seeds import SampleGenerators

Callback = Callable[[int, Tensor], None]
Texts = tuple[Tensor, Tensor, Tensor]
"""T5 tokens (B, L5, D5), Llama's hidden states (layers, B, Ll, Dl), pooled vectors (B, V)."""


class Flash(Euler):
    """Every step jumps to the model's data prediction and mixes it with fresh noise at the next level.

    The last step leaves x as it is, although the model is called for it (HiDream-I1 schedulers/flash_flow_match.py).
    draw: gives the noise of a step, of the shape of x.
    """

    def __init__(self, sigmas: Tensor, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__(sigmas)
        self.draw = draw

    def step(self, i: int, velocity: Tensor, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if i == self.num_steps - 1:
            return x
        x0 = x - self.sigmas[i] * velocity.to(x.dtype)
        return torch.lerp(x0, self.draw(x), self.sigmas[i + 1])


SOLVERS = ("unipc", "flash")


def sample(
    model: HiDream,
    noise: Tensor,
    t5: Tensor,
    llama: Tensor,
    pooled: Tensor,
    num_steps: int = Usage.num_steps,
    *,
    negative: Texts | None = None,
    guidance_scale: float = Usage.guidance,
    shift: float = Usage.shift,
    solver: str = Usage.solver,
    split: GuidanceSplit | None = None,
    seed: int | None = None,
    generators: SampleGenerators | None = None,
    cache: Cache | None = None,
    callback: Callback | None = None,
    return_run: bool = False,
) -> Tensor | tuple[Tensor, Run | Branches]:
    """Latents (B, C, H, W) sampled from standard normal noise of that shape; texts, seed and generators as `Sampler.run`.

    guidance_scale, shift, solver, split: as in `Sampler`. cache: from `make_cache`; None computes every step.
    callback(step, latents) is called after each step. return_run: give the run, too, whose `record()` tells what was
    computed. Raises UserError for shapes or settings out of range.
    """
    sampler = Sampler(model, num_steps, guidance_scale=guidance_scale, shift=shift, solver=solver, split=split)
    latents, run = sampler.run(
        noise, t5, llama, pooled,
        negative=negative, seed=seed, generators=generators, cache=cache, callback=callback,
    )  # fmt: skip
    return (latents, run) if return_run else latents


class Sampler:
    """A sampling procedure: number of steps, guidance, shift, solver.

    guidance_scale: weight of the answer with the text over that without; up to 1 there is no second branch. shift: nominal, 3,
    or 6 for Dev; what it does is in `hidream.schedule`. solver: unipc (Full), or flash (Dev and Fast), which draws noise at
    every step. split: each branch in a process of its own, of which this is one.
    """

    def __init__(
        self,
        model: HiDream,
        num_steps: int = Usage.num_steps,
        *,
        guidance_scale: float = Usage.guidance,
        shift: float = Usage.shift,
        solver: str = Usage.solver,
        split: GuidanceSplit | None = None,
    ) -> None:
        num_steps, shift = checked_steps(num_steps), checked_number("shift", shift)
        if solver not in SOLVERS:
            raise UserError(f"unknown solver {solver!r}; choose from {', '.join(SOLVERS)}")
        self.model, self.num_steps, self.solver = checked_model(model), num_steps, solver
        self.guidance_scale = checked_number("guidance_scale", guidance_scale)
        self.split = split
        if split is not None and self.guidance_scale <= 1:
            raise UserError(
                f"guidance on two processes needs two branches, which guidance_scale = {self.guidance_scale} has not; give one "
                "above 1"
            )
        if solver == "unipc":
            self.sigmas = unipc_sigmas(num_steps, shift, model.config.max_tokens)
            self.timesteps = unipc_timesteps(self.sigmas)
        else:
            self.sigmas = flash_sigmas(num_steps, shift)
            self.timesteps = flash_timesteps(self.sigmas)

    @torch.inference_mode()
    def run(
        self,
        noise: Tensor,
        t5: Tensor,
        llama: Tensor,
        pooled: Tensor,
        *,
        negative: Texts | None = None,
        seed: int | None = None,
        generators: SampleGenerators | None = None,
        cache: Cache | None = None,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Run | Branches]:
        """Final latents, in the dtype of `noise`, and the run with its record of what was computed.

        t5, llama, pooled: as the model takes them. negative: the same of what the second branch sees, an empty text in the
        official pipeline; both branches go through the model as one batch, the second one first, and share a cache, but for
        methods that may leave one out, which have two calls and two runs, the second branch last. On two processes each has its
        rows of that batch, and schedules decide by both.
        seed: of the noise that flash draws, for samples 0 … B - 1, 0 if None; generators: of other samples, having drawn
        `noise`.
        """
        check_noise(noise)
        cache, split = checked_cache(cache), self.split
        model, guided = self.model, self.guidance_scale > 1
        texts: Texts = (t5, llama, pooled)
        if guided and negative is None:
            raise UserError(
                f"guidance_scale = {self.guidance_scale} needs a negative text; an empty one will do, or use 1 for no guidance"
            )
        model.check(noise, *texts)
        names = ("t5", "llama", "pooled")
        if guided:
            for name, text, other in zip(names, texts, negative, strict=True):
                if other.shape != text.shape:
                    raise UserError(
                        f"negative {name} of shape {tuple(other.shape)} must be {tuple(text.shape)}, as the text"
                    )
        of_branches = [texts]
        if split is not None:
            check_split(cache)
            of_branches = [texts if split.leads else negative]
        elif guided and cache.separate_branches:
            of_branches.append(negative)
        elif guided:
            dims = (0, 1, 0)
            of_branches = [
                tuple(torch.cat(pair, dim) for pair, dim in zip(zip(negative, texts, strict=True), dims, strict=True))
            ]
        calls = [
            {name: text.to(noise.device, model.dtype) for name, text in zip(names, texts, strict=True)}
            for texts in of_branches
        ]
        x = noise.to(torch.promote_types(noise.dtype, torch.float32))
        timesteps = self.timesteps.to(x.device)
        solver = self._solver(seed, generators, noise)

        def rows() -> Tensor:
            return x.to(model.dtype).repeat(2 if guided and split is None and len(calls) == 1 else 1, 1, 1, 1)

        # Uncached runs take their modulation from the table, too, so that interval 1 equals them to the bit.
        cache, runs = replace(cache, branches=len(calls)), []
        for conditions in calls:
            leader = runs[0] if runs else None
            runs.append(
                cache.start(model, rows(), timesteps, leader=leader, shard=split, sigmas=self.sigmas[:-1], **conditions)
            )
        for step in range(self.num_steps):
            latents = rows()
            t = timesteps[step].expand(len(latents))
            answers = [
                model(latents, timesteps=t, **conditions, cache=run.at(step)).to(x.dtype)
                for conditions, run in zip(calls, runs, strict=True)
            ]
            if split is not None:
                answers = split.both(answers[0])
            x = solver.step(step, self._velocity(torch.cat(answers[::-1]), guided), x)
            if callback is not None:
                callback(step, x)
        if split is not None:
            return x.to(noise.dtype), Branches(runs, elsewhere=1)
        return x.to(noise.dtype), runs[0] if len(runs) == 1 else Branches(runs)

    def _solver(self, seed: int | None, generators: SampleGenerators | None, noise: Tensor) -> Euler:
        source = checked_generators(generators, seed, noise, solver=self.solver, draws=self.solver == "flash")
        if source is None or self.solver != "flash":
            return UniPC(self.sigmas)
        return Flash(self.sigmas, lambda x: source.randn(*x.shape[1:], device=x.device, dtype=x.dtype))

    def _velocity(self, answers: Tensor, guided: bool) -> Tensor:
        """The model predicts data minus noise, the velocity's negative; guidance of (2 B, …), without text first."""
        if not guided:
            return -answers
        unconditional, conditional = (-answers).chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)
