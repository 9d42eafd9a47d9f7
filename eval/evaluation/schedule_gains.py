"""What searched schedules gain over the published rule and over even spacing, on samples that no search has seen."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cache_dic import PRESETS, UserError, make_cache
from cache_dic.plan import describe_steps
from cache_dic.searched import read_schedule
from cache_dic.settings import ScheduleFile, values_of
from evaluation.backbones import PACKAGES
from evaluation.calibration import even_steps, family_of
from evaluation.metrics import psnr, summarize_psnr
from evaluation.search import Steps, published_steps
from evaluation.video_metrics import video_psnr
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.media import to_uint8, video_to_uint8
from seerkit.io.records import conditions
from seerkit.io.tables import counted, text_table
from seerkit.text.prompts import Batch, make_batches

NORMAL_95 = 1.96  # standard errors to each side of a mean


def pixels(pipeline: Any, latents: Tensor) -> np.ndarray:
    """Decoded samples as bytes, (B, H, W, C) or (B, F, H, W, C)."""
    if latents.ndim == 4:
        return to_uint8(pipeline.decode(latents))
    return np.concatenate([video_to_uint8(pipeline.decode(one[None])) for one in latents])


def decibels(found: np.ndarray, reference: np.ndarray) -> list[float]:
    """PSNR of each sample, of videos the mean over frames."""
    values = psnr(found, reference) if found.ndim == 4 else video_psnr(found, reference)["mean_db"]
    return [float(value) for value in values]


def gain(better: Sequence[float], other: Sequence[float]) -> dict[str, float] | None:
    """The mean paired difference in dB and half of its 95 % interval over samples, of those that differ from the uncached.

    None where there are none.
    """
    pairs = np.array([better, other])
    differences = np.subtract(*pairs[:, np.isfinite(pairs).all(axis=0)])
    if not differences.size:
        return None
    error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return {"mean_db": float(differences.mean()), "ci95_db": float(NORMAL_95 * error)}


def read_schedules(paths: Sequence[Path], model: str, num_steps: int) -> list[ScheduleFile]:
    """The schedules in files, fewest full steps first; UserError for one of another model or number of steps, and for none."""
    files = [read_schedule(path) for path in paths]
    for file in files:
        if (file.model, file.num_steps) != (model, num_steps):
            raise UserError(
                f"schedule {file.name} is for {file.num_steps} steps of {file.model}, not for {num_steps} of {model}; "
                "leave it out"
            )
    if not files:
        raise UserError(
            f"there is no schedule for {num_steps} steps of {model}; search one with eval/search_schedule.py"
        )
    return sorted(files, key=lambda file: len(file.full_steps))


class Judged:
    """Samples of a model, each list of full steps against the uncached run."""

    def __init__(self, args: argparse.Namespace, prompts: Sequence[str], device: torch.device) -> None:
        self.args, self.package = args, PACKAGES[args.model]
        self.batches: list[Batch] = make_batches(prompts, args.batch_size)
        self.pipeline = family_of(args.model).open(args, self.batches, device)
        self.references = [self._sample(make_cache("uncached"), batch) for batch in self.batches]

    def _sample(self, cache: Any, batch: Batch) -> np.ndarray:
        latents, _ = self.pipeline.sample(cache, batch, lambda *_: None)
        return pixels(self.pipeline, latents)

    def __call__(self, full_steps: Steps) -> list[float]:
        """PSNR of every sample, by the backbone's published order."""
        cache = make_cache("taylorseer", preset=self.package, full_steps=full_steps)
        pairs = zip(self.batches, self.references, strict=True)
        return [value for batch, reference in pairs for value in decibels(self._sample(cache, batch), reference)]


def judge(args: argparse.Namespace, prompts: Sequence[str], files: Sequence[ScheduleFile]) -> dict[str, Any]:
    """The record: for every number of full steps the published rule, even spacing and the searched list."""
    device = resolve_device(args.device)
    family_of(args.model).find(args)
    judged, warmup = Judged(args, prompts, device), PRESETS[PACKAGES[args.model]].warmup_steps
    rows = []
    for file in tqdm(files, unit="schedule", disable=None):
        count = len(file.full_steps)
        lists = {
            "published": published_steps(args.num_steps, count, warmup),
            "even": even_steps(args.num_steps, count),
            "searched": file.full_steps,
        }
        values = {name: judged(steps) for name, steps in lists.items()}
        for name, steps in lists.items():
            row = {"schedule": name, "count": count, "full_steps": list(steps), "psnr": summarize_psnr(values[name])}
            if name == "searched":
                row["file"], row["digest"] = file.name, file.digest
                row["gain"] = {other: gain(values[name], values[other]) for other in ("published", "even")}
            rows.append(row)
    return {
        "command": "eval/schedule_gains.py",
        "model": args.model,
        "num_steps": args.num_steps,
        "forecaster": values_of(make_cache("taylorseer", preset=PACKAGES[args.model], full_steps=[0]).forecaster),
        "num_samples": len(prompts),
        "prompts": list(prompts),
        "seed": args.seed,
        "units": "psnr: dB to the uncached samples; gain: dB, the mean over samples of the difference, ci95_db to each side",
        "rows": rows,
        "conditions": conditions(device, torch_dtype(args.precision)),
    }


def describe(record: Mapping[str, Any]) -> str:
    """The record as a table."""
    cells = []
    for row in record["rows"]:
        gains = [
            f"{found['mean_db']:+.2f} ± {found['ci95_db']:.2f}" if (found := row.get("gain", {}).get(other)) else ""
            for other in ("published", "even")
        ]
        mean = row["psnr"]["mean_db"]
        shown = "identical" if mean is None else f"{mean:.2f}"
        cells.append([str(row["count"]), row["schedule"], shown, *gains, describe_steps(row["full_steps"])])
    header = ["of", "schedule", "PSNR dB", "over published", "over even", "full steps"]
    facts = f"{record['model']}, {counted(record['num_samples'], 'sample')}, {record['num_steps']} steps"
    return "\n".join([facts, text_table(header, cells)])
