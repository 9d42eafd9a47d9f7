"""FLUX, counted and timed by name: what `seerkit.sampling.workload.Backbone` asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Cache, Run
from flux.config import CONFIGS, USAGE, flux_config, latent_shape, patch_side
from flux.counts import published_counter
from flux.latents import image_ids, pack, text_ids, unpack
from flux.model import Flux
from flux.sampler import Sampler
from flux.schedule import sampling_times
from flux.weights import COUNTERPART
from seerkit.devices.dtypes import made_in
from seerkit.sampling.published import CalflopsCounter
from seerkit.sampling.workload import Callback, Case, Workload


@dataclass(frozen=True)
class Adapter:
    """The model called `name`."""

    name: str
    goals = MappingProxyType(
        {
            "latency_over_flops": 0.97,
            "forecast_over_full": 0.03,
            "folding_overhead": 0.05,
            "forecast_operations": 40,
            "peak_memory": 0.03,
        }
    )
    deepest = CONFIGS["flux-dev"].depth

    @property
    def num_steps(self) -> int:
        return USAGE[self.name].num_steps

    @property
    def own(self) -> Mapping[str, Any]:
        usage = USAGE[self.name]
        return {"height": usage.image_size, "width": usage.image_size, "text_tokens": usage.text_tokens}

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config = flux_config(self.name, depth=workload.depth)
        channels, height, width = latent_shape(self.name, workload.height, workload.width)
        patch, count, length = patch_side(config.in_channels, channels), workload.num_samples, workload.text_tokens
        latents = pack(torch.randn(count, channels, height, width, dtype=dtype), patch)
        conditions = {
            "img_ids": image_ids(count, height // patch, width // patch, latents.device),
            "txt": torch.randn(count, length, config.context_in_dim, dtype=dtype),
            "txt_ids": text_ids(count, length, latents.device),
            "y": torch.randn(count, config.vec_in_dim, dtype=dtype),
        }
        if config.guidance_embed:
            conditions["guidance"] = torch.full((count,), USAGE[self.name].guidance)
        with made_in(dtype):
            model = Flux(config, attention=workload.attention).to(dtype).eval().requires_grad_(False)
        return Case(model, latents, conditions)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        shift = Sampler(case.model, num_steps).shift
        return sampling_times(num_steps, case.latents.shape[1], shift=shift)[:-1].float()

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        channels, height, width = latent_shape(self.name, workload.height, workload.width)
        noise = unpack(case.latents.float(), height, width, patch_side(case.model.config.in_channels, channels))
        sampler = Sampler(case.model, num_steps, guidance_scale=USAGE[self.name].guidance)
        return sampler.run(noise, case.conditions["txt"], case.conditions["y"], cache=cache, callback=callback)

    def counter(self, case: Case) -> CalflopsCounter:
        return published_counter(case.model.config, case.rows, case.latents.shape[1], case.conditions["txt"].shape[1])

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]]:
        with made_in(case.latents.dtype):
            model = COUNTERPART.make(case.model.config).to(case.latents.dtype).eval().requires_grad_(False)
        return model, diffusers_arguments(case.latents, case.conditions)


def diffusers_arguments(img: Tensor, conditions: Mapping[str, Tensor], *, t: float = 0.5) -> dict[str, Any]:
    """Arguments of a call of diffusers' class for the inputs of a call of `Flux` at time t."""
    arguments = {
        "hidden_states": img,
        "encoder_hidden_states": conditions["txt"],
        "pooled_projections": conditions["y"],
        "timestep": torch.full((len(img),), t, device=img.device, dtype=img.dtype),
        "img_ids": conditions["img_ids"][0],
        "txt_ids": conditions["txt_ids"][0],
        "return_dict": False,
    }
    if "guidance" in conditions:
        arguments["guidance"] = conditions["guidance"].to(img.dtype)
    return arguments
