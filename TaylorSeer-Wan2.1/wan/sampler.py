"""Sampling Wan2.1: multistep flow solvers and classifier-free guidance, each branch with a cache of its own."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from seerkit.devices.guidance import GuidanceSplit, check_split
from seerkit.layers.patches import patchify, token_grid, unpatchify
from seerkit.sampling.branches import Branches
from seerkit.sampling.checks import check_noise, checked_cache, checked_model, checked_number, checked_steps
from seerkit.sampling.flow_solvers import SOLVERS
from wan.config import Usage
from wan.model import Wan
from wan.schedule import sampling_sigmas, sampling_timesteps

Callback = Callable[[int, Tensor], None]
Texts = Tensor | Sequence[Tensor]


def sample(
    model: Wan,
    noise: Tensor,
    context: Texts,
    negative: Texts | None = None,
    num_steps: int = Usage.num_steps,
    *,
    clip_fea: Tensor | None = None,
    y: Tensor | None = None,
    guidance_scale: float = Usage.guidance,
    shift: float = Usage.shift,
    solver: str = "unipc",
    batched: bool = False,
    split: GuidanceSplit | None = None,
    cache: Cache | None = None,
    callback: Callback | None = None,
    return_run: bool = False,
) -> "Tensor | tuple[Tensor, Branches]":
    """Latents (B, C, T, H, W) sampled from standard normal noise of that shape; conditions as `Sampler.run`.

    guidance_scale, shift, solver, batched, split: as in `Sampler`. cache: from `make_cache`; None computes every step.
    callback(step, latents) is called after each step. return_run: give the runs, too, whose `record()` tells what was
    computed. Raises UserError for shapes or settings out of range.
    """
    sampler = Sampler(
        model, num_steps, guidance_scale=guidance_scale, shift=shift, solver=solver, batched=batched, split=split
    )
    latents, runs = sampler.run(noise, context, negative, clip_fea=clip_fea, y=y, cache=cache, callback=callback)
    return (latents, runs) if return_run else latents


class Sampler:
    """A sampling procedure: number of steps, guidance, shift, solver.

    guidance_scale: weight of the answer with the text over that without; 1 makes no second branch. shift: of the noise levels
    towards noise, 5, or 3 for image-to-video at 480p. solver: a name in `SOLVERS`; the official ones are unipc and dpm++.
    batched: both branches in one call and one cache, but for methods that may leave one out. split: each branch in a process of
    its own, of which this is one.
    """

    def __init__(
        self,
        model: Wan,
        num_steps: int = Usage.num_steps,
        *,
        guidance_scale: float = Usage.guidance,
        shift: float = Usage.shift,
        solver: str = "unipc",
        batched: bool = False,
        split: GuidanceSplit | None = None,
    ) -> None:
        self.model, self.num_steps, self.solver = checked_model(model), checked_steps(num_steps), solver
        self.guidance_scale, self.batched = checked_number("guidance_scale", guidance_scale), batched
        self.split = split
        if split is not None and (batched or self.guidance_scale == 1 or model.shard.size > 1):
            raise UserError(
                "guidance on two processes needs two branches, in calls of their own, and all tokens in each process: leave "
                "out batched guidance and sequence parallelism, and give a guidance_scale other than 1"
            )
        self.sigmas = sampling_sigmas(solver, self.num_steps, checked_number("shift", shift))

    @torch.inference_mode()
    def run(
        self,
        noise: Tensor,
        context: Texts,
        negative: Texts | None = None,
        *,
        clip_fea: Tensor | None = None,
        y: Tensor | None = None,
        cache: Cache | None = None,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Branches]:
        """Final latents, in the dtype of `noise`, and the runs with their record of what was computed.

        context, negative: what is asked for and what the second branch sees, (B, L, text_dim) or a list of (L, text_dim).
        clip_fea, y: of image-to-video models, as the model takes them.
        Where the tokens are shared by processes, each steps its own patches, which is what callback gets.
        """
        check_noise(noise)
        cache, split = checked_cache(cache), self.split
        model, shard, guided = self.model, self.model.shard, self.guidance_scale != 1
        batched = guided and self.batched and not cache.separate_branches
        if guided and negative is None:
            raise UserError(
                f"guidance_scale = {self.guidance_scale} needs a negative text; an empty one will do, or use 1 for no guidance"
            )
        texts = [model.pad_context(text).to(noise.device) for text in ([context, negative] if guided else [context])]
        for text in texts:
            model.check(noise, text, clip_fea, y)
        if split is not None:
            check_split(cache)
            texts = [texts[split.branch]]
        x, images = noise.to(torch.promote_types(noise.dtype, torch.float32)), {"clip_fea": clip_fea, "y": y}
        shared = {name: value.to(x.device) for name, value in images.items() if value is not None}
        if shard.size > 1:
            patch = model.config.patch_size
            grid = token_grid(x.shape, patch)
            x = shard.split(patchify(x, patch))
            if y is not None:
                shared["y"] = shard.split(patchify(shared["y"], patch))
        if batched:
            texts, shared = [torch.cat(texts)], {name: torch.cat([v, v]) for name, v in shared.items()}

        solver = SOLVERS[self.solver](self.sigmas)
        timesteps = sampling_timesteps(self.sigmas).to(x.device)
        cache = replace(cache, branches=len(texts))
        rows = torch.cat([x, x]) if batched else x
        runs: list[Run] = []
        for text in texts:
            led = {"leader": runs[0] if runs else None} if split is None else split.led()
            runs.append(cache.start(model, rows, timesteps, **led, sigmas=self.sigmas[:-1], context=text, **shared))
        tokens = {"grid": grid} if shard.size > 1 else {}
        for step in range(self.num_steps):
            rows = torch.cat([x, x]) if batched else x
            t = timesteps[step].expand(len(rows))
            answers = [
                model(rows, t=t, context=text, **shared, **tokens, cache=run.at(step))
                for text, run in zip(texts, runs, strict=True)
            ]
            if split is not None:
                answers = split.both(answers[0])
            velocity = self.combine(torch.cat(answers).to(x.dtype))
            x = solver.step(step, velocity, x)
            if callback is not None:
                callback(step, x)
        if shard.size > 1:
            x = unpatchify(shard.gather(x, math.prod(grid)), grid, patch)
        return x.to(noise.dtype), Branches(runs, elsewhere=0 if split is None else 1)

    def combine(self, answers: Tensor) -> Tensor:
        """Guidance of answers with the text, then without, (2 B, …) -> (B, …)."""
        if self.guidance_scale == 1:
            return answers
        conditional, unconditional = answers.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)
