import json
import math

import numpy as np
import pytest
import torch

from evaluation.metrics import (
    bootstrap_interval,
    finite_or_none,
    frechet_distance,
    gaussian_frechet_distance,
    gaussian_statistics,
    mean_interval,
    psnr,
    relative_error,
    summarize_psnr,
    summarize_samples,
)


def random_images(seed: int, count: int = 5, side: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def random_covariance(draw: np.random.Generator, dim: int, rank: int | None = None) -> np.ndarray:
    factor = draw.standard_normal((dim, rank or 2 * dim))
    return factor @ factor.T / factor.shape[1]


class TestPsnr:
    def test_of_a_constant_difference_is_the_closed_form(self):
        reference = np.full((3, 8, 8, 1), 100, np.uint8)
        images = reference + np.array([1, 5, 155], np.uint8).reshape(3, 1, 1, 1)
        expected = [20 * math.log10(255 / d) for d in (1, 5, 155)]
        np.testing.assert_allclose(psnr(images, reference), expected, rtol=1e-14)

    def test_does_not_wrap_around_as_uint8_does(self):
        low, high = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 255, np.uint8)
        assert psnr(low, high)[0] == psnr(high, low)[0] == 0.0

    def test_agrees_with_torchmetrics(self):
        """Within 1e-4 dB: torchmetrics sums in float32."""
        image = pytest.importorskip("torchmetrics.image")
        a, b = random_images(0), random_images(1)
        ta, tb = (torch.from_numpy(x).permute(0, 3, 1, 2).float() for x in (a, b))
        pooled = image.PeakSignalNoiseRatio(data_range=255.0)(ta, tb).item()
        mean = image.PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3))(ta, tb).item()
        summary = summarize_psnr(psnr(a, b))
        assert summary["pooled_db"] == pytest.approx(pooled, abs=1e-4)
        assert summary["mean_db"] == pytest.approx(mean, abs=1e-4)

    def test_identical_images_are_infinite_and_counted_apart(self):
        reference = random_images(0, 3)
        images = reference.copy()
        images[1] ^= 1  # every value off by one
        values = psnr(images, reference)
        assert np.isinf(values[[0, 2]]).all()
        summary = summarize_psnr(values)
        off_by_one = 20 * math.log10(255)
        assert summary["mean_db"] == pytest.approx(off_by_one, abs=1e-12)
        assert summary["pooled_db"] == pytest.approx(off_by_one + 10 * math.log10(3), abs=1e-12)
        assert (summary["num_images"], summary["num_identical"]) == (3, 2)
        assert (summary["low_db"], summary["high_db"]) == (None, None), "one image that differs has no interval"

    def test_the_interval_is_of_the_images_that_differ(self):
        summary, interval = summarize_psnr([30.0, math.inf, 34.0]), mean_interval([30.0, 34.0])
        assert (summary["low_db"], summary["high_db"]) == (interval["low"], interval["high"])

    def test_summary_of_identical_images_is_json_without_infinity(self):
        reference = random_images(0, 2)
        summary = summarize_psnr(psnr(reference, reference))
        assert summary["mean_db"] is None
        assert summary["pooled_db"] is None
        json.dumps(summary, allow_nan=False)

    @pytest.mark.parametrize(
        ("images", "reference", "message"),
        [
            (random_images(0).astype(np.float32), random_images(0), "uint8"),
            (random_images(0), random_images(0, side=8), r"\(5, 8, 8, 3\)"),
            (random_images(0)[0], random_images(0)[0], "B, H, W, C"),
        ],
    )
    def test_refuses_what_has_no_psnr(self, images, reference, message):
        with pytest.raises(ValueError, match=message):
            psnr(images, reference)


class TestRelativeError:
    def test_is_the_ratio_of_norms(self):
        assert relative_error([3.0, 4.0, 1.0], [3.0, 0.0, 1.0]) == pytest.approx(4 / math.sqrt(10), rel=1e-15)

    def test_takes_bf16_tensors_and_computes_in_float64(self):
        b = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0)).bfloat16()
        a = b * 2  # exact in bf16
        assert relative_error(a, b) == pytest.approx(1.0, rel=1e-15)

    def test_of_zeros(self):
        zeros = np.zeros(3)
        assert relative_error(zeros, zeros) == 0.0
        assert relative_error(zeros + 1, zeros) == math.inf

    def test_names_unequal_shapes(self):
        with pytest.raises(ValueError, match=r"\(2,\).*\(3,\)"):
            relative_error(np.zeros(2), np.zeros(3))


class TestFrechetDistance:
    def test_of_diagonal_gaussians_is_the_closed_form(self):
        draw = np.random.default_rng(0)
        mean_a, mean_b = draw.standard_normal((2, 50))
        var_a, var_b = 10.0 ** draw.uniform(-6, 3, (2, 50))
        expected = np.square(mean_a - mean_b).sum() + np.square(np.sqrt(var_a) - np.sqrt(var_b)).sum()
        found = gaussian_frechet_distance(mean_a, np.diag(var_a), mean_b, np.diag(var_b))
        assert found == pytest.approx(expected, rel=1e-12)

    def test_agrees_with_a_matrix_square_root(self):
        """Well-conditioned covariances, where scipy's square root of the product is accurate; both are float64."""
        linalg = pytest.importorskip("scipy.linalg")
        draw = np.random.default_rng(1)
        for dim in (1, 7, 64):
            mean_a, mean_b = draw.standard_normal((2, dim))
            cov_a, cov_b = random_covariance(draw, dim), random_covariance(draw, dim)
            root = np.real(linalg.sqrtm(cov_a @ cov_b))
            expected = np.square(mean_a - mean_b).sum() + np.trace(cov_a + cov_b - 2 * root)
            assert gaussian_frechet_distance(mean_a, cov_a, mean_b, cov_b) == pytest.approx(expected, rel=1e-9)

    def test_agrees_with_torchmetrics_on_features(self):
        """Within 1e-9: torchmetrics takes the eigenvalues of the unsymmetric product, in float64 too."""
        fid = pytest.importorskip("torchmetrics.image.fid")
        draw = np.random.default_rng(2)
        a, b = draw.standard_normal((400, 12)), 1.5 * draw.standard_normal((300, 12)) + 0.3
        statistics = [torch.from_numpy(part) for features in (a, b) for part in gaussian_statistics(features)]
        assert frechet_distance(a, b) == pytest.approx(fid._compute_fid(*statistics).item(), rel=1e-9)

    def test_of_a_set_with_itself_is_zero_even_with_singular_covariance(self):
        features = np.random.default_rng(3).standard_normal((10, 128))  # rank 9 of 128
        assert frechet_distance(features, features) < 1e-9

    def test_of_singular_covariances_is_the_closed_form(self):
        """Two rank-deficient covariances that commute: the distance is that of their eigenvalues."""
        draw = np.random.default_rng(4)
        basis = np.linalg.qr(draw.standard_normal((40, 40)))[0]
        var_a, var_b = np.zeros(40), np.zeros(40)
        var_a[:15], var_b[10:30] = draw.uniform(0.5, 2, 15), draw.uniform(0.5, 2, 20)
        expected = np.square(np.sqrt(var_a) - np.sqrt(var_b)).sum()
        zero = np.zeros(40)
        found = gaussian_frechet_distance(zero, (basis * var_a) @ basis.T, zero, (basis * var_b) @ basis.T)
        assert found == pytest.approx(expected, rel=1e-12)

    def test_of_a_shift_is_its_squared_length_and_symmetric(self):
        features = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        shifted = features + torch.tensor([3.0, 0, 4, 0, 0, 0])
        assert frechet_distance(features, shifted) == pytest.approx(25.0, rel=1e-12)
        other = features[:100] * 2
        assert frechet_distance(features, other) == pytest.approx(frechet_distance(other, features), rel=1e-12)

    @pytest.mark.parametrize(
        ("a", "b", "message"),
        [
            (np.zeros((5, 3)), np.zeros((5, 4)), "dimensions"),
            (np.zeros((1, 3)), np.zeros((5, 3)), "two rows"),
            (np.full((5, 3), np.nan), np.zeros((5, 3)), "not finite"),
        ],
    )
    def test_refuses_what_has_no_distance(self, a, b, message):
        with pytest.raises(ValueError, match=message):
            frechet_distance(a, b)

    def test_refuses_a_matrix_that_is_no_covariance(self):
        with pytest.raises(ValueError, match="semi-definite"):
            gaussian_frechet_distance([0, 0], [[1, 2], [2, 1]], [0, 0], np.eye(2))


class TestBootstrap:
    def test_of_a_mean_matches_the_normal_interval(self):
        """Within a tenth of the half-width: 4000 resamples of 400 values."""
        values = np.random.default_rng(0).standard_normal(400)
        low, high = bootstrap_interval(values, num_resamples=4000)
        half = 1.96 * values.std() / 20
        assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
        assert high == pytest.approx(values.mean() + half, abs=0.1 * half)

    def test_is_a_function_of_its_seed(self):
        values = np.random.default_rng(0).standard_normal(30)
        assert bootstrap_interval(values, np.median, seed=1) == bootstrap_interval(values, np.median, seed=1)
        assert bootstrap_interval(values, seed=1) != bootstrap_interval(values, seed=2)

    def test_refuses_a_single_value(self):
        with pytest.raises(ValueError, match="two values"):
            bootstrap_interval([1.0])


def test_finite_or_none():
    assert [finite_or_none(value) for value in (1.5, math.inf, -math.inf, math.nan)] == [1.5, None, None, None]


def test_samples_are_summed_up_with_intervals_and_changes_from_the_uncached_ones():
    uncached = [{"score": 50.0}, {"score": 60.0}]
    row = summarize_samples([{"psnr_db": 30.0, "score": 51.0}, {"psnr_db": None, "score": 63.0}], uncached)
    assert row["psnr"] == summarize_psnr([30.0, math.inf])
    assert row["score"] == mean_interval([51.0, 63.0])
    assert row["score_change"] == mean_interval([1.0, 3.0])
    assert summarize_samples(uncached) == {"psnr": None, "score": mean_interval([50.0, 60.0])}
