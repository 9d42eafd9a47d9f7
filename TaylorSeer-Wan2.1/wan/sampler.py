"""Sampling Wan2.1: multistep flow solvers and classifier-free guidance, each branch with a cache of its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError, make_cache
from seerkit.layers.patches import patchify, token_grid, unpatchify
from seerkit.sampling.checks import check_noise, checked_number, checked_steps
from seerkit.sampling.flow_solvers import SOLVERS
from wan.model import Wan
from wan.schedule import sampling_sigmas, sampling_timesteps

Callback = Callable[[int, Tensor], None]
Texts = Tensor | Sequence[Tensor]


def sample(
    model: Wan,
    noise: Tensor,
    context: Texts,
    negative: Texts | None = None,
    num_steps: int = 50,
    *,
    clip_fea: Tensor | None = None,
    y: Tensor | None = None,
    cache: Cache | None = None,
    callback: Callback | None = None,
    **settings,
) -> Tensor:
    """Latents (B, C, T, H, W) sampled from standard normal noise of that shape; texts as `Sampler.run`.

    cache: from `make_cache`; None computes every step. callback(step, latents) is called after each step. settings as in
    `Sampler`. Raises UserError for shapes or settings out of range.
    """
    sampler = Sampler(model, num_steps, **settings)
    return sampler.run(noise, context, negative, clip_fea=clip_fea, y=y, cache=cache, callback=callback)[0]


@dataclass(frozen=True)
class Branches:
    """The runs of a sampling run: with the text and, where it is guided, without. One schedule decides for both."""

    runs: list[Run]

    def record(self) -> dict[str, Any]:
        """What was done, for a JSON record: that of the conditional branch, with what all branches keep."""
        kept = sum(run.kept_bytes for run in self.runs)
        return {**self.runs[0].record(), "branches": len(self.runs), "kept_bytes": kept}


class Sampler:
    """A sampling procedure: number of steps, solver, shift, guidance.

    solver: unipc or dpm++. shift: of the noise levels towards noise, 5, or 3 for image-to-video at 480p. guidance: weight of
    the answer with the text over that without; 1 makes no second branch. batched: both branches in one call and one cache.
    """

    def __init__(
        self,
        model: Wan,
        num_steps: int = 50,
        *,
        solver: str = "unipc",
        shift: float = 5.0,
        guidance: float = 5.0,
        batched: bool = False,
    ) -> None:
        self.model, self.num_steps, self.solver = model, checked_steps(num_steps), solver
        self.guidance, self.batched = checked_number("guidance", guidance), batched
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
        clip_fea, y: of image-to-video models, as the model takes them. callback(step, latents) is called after every step;
        where the tokens are shared by processes it gets this process's patches.
        """
        check_noise(noise)
        model, shard, patch = self.model, self.model.shard, self.model.config.patch_size
        guided = self.guidance != 1
        if guided and negative is None:
            raise UserError(f"guidance {self.guidance} needs a negative text; an empty one will do, or use guidance 1")
        texts = [model.pad_context(text).to(noise.device) for text in ([context, negative] if guided else [context])]
        for text in texts:
            model.check(noise, text, clip_fea, y)
        grid = token_grid(noise.shape, patch)
        x = patchify(noise.to(torch.promote_types(noise.dtype, torch.float32)), patch)
        length, x = x.shape[1], shard.split(x)
        shared = {"clip_fea": clip_fea, "y": None if y is None else shard.split(patchify(y, patch))}
        shared = {name: value.to(x.device) for name, value in shared.items() if value is not None}
        if guided and self.batched:
            texts, shared = [torch.cat(texts)], {name: torch.cat([v, v]) for name, v in shared.items()}

        solver = SOLVERS[self.solver](self.sigmas)
        timesteps = sampling_timesteps(self.sigmas).to(x.device)
        cache = replace(cache or make_cache("uncached"), branches=len(texts))
        rows = x.repeat(2, 1, 1) if guided and self.batched else x
        runs = [cache.start(model, rows, timesteps, context=text, **shared) for text in texts]
        for step in range(self.num_steps):
            rows = x.repeat(2, 1, 1) if guided and self.batched else x
            t = timesteps[step].expand(len(rows))
            answers = [
                model.velocity(rows, grid, t, text, **shared, cache=run.at(step))
                for text, run in zip(texts, runs, strict=True)
            ]
            velocity = self.combine(torch.cat(answers).to(x.dtype))
            x = solver.step(step, velocity, x)
            if callback is not None:
                callback(step, unpatchify(x, grid, patch) if shard.size == 1 else x)
        return unpatchify(shard.gather(x, length), grid, patch).to(noise.dtype), Branches(runs)

    def combine(self, answers: Tensor) -> Tensor:
        """Guidance of answers with the text, then without, (2 B, …) -> (B, …)."""
        if self.guidance == 1:
            return answers
        conditional, unconditional = answers.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)
