import math

import numpy as np
import pytest

from evaluation.metrics import psnr
from evaluation.video_metrics import flicker, frame_psnr, video_psnr


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def grey_levels(*levels: int) -> np.ndarray:
    """One video of plain frames, (1, T, 4, 4, 3)."""
    return np.broadcast_to(np.array(levels, np.uint8).reshape(1, -1, 1, 1, 1), (1, len(levels), 4, 4, 3))


class TestPsnr:
    def test_is_that_of_the_frames(self):
        a, b = noise(2, 3, 8, 8, 3), noise(2, 3, 8, 8, 3)[::-1]
        values = frame_psnr(a, b)
        assert values.shape == (2, 3)
        for video in range(2):
            np.testing.assert_array_equal(values[video], psnr(a[video], b[video]))

    def test_minimum_is_the_one_bad_frame(self):
        reference = grey_levels(100, 100, 100, 100)
        values = video_psnr(grey_levels(101, 101, 151, 101), reference)
        good, bad = 20 * math.log10(255), 20 * math.log10(255 / 51)
        np.testing.assert_allclose(values["min_db"], [bad])
        np.testing.assert_allclose(values["mean_db"], [(3 * good + bad) / 4])

    def test_of_identical_videos_is_infinite(self):
        values = video_psnr(noise(2, 3, 4, 4, 3), noise(2, 3, 4, 4, 3))
        assert all(np.isposinf(value).all() for value in values.values())

    @pytest.mark.parametrize(
        ("videos", "reference", "message"),
        [
            (noise(1, 2, 4, 4, 3), noise(1, 3, 4, 4, 3), "of one shape"),
            (noise(2, 4, 4, 3), noise(2, 4, 4, 3), r"\(N, T, H, W, 3\)"),
            (noise(1, 2, 4, 4, 3) / 255, noise(1, 2, 4, 4, 3), "float64"),
        ],
    )
    def test_refuses(self, videos, reference, message):
        with pytest.raises(ValueError, match=message):
            frame_psnr(videos, reference)


class TestFlicker:
    @pytest.mark.parametrize("levels", [(7, 7, 7, 7), (0, 10, 20, 30, 40), (200, 150, 100)])
    def test_steady_change_scores_nothing(self, levels):
        np.testing.assert_allclose(flicker(grey_levels(*levels)), [0], atol=1e-10)

    @pytest.mark.parametrize(("frame", "weight"), [(0, 1), (1, 3), (2, 4), (3, 3), (4, 1)])
    def test_one_odd_frame(self, frame, weight):
        """The weights of the second difference, (1, 2, 1), as far as inner frames feel them, over three inner frames."""
        levels = [100] * 5
        levels[frame] += 30
        np.testing.assert_allclose(flicker(grey_levels(*levels)), [30 * weight / 3])

    def test_does_not_wrap_around_as_uint8_does(self):
        np.testing.assert_allclose(flicker(grey_levels(0, 255, 0, 255)), [510])

    def test_each_video_has_its_own(self):
        videos = np.concatenate([grey_levels(5, 5, 5), grey_levels(5, 8, 5), noise(1, 3, 4, 4, 3)])
        together = flicker(videos)
        np.testing.assert_allclose(together[:2], [0, 6], atol=1e-10)
        np.testing.assert_allclose(together, [flicker(videos[i : i + 1])[0] for i in range(3)])

    def test_refuses_too_few_frames(self):
        with pytest.raises(ValueError, match="at least 3 frames, got 2"):
            flicker(noise(1, 2, 4, 4, 3))
