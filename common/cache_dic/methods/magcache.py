"""MagCache (arXiv 2506.09045, Zehong-Ma/MagCache): full steps from a table of how much the residual of the stack grows.

    ratio[s] = mean over tokens of ‖R_s‖ / ‖R_{s-1}‖,   R = tokens after the last block - tokens before the first

measured once on uncached samples of a model. The schedule follows from the table, so it is known before the first step.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cache_dic.errors import UserError, check_choice, shown
from cache_dic.forecast import Reuse
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS, SCHEDULES, check_num_steps
from cache_dic.settings import integer, number, plain

TABLES_FILE = Path(__file__).with_name("magcache_tables.json")
CALIBRATIONS = Path(__file__).with_name("calibrations")
BRANCHES = ("cond", "uncond")
RETENTION = {"down": math.floor, "nearest": lambda steps: math.floor(steps + 0.5), "up": math.ceil}


@dataclass(frozen=True, kw_only=True)
class Table:
    """Ratios of a model at one number of steps, with the settings and the habits of the script that they come with.

    ratios: by branch, one number a step; both branches have the same where the model tells none apart.
    threshold, max_consecutive, retention_ratio: usual settings; diffusers' where a table names none.
    retention: how the number of retained steps is rounded: "down", "nearest" (diffusers' too) or "up".
    calls: the script counts calls, cond and uncond in turn, and a skip needs an error below the threshold, not at it.
    forced: index in the table of a step that is always full. max_change: no step is skipped whose ratio is further from 1.
    """

    source: str = ""
    num_steps: int
    ratios: Mapping[str, tuple[float, ...]]
    threshold: float = 0.06
    max_consecutive: int = 3
    retention_ratio: float = 0.2
    retention: str = "nearest"
    calls: bool = False
    forced: int | None = None
    max_change: float = math.inf

    def __post_init__(self) -> None:
        check_choice("retention", self.retention, RETENTION)
        number("max_change", min(self.max_change, 1e6), at_least=0, at_most=1e6)
        if self.forced is not None:
            integer("forced", self.forced, at_least=0, at_most=self.num_steps - 1)

    def at(self, num_steps: int, branch: str) -> list[float]:
        """The ratios of a branch for another number of steps: for each step the nearest entry, both ends kept."""
        ratios = self.ratios[branch]
        return [ratios[self.index(step, num_steps)] for step in range(num_steps)]

    def index(self, step: int, num_steps: int) -> int:
        """The entry that stands for a step of a run of `num_steps`; the last one for the only step of a run."""
        return self.num_steps - 1 if num_steps == 1 else round(step * ((self.num_steps - 1) / (num_steps - 1)))

    def retained(self, num_steps: int, branch: str, retention_ratio: float) -> int:
        """How many of the first steps are full."""
        if not self.calls:
            return RETENTION[self.retention](retention_ratio * num_steps)
        calls = int(2 * num_steps * retention_ratio)
        return (calls + 1) // 2 if branch == "cond" else calls // 2


def magcache(
    num_steps: int,
    *,
    table: str | Sequence[float],
    threshold: float | None = None,
    max_consecutive: int | None = None,
    retention_ratio: float | None = None,
    forced: bool = True,
    branch: str = "cond",
) -> tuple[int, ...]:
    """The full steps of one guidance branch by MagCache's rule.

    After the retained steps, R *= ratio, err += |1 - R| at each step; it is skipped while err stays within the threshold, for
    at most `max_consecutive` steps in a row; a full step sets R = 1, err = 0. Step 0 is always full, and with threshold 0 every
    step (the scripts would skip one whose ratio is exactly 1).

    table: a name of `table_names()`; a file.json with num_steps and ratio, or ratio_cond and ratio_uncond; or the ratios.
    threshold, max_consecutive, retention_ratio: None takes the table's.
    forced: whether the step that the table's script always computes is full, where it has one (FLUX's: 11 of 28, 20 of 50).
    branch: "cond" or "uncond"; the scripts of Wan and Qwen-Image decide for each by its own table.
    """
    check_num_steps(num_steps)
    check_choice("branch", branch, BRANCHES)
    chosen = read_table(table)
    limit = number("threshold", chosen.threshold if threshold is None else threshold, at_least=0, at_most=1e6)
    longest = integer(
        "max_consecutive",
        chosen.max_consecutive if max_consecutive is None else max_consecutive,
        at_least=0,
        at_most=MAX_STEPS,
    )
    share = chosen.retention_ratio if retention_ratio is None else retention_ratio
    retained = chosen.retained(num_steps, branch, number("retention_ratio", share, at_least=0, at_most=1))

    steps, growth, error, since = [], 1.0, 0.0, 0
    for step, ratio in enumerate(chosen.at(num_steps, branch)):
        if step >= retained:
            growth *= ratio
            error += abs(1 - growth)
            since += 1
        within = error < limit or (error == limit and not chosen.calls and limit > 0)
        always = step < max(retained, 1) or (forced and chosen.index(step, num_steps) == chosen.forced)
        if always or not within or since > longest or abs(1 - ratio) > chosen.max_change:
            steps.append(step)
            growth, error, since = 1.0, 0.0, 0
    return tuple(steps)


@cache
def _tables() -> dict[str, Table]:
    published = json.loads(TABLES_FILE.read_text(encoding="utf-8"))
    own = {path.stem.removeprefix("magcache-"): path for path in sorted(CALIBRATIONS.glob("magcache-*.json"))}
    entries = published | {name: json.loads(path.read_text(encoding="utf-8")) for name, path in own.items()}
    return {name: _table(name, entry) for name, entry in entries.items()}


def table_names() -> tuple[str, ...]:
    """Names of the tables that come with the package."""
    return tuple(_tables())


def read_table(table: str | Sequence[float]) -> Table:
    """A table by its name, from a file.json, or of ratios. UserError for an unknown name and for what is no table."""
    if not isinstance(table, str):
        return _table("given", {"num_steps": len(table), "ratio": table} if isinstance(table, list | tuple) else table)
    if not table.endswith(".json"):
        check_choice("table", table, _tables())
        return _tables()[table]
    try:
        return _table(table, json.loads(Path(table).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"table {table!r} cannot be read: {error}") from error


def _table(name: str, entry: Any) -> Table:
    """A table from its JSON form, checked; how eval/calibrate.py made one is left aside."""
    if not isinstance(entry, dict):
        raise UserError(f"table {name!r} is no object with num_steps and ratio")
    entry = {key: value for key, value in entry.items() if key != "calibration"}
    keys = ("ratio", "ratio") if "ratio" in entry else ("ratio_cond", "ratio_uncond")
    unknown = entry.keys() - {f.name for f in fields(Table)} - set(keys) | entry.keys() & {"ratios"}
    missing = {"num_steps", *keys} - entry.keys()
    if unknown or missing:
        wrong = f"has no {', '.join(sorted(missing))}" if missing else f"has unknown {', '.join(sorted(unknown))}"
        raise UserError(f"table {name!r} {wrong}; it needs num_steps and ratio, or ratio_cond and ratio_uncond")
    num_steps = integer(f"num_steps of table {name!r}", entry["num_steps"], at_least=1, at_most=MAX_STEPS)
    ratios = {branch: _ratios(name, key, entry[key], num_steps) for branch, key in zip(BRANCHES, keys, strict=True)}
    return Table(ratios=MappingProxyType(ratios), **{k: v for k, v in entry.items() if k not in keys})


def _ratios(name: str, key: str, values: Any, num_steps: int) -> tuple[float, ...]:
    if not isinstance(values, Sequence) or len(values) != num_steps:
        raise UserError(f"{key} of table {name!r} must be a list of {num_steps} numbers, one a step")
    if not all(type(plain(v)) in (int, float) and 0 < v < math.inf for v in values):
        raise UserError(f"{key} of table {name!r} must be finite numbers above 0, not {shown(values)}")
    return tuple(float(v) for v in values)


SCHEDULES["magcache"] = magcache


def _own(table: str, *thresholds: float) -> tuple[dict[str, Any], ...]:
    """Rows of an embedded model, by the table that eval/calibrate.py measured."""
    settings = {"table": table, "max_consecutive": 5, "retention_ratio": 0.1}
    return tuple({**settings, "threshold": threshold} for threshold in thresholds)


PRESETS = {
    "flux-dev": ({"table": "flux_1_dev"},),
    "hunyuan-video": (
        {"table": "hunyuan_video_720p"},
        {"table": "hunyuan_video_720p", "threshold": 0.12, "max_consecutive": 4},
    ),
    "wan-t2v-1.3B": (
        {"table": "wan2_1_t2v_1_3b"},
        {"table": "wan2_1_t2v_1_3b", "max_consecutive": 2},
    ),
    "wan-t2v-14B": ({"table": "wan2_1_t2v_14b"},),
    "wan-i2v-14B-480P": ({"table": "wan2_1_i2v_14b_480p"},),
    "wan-i2v-14B-720P": ({"table": "wan2_1_i2v_14b_720p"},),
    "wan-vace-1.3B": ({"table": "wan2_1_vace_1_3b"},),
    "wan2.2-ti2v-5B": ({"table": "wan2_2_ti2v_5b_t2v"},),
    "wan2.2-ti2v-5B-i2v": ({"table": "wan2_2_ti2v_5b_i2v"},),
    "flux-kontext-dev": ({"table": "flux_1_kontext_dev"},),
    "hunyuan-video-1.5-i2v-480p": ({"table": "hunyuan_video_1_5_i2v_480p"},),
    "qwen-image": ({"table": "qwen_image"},),
    "qwen-image-edit": ({"table": "qwen_image_edit"},),
    # Thresholds for about 2, 3 and 4 times fewer full steps of 50.
    "fashion-mnist": _own("fashion-mnist", 0.03, 0.06, 0.2),
    "flux-tiny": _own("flux-tiny", 0.06, 0.12, 0.3),
    "hidream-tiny": _own("hidream-tiny", 0.06, 0.12, 0.3),
    "hunyuan-tiny": _own("hunyuan-tiny", 0.06, 0.12, 0.3),
    "wan-tiny": _own("wan-tiny", 0.03, 0.06, 0.2),
}
register("magcache", schedule="magcache", engine="stack", presets=PRESETS, paper="arXiv 2506.09045")(Reuse)
