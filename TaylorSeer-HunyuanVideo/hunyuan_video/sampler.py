"""Sampling HunyuanVideo: Euler steps along the flow, the guidance weight an input of the model (pipeline_hunyuan_video.py)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from hunyuan_video.config import Usage
from hunyuan_video.model import HunyuanVideo, trim_text
from hunyuan_video.schedule import sampling_sigmas, sampling_timesteps
from seerkit.layers.patches import patchify, token_grid, unpatchify
from seerkit.sampling.checks import check_noise, checked_cache, checked_model, checked_number, checked_steps
from seerkit.sampling.flow_solvers import Euler

Callback = Callable[[int, Tensor], None]
GUIDANCE_FACTOR = 1000.0  # of the weight, as the model takes it


def sample(
    model: HunyuanVideo,
    noise: Tensor,
    text_states: Tensor,
    text_mask: Tensor | None,
    text_states_2: Tensor,
    num_steps: int = Usage.num_steps,
    *,
    guidance_scale: float = Usage.guidance,
    shift: float = Usage.flow_shift,
    reverse: bool = True,
    cache: Cache | None = None,
    callback: Callback | None = None,
    return_run: bool = False,
) -> Tensor | tuple[Tensor, Run]:
    """Latents (B, C, T, H, W) sampled from standard normal noise of that shape; texts as the model takes them.

    guidance_scale, shift, reverse: as in `Sampler`. cache: from `make_cache`; None computes every step.
    callback(step, latents) is called after each step. return_run: give the run, too, whose `record()` tells what was
    computed. Raises UserError for shapes or settings out of range.
    """
    sampler = Sampler(model, num_steps, guidance_scale=guidance_scale, shift=shift, reverse=reverse)
    latents, run = sampler.run(noise, text_states, text_mask, text_states_2, cache=cache, callback=callback)
    return (latents, run) if return_run else latents


class Sampler:
    """A sampling procedure: number of steps, guidance, shift.

    guidance_scale: weight that the model takes as an input, ignored by models without. shift: of the noise levels towards
    noise. reverse: levels from noise at 1 to 0, which the released weights are for; see `sampling_sigmas`.
    """

    def __init__(
        self,
        model: HunyuanVideo,
        num_steps: int = Usage.num_steps,
        *,
        guidance_scale: float = Usage.guidance,
        shift: float = Usage.flow_shift,
        reverse: bool = True,
    ) -> None:
        self.model, self.num_steps = checked_model(model), checked_steps(num_steps)
        self.guidance_scale = checked_number("guidance_scale", guidance_scale)
        self.sigmas = sampling_sigmas(self.num_steps, checked_number("shift", shift), reverse)

    @torch.inference_mode()
    def run(
        self,
        noise: Tensor,
        text_states: Tensor,
        text_mask: Tensor | None,
        text_states_2: Tensor,
        *,
        cache: Cache | None = None,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Run]:
        """Final latents, in the dtype of `noise`, and the run with its record of what was computed.

        Where the tokens are shared by processes, each steps its own patches, which is what callback gets.
        """
        check_noise(noise)
        model, shard, cache = self.model, self.model.shard, checked_cache(cache)
        if not len(noise) == len(text_states) == len(text_states_2):
            raise UserError(
                f"{len(noise)} samples need as many texts, got {len(text_states)} token and {len(text_states_2)} pooled rows"
            )
        model.check_text(text_states, text_mask, text_states_2)
        x = noise.to(torch.promote_types(noise.dtype, torch.float32))
        static = cache.engine_settings.static_shapes
        states, mask = trim_text(text_states.to(x.device, model.dtype), text_mask, static_shapes=static)
        texts = {
            "text_states": states,
            "text_mask": None if mask is None else mask.to(x.device),
            "text_states_2": text_states_2.to(x.device, model.dtype),
        }
        if model.config.guidance_embed:
            texts["guidance"] = torch.full((len(x),), GUIDANCE_FACTOR * self.guidance_scale, device=x.device)
        tokens = {}
        if shard.size > 1:
            patch = model.config.patch_size
            grid = token_grid(x.shape, patch)
            x, tokens = shard.split(patchify(x, patch)), {"grid": grid}
        solver = Euler(self.sigmas)
        timesteps = sampling_timesteps(self.sigmas).to(x.device)
        run = cache.start(model, x.to(model.dtype), timesteps, sigmas=self.sigmas[:-1], **texts)
        for step in range(self.num_steps):
            t = timesteps[step].expand(len(x))
            velocity = model(x.to(model.dtype), t=t, **texts, **tokens, cache=run.at(step))
            x = solver.step(step, velocity, x)
            if callback is not None:
                callback(step, x)
        if shard.size > 1:
            x = unpatchify(shard.gather(x, math.prod(grid)), grid, patch)
        return x.to(noise.dtype), run
