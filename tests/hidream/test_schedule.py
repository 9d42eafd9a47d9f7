"""HiDream-I1's noise levels and timesteps against the official schedulers, and diffusers' where those agree."""

import math

import numpy as np
import pytest
import torch

from hidream import CONFIGS
from hidream.config import USAGE
from hidream.schedule import flash_sigmas, flash_timesteps, unipc_sigmas, unipc_timesteps

MAX_TOKENS = CONFIGS["hidream-full"].max_tokens
# What HiDream-ai/HiDream-I1 hands to the model, from running its hi_diffusers/schedulers as its pipeline does.
# fmt: off
OFFICIAL_TIMESTEPS = [
    999, 993, 986, 980, 973, 965, 958, 950, 943, 934, 926, 917, 908, 899, 890, 880, 870,
    859, 848, 837, 825, 813, 800, 787, 773, 759, 744, 728, 712, 695, 677, 659, 639, 619,
    597, 574, 551, 525, 499, 471, 441, 409, 375, 339, 300, 259, 215, 167, 116, 60,
]
OFFICIAL_FLASH_SIGMAS = {
    "hidream-dev": [
        1.0, 0.9936698, 0.9869258, 0.979726, 0.9720227, 0.963761, 0.954878, 0.9453009, 0.934945, 0.9237114, 0.9114832,
        0.8981227, 0.8834646, 0.8673103, 0.8494186, 0.8294931, 0.8071661, 0.7819757, 0.7533333, 0.7204772, 0.6824034,
        0.6377622, 0.5846938, 0.5205634, 0.4415094, 0.341637, 0.2114754, 0.0347826, 0.0,
    ],
    "hidream-fast": [
        1.0, 0.9768171, 0.9513798, 0.9233425, 0.8922853, 0.8576923, 0.8189234, 0.7751736, 0.7254174, 0.6683267,
        0.6021506, 0.5245327, 0.4322251, 0.3206215, 0.1829653, 0.0089286, 0.0,
    ],
}
# fmt: on
# The levels of Full before steps 0, 1, 25 and 49 of 50.
OFFICIAL_UNIPC_SIGMAS = [0.9998943209648132, 0.9934730529785156, 0.7593890428543091, 0.06053091213107109]


def shifted(sigmas: np.ndarray, shift: float) -> np.ndarray:
    return shift / (shift + (1 / sigmas - 1))


class TestUniPC:
    def test_official_levels_and_timesteps(self):
        usage = USAGE["hidream-full"]
        sigmas = unipc_sigmas(usage.num_steps, usage.shift, MAX_TOKENS)
        assert sigmas.dtype == torch.float64
        assert sigmas.shape == (51,)
        assert sigmas[-1] == 0
        assert sigmas[[0, 1, 25, 49]].tolist() == pytest.approx(OFFICIAL_UNIPC_SIGMAS, abs=1e-6)
        timesteps = unipc_timesteps(sigmas)
        assert timesteps.dtype == torch.int64
        assert timesteps.tolist() == OFFICIAL_TIMESTEPS

    @pytest.mark.parametrize("num_steps", [1, 2, 7, 28, 50])
    @pytest.mark.parametrize("max_tokens", [12, 64, 4096])
    def test_formula(self, num_steps, max_tokens):
        """Levels from the shifted 0.999 down to 0, shifted again by exp(mu), mu linear in the tokens: 0.5 to 1.15."""
        mu = 0.5 + (1.15 - 0.5) * (max_tokens - 256) / (4096 - 256)
        highest = 3 * 0.999 / (1 + 2 * 0.999)
        levels = np.append(shifted(np.linspace(highest, 0, num_steps + 1)[:-1], math.exp(mu)), 0)
        assert np.abs(unipc_sigmas(num_steps, 3.0, max_tokens).numpy() - levels).max() <= 1e-6

    def test_diffusers_pipeline_shifts_once(self, need):
        """By 3, where the official one's second shift is exp(1.15), which is followed here."""
        scheduler = need("diffusers").UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
        scheduler.set_timesteps(50)
        difference = (scheduler.sigmas - unipc_sigmas(50, 3.0, MAX_TOKENS)).abs().max()
        assert 5e-3 < difference < 2e-2


class TestFlash:
    @pytest.mark.parametrize("name", OFFICIAL_FLASH_SIGMAS)
    def test_official_levels(self, name):
        usage = USAGE[name]
        sigmas = flash_sigmas(usage.num_steps, usage.shift)
        assert sigmas.dtype == torch.float64
        assert sigmas.tolist() == pytest.approx(OFFICIAL_FLASH_SIGMAS[name], abs=1e-6)

    @pytest.mark.parametrize("num_steps", [1, 2, 16, 28])
    @pytest.mark.parametrize("shift", [1.0, 3.0, 6.0])
    def test_levels_and_timesteps_are_those_of_diffusers(self, need, num_steps, shift):
        """FlowMatchLCMScheduler, which shifts at construction and again in use, as the official scheduler does."""
        scheduler = need("diffusers").FlowMatchLCMScheduler(shift=shift)
        scheduler.set_timesteps(num_steps)
        sigmas = flash_sigmas(num_steps, shift)
        assert (sigmas - scheduler.sigmas).abs().max() <= 1e-6
        timesteps = flash_timesteps(sigmas)
        assert timesteps.dtype == torch.float32
        assert torch.equal(timesteps, scheduler.timesteps)

    def test_lowest_level_is_shifted_twice(self):
        once = 6 * 1e-3 / (1 + 5 * 1e-3)
        assert flash_sigmas(28, 6.0)[-2].item() == pytest.approx(6 * once / (1 + 5 * once), abs=1e-8)


@pytest.mark.parametrize("shift", [0, -3.0])
def test_errors_name_the_shift(shift):
    for levels in (lambda: unipc_sigmas(50, shift, MAX_TOKENS), lambda: flash_sigmas(28, shift)):
        with pytest.raises(ValueError, match=f"shift {float(shift)}"):
            levels()
