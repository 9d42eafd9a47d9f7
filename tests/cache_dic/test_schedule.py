"""Schedules as tables: full steps, 0-based in sampling order."""

import pytest

from cache_dic.schedule import diffusers, explicit, fora, taylorseer

# (steps, interval, warm-up) -> full steps of the authors' released code
AUTHORS = {
    "dit-4": (50, 4, 2, [0, 1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49]),
    "dit-3": (50, 3, 2, [0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31, 34, 37, 40, 43, 46, 49]),
    "flux-6": (50, 6, 3, [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]),
    "flux-5": (50, 5, 3, [0, 1, 2, 7, 12, 17, 22, 27, 32, 37, 42, 47]),
    "video-5": (50, 5, 1, [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]),
    "hidream-4": (50, 4, 1, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48]),
    "every step": (7, 1, 3, [0, 1, 2, 3, 4, 5, 6]),
    "shorter than the interval": (3, 10, 1, [0]),
    "all warm-up": (4, 5, 4, [0, 1, 2, 3]),
    "one step": (1, 4, 1, [0]),
}


@pytest.mark.parametrize(("num_steps", "interval", "warmup", "expected"), AUTHORS.values(), ids=AUTHORS)
def test_authors_rule(num_steps, interval, warmup, expected):
    assert list(taylorseer(num_steps, interval=interval, warmup_steps=warmup)) == expected


@pytest.mark.parametrize("num_steps", [1, 2, 9, 50])
@pytest.mark.parametrize("interval", [1, 2, 3, 7])
@pytest.mark.parametrize("warmup", [1, 2, 4])
def test_authors_rule_is_the_counting_loop(num_steps, interval, warmup):
    """The released code counts forecast steps since the last full one and computes after interval - 1 of them."""
    if warmup > num_steps:
        return
    expected, since = [], 0
    for step in range(num_steps):
        full = step < warmup or since == interval - 1
        since = 0 if full else since + 1
        if full:
            expected.append(step)
    assert list(taylorseer(num_steps, interval=interval, warmup_steps=warmup)) == expected


def test_diffusers_rule_differs_in_its_first_gap():
    assert diffusers(20, interval=5, warmup_steps=3) == (0, 1, 2, 4, 9, 14, 19)
    assert diffusers(6, interval=1, warmup_steps=2) == (0, 1, 2, 3, 4, 5)


def test_diffusers_rule_agrees_with_its_hook(need):
    """Run diffusers' own state machine and read its decisions."""
    hook = need("diffusers.hooks.taylorseer_cache")
    state = hook.TaylorSeerState(max_order=1)
    manager = type("Manager", (), {"get_state": lambda self: state})()
    decide = hook.TaylorSeerCacheHook(
        cache_interval=5, disable_cache_before_step=3, taylor_factors_dtype=None, state_manager=manager
    )
    full = [step for step in range(23) if decide._measure_should_compute()[0]]
    assert tuple(full) == diffusers(23, interval=5, warmup_steps=3)


def test_fora_rule_counts_from_the_end():
    assert fora(50, interval=3) == (0, *range(1, 50, 3))
    assert fora(50, interval=5) == (0, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49)


def test_explicit_list_is_taken_as_it_is():
    assert explicit(10, full_steps=[0, 3, 4, 9]) == (0, 3, 4, 9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: taylorseer(50, interval=0, warmup_steps=1), "interval = 0"),
        (lambda: taylorseer(50, interval=4, warmup_steps=51), "warmup_steps = 51"),
        (lambda: taylorseer(50, interval=4, warmup_steps=0), "warmup_steps = 0"),
        (lambda: taylorseer(0, interval=4, warmup_steps=1), "num_steps = 0"),
        (lambda: explicit(10, full_steps=[1, 2]), r"full_steps = \(1, 2\)"),
        (lambda: explicit(10, full_steps=[0, 2, 2]), "without repeats"),
        (lambda: explicit(10, full_steps=[0, 10]), "steps 0 … 9"),
        (lambda: explicit(10, full_steps=[]), "begin with 0"),
        (lambda: explicit(10, full_steps=[0, 1.5]), "integers"),
    ],
)
def test_impossible_schedules_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
