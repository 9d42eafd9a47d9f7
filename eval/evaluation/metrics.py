"""Distances between images, tensors and feature distributions, and intervals, in float64, with NumPy alone.

Tensors are accepted.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
SSIM_WINDOW = 11  # pixels a side
Z = 1.959964  # of a normal distribution, 95 % within


def psnr(images: ArrayLike, reference: ArrayLike) -> Array:
    """Peak signal-to-noise ratio in dB of each image, 10 log10(255² / MSE); inf where an image equals its reference.

    images, reference: uint8, (B, H, W, C). Returns (B,). Average with `summarize_psnr`.
    """
    images, reference = _numpy(images), _numpy(reference)
    if images.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(
            f"psnr takes uint8 images, got {images.dtype} and {reference.dtype}; use seerkit.io.media.to_uint8"
        )
    if images.shape != reference.shape or images.ndim != 4 or not images.size:
        raise ValueError(f"images {images.shape} and reference {reference.shape} must both be the same (B, H, W, C)")
    difference = images.astype(np.float64) - reference
    mse = np.square(difference).mean(axis=(1, 2, 3))  # (B,)
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / mse)


def summarize_psnr(values: ArrayLike) -> dict[str, float | int | None]:
    """What a record keeps of the PSNR of many images; None stands for infinity, which JSON does not have.

    mean_db: mean of the images' decibels, as the caching papers report it, over the images that differ from their
    reference; the `num_identical` others would make it infinite. low_db, high_db: its interval (`mean_interval`). pooled_db:
    PSNR of the mean squared error over all images, ruled by the worst ones and so never above mean_db where no image is
    identical.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    interval = mean_interval(finite)
    return {
        "mean_db": interval["mean"],
        "low_db": interval["low"],
        "high_db": interval["high"],
        "pooled_db": float(-10 * np.log10(np.mean(10 ** (-values / 10)))) if finite.size else None,
        "num_images": int(values.size),
        "num_identical": int(values.size - finite.size),
    }


def summarize_samples(
    measured: Sequence[Mapping[str, float | None]], uncached: Sequence[Mapping[str, float | None]] | None = None
) -> dict[str, Any]:
    """What a row says of its samples, of what was measured on each: means with intervals over them.

    psnr_db, None where a sample equals the uncached one, is summed up as `psnr`. Of scores without a reference there is also
    the change from the uncached sample of the same noise, KEY_change, which differs less from one sample to the next than the
    scores do.
    """
    found: dict[str, Any] = {"psnr": None}
    for key in measured[0]:
        given = [one[key] for one in measured]
        if key == "psnr_db":
            found["psnr"] = summarize_psnr([math.inf if value is None else value for value in given])
        else:
            found[key] = mean_interval(given)
            if uncached is not None and key in uncached[0]:
                pairs = zip(given, uncached, strict=True)
                found[f"{key}_change"] = mean_interval([value - other[key] for value, other in pairs])
    return found


def ssim(images: ArrayLike, reference: ArrayLike) -> Array:
    """Structural similarity of each image (Wang et al. 2004, Eq. 13), at most 1, which equal images have.

    As published: Gaussian windows of 11 x 11 with sigma 1.5 that lie wholly within the image, K1 = 0.01, K2 = 0.03, range 255;
    the mean over windows, and over colour channels. images, reference: uint8, (B, H, W, C), sides of 11 or more. Returns (B,).
    """
    images, reference = _numpy(images), _numpy(reference)
    if images.dtype != np.uint8 or reference.dtype != np.uint8:
        raise ValueError(f"ssim takes uint8 images, got {images.dtype} and {reference.dtype}")
    if images.shape != reference.shape or images.ndim != 4 or min(images.shape[1:3], default=0) < SSIM_WINDOW:
        raise ValueError(
            f"images {images.shape} and reference {reference.shape} must both be the same (B, H, W, C) with sides of at "
            f"least {SSIM_WINDOW}"
        )
    a, b = images.astype(np.float64), reference.astype(np.float64)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _windowed(a), _windowed(b)
    var_a, var_b = _windowed(a * a) - mean_a**2, _windowed(b * b) - mean_b**2
    covariance = _windowed(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(axis=(1, 2, 3))


def _windowed(values: Array) -> Array:
    """Gaussian means over the windows of (B, H, W, C), one dimension after the other: (B, H - 10, W - 10, C)."""
    weights = np.exp(-0.5 * ((np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2) / 1.5) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        values = np.lib.stride_tricks.sliding_window_view(values, SSIM_WINDOW, axis=axis) @ weights
    return values


def relative_error(a: ArrayLike, b: ArrayLike) -> float:
    """‖a − b‖₂ / ‖b‖₂ over all elements, b the reference; 0 if both are zero, inf if b alone is."""
    a, b = _numpy(a).astype(np.float64), _numpy(b).astype(np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a is {a.shape} but its reference b is {b.shape}")
    difference, norm = np.linalg.norm((a - b).ravel()), np.linalg.norm(b.ravel())
    if norm == 0:
        return 0.0 if difference == 0 else math.inf
    return float(difference / norm)


class GaussianSums:
    """Sums of feature rows that their mean and covariance follow from, so that no set of them need fit into memory.

    What is kept are n, Σ(x − x₀) and Σ(x − x₀)(x − x₀)ᵀ in float64, x₀ the first row ever added, which keeps features far from
    zero from losing digits: 8 D² bytes, 34 MB for D = 2048, however many rows. Sums of parts can be added.
    """

    def __init__(self) -> None:
        self.count = 0
        self.origin = self.first = self.second = np.zeros(0)

    def add(self, features: ArrayLike) -> "GaussianSums":
        """Count rows (N, D) in; ValueError for other shapes, and for what is not finite."""
        features = _numpy(features).astype(np.float64)
        if features.ndim != 2 or (self.count and features.shape[1] != self.origin.size):
            raise ValueError(f"features {features.shape} must be (N, {self.origin.size or 'D'})")
        if not np.isfinite(features).all():
            raise ValueError("features hold values that are not finite")
        if not self.count and len(features):
            dim = features.shape[1]
            self.origin, self.first, self.second = features[0].copy(), np.zeros(dim), np.zeros((dim, dim))
        if len(features):
            features -= self.origin
            self.count += len(features)
            self.first = self.first + features.sum(axis=0)
            self.second += features.T @ features
        return self

    def __add__(self, other: "GaussianSums") -> "GaussianSums":
        """Of both parts; exact but for rounding, whatever rows the parts began with."""
        if not (self.count and other.count):
            return self if self.count else other
        total, shift = GaussianSums(), other.origin - self.origin
        moved = np.outer(other.first, shift)
        total.count, total.origin = self.count + other.count, self.origin
        total.first = self.first + other.first + other.count * shift
        total.second = self.second + other.second + moved + moved.T + other.count * np.outer(shift, shift)
        return total

    def statistics(self) -> tuple[Array, Array]:
        """Mean (D,) and unbiased covariance (D, D); ValueError for fewer than two rows."""
        if self.count < 2:
            raise ValueError(f"mean and covariance need at least two rows of features, there are {self.count}")
        mean = self.first / self.count
        return self.origin + mean, (self.second - self.count * np.outer(mean, mean)) / (self.count - 1)


def gaussian_statistics(features: ArrayLike) -> tuple[Array, Array]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), N of at least 2."""
    return GaussianSums().add(features).statistics()


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Squared Fréchet distance of the Gaussians fitted to features (N, D) and (M, D) (arXiv 1706.08500, Eq. 6).

    Only on Inception-v3 features is it FID; name it after the extractor otherwise. It is biased upwards, more so the
    fewer the samples: compare equal counts only.
    """
    return gaussian_frechet_distance(*gaussian_statistics(features_a), *gaussian_statistics(features_b))


def gaussian_frechet_distance(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> float:
    """‖μa − μb‖² + tr(Σa + Σb − 2 (Σa Σb)^½): squared 2-Wasserstein distance of Gaussians (Dowson and Landau 1982).

    The usual matrix square root of the unsymmetric product Σa Σb turns complex or fails for singular covariances. Here
    tr (Σa Σb)^½ = ‖Σa^½ Σb^½‖_*, the sum of singular values of symmetric roots' product: real, and stable for them too.
    """
    difference, cov_a, cov_b = _gaussians(mean_a, cov_a, mean_b, cov_b)
    cross = np.linalg.svd(_symmetric_root(cov_a)[0] @ _symmetric_root(cov_b)[0], compute_uv=False).sum()
    return max(0.0, float(difference @ difference + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def frechet_influences(
    mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike
) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """What a row of features adds to the distance of its set's Gaussian to the other, for either set (N, D) -> (N,).

    The derivative by the row's weight, up to a constant: 2 (x − μa)·(μa − μb) + (x − μa)ᵀ (1 − T) (x − μa), T the map that
    carries Gaussian a onto b, Σa^-½ (Σa^½ Σb Σa^½)^½ Σa^-½. Its variance over the rows, by their number, is that of the
    distance (the delta method), whose bias it does not know.
    """
    difference, cov_a, cov_b = _gaussians(mean_a, cov_a, mean_b, cov_b)
    (root_a, inverse_a), (root_b, inverse_b) = _symmetric_root(cov_a), _symmetric_root(cov_b)
    left, values, right = np.linalg.svd(root_a @ root_b)

    def influence(mean: ArrayLike, pull: Array, whiten: Array) -> Callable[[Array], Array]:
        centre = _numpy(mean).astype(np.float64)

        def of(rows: Array) -> Array:
            rows = rows.astype(np.float64) - centre
            return 2 * rows @ pull + np.square(rows).sum(axis=1) - np.square(rows @ whiten) @ values

        return of

    return influence(mean_a, difference, inverse_a @ left), influence(mean_b, -difference, inverse_b @ right.T)


def kid_kernel(x: ArrayLike, y: ArrayLike, *, paired: bool = False) -> Array:
    """(x·y / D + 1)³ of every row of x with every row of y (N, M), or paired with the one in its place (N,).

    KID's (arXiv 1801.01401); x (N, D), y (M, D).
    """
    x, y = _numpy(x).astype(np.float64), _numpy(y).astype(np.float64)
    products = np.einsum("nd,nd->n", x, y) if paired else x @ y.T
    return (products / x.shape[1] + 1) ** 3


def _gaussians(mean_a: ArrayLike, cov_a: ArrayLike, mean_b: ArrayLike, cov_b: ArrayLike) -> tuple[Array, Array, Array]:
    """The means' difference and both covariances, in float64; ValueError where their sizes do not fit."""
    mean_a, cov_a, mean_b, cov_b = (_numpy(value).astype(np.float64) for value in (mean_a, cov_a, mean_b, cov_b))
    shapes = (mean_a.shape, cov_a.shape, mean_b.shape, cov_b.shape)
    dim = mean_a.size
    if shapes != ((dim,), (dim, dim), (dim,), (dim, dim)):
        raise ValueError(f"means and covariances are {', '.join(map(str, shapes))}; their dimensions D must be equal")
    return mean_a - mean_b, cov_a, cov_b


def _symmetric_root(covariance: Array) -> tuple[Array, Array]:
    """Square root of a positive semi-definite matrix and the root's inverse on what it does not send to zero.

    Eigenvalues at the level of rounding count as zero.
    """
    values, vectors = np.linalg.eigh(covariance)
    floor = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    if values[0] < -1e-6 * max(values[-1], 0.0) or not np.isfinite(values).all():
        raise ValueError(f"covariance is not positive semi-definite: its lowest eigenvalue is {values[0]:.3g}")
    roots = np.sqrt(np.where(values > floor, values, 0.0))
    inverses = np.divide(1, roots, out=np.zeros_like(roots), where=roots > 0)
    return (vectors * roots) @ vectors.T, (vectors * inverses) @ vectors.T


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[[Array], float] = np.mean,
    *,
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent values (N, ...) (Efron and Tibshirani 1993, ch. 13).

    For paired runs (same seeds with and without a cache) pass the differences.
    """
    values = _numpy(values).astype(np.float64)
    if values.ndim == 0 or len(values) < 2:
        raise ValueError(f"a bootstrap needs at least two values, got shape {values.shape}")
    if not 0 < level < 1 or num_resamples < 1:
        raise ValueError(f"level {level} must lie in (0, 1) and num_resamples {num_resamples} be at least 1")
    draw = np.random.default_rng(seed)
    resampled = [statistic(values[draw.integers(len(values), size=len(values))]) for _ in range(num_resamples)]
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: ArrayLike, level: float = 0.95) -> dict[str, float | int | None]:
    """Mean of independent values with Student's interval, mean ± t s / √N: keys mean, low, high, num.

    It allows for few values, as the bootstrap of `bootstrap_interval` does not: of 8 normal ones that covers the mean in 89 %
    of cases instead of 95. low, high: None for a single value; all None for none.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs finite values (N,), got shape {values.shape}")
    count = len(values)
    mean = float(values.mean()) if count else None
    if count < 2:
        return {"mean": mean, "low": None, "high": None, "num": count}
    half = student_quantile((1 + level) / 2, count - 1) * float(values.std(ddof=1)) / math.sqrt(count)
    return {"mean": mean, "low": mean - half, "high": mean + half, "num": count}


def student_quantile(share: float, freedom: int) -> float:
    """The value that Student's t of some degrees of freedom stays below with probability `share`, in [0.5, 1).

    By bisection of the distribution's closed form in theta = atan(t / √freedom) (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    if not 0.5 <= share < 1 or freedom < 1:
        raise ValueError(f"share {share} must lie in [0.5, 1) and freedom {freedom} be at least 1")

    def within(theta: float) -> float:
        """Probability that |t| stays below √freedom tan(theta)."""
        sine, cosine = math.sin(theta), math.cos(theta)
        odd = freedom % 2
        term = total = cosine if odd else 1.0
        for k in range(2 + odd, freedom - 1, 2):
            term *= cosine**2 * (k - 1) / k
            total += term
        if odd:
            return 2 / math.pi * (theta + (sine * total if freedom > 1 else 0))
        return sine * total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 2 * share - 1 else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def wilson_interval(share: float, num: int) -> tuple[float, float]:
    """95 % interval, within [0, 1], of a probability: `share` of `num` independent trials came out true (Wilson 1927)."""
    z2 = Z**2
    middle, half = share + z2 / (2 * num), (z2 * (share * (1 - share) + z2 / (4 * num)) / num) ** 0.5
    return (middle - half) / (1 + z2 / num), (middle + half) / (1 + z2 / num)


def finite_or_none(value: float) -> float | None:
    """`value` for a record: JSON has no infinity and no NaN, None stands for both."""
    return float(value) if math.isfinite(value) else None


def _numpy(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor; bf16 has no NumPy dtype
        value = value.detach().cpu()
        return (value.double() if value.is_floating_point() else value).numpy()
    return np.asarray(value)
