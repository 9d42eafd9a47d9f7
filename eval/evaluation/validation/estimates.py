"""Figures of a set with the noise that they have, so that two sets of the same prompts and seeds can be told apart or not.

An estimate is a value and independent parts, whose spread is its noise: of a mean, the samples' own values; of a distance of
whole sets, the jackknife's pseudo-values (Quenouille 1956; Efron and Tibshirani 1993, ch. 11), n values of blocks of samples,
p_g = n D - (n - 1) D without block g. A bootstrap of such a distance would be far above it: samples that are drawn twice
make a covariance of fewer. Parts of two sets stand for the same samples, so that of a difference what both share is gone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluation.metrics import gaussian_statistics, kid_kernel, mean_interval

Array = NDArray[np.float64]
BLOCKS = 20  # of samples, of the jackknife


@dataclass(frozen=True)
class Estimate:
    """A value and its parts (P,); num: samples."""

    value: float
    parts: Array
    num: int

    @property
    def unbiased(self) -> float:
        """Without the bias of first order that a distance of few samples has: the mean of the parts."""
        return float(self.parts.mean())

    @property
    def half(self) -> float:
        """Half of the 95 % interval."""
        return half_of(self.parts)

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference of sets of the same samples, pair by pair."""
        return Estimate(self.value - other.value, self.parts - other.parts, self.num)


def half_of(parts: ArrayLike) -> float:
    found = mean_interval(parts)
    return (found["high"] - found["low"]) / 2


def mean_estimate(values: ArrayLike) -> Estimate:
    """The mean of the samples' own values (N,)."""
    values = np.asarray(values, dtype=np.float64)
    return Estimate(float(values.mean()), values, len(values))


def blocks_of(count: int) -> list[NDArray[np.int64]]:
    """The samples of each block, every BLOCKS-th, so that prompts that come in turn are in all of them."""
    return [np.arange(start, count, BLOCKS) for start in range(BLOCKS)]


def jackknife(count: int, statistic: Callable[[NDArray[np.int64]], float]) -> Estimate:
    """Of a statistic of the samples of given indices, with pseudo-values of BLOCKS blocks."""
    everything = np.arange(count)
    whole = statistic(everything)
    without = [statistic(np.setdiff1d(everything, block)) for block in blocks_of(count)]
    return Estimate(whole, BLOCKS * whole - (BLOCKS - 1) * np.array(without), count)


def needed(difference: Estimate) -> float:
    """Samples at which the interval of a difference would end at zero, its noise falling as one over their root."""
    return difference.num * (difference.half / difference.value) ** 2 if difference.value else np.inf


def half_at(estimate: Estimate, num: int) -> float:
    """Half of the interval that so many samples would have."""
    return estimate.half * np.sqrt(estimate.num / num)


class FrechetReference:
    """The Gaussian of a reference set's features (M, D), to which sets of samples are compared many times."""

    def __init__(self, features: ArrayLike) -> None:
        self.mean, covariance = gaussian_statistics(features)
        values, vectors = np.linalg.eigh(covariance)
        self.root, self.trace = vectors * np.sqrt(values.clip(0)), float(np.trace(covariance))

    def estimate(self, features: ArrayLike) -> Estimate:
        """The squared Fréchet distance of features (N, F, D), F frames of each sample, as `metrics.frechet_distance` has it."""
        x = np.asarray(features, dtype=np.float64)
        rooted = x @ self.root  # (N, F, D)

        def distance(indices: NDArray[np.int64]) -> float:
            own, z = x[indices].reshape(-1, x.shape[-1]), rooted[indices].reshape(-1, x.shape[-1])
            mean, z = own.mean(axis=0), z - z.mean(axis=0)
            trace = np.square(own - mean).sum() / (len(own) - 1)
            # The singular values of a product of roots: any R with R Rᵀ the reference's covariance will do as its root.
            gram = (z @ z.T if len(z) < z.shape[1] else z.T @ z) / (len(z) - 1)
            cross = np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum()
            return float(np.square(mean - self.mean).sum() + trace + self.trace - 2 * cross)

        return jackknife(len(x), distance)


class KernelReference:
    """A reference set's features (M, D), for the kernel distance."""

    def __init__(self, features: ArrayLike) -> None:
        self.features = np.asarray(features, dtype=np.float64)
        own, count = kid_kernel(self.features, self.features), len(self.features)
        self.inner = (own.sum() - np.trace(own)) / (count * (count - 1))

    def estimate(self, features: ArrayLike) -> Estimate:
        """Squared maximum mean discrepancy of features (N, F, D), unbiased over whole sets (KID, arXiv 1801.01401).

        It may be negative.
        """
        x = np.asarray(features, dtype=np.float64)
        frames = x.shape[1]
        x = x.reshape(-1, x.shape[-1])
        own, across = kid_kernel(x, x), kid_kernel(x, self.features).mean(axis=1)

        def distance(indices: NDArray[np.int64]) -> float:
            rows = (indices[:, None] * frames + np.arange(frames)).reshape(-1)
            part = own[np.ix_(rows, rows)]
            inner = (part.sum() - np.trace(part)) / (len(rows) * (len(rows) - 1))
            return float(inner + self.inner - 2 * across[rows].mean())

        return jackknife(len(x) // frames, distance)


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of the ranks of two lists of figures, equal ones sharing theirs; NaN where one does not vary."""
    ranks = []
    for values in (a, b):
        _, place, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place])
    with np.errstate(invalid="ignore"):
        return float(np.corrcoef(*ranks)[0, 1]) if all(len({*rank}) > 1 for rank in ranks) else float("nan")
