"""Measures of samples against their uncached counterparts, pair by pair: means over frames, then over samples."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from evaluation.metrics import mean_interval, psnr, ssim, summarize_psnr
from evaluation.scoring.measures import Measure, Reading, Score
from evaluation.scoring.read import Readout, Shard


def mean_score(values: np.ndarray) -> Score:
    """Mean over samples (N,) with Student's 95 % interval."""
    found = mean_interval(values)
    return {"value": found["mean"], "low": found["low"], "high": found["high"], "num": found["num"]}


def reading_of_pairs(name: str, one: Callable[[np.ndarray, np.ndarray], float]) -> Reading:
    """The array `name` of a function of the frames of a sample and of its counterpart."""

    def read(shard: Shard) -> Mapping[str, np.ndarray]:
        values = [one(ours, theirs) for ours, theirs in zip(shard.frames, shard.pairs, strict=True)]
        return {name: np.array(values, dtype=np.float64)}

    def load(_: torch.device) -> Callable[[Shard], Mapping[str, np.ndarray]]:
        return read

    return Reading(name=name, facts={}, load=load, of=("pairs",))


IDENTICAL = -1.0  # decibels that no pair has


def _psnr_of(ours: np.ndarray, theirs: np.ndarray) -> float:
    decibels = psnr(ours, theirs)
    return float(decibels.mean()) if np.isfinite(decibels).all() else IDENTICAL


def _psnr_score(samples: Readout, _: Readout | None) -> Score:
    values = samples.whole("psnr")
    differ = values[values != IDENTICAL]
    summary = summarize_psnr(np.where(values == IDENTICAL, np.inf, values))
    facts = {"pooled_db": summary["pooled_db"], "num_identical": summary["num_identical"]}
    return {
        **(mean_score(differ) if differ.size else {"value": None, "note": "identical"}),
        **facts,
        "num": int(values.size),
    }


def _ssim_score(samples: Readout, _: Readout | None) -> Score:
    return mean_score(samples.whole("ssim"))


MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            name="psnr",
            title="PSNR dB",
            needs=frozenset({"pairs"}),
            best=1,
            digits=2,
            reading=lambda: reading_of_pairs("psnr", _psnr_of),
            score=_psnr_score,
            meaning="PSNR: 10 log10(255² / MSE) to the uncached sample of the same noise, mean over frames and the samples "
            "that differ",
        ),
        Measure(
            name="ssim",
            title="SSIM",
            needs=frozenset({"pairs"}),
            best=1,
            reading=lambda: reading_of_pairs("ssim", lambda a, b: float(ssim(a, b).mean())),
            score=_ssim_score,
            meaning="SSIM: Wang et al. 2004, windows of 11 x 11, sigma 1.5, mean over frames and samples",
        ),
    )
}
