"""Searched schedules: full steps in a JSON file, as `eval/search_schedule.py` writes it, in place of a rule's name.

    make_cache("taylorseer", schedule="TaylorSeer-FLUX/schedules/flux-tiny-10-of-50.json")

Of the file, "model", "num_steps" and "full_steps" are read.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, TypeGuard

from cache_dic.errors import UserError, shown
from cache_dic.schedule import MAX_STEPS, SEARCHED, explicit
from cache_dic.settings import ScheduleFile, integer

MADE_BY = "make one with `python eval/search_schedule.py`"


def is_schedule_file(schedule: Any) -> TypeGuard[str | os.PathLike[str]]:
    """Whether what is given as a schedule is the path of a file, which ends in .json, and no name."""
    return isinstance(schedule, str | os.PathLike) and os.fspath(schedule).lower().endswith(".json")


def rule_name(schedule: Any) -> Any:
    """The name in `SCHEDULES` of what is given as a schedule; anything but a file's path as it is."""
    return SEARCHED if is_schedule_file(schedule) else schedule


def read_schedule(path: str | os.PathLike[str]) -> ScheduleFile:
    """The schedule in a file; UserError naming the file and what of it is no schedule."""
    if not Path(path).is_file():
        raise UserError(f"schedule {path} is no file; {MADE_BY}")
    try:
        data = Path(path).read_bytes()
        found = json.loads(data)
    except OSError as error:
        raise UserError(f"schedule {path} cannot be read ({error.strerror}); {MADE_BY}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"schedule {path} is not JSON ({error}); {MADE_BY}") from error
    if not isinstance(found, dict):
        raise UserError(f"schedule {path} is no JSON object; {MADE_BY}")
    for key in ("model", "num_steps", "full_steps"):
        if key not in found:
            raise UserError(f'schedule {path} has no "{key}"; {MADE_BY}')
    if not isinstance(found["model"], str):
        raise UserError(f'schedule {path}: "model" is {shown(found["model"])}, where a name is wanted; {MADE_BY}')
    try:
        num_steps = integer("num_steps", found["num_steps"], at_least=1, at_most=MAX_STEPS)
        full_steps = explicit(num_steps, full_steps=found["full_steps"])
    except UserError as error:
        raise UserError(f"schedule {path}: {error}; {MADE_BY}") from error
    return ScheduleFile(
        name=Path(path).name,
        digest=hashlib.sha256(data).hexdigest()[:16],
        model=found["model"],
        num_steps=num_steps,
        full_steps=full_steps,
    )
