"""LoopSeer, a method of this repository: full steps, form and forecast of a budget, calibrated together in the closed loop.

    pred(step) = Σ_m (w_m(step) + c_m) · F(full step m)

w are Taylor's, Newton's or FoCa's weights for the step, damped or not, c corrections that are the same for all steps between
two full steps. They and the list of full steps stand in a file that eval/calibrate_loopseer.py writes, from really sampled runs
that were held against uncached ones. A run costs what TaylorSeer's costs with as many full steps: weights and a schedule are
all there is.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from cache_dic.errors import UserError, check_choice, shown
from cache_dic.forecast import MAX_ORDER, Damped, Forecaster, Newton, SmoothForecaster, Taylor, check_order
from cache_dic.methods.adams_bashforth import Multistep
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS, SCHEDULES, check_num_steps, explicit
from cache_dic.settings import ENGINE_NAMES, integer, number

CALIBRATIONS = Path(__file__).with_name("calibrations")
HOW = "make one with `python eval/calibrate_loopseer.py --model NAME --full-steps N`"
ORDERS = {"taylor": range(MAX_ORDER + 1), "newton": range(MAX_ORDER + 1), "foca": (2,)}
"""By basis: FoCa's is one formula, of the second order."""
MAX_CORRECTION = 100.0
"""The largest correction that a file may hold: what was ever fitted is below 1."""
MAX_DAMPING = 2.0
"""Of a file: above 1 a forecast is one for a later step."""
_SHIPPED = re.compile(r"loopseer-(?P<model>.+)-(?P<count>\d+)-of-(?P<steps>\d+)")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a calibration found.

    full_steps: of runs of num_steps. engine: the form that is kept. basis, max_order, warmup_steps, damping: of the weights w.
    corrections: for each full step the c_m of the forecasts that follow it, oldest m first, the last for that step itself.
    """

    model: str
    num_steps: int
    full_steps: tuple[int, ...]
    engine: str
    basis: str
    max_order: int
    warmup_steps: int
    corrections: tuple[tuple[float, ...], ...]
    damping: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise UserError(f"model = {shown(self.model)} must be a name")
        integer("num_steps", self.num_steps, at_least=1, at_most=MAX_STEPS)
        integer("warmup_steps", self.warmup_steps, at_least=1, at_most=MAX_STEPS)
        check_choice("engine", self.engine, ENGINE_NAMES)
        check_choice("basis", self.basis, tuple(ORDERS))
        check_order(self.max_order)
        if self.max_order not in ORDERS[self.basis]:
            raise UserError(f"max_order = {self.max_order} must be {ORDERS[self.basis][0]} with the basis {self.basis}")
        damping = number("damping", self.damping, at_least=0, at_most=MAX_DAMPING)
        object.__setattr__(self, "damping", abs(damping))  # so that -0.0 and 0.0 have one digest
        object.__setattr__(self, "full_steps", explicit(self.num_steps, full_steps=self.full_steps))
        rows = self.corrections
        if not isinstance(rows, Sequence) or len(rows) != len(self.full_steps):
            raise UserError(f"corrections must be a list for each of the {len(self.full_steps)} full steps")
        for count, row in enumerate(rows, 1):
            fits = isinstance(row, Sequence) and not isinstance(row, str) and len(row) <= count
            if not fits or not all(type(c) in (int, float) and -MAX_CORRECTION <= c <= MAX_CORRECTION for c in row):
                raise UserError(
                    f"corrections after full step {count} are {shown(row)}, where at most {count} numbers within "
                    f"±{MAX_CORRECTION:.0f} are wanted"
                )
        object.__setattr__(self, "corrections", tuple(tuple(map(float, row)) for row in rows))

    @cached_property
    def uncorrected(self) -> Forecaster:
        """What gives the weights w."""
        bases: dict[str, SmoothForecaster] = {
            "taylor": Taylor(max_order=self.max_order, warmup_steps=self.warmup_steps),
            "newton": Newton(max_order=self.max_order),
            "foca": Multistep(formula="foca"),
        }
        return Damped(forecaster=bases[self.basis], damping=self.damping)

    def weights(self, full_steps: Sequence[int], step: int) -> list[float]:
        """Of the features at the last full steps, oldest first. UserError for full steps that are not the calibration's."""
        if tuple(full_steps) != self.full_steps[: len(full_steps)]:
            raise UserError("loopseer's weights are for its own list of full steps; leave out another schedule")
        row, added = list(self.uncorrected.weights(full_steps, step)), self.corrections[len(full_steps) - 1]
        count = max(len(row), len(added))
        return [
            (row[-i] if i <= len(row) else 0.0) + (added[-i] if i <= len(added) else 0.0) for i in range(count, 0, -1)
        ]


def calibration_names() -> tuple[str, ...]:
    """Names of the calibrations that come with the package, as `flux-tiny-10-of-50`."""
    return tuple(sorted(path.stem.removeprefix("loopseer-") for path in CALIBRATIONS.glob("loopseer-*.json")))


def read_calibration(calibration: str) -> Calibration:
    """By its name, or from a file.json; UserError naming the file and what of it is no calibration."""
    path = Path(calibration)
    if not calibration.lower().endswith(".json"):
        check_choice("calibration", calibration, calibration_names())
        path = CALIBRATIONS / f"loopseer-{calibration}.json"
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: no system has such a path
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"calibration {path} cannot be read ({why}); {HOW}") from error
    return _read(os.fspath(path), data)


@cache
def _read(path: str, data: bytes) -> Calibration:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"calibration {path} is not JSON ({error}); {HOW}") from error
    names = Calibration.__dataclass_fields__
    wanted = [name for name, field in names.items() if field.default is MISSING]
    if not isinstance(found, Mapping) or not found.keys() >= {*wanted}:
        raise UserError(f"calibration {path} is no JSON object with {', '.join(wanted)}; {HOW}")
    try:
        return Calibration(**{name: found[name] for name in names if name in found})
    except UserError as error:
        raise UserError(f"calibration {path}: {error}; {HOW}") from error


def digest(calibration: Calibration) -> str:
    """What tells calibrations apart, whatever their files are called."""
    return hashlib.sha256(repr(calibration).encode()).hexdigest()[:16]


def calibrated(num_steps: int, *, calibration: str | None = None) -> tuple[int, ...]:
    """The full steps of a calibration; UserError for another number of steps than it was made for, and for none."""
    check_num_steps(num_steps)
    found = _given(calibration)
    if num_steps != found.num_steps:
        raise UserError(
            f"calibration {calibration} is for runs of {found.num_steps} steps, and this one has {num_steps}; take "
            f"{found.num_steps} steps, or {HOW} --num-steps {num_steps}"
        )
    return found.full_steps


SCHEDULES["loopseer"] = calibrated


def _given(calibration: str | None) -> Calibration:
    if calibration is None:
        raise UserError(f"loopseer has no calibration for this model; {HOW} and give calibration=FILE.json")
    return read_calibration(calibration)


def _presets() -> dict[str, list[dict[str, Any]]]:
    """By model, a row for each of its shipped calibrations, most full steps first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for name in calibration_names():
        if match := _SHIPPED.fullmatch(f"loopseer-{name}"):
            found.setdefault(match["model"], []).append((int(match["count"]), name))
    return {model: [{"calibration": name} for _, name in sorted(rows, reverse=True)] for model, rows in found.items()}


@register("loopseer", schedule="loopseer", presets=_presets())
@dataclass(frozen=True, kw_only=True)
class LoopSeer:
    """calibration: one of `calibration_names()`, or a file.json of eval/calibrate_loopseer.py. It says which form is kept, too,
    where no engine is asked for."""

    calibration: str | None = None

    def __post_init__(self) -> None:
        _given(self.calibration)

    @property
    def found(self) -> Calibration:
        return _given(self.calibration)

    @property
    def labels(self) -> dict[str, str]:
        """A file by what is in it, as `10of50.1a2b3c4d`: where it lies on a machine is nothing to labels."""
        found, given = self.found, str(self.calibration)
        if given in calibration_names():
            return {"calibration": given}
        return {"calibration": f"{len(found.full_steps)}of{found.num_steps}.{digest(found)[:8]}"}

    @property
    def engine(self) -> str:
        """What the calibration was made with."""
        return self.found.engine

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        return self.found.weights(full_steps, step)
