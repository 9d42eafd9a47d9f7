"""What a number of full steps by sample could gain: bounds held against every choice there is."""

import itertools

import numpy as np
import pytest

from evaluation.beyond.by_sample import gains, predicted, price
from evaluation.beyond.document import number_by_sample

COUNTS = np.array([7.0, 10.0, 16.0])


def psnr_of(samples, seed=0):
    draw = np.random.default_rng(seed)
    return np.sort(draw.normal(38, 3, (3, samples)), axis=0) + draw.normal(0, 1, (3, samples))


def best_choice(psnr, counts, mean):
    """Of all choices that take no more full steps in the mean."""
    samples = range(psnr.shape[1])
    choices = itertools.product(range(len(counts)), repeat=psnr.shape[1])
    able = [choice for choice in choices if counts[list(choice)].mean() <= mean]
    return max(psnr[list(choice), samples].mean() for choice in able)


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_exceeds_what_is_called_the_most(seed):
    psnr = psnr_of(7, seed)
    _, most = price(psnr, COUNTS, 10)
    best = best_choice(psnr, COUNTS, 10)
    assert best <= most + 1e-9
    assert most - best < 1.5  # of so few samples one more full step is much


def test_the_most_is_reached_where_the_choice_is_as_long():
    psnr = np.array(
        [[40.0, 30.0], [41.0, 38.0], [41.5, 47.0]]
    )  # the second sample's 16 for the first one's 7: 10 in the mean
    assert price(psnr, np.array([4.0, 10.0, 16.0]), 10)[1] == pytest.approx((40.0 + 47.0) / 2)


def test_more_full_steps_that_are_worse_cost_nothing_to_leave():
    psnr = np.array([[40.0, 40.0], [39.0, 39.0], [38.0, 38.0]])
    assert price(psnr, COUNTS, 10) == (0.0, 40.0)


def test_a_prediction_has_not_seen_its_sample():
    psnr = psnr_of(8)
    before = predicted(psnr)
    psnr[1:, 3] = 99.0
    after = predicted(psnr)
    assert after[:, 3] == pytest.approx(before[:, 3])
    assert not np.allclose(after[1:, 4], before[1:, 4])


def test_lines_are_found_again():
    first = np.linspace(30, 40, 6)
    psnr = np.stack([first, 0.5 * first + 25, 50 - 0.1 * first])
    assert predicted(psnr) == pytest.approx(psnr)


def record_of(psnr, counts=(16, 10, 7)):
    rows = [
        {"label": f"loopseer-{count}", "samples": {"psnr_db": list(values)}}
        for count, values in zip(counts, psnr, strict=True)
    ]
    budgets = [{"full_steps": count, "rows": [{"role": "loopseer", "label": f"loopseer-{count}"}]} for count in counts]
    return {"rows": rows, "budgets": budgets}


def test_who_knows_difficulty_gains_where_difficulty_says_all():
    """Difficult samples gain 9 dB by six more full steps and lose 2 by three fewer, easy ones gain and lose 2."""
    difficult, easy = (45.0, 36.0, 34.0), (42.0, 40.0, 38.0)
    psnr = np.array([*[difficult] * 4, *[easy] * 8]).T + 1e-3 * psnr_of(12)
    (found,) = gains(record_of(psnr))
    assert found["full_steps"] == 10
    assert found["mean_full_steps"] == pytest.approx(10.0)
    assert found["most_db"] == pytest.approx((4 * 9 - 8 * 2) / 12, abs=0.05)
    assert found["by_difficulty"]["mean"] == pytest.approx(found["most_db"], abs=0.05)


def test_samples_that_equal_the_uncached_one_are_left_out():
    psnr = psnr_of(6)[::-1].tolist()
    (all_there,) = gains(record_of([values[:5] for values in psnr]))
    psnr[0][5] = None
    assert gains(record_of(psnr)) == [all_there]


@pytest.mark.parametrize(("counts", "samples"), [((16, 7), 6), ((16, 10, 7), 3)])
def test_too_little_tells_nothing(counts, samples):
    assert gains(record_of(psnr_of(samples)[: len(counts)], counts)) == []


def test_the_table_says_that_there_is_no_record(tmp_path):
    assert number_by_sample(tmp_path).startswith("Not run; ")
