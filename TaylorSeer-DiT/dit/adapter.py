"""DiT, counted and timed by name: what `seerkit.sampling.workload.Backbone` asks for."""

from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from cache_dic import Cache, Run, UserError
from dit.config import CONFIGS, DiTConfig, dit_config
from dit.counts import DiTCounter, published_counter
from dit.diffusion import Diffusion
from dit.model import DiT
from dit.sampler import Sampler
from seerkit.devices.dtypes import made_in
from seerkit.sampling.workload import Callback, Case, Workload


@dataclass(frozen=True)
class Adapter:
    """The model called `name`."""

    name: str
    num_steps = 50
    own = MappingProxyType({"height": None, "width": None, "cfg_scale": 1.5})
    goals = MappingProxyType(
        {
            "latency_over_flops": 0.95,
            "forecast_over_full": 0.02,
            "folding_overhead": 0.05,
            "kept_ratio_order_2": 8.0,
        }
    )
    deepest = CONFIGS["DiT-XL/2"].depth

    def config(self, workload: Workload) -> DiTConfig:
        if workload.height != workload.width:
            raise UserError(f"{self.name} makes squares, not {workload.height} x {workload.width}; use --image-size")
        config = dit_config(self.name, image_size=workload.height)
        return config if workload.depth is None else replace(config, depth=workload.depth)

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config = self.config(workload)
        count, side = workload.num_samples, config.input_size
        latents = torch.randn(count, config.in_channels, side, side, dtype=dtype)
        y = torch.arange(count) % config.num_classes
        if workload.cfg_scale != 1:
            latents, y = torch.cat([latents, latents]), torch.cat([y, torch.full_like(y, config.num_classes)])
        with made_in(dtype):
            model = DiT(config, attention=workload.attention).to(dtype).eval().requires_grad_(False)
        return Case(model, latents, {"y": y}, branches=len(y) // count)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        return Diffusion.respaced(num_steps).timesteps.flip(0)

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        sampler = Sampler(case.model, num_steps, guidance_scale=workload.cfg_scale)
        samples = slice(workload.num_samples)  # the sampler adds the unconditional rows itself
        return sampler.run(case.latents[samples].float(), case.conditions["y"][samples], cache=cache, callback=callback)

    def counter(self, case: Case) -> DiTCounter:
        return published_counter(case.model.config, case.rows)

    def reference(self, case: Case) -> None:
        return None
