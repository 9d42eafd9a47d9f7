"""What the number of full steps by sample could gain over the same number for all, from records of runs with several numbers.

A method that gives difficult samples more full steps and easy ones fewer has to be told which is which. Two that know more than
any could are judged on the runs that there are: one knows how near every run of a sample came, the other what a run with the
fewest full steps came to, and from other samples what the others then come to. Needs no torch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluation.beyond.cells import by_label, role_row
from evaluation.beyond.paired import difference
from evaluation.beyond.rivals import OURS
from evaluation.metrics import Array

LEAST_SAMPLES = 4
"""With which a line through the others is fitted."""


def runs_of(record: Mapping[str, Any]) -> tuple[Array, Array]:
    """Full steps of LoopSeer's runs, (K,), fewest first, and PSNR in dB, (K, B), of the samples that equal no uncached one."""
    rows = by_label(record)
    found = {budget["full_steps"]: role_row(budget, rows, OURS) for budget in record["budgets"]}
    counts = sorted(count for count, row in found.items() if row is not None)
    psnr = np.array([found[count]["samples"]["psnr_db"] for count in counts], dtype=np.float64)
    return np.array(counts), psnr[:, np.isfinite(psnr).all(axis=0)] if counts else psnr


def price(psnr: Array, counts: Array, mean: float) -> tuple[float, float]:
    """The price in dB of a full step at which samples, each with the run of most dB less its price, take so many in the mean;
    and the mean dB that no choice of as many can exceed, which is the least of the Lagrangian over prices."""
    slopes = [
        (psnr[i] - psnr[j]) / (counts[i] - counts[j]) for i in range(len(counts)) for j in range(i)
    ]  # at which a sample takes another run
    prices = np.unique(np.concatenate([[0.0], *slopes]).clip(min=0.0))
    values = [(psnr - one * (counts - mean)[:, None]).max(axis=0).mean() for one in prices]
    best = int(np.argmin(values))
    return float(prices[best]), float(values[best])


def predicted(psnr: Array) -> Array:
    """(K, B) as (K, B): of every sample by lines in the first run's dB, each fitted to the other samples."""
    samples = psnr.shape[1]
    found = np.empty_like(psnr)
    for left_out in range(samples):
        others = np.arange(samples) != left_out
        inputs = np.stack([np.ones(samples), psnr[0]], axis=1)
        lines = np.linalg.lstsq(inputs[others], psnr[:, others].T, rcond=None)[0]
        found[:, left_out] = inputs[left_out] @ lines
    return found


def gains(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For every number of full steps between the most and the fewest, largest first: what is gained at most, in dB; and by
    choosing after `predicted`, with its interval and the full steps that it takes in the mean."""
    counts, psnr = runs_of(record)
    if psnr.ndim != 2 or len(counts) < 3 or psnr.shape[1] < LEAST_SAMPLES:
        return []
    guess, samples = predicted(psnr), np.arange(psnr.shape[1])
    found = []
    for place in reversed(range(1, len(counts) - 1)):
        count = counts[place]
        _, most = price(psnr, counts, count)
        step, _ = price(guess, counts, count)
        chosen = (guess - step * counts[:, None]).argmax(axis=0)
        found.append(
            {
                "full_steps": int(count),
                "most_db": most - float(psnr[place].mean()),
                "by_difficulty": difference(psnr[chosen, samples].tolist(), psnr[place].tolist()),
                "mean_full_steps": float(counts[chosen].mean()),
            }
        )
    return found
