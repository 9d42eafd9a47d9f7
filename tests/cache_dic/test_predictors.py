"""Forecasters: weights of the catalogue's worked example, of the official code, and what each is exact for."""

import math
import subprocess
import sys

import pytest
import torch

from cache_dic import UserError
from cache_dic.forecast import Newton, Reuse, Taylor
from cache_dic.methods.adams_bashforth import FORMULAS, ABCache, Multistep
from cache_dic.methods.chebbooster import ChebBooster
from cache_dic.methods.freqca import FreqCa, cosines, low_band
from cache_dic.methods.hicache import HiCache, hermite
from cache_dic.methods.spectrum import Spectrum, bfloat16, solve
from cache_dic.plan import Plan

UNEVEN = (0, 1, 2, 5, 11, 15)


def dot(weights, features):
    return sum(w * f for w, f in zip(weights, features, strict=True))


# Weights newest first, 5 steps after the last of full steps 6 apart, and the sum of their absolute values.
WORKED = {
    "reuse": (Reuse(), [1.0], 1.0),
    "taylor 1": (Taylor(max_order=1), [1.833, -0.833], 2.667),
    "taylor 2": (Taylor(max_order=2), [2.181, -1.528, 0.347], 4.056),
    "newton 2": (Newton(max_order=2), [2.597, -2.361, 0.764], 5.722),
    "hermite 1, 0.5": (HiCache(max_order=1, contraction=0.5), [1.417, -0.417], 1.833),
    "hermite 2, 0.5": (HiCache(max_order=2, contraction=0.5), [1.497, -0.576, 0.080], 2.153),
    "hermite 1, 0.6": (HiCache(max_order=1, contraction=0.6), [1.600, -0.600], 2.200),
    "hermite 2, 0.6": (HiCache(max_order=2, contraction=0.6), [1.770, -0.940, 0.170], 2.880),
    "hermite 1, 0.7": (HiCache(max_order=1, contraction=0.7), [1.817, -0.817], 2.633),
    "hermite 2, 0.7": (HiCache(max_order=2, contraction=0.7), [2.137, -1.456, 0.320], 3.913),
    "ab2 is taylor 2": (Multistep(formula="ab2"), [2.181, -1.528, 0.347], 4.056),
    "ab-cache of 3 is newton 2": (ABCache(order=3), [2.597, -2.361, 0.764], 5.722),
    "barycentric of 3 is newton 2": (ChebBooster(num_snapshots=3), [2.597, -2.361, 0.764], 5.722),
}


@pytest.mark.parametrize(("forecaster", "expected", "absolute"), WORKED.values(), ids=WORKED)
def test_worked_example(forecaster, expected, absolute):
    weights = forecaster.weights((8, 14, 20), 25)[::-1]
    assert weights[: len(expected)] == pytest.approx(expected, abs=6e-4)
    assert sum(map(abs, weights)) == pytest.approx(absolute, abs=6e-4)
    assert sum(weights) == pytest.approx(1)


EXACT = {
    "taylor": (Taylor(max_order=2), 1),
    "hicache at √½": (HiCache(max_order=1, contraction=math.sqrt(0.5)), 1),
    **{f"ab-cache {order}": (ABCache(order=order), order - 1) for order in (1, 2, 3, 4)},
    **{f: (Multistep(formula=f), 1) for f in ("tf", "ab2", "rk2", "foca", "am")},
    "bdf2": (Multistep(formula="bdf2"), 0),
    "chebbooster 2": (ChebBooster(num_snapshots=2), 1),
    "chebbooster 3": (ChebBooster(num_snapshots=3), 1),
    "chebbooster 4": (ChebBooster(num_snapshots=4), 1),
    "spectrum, local alone": (Spectrum(w=0.0, local_order=2, tau_steps=50), 2),
    "spectrum, centred": (Spectrum(w=1.0, centred=True, tau_steps=50), 0),
}


@pytest.mark.parametrize(("forecaster", "degree"), EXACT.values(), ids=EXACT)
def test_polynomials_of_a_degree_are_exact_on_any_gaps_and_the_next_is_not(forecaster, degree):
    for power in range(degree + 2):
        weights = forecaster.weights(UNEVEN, 19)
        features = [(s - 3.0) ** power for s in UNEVEN[-len(weights) :]]
        assert (dot(weights, features) == pytest.approx(16.0**power)) is (power <= degree)


@pytest.mark.parametrize("forecaster", [f for f, _ in EXACT.values()], ids=EXACT)
def test_one_full_step_is_reused(forecaster):
    assert forecaster.weights((0,), 4) == pytest.approx([1.0])


# What the catalogue quotes for steps of one length, newest first.
UNIT = {
    "tf": [2, -1, 0],
    "ab2": [5 / 2, -2, 1 / 2],
    "rk2": [3 / 2, 0, -1 / 2],
    "bdf2": [4 / 3, -1 / 3, 0],
    "foca": [7 / 3, -5 / 3, 1 / 3],
    # F + 5/12 (F* - F) + 2/3 (F - F_1) - 1/12 (F_1 - F_2), F* = ab2
    "am": [1 + 5 / 12 * (5 / 2 - 1) + 2 / 3, 5 / 12 * -2 - 2 / 3 - 1 / 12, 5 / 12 / 2 + 1 / 12],
}


@pytest.mark.parametrize("formula", FORMULAS)
def test_multistep_formulas_at_unit_steps(formula):
    assert Multistep(formula=formula).weights((3, 4, 5), 6)[::-1] == pytest.approx(UNIT[formula])
    assert Multistep(formula=formula).weights((3, 4), 6) == pytest.approx([-2, 3])  # not three yet: the straight line


@pytest.mark.parametrize(("order", "expected"), [(1, [1]), (2, [2, -1]), (3, [3, -3, 1]), (4, [4, -6, 4, -1])])
def test_ab_cache_at_unit_steps(order, expected):
    assert ABCache(order=order).weights((0, 1, 2, 3), 4)[::-1] == expected


def test_adams_moulton_integrates_the_parabola_of_its_slopes():
    """On cubic features the three slopes are of no parabola; on slopes of one the formula is the integral."""
    x, h, g = 5.0, 3.0, 4.0
    weights = FORMULAS["am"](x, h, g)
    features = [7.0, 2.0, -3.0]
    ahead = (dot(FORMULAS["ab2"](x, h, g), features) - 7.0) / x
    slopes = torch.tensor([ahead, 5.0 / h, 5.0 / g], dtype=torch.float64)
    at = torch.tensor([x, 0.0, -h], dtype=torch.float64)
    c = torch.linalg.solve(torch.stack([at**0, at, at**2], 1), slopes).tolist()
    assert dot(weights, features) == pytest.approx(7.0 + c[0] * x + c[1] * x**2 / 2 + c[2] * x**3 / 3)


def test_hermite_polynomials():
    u = 1.3
    assert hermite(u, 5) == pytest.approx(
        [1, 2 * u, 4 * u**2 - 2, 8 * u**3 - 12 * u, 16 * u**4 - 48 * u**2 + 12], rel=1e-12
    )


@pytest.mark.parametrize("order", [0, 1, 2, 3])
@pytest.mark.parametrize("warmup_steps", [1, 2, 3])
def test_hicache_is_the_released_recursion_on_tensors(order, warmup_steps):
    """Differences as TaylorSeer's, then a sum of H_k(c x) c^k / k!, one tensor a factor."""
    c, full_steps = 0.6, (0, 1, 2, 8, 14)
    features = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forecaster = HiCache(max_order=order, warmup_steps=warmup_steps, contraction=c)
    factors, last = [], None
    for i, (step, feature) in enumerate(zip(full_steps, features, strict=True)):
        new = [feature]
        for k in range(order):
            if step > warmup_steps - 2 and k < len(factors):
                new.append((new[k] - factors[k]) / (step - last))
        factors, last = new, step
        target = step + 5
        u = c * (target - step)
        values = [1.0, 2 * u, 4 * u**2 - 2, 8 * u**3 - 12 * u]
        expected = sum(f * values[k] * c**k / math.factorial(k) for k, f in enumerate(factors))
        weights = forecaster.weights(full_steps[: i + 1], target)
        assert torch.allclose(dot(weights, features[i + 1 - len(weights) : i + 1]), expected, atol=1e-12)


def test_contraction_scales_the_slope_by_twice_its_square():
    slope = Taylor().weights((0, 1, 2, 8), 12)[-1] - 1
    for c in (0.3, 0.5, 1.0):
        assert HiCache(contraction=c).weights((0, 1, 2, 8), 12)[-1] - 1 == pytest.approx(2 * c**2 * slope)


# Weights oldest first, of hanjq17/Spectrum @ f7b7841: its forecaster on unit features, in float32, or bfloat16 as released.
SPECTRUM_STEPS = (0, 1, 2, 3, 4, 6, 11, 19, 30)
OFFICIAL = {
    "half local of order 2": (
        {"local_order": 2, "local": "published"},
        [-0.234985, -0.061853, 0.062703, 0.144722, 0.18996, 0.191724, -0.119016, -0.899069, 1.610093],
        3e-6,
    ),
    "Chebyshev alone": (
        {"w": 1.0},
        [-0.469969, -0.123706, 0.125407, 0.289444, 0.37992, 0.383447, -0.196709, -0.971692, 1.352418],
        3e-6,
    ),
    "degree 3, local of order 3": (
        {"w": 0.25, "degree": 3, "ridge": 0.01, "local_order": 3, "local": "published"},
        [-0.188014, -0.064851, 0.030277, 0.099629, 0.145459, 0.164311, 1.9e-05, -1.109023, 1.88469],
        3e-5,  # the smaller ridge leaves float32 fewer digits
    ),
    "as released, in bfloat16": (
        {"local": "published", "precision": "bfloat16"},
        [-0.234375, -0.06543, 0.058594, 0.148438, 0.192383, 0.196289, -0.100586, -0.941406, 1.630859],
        1e-3,  # the coefficients are rounded too there
    ),
}


@pytest.mark.parametrize(("settings", "expected", "tolerance"), OFFICIAL.values(), ids=OFFICIAL)
def test_spectrum_agrees_with_the_official_code(settings, expected, tolerance):
    weights = Spectrum(tau_steps=50, **settings).weights(SPECTRUM_STEPS, 40)
    assert weights == pytest.approx(expected, abs=tolerance)


def test_rounding_matters_to_spectrum():
    """So that the agreement in bfloat16 tells something: without rounding it is three times as far off."""
    expected = OFFICIAL["as released, in bfloat16"][1]
    weights = Spectrum(tau_steps=50).weights(SPECTRUM_STEPS, 40)
    assert max(abs(a - b) for a, b in zip(weights, expected, strict=True)) > 3e-3


def test_spectrum_worked_example():
    weights = Spectrum(w=1.0).for_run(50).weights((0, 1, 2, 8, 14, 20, 26), 31)
    assert weights[:-5:-1] == pytest.approx([1.269, -0.267, -0.441, 0.227], abs=6e-4)
    assert sum(weights) == pytest.approx(0.858, abs=6e-4)
    assert sum(map(abs, weights)) == pytest.approx(2.777, abs=6e-4)


def test_spectrum_is_ridge_regression():
    steps, target, degree, ridge = (0, 1, 2, 5, 9, 16), 20, 3, 0.05
    tau = torch.tensor([*steps, target], dtype=torch.float64) * 2 / 30 - 1
    basis = torch.cos(torch.arange(degree + 1) * torch.acos(tau)[:, None])
    x, phi = basis[:-1], basis[-1]
    expected = phi @ torch.linalg.inv(x.T @ x + ridge * torch.eye(degree + 1, dtype=torch.float64)) @ x.T
    weights = Spectrum(degree=degree, ridge=ridge, w=1.0).for_run(30).weights(steps, target)
    assert weights == pytest.approx(expected.tolist(), abs=1e-9)


def test_for_run_sets_the_steps_that_tau_is_of():
    assert Spectrum().for_run(30) == Spectrum(tau_steps=30)
    assert Spectrum(tau_steps=50).for_run(30) == Spectrum(tau_steps=50)
    short, published = (Spectrum(tau_steps=t).weights((0, 1, 2), 4) for t in (30, 50))
    assert short != pytest.approx(published, abs=1e-3)


@pytest.mark.parametrize(("local", "sign"), [("newton", 1), ("published", -1)])
def test_sign_in_the_local_factors(local, sign):
    """Backward differences want k (k + 1) / 2; the release has k (k - 1) / 2."""
    k = 5 / 6
    second = k * (k + sign) / 2
    weights = Spectrum(w=0.0, local_order=2, local=local, tau_steps=50).weights((8, 14, 20), 25)
    assert weights == pytest.approx([second, -k - 2 * second, 1 + k + second])


def test_both_local_branches_agree_at_order_one():
    newton, published = (Spectrum(w=0.3, local=local, tau_steps=50) for local in ("newton", "published"))
    assert newton.weights(UNEVEN, 20) == pytest.approx(published.weights(UNEVEN, 20))


def test_centring_moves_what_is_missing_to_the_latest_feature():
    plain, centred = (Spectrum(w=1.0, centred=c, tau_steps=50).weights(UNEVEN, 20) for c in (False, True))
    assert sum(plain) < 0.99
    assert sum(centred) == pytest.approx(1)
    assert centred[:-1] == plain[:-1]


def test_bfloat16_rounds_as_torch():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100
    values = torch.cat([values, torch.tensor([0.0, -1.0, 1 + 2**-8, 1 + 3 * 2**-8, 257.0, 259.0])])
    assert [bfloat16(v) for v in values.tolist()] == values.bfloat16().tolist()


def test_solve():
    a = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = a @ a.T + torch.eye(6), a[0]
    assert solve(a.tolist(), b.tolist()) == pytest.approx(torch.linalg.solve(a, b).tolist(), rel=1e-9)


def test_barycentric_weights_by_hand():
    """Four at equal gaps: 1/2, -1, 1, -1/2 over the distances 11, 8, 5, 2."""
    terms = [0.5 / 11, -1 / 8, 1 / 5, -0.5 / 2]
    assert ChebBooster(num_snapshots=4).weights((0, 3, 6, 9), 11) == pytest.approx([t / sum(terms) for t in terms])


def test_barycentric_pole_is_refused():
    """Gaps 6 and 2: at 2 · 8 / 4 = 4 steps after the last one the terms cancel."""
    with pytest.raises(UserError, match=r"no value at step 12 after full steps 0, 6, 8.*num_snapshots=2"):
        ChebBooster(num_snapshots=3).weights((0, 6, 8), 12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HiCache(contraction=0.0), "contraction = 0.0 must be above 0"),
        (lambda: HiCache(contraction=1.5), "contraction = 1.5 must be at most 1"),
        (lambda: HiCache(contraction=math.nan), "contraction = nan must be a finite number"),
        (lambda: HiCache(max_order=-1), "max_order = -1 must be an integer of at least 0"),
        (lambda: Spectrum(w=1.1), "w = 1.1 must be at most 1"),
        (lambda: Spectrum(ridge=0.0), "ridge = 0.0 must be at least 1e-06"),
        (lambda: Spectrum(local="taylor"), "local 'taylor' is unknown; choose from newton, published"),
        (lambda: Spectrum(precision="fp16"), "precision 'fp16' is unknown"),
        (lambda: ABCache(order=0), "order = 0 must be an integer of at least 1"),
        (lambda: Multistep(formula="ab3"), "formula 'ab3' is unknown; choose from tf, ab2"),
        (lambda: ChebBooster(num_snapshots=0), "num_snapshots = 0 must be an integer of at least 1"),
        (lambda: FreqCa(cutoff=-0.1), "cutoff = -0.1 must be at least 0"),
        (lambda: FreqCa(transform="wavelet"), "transform 'wavelet' is unknown; choose from dct, fft"),
        (lambda: low_band(torch.zeros(1, 6, 2), (2, 2), 0.1), "a grid of 2 x 2 has 4 tokens, not the 6 there are"),
    ],
)
def test_impossible_settings(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("forecaster", [f for f, _ in EXACT.values()], ids=EXACT)
def test_plans_take_them(forecaster):
    """On the usual schedule of FLUX every weight is finite and in bounds, which the plan checks."""
    plan = Plan(num_steps=50, full_steps=(0, 1, 2, 8, 14, 20, 26, 32, 38, 44), forecaster=forecaster)
    assert len(plan.weights) == 40
    assert plan.max_weight < 103  # of the cubic through 0 1 2 8, at 13


def features(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


BANDS = {"square": (6, 6), "image": (4, 9), "video": (3, 4, 5), "row": (12,)}


@pytest.mark.parametrize("grid", BANDS.values(), ids=BANDS)
@pytest.mark.parametrize("transform", ["dct", "fft"])
@pytest.mark.parametrize("cutoff", [0.0, 0.3, 0.7])
def test_low_band_is_an_orthogonal_projection(grid, transform, cutoff):
    x, y = features(2, 2, math.prod(grid), 3)
    low = low_band(x, grid, cutoff, transform)
    assert torch.allclose(low_band(low, grid, cutoff, transform), low, atol=1e-12)
    assert torch.allclose(low_band(x - low, grid, cutoff, transform), torch.zeros_like(x), atol=1e-12)
    assert torch.allclose((low * y).sum(), (x * low_band(y, grid, cutoff, transform)).sum())
    assert torch.allclose(low_band(2 * x - y, grid, cutoff, transform), 2 * low - low_band(y, grid, cutoff, transform))


@pytest.mark.parametrize("grid", BANDS.values(), ids=BANDS)
@pytest.mark.parametrize("transform", ["dct", "fft"])
def test_ends_of_the_cutoff(grid, transform):
    x = features(2, math.prod(grid), 3)
    assert torch.allclose(low_band(x, grid, 1.0, transform), x)
    assert torch.allclose(low_band(x, grid, 0.0, transform), x.mean(1, keepdim=True).expand_as(x))


def test_cosine_band_is_what_lies_within_a_circle_of_indices():
    """A wave of indices (i, j) passes whole or not at all: here up to 0.4 of the distance √(5² + 7²) = 8.6 of the last."""
    height, width = 6, 8
    for i in range(height):
        for j in range(width):
            wave = torch.outer(cosines(height)[i], cosines(width)[j]).reshape(1, -1, 1)
            expected = wave if math.hypot(i, j) <= 0.4 * math.hypot(5, 7) else torch.zeros_like(wave)
            assert torch.allclose(low_band(wave, (height, width), 0.4), expected, atol=1e-12)


def test_cosines_are_orthonormal_and_of_rising_frequency():
    matrix = cosines(9)
    assert torch.allclose(matrix @ matrix.T, torch.eye(9, dtype=torch.float64))
    assert [int((row[1:] * row[:-1] < 0).sum()) for row in matrix] == list(range(9))


def test_fourier_band_is_the_complex_transform_masked():
    """As the released code has it, with the frequencies of both signs."""
    x = features(2, 30, 3)
    frequencies = torch.fft.fftfreq(30)
    kept = frequencies.abs() <= 0.3 * frequencies.abs().max()
    expected = torch.fft.ifft(torch.fft.fft(x, dim=1) * kept[:, None], dim=1).real
    assert kept.sum() == 9
    assert torch.allclose(low_band(x, (5, 6), 0.3, "fft"), expected)


def test_low_band_keeps_the_dtype_and_computes_in_float32():
    x = features(1, 36, 4, dtype=torch.bfloat16)
    low = low_band(x, (6, 6), 0.3)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, low_band(x.float(), (6, 6), 0.3).bfloat16())


@pytest.mark.parametrize(("low_order", "max_order"), [(0, 2), (2, 0), (1, 1)])
@pytest.mark.parametrize("transform", ["dct", "fft"])
def test_freqca_forecasts_each_band_by_its_own_order(low_order, max_order, transform):
    grid, full_steps, step = (4, 5), (0, 1, 2, 8), 12
    kept = features(4, 2, 20, 3)
    freqca = FreqCa(low_order=low_order, max_order=max_order, cutoff=0.3, transform=transform)
    project = freqca.low_pass(grid, kept[0])
    low, high = freqca.bands(full_steps, step)
    assert len(low) == len(high)
    used = kept[-len(low) :]
    forecast = dot(high, used) + project(dot([a - b for a, b in zip(low, high, strict=True)], used))

    expected = 0
    for order, band in ((low_order, project), (max_order, lambda x: x - project(x))):
        weights = HiCache(max_order=order, contraction=0.71).weights(full_steps, step)
        expected = expected + dot(weights, [band(f) for f in kept[-len(weights) :]])
    assert torch.allclose(forecast, expected)
    assert freqca.weights(full_steps, step) == high


def test_naming_predictors_loads_no_torch():
    names = ["adams_bashforth", "chebbooster", "freqca", "hicache", "magcache", "published_schedules", "spectrum"]
    code = (
        f"import sys; {'; '.join(f'import cache_dic.methods.{name}' for name in names)}; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
