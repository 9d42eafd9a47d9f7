"""The model of a cached run: exact where the network is what it says, and its searches against trying all."""

import itertools

import numpy as np
import pytest

from cache_dic.forecast import Newton, Reuse, Taylor
from evaluation.loop_model import (
    LoopModel,
    Sensitivity,
    best_list,
    correction_keys,
    moved,
    ridged,
)

NUM_STEPS, SAMPLES, SIZE = 12, 3, 40
MOVES = np.linspace(-0.12, -0.04, NUM_STEPS)
KAPPA = np.linspace(2.0, 0.5, NUM_STEPS)


def velocities(seed: int = 0) -> np.ndarray:
    """Of uncached runs (B, T, n), which turn slowly."""
    return np.random.default_rng(seed).standard_normal((SAMPLES, NUM_STEPS, SIZE)).cumsum(1)


def simulated(v: np.ndarray, full_steps, forecaster, kappa=KAPPA, corrections=None) -> np.ndarray:
    """The final distance of a sampler whose network answers v + κ e, step by step."""
    distance, kept, corrections = np.zeros_like(v[:, 0]), {}, corrections or {}
    for step in range(NUM_STEPS):
        if step in full_steps:
            kept[step] = v[:, step] + kappa[step] * distance
            predicted = kept[step]
        else:
            so_far = tuple(m for m in full_steps if m < step)
            row = list(forecaster.weights(so_far, step))
            weights = dict(zip(so_far[-len(row) :], row, strict=True))
            for back, m in enumerate(reversed(so_far)):
                weights[m] = weights.get(m, 0.0) + corrections.get((so_far[-1], back), 0.0)
            predicted = sum(weight * kept[m] for m, weight in weights.items())
        distance = distance + MOVES[step] * (predicted - v[:, step])
    return distance


def model_of(v: np.ndarray, forecaster, kappa=KAPPA, rho=None) -> LoopModel:
    rho = np.zeros((1, NUM_STEPS)) if rho is None else rho
    return LoopModel(v @ v.transpose(0, 2, 1), MOVES, Sensitivity(kappa, rho), forecaster)


@pytest.mark.parametrize("forecaster", [Reuse(), Taylor(max_order=2, warmup_steps=1), Newton(max_order=2)])
@pytest.mark.parametrize("corrections", [None, {(3, 0): 0.3, (3, 1): -0.2, (7, 2): 0.1}])
def test_the_energy_of_a_run_is_that_of_the_run(forecaster, corrections):
    v, full_steps = velocities(), (0, 3, 4, 7)
    distance = simulated(v, full_steps, forecaster, corrections=corrections)
    found = model_of(v, forecaster).energies(full_steps, corrections)
    np.testing.assert_allclose(found, (distance**2).sum(1), rtol=1e-9)


def test_scattered_answers_add_their_expected_energy():
    """One full step after a distance: what scatters there moves the end by its influence, the moves up to the end."""
    v, full_steps = velocities(), (0, 6)
    rho = np.tile([[1.5], [0.0], [3.0]], NUM_STEPS)
    plain, scattered = (model_of(v, Reuse(), 0 * KAPPA, given) for given in (None, rho))
    before = sum(MOVES[step] * (v[:, 0] - v[:, step]) for step in range(1, 6))
    expected = (rho[:, 0] * MOVES[6:].sum()) ** 2 * (before**2).sum(1)
    np.testing.assert_allclose(scattered.energies(full_steps) - plain.energies(full_steps), expected, rtol=1e-9)


def test_sensitivity_is_measured_from_distances_and_answers():
    draw = np.random.default_rng(1)
    distance = draw.standard_normal((SAMPLES, NUM_STEPS, 4000))
    across = draw.standard_normal((SAMPLES, NUM_STEPS, 4000))
    across -= distance * ((across * distance).sum(2) / (distance**2).sum(2))[..., None]
    across *= (np.linalg.norm(distance, axis=2) / np.linalg.norm(across, axis=2))[..., None]
    sizes = np.array([0.5, 1.0, 4.0])
    answer = KAPPA[:, None] * distance + sizes[:, None, None] * across
    moments = np.stack([(distance**2).sum(2), (distance * answer).sum(2), (answer**2).sum(2)], axis=2)
    moments[:, 0] = 0  # before the first step there is no distance
    found = Sensitivity.measured([((0, 2, 6), moments), ((0, 11), moments)], NUM_STEPS, SAMPLES)
    np.testing.assert_allclose(found.coherent[[2, 6, 11]], KAPPA[[2, 6, 11]], rtol=1e-9)
    np.testing.assert_allclose(found.coherent[4], (KAPPA[2] + KAPPA[6]) / 2, rtol=1e-9)
    np.testing.assert_allclose(found.incoherent[:, 6], sizes, rtol=1e-6)


@pytest.mark.parametrize("lost", [np.inf, np.nan])
def test_a_run_that_is_lost_says_nothing_of_the_sensitivity(lost):
    """One whose features overflow after step 2, as a bad list's may: what it showed before stands."""
    moments = np.ones((SAMPLES, NUM_STEPS, 3)) * [1.0, 0.5, 1.25]
    broken = moments * [2.0, 4.0, 10.0]
    broken[1, 3:] = lost
    found = Sensitivity.measured([((0, 2, 6), moments), ((0, 2, 6), broken)], NUM_STEPS, SAMPLES)
    np.testing.assert_allclose(found.coherent[[2, 6]], [(0.5 + 1.0) / 2, 0.5])
    assert np.isfinite(found.incoherent).all()


def test_samples_that_a_run_was_given_up_before_stand_for_the_mean_of_those_it_has():
    moments = np.ones((SAMPLES, NUM_STEPS, 3)) * [1.0, 0.5, 1.25]
    moments[1:, :, 2] = 4.25
    found = Sensitivity.measured([((0, 2, 6), moments), ((0, 9), moments[:2])], NUM_STEPS, SAMPLES)
    np.testing.assert_allclose(found.incoherent[:, 2], [1.0] + [2.0] * (SAMPLES - 1))
    np.testing.assert_allclose(found.incoherent[:, 9], [1.0, 2.0] + [np.sqrt(2.5)] * (SAMPLES - 2))


def test_without_runs_nothing_is_known_of_the_sensitivity():
    found = Sensitivity.measured([], NUM_STEPS, SAMPLES)
    assert not found.coherent.any()
    assert not found.incoherent.any()


def test_fitted_corrections_have_no_slope_left():
    """With next to no ridge, no small change of any correction lowers the energy, weighted as the fit weights samples."""
    v, full_steps = velocities(), (0, 3, 7)
    model = model_of(v, Taylor(max_order=1, warmup_steps=1), rho=np.full((SAMPLES, NUM_STEPS), 0.5))
    keys = correction_keys(full_steps, NUM_STEPS, 2)
    assert keys == [(0, 0), (3, 0), (3, 1), (7, 0), (7, 1)]
    # The scatter's influence is held fixed by the fit; without scatter the energy is quadratic and the fit exact.
    exact = model_of(v, Taylor(max_order=1, warmup_steps=1), kappa=0 * KAPPA)
    weights = 1 / exact.energies(full_steps)
    found = exact.fitted(full_steps, keys, 1e-12)
    least = weights @ exact.energies(full_steps, found)
    assert least < weights @ exact.energies(full_steps)
    for key, by in itertools.product(keys, (-1e-3, 1e-3)):
        assert weights @ exact.energies(full_steps, {**found, key: found[key] + by}) > least
    assert model.similarity_db(full_steps, model.fitted(full_steps, keys, 0.1)) > model.similarity_db(full_steps)


def test_teacher_forcing_fits_each_gap_to_the_uncached_run():
    """v on a plane of two full steps: the corrections that it asks for are found, gap by gap."""
    v = velocities()
    full_steps = (0, 5)
    for step in range(6, NUM_STEPS):
        v[:, step] = 0.7 * v[:, 5] + 0.4 * v[:, 0]
    model = model_of(v, Reuse())
    found = model.teacher_forced(full_steps, [(5, 0), (5, 1)], 1e-12)
    assert found == {(5, 0): pytest.approx(-0.3), (5, 1): pytest.approx(0.4)}


def test_a_ridge_pulls_towards_nothing():
    curvature, slope = np.diag([2.0, 4.0]), np.array([2.0, 2.0])
    np.testing.assert_allclose(ridged(curvature, slope, 0.0), [1.0, 0.5])
    np.testing.assert_allclose(ridged(curvature, slope, 1.0), [0.5, 0.25])


@pytest.mark.parametrize("count", [2, 3, 4])
def test_annealing_finds_what_trying_all_lists_finds(count):
    model = model_of(velocities(count), Taylor(max_order=1, warmup_steps=1), rho=np.ones((SAMPLES, NUM_STEPS)))
    every = [(0, *rest) for rest in itertools.combinations(range(1, NUM_STEPS), count - 1)]
    start = tuple(range(count))
    found = best_list(model.similarity_db, start, NUM_STEPS, seed=0)
    assert model.similarity_db(found) == pytest.approx(max(map(model.similarity_db, every)))


def test_moves_change_one_step_and_keep_step_0():
    found = moved((0, 4, 5), 8, farthest=2)
    assert set(found) == {(0, 2, 5), (0, 3, 5), (0, 5, 6), (0, 4, 6), (0, 4, 7), (0, 3, 4)}


def test_lists_whose_weights_no_plan_takes_are_never_the_best():
    class Wild:
        def weights(self, full_steps, step):
            return (1e9,) if len(full_steps) == 2 else (1.0,)

    model = model_of(velocities(), Wild())
    assert model.similarity_db((0, 3)) == -np.inf
    assert np.isfinite(model.similarity_db((0,)))
