"""Measures of how videos move, alone and beside their uncached counterparts; frames are those of the files, as encoded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cache_dic import UserError
from evaluation.metrics import bootstrap_interval
from evaluation.optical_flow import LEAST_SIDE, flow_difference, warping_error
from evaluation.scoring.measures import Measure, Reading, Score, mean_score, missing_packages
from evaluation.scoring.pairs import psnr_reading, psnr_score
from evaluation.scoring.read import Readout, Shard
from evaluation.video_metrics import flicker
from seerkit.io.tables import counted

FLICKER_FRAMES, FLOW_FRAMES = 3, 2  # the fewest that can flicker, or move
PER_MILLE = 1000.0  # warping errors are small


def _reading(
    name: str,
    one: Callable[..., Mapping[str, float]],
    *,
    num_frames: int,
    side: int = 1,
    paired: bool = False,
    facts: Mapping[str, Any] | None = None,
) -> Reading:
    """What `one` gives of the frames of a video (and of its counterpart), by name.

    num_frames, side: the fewest frames, and pixels of a side, for which there is an answer; UserError names other videos.
    """

    def read(shard: Shard) -> Mapping[str, np.ndarray]:
        rows = []
        videos = zip(shard.frames, shard.pairs, strict=True) if paired else ((frames,) for frames in shard.frames)
        for index, given in zip(shard.indices, videos, strict=True):
            length, height, width = given[0].shape[:3]
            if length < num_frames or min(height, width) < side:
                sides = f", with sides of at least {side} pixels" if side > 1 else ""
                raise UserError(
                    f"{shard.task.samples.names[index]} has {counted(length, 'frame')} of {height} x {width} pixels; {name} "
                    f"needs {num_frames} or more{sides}"
                )
            rows.append(one(*given))
        return {key: np.array([row[key] for row in rows], dtype=np.float64) for key in rows[0]}

    return Reading(name=name, facts=facts or {}, load=lambda _: read, of=("pairs",) if paired else ())


def _flicker(frames: np.ndarray) -> float:
    """`flicker` of one video, three frames at a time, so that long ones need no more memory."""
    return float(np.mean([flicker(frames[None, first : first + 3])[0] for first in range(len(frames) - 2)]))


def _flicker_change(samples: Readout, _: Readout | None) -> Score:
    """Of the means; its interval by resampling pairs."""
    both = np.stack([samples.whole("ours"), samples.whole("theirs")], axis=1)  # (N, 2)
    if both[:, 1].min() == 0:
        return {"value": None, "note": "still", "num": len(both)}

    def change(pairs: np.ndarray) -> float:
        ours, theirs = pairs.mean(axis=0)
        return float(ours / theirs - 1)

    low, high = bootstrap_interval(both, change) if len(both) > 1 else (None, None)
    ours, theirs = both.mean(axis=0).tolist()
    return {"value": change(both), "low": low, "high": high, "num": len(both), "flicker": ours, "of_pairs": theirs}


def _with_opencv() -> dict[str, Any]:
    import cv2

    return {"opencv": cv2.__version__}


def _warping_of(frames: np.ndarray) -> Mapping[str, float]:
    error, share = warping_error(frames)
    return {"error": PER_MILLE * error, "share": share}


def _warping_score(samples: Readout, _: Readout | None) -> Score:
    return {**mean_score(samples.whole("error")), "share": float(samples.whole("share").mean())}


def _opencv_missing() -> list[str]:
    return missing_packages("cv2", extra="models")


_FLOW = "optical flow by OpenCV's DIS, preset MEDIUM"
_ALL: Sequence[Measure] = (
    Measure(
        name="psnr-worst",
        title="worst frame's PSNR dB",
        needs=frozenset({"pairs", "video"}),
        best=1,
        digits=2,
        reading=psnr_reading,
        score=psnr_score("worst"),
        meaning="worst frame's PSNR: the least of a video's frames, which a mean hides and the eye does not; mean over videos",
    ),
    Measure(
        name="flicker",
        title="flicker",
        needs=frozenset({"video"}),
        best=0,
        digits=2,
        reading=lambda: _reading("flicker", lambda frames: {"ours": _flicker(frames)}, num_frames=FLICKER_FRAMES),
        score=lambda samples, _: mean_score(samples.whole("ours")),
        meaning="flicker: mean second difference in time, of 255 grey levels; a moving scene has one of its own, so it is "
        "compared between videos of one prompt and seed alone",
    ),
    Measure(
        name="flicker-change",
        title="flicker change",
        needs=frozenset({"pairs", "video"}),
        best=0,
        reading=lambda: _reading(
            "flicker-change",
            lambda ours, theirs: {"ours": _flicker(ours), "theirs": _flicker(theirs)},
            num_frames=FLICKER_FRAMES,
            paired=True,
        ),
        score=_flicker_change,
        meaning="flicker change: mean flicker over that of the uncached videos, less 1; above 0 the cache made them less "
        "steady, below 0 smoother, also where they lost motion. Its interval is a bootstrap over pairs",
    ),
    Measure(
        name="warping-error",
        title="warping error x1000",
        needs=frozenset({"video"}),
        best=-1,
        missing=_opencv_missing,
        reading=lambda: _reading(
            "warping-error", _warping_of, num_frames=FLOW_FRAMES, side=LEAST_SIDE, facts=_with_opencv()
        ),
        score=_warping_score,
        meaning=f"warping error x1000: squared difference of a frame and the next one brought back by {_FLOW}, values in "
        "[0, 1], mean over channels, the pixels that are found again forward and backward, neighbours and videos (E_warp of "
        "Lai et al. 2018 with another flow). share in the record is that of these pixels; blur and lost motion lower the "
        "error, so it is read beside the uncached videos' own",
    ),
    Measure(
        name="flow-difference",
        title="flow difference px",
        needs=frozenset({"pairs", "video"}),
        best=-1,
        missing=_opencv_missing,
        reading=lambda: _reading(
            "flow-difference",
            lambda ours, theirs: {"pixels": flow_difference(ours, theirs)},
            num_frames=FLOW_FRAMES,
            side=LEAST_SIDE,
            paired=True,
            facts=_with_opencv(),
        ),
        score=lambda samples, _: mean_score(samples.whole("pixels")),
        meaning=f"flow difference: mean distance, in pixels a frame, of a video's motion from the uncached one's; {_FLOW}",
    ),
)
MEASURES = {measure.name: measure for measure in _ALL}
