"""Distances between videos and their unsteadiness. Videos are uint8, (N, T, H, W, 3)."""

import numpy as np
from numpy.typing import ArrayLike

from evaluation.metrics import Array, psnr

LUMA = np.array([0.299, 0.587, 0.114])  # of R, G and B (ITU-R BT.601)


def frame_psnr(videos: ArrayLike, reference: ArrayLike) -> Array:
    """PSNR in dB of every frame of videos (N, T, H, W, C), (N, T); inf where a frame equals its reference."""
    videos, reference = _checked(videos), _checked(reference)
    if videos.shape != reference.shape:
        raise ValueError(f"videos {videos.shape} and reference {reference.shape} must be of one shape")
    return psnr(videos.reshape(-1, *videos.shape[2:]), reference.reshape(-1, *videos.shape[2:])).reshape(
        videos.shape[:2]
    )


def video_psnr(videos: ArrayLike, reference: ArrayLike) -> dict[str, Array]:
    """PSNR in dB of each video against its reference, each value (N,).

    mean_db: mean over the frames' decibels, as the caching papers report it; inf if any frame is identical.
    min_db: that of the worst frame, which a mean hides and the eye does not.
    """
    values = frame_psnr(videos, reference)
    return {"mean_db": values.mean(axis=1), "min_db": values.min(axis=1)}


def flicker(videos: ArrayLike) -> Array:
    """Mean over pixels and inner frames of |x[t+1] - 2 x[t] + x[t-1]|, x in grey levels of 0..255; (N,).

    The second difference in time: still pixels and steady changes of brightness score 0; one frame that differs by d from
    a constant rest scores 4 d / (T - 2), less at either end. It is blind to a slow drift.
    It follows pixels, not objects: an edge that moves over a pixel counts, so a moving scene has a flicker of its own.
    Compare videos of one scene only.
    """
    videos = _checked(videos)
    if videos.shape[1] < 3:
        raise ValueError(f"flicker needs at least 3 frames, got {videos.shape[1]}")
    grey = videos @ LUMA  # (N, T, H, W)
    return np.abs(np.diff(grey, n=2, axis=1)).mean(axis=(1, 2, 3))


def _checked(videos: ArrayLike) -> np.ndarray:
    videos = np.asarray(videos)
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3 or not videos.size:
        raise ValueError(
            f"videos are {videos.dtype} {videos.shape}; they must be uint8 (N, T, H, W, 3): use seerkit.io.media.video_to_uint8"
        )
    return videos
