"""Pictures that users bring: what every mode and orientation becomes, and what is refused."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cache_dic import UserError
from seerkit.io.images import read_image
from seerkit.io.media import read_picture


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def written(folder: Path, image: Image.Image, suffix: str = ".png", **options) -> Path:
    path = folder / f"a{suffix}"
    image.save(path, **options)
    return path


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand, for what Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"".join(chunk(*given) for given in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


UPRIGHT = noise(5, 7, 3)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, 3),
}  # the upright picture as a camera stores it, by orientation


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
    def test_every_one_is_turned_upright(self, tmp_path, orientation, suffix):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
        options = {"lossless": True} if suffix == ".webp" else {}
        pixels = read_picture(written(tmp_path, image, suffix, exif=exif, **options))
        assert (pixels == UPRIGHT).all()

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_jpeg(self, tmp_path, orientation):
        large = UPRIGHT.repeat(16, axis=0).repeat(16, axis=1)
        stored = np.ascontiguousarray(STORED[orientation].repeat(16, axis=0).repeat(16, axis=1))
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = written(tmp_path, Image.fromarray(stored), ".jpg", exif=exif, quality=98, subsampling=0)
        assert np.abs(read_picture(path).astype(int) - large).mean() < 4

    @pytest.mark.parametrize(
        "exif", [b"", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0"]
    )
    def test_damaged_exif_says_nothing(self, tmp_path, exif):
        assert (read_picture(written(tmp_path, Image.fromarray(UPRIGHT), exif=exif)) == UPRIGHT).all()

    @pytest.mark.parametrize("orientation", [0, 9, 65535])
    def test_orientations_that_do_not_exist(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        assert (read_picture(written(tmp_path, Image.fromarray(UPRIGHT), exif=exif)) == UPRIGHT).all()

    def test_transparent_16_bit_and_grey_pictures_turn_too(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        for image in (
            Image.fromarray(np.uint16([[0, 257 * 8]])),
            Image.fromarray(np.uint8([[[0, 255], [8, 255]]]), "LA"),
            Image.fromarray(np.uint8([[0, 8]])),
        ):
            assert read_picture(written(tmp_path, image, exif=exif))[..., 0].tolist() == [[0], [8]]


class TestModes:
    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_16_bit_grey_is_rounded(self, tmp_path, suffix):
        """A gradient of all 65536 values: value / 257, as 65535 is white."""
        values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        pixels = read_picture(written(tmp_path, Image.fromarray(values), suffix))
        assert pixels.shape == (256, 256, 3)
        assert (pixels == np.rint(values / 257)[..., None]).all()

    def test_16_bit_of_the_other_byte_order(self, tmp_path):
        values = np.arange(0, 65536, 16, dtype=">u2").reshape(64, 64)
        path = tmp_path / "a.tif"
        tags = [
            (256, 64),
            (257, 64),
            (258, 16),
            (259, 1),
            (262, 1),
            (273, 8),
            (277, 1),
            (278, 64),
            (279, values.nbytes),
        ]
        directory = struct.pack(">H", len(tags)) + b"".join(
            struct.pack(">HHI", tag, 3, 1) + struct.pack(">HH", value, 0) for tag, value in tags
        )
        path.write_bytes(b"MM\0*" + struct.pack(">I", 8 + values.nbytes) + values.tobytes() + directory + bytes(4))
        assert (read_picture(path) == np.rint(values / 257)[..., None]).all()

    def test_16_bit_of_a_pgm(self, tmp_path):
        (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">2H", 0x8000, 257 * 3))
        assert read_picture(tmp_path / "a.pgm")[..., 0].tolist() == [[128, 3]]

    def test_16_bit_grey_with_a_transparent_value(self, tmp_path):
        rows = b"\0" + struct.pack(">2H", 0x1234, 257 * 7)
        (tmp_path / "a.png").write_bytes(png(2, 1, 16, 0, rows, (b"tRNS", struct.pack(">H", 0x1234))))
        assert read_picture(tmp_path / "a.png").tolist() == [[[255] * 3, [7] * 3]]

    def test_16_bit_colours(self, tmp_path):
        """Pillow keeps their upper 8 bits, of a transparent colour as well."""
        rows = b"\0" + struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0xFFFF, 0x80FF, 0x0100)
        (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, rows))
        assert read_picture(tmp_path / "a.png").tolist() == [[[0x12, 0x56, 0x9A], [0xFF, 0x80, 0x01]]]
        clear = (b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
        (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, rows, clear))
        assert read_picture(tmp_path / "a.png").tolist() == [[[0xFF, 0xFF, 0xFF], [0xFF, 0x80, 0x01]]]

    def test_alpha_is_put_on_white(self, tmp_path):
        pixels = noise(6, 5, 4)
        pixels[0, 0] = (10, 20, 30, 0)
        pixels[0, 1] = (10, 20, 30, 255)
        shown = read_picture(written(tmp_path, Image.fromarray(pixels, "RGBA")))
        alpha = pixels[..., 3:] / 255
        assert (shown == np.rint(pixels[..., :3] * alpha + 255 * (1 - alpha))).all()
        assert shown[0, :2].tolist() == [[255] * 3, [10, 20, 30]]

    def test_grey_with_alpha(self, tmp_path):
        pixels = np.uint8([[[100, 255], [100, 0], [0, 128]]])
        assert read_picture(written(tmp_path, Image.fromarray(pixels, "LA"))).tolist() == [
            [[100] * 3, [255] * 3, [127] * 3]
        ]

    def test_palette_with_and_without_transparency(self, tmp_path):
        image = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255] * 3
        assert read_picture(written(tmp_path, image)).tolist() == [[red, green, blue]]
        assert read_picture(written(tmp_path, image, transparency=1)).tolist() == [[red, white, blue]]
        half = read_picture(written(tmp_path, image, transparency=bytes([255, 0, 51]))).tolist()
        assert half == [[red, white, [204, 204, 255]]]
        assert read_picture(written(tmp_path, image, ".gif", transparency=2)).tolist() == [[red, green, white]]

    def test_a_transparent_colour_or_grey(self, tmp_path):
        image = Image.fromarray(np.uint8([[[1, 2, 3], [3, 2, 1]]]))
        assert read_picture(written(tmp_path, image, transparency=(1, 2, 3))).tolist() == [[[255] * 3, [3, 2, 1]]]
        grey = Image.fromarray(np.uint8([[9, 8]]))
        assert read_picture(written(tmp_path, grey, transparency=9)).tolist() == [[[255] * 3, [8] * 3]]

    @pytest.mark.parametrize("suffix", [".tif", ".jpg"])
    def test_cmyk(self, tmp_path, suffix):
        """Ink takes light away, black from all colours: 255 (1 - c)(1 - k)."""
        pixels = np.uint8(
            [[[0, 0, 0, 0], [255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0], [0, 0, 0, 255], [102, 0, 51, 51]]]
        )
        large = pixels.repeat(16, axis=0).repeat(16, axis=1)
        options = {"quality": 100} if suffix == ".jpg" else {}
        shown = read_picture(written(tmp_path, Image.fromarray(large, "CMYK"), suffix, **options))[8, 8::16]
        ink = pixels[0] / 255
        np.testing.assert_allclose(shown, 255 * (1 - ink[:, :3]) * (1 - ink[:, 3:]), atol=2 if suffix == ".jpg" else 1)

    def test_bits_and_grey(self, tmp_path):
        bits = Image.fromarray(np.array([[True, False]]))
        assert read_picture(written(tmp_path, bits)).tolist() == [[[255] * 3, [0] * 3]]
        assert read_picture(written(tmp_path, Image.fromarray(np.uint8([[3, 4]])))).tolist() == [[[3] * 3, [4] * 3]]

    def test_floating_point(self, tmp_path):
        image = Image.fromarray(np.float32([[0, 0.5, 1, 0.1]]))
        assert read_picture(written(tmp_path, image, ".tif"))[0, :, 0].tolist() == [0, 128, 255, 26]

    @pytest.mark.parametrize("value", [255, -0.1, np.nan, np.inf])
    def test_floating_point_of_another_range(self, tmp_path, value):
        image = Image.fromarray(np.float32([[0, value]]))
        with pytest.raises(UserError, match=r"a\.tif cannot be read .*outside \[0, 1\]; save it with 8 or 16 bits"):
            read_picture(written(tmp_path, image, ".tif"))

    def test_integers_of_32_bits(self, tmp_path):
        with pytest.raises(UserError, match=r"a\.tif cannot be read .*32 bits"):
            read_picture(written(tmp_path, Image.fromarray(np.int32([[0, 70000]])), ".tif"))

    @pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
    def test_the_first_frame_of_an_animation(self, tmp_path, suffix):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
        options = {"lossless": True} if suffix == ".webp" else {}
        path = written(tmp_path, frames[0], suffix, save_all=True, append_images=frames[1:], duration=100, **options)
        assert (read_picture(path) == [255, 0, 0]).all()

    def test_pixels_can_be_written_to(self, tmp_path):
        """torch warns about arrays that cannot."""
        exif = Image.Exif()
        for exif[0x0112] in (1, 6):
            assert read_picture(written(tmp_path, Image.fromarray(noise(2, 3, 3)), exif=exif)).flags.writeable


BOMB = png(30_000, 30_000, 8, 0, b"")
WARNED = png(10_000, 9_000, 8, 0, b"")  # Pillow only warns


class TestDamage:
    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".bmp"])
    def test_cut_files(self, tmp_path, suffix):
        path = written(tmp_path, Image.fromarray(noise(40, 40, 3)), suffix)
        whole = path.read_bytes()
        for size in (0, 1, 20, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(
                UserError, match=r"image .*a\.\w+ cannot be read \(.*\); name a PNG or JPEG file, or WebP"
            ):
                read_picture(path)

    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize(
        "content",
        [b"", b"text", bytes(1000), BOMB, WARNED, png(0, 4, 8, 0, b"")],
        ids=["empty", "text", "zeros", "bomb", "large", "no width"],
    )
    def test_what_is_no_picture(self, tmp_path, content):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.png cannot be read .* 89 million pixels"):
            read_picture(tmp_path / "a.png")
        assert read_image(tmp_path / "a.png", (9_000, 10_000, 1)) is None

    @pytest.mark.parametrize("name", [".", "none.png", "x" * 300 + ".png", "a\0.png", "none/none.png"])
    def test_what_is_no_file(self, tmp_path, name):
        with pytest.raises(UserError, match="cannot be read"):
            read_picture(f"{tmp_path}/{name}")
        assert read_image(Path(f"{tmp_path}/{name}"), (4, 4, 3)) is None

    def test_text_bombs(self, tmp_path):
        info = PngInfo()
        info.add_text("x", "a" * 2**23, zip=True)
        path = written(tmp_path, Image.fromarray(noise(4, 4, 3)), pnginfo=info)
        with pytest.raises(UserError, match="cannot be read"):
            read_picture(path)
        assert read_image(path, (4, 4, 3)) is None

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP"])
    def test_changed_bytes_raise_nothing_else(self, tmp_path, kind):
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(noise(12, 12, 3)).save(buffer, kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
        whole, draw = buffer.getvalue(), np.random.default_rng(0)
        for _ in range(60):
            changed = bytearray(whole[: draw.integers(len(whole) // 2, len(whole) + 1)])
            for at in draw.integers(0, len(changed), 3):
                changed[at] = draw.integers(256)
            (tmp_path / "a").write_bytes(changed)
            with contextlib.suppress(UserError):
                assert read_picture(tmp_path / "a").dtype == np.uint8
            read_image(tmp_path / "a", (12, 12, 3))


class TestOwnImages:
    def test_whole_ones_are_told_from_others(self, tmp_path):
        pixels = noise(40, 30, 3)
        path = written(tmp_path, Image.fromarray(pixels))
        assert (read_image(path, (40, 30, 3)) == pixels).all()
        assert read_image(path, (30, 40, 3)) is None
        assert read_image(path, (40, 30, 1)) is None
        whole = path.read_bytes()
        for size in [*range(0, len(whole), 97), *range(len(whole) - 20, len(whole))]:
            path.write_bytes(whole[:size])
            assert read_image(path, (40, 30, 3)) is None, f"{size} of {len(whole)} bytes"
        path.write_bytes(whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2))
        assert read_image(path, (40, 30, 3)) is None

    def test_other_modes_are_not_ours(self, tmp_path):
        for image in (Image.new("RGBA", (3, 2)), Image.new("P", (3, 2)), Image.fromarray(np.zeros((2, 3), np.uint16))):
            assert read_image(written(tmp_path, image), (2, 3, 3)) is None
