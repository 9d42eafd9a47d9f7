"""The weights of a run, asked for once and checked before it; what a folder of samples claims; plans of many steps."""

import math
import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from cache_dic import METHODS, Plan, Tokens, UserError, make_cache, register
from cache_dic.plan import MAX_WEIGHT
from cache_dic.schedule import MAX_STEPS


class Gives:
    """A forecaster that gives whatever it is told to, and counts how often it is asked."""

    def __init__(self, give) -> None:
        self.give, self.asked = give, []

    def weights(self, full_steps, step):
        self.asked.append(step)
        return self.give(full_steps, step)


def test_weights_are_asked_for_once():
    forecaster = Gives(lambda full, step: [1.0])
    plan = Plan(9, (0, 1, 5), forecaster)
    assert all([plan.weights, plan.targets, plan.slots, plan.claim()])
    assert forecaster.asked == [2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize(
    "weight",
    [math.nan, math.inf, -math.inf, 1e30, 2 * MAX_WEIGHT, 10**400, None, "1", 1j, True, [1.0], torch.ones(2), object()],
    ids=lambda weight: type(weight).__name__,
)
def test_weights_that_are_no_numbers_are_found_in_the_plan(weight):
    with pytest.raises(UserError, match=r"Gives gave .* as the weight of full step 1 for step 3") as error:
        Plan(6, (0, 1, 2), Gives(lambda full, step: [1.0, weight, 0.0]))
    assert "test_plan.py:" in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "gave None for step 2, where a list of weights is wanted"),
        (1.0, "gave 1.0 for step 2"),
        ("1", "gave '1' for step 2"),
        ({0: 1.0}, "gave {0: 1.0} for step 2"),
        ({1.0}, "gave {1.0} for step 2"),
        ((w for w in [1.0]), "gave <generator object"),
        ([], r"gave 0 weights for step 2 after full steps \(0, 1\)"),
        ([1.0] * 3, r"gave 3 weights for step 2 after full steps \(0, 1\)"),
        (torch.tensor(1.0), "TypeError: "),
    ],
)
def test_what_is_no_list_of_weights_is_named(rows, message):
    with pytest.raises(UserError, match=message):
        Plan(4, (0, 1), Gives(lambda full, step: rows))


@pytest.mark.parametrize(
    "row",
    [
        [np.float32(0.5), np.int64(1)],
        [torch.tensor(0.5), 1],
        torch.tensor([0.5, 1.0]),
        np.array([0.5, 1]),
        (Fraction(1, 2), 1),
    ],
    ids=["numpy", "torch", "tensor", "array", "fraction"],
)
def test_numbers_of_other_libraries_become_floats(row):
    plan = Plan(4, (0, 1), Gives(lambda full, step: row))
    assert plan.weights == {2: {0: 0.5, 1: 1.0}, 3: {0: 0.5, 1: 1.0}}
    assert all(type(weight) is float for weight in plan.weights[2].values())
    assert plan.max_weight == 1.0


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by zero"), KeyError("gap"), SystemExit(3), UserError("too short")]
)
def test_errors_of_a_forecaster_are_told_with_their_place(error):
    def fail(full, step):
        raise error

    line = fail.__code__.co_firstlineno + 1
    with pytest.raises(UserError, match=rf"Gives failed at step 1: .*test_plan\.py:{line}: ") as caught:
        Plan(4, (0,), Gives(fail))
    assert str(error) in str(caught.value)


def test_a_forecaster_that_cannot_be_called_is_told_with_its_place():
    class Short:
        def weights(self):
            return [1.0]

    with pytest.raises(UserError, match=rf"{Short.__name__} failed at step 1: .*test_plan\.py:\d+: TypeError"):
        Plan(4, (0,), Short())


def test_an_interruption_of_a_forecaster_passes():
    def interrupt(full, step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Plan(4, (0,), Gives(interrupt))


def test_messages_name_the_method():
    @register("explodes", interval=2, warmup_steps=1)
    @dataclass(frozen=True)
    class Explodes:
        growth: float = 10.0

        def weights(self, full_steps, step):
            return [self.growth**step]

    try:
        make_cache("explodes").plan(8)
        with pytest.raises(UserError, match=r"Explodes of method 'explodes' gave .* of full step 8 for step 9"):
            make_cache("explodes").plan(10)
    finally:
        del METHODS["explodes"]


@pytest.mark.parametrize("method", ["taylorseer", "newton"])
@pytest.mark.parametrize("max_order", range(5))
def test_settings_in_use_stay_far_below_the_bound(method, max_order):
    for interval in (1, 2, 3, 6, 10, 20):
        for warmup_steps in (1, 3, 6):
            plan = make_cache(method, interval=interval, max_order=max_order, warmup_steps=warmup_steps).plan(50)
            assert plan.max_weight < MAX_WEIGHT / 100


def test_the_largest_weight_of_a_linear_forecast():
    """Two full steps at distance 1, forecast 3 steps on: 1 + 3 and -3."""
    assert make_cache(full_steps=[0, 1], max_order=1, warmup_steps=1).plan(5).max_weight == 4
    assert make_cache("uncached").plan(5).max_weight == 0


def test_a_claim_is_what_samples_depend_on():
    def claim(num_steps=20, **settings):
        return make_cache(**settings).plan(num_steps).claim()

    base = claim(interval=4, warmup_steps=3, max_order=1)
    assert base["num_steps"] == 20
    assert base["full_steps"] == [0, 1, 2, 6, 10, 14, 18]
    same = [
        claim(interval=4, warmup_steps=3, max_order=1, telemetry=True, engine="stack"),
        claim(full_steps=[0, 1, 2, 6, 10, 14, 18], warmup_steps=3, max_order=1),
        claim(method="newton", interval=4, warmup_steps=3, max_order=1),  # of order 1 the two are one
    ]
    assert all(other == base for other in same)
    others = [
        claim(interval=4, warmup_steps=3, max_order=2),
        claim(interval=4, warmup_steps=3, max_order=1, schedule="diffusers"),
        claim(method="fora", interval=4, warmup_steps=3),
        claim(21, interval=4, warmup_steps=3, max_order=1),
    ]
    assert all(other != base for other in others)


def test_a_claim_tells_weights_apart_to_the_last_bit():
    claims = [Plan(4, (0, 1), Gives(lambda full, step, w=w: [w])).claim() for w in (0.1, math.nextafter(0.1, 1), 0.1)]
    assert claims[0] == claims[2] != claims[1]


@pytest.mark.parametrize(
    "settings",
    [{}, {"interval": 2, "max_order": 4}, {"full_steps": [0]}, {"method": "newton", "interval": 2, "max_order": 4}],
    ids=str,
)
def test_the_most_steps_are_planned_at_once(settings):
    """A plan whose work grows with the square of the steps takes a minute or more here."""
    tokens = Tokens(batch=1, length=4, dim=4, num_sites=3, dtype=torch.float32, gate_rank=2)
    began = time.process_time()
    assert make_cache(**settings).kept_bytes(MAX_STEPS, tokens)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("num_steps", [MAX_STEPS + 1, 10**6, 10**20])
@pytest.mark.parametrize(
    "settings", [{}, {"schedule": "diffusers"}, {"method": "fora", "schedule": "fora"}, {"full_steps": [0]}], ids=str
)
def test_more_steps_are_refused(num_steps, settings):
    with pytest.raises(UserError, match=rf"num_steps = {num_steps} must be at most {MAX_STEPS}"):
        make_cache(**settings).plan(num_steps)


@pytest.mark.parametrize("num_steps", [0, -1, 2.0, True, "8", None, math.nan])
def test_numbers_of_steps_that_are_none_are_refused(num_steps):
    with pytest.raises(UserError, match=r"num_steps = .* must be an integer of at least 1"):
        make_cache().plan(num_steps)


def test_slots_are_reused_in_ascending_first_fit():
    plan = make_cache(interval=4, warmup_steps=2, max_order=1).plan(14)
    assert plan.full_steps == (0, 1, 5, 9, 13)
    assert plan.slots == {2: 0, 3: 1, 4: 2, 6: 3, 7: 4, 8: 5, 10: 0, 11: 1, 12: 2}
    assert plan.history == 2
