"""Euler steps along the rectified flow, with the guidance weight as an input of the model (flux sampling.py)."""

from collections.abc import Callable

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from cache_dic.errors import shown
from flux.config import Usage, patch_side
from flux.latents import image_ids, pack, text_ids, unpack
from flux.model import Flux
from flux.schedule import sampling_times
from seerkit.sampling.checks import check_noise, checked_cache, checked_model, checked_number, checked_steps

Callback = Callable[[int, Tensor], None]


def sample(
    model: Flux,
    noise: Tensor,
    txt: Tensor,
    y: Tensor,
    num_steps: int = Usage.num_steps,
    *,
    guidance_scale: float = Usage.guidance,
    shift: bool | None = None,
    cache: Cache | None = None,
    callback: Callback | None = None,
    return_run: bool = False,
) -> Tensor | tuple[Tensor, Run]:
    """Latents (B, C, H, W) sampled from standard normal noise of that shape for text tokens txt (B, L, D) and pooled y (B, V).

    guidance_scale, shift: as in `Sampler`. cache: from `make_cache`; None computes every step. callback(step, latents) is
    called after each step. return_run: give the run, too, whose `record()` tells what was computed. Raises UserError for
    shapes or settings out of range.
    """
    sampler = Sampler(model, num_steps, guidance_scale=guidance_scale, shift=shift)
    latents, run = sampler.run(noise, txt, y, cache=cache, callback=callback)
    return (latents, run) if return_run else latents


class Sampler:
    """A sampling procedure: number of steps, guidance, shift.

    guidance_scale: weight that the model takes as an input, ignored by models without (schnell). shift: move the times
    towards the noise with the number of tokens; None shifts them for models that embed guidance, as published (dev does,
    schnell not).
    """

    def __init__(
        self,
        model: Flux,
        num_steps: int = Usage.num_steps,
        *,
        guidance_scale: float = Usage.guidance,
        shift: bool | None = None,
    ) -> None:
        if not isinstance(shift, bool | None):
            raise UserError(f"shift = {shown(shift)} must be True, False or None")
        self.model, self.num_steps = checked_model(model), checked_steps(num_steps)
        self.guidance_scale = checked_number("guidance_scale", guidance_scale)
        self.shift = model.config.guidance_embed if shift is None else shift

    @torch.inference_mode()
    def run(
        self,
        noise: Tensor,
        txt: Tensor,
        y: Tensor,
        *,
        cache: Cache | None = None,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Run]:
        """Final latents, in the dtype of `noise`, and the run with its record of what was computed."""
        check_noise(noise)
        cache = checked_cache(cache)
        if not len(noise) == len(txt) == len(y):
            raise UserError(f"{len(noise)} samples need as many texts, got {len(txt)} token and {len(y)} pooled rows")
        dtype = self.model.dtype
        height, width = noise.shape[-2:]
        patch = patch_side(self.model.config.in_channels, noise.shape[1])
        x = pack(noise, patch)
        times = sampling_times(self.num_steps, x.shape[1], shift=self.shift)
        conditions = {
            "img_ids": image_ids(len(x), height // patch, width // patch, x.device),
            "txt": txt.to(x.device, dtype),
            "txt_ids": text_ids(len(x), txt.shape[1], x.device),
            "y": y.to(x.device, dtype),
        }
        if self.model.config.guidance_embed:
            conditions["guidance"] = torch.full((len(x),), self.guidance_scale, device=x.device)
        # Uncached runs take their modulation from the table, too, so that interval 1 equals them to the bit.
        timesteps = times[:-1].to(x.device, torch.float32)
        run = cache.start(self.model, x.to(dtype), timesteps, **conditions)
        for step, (t, t_next) in enumerate(zip(times[:-1].tolist(), times[1:].tolist(), strict=True)):
            velocity = self.model(
                x.to(dtype), timesteps=timesteps[step].expand(len(x)), **conditions, cache=run.at(step)
            )
            x = x + (t_next - t) * velocity.to(x.dtype)
            if callback is not None:
                callback(step, unpack(x, height, width, patch))
        return unpack(x, height, width, patch), run
