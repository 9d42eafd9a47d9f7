"""Schedulers that have diffusers' pipelines sample as the official code of a model does, and as the samplers here do.

The published configurations of FLUX.1 and HunyuanVideo do so already. Elsewhere the published scheduler of a pipeline differs:

- Wan: UniPC's levels run from 1 to 1/1000 before the shift and end in 0; the official ones are spaced evenly from 0.999 to 0.
- HiDream-I1: as Wan's, with the nominal shift of 3; the official ones are shifted once more, by exp(1.15).
- DiT: DDIM takes every (1000 // steps)-th timestep, the official code those nearest to an even spacing of 0 … 999. The pipeline
  guides all channels of the latents, the official code the first three (`guidance_channels=None` of the sampler here: all).
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor, nn

from cache_dic import UserError
from taylorseers_diffusers.transformers import known

Levels = Callable[[int], Tensor]
"""Noise levels (num_steps + 1,) of a number of steps, down to 0."""


class OfficialUniPC(UniPCMultistepScheduler):
    """Second-order UniPC of a flow at levels of one's own."""

    def __init__(self, levels: Levels) -> None:
        super().__init__(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0)
        self.levels = levels

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        super().set_timesteps(device=device, sigmas=self.levels(num_inference_steps)[:-1].numpy())


class OfficialDDIM(DDIMScheduler):
    """DDIM at the timesteps of the official code, which end at 0 and 999."""

    def __init__(self) -> None:
        super().__init__(clip_sample=False)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        from dit.diffusion import Diffusion

        super().set_timesteps(num_inference_steps, device)
        self.process = Diffusion.respaced(num_inference_steps)
        self.timesteps = self.process.timesteps.flip(0).to(device)

    def step(
        self, model_output: Tensor, timestep: Tensor | int, sample: Tensor, *, return_dict: bool = True, **_: Any
    ) -> Any:
        from dit.sampler import ddim_step

        index = (self.process.timesteps == int(timestep)).nonzero().flatten().expand(len(sample))
        before = ddim_step(self.process, sample, index.to(sample.device), model_output)
        return DDIMSchedulerOutput(prev_sample=before) if return_dict else (before,)


def official_scheduler(transformer: nn.Module, shift: float | None = None) -> Any:
    """A scheduler for the pipeline of a transformer of diffusers, with the official levels and solver.

    shift: of the noise levels, None for that of the published model: 7 of HunyuanVideo, 5 of Wan, 3 of HiDream-I1 Full. FLUX
    takes its shift from the size of the image, and none where it is not guided. HiDream's distilled models are sampled by
    diffusers' FlowMatchLCMScheduler, as published. Raises UserError for another class and for a shift where there is none.
    """
    family = known(transformer).preset
    if family in ("flux", "dit") and shift is not None:
        raise UserError(f"shift = {shift} has no effect on {type(transformer).__name__}; leave it out")
    if family == "flux":
        return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=transformer.config.guidance_embeds)
    if family == "dit":
        return OfficialDDIM()
    if family == "hunyuan_video":
        from hunyuan_video.config import Usage as HunyuanVideo

        return FlowMatchEulerDiscreteScheduler(shift=HunyuanVideo.flow_shift if shift is None else shift)
    if family == "wan":
        from wan.config import Usage as Wan
        from wan.schedule import sampling_sigmas

        wanted = Wan.shift if shift is None else shift
        return OfficialUniPC(lambda num_steps: sampling_sigmas("unipc", num_steps, wanted))
    if family == "hidream":
        from hidream.config import Usage as HiDream
        from hidream.schedule import unipc_sigmas

        nominal, tokens = HiDream.shift if shift is None else shift, transformer.max_seq
        return OfficialUniPC(lambda num_steps: unipc_sigmas(num_steps, nominal, tokens))
    raise UserError(f"the official sampler of {type(transformer).__name__} is not known; keep the pipeline's scheduler")
