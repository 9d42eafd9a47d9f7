"""Forecast weights against the recursion on tensors, closed forms, and what each forecaster is exact for."""

import math

import pytest
import torch

from cache_dic.forecast import Newton, Reuse, Taylor
from cache_dic.schedule import diffusers, taylorseer

SCHEDULES = {
    "authors N4 W2": taylorseer(24, interval=4, warmup_steps=2),
    "authors N6 W3": taylorseer(30, interval=6, warmup_steps=3),
    "authors N5 W1": taylorseer(26, interval=5, warmup_steps=1),
    "diffusers N5 W3": diffusers(25, interval=5, warmup_steps=3),
    "irregular": (0, 1, 4, 5, 11, 13, 20),
}


def forecast(forecaster, full_steps, values, step):
    """Σ weight · value over the last full steps."""
    weights = forecaster.weights(full_steps, step)
    return sum(w * values[m] for w, m in zip(weights, full_steps[-len(weights) :], strict=True))


class RecursionOnTensors:
    """The update and forecast of the released code, written for tensors: the oracle of the weights."""

    def __init__(self, max_order: int, warmup_steps: int) -> None:
        self.max_order, self.warmup_steps = max_order, warmup_steps
        self.factors: list[torch.Tensor] = []
        self.last = 0

    def update(self, step: int, feature: torch.Tensor) -> None:
        distance, new = step - self.last, [feature]
        for order in range(self.max_order):
            if order >= len(self.factors) or not step > self.warmup_steps - 2:
                break
            new.append((new[order] - self.factors[order]) / distance)
        self.factors, self.last = new, step

    def forecast(self, step: int) -> torch.Tensor:
        x = step - self.last
        return sum(factor * x**i / math.factorial(i) for i, factor in enumerate(self.factors))


@pytest.mark.parametrize("full_steps", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("max_order", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("warmup", [1, 2, 3])
def test_taylor_weights_are_the_recursion(full_steps, max_order, warmup):
    generator = torch.Generator().manual_seed(0)
    values = {m: torch.randn(5, generator=generator, dtype=torch.float64) for m in full_steps}
    oracle, taylor = RecursionOnTensors(max_order, warmup), Taylor(max_order=max_order, warmup_steps=warmup)
    for step in range(full_steps[-1] + 4):
        if step in values:
            oracle.update(step, values[step])
        else:
            so_far = tuple(m for m in full_steps if m < step)
            torch.testing.assert_close(
                forecast(taylor, so_far, values, step), oracle.forecast(step), rtol=1e-13, atol=1e-13
            )


def test_order_grows_from_the_last_warmup_step():
    """Warm-up 3: step 1 still has order 0, step 2 order 1, then one more at each full step up to the highest."""
    taylor = Taylor(max_order=3, warmup_steps=3)
    orders = [
        len([w for w in taylor.weights(full, full[-1] + 1) if w]) - 1
        for full in [(0,), (0, 1), (0, 1, 2), (0, 1, 2, 8)]
    ]
    assert orders == [0, 0, 1, 2]
    with_warmup_1 = Taylor(max_order=3, warmup_steps=1)
    assert list(with_warmup_1.weights((0,), 3)) == [1.0], "before the second full step the first feature is reused"
    assert len(with_warmup_1.weights((0, 5), 6)) == 2


def test_distances_are_real_gaps_not_the_interval():
    """After warm-up 2 and interval 4 the first gap is 1: the slope is F(1) - F(0), not a quarter of it."""
    weights = Taylor(max_order=1, warmup_steps=2).weights((0, 1), 3)
    assert list(weights) == [-2.0, 3.0]


def test_order_zero_is_reuse():
    for full in SCHEDULES.values():
        assert (
            list(Taylor(max_order=0).weights(full, full[-1] + 3)) == list(Reuse().weights(full, full[-1] + 3)) == [1.0]
        )


def test_weights_sum_to_one():
    """A constant feature is forecast exactly by every method."""
    for full in SCHEDULES.values():
        for forecaster in (Taylor(max_order=4, warmup_steps=1), Newton(max_order=4), Reuse()):
            assert sum(forecaster.weights(full, full[-1] + 5)) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("full_steps", SCHEDULES.values(), ids=SCHEDULES)
def test_linear_signals_are_forecast_exactly_by_order_one(full_steps):
    line = {m: 3.0 - 0.7 * m for m in full_steps}
    step = full_steps[-1] + 3
    for forecaster in (Taylor(max_order=1, warmup_steps=1), Newton(max_order=1)):
        assert forecast(forecaster, full_steps, line, step) == pytest.approx(3.0 - 0.7 * step, abs=1e-12)


@pytest.mark.parametrize("degree", [2, 3, 4])
@pytest.mark.parametrize("full_steps", SCHEDULES.values(), ids=SCHEDULES)
def test_newton_is_exact_for_polynomials_and_taylor_is_not(full_steps, degree):
    """On noise-free signals of that degree, at any gaps: divided differences hit, backward differences for derivatives miss."""
    scale = full_steps[-1]
    signal = {m: (m / scale) ** degree for m in range(full_steps[-1] + 4)}
    step = full_steps[-1] + 3
    newton = forecast(Newton(max_order=degree), full_steps, signal, step)
    taylor = forecast(Taylor(max_order=degree, warmup_steps=1), full_steps, signal, step)
    assert newton == pytest.approx(signal[step], abs=1e-10)
    assert abs(taylor - signal[step]) > 1e-3


def test_quadratic_error_of_taylor_in_closed_form():
    """F = s² at equal gaps d: the factors at s are s², 2s - d and 2, their sum x steps on is (s + x)² - d·x."""
    d, x, full = 5, 3, (0, 5, 10)
    assert forecast(
        Taylor(max_order=2, warmup_steps=1), full, {m: float(m * m) for m in full}, 10 + x
    ) == pytest.approx((10 + x) ** 2 - d * x, abs=1e-12)


def test_negative_order_is_named():
    for forecaster in (Taylor, Newton):
        with pytest.raises(ValueError, match="max_order = -1"):
            forecaster(max_order=-1)
