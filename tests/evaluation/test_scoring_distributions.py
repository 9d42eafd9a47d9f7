"""Fréchet and kernel distances, Inception score, precision and recall of features: closed forms, ADM's formulas, the libraries.

Oracles restate what is published (openai/guided-diffusion, evaluations/evaluator.py) in the plainest way that there is.
"""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cache_dic import UserError
from evaluation.metrics import GaussianSums, gaussian_statistics, kid_kernel
from evaluation.scoring import distributions
from evaluation.scoring.distributions import (
    Features,
    frechet,
    inception_score,
    kernel_distance,
    precision,
    recall,
)

ROOT = Path(__file__).parents[2]


def in_parts(rows: np.ndarray, size: int, frames: int = 1) -> Features:
    """Features in parts of `size` samples, each of `frames` rows."""
    step = size * frames
    parts = [rows[start : start + step] for start in range(0, len(rows), step)]
    counts = [np.full(len(part) // frames, frames) for part in parts]
    return Features(lambda: zip(parts, counts, strict=True), np.concatenate(counts))


def rows_like(draw: np.random.Generator, num: int, dim: int, shift: float = 0.0) -> np.ndarray:
    """Features as networks with ReLU have them: correlated, not negative, float32."""
    mixed = draw.standard_normal((num, dim)) @ (
        np.eye(dim) + 0.3 * np.random.default_rng(9).standard_normal((dim, dim))
    )
    return np.maximum(mixed + shift, 0).astype(np.float32)


def exact_rows(mean: np.ndarray, covariance: np.ndarray, num: int, seed: int = 0) -> np.ndarray:
    """Rows whose own mean and unbiased covariance are those given."""
    rows = np.random.default_rng(seed).standard_normal((num, mean.size))
    rows -= rows.mean(axis=0)
    whitened = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows, rowvar=False))).T
    return mean + whitened @ np.linalg.cholesky(covariance).T


# ---------------------------------------------------------------------------------------------------- Fréchet distance


def adm_frechet(need: Callable, a: np.ndarray, b: np.ndarray) -> float:
    """ADM's: square root of the covariances' product by Schur's form."""
    linalg = need("scipy.linalg")
    a, b = a.astype(np.float64), b.astype(np.float64)
    (mean_a, mean_b), (cov_a, cov_b) = (x.mean(axis=0) for x in (a, b)), (np.cov(x, rowvar=False) for x in (a, b))
    root = np.real(linalg.sqrtm(cov_a @ cov_b))
    return float(np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(root))


def clean_fid(need: Callable, a: np.ndarray, b: np.ndarray) -> float:
    return need("cleanfid.fid").fid_from_feats(a, b)


def torch_fidelity_fid(need: Callable, a: np.ndarray, b: np.ndarray) -> float:
    module = need("torch_fidelity.metric_fid")
    statistics = [module.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
    return module.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]


class Passed(torch.nn.Module):
    """A network for torchmetrics that takes features for images."""

    num_features = 24

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchmetrics_fid(need: Callable, a: np.ndarray, b: np.ndarray) -> float:
    module = need("torchmetrics.image.fid")
    metric = module.FrechetInceptionDistance(feature=Passed(), normalize=True).set_dtype(torch.float64)
    metric.used_custom_model = True
    for rows, real in ((a, False), (b, True)):
        metric.update(torch.from_numpy(rows).double(), real=real)
    return metric.compute().item()


class TestFrechet:
    def test_of_commuting_covariances_is_the_closed_form(self):
        draw = np.random.default_rng(0)
        axes, _ = np.linalg.qr(draw.standard_normal((20, 20)))
        mean_a, mean_b = draw.standard_normal((2, 20))
        var_a, var_b = draw.uniform(0.1, 5, (2, 20))
        a = exact_rows(mean_a, axes * var_a @ axes.T, 90)
        b = exact_rows(mean_b, axes * var_b @ axes.T, 70, seed=1)
        expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(var_a) - np.sqrt(var_b)).sum()
        assert frechet(Features.of(a), Features.of(b))["value"] == pytest.approx(expected, rel=1e-11)
        known = mean_b, axes * var_b @ axes.T
        assert frechet(Features.of(a), known)["value"] == pytest.approx(expected, rel=1e-11)

    @pytest.mark.parametrize("num", [200, 10], ids=["more rows than features", "fewer"])
    def test_of_a_shift_is_its_squared_length(self, num):
        rows = rows_like(np.random.default_rng(0), num, 30).astype(np.float64)
        shift = np.linspace(-1, 2, 30)
        found = frechet(Features.of(rows + shift), Features.of(rows))["value"]
        assert found == pytest.approx(np.square(shift).sum(), rel=1e-9)

    @pytest.mark.parametrize("num", [200, 10], ids=["more rows than features", "fewer"])
    def test_of_a_set_drawn_apart_is_the_closed_form(self, num):
        """y = μ + 1.3 (x − μ) + 0.01: 0.09 tr Σ + 0.0001 D."""
        rows = rows_like(np.random.default_rng(0), num, 30).astype(np.float64)
        mean, covariance = rows.mean(axis=0), np.cov(rows, rowvar=False)
        found = frechet(Features.of(mean + 1.3 * (rows - mean) + 0.01), Features.of(rows))["value"]
        assert found == pytest.approx(0.09 * np.trace(covariance) + 0.0001 * 30, rel=1e-9)

    def test_of_a_set_with_itself_is_zero(self):
        rows = rows_like(np.random.default_rng(0), 20, 30, shift=50)
        found = frechet(Features.of(rows), Features.of(rows[::-1].copy()))
        assert 0 <= found["value"] < 1e-9 * np.trace(np.cov(rows, rowvar=False))
        assert found["low"] == 0

    @pytest.mark.parametrize(
        ("theirs", "tolerance"),
        [
            (adm_frechet, 1e-9),
            (torch_fidelity_fid, 1e-6),
            pytest.param(clean_fid, 1e-6, marks=pytest.mark.slow),
            pytest.param(torchmetrics_fid, 1e-6, marks=pytest.mark.slow),
        ],
        ids=["ADM", "torch-fidelity", "clean-fid", "torchmetrics"],
    )
    def test_agrees_with_libraries_on_the_same_features(self, theirs, tolerance, need):
        """clean-fid and torch-fidelity take the mean in the features' float32, torchmetrics returns float32."""
        draw = np.random.default_rng(1)
        a, b = rows_like(draw, 300, Passed.num_features), rows_like(draw, 250, Passed.num_features, shift=0.3)
        found = frechet(in_parts(a, 50), in_parts(b, 50))["value"]
        assert found == pytest.approx(theirs(need, a, b), rel=tolerance)

    def test_agrees_with_torch_fidelity_on_fewer_rows_than_features(self, need):
        """Within 1e-6: roots of eigenvalues that are zero but for rounding, of which a third of all are."""
        draw = np.random.default_rng(2)
        a, b = rows_like(draw, 40, 60), rows_like(draw, 50, 60, shift=0.3)
        found = frechet(Features.of(a), Features.of(b))["value"]
        assert found == pytest.approx(torch_fidelity_fid(need, a, b), rel=1e-6)

    def test_features_far_from_zero_keep_their_digits(self):
        rows = rows_like(np.random.default_rng(3), 100, 12).astype(np.float64)
        moved = frechet(Features.of(2 * rows + 1e6), Features.of(rows + 1e6))["value"]
        assert moved == pytest.approx(frechet(Features.of(2 * rows), Features.of(rows))["value"], rel=1e-8)

    def test_neither_order_nor_parts_change_the_distance(self, monkeypatch):
        draw = np.random.default_rng(4)
        a, b = rows_like(draw, 130, 12), rows_like(draw, 90, 12, shift=0.5)
        expected = frechet(Features.of(a), Features.of(b))["value"]
        for size, edge in ((1, 2048), (7, 30), (50, 60), (200, 1)):
            monkeypatch.setattr(distributions, "EDGE", edge)  # rows that are summed at once
            found = frechet(in_parts(a[draw.permutation(130)], size), in_parts(b[draw.permutation(90)], size))
            assert found["value"] == pytest.approx(expected, rel=1e-11)

    def test_rows_are_read_twice_and_counted_without_being_read(self):
        read = []
        rows = rows_like(np.random.default_rng(5), 40, 3)

        def parts() -> Sequence[tuple[np.ndarray, np.ndarray]]:
            read.append(None)
            return [(rows, np.ones(40, dtype=np.int64))]

        found = frechet(Features(parts, np.ones(40, dtype=np.int64)), gaussian_statistics(rows + 1))
        assert (len(read), found["num"], found["num_features"]) == (2, 40, 3)

    @pytest.mark.parametrize("shift", [0, 0.5])
    def test_the_extrapolated_figure_has_lost_its_bias(self, shift):
        """Of normal samples and their own distribution, moved: the distance is 8 shift², the mean that over 200 sets."""
        draw, known = np.random.default_rng(6), (np.full(8, shift), np.eye(8))
        found = [frechet(Features.of(draw.standard_normal((800, 8))), known) for _ in range(200)]
        value, left = (np.array([one[key] for one in found]) - 8 * shift**2 for key in ("value", "extrapolated"))
        bias = (8 + 8 * 9 / 4) / 800  # ‖Δμ‖² has D / N, the rest D (D + 1) / 4N
        assert value.mean() == pytest.approx(bias, rel=0.05, abs=3 * value.std() / 200**0.5)
        assert abs(left.mean()) < 0.1 * bias + 3 * left.std() / 200**0.5 < 0.9 * bias

    def test_the_interval_is_as_wide_as_the_distances_spread(self):
        draw = np.random.default_rng(7)
        found = [
            frechet(Features.of(1.5 * draw.standard_normal((400, 4)) + 1), (np.zeros(4), np.eye(4))) for _ in range(200)
        ]
        spread = np.std([one["value"] for one in found])
        assert np.mean([one["high"] - one["value"] for one in found]) == pytest.approx(1.96 * spread, rel=0.15)

    def test_frames_of_a_sample_are_no_samples_of_their_own(self):
        draw = np.random.default_rng(8)
        rows, known = draw.standard_normal((100, 4)), (np.ones(4), np.eye(4))
        one, four = frechet(in_parts(rows, 10), known), frechet(in_parts(rows.repeat(4, axis=0), 10, frames=4), known)
        assert (four["num"], four["remark"]) == (100, one["remark"])
        assert four["high"] - four["value"] == pytest.approx(one["high"] - one["value"], rel=0.05)

    def test_too_few_samples_are_told_of(self):
        rows = rows_like(np.random.default_rng(9), 10, 12)
        assert (
            frechet(Features.of(rows), Features.of(rows))["remark"]
            == "10 samples for 12 features: most of the value is bias"
        )
        found = frechet(Features.of(rows[:, :3]), Features.of(rows[:, :3]))
        assert found["remark"] == "fewer than 10000 samples: compare equal numbers of them alone"
        assert "remark" not in frechet(Features.of(np.resize(rows, (10_000, 3))), gaussian_statistics(rows[:, :3]))

    def test_a_single_image_is_refused(self):
        one, many = Features.of(np.ones((1, 3))), Features.of(np.eye(3))
        with pytest.raises(UserError, match="there are 3 and 1 images; at least 2 are needed in each set"):
            frechet(many, one)
        with pytest.raises(UserError, match="there are 1 images"):
            frechet(one, (np.zeros(3), np.eye(3)))


class TestSums:
    """Statistics of any number of rows in the memory of few."""

    def test_are_those_of_numpy_in_float64_however_they_came(self):
        rows = rows_like(np.random.default_rng(0), 101, 7, shift=30)
        halves = GaussianSums(), GaussianSums()
        for start in range(0, 101, 10):
            halves[start % 20 // 10].add(rows[start : start + 10])
        mean, covariance = (halves[1] + halves[0]).statistics()
        assert mean.dtype == covariance.dtype == np.float64
        np.testing.assert_allclose(mean, rows.astype(np.float64).mean(axis=0), rtol=1e-14)
        np.testing.assert_allclose(covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-11)

    def test_of_nothing_and_of_one_row(self):
        assert (GaussianSums() + GaussianSums().add(np.ones((3, 2)))).count == 3
        with pytest.raises(ValueError, match="at least two rows of features, there are 1"):
            GaussianSums().add(np.ones((1, 2))).statistics()
        with pytest.raises(ValueError, match="not finite"):
            GaussianSums().add(np.full((2, 2), np.nan))

    @pytest.mark.slow
    def test_peak_memory_does_not_grow_with_the_number_of_rows(self):
        """5 times as many rows of 2048, which would take 0.13 GB in float32 and 0.26 GB in float64, add less than 8 MB."""
        code = """
import resource, sys
import numpy as np
from evaluation.scoring.distributions import Features, _halves
draw, num = np.random.default_rng(0), int(sys.argv[1])
ones = np.ones(50, dtype=np.int64)
parts = lambda: ((draw.random((50, 2048), dtype=np.float32), ones) for _ in range(num // 50))
first, second = _halves(Features(parts, np.ones(num, dtype=np.int64)))
mean, covariance = (first + second).statistics()
assert abs(mean.mean() - 0.5) < 1e-3 and abs(np.trace(covariance) / 2048 - 1 / 12) < 1e-3
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "common", ROOT / "eval")))}
        peaks = []
        for num in (4000, 20000):
            done = subprocess.run(
                [sys.executable, "-c", code, str(num)], env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            peaks.append(int(done.stdout) / 1024)
        assert peaks[1] - peaks[0] < 8, f"{peaks} MiB"


# ----------------------------------------------------------------------------------------------------- kernel distance


def kid_by_hand(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    x_x = sum(kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    y_y = sum(kernel(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return x_x + y_y - 2 * sum(kernel(a, b) for a in x for b in y) / (n * m)


class TestKernelDistance:
    def test_is_the_sum_over_pairs(self, monkeypatch):
        draw = np.random.default_rng(0)
        x, y = draw.standard_normal((23, 3)), draw.standard_normal((17, 3)) + 0.5
        expected = kid_by_hand(x, y)
        found = kernel_distance(Features.of(x), Features.of(y))
        assert found["value"] == pytest.approx(expected, rel=1e-12)
        assert (found["num"], found["num_reference"]) == (23, 17)
        monkeypatch.setattr(distributions, "EDGE", 5)
        blocks = kernel_distance(in_parts(x[::-1], 4), in_parts(y, 3))
        assert blocks["value"] == pytest.approx(expected, rel=1e-12)
        assert blocks["high"] == pytest.approx(found["high"], rel=1e-9)

    def test_of_two_rows_each_by_hand(self):
        x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [-1.0]])
        # k(1, 2) = 27, k(0, -1) = 1; across: k(1, 0) = 1, k(1, -1) = 0, k(2, 0) = 1, k(2, -1) = -1
        assert kernel_distance(Features.of(x), Features.of(y))["value"] == 27 + 1 - 2 * 1 / 4

    def test_has_no_bias(self, monkeypatch):
        """Of sets of one distribution its mean is 0, where the sum over all pairs, rows with themselves, has a bias."""
        monkeypatch.setattr(distributions, "SUBSETS", 1)
        draw = np.random.default_rng(1)
        sets = [(draw.standard_normal((12, 4)), draw.standard_normal((10, 4))) for _ in range(400)]
        found = np.array([kernel_distance(*map(Features.of, pair))["value"] for pair in sets])
        error = found.std() / 20
        assert abs(found.mean()) < 3 * error
        with_themselves = [
            kid_kernel(x, x).mean() + kid_kernel(y, y).mean() - 2 * kid_kernel(x, y).mean() for x, y in sets
        ]
        assert np.mean(with_themselves) > 20 * error
        assert min(found) < 0

    def test_subsets_are_those_of_torch_fidelity(self, need):
        """The same draws and the same formula, so that only the order of sums differs: 1e-10."""
        metric_kid = need("torch_fidelity.metric_kid")
        draw = np.random.default_rng(2)
        x, y = rows_like(draw, 60, 16).astype(np.float64), rows_like(draw, 50, 16, shift=0.4).astype(np.float64)
        theirs = metric_kid.kid_features_to_metric(torch.from_numpy(x), torch.from_numpy(y), kid_subset_size=25)
        ours = kernel_distance(Features.of(x), Features.of(y))["subsets"]
        assert (ours["num"], ours["size"], ours["seed"]) == (100, 25, 2020)
        assert ours["mean"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
        assert ours["std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-10)

    @pytest.mark.slow
    def test_agrees_with_torchmetrics_on_a_subset_of_everything(self, need):
        kid = need("torchmetrics.image.kid")
        draw = np.random.default_rng(3)
        x, y = rows_like(draw, 40, 16).astype(np.float64), rows_like(draw, 40, 16, shift=0.4).astype(np.float64)
        theirs = kid.poly_mmd(torch.from_numpy(y), torch.from_numpy(x)).item()
        assert kernel_distance(Features.of(x), Features.of(y))["value"] == pytest.approx(theirs, rel=1e-10)

    def test_the_interval_is_as_wide_as_the_distances_spread(self, monkeypatch):
        monkeypatch.setattr(distributions, "SUBSETS", 1)
        draw = np.random.default_rng(4)
        found = [
            kernel_distance(*(Features.of(draw.standard_normal((80, 3)) + shift) for shift in (0, 1)))
            for _ in range(100)
        ]
        spread = np.std([one["value"] for one in found])
        assert np.mean([one["high"] - one["value"] for one in found]) == pytest.approx(1.96 * spread, rel=0.25)

    def test_a_single_image_is_refused(self):
        with pytest.raises(UserError, match="there are 1 and 3 images; at least 2"):
            kernel_distance(Features.of(np.ones((1, 3))), Features.of(np.eye(3)))


# ------------------------------------------------------------------------------------------------------ Inception score


def adm_inception_score(logits: np.ndarray, block: int) -> float:
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    parts = [p[start : start + block] for start in range(0, len(p), block)]
    return float(np.mean([np.exp(np.mean(np.sum(x * (np.log(x) - np.log(x.mean(axis=0))), axis=1))) for x in parts]))


class TestInceptionScore:
    def test_of_uniform_predictions_is_one(self):
        found = inception_score([np.full((30, 1008), 3.5, dtype=np.float32)])
        assert found["value"] == pytest.approx(1, abs=1e-12)
        assert (found["num_blocks"], found["low"]) == (1, None)

    @pytest.mark.parametrize("sure", [50, 1e4], ids=["sure", "beyond float64"])
    def test_of_sure_predictions_is_the_number_of_their_classes(self, sure):
        """Of 8 classes 6 are met with, equally often; the others have no NaN."""
        logits = sure * np.eye(8)[np.arange(60) % 6]
        assert inception_score([logits])["value"] == pytest.approx(6, rel=1e-12)

    def test_of_two_kinds_of_predictions_by_hand(self):
        """Half says (3/4, 1/4), half (1/4, 3/4): exp(3/4 ln 3/2 + 1/4 ln 1/2)."""
        logits = np.log([[3, 1], [1, 3]] * 5)
        assert inception_score([logits])["value"] == pytest.approx(1.5**0.75 * 0.5**0.25, rel=1e-12)

    def test_blocks_are_adms_and_torch_fidelitys_of_as_many_splits(self, need):
        metric_isc = need("torch_fidelity.metric_isc")
        logits = np.random.default_rng(0).normal(0, 2, (15_000, 12)).astype(np.float32)
        found = inception_score(np.array_split(logits, 7))
        theirs = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits=3, shuffle=False)
        assert found["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
        assert found["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-9)
        assert found["value"] == pytest.approx(adm_inception_score(logits.astype(np.float64), 5000), rel=1e-12)
        assert found["low"] < found["value"] < found["high"]
        assert (found["num_blocks"], found["block"], "remark" in found) == (3, 5000, False)

    def test_the_last_block_is_as_long_as_it_comes_out(self):
        logits = np.random.default_rng(1).normal(0, 2, (12_000, 5))
        found = inception_score([logits])
        assert found["value"] == pytest.approx(adm_inception_score(logits, 5000), rel=1e-12)
        assert found["remark"] == "the last block has 2000 samples instead of 5000, and weighs as much"

    def test_parts_change_nothing_and_order_matters_across_blocks_alone(self, monkeypatch):
        monkeypatch.setattr(distributions, "BLOCK", 40)
        draw = np.random.default_rng(2)
        logits = draw.normal(0, 2, (80, 5)) + 3 * np.eye(5)[np.arange(80) // 40]
        whole = inception_score([logits])
        assert inception_score([logits[:1], logits[1:41], logits[41:41], logits[41:]]) == whole
        within = np.concatenate([logits[:40][draw.permutation(40)], logits[40:]])
        assert inception_score([within])["value"] == pytest.approx(whole["value"], rel=1e-12)
        assert inception_score([logits[draw.permutation(80)]])["value"] > 1.02 * whole["value"]


# ------------------------------------------------------------------------------------------------ precision and recall


def share_by_hand(points: np.ndarray, centres: np.ndarray, k: int = 3) -> float:
    """Of points that lie within a ball around a centre, which reaches as far as its k-th neighbour."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.square(a.astype(np.float64) - b).sum()))

    radii = [sorted(distance(c, other) for other in centres)[k] for c in centres]
    return np.mean([any(distance(p, c) <= r for c, r in zip(centres, radii, strict=True)) for p in points])


class TestPrecisionAndRecall:
    def test_of_points_on_a_line(self):
        """0, 1, 2, 3, 9 reach 3, 2, 2, 3, 8: the manifold is [-3, 17], edges included."""
        reference = np.array([0.0, 1, 2, 3, 9])[:, None]
        samples = np.array([-3.5, -3, 5, 17, 17.5, 100])[:, None]
        found = precision(Features.of(samples), Features.of(reference))
        assert found["value"] == 3 / 6
        assert (found["num"], found["num_reference"]) == (6, 5)
        # -3.5 reaches to 17, 5 to 17.5, the others as far: all of the reference is covered
        assert recall(Features.of(samples), Features.of(reference))["value"] == 1
        assert recall(Features.of(samples + 200), Features.of(reference))["value"] == 0

    @pytest.mark.parametrize("edge", [2048, 7], ids=["one block", "blocks of 7"])
    def test_are_those_of_all_distances(self, edge, monkeypatch, need):
        """And torch-fidelity's, whether it keeps all distances or not; its input1 are the samples."""
        monkeypatch.setattr(distributions, "EDGE", edge)
        draw = np.random.default_rng(0)
        samples, reference = rows_like(draw, 60, 5), rows_like(draw, 45, 5, shift=0.6)
        ours = [figure(in_parts(samples, 8), in_parts(reference, 8))["value"] for figure in (precision, recall)]
        assert ours == pytest.approx([share_by_hand(samples, reference), share_by_hand(reference, samples)], rel=1e-12)
        assert 0.1 < ours[0] != ours[1] < 0.95
        metric_prc = need("torch_fidelity.metric_prc")
        tensors = torch.from_numpy(samples), torch.from_numpy(reference)
        for save_cpu_ram in (True, False):
            theirs = metric_prc.prc_features_to_metric(*tensors, save_cpu_ram=save_cpu_ram, prc_neighborhood=3)
            assert ours == pytest.approx([theirs["precision"], theirs["recall"]], abs=1e-6)

    def test_a_set_covers_itself_and_nothing_far_away(self):
        rows = rows_like(np.random.default_rng(1), 50, 20)
        assert precision(Features.of(rows), Features.of(rows))["value"] == 1
        far = precision(Features.of(rows + 1000), Features.of(rows))
        assert (far["value"], far["low"]) == (0, pytest.approx(0, abs=1e-12))
        assert far["high"] == pytest.approx(3.8416 / (50 + 3.8416), rel=1e-3), "Wilson's"

    def test_balls_of_no_width_hold_their_equals(self):
        """Of rows that are there four times the balls have no width; rounding must not lose what lies in their middle."""
        draw = np.random.default_rng(2)
        for _ in range(150):
            dim, num = draw.integers(3, 2048), draw.integers(5, 40)
            row = np.abs(draw.standard_normal((1, dim)))
            reference = np.concatenate([row.repeat(4, axis=0), draw.standard_normal((num, dim)) + 100])
            samples = np.concatenate([row.repeat(num, axis=0), draw.standard_normal((3, dim)) - 100])
            found = precision(*(Features.of(rows.astype(np.float32)) for rows in (samples, reference)))
            assert found["value"] == num / (num + 3)

    def test_collapsed_samples_cover_nothing_but_their_equals(self):
        draw = np.random.default_rng(3)
        reference = draw.standard_normal((40, 6))
        samples = reference[:1].repeat(30, axis=0)
        assert precision(Features.of(samples), Features.of(reference))["value"] == 1
        assert recall(Features.of(samples), Features.of(reference))["value"] == 1 / 40

    @pytest.mark.parametrize("figure", [precision, recall])
    def test_sets_without_a_third_neighbour_are_refused(self, figure: Callable):
        with pytest.raises(UserError, match="at least 4 are needed in each set"):
            figure(Features.of(np.eye(3)), Features.of(np.eye(9, 3)))


@pytest.mark.parametrize("figure", [precision, recall, kernel_distance])
def test_figures_of_pairs_take_the_features_and_five_blocks_of_memory(figure: Callable, monkeypatch):
    """However many rows: here 1,000 and 2,000 of 256, which would take 6 MB in float64, and blocks of 128 x 256."""
    monkeypatch.setattr(distributions, "EDGE", 128)
    monkeypatch.setattr(distributions, "SUBSET", 100)
    monkeypatch.setattr(distributions, "SUBSETS", 1)
    draw = np.random.default_rng(0)
    sets = [in_parts(draw.standard_normal((num, 256), dtype=np.float32), 50) for num in (1000, 2000)]
    features_bytes = 3000 * 256 * 4
    tracemalloc.start()
    try:
        figure(*sets)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    vectors = 8 * 2000 * 8  # radii, sums
    assert features_bytes < peak < features_bytes + 5.2 * 128 * 256 * 8 + vectors


def test_features_in_parts_are_whole_again():
    rows = rows_like(np.random.default_rng(0), 23, 3)
    whole = in_parts(rows, 5).whole()
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, rows)
    video = in_parts(rows[:22], 4, frames=2)
    np.testing.assert_array_equal(video.whole(), rows[:22])
    assert video.counts.tolist() == [2] * 11
