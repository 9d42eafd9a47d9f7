"""When: which sampling steps run the network.

Steps count up from 0 in sampling order. `SCHEDULES` names the rules: pure functions of the number of steps, known before the
first one, whose result is the ascending tuple of full steps; and classes of schedules that decide while sampling
(`cache_dic.decide`).
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING
from typing import Any

from cache_dic.errors import UserError, check_choice, shown
from cache_dic.settings import ScheduleFile, full_steps_tuple, init_fields, integer

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


Rule = Callable[..., Any]
"""A function of the number of steps and its settings, or the class of a schedule that decides while sampling (`Decider`)."""

SCHEDULES: dict[str, Rule] = {
    "taylorseer": taylorseer,
    "diffusers": diffusers,
    "fora": fora,
    "explicit": explicit,
    "searched": searched,
}

SEARCHED = "searched"
"""The one rule that is given by the path of a file (`cache_dic.searched`) and not by its name."""

GIVEN = ("num_steps", "branch")
"""Arguments of a rule that a run gives, not a user."""


def schedule_settings(name: str) -> dict[str, Any]:
    """Annotations of a schedule's settings by name; UserError for an unknown one."""
    check_choice("schedule", name, SCHEDULES)
    rule = SCHEDULES[name]
    if isinstance(rule, type):
        return {f.name: f.type for f in init_fields(rule)}
    parameters = inspect.signature(rule).parameters
    return {name: parameter.annotation for name, parameter in parameters.items() if name not in GIVEN}


def schedule_defaults(name: str) -> dict[str, Any]:
    """Values that a schedule itself gives its settings, of those that have any."""
    rule = SCHEDULES[name]
    if isinstance(rule, type):
        return {f.name: f.default for f in init_fields(rule) if f.default is not MISSING}
    parameters = inspect.signature(rule).parameters
    return {n: p.default for n, p in parameters.items() if n not in GIVEN and p.default is not p.empty}


def foreseen_steps(name: str, num_steps: int, branch: str, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """Full steps of a rule. branch: of guidance, "cond" or "uncond", for rules that tell them apart."""
    rule = SCHEDULES[name]
    takes_branch = "branch" in inspect.signature(rule).parameters
    return rule(num_steps, **({"branch": branch} if takes_branch else {}), **settings)


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
