"""Measures of a set of samples as a whole: distances between distributions of features, and what else is made of these.

Features are rows, one for each image or frame of a video; where a sample has several, they are not taken for independent ones.
An interval, where there is one, is of 95 % and of sampling alone: how far the figure would move with other samples, as many, of
the same kind. It says nothing of the bias that few samples bring.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import GaussianSums, frechet_influences, gaussian_frechet_distance
from evaluation.scoring.extractors import Extractor, find_extractor
from evaluation.scoring.measures import Measure, Score
from evaluation.scoring.read import Readout

Z = 1.959964  # of a normal distribution, 95 % within
SEED = 2020  # torch-fidelity's, so that its figures can be had again
COMPARABLE = 10_000  # samples below which a distance depends on their number more than on most methods
Statistics = tuple[np.ndarray, np.ndarray]
"""Mean (D,) and covariance (D, D) of a whole data set."""


@dataclass(frozen=True)
class Features:
    """Rows of features in parts, read when they are asked for and as often: (R, D), and how many of them each sample has."""

    parts: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]

    @classmethod
    def of(cls, rows: np.ndarray) -> "Features":
        """Of features (N, D) in memory, a row for each sample."""
        return cls(lambda: [(rows, np.ones(len(rows), dtype=np.int64))])

    @classmethod
    def read(cls, readout: Readout, layer: str) -> "Features":
        return cls(lambda: zip(readout.shards(layer), readout.shards("frames"), strict=True))

    def whole(self) -> np.ndarray:
        return np.concatenate([rows for rows, _ in self.parts()])

    def counts(self) -> np.ndarray:
        """How many rows each sample has, (N,)."""
        return np.concatenate([counts for _, counts in self.parts()])


def _interval(value: float, variance: float) -> Score:
    return {"value": value, "low": value - Z * variance**0.5, "high": value + Z * variance**0.5}


def _variance(influences: np.ndarray, counts: np.ndarray) -> float:
    """Of the mean of what rows add to a figure (R,), where samples with `counts` rows each are what is drawn; inf for one."""
    sums = np.add.reduceat(influences - influences.mean(), np.cumsum(counts) - counts)
    num = len(counts)
    return float(num / (num - 1) * np.square(sums - sums.mean()).sum() / len(influences) ** 2) if num > 1 else np.inf


# ---------------------------------------------------------------------------------------------------- Fréchet distance


def frechet(samples: Features, reference: Features | Statistics) -> Score:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features (arXiv 1706.08500, Eq. 6).

    Memory does not grow with the number of rows: three passes at most are made, sums kept in float64 (`GaussianSums`). It is
    biased upwards by about c / N. `extrapolated` is the figure of infinitely many samples, by one step of FID∞'s line
    (arXiv 1911.07023) through the whole and random halves, 2 FD(N) - FD(N / 2); it has no bias of first order and more noise.
    The interval is the delta method's (`evaluation.metrics.frechet_influences`) with samples, not frames, as what is drawn: of
    few samples too wide rather than too narrow (by up to a half for 100 samples of 32 features), of ten for each feature right.
    """
    ours, theirs = _halves(samples), None
    if isinstance(reference, Features):
        theirs = _halves(reference)
        known = (theirs[0] + theirs[1]).statistics()
    else:
        known = reference
    found = (ours[0] + ours[1]).statistics()
    value = gaussian_frechet_distance(*found, *known)
    score = {"num": len(samples.counts()), "num_features": found[0].size}
    variance = 0.0
    for features, influence in zip((samples, reference), frechet_influences(*found, *known), strict=True):
        if isinstance(features, Features):
            each = np.concatenate([influence(rows) for rows, _ in features.parts()])
            variance += _variance(each, features.counts())
    if isinstance(reference, Features):
        score["num_reference"] = len(reference.counts())
    if all(half.count > 1 for half in (*ours, *(theirs or ()))):
        others = [half.statistics() for half in theirs] if theirs else [known, known]
        of_half = [gaussian_frechet_distance(*a.statistics(), *b) for a, b in zip(ours, others, strict=True)]
        score["extrapolated"] = 2 * value - float(np.mean(of_half))
    return _interval(value, variance) | score


def _halves(features: Features) -> tuple[GaussianSums, GaussianSums]:
    """The sums of two random halves of the samples, always the same."""
    draw, halves = np.random.default_rng(SEED), (GaussianSums(), GaussianSums())
    for rows, counts in features.parts():
        first = np.repeat(draw.permutation(len(counts)) < (len(counts) + 1) // 2, counts)
        halves[0].add(rows[first])
        halves[1].add(rows[~first])
    return halves


# ----------------------------------------------------------------------------------------------------------- measures


def _measure(
    name: str,
    title: str,
    extractor: Extractor,
    figure: Callable[[Features, Features], Score],
    meaning: str,
    *,
    best: int = -1,
    digits: int = 3,
) -> Measure:
    """A figure of two sets' features in the extractor's first layer."""
    layer = next(iter(extractor.layers))

    def score(samples: Readout, reference: Readout | None) -> Score:
        assert reference is not None
        return figure(Features.read(samples, layer), Features.read(reference, layer))

    return Measure(
        name=name,
        title=title,
        needs=frozenset({"reference"}),
        best=best,
        digits=digits,
        missing=extractor.missing,
        reading=extractor.reading,
        score=score,
        meaning=meaning,
    )


def _of_network(name: str) -> list[Measure]:
    extractor = find_extractor(name)
    title = f"FD-{extractor.title}"
    return [
        _measure(
            f"fd-{name}",
            title,
            extractor,
            frechet,
            f"{title}: squared Fréchet distance of Gaussians fitted to features of {extractor.title}; never an FID; compare "
            "equal numbers of samples alone",
        )
    ]


MEASURES = {measure.name: measure for name in ("lite0", "squeezenet", "fashion") for measure in _of_network(name)}
