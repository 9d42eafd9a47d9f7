"""Measures of a set of samples as a whole: distances between distributions of features, and what else is made of these.

Features are rows, one for each image or frame of a video; where a sample has several, they are not taken for independent ones.
An interval, where there is one, is of 95 % and of sampling alone: how far the figure would move with other samples, as many, of
the same kind. It says nothing of the bias that few samples bring.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cache_dic import UserError
from evaluation.metrics import (
    GaussianSums,
    Z,
    frechet_influences,
    gaussian_frechet_distance,
    kid_kernel,
    mean_interval,
    wilson_interval,
)
from evaluation.scoring.extractors import find_extractor
from evaluation.scoring.measures import Measure, Score
from evaluation.scoring.read import Readout

SEED = 2020  # torch-fidelity's, so that its figures can be had again
COMPARABLE = 10_000  # samples below which figures depend on their number as much as on most methods
SUBSETS, SUBSET = 100, 1000  # of KID, as its libraries have them
NEIGHBOURS = 3  # of improved precision and recall, as ADM has them
BLOCK = 5000  # samples of an Inception score
EDGE = 2048  # rows and columns of a block of pairs
Statistics = tuple[np.ndarray, np.ndarray]
"""Mean (D,) and covariance (D, D) of a whole data set."""


@dataclass(frozen=True)
class Features:
    """Rows of features in parts, read when they are asked for and as often.

    parts: (R, D), and how many of these rows each of the part's samples has. counts: that of all samples, (N,).
    """

    parts: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
    counts: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> "Features":
        """Of features (N, D) in memory, a row for each sample."""
        ones = np.ones(len(rows), dtype=np.int64)
        return cls(lambda: [(rows, ones)], ones)

    @classmethod
    def read(cls, readout: Readout, layer: str) -> "Features":
        def parts() -> Iterable[tuple[np.ndarray, np.ndarray]]:
            return zip(readout.shards(layer), readout.shards("frames"), strict=True)

        return cls(parts, readout.whole("frames"))

    def large_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Parts put together until they have `EDGE` rows or more, as sums of many rows take less time."""
        waiting: list[tuple[np.ndarray, np.ndarray]] = []
        for part in self.parts():
            waiting.append(part)
            if sum(len(rows) for rows, _ in waiting) >= EDGE:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)

    def whole(self) -> np.ndarray:
        """All rows; in memory with one part more."""
        found, filled = np.zeros((0, 0)), 0
        for rows, _ in self.parts():
            if not filled:
                found = np.empty((self.counts.sum(), rows.shape[1]), rows.dtype)
            found[filled : filled + len(rows)] = rows
            filled += len(rows)
        return found


def _joined(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    return np.concatenate([rows for rows, _ in parts]), np.concatenate([counts for _, counts in parts])


def _interval(value: float, variance: float, least: float = -math.inf) -> Score:
    """A value and its interval, which ends where values do; None of both where there is no variance to be had."""
    if not math.isfinite(variance):
        return {"value": value, "low": None, "high": None}
    return {"value": value, "low": max(least, value - Z * variance**0.5), "high": value + Z * variance**0.5}


def _variance(influences: np.ndarray, counts: np.ndarray) -> float:
    """Of the mean of what rows add to a figure (R,), where samples with `counts` rows each are what is drawn; inf for one."""
    sums = np.add.reduceat(influences - influences.mean(), np.cumsum(counts) - counts)
    num = len(counts)
    return float(num / (num - 1) * np.square(sums - sums.mean()).sum() / len(influences) ** 2) if num > 1 else np.inf


# ---------------------------------------------------------------------------------------------------- Fréchet distance


def frechet(samples: Features, reference: Features | Statistics) -> Score:
    """Squared Fréchet distance of the Gaussians fitted to two sets of features (arXiv 1706.08500, Eq. 6).

    Memory does not grow with the number of rows: two passes are made, sums of two halves kept in float64 (`GaussianSums`), some
    fifteen matrices of D x D in all (0.5 GB for 2048), and of each row a number. Within 1e-6 of torch-fidelity and clean-fid on
    the same features, where the root that these take of a product, which is not symmetric, comes out well.

    It is biased upwards by about c / N. `extrapolated` is the figure of infinitely many samples, by one step of FID∞'s line
    (arXiv 1911.07023) through the whole and random halves, 2 FD(N) - FD(N / 2); it has no bias of first order and more noise.
    The interval is the delta method's (`evaluation.metrics.frechet_influences`) with samples, not frames, as what is drawn: of
    few samples too wide rather than too narrow (by up to a half for 100 samples of 32 features), of ten for each feature right.
    Statistics in place of a reference count as exact.
    Raises UserError for fewer than two rows in a set.
    """
    _check_rows(2, samples, *([reference] if isinstance(reference, Features) else []))
    ours, theirs = _halves(samples), None
    if isinstance(reference, Features):
        theirs = _halves(reference)
        known = (theirs[0] + theirs[1]).statistics()
    else:
        known = reference
    found = (ours[0] + ours[1]).statistics()
    value = gaussian_frechet_distance(*found, *known)
    num = len(samples.counts)
    score = {"num": num, "num_features": found[0].size} | _remark(num, found[0].size)
    variance = 0.0
    for features, influence in zip((samples, reference), frechet_influences(*found, *known), strict=True):
        if isinstance(features, Features):
            each = np.concatenate([influence(rows) for rows, _ in features.large_parts()])
            variance += _variance(each, features.counts)
    if isinstance(reference, Features):
        score["num_reference"] = len(reference.counts)
    if all(half.count > 1 for half in (*ours, *(theirs or ()))):
        others = [half.statistics() for half in theirs] if theirs else [known, known]
        of_half = [gaussian_frechet_distance(*a.statistics(), *b) for a, b in zip(ours, others, strict=True)]
        score["extrapolated"] = 2 * value - float(np.mean(of_half))
    return _interval(value, variance, least=0.0) | score


def _halves(features: Features) -> tuple[GaussianSums, GaussianSums]:
    """The sums of two random halves of the samples, always the same."""
    draw, halves = np.random.default_rng(SEED), (GaussianSums(), GaussianSums())
    for rows, counts in features.large_parts():
        first = np.repeat(draw.permutation(len(counts)) < (len(counts) + 1) // 2, counts)
        halves[0].add(rows[first])
        halves[1].add(rows[~first])
    return halves


# ----------------------------------------------------------------------------------------------------- kernel distance


def kernel_distance(samples: Features, reference: Features) -> Score:
    """Squared maximum mean discrepancy of two sets of features under the kernel (x·y / D + 1)³ (arXiv 1801.01401, Eq. 4).

    The unbiased estimate over all pairs: what the mean over subsets, as libraries give it, goes towards with their number, and
    below zero now and then where sets are alike. `subsets` has that mean and the standard deviation over 100 random subsets of
    1000 rows, drawn as torch-fidelity draws them; of half the smaller set where that is below 1000. The interval is the delta
    method's by Hájek's projection, samples being what is drawn: too wide where both sets are of one distribution. Frames of one
    video are pairs like any others, and alike, so that of few videos the distance is too large.
    Raises UserError for fewer than two rows in a set. Memory: all features as they are (0.41 GB for 50,000 of 2048), and five
    blocks of 34 MB; time grows with the square of the number of rows.
    """
    _check_rows(2, samples, reference)
    x, y = samples.whole(), reference.whole()
    x_to_x, y_to_y = (_kernel_sums_within(rows) / (len(rows) - 1) for rows in (x, y))
    across_x, across_y = _kernel_sums(x, y)
    x_to_y, y_to_x = across_x / len(y), across_y / len(x)
    value = float(x_to_x.mean() + y_to_y.mean() - 2 * x_to_y.mean())
    variance = _variance(2 * (x_to_x - x_to_y), samples.counts) + _variance(2 * (y_to_y - y_to_x), reference.counts)
    size = SUBSET if min(len(x), len(y)) >= SUBSET else min(len(x), len(y)) // 2
    subsets = _subset_distances(x, y, size) if size > 1 else np.full(1, value)
    told = {"num": len(subsets), "size": size, "seed": SEED, "mean": float(subsets.mean()), "std": float(subsets.std())}
    return _interval(value, variance) | _numbers(samples, reference) | {"subsets": told}


def _kernel_sums(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel of every row of x with all of y, (N,), and of every row of y with all of x, (M,)."""
    of_x, of_y = np.zeros(len(x)), np.zeros(len(y))
    for i, j in _blocks(len(x), len(y)):
        values = kid_kernel(x[i], y[j])
        of_x[i] += values.sum(axis=1)
        of_y[j] += values.sum(axis=0)
    return of_x, of_y


def _kernel_sums_within(rows: np.ndarray) -> np.ndarray:
    """Sums of the kernel of every row with all others, (N,)."""
    sums = np.zeros(len(rows))
    for i, j in _blocks(len(rows), len(rows)):
        if i.start <= j.start:  # the rest is the same again
            values = kid_kernel(rows[i], rows[j])
            sums[i] += values.sum(axis=1)
            sums[j] += values.sum(axis=0) if i != j else -values.diagonal()
    return sums


def _subset_distances(x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Unbiased distances of 100 pairs of random subsets of `size` rows."""
    draw = np.random.RandomState(SEED)
    found = []
    for _ in range(SUBSETS):
        a, b = (rows[draw.choice(len(rows), size, replace=False)] for rows in (x, y))
        within = sum(kid_kernel(rows, rows).sum() - kid_kernel(rows, rows, paired=True).sum() for rows in (a, b))
        found.append(within / (size * (size - 1)) - 2 * kid_kernel(a, b).mean())
    return np.array(found)


# ------------------------------------------------------------------------------------------------ precision and recall


def precision(samples: Features, reference: Features) -> Score:
    """Share of the samples within the reference's manifold (arXiv 1904.06991, Eq. 2): improved precision, k = 3.

    The manifold is what balls around the reference's features cover, each as far as its k-th neighbour besides itself. All
    distances are of float64, where ADM's evaluator has those of float16: equal to torch-fidelity's on the same features but for
    points that lie on a ball's edge. It grows with the density of the reference: compare equal numbers in both sets. The
    interval is Wilson's, for this manifold; it knows nothing of another reference's.
    Raises UserError for sets of k rows or fewer. Memory: all features as they are (0.41 GB for 50,000 of 2048), and five
    blocks of 34 MB; time grows with the product of the sets' numbers and with the square of the reference's.
    """
    return _covered_share(samples, reference) | _numbers(samples, reference) | _remark(len(samples.counts))


def recall(samples: Features, reference: Features) -> Score:
    """Share of the reference within the samples' manifold: `precision` with the sets' parts exchanged."""
    return _covered_share(reference, samples) | _numbers(samples, reference) | _remark(len(samples.counts))


def _covered_share(features: Features, others: Features) -> Score:
    """Share of rows that lie in the manifold of others."""
    _check_rows(NEIGHBOURS + 1, features, others)
    points, centres = features.whole(), others.whole()
    middle = centres.mean(axis=0, dtype=np.float64)
    nearest = np.full((len(centres), NEIGHBOURS + 1), np.inf)  # and the centre itself
    for i, j in _blocks(len(centres), len(centres)):
        candidates = np.concatenate([nearest[i], _squared_distances(centres[i], centres[j], middle)], axis=1)
        nearest[i] = np.partition(candidates, NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]
    radii = nearest.max(axis=1)
    inside = np.zeros(len(points), dtype=bool)
    for i, j in _blocks(len(points), len(centres)):
        inside[i] |= (_squared_distances(points[i], centres[j], middle) <= radii[j]).any(axis=1)
    low, high = wilson_interval(float(inside.mean()), len(features.counts))
    return {"value": float(inside.mean()), "low": low, "high": high}


def _squared_distances(a: np.ndarray, b: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """Of every row of a to every row of b, (N, M), in float64; both as seen from the middle, where squares are smallest.

    Rows that are a millionth of the way to the middle apart count as equal: what rounding leaves of equal ones is less.
    """
    a, b = a - middle, b - middle
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)
    found = squares - 2 * a @ b.T
    found[found < 1e-12 * squares] = 0
    return found


# ------------------------------------------------------------------------------------------------------ Inception score


def inception_score(parts: Iterable[np.ndarray]) -> Score:
    """exp of the mean KL divergence of p(y | x) from its mean (arXiv 1606.03498), in ADM's form, of logits in parts (R, 1008).

    The network's bias is left out, as in the graph that everybody used. Consecutive blocks of 5000 in the samples' order, the
    last as long as it comes out, each with a mean of its own; the value is the blocks' mean, `num_blocks` and `std` beside it.
    A block of fewer samples knows fewer classes and scores lower. The interval is Student's over blocks, None of one. Within
    1e-12 of torch-fidelity with as many blocks, unshuffled. Memory: a few blocks, of 40 MB each, in float64.
    """
    scores, num, last = [], 0, 0
    for block in _regrouped(parts, BLOCK):
        num, last = num + len(block), len(block)
        log_p = block - np.logaddexp.reduce(block, axis=1, keepdims=True)
        log_mean = np.logaddexp.reduce(log_p, axis=0) - math.log(last)  # finite for classes that nothing is of, too
        scores.append(np.exp((np.exp(log_p) * (log_p - log_mean)).sum(axis=1).mean()))
    found = mean_interval(scores)
    score = {
        "value": found["mean"],
        "low": found["low"],
        "high": found["high"],
        "num_blocks": len(scores),
        "block": BLOCK,
        "std": float(np.std(scores)),
    }
    if num >= COMPARABLE and last < BLOCK:
        return score | {"remark": f"the last block has {last} samples instead of {BLOCK}, and weighs as much"}
    return score | _remark(num)


def _regrouped(parts: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same rows in float64, `size` at once, the last as many as are left."""
    waiting: list[np.ndarray] = []
    for rows in parts:
        while len(rows):
            taken = size - sum(map(len, waiting))
            waiting.append(rows[:taken])
            rows = rows[taken:]
            if sum(map(len, waiting)) == size:
                yield np.concatenate(waiting, dtype=np.float64)
                waiting = []
    if waiting:
        yield np.concatenate(waiting, dtype=np.float64)


# -------------------------------------------------------------------------------------------------------------- shared


def _numbers(samples: Features, reference: Features) -> Score:
    return {"num": len(samples.counts), "num_reference": len(reference.counts)}


def _remark(num: int, num_features: int = 0) -> Score:
    """What a reader must see beside a figure that depends on the number of samples."""
    if num <= num_features:
        return {"remark": f"{num} samples for {num_features} features: most of the value is bias"}
    if num < COMPARABLE:
        return {"remark": f"fewer than {COMPARABLE} samples: compare equal numbers of them alone"}
    return {}


def _check_rows(least: int, *sets: Features) -> None:
    numbers = [int(one.counts.sum()) for one in sets]
    if min(numbers) < least:
        raise UserError(f"there are {' and '.join(map(str, numbers))} images; at least {least} are needed in each set")


def _blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    """All blocks of a matrix, row by row."""
    for i in range(0, rows, EDGE):
        for j in range(0, columns, EDGE):
            yield slice(i, i + EDGE), slice(j, j + EDGE)


# ------------------------------------------------------------------------------------------------------------ measures


def _measure(
    name: str,
    title: str,
    network: str,
    figure: Callable[[Features, Any], Score],
    meaning: str,
    *,
    layer: str | None = None,
    statistics: tuple[str, str] | None = None,
    best: int = -1,
    digits: int = 3,
) -> Measure:
    """A figure of two sets' features in a layer of a network, the first unless one is named."""
    extractor = find_extractor(network)
    layer = layer or next(iter(extractor.layers))

    def score(samples: Readout, reference: Readout | None) -> Score:
        assert reference is not None
        known = reference.statistics
        if known is None:
            return _qualified(samples, figure(Features.read(samples, layer), Features.read(reference, layer)))
        assert statistics is not None
        width, path = extractor.layers[layer], reference.samples.path
        if len(known[0]) != width:
            raise UserError(
                f"{statistics[0]} of {path} is of {len(known[0])} features, and there are {width} in the layer {layer} of "
                f"{extractor.title}; take a reference batch of ADM's, or one without statistics"
            )
        try:
            found = figure(Features.read(samples, layer), known)
        except ValueError as error:
            raise UserError(f"{' and '.join(statistics)} of {path} are no mean and covariance: {error}") from error
        return _qualified(samples, found | {"reference_statistics": list(statistics)})

    return Measure(
        name=name,
        title=title,
        needs=frozenset({"reference"}),
        best=best,
        digits=digits,
        missing=extractor.missing,
        reading=extractor.reading,
        score=score,
        statistics=statistics,
        meaning=meaning,
    )


def _qualified(samples: Readout, score: Score) -> Score:
    """A score whose title says that it is of frames, where samples have several."""
    return score | ({"qualifiers": ["of frames"]} if samples.samples.is_video else {})


def _inception_score(samples: Readout, _: Readout | None) -> Score:
    return _qualified(samples, inception_score(samples.shards("logits")) | {"num": len(samples.samples.names)})


def _of_network(name: str) -> list[Measure]:
    title = find_extractor(name).title
    return [
        _measure(
            f"fd-{name}",
            f"FD-{title}",
            name,
            frechet,
            f"FD-{title}: squared Fréchet distance of Gaussians fitted to features of {title}; no FID",
            statistics=(f"mu_{name}", f"sigma_{name}"),
        ),
        _measure(
            f"kid-{name}",
            f"KD-{title}",
            name,
            kernel_distance,
            f"KD-{title}: KID's formula on features of {title}, unbiased, over all pairs; no KID",
            digits=4,
        ),
        *_manifolds(name, f"-{name}", f"-{title}", f"features of {title}"),
    ]


def _manifolds(network: str, suffix: str, ending: str, features: str) -> list[Measure]:
    return [
        _measure(
            f"precision{suffix}",
            f"precision{ending}",
            network,
            precision,
            f"precision{ending}: share of samples within the reference's manifold in {features}, k = {NEIGHBOURS}",
            best=1,
        ),
        _measure(
            f"recall{suffix}",
            f"recall{ending}",
            network,
            recall,
            f"recall{ending}: share of the reference within the samples' manifold in {features}, k = {NEIGHBOURS}",
            best=1,
        ),
    ]


_ALL = (
    _measure(
        "fid",
        "FID",
        "inception",
        frechet,
        "FID: ADM's protocol, pool features of FID's Inception; the reference's mu and sigma where its .npz has them",
        statistics=("mu", "sigma"),
        digits=2,
    ),
    _measure(
        "sfid",
        "sFID",
        "inception",
        frechet,
        "sFID: the same on 7 channels of mixed_6/conv, which see where things are",
        layer="spatial",
        statistics=("mu_s", "sigma_s"),
        digits=2,
    ),
    Measure(
        name="is",
        title="IS",
        best=1,
        digits=2,
        missing=find_extractor("inception").missing,
        reading=find_extractor("inception").reading,
        score=_inception_score,
        meaning=f"IS: Inception score in ADM's protocol, blocks of {BLOCK} in order",
    ),
    _measure(
        "kid",
        "KID",
        "inception",
        kernel_distance,
        "KID: unbiased, over all pairs, pool features of FID's Inception",
        digits=5,
    ),
    *_manifolds("inception", "", "", "pool features of FID's Inception"),
    _measure(
        "fd-dinov2",
        "FD-DINOv2",
        "dinov2",
        frechet,
        "FD-DINOv2: squared Fréchet distance of Gaussians fitted to class tokens of DINOv2 ViT-L/14 (arXiv 2306.04675)",
        digits=2,
    ),
    *(measure for name in ("lite0", "squeezenet", "fashion") for measure in _of_network(name)),
)
MEASURES = {measure.name: measure for measure in _ALL}
