"""When: which sampling steps run the network. Pure functions of the number of steps, known before the first one.

Steps count up from 0 in sampling order; the result is the ascending tuple of full steps. `SCHEDULES` names the rules.
"""

from collections.abc import Callable, Sequence

from cache_dic.errors import UserError, shown
from cache_dic.settings import ScheduleFile, full_steps_tuple, integer

MAX_STEPS = 10_000
"""The most sampling steps of a run: ten times what models are trained with; at the usual orders planned within a second."""


def taylorseer(num_steps: int, *, interval: int, warmup_steps: int) -> tuple[int, ...]:
    """The first `warmup_steps` steps, then every `interval`-th after the last of them (Shenyi-Z/TaylorSeer).

    The last step is not forced to be full. Example: 50 steps, interval 6, warm-up 3: 0 1 2 8 14 20 26 32 38 44.
    """
    check_periodic(num_steps, interval, warmup_steps)
    return (*range(warmup_steps), *range(warmup_steps - 1 + interval, num_steps, interval))


def diffusers(num_steps: int, *, interval: int, warmup_steps: int) -> tuple[int, ...]:
    """The rule of diffusers' TaylorSeer hook: after the warm-up, full when (step - warmup_steps - 1) % interval == 0.

    Example: warm-up 3, interval 5: 0 1 2 4 9 14 …, so the first gap differs from `taylorseer`.
    """
    check_periodic(num_steps, interval, warmup_steps)
    return tuple(s for s in range(num_steps) if s < warmup_steps or (s - warmup_steps - 1) % interval == 0)


def fora(num_steps: int, *, interval: int) -> tuple[int, ...]:
    """Step 0, and every step whose distance from the last one is a multiple of `interval` (prathebaselva/FORA)."""
    check_periodic(num_steps, interval, 1)
    return tuple(s for s in range(num_steps) if s == 0 or (num_steps - 1 - s) % interval == 0)


def explicit(num_steps: int, *, full_steps: Sequence[int]) -> tuple[int, ...]:
    """A list of full steps given by hand: ascending, without repeats, from 0, below `num_steps`."""
    check_num_steps(num_steps)
    steps = full_steps_tuple(full_steps)
    if steps[-1] >= num_steps:
        raise UserError(f"full_steps ends with {shown(steps[-1])}, but the run has steps 0 … {num_steps - 1}")
    return steps


def searched(num_steps: int, *, file: ScheduleFile) -> tuple[int, ...]:
    """The full steps of a file, in a run of as many steps as they were searched for."""
    check_num_steps(num_steps)
    if num_steps != file.num_steps:
        raise UserError(
            f"schedule {file.name} is for runs of {file.num_steps} steps, and this one has {num_steps}; take "
            f"{file.num_steps} steps, or search a schedule for {num_steps} with `python eval/search_schedule.py`"
        )
    return file.full_steps


SCHEDULES: dict[str, Callable[..., tuple[int, ...]]] = {
    "taylorseer": taylorseer,
    "diffusers": diffusers,
    "fora": fora,
    "explicit": explicit,
    "searched": searched,
}

SEARCHED = "searched"
"""The one rule that is given by the path of a file (`cache_dic.searched`) and not by its name."""


def check_num_steps(num_steps: int) -> None:
    """UserError naming the number of sampling steps if no run can have it."""
    integer("num_steps", num_steps, at_least=1, at_most=MAX_STEPS)


def check_periodic(num_steps: int, interval: int, warmup_steps: int) -> None:
    """UserError naming the value if a periodic schedule is impossible."""
    check_num_steps(num_steps)
    integer("interval", interval, at_least=1, at_most=MAX_STEPS)
    integer("warmup_steps", warmup_steps, at_least=1, at_most=MAX_STEPS)
    if warmup_steps > num_steps:
        raise UserError(f"warmup_steps = {warmup_steps} must lie between 1 and the number of steps, {num_steps}")
