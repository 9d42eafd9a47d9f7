"""FreqCa (arXiv 2510.08669, Tammytcl/FreqCa): low frequencies over the tokens are reused, high ones forecast.

It works on the tokens after the last block. With Low the projection onto low frequencies, and weights of its own for each band,

    pred = Σ_m low_m · Low(F_m) + high_m · (F_m - Low(F_m)) = Σ_m high_m · F_m + Low(Σ_m (low_m - high_m) · F_m),

so a forecast takes two weighted sums and one projection, and nothing but the features themselves is kept.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cache_dic.errors import UserError, check_choice
from cache_dic.forecast import check_order
from cache_dic.methods.hicache import HiCache
from cache_dic.registry import register
from cache_dic.settings import number

if TYPE_CHECKING:
    from torch import Tensor

TRANSFORMS = ("dct", "fft")


@dataclass(frozen=True, kw_only=True)
class FreqCa(HiCache):
    """HiCache's weights of order `max_order` for high frequencies, of order `low_order` for low ones.

    transform, cutoff: as in `low_band`; the paper takes "dct" for FLUX and "fft" for Qwen-Image, both with 0.1.
    contraction: 0.71 in the code, so the high band is TaylorSeer's to a part in a hundred.
    """

    max_order: int = 2
    contraction: float = 0.71
    low_order: int = 0
    cutoff: float = 0.1
    transform: str = "dct"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.low_order)
        number("cutoff", self.cutoff, at_least=0, at_most=1)
        check_choice("transform", self.transform, TRANSFORMS)

    def bands(self, full_steps: Sequence[int], step: float) -> tuple[Sequence[float], Sequence[float]]:
        """The weights of the low and of the high band, of the same last full steps, oldest first."""
        low = HiCache(max_order=self.low_order, warmup_steps=self.warmup_steps, contraction=self.contraction)
        rows = [low.weights(full_steps, step), super().weights(full_steps, step)]
        count = max(map(len, rows))
        padded = [[0.0] * (count - len(row)) + list(row) for row in rows]
        return padded[0], padded[1]

    def weights(self, full_steps: Sequence[int], step: float) -> Sequence[float]:
        """Those of the high band."""
        return self.bands(full_steps, step)[1]

    def low_pass(self, grid: Sequence[int], like: "Tensor") -> "Callable[[Tensor], Tensor]":
        """`low_pass` with this forecaster's cutoff and transform."""
        return low_pass(grid, self.cutoff, self.transform, like)


def low_band(features: "Tensor", grid: Sequence[int], cutoff: float, transform: str = "dct") -> "Tensor":
    """The part of features (B, L, D) with low frequencies over the tokens; `low_pass` on features."""
    return low_pass(grid, cutoff, transform, features)(features)


def low_pass(grid: Sequence[int], cutoff: float, transform: str, like: "Tensor") -> "Callable[[Tensor], Tensor]":
    """What takes the low frequencies over the tokens of features (B, L, D), in their dtype; the rest is the high band.

    grid: sizes whose product is L, of the tokens row by row: (H, W), of a video (frames, H, W).
    transform "dct": the orthonormal cosine transform along every axis of the grid (the code takes the grid as a square);
    low are the indices (i, j, …) within `cutoff` of the distance of the last one from 0. "fft": the Fourier transform along
    the sequence of tokens, whatever the grid; low is up to `cutoff` of the highest frequency. Both are orthogonal projections:
    symmetric, and the same when applied twice. like: features, for their shape, dtype and device; made once for a run, as what
    it needs is copied to the device here. Computed in float32, or float64 for float64 features.
    UserError for a cutoff outside 0 … 1, an unknown transform, and a grid that does not fit.
    """
    import torch

    check_choice("transform", transform, TRANSFORMS)
    cutoff = number("cutoff", cutoff, at_least=0, at_most=1)
    length = like.shape[1]
    if math.prod(grid) != length:
        raise UserError(
            f"a grid of {' x '.join(map(str, grid))} has {math.prod(grid)} tokens, not the {length} there are"
        )
    dtype = torch.promote_types(like.dtype, torch.float32)
    if transform == "fft":
        frequencies = torch.fft.rfftfreq(length)
        kept = (frequencies <= cutoff * frequencies.max())[:, None].to(like.device)

        def fourier(features: "Tensor") -> "Tensor":
            spectrum = torch.fft.rfft(features.to(dtype), dim=1) * kept
            return torch.fft.irfft(spectrum, n=length, dim=1).to(features.dtype)

        return fourier

    indices = torch.meshgrid(*(torch.arange(size, dtype=torch.float32) for size in grid), indexing="ij")
    distance = torch.stack([index**2 for index in indices]).sum(0).sqrt()
    low = distance <= cutoff * distance.max()
    # No index beyond the reach of an axis is low, so few rows of each transform are needed.
    reach = [int(low.movedim(axis, 0).reshape(size, -1).any(1).sum()) for axis, size in enumerate(grid)]
    mask = low[tuple(map(slice, reach))][..., None].to(like.device)
    rows = [cosines(size)[:count].to(like.device, dtype) for size, count in zip(grid, reach, strict=True)]

    def cosine(features: "Tensor") -> "Tensor":
        x = features.to(dtype).unflatten(1, tuple(grid))
        for axis, matrix in enumerate(rows, 1):
            x = torch.tensordot(x, matrix, dims=([axis], [1])).movedim(-1, axis)
        x = x * mask
        for axis, matrix in enumerate(rows, 1):
            x = torch.tensordot(x, matrix, dims=([axis], [0])).movedim(-1, axis)
        return x.flatten(1, len(rows)).to(features.dtype)

    return cosine


def cosines(size: int) -> "Tensor":
    """The orthonormal cosine transform (DCT-II) of `size` values: (size, size), float64, a row a frequency."""
    import torch

    position = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * position[:, None] * (position + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


PRESETS = {
    "flux": (
        {"interval": 6, "warmup_steps": 3, "max_order": 2},
        {"interval": 9, "warmup_steps": 3, "max_order": 2},
    ),
    "flux-schnell": ({"interval": 2, "warmup_steps": 3, "max_order": 2},),
}
register("freqca", engine="hidden", presets=PRESETS, paper="arXiv 2510.08669", interval=6, warmup_steps=3)(FreqCa)
