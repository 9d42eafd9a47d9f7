"""Solvers of flow matching against exact solutions and against diffusers."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from seerkit.sampling.flow_solvers import SOLVERS, DPMSolverPlusPlus, Euler, UniPC, shift_sigmas

F64 = torch.float64
NOISE = torch.tensor([-1.3, 0.2, 0.9, 2.1], dtype=F64)
MEAN, STD = 0.7, 0.4  # of the Gaussian data


def levels(num_steps: int, shift: float = 3.0, start: float = 1.0) -> Tensor:
    return shift_sigmas(torch.linspace(start, 0, num_steps + 1, dtype=F64), shift)


def run(solver: Euler, velocity: Callable[[Tensor, float], Tensor], x: Tensor, num_steps: int | None = None) -> Tensor:
    for i in range(solver.num_steps if num_steps is None else num_steps):
        x = solver.step(i, velocity(x, solver.sigmas[i]), x)
    return x


def gaussian_path(sigma: float) -> Tensor:
    """Exact solution of the flow ODE for Gaussian data: x keeps its place among the quantiles of N((1 - sigma) m, s_t^2)."""
    return (1 - sigma) * MEAN + math.hypot((1 - sigma) * STD, sigma) * NOISE


def gaussian_velocity(x: Tensor, sigma: float) -> Tensor:
    """E[noise - x0 | x] for data N(MEAN, STD^2)."""
    variance = ((1 - sigma) * STD) ** 2 + sigma**2
    return -MEAN + (sigma - (1 - sigma) * STD**2) / variance * (x - (1 - sigma) * MEAN)


def tanh_velocity(x: Tensor, sigma: float) -> Tensor:
    """Nonlinear, and mixes the last dimension."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 16, generator=g, dtype=F64).to(x.dtype) / 3
    return 1.5 * torch.tanh(x @ weight + 2 * sigma) + 0.3 * x


def test_shift_moves_towards_the_noise_and_keeps_the_ends():
    assert shift_sigmas(torch.tensor([0.0, 0.5, 1.0]), 7.0).tolist() == [0.0, 0.875, 1.0]
    assert shift_sigmas(0.25, 5.0) == 0.625
    assert shift_sigmas(0.3, 1.0) == 0.3
    for shift in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"shift {shift}"):
            shift_sigmas(0.5, shift)


@pytest.mark.parametrize(("name", "ratio"), [("euler", 2), ("dpm++", 4), ("unipc", 8)])
def test_order_of_convergence_to_the_exact_flow(name: str, ratio: float):
    """Steps even in lambda from 3 to -3; with UniPC the corrector's order, one more than the predictor's, shows."""

    def error(num_steps: int) -> float:
        logits = torch.linspace(3, -3, num_steps + 1, dtype=F64)
        solver = SOLVERS[name](torch.cat([logits.sigmoid(), torch.zeros(1, dtype=F64)]))
        x = run(solver, gaussian_velocity, gaussian_path(solver.sigmas[0]), num_steps)
        return (x - gaussian_path(solver.sigmas[num_steps])).abs().max().item()

    errors = [error(num_steps) for num_steps in (80, 160, 320)]
    assert errors[0] < 0.02
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(ratio, rel=0.03)


@pytest.mark.parametrize("start", [1.0, 0.999])
def test_second_order_pays_on_the_levels_of_the_samplers(start: float):
    """From noise to data, infinite lambda at the end, and at the beginning if that is 1."""
    errors = {}
    for name, solver in SOLVERS.items():
        sigmas = levels(50, 1.0, start)
        errors[name] = (
            (run(solver(sigmas), gaussian_velocity, gaussian_path(start)) - gaussian_path(0)).abs().max().item()
        )
    assert errors["unipc"] < errors["dpm++"] / 2 < errors["euler"] / 10


@pytest.mark.parametrize("start", [1.0, 0.999])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 10])
@pytest.mark.parametrize("name", SOLVERS)
def test_constant_data_is_reached_exactly(name: str, num_steps: int, start: float):
    data = torch.tensor([0.5, -2.0, 0.0, 3.0], dtype=F64)
    solver = SOLVERS[name](levels(num_steps, start=start))
    x = (1 - solver.sigmas[0]) * data + solver.sigmas[0] * NOISE
    torch.testing.assert_close(run(solver, lambda x, sigma: (x - data) / sigma, x), data, rtol=0, atol=1e-14)


def test_first_order_is_eulers_method():
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1), dtype=F64)
    expected = run(Euler(levels(12)), tanh_velocity, x)
    torch.testing.assert_close(run(DPMSolverPlusPlus(levels(12), order=1), tanh_velocity, x), expected)


@pytest.mark.parametrize("solver", [DPMSolverPlusPlus, UniPC])
def test_level_one_is_the_limit_of_levels_below(solver: type[Euler]):
    """lambda is -infinity there, where the official UniPC, which starts from 0.999, would give NaN."""
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1), dtype=F64)
    below = levels(8)
    below[0] -= 1e-14
    at_one, limit = run(solver(levels(8)), tanh_velocity, x), run(solver(below), tanh_velocity, x)
    assert at_one.isfinite().all()
    torch.testing.assert_close(
        at_one, limit, rtol=0, atol=0.02 * (limit - run(Euler(below), tanh_velocity, x)).abs().max()
    )


@pytest.fixture(scope="module")
def schedulers(request: pytest.FixtureRequest) -> dict[str, Callable]:
    """diffusers' counterparts for a shift, as its Wan and HunyuanVideo pipelines configure them."""
    need = request.getfixturevalue("need")
    diffusers = need("diffusers")
    flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    return {
        "unipc": lambda shift: diffusers.UniPCMultistepScheduler(**flow, flow_shift=shift),
        "dpm++": lambda shift: diffusers.DPMSolverMultistepScheduler(**flow, flow_shift=shift),
        "euler": lambda shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=shift),
    }


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(("num_steps", "shift"), [(1, 3.0), (2, 3.0), (7, 1.0), (20, 7.0), (50, 5.0)])
@pytest.mark.parametrize("name", SOLVERS)
def test_trajectory_agrees_with_diffusers(schedulers, name: str, num_steps: int, shift: float, dtype: torch.dtype):
    """Every step of the run on the scheduler's own levels; 1e-5 of the largest value, as it takes logarithms in float32."""
    scheduler = schedulers[name](shift)
    scheduler.set_timesteps(num_steps)
    solver = SOLVERS[name](scheduler.sigmas)
    theirs = ours = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1), dtype=dtype)
    for i, t in enumerate(scheduler.timesteps):
        theirs = scheduler.step(tanh_velocity(theirs, solver.sigmas[i]), t, theirs).prev_sample.to(dtype)
        ours = solver.step(i, tanh_velocity(ours, solver.sigmas[i]), ours)
        assert ours.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("name", SOLVERS)
def test_parts_of_the_tokens_equal_the_whole_to_the_bit(name: str):
    x = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(1))
    velocities = torch.randn(10, 1, 7, 16, generator=torch.Generator().manual_seed(2))
    whole = x
    solver, parts = SOLVERS[name](levels(10)), [SOLVERS[name](levels(10)) for _ in range(2)]
    tokens = [x[:, :4], x[:, 4:]]
    for i, v in enumerate(velocities):
        whole = solver.step(i, v, whole)
        tokens = [part.step(i, u, y) for part, u, y in zip(parts, (v[:, :4], v[:, 4:]), tokens, strict=True)]
    assert torch.equal(torch.cat(tokens, dim=1), whole)


@pytest.mark.parametrize("name", SOLVERS)
def test_low_precision_is_promoted(name: str):
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    velocities = torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    low, full = x, x.float()
    low_solver, full_solver = SOLVERS[name](levels(5)), SOLVERS[name](levels(5))
    for i, v in enumerate(velocities):
        low, full = low_solver.step(i, v, low), full_solver.step(i, v.float(), full)
        assert low.dtype == torch.float32
        assert torch.equal(low, full)


@pytest.mark.parametrize("name", SOLVERS)
def test_step_zero_begins_a_new_run(name: str):
    solver = SOLVERS[name](levels(6))
    first = run(solver, gaussian_velocity, NOISE)
    run(solver, gaussian_velocity, -NOISE, num_steps=4)
    assert torch.equal(run(solver, gaussian_velocity, NOISE), first)


def test_multistep_solvers_refuse_a_skipped_step():
    solver = UniPC(levels(6))
    solver.step(0, NOISE, NOISE)
    with pytest.raises(AssertionError, match="step 2 does not follow step 0"):
        solver.step(2, NOISE, NOISE)


def test_euler_takes_rising_levels():
    solver = Euler(1 - levels(9))
    x = run(solver, lambda x, sigma: -gaussian_velocity(x, 1 - sigma), NOISE)
    torch.testing.assert_close(x, run(Euler(levels(9)), gaussian_velocity, NOISE))


def test_levels_and_orders_that_no_solver_can_take():
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        Euler(torch.zeros(1))
    for bad in ([0.0, 1.0], [1.0, 0.5], [1.0, 0.5, 0.5, 0.0], [1.5, 0.5, 0.0], [1.0, math.nan, 0.0]):
        with pytest.raises(ValueError, match="must fall at every step"):
            UniPC(torch.tensor(bad))
    with pytest.raises(ValueError, match="order 3"):
        DPMSolverPlusPlus(levels(4), order=3)
