"""HunyuanVideo, counted and timed by name: what `seerkit.sampling.workload.Backbone` asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Cache, Run
from hunyuan_video.config import CONFIGS, USAGE, hunyuan_video_config, latent_shape
from hunyuan_video.counts import published_counter
from hunyuan_video.model import HunyuanVideo
from hunyuan_video.sampler import GUIDANCE_FACTOR, Sampler
from hunyuan_video.schedule import sampling_timesteps
from hunyuan_video.weights import COUNTERPART
from seerkit.devices.dtypes import made_in
from seerkit.sampling.published import CalflopsCounter
from seerkit.sampling.workload import Callback, Case, Workload


@dataclass(frozen=True)
class Adapter:
    """The model called `name`."""

    name: str
    goals = MappingProxyType(
        {"latency_over_flops": 0.97, "forecast_over_full": 0.03, "folding_overhead": 0.05, "peak_memory": 0.1}
    )
    deepest = CONFIGS["hunyuan-video"].mm_double_blocks_depth

    @property
    def num_steps(self) -> int:
        return USAGE[self.name].num_steps

    @property
    def own(self) -> Mapping[str, Any]:
        usage = USAGE[self.name]
        return {name: getattr(usage, name) for name in ("height", "width", "frames", "text_tokens")}

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config, count = hunyuan_video_config(self.name, depth=workload.depth), workload.num_samples
        shape = latent_shape(self.name, workload.height, workload.width, workload.frames)
        latents = torch.randn(count, *shape, dtype=dtype)
        conditions = {
            "text_states": torch.randn(count, workload.text_tokens, config.text_states_dim, dtype=dtype),
            "text_states_2": torch.randn(count, config.text_states_dim_2, dtype=dtype),
        }
        if config.guidance_embed:
            weight = GUIDANCE_FACTOR * USAGE[self.name].guidance
            conditions["guidance"] = torch.full((count,), weight)
        with made_in(dtype):
            model = HunyuanVideo(config, attention=workload.attention).to(dtype).eval().requires_grad_(False)
        return Case(model, latents, conditions)

    def _sampler(self, case: Case, num_steps: int) -> Sampler:
        usage = USAGE[self.name]
        return Sampler(case.model, num_steps, shift=usage.flow_shift, guidance_scale=usage.guidance)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        return sampling_timesteps(self._sampler(case, num_steps).sigmas)

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        texts = case.conditions["text_states"], None, case.conditions["text_states_2"]
        return self._sampler(case, num_steps).run(case.latents.float(), *texts, cache=cache, callback=callback)

    def counter(self, case: Case) -> CalflopsCounter:
        tokens = case.model.tokens(case.latents).length
        return published_counter(case.model.config, case.rows, tokens, case.conditions["text_states"].shape[1])

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]]:
        with made_in(case.latents.dtype):
            model = COUNTERPART.make(case.model.config).to(case.latents.dtype).eval().requires_grad_(False)
        return model, diffusers_arguments(case.latents, case.conditions)


def diffusers_arguments(latents: Tensor, conditions: Mapping[str, Tensor], *, t: float = 500.0) -> dict[str, Any]:
    """Arguments of a call of diffusers' class for the inputs of a call of `HunyuanVideo` at time t, every text token valid."""
    text = conditions["text_states"]
    guidance = conditions.get("guidance")
    return {
        "hidden_states": latents,
        "timestep": torch.full((len(latents),), t, device=latents.device),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(text.shape[:2], device=text.device, dtype=torch.int64),
        "pooled_projections": conditions["text_states_2"],
        "guidance": None if guidance is None else guidance.to(latents.dtype),
        "return_dict": False,
    }
