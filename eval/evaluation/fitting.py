"""Calibrations of TeaCache and MagCache, from numbers that uncached runs of a model report step by step.

Of a run nothing is kept but tokens and signal of the step before. A calibration is one JSON file, written anew after every
sample with what has been measured so far, so that a killed command goes on with --resume.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cache_dic import Cache, UserError, make_cache
from cache_dic.decide import Decider
from cache_dic.errors import check_choice
from cache_dic.forecast import Reuse
from cache_dic.look import Look
from cache_dic.methods.teacache import OF_TIME, SIGNALS, Polynomial
from cache_dic.schedule import SCHEDULES
from evaluation.backbones import PACKAGES, count_caches
from evaluation.calibration import family_of
from evaluation.jobs import PATHS, digests
from seerkit.devices.distributed import start_world
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.files import read_json, write_json
from seerkit.text.prompts import make_batches

DEGREE = 4
BY_TIME = ("wan", "hidream")
"""Backbones whose published polynomials are of the time embedding."""
DIGITS = 7  # of what is measured, in float32
BRANCHES = ("cond", "uncond")


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
        if self.signal in OF_TIME:
            signal = look.time_signal(self.signal)
        else:
            signal = look.modulated() if self.signal == "modulated" else look.parts.enter().x
        if self.of_signal is not None:
            look.report(change=look.change(signal, self.of_signal))
        self.of_signal = signal
        return True

    def learn(self, look: Look, output: Tensor) -> None:
        norms = (look.after.float() - look.before.float()).norm(dim=-1)
        if self.of_output is not None:
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


def measure(pipeline: Any, batch: Any, signal: str, num_steps: int, callback: Any = None) -> list[list[dict[str, Any]]]:
    """By branch and step from the second on, what `Measure` reports; None for what is not finite."""
    _, run = pipeline.sample(measuring(signal), batch, callback or (lambda *_: None))
    names = ("change", "output_change", "ratio")
    rows = []
    for one in getattr(run, "runs", [run]):
        steps = one.record()["steps"][1:]
        assert len(steps) == num_steps - 1, "all steps were taken"
        rows.append([{name: rounded(step[name]) for name in names} for step in steps])
    return rows


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


# -------------------------------------------------------------------------------------------------------------- command


@dataclass(frozen=True)
class Calibration:
    """What a command line asks for. asked: its own flags. args: those of the model's sampling command."""

    asked: argparse.Namespace
    args: argparse.Namespace
    prompts: Sequence[str]

    @property
    def is_polynomial(self) -> bool:
        return self.asked.method == "teacache"

    @property
    def signal(self) -> str:
        """UserError for one that there is not."""
        if self.asked.signal is None:
            return "time_embedding" if PACKAGES[self.asked.model] in BY_TIME else SIGNALS[0]
        check_choice("signal", self.asked.signal, SIGNALS)
        return self.asked.signal

    @property
    def made_with(self) -> dict[str, Any]:
        """What the numbers depend on, but for the contents of files."""
        settings = family_of(self.asked.model).settings(self.args)
        left_out = {"config", "prompts", "batch_size", *PATHS}
        return {
            **{name: value for name, value in settings.items() if name not in left_out},
            **({"signal": self.signal} if self.is_polynomial else {}),
            "prompts": list(self.prompts),
        }

    def plan(self) -> dict[str, Any]:
        """What --dry-run prints."""
        given = vars(self.args)
        sizes = {"height": given.get("height"), "width": given.get("width"), "frames": given.get("num_frames")}
        if given.get("image_size"):
            sizes["height"] = sizes["width"] = self.args.image_size
        caches = {"uncached": make_cache("uncached")}
        counted = count_caches(
            self.asked.model, caches, self.args.num_steps, torch_dtype(self.args.precision), num_samples=1, **sizes
        )
        return {
            "method": self.asked.method,
            "samples": len(self.prompts),
            "flops_T_per_sample": counted["uncached"]["flops_T"],
            **self.made_with,
        }

    def make(self) -> dict[str, Any]:
        """The calibration, also in --out after every sample; UserError where numbers are not finite."""
        args, asked, family = self.args, self.asked, family_of(self.asked.model)
        if args.num_steps < 2:
            raise UserError(f"--num-steps {args.num_steps} has no step after the first to measure; take at least 2")
        made = {**self.made_with, "contents": digests(family.find(args))}
        measured = self._resumed(made) if asked.resume else []
        batches = make_batches(self.prompts, 1)[len(measured) :]
        result = self.result(made, measured) if measured else {}
        if not batches:
            return result
        pipeline = family.open(args, batches, start_world(args.device).device)
        with tqdm(total=len(batches) * args.num_steps, unit="step", mininterval=0.5, disable=asked.json) as bar:
            for batch in batches:
                numbers = measure(pipeline, batch, self.signal, args.num_steps, lambda *_: bar.update())
                if any(step[name] is None for branch in numbers for step in branch for name in step):
                    raise UserError(
                        f"the sample of {batch.prompts[0]!r} came out with NaN or infinity; take --precision fp32"
                    )
                measured.append(numbers)
                result = self.result(made, measured)
                if asked.out:
                    write_json(asked.out, result)
        return result

    def result(self, made: Mapping[str, Any], measured: Sequence[Any]) -> dict[str, Any]:
        """What the file holds: of `measured`, what the method is made of."""
        if self.is_polynomial:
            found, names = polynomial_of(measured, self.signal), ("change", "output_change")
        else:
            found, names = table_of(measured, self.args.num_steps), ("ratio",)
        return {
            "source": f"eval/calibrate.py, {len(measured)} samples of {self.asked.model}",
            **found,
            "calibration": {
                "method": self.asked.method,
                "made_with": dict(made),
                "measured": [
                    [{name: [step[name] for step in branch] for name in names} for branch in sample]
                    for sample in measured
                ],
            },
        }

    def _resumed(self, made: Mapping[str, Any]) -> list[Any]:
        """Measured samples of a file that the same command has written; none where there is no file."""
        out = self.asked.out
        if not out.is_file():
            return []
        earlier = read_json(out, "calibration")
        try:
            told = earlier["calibration"]
            of_file = {"method": told["method"], **told["made_with"]}
            measured = [
                [
                    [dict(zip(branch, step, strict=True)) for step in zip(*branch.values(), strict=True)]
                    for branch in sample
                ]
                for sample in told["measured"]
            ]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"--out {out} is no calibration to go on with; name another file") from error
        given = json.loads(json.dumps({"method": self.asked.method, **made}))
        changed = sorted(name for name in given.keys() | of_file.keys() if given.get(name) != of_file.get(name))
        if changed:
            raise UserError(
                f"--out {out} was made with other settings ({', '.join(changed)}); name another file, or leave out --resume"
            )
        return measured


def text(made: Mapping[str, Any], out: Path | None) -> str:
    """What was found, in words."""
    if made["calibration"]["method"] == "teacache":
        polynomial = Polynomial(coefficients=tuple(made["coefficients"]), signal=made["signal"])
        low, high = made["range"]
        lines = [
            f"{made['num_pairs']} pairs, changes of {made['signal']} between {low:.3g} and {high:.3g}",
            f"polynomial {', '.join(f'{c:.6g}' for c in made['coefficients'])}",
            f"R² {made['r2']:.3f}: the share of the output's variance that the signal tells; the mean change is "
            f"{made['mean_output_change']:.3g}",
            f"from {polynomial(low):.3g} to {polynomial(high):.3g} at the ends, least {made['least_value']:.3g}",
        ]
        if made["least_value"] < 0:
            lines.append("negative in places: forecasts may go on without end; give --set clamp=true")
    else:
        tables = {name: made[name] for name in ("ratio", "ratio_cond", "ratio_uncond") if name in made}
        lines = [
            f"{name}: {made['num_steps']} steps, between {min(t[1:]):.4g} and {max(t[1:]):.4g}"
            for name, t in tables.items()
        ]
    return "\n".join([*lines, *([f"calibration: {out}"] if out else [])])
