"""Sampling HunyuanVideo: Euler steps along the flow, the guidance weight an input of the model (pipeline_hunyuan_video.py)."""

from collections.abc import Callable

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError, make_cache
from hunyuan_video.model import HunyuanVideo, trim_text
from hunyuan_video.schedule import sampling_sigmas, sampling_timesteps
from seerkit.layers.patches import patchify, token_grid, unpatchify
from seerkit.sampling.checks import check_noise, checked_number, checked_steps
from seerkit.sampling.flow_solvers import Euler

Callback = Callable[[int, Tensor], None]
GUIDANCE_FACTOR = 1000.0  # of the weight, as the model takes it


def sample(
    model: HunyuanVideo,
    noise: Tensor,
    text_states: Tensor,
    text_mask: Tensor | None,
    text_states_2: Tensor,
    num_steps: int = 50,
    *,
    cache: Cache | None = None,
    callback: Callback | None = None,
    **settings,
) -> Tensor:
    """Latents (B, C, T, H, W) sampled from standard normal noise of that shape; texts as the model takes them.

    cache: from `make_cache`; None computes every step. callback(step, latents) is called after each step. settings as in
    `Sampler`. Raises UserError for shapes or settings out of range.
    """
    sampler = Sampler(model, num_steps, **settings)
    return sampler.run(noise, text_states, text_mask, text_states_2, cache=cache, callback=callback)[0]


class Sampler:
    """A sampling procedure: number of steps, shift, guidance.

    shift: of the noise levels towards noise. guidance: weight that the model takes as an input, ignored by models without.
    reverse: levels from noise at 1 to 0, which the released weights are for; see `sampling_sigmas`.
    """

    def __init__(
        self,
        model: HunyuanVideo,
        num_steps: int = 50,
        *,
        shift: float = 7.0,
        guidance: float = 6.0,
        reverse: bool = True,
    ) -> None:
        self.model, self.num_steps, self.guidance = (
            model,
            checked_steps(num_steps),
            checked_number("guidance", guidance),
        )
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

        callback(step, latents) is called after every step; where the tokens are shared by processes it gets this process's
        patches.
        """
        check_noise(noise)
        model, shard, patch = self.model, self.model.shard, self.model.config.patch_size
        if not len(noise) == len(text_states) == len(text_states_2):
            raise UserError(
                f"{len(noise)} samples need as many texts, got {len(text_states)} token and {len(text_states_2)} pooled rows"
            )
        model.check_text(text_states, text_mask, text_states_2)
        grid = token_grid(noise.shape, patch)
        x = patchify(noise.to(torch.promote_types(noise.dtype, torch.float32)), patch)
        length, x = x.shape[1], shard.split(x)
        cache = cache or make_cache("uncached")
        static = cache.engine_settings.static_shapes
        states, mask = trim_text(text_states.to(x.device, model.dtype), text_mask, static_shapes=static)
        texts = {
            "text_states": states,
            "text_mask": None if mask is None else mask.to(x.device),
            "text_states_2": text_states_2.to(x.device, model.dtype),
        }
        if model.config.guidance_embed:
            texts["guidance"] = torch.full((len(x),), GUIDANCE_FACTOR * self.guidance, device=x.device)
        solver = Euler(self.sigmas)
        timesteps = sampling_timesteps(self.sigmas).to(x.device)
        run = cache.start(model, x.to(model.dtype), timesteps, **texts)
        for step in range(self.num_steps):
            t = timesteps[step].expand(len(x))
            velocity = model.velocity(x.to(model.dtype), grid, t, **texts, cache=run.at(step))
            x = solver.step(step, velocity, x)
            if callback is not None:
                callback(step, unpatchify(x, grid, patch) if shard.size == 1 else x)
        return unpatchify(shard.gather(x, length), grid, patch).to(noise.dtype), run
