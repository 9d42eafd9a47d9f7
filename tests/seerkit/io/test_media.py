import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cache_dic import UserError
from seerkit.io import media
from seerkit.io.media import (
    enlarged,
    finite_rows,
    frame_strip,
    is_whole_gif,
    is_whole_video,
    labelled_grid,
    read_png_settings,
    save_gif,
    save_mp4,
    save_png,
    to_pil,
    to_uint8,
    video_facts,
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

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_what_is_not_finite_is_no_pixel(self, value, dtype):
        images = torch.zeros(3, 3, 4, 5, dtype=dtype)
        images[1, 2, 3, 4] = value
        assert finite_rows(images) == [True, False, True]
        assert finite_rows(images[:, None]) == [True, False, True]
        with pytest.raises(ValueError, match=r"images \[1\] of a batch of 3 have NaN or infinity"):
            to_uint8(images)
        with pytest.raises(ValueError, match="NaN or infinity"):
            video_to_uint8(images.transpose(0, 1)[None])

    def test_no_images_are_finite(self):
        assert finite_rows(torch.zeros(0, 3, 4, 5)) == []

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

    @pytest.mark.parametrize("prompt", ["\ud800", "a\udc80\\", "\x00", "\x00\ud83d", "\\\udfff\n"], ids=ascii)
    def test_settings_of_any_text(self, tmp_path, prompt):
        save_png(tmp_path / "a.png", noise(4, 4, 1), {prompt: prompt})
        assert read_png_settings(tmp_path / "a.png") == {prompt: prompt}

    def test_settings_are_json(self, tmp_path):
        with pytest.raises(ValueError, match="not JSON compliant"):
            save_png(tmp_path / "a.png", noise(4, 4, 1), {"weight": float("nan")})
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("text", ["{", "[" * 100_000, "[1]", "9" * 10_000])
    def test_text_that_is_no_settings(self, tmp_path, text):
        info = PngInfo()
        info.add_text("settings", text)
        Image.new("L", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
        assert read_png_settings(tmp_path / "a.png") is None

    def test_damaged_files_have_no_settings(self, tmp_path):
        save_png(tmp_path / "a.png", noise(4, 4, 1), {"a": 1})
        whole = (tmp_path / "a.png").read_bytes()
        for part in (b"", b"text", whole[:-1], whole[: len(whole) // 2]):
            (tmp_path / "a.png").write_bytes(part)
            assert read_png_settings(tmp_path / "a.png") is None
        assert read_png_settings(tmp_path / "none.png") is None

    def test_text_bombs(self, tmp_path):
        info = PngInfo()
        info.add_text("settings", '"' + "a" * 2**23 + '"', zip=True)
        Image.new("L", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
        assert read_png_settings(tmp_path / "a.png") is None

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

    @pytest.mark.slow
    def test_large_sheets_are_bounded(self):
        """16 columns of 1024² in 9 rows would be 151 million pixels; what has room is not shrunk."""
        rows = [np.broadcast_to(np.uint8(90), (16, 1024, 1024, 3))] * 9
        sheet = labelled_grid(rows, [""] * 9)
        assert 0.9 * 2**24 < sheet.size[0] * sheet.size[1] < 1.1 * 2**24
        assert np.asarray(sheet)[100, 100].tolist() == [90, 90, 90]
        assert labelled_grid([rows[0][:4]], [""]).size == (12 + 4 * 1026, 1026)

    def test_shrunk_cells_keep_their_aspect(self):
        sheet = labelled_grid([np.broadcast_to(np.uint8(9), (2, 100, 200, 3))], [""], max_pixels=10000, gap=0)
        assert sheet.size == (12 + 2 * 100, 50)

    def test_enlarging_yields_to_the_bound(self):
        """By whole factors still, and never below the images themselves while these have room."""
        rows = [noise(10, 8, 8, 3)] * 10
        assert labelled_grid(rows, [""] * 10, max_pixels=100 * 20 * 20, gap=0).size == (12 + 160, 160)
        assert labelled_grid(rows, [""] * 10, max_pixels=100 * 8 * 8, gap=0).size == (12 + 80, 80)

    def test_labels_of_any_length_stay_in_bounds(self):
        plain = labelled_grid([noise(1, 64, 64, 3)] * 2, ["x", ""], ["x"])
        for label in ("x" * 100_000, "x\n" * 10_000, "e\u0301\u0302" * 5000):
            sheet = labelled_grid([noise(1, 64, 64, 3)] * 2, [label, ""], [label])
            assert sheet.height == plain.height
            assert sheet.width <= media.LABEL_WIDTH + 12 + 66

    def test_a_heading_of_several_lines_is_one(self):
        """Its own height is that of one line; more would lie on the images."""
        one, several = (labelled_grid([noise(1, 64, 64, 3)], [""], [label]) for label in ("a b", "a\nb"))
        assert one.tobytes() == several.tobytes()


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

    def test_whole_ones_are_told_from_cut_ones(self, tmp_path):
        frames = self.frames()
        for chosen in ([0, 1, 2, 3, 4, 5], [0, 0, 0, 1], [2, 2, 2], [0]):  # equal frames are joined
            save_gif(tmp_path / "a.gif", frames[chosen], 8)
            assert is_whole_gif(tmp_path / "a.gif", len(chosen))
        save_gif(tmp_path / "a.gif", frames, 8)
        assert not is_whole_gif(tmp_path / "a.gif", 5)
        assert not is_whole_gif(tmp_path / "a.gif", 7)
        whole = (tmp_path / "a.gif").read_bytes()
        for cut in range(len(whole)):
            (tmp_path / "a.gif").write_bytes(whole[:cut])
            assert not is_whole_gif(tmp_path / "a.gif", 6), f"{cut} of {len(whole)} bytes"

    def test_garbage_is_not_whole(self, tmp_path):
        save_png(tmp_path / "a.gif", noise(4, 4, 3))
        (tmp_path / "b.gif").write_bytes(b"GIF89a" + bytes(1000) + b";")
        (tmp_path / "c.gif").mkdir()
        for name in "abcd":
            assert not is_whole_gif(tmp_path / f"{name}.gif", 1)

    def test_what_cannot_be_read_back_is_not_kept(self, tmp_path, monkeypatch):
        whole = Image.Image.save
        monkeypatch.setattr(
            Image.Image, "save", lambda self, path, **options: (whole(self, path, **options), os.truncate(path, 300))
        )
        with pytest.raises(OSError, match=r"a\.gif was written without an error and cannot be read back"):
            save_gif(tmp_path / "a.gif", self.frames(), 8)
        assert not list(tmp_path.iterdir())

    def test_refuses_a_rate_that_viewers_do_not_keep(self, tmp_path):
        with pytest.raises(ValueError, match="fps 60"):
            save_gif(tmp_path / "a.gif", self.frames(), 60)


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch, need):
    """`ffmpeg(code)` puts a Python program in ffmpeg's place; it sees the true one as REAL and what it was given as ARGS."""
    real = need("imageio_ffmpeg").get_ffmpeg_exe()

    def replace(code: str) -> Path:
        program = tmp_path / "tools" / "ffmpeg"
        program.parent.mkdir(exist_ok=True)
        start = f"#!{sys.executable} -IS\nimport os, sys\nREAL, ARGS = {real!r}, sys.argv[1:]\n"
        program.write_text(start + code, encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
        return program

    return replace


WRITE_7_BYTES = """
place = ARGS[-1].removeprefix("file:")
(sys.stdout.buffer if place == "-" else open(place, "wb")).write(b"7 bytes")
"""


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

    def test_quality_is_that_of_imageio(self, tmp_path, need):
        assert [video_facts(quality)["crf"] for quality in (1, 5, 5.0, 8, 10)] == [45, 25, 25, 10, 0]
        assert video_facts(8) == {"codec": "libx264", "crf": 10, "pixel_format": "yuv420p"}
        need("imageio_ffmpeg")
        sizes = []
        for quality, crf in ((1, b"crf=45.0"), (5, b"crf=25.0"), (8, b"crf=10.0"), ("lossless", b"rc=cqp")):
            save_mp4(tmp_path / "a.mp4", noise(3, 32, 32, 3), 8, quality=quality)
            written = (tmp_path / "a.mp4").read_bytes()  # x264 writes its settings into the video
            assert crf in written
            sizes.append(len(written))
        assert sizes == sorted(sizes)
        save_mp4(tmp_path / "b.mp4", noise(3, 32, 32, 3), 8)
        save_mp4(tmp_path / "a.mp4", noise(3, 32, 32, 3), 8, quality=5)
        assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()

    @pytest.mark.parametrize("quality", [0, 0.9, 11, -1, float("nan"), float("inf"), "best", "5"])
    def test_impossible_quality(self, tmp_path, quality):
        with pytest.raises(UserError, match='must be a number from 1 to 10, or "lossless"'):
            save_mp4(tmp_path / "a.mp4", noise(3, 32, 32, 3), 8, quality=quality)

    @pytest.mark.parametrize("size", [(32, 48), (33, 47), (2, 1)])
    def test_lossless_frames_come_back_to_the_bit(self, tmp_path, size, need):
        need("imageio_ffmpeg")
        frames = noise(5, *size, 3)
        save_mp4(tmp_path / "a.mp4", frames, 8, quality="lossless")
        assert (need("imageio.v3").imread(tmp_path / "a.mp4") == frames).all()
        video = need("cv2").VideoCapture(str(tmp_path / "a.mp4"))
        for frame in frames:
            assert (video.read()[1][..., ::-1] == frame).all()
        assert not video.read()[0]

    def test_bytes_do_not_depend_on_cores_or_instructions(self, tmp_path, ffmpeg, need):
        frames = np.clip(noise(12, 96, 96, 3) // 4 + np.arange(96, dtype=np.uint8)[:, None], 0, 255).astype(np.uint8)
        save_mp4(tmp_path / "a.mp4", frames, 8)
        expected = (tmp_path / "a.mp4").read_bytes()
        cores = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {min(cores)})
            save_mp4(tmp_path / "a.mp4", frames, 8)
        finally:
            os.sched_setaffinity(0, cores)
        assert (tmp_path / "a.mp4").read_bytes() == expected
        ffmpeg('os.execv(REAL, [REAL, "-cpuflags", "0", *ARGS])')
        save_mp4(tmp_path / "a.mp4", frames, 8)
        assert (tmp_path / "a.mp4").read_bytes() == expected

    @pytest.mark.parametrize("name", ["a:b.mp4", "-y.mp4", "100%d 'x' \"y\".mp4", "猫\n.mp4", "file:a|b.mp4"])
    def test_any_name(self, tmp_path, monkeypatch, name, need):
        need("imageio_ffmpeg")
        monkeypatch.chdir(tmp_path)
        save_mp4(name, noise(2, 8, 8, 3), 8)
        assert is_whole_video(name, 2, 8, 8)

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (WRITE_7_BYTES + "sys.exit(3)", r"ffmpeg could not write .*a\.mp4 \(exit status 3: .*IMAGEIO_FFMPEG_EXE"),
            (WRITE_7_BYTES, r"ffmpeg wrote .*a\.mp4 without an error, and it is not whole .*IMAGEIO_FFMPEG_EXE"),
            (WRITE_7_BYTES + "os.kill(os.getpid(), 9)", r"exit status -9"),
            ("sys.stderr.write('Unknown encoder libx264\\n'); sys.exit(1)", "status 1: Unknown encoder libx264"),
            ("sys.exit(0)", "not whole"),
            ("os.execv(REAL, [REAL, *ARGS[:-3], '-frames:v', '2', *ARGS[-3:]])", "not whole"),
            ("os.execv(REAL, [REAL, *ARGS[:-3], '-s', '16x16', *ARGS[-3:]])", "not whole"),
        ],
        ids=["dies", "writes rubbish", "killed", "no encoder", "does nothing", "frames are missing", "other size"],
    )
    def test_a_failing_ffmpeg_is_an_error(self, tmp_path, ffmpeg, code, message):
        ffmpeg(code)
        with pytest.raises(UserError, match=message):
            save_mp4(tmp_path / "new" / "a.mp4", noise(40, 64, 64, 3), 8)
        assert not list((tmp_path / "new").iterdir())

    def test_failure_leaves_the_old_file(self, tmp_path, ffmpeg):
        save_mp4(tmp_path / "a.mp4", noise(3, 8, 8, 3), 8)
        before = (tmp_path / "a.mp4").read_bytes()
        ffmpeg("sys.exit(1)")
        with pytest.raises(UserError):
            save_mp4(tmp_path / "a.mp4", noise(3, 8, 8, 3), 8)
        assert (tmp_path / "a.mp4").read_bytes() == before

    def test_a_full_disk_is_named(self, tmp_path, ffmpeg):
        ffmpeg("os.execv(REAL, [REAL, *ARGS[:-1], 'file:/dev/full'])")
        with pytest.raises(OSError, match=r"No space left on device.*a\.mp4") as caught:
            save_mp4(tmp_path / "new" / "a.mp4", noise(40, 64, 64, 3), 8)
        assert caught.value.errno == errno.ENOSPC
        assert not list((tmp_path / "new").iterdir())

    def test_no_ffmpeg(self, tmp_path, monkeypatch, need):
        remedy = r"videos need ffmpeg, which cannot be started \(.*\); pip install imageio-ffmpeg, or name"
        imageio_ffmpeg = need("imageio_ffmpeg")
        (tmp_path / "text").write_text("no program")
        for program in (tmp_path / "missing", tmp_path / "text", tmp_path):
            monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
            with pytest.raises(UserError, match=remedy):
                save_mp4(tmp_path / "a.mp4", noise(2, 8, 8, 3), 8)

        def find():
            raise RuntimeError("No ffmpeg exe could be found.")

        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", find)
        with pytest.raises(UserError, match=remedy):
            save_mp4(tmp_path / "a.mp4", noise(2, 8, 8, 3), 8)
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
        with pytest.raises(UserError, match=remedy):
            save_mp4(tmp_path / "a.mp4", noise(2, 8, 8, 3), 8)

    @pytest.mark.parametrize("quality", [5, "lossless"])
    def test_whole_ones_are_told_from_cut_ones(self, tmp_path, quality, need):
        need("imageio_ffmpeg")
        path = tmp_path / "a.mp4"
        save_mp4(path, noise(6, 33, 47, 3), 8, quality=quality)
        assert is_whole_video(path, 6, 33, 47)
        for wrong in ((5, 33, 47), (7, 33, 47), (6, 47, 33), (6, 32, 47), (6, 33, 46)):
            assert not is_whole_video(path, *wrong)
        whole = path.read_bytes()
        for cut in (0, 7, 4096, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:cut])
            assert not is_whole_video(path, 6, 33, 47), f"{cut} of {len(whole)} bytes"
        path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))  # what a crash can leave
        assert not is_whole_video(path, 6, 33, 47)
        middle = len(whole) // 2
        path.write_bytes(whole[: middle - 1000] + bytes(1000) + whole[middle:])
        assert not is_whole_video(path, 6, 33, 47)

    def test_garbage_is_not_whole(self, tmp_path, need):
        need("imageio_ffmpeg")
        save_png(tmp_path / "a.mp4", noise(4, 4, 3))
        (tmp_path / "b.mp4").write_bytes(np.random.default_rng(0).bytes(10_000))
        (tmp_path / "c.mp4").mkdir()
        for name in "abcd":
            assert not is_whole_video(tmp_path / f"{name}.mp4", 6, 8, 8)
