"""Wan2.1's noise levels and timesteps against the official schedulers."""

import pytest
import torch

from seerkit.sampling.flow_solvers import SOLVERS
from wan.schedule import sampling_sigmas, sampling_timesteps

# What Wan-Video/Wan2.1 wan/text2video.py hands to the model in 50 steps, from running its wan/utils/fm_solvers*.py.
# fmt: off
OFFICIAL_TIMESTEPS = {
    ("unipc", 5.0): [
        999, 995, 991, 987, 982, 978, 973, 968, 963, 957, 952, 946, 940, 934, 927, 920, 913,
        906, 898, 890, 882, 873, 863, 854, 843, 833, 821, 809, 796, 783, 768, 753, 737, 720,
        701, 681, 660, 636, 611, 584, 555, 522, 487, 448, 405, 356, 302, 241, 172, 92,
    ],
    ("unipc", 3.0): [
        999, 992, 985, 978, 971, 963, 956, 948, 939, 931, 922, 913, 904, 894, 884, 874, 864,
        853, 841, 829, 817, 805, 792, 778, 764, 749, 734, 718, 701, 684, 666, 647, 627, 606,
        585, 562, 538, 512, 486, 458, 428, 396, 363, 327, 290, 249, 206, 160, 111, 57,
    ],
    ("dpm++", 5.0): [
        1000, 995, 991, 987, 982, 978, 973, 968, 963, 957, 952, 946, 940, 934, 927, 921, 913,
        906, 898, 890, 882, 873, 864, 854, 844, 833, 821, 809, 797, 783, 769, 753, 737, 720,
        701, 681, 660, 637, 612, 585, 555, 523, 487, 448, 405, 357, 303, 241, 172, 92,
    ],
    ("dpm++", 3.0): [
        1000, 993, 986, 979, 971, 964, 956, 948, 940, 931, 923, 914, 904, 895, 885, 874, 864,
        853, 842, 830, 818, 805, 792, 778, 764, 750, 734, 718, 702, 684, 666, 647, 627, 607,
        585, 562, 538, 513, 486, 458, 428, 397, 363, 328, 290, 249, 206, 160, 111, 57,
    ],
}
# fmt: on
# The levels before steps 0, 1, 25 and 49 of the same runs.
OFFICIAL_SIGMAS = {
    ("unipc", 5.0): [0.9997998476028442, 0.9957323670387268, 0.8330553770065308, 0.09250685572624207],
    ("unipc", 3.0): [0.9996664524078369, 0.9929074645042419, 0.7496247887611389, 0.05763683468103409],
    ("dpm++", 5.0): [1.0, 0.9959349632263184, 0.8333333134651184, 0.09259258955717087],
    ("dpm++", 3.0): [1.0, 0.9932432174682617, 0.75, 0.057692307978868484],
}


@pytest.mark.parametrize(("solver", "shift"), OFFICIAL_TIMESTEPS)
def test_official_levels_and_timesteps(solver: str, shift: float):
    sigmas = sampling_sigmas(solver, 50, shift)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (51,)
    assert sigmas[-1] == 0
    assert sigmas[[0, 1, 25, 49]].tolist() == pytest.approx(OFFICIAL_SIGMAS[solver, shift], abs=1e-6)
    timesteps = sampling_timesteps(sigmas)
    assert timesteps.dtype == torch.int64
    assert timesteps.tolist() == OFFICIAL_TIMESTEPS[solver, shift]


def test_truncation_follows_the_last_bit_of_the_official_arithmetic():
    """Unshifted levels fall on whole timesteps or just below; torch.linspace would give 400, 300, 200, 100 at the end."""
    official = [1000, 900, 800, 700, 600, 500, 399, 299, 199, 99]
    assert sampling_timesteps(sampling_sigmas("dpm++", 10, 1.0)).tolist() == official


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("num_steps", [1, 2, 50])
def test_every_solver_takes_its_levels(solver: str, num_steps: int):
    assert SOLVERS[solver](sampling_sigmas(solver, num_steps, 5.0)).num_steps == num_steps


def test_euler_starts_from_noise():
    assert torch.equal(sampling_sigmas("euler", 20, 5.0), sampling_sigmas("dpm++", 20, 5.0))


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="'heun'; choose from unipc, dpm"):
        sampling_sigmas("heun", 50, 5.0)
    with pytest.raises(ValueError, match="steps 0"):
        sampling_sigmas("unipc", 0, 5.0)
    with pytest.raises(ValueError, match="shift -3"):
        sampling_sigmas("unipc", 50, -3.0)
