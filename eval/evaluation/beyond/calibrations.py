"""Files of calibrations of LoopSeer: which ship for a model, what of them is read here, and others made of them for trials."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_dic import UserError
from evaluation.backbones import ROOT
from seerkit.io.records import read_record

FOLDER = ROOT / "common" / "cache_dic" / "methods" / "calibrations"
MADE_BY = "eval/calibrate_loopseer.py"
PUBLISHED = "published"
"""Ends the name of a calibration whose full steps are those of TaylorSeer's rule."""
CALIBRATION = {
    "model": str,
    "num_steps": int,
    "full_steps": [int],
    "engine": str,
    "basis": str,
    "max_order": int,
    "damping": (None, float),
    "corrections": list,
    "stages": (
        None,
        [
            {
                "stage": str,
                "full_steps": (None, [int]),
                "similarity_db": (None, float),
                "tried": (None, [{"gain_on_unseen_db": (None, float)}]),
            }
        ],
    ),
    "made_with": (None, {"prompts": (None, [str])}),
    "searched_for": (None, {"fit": (None, str)}),
}
"""What is read here of a file, which `cache_dic.methods.loopseer` reads for itself."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A file. data: what it holds."""

    path: Path
    data: Mapping[str, Any]

    @property
    def full_steps(self) -> tuple[int, ...]:
        return tuple(self.data["full_steps"])

    @property
    def count(self) -> int:
        return len(self.full_steps)

    @property
    def num_steps(self) -> int:
        return self.data["num_steps"]

    @property
    def damping(self) -> float:
        """Of its forecasts, 1 for none."""
        found = self.data.get("damping")
        return 1.0 if found is None else found

    @property
    def fit(self) -> str:
        """Of its corrections."""
        return (self.data.get("searched_for") or {}).get("fit") or "model"

    @property
    def is_published(self) -> bool:
        """Whether it was made for the full steps of TaylorSeer's rule."""
        return self.path.stem.endswith(f"-{PUBLISHED}")

    @property
    def setting(self) -> str:
        """What `make_cache("loopseer", calibration=…)` takes: the name of a file that ships, the path of another."""
        return self.path.stem.removeprefix("loopseer-") if self.path.parent == FOLDER else str(self.path)

    @property
    def seen(self) -> list[str]:
        """The prompts of its samples."""
        return (self.data.get("made_with") or {}).get("prompts") or []

    def told(self) -> dict[str, Any]:
        """What a record says of it."""
        return {
            "name": self.path.stem,
            "digest": hashlib.sha256(self.path.read_bytes()).hexdigest()[:16],
            **{name: self.data[name] for name in ("full_steps", "engine", "basis", "max_order")},
            "damping": self.damping,
            "num_samples": len(self.seen),
        }

    def similarity_by_stage(self) -> dict[str, float]:
        """In dB, on its samples, what was best after each stage of the search."""
        stages = {one["stage"]: one.get("similarity_db") for one in self.data.get("stages") or ()}
        return {stage: value for stage, value in stages.items() if value is not None}

    def gain_of_corrections(self) -> float | None:
        """In dB, the most that samples gained by corrections that were fitted to others; None where none were tried so."""
        tried = [option for one in self.data.get("stages") or () for option in one.get("tried") or ()]
        gains = [option["gain_on_unseen_db"] for option in tried if option.get("gain_on_unseen_db") is not None]
        return max(gains, default=None)

    def lists_by_stage(self) -> dict[str, tuple[int, ...]]:
        """The list of full steps that was best after each stage of the search, those alone that differ from the outcome."""
        stages = {
            one["stage"]: tuple(one["full_steps"]) for one in self.data.get("stages") or () if one.get("full_steps")
        }
        return {stage: steps for stage, steps in stages.items() if steps != self.full_steps}


def read(path: Path) -> Calibration:
    """UserError naming what of a file is no calibration."""
    return Calibration(path=path, data=read_record(path, CALIBRATION, MADE_BY))


def every(folder: Path = FOLDER) -> list[Calibration]:
    """All that ship, by model, most full steps first."""
    found = map(read, folder.glob("loopseer-*.json"))
    return sorted(found, key=lambda one: (one.data["model"], one.is_published, -one.count))


def shipped(model: str, num_steps: int, *, ending: str = "", folder: Path = FOLDER) -> dict[int, Calibration]:
    """By number of full steps, most first, the calibrations of a model that ship for runs of so many steps."""
    name, end = f"loopseer-{model.replace('/', '-')}-", f"-of-{num_steps}{ending and f'-{ending}'}"
    counts = {path.stem.removeprefix(name).removesuffix(end): path for path in folder.glob(f"{name}*{end}.json")}
    found = [read(path) for text, path in counts.items() if text.isdecimal()]
    return {one.count: one for one in sorted(found, key=lambda one: -one.count)}


def by_budget(model: str, num_steps: int, budgets: Sequence[int], given: Sequence[Path] = ()) -> dict[int, Calibration]:
    """By budget, the calibration that is shown: of those given, or else of those that ship.

    UserError naming the budgets that none is for, with how to make one.
    """
    found = _given(model, num_steps, given, published=False) if given else shipped(model, num_steps)
    missing = [count for count in budgets if count not in found]
    if missing:
        raise UserError(
            f"no calibration of LoopSeer for {num_steps} steps of {model} has {', '.join(map(str, missing))} full steps; make "
            f"one with {MADE_BY}, or ask for others by --budgets"
            + (f" ({', '.join(map(str, found))} are there)" if found else "")
        )
    return {count: found[count] for count in budgets}


def for_published(model: str, num_steps: int, given: Sequence[Path] = ()) -> dict[int, Calibration]:
    """By number of full steps, those for the lists of TaylorSeer's rule: of the files given, or else of those that ship."""
    return _given(model, num_steps, given, published=True) if given else shipped(model, num_steps, ending=PUBLISHED)


def _given(model: str, num_steps: int, paths: Sequence[Path], *, published: bool) -> dict[int, Calibration]:
    """By number of full steps, those of some files that are, or are not, for the published lists; UserError for one of another
    model or number of steps, and for two with as many full steps."""
    found: dict[int, Calibration] = {}
    for one in map(read, paths):
        if one.is_published != published:
            continue
        if (one.data["model"], one.num_steps) != (model, num_steps):
            raise UserError(
                f"calibration {one.path} is for {one.num_steps} steps of {one.data['model']}, not for {num_steps} of "
                f"{model}; name others by --calibrations"
            )
        if one.count in found:
            raise UserError(
                f"calibrations {found[one.count].path} and {one.path} both have {one.count} full steps; name one of them"
            )
        found[one.count] = one
    return found


def mapped(one: Calibration, num_steps: int) -> dict[str, Any]:
    """What a calibration holds, with its list carried over to another number of steps; corrections stay with their gaps.

    A full step goes to the nearest step at the same share of the run; one that would meet the one before it goes after it.
    UserError where the full steps do not fit.
    """
    if num_steps <= one.count:
        raise UserError(f"{one.count} full steps leave nothing to forecast of {num_steps}; take more steps")
    scale = (num_steps - 1) / (one.num_steps - 1)
    steps: list[int] = []
    for place, step in enumerate(one.full_steps):
        least, most = (steps[-1] + 1 if steps else 0), num_steps - (one.count - place)
        steps.append(min(max(round(step * scale), least), most))
    return {**one.data, "num_steps": num_steps, "full_steps": steps}
