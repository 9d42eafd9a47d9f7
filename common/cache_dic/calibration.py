"""TeaCache's polynomials and MagCache's tables, from numbers that uncached runs of a model report step by step.

Of a run nothing is kept but tokens and signal of the step before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_dic.cache import Cache
from cache_dic.decide import Decider
from cache_dic.errors import UserError
from cache_dic.forecast import Reuse
from cache_dic.look import Look
from cache_dic.methods.magcache import BRANCHES
from cache_dic.methods.teacache import SIGNALS, signal_of
from cache_dic.schedule import SCHEDULES

DEGREE = 4
DIGITS = 7  # of what is measured, in float32
MEASURED = {"teacache": ("change", "output_change"), "magcache": ("ratio",)}
"""By method, which of the numbers that `Measure` reports its calibration is made of."""


@dataclass(kw_only=True)
class Measure(Decider):
    """Every step is full; reports, beside the change of a signal, what it did to the tokens after the last block.

    change, output_change: mean |new - old| / mean |old| of signal and tokens, from one step to the next. ratio: mean
    over tokens of ‖R‖ / ‖R of the step before‖, R being what all blocks added.
    """

    signal: str = SIGNALS[0]
    of_signal: Tensor | None = field(init=False, default=None)
    of_output: Tensor | None = field(init=False, default=None)
    norms: Tensor | None = field(init=False, default=None)
    by_branch = True
    sees_ends = True

    def decide(self, look: Look) -> bool:
        signal = signal_of(look, self.signal)
        if self.of_signal is not None:
            look.report(change=look.change(signal, self.of_signal))
        self.of_signal = signal
        return True

    def learn(self, look: Look, output: Tensor) -> None:
        assert look.after is not None, "of a full step"
        assert look.before is not None, "of a full step"
        norms = (look.after.float() - look.before.float()).norm(dim=-1)
        if self.of_output is not None and self.norms is not None:
            grown = norms / self.norms
            total, count = look.sums(grown, torch.ones_like(grown))
            look.report(output_change=look.change(look.after, self.of_output), ratio=total / count)
        self.of_output, self.norms = look.after, norms


def measuring(signal: str) -> Cache:
    """The uncached run, measured."""
    SCHEDULES["measure"] = Measure
    return Cache(
        method="uncached", schedule="measure", schedule_settings={"signal": signal}, forecaster=Reuse(), engine="stack"
    )


def rounded(value: float | None) -> float | None:
    """To the digits that float32 has."""
    return None if value is None else float(f"{value:.{DIGITS}g}")


def measured_steps(record: Mapping[str, Any]) -> list[dict[str, float | None]]:
    """By step from the second on, what `Measure` has reported in a run's record; None for what is not finite."""
    names = [name for of_method in MEASURED.values() for name in of_method]
    return [{name: rounded(step[name]) for name in names} for step in record["steps"][1:]]


# ----------------------------------------------------------------------------------------------------------------- fits


def fit_polynomial(changes: Sequence[float], output_changes: Sequence[float]) -> dict[str, Any]:
    """The polynomial of degree 4 through pairs by least squares, highest power first, and how well it tells one by the other.

    UserError for too few pairs to tell. r2: share of the variance that it explains, 0 for no better than the mean.
    """
    x, y = np.asarray(changes, dtype=np.float64), np.asarray(output_changes, dtype=np.float64)
    if len(np.unique(x)) <= DEGREE:
        raise UserError(f"{len(np.unique(x))} changes are too few for a polynomial of degree {DEGREE}; take more steps")
    coefficients = np.polyfit(x, y, DEGREE)
    errors, spread = y - np.polyval(coefficients, x), y - y.mean()
    variance = float((spread**2).sum())
    lowest, highest = float(x.min()), float(x.max())
    inside = np.polyval(coefficients, np.linspace(lowest, highest, 1001))
    return {
        "coefficients": coefficients.tolist(),
        "r2": 1 - float((errors**2).sum()) / variance if variance else None,
        "num_pairs": len(x),
        "range": [lowest, highest],
        "least_value": float(inside.min()),
        "mean_output_change": float(y.mean()),
    }


def average_ratios(rows: Sequence[Sequence[float]]) -> list[float]:
    """The mean over samples of ratios by step, with that of the first step, which has none before it."""
    return [1.0, *(fmean(ratios) for ratios in zip(*rows, strict=True))]


def polynomial_of(measured: Sequence[Any], signal: str) -> dict[str, Any]:
    pairs = [step for sample in measured for branch in sample for step in branch]
    fit = fit_polynomial([step["change"] for step in pairs], [step["output_change"] for step in pairs])
    return {"signal": signal, "forced_first": 1, "forced_last": 1, **fit}


def table_of(measured: Sequence[Any], num_steps: int) -> dict[str, Any]:
    branches = [
        average_ratios([[step["ratio"] for step in sample[branch]] for sample in measured])
        for branch in range(len(measured[0]))
    ]
    names = ("ratio",) if len(branches) == 1 else tuple(f"ratio_{name}" for name in BRANCHES)
    return {"num_steps": num_steps, **dict(zip(names, branches, strict=True))}


def calibration_of(
    method: str, measured: Sequence[Any], *, source: str, made_with: Mapping[str, Any], signal: str, num_steps: int
) -> dict[str, Any]:
    """What the file of a calibration holds.

    method: of MEASURED. measured: by sample, branch and step, what `measured_steps` gives. made_with: what it depends on.
    signal: of a polynomial. num_steps: of a table.
    """
    found = polynomial_of(measured, signal) if method == "teacache" else table_of(measured, num_steps)
    names = MEASURED[method]
    kept = [[{name: [step[name] for step in branch] for name in names} for branch in sample] for sample in measured]
    return {
        "source": source,
        **found,
        "calibration": {"method": method, "made_with": dict(made_with), "measured": kept},
    }
