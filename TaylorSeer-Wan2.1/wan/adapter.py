"""Wan2.1, counted and timed by name: what `seerkit.sampling.workload.Backbone` asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Cache, Run
from seerkit.devices.dtypes import made_in
from seerkit.sampling.workload import Callback, Case, Workload
from wan.config import CONFIGS, USAGE, latent_shape, wan_config
from wan.counts import WanCounter, published_counter
from wan.model import Wan
from wan.sampler import Sampler
from wan.schedule import sampling_timesteps
from wan.weights import COUNTERPART

CLIP_TOKENS = 257  # of a first frame, by CLIP ViT-H/14


@dataclass(frozen=True)
class Adapter:
    """The model called `name`."""

    name: str
    goals = MappingProxyType(
        {"latency_over_flops": 0.97, "forecast_over_full": 0.03, "folding_overhead": 0.05, "peak_memory": 0.5}
    )
    deepest = CONFIGS["wan-t2v-14B"].num_layers

    @property
    def num_steps(self) -> int:
        return USAGE[self.name].num_steps

    @property
    def own(self) -> Mapping[str, Any]:
        usage = USAGE[self.name]
        width, height = usage.sizes[0]
        return {"height": height, "width": width, "frames": usage.frames, "cfg_scale": usage.guidance}

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config = wan_config(self.name, depth=workload.depth)
        shape = latent_shape(self.name, workload.height, workload.width, workload.frames)
        rows = workload.num_samples * (1 if workload.cfg_scale == 1 else 2)
        latents = torch.randn(workload.num_samples, *shape, dtype=dtype).repeat(
            rows // workload.num_samples, 1, 1, 1, 1
        )
        conditions = {"context": torch.randn(rows, config.text_len, config.text_dim, dtype=dtype)}
        if config.model_type == "i2v":
            given = config.in_dim - config.out_dim  # mask and latents of the first frame
            conditions["clip_fea"] = torch.randn(rows, CLIP_TOKENS, config.image_dim, dtype=dtype)
            conditions["y"] = torch.randn(rows, given, *shape[1:], dtype=dtype)
        with made_in(dtype):
            model = Wan(config, attention=workload.attention).cast(dtype).eval().requires_grad_(False)
        return Case(model, latents, conditions, branches=rows // workload.num_samples)

    def _sampler(self, case: Case, num_steps: int, guidance: float = 1.0) -> Sampler:
        shift = USAGE[self.name].shift
        return Sampler(case.model, num_steps, shift=shift, guidance_scale=guidance, batched=True)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        return sampling_timesteps(self._sampler(case, num_steps).sigmas)

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        count = workload.num_samples
        context, negative = case.conditions["context"][:count], case.conditions["context"][count:]
        first_frame = {name: case.conditions[name][:count] for name in ("clip_fea", "y") if name in case.conditions}
        sampler = self._sampler(case, num_steps, workload.cfg_scale)
        noise = case.latents[:count].float()  # the sampler adds the unconditional rows itself
        return sampler.run(noise, context, negative, **first_frame, cache=cache, callback=callback)

    def counter(self, case: Case) -> WanCounter:
        tokens, image_tokens = case.model.tokens(case.latents).length, CLIP_TOKENS * ("clip_fea" in case.conditions)
        return published_counter(case.model.config, case.rows, tokens, image_tokens)

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]]:
        with made_in(case.latents.dtype):
            model = COUNTERPART.make(case.model.config).to(case.latents.dtype).eval().requires_grad_(False)
        return model, diffusers_arguments(case.latents, case.conditions)


def diffusers_arguments(latents: Tensor, conditions: Mapping[str, Tensor], *, t: int = 500) -> dict[str, Any]:
    """Arguments of a call of diffusers' class for the inputs of a call of `Wan` at time t."""
    first_frame = [conditions["y"]] if "y" in conditions else []
    return {
        "hidden_states": torch.cat([latents, *first_frame], dim=1),
        "timestep": torch.full((len(latents),), t, device=latents.device),
        "encoder_hidden_states": conditions["context"],
        "encoder_hidden_states_image": conditions.get("clip_fea"),
        "return_dict": False,
    }
