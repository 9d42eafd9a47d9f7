"""Motion between frames and warping error, against closed forms; the measures of videos that stand on them."""

import numpy as np
import pytest
import torch

from cache_dic import UserError
from evaluation.optical_flow import LEAST_SIDE, flow_difference, optical_flow, visible, warping_error
from evaluation.scoring.read import Task, score
from evaluation.scoring.samples import open_samples
from evaluation.video_metrics import flicker
from seerkit.devices.distributed import World
from seerkit.io.media import save_mp4

ALONE = World(0, 1, torch.device("cpu"))
SIZES = [(32, 32), (33, 47), (96, 128)]


@pytest.fixture(autouse=True)
def _with_opencv(need):
    need("cv2")


def texture(height: int, width: int) -> np.ndarray:
    """A smooth pattern of many waves, (H, W, 3) uint8 from 20 to 200."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = sum(
        np.sin(x[..., None] * fx + y[..., None] * fy + phase)
        for fx, fy, *phase in zip(*draw.uniform(-0.6, 0.6, (2, 24)), *draw.uniform(0, 6.3, (3, 24)), strict=True)
    )
    return (20 + 180 * (waves - waves.min()) / np.ptp(waves)).astype(np.uint8)


def moving(height: int, width: int, right: int, down: int, frames: int = 5) -> np.ndarray:
    """A window on a larger pattern that moves by whole pixels a frame."""
    margin = frames * max(abs(right), abs(down), 1)
    whole = texture(height + 2 * margin, width + 2 * margin)
    starts = [(margin - down * t, margin - right * t) for t in range(frames)]
    return np.stack([whole[top : top + height, left : left + width] for top, left in starts])


def plain(frames: np.ndarray) -> float:
    """Mean squared difference of neighbours, values in [0, 1]."""
    return float((np.square(np.diff(frames.astype(np.float64), axis=0)) / 255**2).mean())


# ---------------------------------------------------------------------------------------------------------------- flow


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, -2), (2, 1)])
def test_the_flow_of_a_moving_pattern_is_its_motion(size, right, down):
    frames = moving(*size, right, down)
    flow = optical_flow(frames[0], frames[1])
    assert flow.shape == (*size, 2)
    np.testing.assert_allclose(np.median(flow, axis=(0, 1)), [right, down], atol=0.1)


def test_pixels_that_leave_the_frame_or_do_not_come_back_are_not_seen():
    forward = np.zeros((16, 20, 2), np.float32)
    forward[..., 0] = 3
    backward = -forward
    seen = visible(forward, backward)
    assert seen[:, :17].all()
    assert not seen[:, 17:].any(), "gone beyond the right edge"
    backward[5] = [1, 0]  # |3 + 1|² = 16 > 0.01 (9 + 1) + 0.5
    backward[6] = [-2.4, 0]  # 0.36 < 0.01 (9 + 5.76) + 0.5
    backward[7] = [-2.1, 0]  # 0.81 > 0.01 (9 + 4.41) + 0.5 = 0.63
    seen = visible(forward, backward)
    assert not seen[5].any()
    assert seen[6, :17].all()
    assert not seen[7].any()
    assert seen[4, :17].all()


def test_the_flow_does_not_depend_on_threads():
    import cv2

    a, b = np.random.default_rng(0).integers(0, 256, (2, 96, 128, 3), dtype=np.uint8)
    before, found = cv2.getNumThreads(), []
    try:
        for threads in (1, 4):
            cv2.setNumThreads(threads)
            found.append(optical_flow(a, b))
    finally:
        cv2.setNumThreads(before)
    np.testing.assert_array_equal(*found)


def test_frames_that_crash_opencv_are_refused():
    low = np.zeros((LEAST_SIDE - 1, 64, 3), np.uint8)
    with pytest.raises(ValueError, match="sides of 16 or more"):
        optical_flow(low, low)
    least = np.random.default_rng(0).integers(0, 256, (2, LEAST_SIDE, 200, 3), dtype=np.uint8)
    assert optical_flow(*least).shape == (LEAST_SIDE, 200, 2)


# ------------------------------------------------------------------------------------------------------------- warping


@pytest.mark.parametrize("size", SIZES)
class TestWarpingError:
    def test_of_a_still_video_is_zero(self, size):
        frames = np.stack([texture(*size)] * 4)
        assert warping_error(frames) == (0.0, 1.0)

    def test_of_a_moving_pattern_is_far_below_its_difference_and_flicker(self, size):
        frames = moving(*size, 2, 1)
        error, share = warping_error(frames)
        assert error < 1e-3 * plain(frames)
        assert share > 0.8, "all but what leaves the frame"
        assert flicker(frames[None])[0] > 1, "which flicker counts as unsteady"

    def test_of_a_brightening_is_the_square_of_its_step(self, size):
        """No pixel moves, and no flow explains a difference of 10 grey levels: (10 / 255)² but for what the flow gains."""
        frames = np.stack([texture(*size) + np.uint8(10 * t) for t in range(4)])
        error, share = warping_error(frames)
        assert error == pytest.approx((10 / 255) ** 2, rel=0.1)
        assert share > 0.9

    def test_of_independent_noise_is_the_largest(self, size):
        frames = np.random.default_rng(0).integers(0, 256, (4, *size, 3), dtype=np.uint8)
        error, share = warping_error(frames)
        assert 0.05 < error <= plain(frames) == pytest.approx(1 / 6, rel=0.05)
        assert share < 0.8

    def test_grows_with_the_flicker_that_is_added(self, size):
        frames, draw = moving(*size, 1, 0), np.random.default_rng(0)
        steps = draw.integers(-1, 2, (5, 1, 1, 1))
        errors = [warping_error(np.clip(frames + k * steps, 0, 255).astype(np.uint8))[0] for k in (0, 4, 8, 16)]
        assert errors == sorted(errors)
        assert errors[3] > 10 * errors[1]


def test_an_occluded_pixel_does_not_count():
    """A square that jumps away uncovers what was hidden: the error is far below that of all pixels."""
    ground = texture(64, 64)
    frames = np.stack([ground, ground])
    frames[0, 20:30, 10:20] = 255
    frames[1, 20:30, 40:50] = 255
    error, share = warping_error(frames)
    assert share < 1
    assert error < 0.7 * plain(frames)


def test_the_difference_of_two_motions_is_that_of_their_vectors():
    still, ours = (moving(96, 128, right, 0) for right in (0, 3))
    assert flow_difference(still, still) == 0
    assert flow_difference(ours, still) == pytest.approx(3, rel=0.05)
    assert flow_difference(ours, moving(96, 128, 0, 3)) == pytest.approx(3 * 2**0.5, rel=0.05)


def test_one_frame_has_no_motion():
    frame = texture(32, 32)[None]
    with pytest.raises(ValueError, match="one frame"):
        warping_error(frame)
    with pytest.raises(ValueError, match="one frame"):
        flow_difference(frame, frame)


# ------------------------------------------------------------------------------------------------------------ measures

MOTION = ["flicker", "warping-error"]
PAIRED = ["flicker-change", "flow-difference", "psnr-worst"]


def write(folder, videos):
    for index, frames in enumerate(videos):
        save_mp4(folder / f"a-{index}.mp4", frames, 8, quality="lossless")
    return open_samples(folder)


def test_measures_of_a_set_are_means_over_videos(tmp_path):
    ours, theirs = [moving(32, 48, 2, 1), moving(64, 48, 0, 1)], [moving(32, 48, 1, 1), moving(64, 48, 0, 2)]
    task = Task(samples=write(tmp_path / "a", ours), pairs=write(tmp_path / "b", theirs))
    found = score(task, MOTION + PAIRED, tmp_path / "work", ALONE, quiet=True)
    flickers = [[flicker(frames[None])[0] for frames in videos] for videos in (ours, theirs)]
    assert found["flicker"]["value"] == pytest.approx(np.mean(flickers[0]), rel=1e-9)
    warping = np.array([warping_error(frames) for frames in ours])
    assert found["warping-error"]["value"] == pytest.approx(1000 * warping[:, 0].mean(), rel=1e-6)
    assert found["warping-error"]["share"] == pytest.approx(warping[:, 1].mean(), rel=1e-6)
    assert found["flicker-change"]["value"] == pytest.approx(np.mean(flickers[0]) / np.mean(flickers[1]) - 1, rel=1e-9)
    apart = [flow_difference(*pair) for pair in zip(ours, theirs, strict=True)]
    assert found["flow-difference"]["value"] == pytest.approx(np.mean(apart), rel=1e-6)
    for name in MOTION + PAIRED:
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
        assert found[name]["num"] == 2


def test_still_counterparts_have_no_change_of_flicker(tmp_path):
    still = np.stack([texture(32, 32)] * 3)
    task = Task(samples=write(tmp_path / "a", [moving(32, 32, 1, 0, 3)]), pairs=write(tmp_path / "b", [still]))
    found = score(task, ["flicker-change"], tmp_path / "work", ALONE, quiet=True)["flicker-change"]
    assert (found["value"], found["note"]) == (None, "still")


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("flicker", 2, r"a-1\.mp4 has 2 frames of 32 x 48 pixels; flicker needs 3 or more"),
        (
            "warping-error",
            1,
            r"a-1\.mp4 has 1 frame of 32 x 48 pixels; warping-error needs 2 or more, with sides of at least 16",
        ),
    ],
)
def test_videos_too_short_are_named(tmp_path, name, frames, message):
    videos = [moving(32, 48, 1, 0, 4), moving(32, 48, 1, 0, frames)]
    task = Task(samples=write(tmp_path / "a", videos))
    with pytest.raises(UserError, match=message):
        score(task, [name], tmp_path / "work", ALONE, quiet=True)
