import numpy as np
import pytest
import torch
from PIL import Image

from seerkit import media
from seerkit.media import (
    enlarged,
    frame_strip,
    labelled_grid,
    read_png_settings,
    save_gif,
    save_mp4,
    save_png,
    to_pil,
    to_uint8,
    video_to_uint8,
)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class TestPixels:
    def test_range_and_rounding(self):
        """-1 is 0 and 1 is 255; floor(127.5 x + 128) between them, as the reference samplers do, clipped beyond."""
        x = torch.tensor([-9.0, -1.0, -0.5, 0.0, 0.5, 1.0, 9.0])
        assert to_uint8(x.reshape(1, 1, 1, -1)).ravel().tolist() == [0, 0, 64, 128, 191, 255, 255]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_channels_last(self, dtype):
        images = torch.rand(2, 3, 4, 5, dtype=dtype, requires_grad=True)
        pixels = to_uint8(images)
        assert pixels.shape == (2, 4, 5, 3)
        assert pixels.dtype == np.uint8
        assert pixels[1, 2, 3, 0] == int(127.5 * images[1, 0, 2, 3].float() + 128)

    def test_every_pixel_survives_a_round_trip(self):
        values = torch.arange(256.0).reshape(1, 1, 16, 16)
        assert (to_uint8(values / 127.5 - 1).ravel() == np.arange(256)).all()

    def test_video_frames_are_those_of_images(self):
        video = torch.rand(2, 3, 4, 5, 6) * 2 - 1
        frames = video_to_uint8(video)
        assert frames.shape == (2, 4, 5, 6, 3)
        for time in range(4):
            assert (frames[:, time] == to_uint8(video[:, :, time])).all()

    @pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
    def test_pil(self, channels, mode):
        pixels = noise(4, 6, channels)
        image = to_pil(pixels)
        assert (image.mode, image.size) == (mode, (6, 4))
        assert (np.asarray(image).reshape(pixels.shape) == pixels).all()


class TestPng:
    @pytest.mark.parametrize(
        "settings", [None, {}, {"seed": 3, "prompt": "café 猫 \n 'quoted'", "weights": [0.1, None]}]
    )
    def test_round_trip(self, tmp_path, settings):
        pixels = noise(5, 7, 3)
        save_png(tmp_path / "new" / "a.png", pixels, settings)
        with Image.open(tmp_path / "new" / "a.png") as image:
            assert (np.asarray(image) == pixels).all()
        assert read_png_settings(tmp_path / "new" / "a.png") == settings
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]

    def test_overwrites(self, tmp_path):
        for seed in (1, 2):
            save_png(tmp_path / "a.png", noise(4, 4, 1), {"seed": seed})
        assert read_png_settings(tmp_path / "a.png") == {"seed": 2}

    def test_failure_leaves_the_old_file(self, tmp_path):
        save_png(tmp_path / "a.png", noise(4, 4, 1), {"seed": 1})
        with pytest.raises(TypeError):
            save_png(tmp_path / "a.png", noise(4, 4, 1), {"seed": object()})
        assert read_png_settings(tmp_path / "a.png") == {"seed": 1}
        assert len(list(tmp_path.iterdir())) == 1

    def test_any_image(self, tmp_path):
        save_png(tmp_path / "a.png", Image.new("RGB", (3, 2), "red"), {"a": 1})
        assert read_png_settings(tmp_path / "a.png") == {"a": 1}


class TestGrid:
    def test_images_keep_their_pixels_and_places(self):
        rows = [noise(3, 8, 8, 3), noise(3, 8, 8, 3)]
        sheet = np.asarray(labelled_grid(rows, ["first", "second"], ["a", "b", "c"], min_cell=64, gap=2))
        left = sheet.shape[1] - 3 * (64 + 2)
        top = sheet.shape[0] - 2 * (64 + 2)
        assert left > 0
        assert top > 0
        for row in range(2):
            for column in range(3):
                y, x = top + row * 66, left + column * 66
                cell = sheet[y : y + 64, x : x + 64]
                assert (cell == rows[row][column].repeat(8, axis=0).repeat(8, axis=1)).all()
                assert (sheet[y : y + 64, x + 64 : x + 66] == 255).all()

    def test_labels_are_drawn(self):
        black = labelled_grid([noise(2, 64, 64, 1)], ["label"], ["a", "b"])
        blank = labelled_grid([noise(2, 64, 64, 1)], [""], ["", ""])
        assert black.size[0] > blank.size[0]
        assert black.size[1] > blank.size[1]
        left = black.size[0] - 2 * 66
        assert np.asarray(black)[:, :left].min() < 128

    def test_labels_of_several_lines_and_long_ones(self):
        wide = labelled_grid([noise(1, 64, 64, 3)], ["a long label"], ["x" * 100])
        narrow = labelled_grid([noise(1, 64, 64, 3)], ["a long\nlabel"], ["x"])
        assert wide.size[0] > narrow.size[0]
        assert wide.size[1] == narrow.size[1]

    def test_rows_of_different_lengths(self):
        sheet = labelled_grid([noise(1, 64, 64, 1), noise(4, 64, 64, 1)], ["", ""])
        assert sheet.size == (12 + 4 * 66, 2 * 66)

    def test_large_images_are_not_shrunk(self):
        assert labelled_grid([noise(1, 100, 80, 3)], [""], min_cell=64).size == (12 + 82, 102)

    def test_labels_must_fit_rows(self):
        with pytest.raises(ValueError, match="1 rows of images but 2 row labels"):
            labelled_grid([noise(1, 8, 8, 1)], ["a", "b"])

    def test_font_cuts_to_width(self):
        font = media.ImageFont.load_default(size=12)
        assert media._fit("short", font, 200) == "short"
        cut = media._fit("a very long label indeed", font, 60)
        assert cut.endswith("…")
        assert font.getlength(cut) <= 60


class TestStrip:
    def test_evenly_spaced_frames_with_first_and_last(self):
        videos = [noise(16, 64, 64, 3), noise(16, 64, 64, 3)[::-1]]
        sheet = frame_strip(videos, ["a", "b"], num_frames=6)
        shown = [0, 3, 6, 9, 12, 15]
        expected = labelled_grid([video[shown] for video in videos], ["a", "b"], [str(index) for index in shown])
        assert (np.asarray(sheet) == np.asarray(expected)).all()

    def test_short_video_is_shown_whole(self):
        assert frame_strip([noise(3, 64, 64, 3)], [""]).size[0] == 12 + 3 * 66

    def test_refuses_videos_of_different_lengths(self):
        with pytest.raises(ValueError, match=r"\[3, 4\] frames"):
            frame_strip([noise(3, 8, 8, 3), noise(4, 8, 8, 3)], ["a", "b"])


class TestEnlarged:
    @pytest.mark.parametrize(
        ("height", "width", "factor"), [(32, 32, 4), (32, 80, 4), (40, 32, 4), (50, 50, 2), (65, 65, 1), (480, 640, 1)]
    )
    def test_pixels_are_repeated_a_whole_number_of_times(self, height, width, factor):
        frames = noise(2, height, width, 3)
        large = enlarged(frames)
        assert large.shape == (2, height * factor, width * factor, 3)
        for row in range(factor):
            for column in range(factor):
                assert (large[:, row::factor, column::factor] == frames).all()

    def test_side_asked_for(self):
        assert enlarged(noise(1, 8, 16, 3), min_side=32).shape == (1, 32, 64, 3)


class TestGif:
    def frames(self) -> np.ndarray:
        """A square of 4 pixels that moves over a plain background."""
        frames = np.full((6, 16, 24, 3), (10, 20, 70), np.uint8)
        for time in range(6):
            frames[time, 6:10, 2 + 3 * time : 6 + 3 * time] = (255, 135, 20)
        return frames

    @pytest.mark.parametrize(("fps", "duration_ms"), [(8, 120), (10, 100), (50, 20)])
    def test_frames_come_back(self, tmp_path, fps, duration_ms):
        frames = self.frames()
        save_gif(tmp_path / "new" / "a.gif", frames, fps)
        with Image.open(tmp_path / "new" / "a.gif") as gif:
            assert (gif.n_frames, gif.info["loop"]) == (6, 0)
            for time in range(6):
                gif.seek(time)
                assert gif.info["duration"] == duration_ms
                assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[time]).max() <= 4
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.gif"]

    def test_equal_frames_are_kept(self, tmp_path):
        """A pause lasts as long as in the video, also where the writer joins equal frames into a longer one."""
        save_gif(tmp_path / "a.gif", self.frames()[[0, 0, 0, 1]], 10)
        with Image.open(tmp_path / "a.gif") as gif:
            durations = []
            for time in range(gif.n_frames):
                gif.seek(time)
                durations.append(gif.info["duration"])
        assert sum(durations) == 400

    def test_refuses_a_rate_that_viewers_do_not_keep(self, tmp_path):
        with pytest.raises(ValueError, match="fps 60"):
            save_gif(tmp_path / "a.gif", self.frames(), 60)


class TestMp4:
    def test_sixteen_small_frames_keep_number_rate_and_motion(self, tmp_path, need):
        need("imageio_ffmpeg")
        imageio = need("imageio.v3")
        frames = np.zeros((16, 32, 32, 3), np.uint8)
        for time in range(16):
            frames[time, 8:24, time : 16 + time] = 255
        save_mp4(tmp_path / "a.mp4", frames, fps=8)
        back = imageio.imread(tmp_path / "a.mp4")
        assert back.shape == frames.shape
        meta = imageio.immeta(tmp_path / "a.mp4")
        assert (meta["fps"], meta["duration"]) == (8, 2)
        columns = np.arange(32)
        where = [(frame.mean(axis=(0, 2)) * columns).sum() / frame.mean(axis=(0, 2)).sum() for frame in back]
        np.testing.assert_allclose(np.diff(where), 1, atol=0.3)

    @pytest.mark.parametrize("size", [(32, 48), (33, 47)])
    def test_frames_come_back(self, tmp_path, size, need):
        """Even sides are exact, odd ones grow by a pixel; colours within what H.264 loses on smooth pictures."""
        need("imageio_ffmpeg")
        imageio = need("imageio.v3")
        height, width = size
        ramp = np.linspace(0, 255, width, dtype=np.uint8)
        frames = np.stack([np.broadcast_to(ramp[None, :, None], (height, width, 3)) // (i + 1) for i in range(5)])
        save_mp4(tmp_path / "new" / "a.mp4", frames.astype(np.uint8), fps=8)
        back = imageio.imread(tmp_path / "new" / "a.mp4")
        assert back.shape == (5, height + height % 2, width + width % 2, 3)
        assert np.abs(back[:, :height, :width].astype(int) - frames).mean() < 6
        assert imageio.immeta(tmp_path / "new" / "a.mp4")["fps"] == 8
        assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.mp4"]
