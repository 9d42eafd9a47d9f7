"""HunyuanVideo's noise levels and timesteps against the official scheduler and diffusers."""

import numpy as np
import pytest
import torch

from hunyuan_video.schedule import sampling_sigmas, sampling_timesteps
from seerkit.sampling.flow_solvers import Euler

# From running hyvideo/diffusion/schedulers/scheduling_flow_match_discrete.py of Tencent/HunyuanVideo, 50 steps, shift 7.
STEPS = [0, 1, 2, 10, 25, 40, 48, 49]
OFFICIAL_TIMESTEPS = {
    True: [
        1000.0,
        997.093017578125,
        994.0828857421875,
        965.5172119140625,
        875.0,
        636.3636474609375,
        225.8064422607422,
        125.0,
    ],
    False: [
        0.0,
        2.906978130340576,
        5.9171319007873535,
        34.4827766418457,
        125.0,
        363.6363830566406,
        774.1935424804688,
        875.0,
    ],
}


@pytest.mark.parametrize("reverse", [True, False])
def test_official_timesteps_to_the_bit(reverse: bool):
    sigmas = sampling_sigmas(50, reverse=reverse)
    assert sigmas.dtype == torch.float64
    timesteps = sampling_timesteps(sigmas)
    assert timesteps.dtype == torch.float32
    assert timesteps.shape == (50,)
    assert timesteps[STEPS].tolist() == OFFICIAL_TIMESTEPS[reverse]
    assert sigmas[STEPS].tolist() == pytest.approx([t / 1000 for t in OFFICIAL_TIMESTEPS[reverse]], abs=1e-6)
    assert sigmas[-1] == (0 if reverse else 1)


@pytest.mark.parametrize(("num_steps", "shift"), [(50, 7.0), (30, 5.0), (6, 17.0)])
def test_levels_agree_with_diffusers(need, num_steps: int, shift: float):
    """As HunyuanVideoPipeline sets its scheduler; float32 there too, rounded in another order."""
    scheduler = need("diffusers").FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1])
    sigmas = sampling_sigmas(num_steps, shift)
    torch.testing.assert_close(sigmas, scheduler.sigmas.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sampling_timesteps(sigmas), scheduler.timesteps, rtol=0, atol=1e-3)


def test_without_reverse_time_runs_the_other_way():
    """The same path for a model that counts time from noise to video: v is x0 - noise."""
    x = torch.tensor([-1.0, 0.4, 2.0], dtype=torch.float64)
    down, up = (Euler(sampling_sigmas(8, reverse=reverse)) for reverse in (True, False))
    y = x
    for i in range(8):
        x = down.step(i, torch.tanh(x + down.sigmas[i]), x)
        y = up.step(i, -torch.tanh(y + 1 - up.sigmas[i]), y)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-6)


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="steps 0"):
        sampling_sigmas(0)
    with pytest.raises(ValueError, match=r"shift 0\.0"):
        sampling_sigmas(50, 0.0)
