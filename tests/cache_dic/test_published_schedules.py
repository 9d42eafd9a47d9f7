"""Rules and lists of other methods as tables: full steps, 0-based in sampling order."""

import itertools
import math

import pytest

from cache_dic import UserError
from cache_dic.methods.published_schedules import LISTS, MASKS, growing_window, published, step_mask, with_tail
from cache_dic.schedule import SCHEDULES, taylorseer

# alpha -> full steps of 50, warm-up 5, window 2
SPECTRUM = {
    0.25: [0, 1, 2, 3, 4, 6, 8, 10, 12, 15, 18, 21, 24, 28, 32, 36, 40, 45],
    0.5: [0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 22, 27, 32, 38, 44],
    0.75: [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46],
    1: [0, 1, 2, 3, 4, 6, 9, 13, 18, 24, 31, 39, 48],
    2: [0, 1, 2, 3, 4, 6, 10, 16, 24, 34, 46],
    3: [0, 1, 2, 3, 4, 6, 11, 19, 30, 44],
}


@pytest.mark.parametrize(("alpha", "expected"), SPECTRUM.items())
def test_growing_window(alpha, expected):
    assert list(growing_window(50, warmup_steps=5, window=2, alpha=alpha)) == expected


@pytest.mark.parametrize("num_steps", [1, 6, 30, 50, 100])
@pytest.mark.parametrize("window", [1, 2, 2.5, 4])
@pytest.mark.parametrize("alpha", [0, 0.1, 0.3, 0.75, 3.0])
def test_growing_window_is_the_released_loop(num_steps, window, alpha):
    """Forecasts since the last full step are counted; the window, rounded to thousandths, grows at each full one."""
    expected, since, size = [], 0, window
    for step in range(num_steps):
        full = step < 1 or (since + 1) % math.floor(size) == 0
        if full and step >= 1:
            size = round(size + alpha, 3)
        since = 0 if full else since + 1
        expected += [step] * full
    assert list(growing_window(num_steps, warmup_steps=1, window=window, alpha=alpha)) == expected


def test_a_window_that_does_not_grow_is_periodic():
    assert growing_window(50, warmup_steps=3, window=6, alpha=0) == taylorseer(50, interval=6, warmup_steps=3)


@pytest.mark.parametrize(("interval", "num_full"), [(3, 18), (4, 14), (5, 12), (6, 10)])
def test_tail_of_chebbooster(interval, num_full):
    """The numbers of full steps behind the FLOPs of the paper's tables."""
    steps = with_tail(50, interval=interval, warmup_steps=2, tail_steps=1)
    assert len(steps) == num_full
    assert steps[-1] == 49


def test_tail():
    assert with_tail(12, interval=4, warmup_steps=2, tail_steps=3) == (0, 1, 5, 9, 10, 11)
    assert with_tail(12, interval=4, warmup_steps=2, tail_steps=0) == (0, 1, 5, 9)
    assert with_tail(4, interval=9, warmup_steps=1, tail_steps=4) == (0, 1, 2, 3)


NUM_FULL = {
    "smoothcache_50_0.08": 46,
    "smoothcache_50_0.18": 24,
    "smoothcache_70_0.08": 34,
    "smoothcache_30_0.35": 16,
    **dict(zip(("l2p_5", "l2p_6", "l2p_7", "l2p_8", "l2p_10", "l2p_16"), (11, 10, 9, 8, 7, 6), strict=True)),
    **{f"meancache_qwen_image_{n}": n for n in (25, 17, 10)},
    **{f"meancache_qwen_image_2512_{n}": n for n in (25, 17, 10)},
    **{f"meancache_z_image_{n}": n for n in (25, 20, 17, 15, 13)},
    "procache_dit_skips": 17,
    "procache_flux_skips": 9,
    "procache_hunyuan_video": 7,
}


def test_every_list_is_whole():
    assert {name: len(steps) for name, (_, steps) in LISTS.items()} == NUM_FULL
    for num_steps, steps in LISTS.values():
        assert steps[0] == 0
        assert all(a < b for a, b in itertools.pairwise(steps))
        assert steps[-1] < num_steps


def test_lists_by_name():
    assert published(50, list_name="l2p_16") == (0, 1, 2, 4, 16, 32)
    assert published(50, list_name="meancache_qwen_image_2512_10") == (0, 2, 4, 7, 14, 21, 28, 35, 42, 49)
    assert set(range(50)) - set(published(50, list_name="smoothcache_50_0.08")) == {1, 2, 4, 6}
    # The published pattern of DiT: code 1 is full, 2 is partial, 0 reuses.
    pattern = "1020" * 6 + "102" + "102" * 3 + "10" * 7
    assert len(pattern) == 50
    assert published(50, list_name="procache_dit_skips") == tuple(i for i, code in enumerate(pattern) if code == "1")


@pytest.mark.parametrize("name", LISTS)
def test_another_number_of_steps_is_refused(name):
    length, _ = LISTS[name]
    with pytest.raises(UserError, match=f"is of {length} steps, not 28; take num_steps={length}"):
        published(28, list_name=name)


# Runs of full and of forecast steps in turn, of 28.
def test_masks_of_28_steps():
    assert step_mask(28, mask="ultra") == (0, 1, 2, 3, 6, 12, 19, 27)
    assert step_mask(28, mask="fast") == (0, 1, 2, 3, 4, 5, 7, 11, 16, 22, 27)
    assert [len(step_mask(28, mask=mask)) for mask in ("slow", "medium", "fast", "ultra")] == [18, 15, 11, 8]


def test_masks_of_other_numbers_of_steps():
    """Ultra of 50: runs 4 1 1 1 1 and 2 5 6 7 grow by 3 1 1 1 and 1 4 5 6, so 7 3 2 9 2 11 2 13 1."""
    assert step_mask(50, mask="ultra") == (0, 1, 2, 3, 4, 5, 6, 10, 11, 21, 22, 34, 35, 49)
    assert step_mask(9, mask="fast") == (0, 1, 2, 3, 5, 8)
    assert step_mask(6, mask="slow") == step_mask(6, mask="ultra") == (0, 1, 2, 5)
    assert step_mask(4, mask="slow") == (0, 1, 3)


@pytest.mark.parametrize("mask", MASKS)
def test_masks_agree_with_cache_dit(need, mask):
    interface = need("cache_dit.caching.cache_interface")
    for num_steps in (4, 6, *range(8, 130), 250, 1000):
        expected = interface.steps_mask(total_steps=num_steps, mask_policy=mask)
        assert step_mask(num_steps, mask=mask) == tuple(i for i, full in enumerate(expected) if full)


@pytest.mark.parametrize(
    ("rule", "settings", "message"),
    [
        ("growing_window", {"warmup_steps": 5, "window": 0.5, "alpha": 1}, "window = 0.5 must be at least 1"),
        ("growing_window", {"warmup_steps": 5, "window": 2, "alpha": -1}, "alpha = -1 must be at least 0"),
        ("growing_window", {"warmup_steps": 0, "window": 2, "alpha": 1}, "warmup_steps = 0 must be an integer"),
        ("with_tail", {"interval": 4, "warmup_steps": 1, "tail_steps": 31}, "tail_steps = 31 must be at most 30"),
        ("published", {"list_name": "l2p_9"}, "list_name 'l2p_9' is unknown; choose from .*did you mean"),
        ("step_mask", {"mask": "quick"}, "mask 'quick' is unknown; choose from slow, medium, fast, ultra"),
    ],
)
def test_impossible_settings(rule, settings, message):
    with pytest.raises(UserError, match=message):
        SCHEDULES[rule](30, **settings)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 7])
def test_too_few_steps_for_a_mask(num_steps):
    with pytest.raises(UserError, match=f"num_steps = {num_steps} has no step mask; take 4, 6, or at least 8 steps"):
        step_mask(num_steps, mask="slow")
