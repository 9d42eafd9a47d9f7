"""Calibrations of TeaCache and MagCache on samples of a model of this repository.

A calibration is one JSON file, written anew after every sample with what has been measured so far, so that a killed command
goes on with --resume.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cache_dic import UserError, make_cache
from cache_dic.calibration import calibration_of, measured_steps, measuring
from cache_dic.errors import check_choice
from cache_dic.methods.teacache import SIGNALS, Polynomial
from evaluation.backbones import PACKAGES, count_caches
from evaluation.calibration import family_of
from evaluation.jobs import PATHS, digests
from seerkit.devices.distributed import start_world
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.files import read_json, write_json
from seerkit.text.prompts import make_batches

BY_TIME = ("wan", "hidream")
"""Backbones whose published polynomials are of the time embedding."""


def measure(pipeline: Any, batch: Any, signal: str, num_steps: int, callback: Any = None) -> list[list[dict[str, Any]]]:
    """By branch and step from the second on, what `cache_dic.calibration.Measure` reports."""
    _, run = pipeline.sample(measuring(signal), batch, callback or (lambda *_: None))
    rows = [measured_steps(one.record()) for one in getattr(run, "runs", [run])]
    assert all(len(steps) == num_steps - 1 for steps in rows), "all steps were taken"
    return rows


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
        """What the file holds."""
        return calibration_of(
            self.asked.method, measured, source=f"eval/calibrate.py, {len(measured)} samples of {self.asked.model}",
            made_with=made, signal=self.signal, num_steps=self.args.num_steps,
        )  # fmt: skip

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
