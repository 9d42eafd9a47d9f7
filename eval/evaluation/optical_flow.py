"""What moves from frame to frame, by OpenCV's DIS optical flow (arXiv 1603.03590), which needs no weights, and what is left.

The flow is that of the preset MEDIUM as OpenCV has it, on grey values. Frames are (H, W, 3) uint8 in RGB with sides of
LEAST_SIDE or more: some smaller ones crash OpenCV's implementation, and with it the process.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

LEAST_SIDE = 16  # pixels
RELATIVE, ABSOLUTE = 0.01, 0.5  # of the check forward and backward: share of the squared lengths, and pixels squared


def optical_flow(frame: np.ndarray, following: np.ndarray) -> np.ndarray:
    """Where the pixels of a frame have gone in the following one: (H, W, 2) in pixels, to the right and down."""
    import cv2

    if frame.shape != following.shape or min(frame.shape[:2]) < LEAST_SIDE:
        raise ValueError(
            f"frames {frame.shape} and {following.shape} must be of one shape, with sides of {LEAST_SIDE} or more"
        )
    grey = [cv2.cvtColor(np.ascontiguousarray(one), cv2.COLOR_RGB2GRAY) for one in (frame, following)]
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(*grey, None)


def _moved(flow: np.ndarray) -> np.ndarray:
    """Places (H, W, 2) that a flow leads to, x before y."""
    height, width = flow.shape[:2]
    return flow + np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1).astype(np.float32)


def _sampled(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values (H, W, C) at places (H, W, 2), bilinear; beyond the frame those of its edge."""
    import cv2

    return cv2.remap(values.astype(np.float32), places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def visible(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Which pixels (H, W) of a frame are still to be seen in the following one, by the flows to it and back.

    They stay within the frame, and the way back from where they went ends near where they were: |f + b|² < 0.01 (|f|² + |b|²)
    + 0.5 (Sundaram, Brox and Keutzer, ECCV 2010, with these constants also in Ruder et al., arXiv 1604.08610). Edges of
    moving things, which the latter leave out too, are kept.
    """
    places = _moved(forward)
    height, width = forward.shape[:2]
    within = (places >= 0).all(axis=-1) & (places[..., 0] <= width - 1) & (places[..., 1] <= height - 1)
    back = _sampled(backward, places)
    apart = np.square(forward + back).sum(axis=-1)
    lengths = np.square(forward).sum(axis=-1) + np.square(back).sum(axis=-1)
    return within & (apart < RELATIVE * lengths + ABSOLUTE)


def warping_error(frames: Sequence[np.ndarray]) -> tuple[float, float]:
    """Warping error of a video of two frames or more, and the share of its pixels that it was taken of.

    The squared difference of each frame and of the following one brought back along the flow, values in [0, 1], mean over
    channels and the `visible` pixels, then over pairs of neighbours: E_warp of Lai et al., ECCV 2018 (arXiv 1808.00449), but
    for their flow, which is FlowNet2's, and the norm over channels, which is a sum. Of a pair without a visible pixel the plain
    difference counts.

    0 for a still video, near 0 for whatever moves as a whole. It sees only what the flow follows: where that fails, pixels are
    left out, so a low share makes the error a mild one; blur lowers it, and so does losing motion.
    """
    errors, shares = [], []
    for frame, following in pairwise(frames):
        forward, backward = optical_flow(frame, following), optical_flow(following, frame)
        seen = visible(forward, backward)
        there = _sampled(following, _moved(forward)) if seen.any() else following.astype(np.float32)
        squares = np.square((frame.astype(np.float64) - there) / 255).mean(axis=-1)
        errors.append(squares[seen].mean() if seen.any() else squares.mean())
        shares.append(seen.mean())
    if not errors:
        raise ValueError("a video of one frame has no warping error")
    return float(np.mean(errors)), float(np.mean(shares))


def flow_difference(frames: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """How far apart the motions of two videos are: mean length of the difference of their flows, in pixels a frame.

    Where nothing has a texture the flow is a guess, and both guesses may agree.
    """
    found = [
        np.linalg.norm(optical_flow(*ours) - optical_flow(*theirs), axis=-1).mean(dtype=np.float64)
        for ours, theirs in zip(pairwise(frames), pairwise(reference), strict=True)
    ]
    if not found:
        raise ValueError("videos of one frame have no motion")
    return float(np.mean(found))
