"""Ladders of degradation: real samples made worse in steps of a known order, so that a measure must follow them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation.validation.domains import Domain

Change = Callable[[np.ndarray, float], np.ndarray]
"""Pixels (N, T, H, W, C) uint8 and a strength -> pixels of the same shape."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """strengths: mildest first. unit: what they are. change: None where other samples are taken or captions changed."""

    name: str
    strengths: Sequence[float]
    unit: str
    change: Change | None = None


def _frames(pixels: np.ndarray) -> Tensor:
    """(N·T, C, H, W) in 0..255."""
    return torch.from_numpy(pixels).flatten(0, 1).permute(0, 3, 1, 2).float()


def _pixels(frames: Tensor, like: np.ndarray) -> np.ndarray:
    whole = frames.round().clamp(0, 255).to(torch.uint8)
    return whole.permute(0, 2, 3, 1).reshape(like.shape).numpy()


def blur(pixels: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of `sigma` pixels, cut at four of them, edges repeated."""
    reach = int(np.ceil(4 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    x = _frames(pixels)
    n, c, h, w = x.shape
    x = F.pad(x.reshape(n * c, 1, h, w), (reach,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return _pixels(x.reshape(n, c, h, w), pixels)


def downscale(pixels: np.ndarray, factor: float) -> np.ndarray:
    """Means over squares of `factor` pixels a side, enlarged again bilinearly."""
    x = _frames(pixels)
    small = F.avg_pool2d(x, int(factor))
    return _pixels(F.interpolate(small, size=x.shape[2:], mode="bilinear"), pixels)


def noise(pixels: np.ndarray, deviation: float) -> np.ndarray:
    """Independent normal noise of `deviation` of the range, the same for a sample whatever the others."""
    draws = [
        np.random.default_rng([0, index]).standard_normal(one.shape, np.float32) for index, one in enumerate(pixels)
    ]
    return (pixels + 255 * deviation * np.stack(draws)).round().clip(0, 255).astype(np.uint8)


def shuffle_frames(pixels: np.ndarray, share: float) -> np.ndarray:
    """That share of a video's frames, at places drawn by chance, change places among themselves."""
    found = pixels.copy()
    for index, one in enumerate(pixels):
        draw = np.random.default_rng([1, index])
        chosen = draw.permutation(len(one))[: round(share * len(one))]  # of a greater share a superset
        found[index, np.roll(chosen, 1)] = one[chosen]
    return found


def repeat_frames(pixels: np.ndarray, times: float) -> np.ndarray:
    """Every frame stays for `times` frames: a lower rate, whose jumps are longer."""
    return pixels[:, np.arange(pixels.shape[1]) // int(times) * int(times)]


PICTURE = (
    Ladder(name="blur", strengths=(0.5, 1.0, 2.0), unit="pixels", change=blur),
    Ladder(name="downscale", strengths=(2, 4), unit="times", change=downscale),
    Ladder(name="noise", strengths=(0.05, 0.1, 0.2), unit="of the range", change=noise),
)
DROPPED = Ladder(name="kinds dropped", strengths=(0.2, 0.5, 0.8), unit="of all kinds")
"""At equal counts: other real samples of the kinds that are left take the places."""
CAPTIONS = Ladder(name="wrong captions", strengths=(0.25, 0.5, 1.0), unit="of all samples")
TIME = (
    Ladder(name="frames shuffled", strengths=(0.25, 0.5, 1.0), unit="of all frames", change=shuffle_frames),
    Ladder(name="frames repeated", strengths=(2, 4, 8), unit="times", change=repeat_frames),
)
LADDERS = {ladder.name: ladder for ladder in (*PICTURE, DROPPED, CAPTIONS, *TIME)}


def drop_kinds(domain: Domain, pixels: np.ndarray, share: float) -> np.ndarray:
    """Real samples (N, ...) of a domain with those of the last kinds replaced by others of the first ones."""
    kinds = np.unique(domain.groups)
    kept = kinds[: max(1, round((1 - share) * len(kinds)))]
    gone = ~np.isin(domain.groups[: len(pixels)], kept)
    found = pixels.copy()
    found[gone] = domain.others(kept.tolist(), int(gone.sum()))
    return found


def shifted(count: int, share: float) -> np.ndarray:
    """(count,) the sample whose caption each has: that share of them, the first, have one another's."""
    found = np.arange(count)
    wrong = round(share * count)
    found[:wrong] = np.roll(found[:wrong], 1)
    return found
