"""Schedules of other methods than TaylorSeer's: rules that are known before the first step, and lists as published."""

import math
from collections.abc import Sequence
from itertools import zip_longest

from cache_dic.errors import UserError, check_choice
from cache_dic.forecast import Reuse
from cache_dic.registry import Settings, register
from cache_dic.schedule import MAX_STEPS, SCHEDULES, check_num_steps, check_periodic, taylorseer
from cache_dic.settings import integer, number


def growing_window(num_steps: int, *, warmup_steps: int, window: float, alpha: float) -> tuple[int, ...]:
    """Spectrum (hanjq17/Spectrum): the first `warmup_steps` steps, then the last step of each window, longer each time.

    The first window is of floor(window) steps, and `window` grows by `alpha` with every one. The last step is not forced.
    Example: 50 steps, warm-up 5, window 2, alpha 3: 0 1 2 3 4 6 11 19 30 44.
    """
    check_periodic(num_steps, 1, warmup_steps)
    size = number("window", window, at_least=1, at_most=MAX_STEPS)
    number("alpha", alpha, at_least=0, at_most=MAX_STEPS)
    steps, step = list(range(warmup_steps)), warmup_steps - 1
    while (step := step + math.floor(size)) < num_steps:
        steps.append(step)
        size = round(size + alpha, 3)  # as the release does, so that tenths add up
    return tuple(steps)


def with_tail(num_steps: int, *, interval: int, warmup_steps: int, tail_steps: int) -> tuple[int, ...]:
    """ChebBooster (arXiv 2608.23429): `taylorseer`, and the last `tail_steps` steps.

    The numbers of full steps in the paper's tables (18, 14, 12 and 10 of 50 at intervals 3, 4, 5 and 6) fit a warm-up of 2
    with a tail of 1; its own values could not be read.
    """
    integer("tail_steps", tail_steps, at_least=0, at_most=num_steps)
    periodic = taylorseer(num_steps, interval=interval, warmup_steps=warmup_steps)
    return tuple(sorted({*periodic, *range(num_steps - tail_steps, num_steps)}))


def published(num_steps: int, *, list_name: str) -> tuple[int, ...]:
    """A list of `LISTS` by its name. UserError for another number of steps than it was found for."""
    check_num_steps(num_steps)
    check_choice("list_name", list_name, LISTS)
    length, steps = LISTS[list_name]
    if num_steps != length:
        raise UserError(f"schedule list {list_name!r} is of {length} steps, not {num_steps}; take num_steps={length}")
    return steps


def step_mask(num_steps: int, *, mask: str) -> tuple[int, ...]:
    """The full steps of DBCache's masks "slow", "medium", "fast" and "ultra" (vipshop/cache-dit), with its resampling.

    A mask is runs of full and of forecast steps in turn, given for 28, 15, 9, 8, 6 and 4 steps. For more than 28 every run
    grows in proportion, round after round; what is too long is cut from the last run of each kind in turn. The last step is
    always full. UserError for 1 to 3, 5 and 7 steps.
    """
    check_num_steps(num_steps)
    check_choice("mask", mask, MASKS)
    if num_steps < 8 and num_steps not in (4, 6):
        raise UserError(f"num_steps = {num_steps} has no step mask; take 4, 6, or at least 8 steps")
    source = num_steps if num_steps in (4, 6, 8, 9) else 15 if num_steps < 16 else 28
    full, forecast = (list(runs) for runs in MASKS[mask][source])
    if num_steps > source:
        _grow(full, forecast, num_steps)
    _cut(full, forecast, num_steps)
    steps, start = {num_steps - 1}, 0
    for run, gap in zip_longest(full, forecast, fillvalue=0):
        steps.update(range(start, start + run))
        start += run + gap
    return tuple(sorted(steps))


def _grow(full: list[int], forecast: list[int], num_steps: int) -> None:
    """Lengthen the runs of a mask of 28 steps, in turn and again and again, until they cover `num_steps`."""
    growth = [[max(int(run * (num_steps / 28 * 0.5)), 1) for run in runs] for runs in (full, forecast)]
    while True:
        for i in range(len(forecast)):
            for runs, by in zip((full, forecast), growth, strict=True):
                runs[i] += by[i]
                if sum(full) + sum(forecast) >= num_steps:
                    return
        full[-1] += 1
        if sum(full) + sum(forecast) >= num_steps:
            return


def _cut(full: list[int], forecast: list[int], num_steps: int) -> None:
    """Shorten the last run of forecasts and the last of full steps, in turn by one step, to `num_steps`."""
    while True:
        for runs in (forecast, full):
            if sum(full) + sum(forecast) <= num_steps:
                return
            if runs:
                runs[-1] -= 1
                if runs[-1] == 0:
                    runs.pop()


Runs = tuple[Sequence[int], Sequence[int]]

MASKS: dict[str, dict[int, Runs]] = {
    "slow": {
        28: ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
        15: ((4, 2, 2, 2, 1), (1, 1, 1, 1)),
        9: ((5, 2, 1), (1,)),
        8: ((5, 1, 1), (1,)),
        6: ((3, 1), (2,)),
        4: ((2, 1), (1,)),
    },
    "medium": {
        28: ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
        15: ((4, 2, 1, 1, 1), (1, 1, 2, 2)),
        9: ((5, 1, 1), (1, 1)),
        8: ((4, 1, 1), (1, 1)),
        6: ((3, 1), (2,)),
        4: ((2, 1), (1,)),
    },
    "fast": {
        28: ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
        15: ((3, 1, 1, 1, 1), (1, 2, 2, 3)),
        9: ((4, 1, 1), (1, 2)),
        8: ((3, 1, 1), (1, 2)),
        6: ((3, 1), (2,)),
        4: ((2, 1), (1,)),
    },
    "ultra": {
        28: ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
        15: ((2, 1, 1, 1, 1), (1, 2, 3, 3)),
        9: ((3, 1, 1), (2, 2)),
        8: ((2, 1, 1), (2, 2)),
        6: ((3, 1), (2,)),
        4: ((2, 1), (1,)),
    },
}
"""By mask and number of steps, the lengths of its runs of full steps and of forecasts (cache-dit 1.5.3, steps_mask)."""


def _parsed(table: str) -> dict[str, tuple[int, tuple[int, ...]]]:
    """The lists of a table of lines `name num_steps: steps`; `7-10` stands for 7 8 9 10, and `#` begins a line of text."""
    lists = {}
    for line in table.split("\n"):
        if line and not line.startswith("#"):
            heading, steps = line.split(": ")
            name, length = heading.split()
            runs = [[int(end) for end in run.split("-")] for run in steps.split()]
            lists[name] = int(length), tuple(step for run in runs for step in range(run[0], run[-1] + 1))
    return lists


LISTS = _parsed("""
# SmoothCache (arXiv 2411.10510; Roblox/SmoothCache): DiT-XL/2 at 256², DDIM; number of steps and largest error
smoothcache_50_0.08 50: 0 3 5 7-49
smoothcache_50_0.18 50: 0 4 7 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38 40 42 44 46 48 49
smoothcache_70_0.08 70: 0 4 7 10 12 14 16 18 20 22 24 26 28 30 32 34 36 38 40 42 44 46 48 50 52 54 56 58 60 62 64 66 68 69
smoothcache_30_0.35 30: 0 3 5 7 9 11 13 15 17 19 21 23 25 27-29
# L2P (arXiv 2604.26365; Aredstone/L2P-Cache): FLUX.1-dev; the repository's name of the setting, which is no interval
l2p_5 50: 0-2 4 6 9 14 23 30 37 44
l2p_6 50: 0-2 4 7 14 23 31 38 45
l2p_7 50: 0-2 4 9 17 26 35 43
l2p_8 50: 0-2 4 10 20 31 41
l2p_10 50: 0-2 4 12 24 38
l2p_16 50: 0-2 4 16 32
# MeanCache (arXiv 2601.19961; UnicomAI/MeanCache): model and number of full steps
meancache_qwen_image_25 50: 0-16 24 32 40 43 45 47-49
meancache_qwen_image_17 50: 0-8 10 17 24 31 38 45 48 49
meancache_qwen_image_10 50: 0 1 3 7 14 21 28 35 42 49
meancache_qwen_image_2512_25 50: 0-15 23 31 37 44-49
meancache_qwen_image_2512_17 50: 0-9 11 19 27 35 43 47 49
meancache_qwen_image_2512_10 50: 0 2 4 7 14 21 28 35 42 49
meancache_z_image_25 50: 0-6 8 10-13 15-18 20 22 29 37 42 45 47-49
meancache_z_image_20 50: 0-4 6 8 10 12 14 16 18 20 22 30 38 43 46 48 49
meancache_z_image_17 50: 0-4 6 8 10 12 14 19 27 35 43 46 48 49
meancache_z_image_15 50: 0-3 5 7 10 12 17 25 33 41 45 48 49
meancache_z_image_13 50: 0-3 5 9 15 22 29 36 43 47 49
# ProCache (arXiv 2512.17298; macovaseas/ProCache): the steps of code 1. Those of code 2, which compute a part, are forecasts
# of lists called …_skips, as in the released FLUX code; HunyuanVideo's list has none
procache_dit_skips 50: 0 4 8 12 16 20 24 27 30 33 36 38 40 42 44 46 48
procache_flux_skips 50: 0 6 12 18 24 30 35 40 45
procache_hunyuan_video 50: 0 8 16 24 32 40 47
""")
"""By name, the number of steps that a list is for, and its full steps."""

SCHEDULES.update(growing_window=growing_window, with_tail=with_tail, published=published, step_mask=step_mask)

PRESETS: dict[str, dict[str, Sequence[Settings]]] = {
    "smoothcache": {"dit": ({"list_name": "smoothcache_50_0.18"}, {"list_name": "smoothcache_50_0.08"})},
    "procache": {
        "dit": ({"list_name": "procache_dit_skips"},),
        "flux": ({"list_name": "procache_flux_skips"},),
        "hunyuan_video": ({"list_name": "procache_hunyuan_video"},),
    },
}
register("smoothcache", schedule="published", presets=PRESETS["smoothcache"], paper="arXiv 2411.10510")(Reuse)
register("procache", schedule="published", presets=PRESETS["procache"], paper="arXiv 2512.17298")(Reuse)
