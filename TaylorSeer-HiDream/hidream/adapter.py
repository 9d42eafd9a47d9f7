"""HiDream-I1, counted and timed by name: what `seerkit.sampling.workload.Backbone` asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Cache, Run
from hidream.config import CONFIGS, USAGE, hidream_config, latent_shape
from hidream.model import HiDream
from hidream.sampler import Sampler
from hidream.weights import COUNTERPART
from seerkit.devices.dtypes import made_in
from seerkit.sampling.seeds import SampleGenerators
from seerkit.sampling.workload import Callback, Case, Workload


@dataclass(frozen=True)
class Adapter:
    """The model called `name`."""

    name: str
    goals = MappingProxyType(
        {"latency_over_flops": 0.97, "forecast_over_full": 0.03, "folding_overhead": 0.05, "peak_memory": 0.03}
    )

    @property
    def deepest(self) -> int:
        """As many double blocks as the configuration names Llama layers for, with two single ones each."""
        return CONFIGS[self.name].num_blocks // 3

    @property
    def num_steps(self) -> int:
        return USAGE[self.name].num_steps

    @property
    def own(self) -> Mapping[str, Any]:
        usage = USAGE[self.name]
        sizes = {"height": usage.image_size, "width": usage.image_size}
        return {**sizes, "cfg_scale": usage.guidance, "text_tokens": usage.text_tokens}

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config, count = hidream_config(self.name, depth=workload.depth), workload.num_samples
        shape = latent_shape(self.name, workload.height, workload.width)
        rows, length = count * (2 if workload.cfg_scale > 1 else 1), workload.text_tokens
        t5, llama = config.caption_channels
        latents = torch.randn(count, *shape, dtype=dtype).repeat(rows // count, 1, 1, 1)
        conditions = {
            "t5": torch.randn(rows, length, t5, dtype=dtype),
            "llama": torch.randn(1 + max(config.llama_layers), rows, length, llama, dtype=dtype),
            "pooled": torch.randn(rows, config.text_emb_dim, dtype=dtype),
        }
        with made_in(dtype):
            model = HiDream(config, attention=workload.attention).to(dtype).eval().requires_grad_(False)
        return Case(model, latents, conditions, branches=rows // count)

    def _sampler(self, case: Case, num_steps: int, guidance: float = 1.0) -> Sampler:
        usage = USAGE[self.name]
        return Sampler(case.model, num_steps, solver=usage.solver, shift=usage.shift, guidance_scale=guidance)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        return self._sampler(case, num_steps).timesteps

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        count, conditions = workload.num_samples, case.conditions
        texts = [  # of the rows without text, which come first, and of those with it; one of them without guidance
            (conditions["t5"][rows], conditions["llama"][:, rows], conditions["pooled"][rows])
            for rows in (slice(0, count), slice(case.rows - count, None))
        ]
        sampler = self._sampler(case, num_steps, workload.cfg_scale)
        generators = SampleGenerators(0, range(count))  # of the flash solver's noise
        noise = case.latents[:count].float()  # the sampler adds the unconditional rows itself
        return sampler.run(noise, *texts[1], negative=texts[0], generators=generators, cache=cache, callback=callback)

    def counter(self, case: Case) -> None:
        return None

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]]:
        with made_in(case.latents.dtype):
            model = COUNTERPART.make(case.model.config).to(case.latents.dtype).eval().requires_grad_(False)
        return model, diffusers_arguments(case.latents, case.conditions)


def diffusers_arguments(latents: Tensor, conditions: Mapping[str, Tensor], *, t: float = 500.0) -> dict[str, Any]:
    """Arguments of a call of diffusers' class for those of `HiDream` at time t; it pads images that are not square itself."""
    return {
        "hidden_states": latents,
        "timesteps": torch.full((len(latents),), t, device=latents.device),
        "encoder_hidden_states_t5": conditions["t5"],
        "encoder_hidden_states_llama3": conditions["llama"],
        "pooled_embeds": conditions["pooled"],
        "return_dict": False,
    }
