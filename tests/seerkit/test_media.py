import numpy as np
import pytest
import torch
from PIL import Image

from seerkit import media
from seerkit.media import labelled_grid, read_png_settings, save_mp4, save_png, to_pil, to_uint8


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


class TestMp4:
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
