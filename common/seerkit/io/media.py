"""Images and videos on disk: PNG with its settings inside, labelled grids, GIF, MP4, and pictures that users bring.

Pixels are uint8, H × W × 3 or 1. Videos are decoded before they get their names, and what is read is decoded to its end.
"""

import contextlib
import errno
import json
import math
import os
import struct
import subprocess
import warnings
import zlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from cache_dic import UserError
from seerkit.io.files import written_whole
from seerkit.io.labels import Font, cut_to_width, draw_text, drawable

LABEL_WIDTH = 480  # pixels of a row's label in a sheet, at most
# Number of CPUs that encode a video. A fixed one: by default H.264 differs with the number of CPUs of the machine.
ENCODER_THREADS = 4

# What Pillow raises for damaged files, and for those that declare more pixels than Image.MAX_IMAGE_PIXELS.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    LookupError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


# -------------------------------------------------------------------------------------------------------------- pixels


def finite_rows(images: Tensor) -> list[bool]:
    """Which samples of a batch (B, ...) have neither NaN nor infinity."""
    return images.isfinite().flatten(1).all(dim=1).tolist()


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8, clipped; 127.5 x + 128 as the reference samplers round.

    ValueError for NaN and infinity, which would become black and white: callers look with `finite_rows` and name the sample.
    """
    finite = finite_rows(images)
    if not all(finite):
        rows = [row for row, is_finite in enumerate(finite) if not is_finite]
        raise ValueError(f"images {rows} of a batch of {len(finite)} have NaN or infinity, which no pixel can show")
    pixels = torch.clamp(127.5 * images.detach().float() + 128.0, 0, 255)
    return pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


def video_to_uint8(videos: Tensor) -> np.ndarray:
    """Videos (B, 3, T, H, W) in [-1, 1] -> (B, T, H, W, 3) uint8, rounded as `to_uint8` does."""
    frames = to_uint8(videos.transpose(1, 2).flatten(0, 1))  # (B·T, H, W, 3)
    return frames.reshape(len(videos), -1, *frames.shape[1:])


def to_pil(pixels: np.ndarray) -> Image.Image:
    """(H, W, 1 or 3) uint8 as a PIL image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


# ---------------------------------------------------------------------------------------------------------------- read

_PNG_END = b"IEND\xaeB`\x82"  # the last chunk and its checksum


@contextlib.contextmanager
def decoded(path: str | Path) -> Iterator[Image.Image]:
    """A picture file, decoded to its end; one of `DAMAGED` if it is not whole or too large, whatever it holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.verify()  # the checksums of a PNG; decoding alone passes over a missing tail
            if image.format == "PNG" and _PNG_END not in Path(path).read_bytes():
                raise OSError("its last chunk is cut")
        with Image.open(path) as image:
            image.load()
            yield image


def read_picture(path: str | Path) -> np.ndarray:
    """A picture that a user brings, (H, W, 3) uint8: upright, on white where it is transparent, an animation's first frame.

    16 bit become 8 by rounding where Pillow reads them (grey; it cuts off the low 8 of colours), floating-point values are
    in [0, 1]. CMYK becomes RGB by Pillow's formula, and colour profiles are left aside, as the official code of the models
    does. UserError names a file that cannot be read, is not whole, or has more than Image.MAX_IMAGE_PIXELS (89 million).
    """
    try:
        with decoded(path) as image:
            pixels = _rgb(image)
            turn = _UPRIGHT.get(_orientation(image) or 1)
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"image {path} cannot be read ({reason}); name a PNG or JPEG file, or WebP, TIFF, GIF or BMP, that is whole and "
            f"has at most {(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
        ) from error
    return pixels if turn is None else np.array(Image.fromarray(pixels).transpose(turn))


_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # by EXIF's orientation; 1 is upright


def _orientation(image: Image.Image) -> int | None:
    """EXIF's orientation of a decoded image; damaged EXIF says nothing, as in every viewer."""
    try:
        return image.getexif().get(0x0112)
    except DAMAGED:
        return None


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels of a decoded image of any mode as (H, W, 3) uint8, as they lie in the file."""
    clear = image.info.get("transparency")  # the value or colour that is transparent, or alpha by palette entry
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.uint32)
        grey = (values + 128) // 257
        return _grey(np.where(values == clear, 255, grey) if isinstance(clear, int) else grey)
    if image.mode == "I":
        raise ValueError("it has integers of 32 bits, for which no value is white; save it with 8 or 16 bits")
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is not either
            raise ValueError("it has floating-point values outside [0, 1]; save it with 8 or 16 bits")
        return _grey(np.rint(255 * values))
    if image.mode == "RGB" and isinstance(clear, tuple) and max(clear) > 255:
        image.info["transparency"] = tuple(value >> 8 for value in clear)  # of 16 bits, as the pixels were
    if image.mode in ("La", "RGBa"):  # multiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "RGBA") or clear is not None:
        pixels = np.asarray(image.convert("RGBA")).astype(np.uint16)
        colour, alpha = pixels[..., :3], pixels[..., 3:]
        return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.array(image.convert("RGB"))


def _grey(values: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 255] as (H, W, 3) uint8."""
    return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


# ----------------------------------------------------------------------------------------------------------------- PNG


def save_png(path: str | Path, image: Image.Image | np.ndarray, settings: dict[str, Any] | None = None) -> None:
    """Write a PNG whole, with generation settings as JSON in its text chunk `settings`."""
    image = to_pil(image) if isinstance(image, np.ndarray) else image
    info = PngInfo()
    if settings is not None:
        text = json.dumps(settings, ensure_ascii=False, allow_nan=False)
        # Halves of surrogate pairs, which UTF-8 does not have, are escaped as JSON escapes them.
        info.add_itxt("settings", text.encode("utf-8", "backslashreplace").decode())
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_png_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings that `save_png` put into a PNG, None if there are none, or the file is missing or damaged."""
    try:
        with decoded(path) as image:
            settings = json.loads(image.info["settings"])
    except DAMAGED:
        return None
    return settings if isinstance(settings, dict) else None


# -------------------------------------------------------------------------------------------------------------- sheets


def labelled_grid(
    rows: Sequence[np.ndarray],
    row_labels: Sequence[str],
    column_labels: Sequence[str] = (),
    *,
    min_cell: int = 64,
    max_pixels: int = 2**24,
    gap: int = 2,
) -> Image.Image:
    """A white sheet of images with a label left of each row and above each column, in any script.

    rows: per row (columns, H, W, C) uint8. Small images are enlarged by a whole factor to `min_cell` pixels a side, large
    ones shrunk until all together have at most `max_pixels`. Labels are cut to their cells, a row's to `LABEL_WIDTH` pixels.
    """
    if len(rows) != len(row_labels):
        raise ValueError(f"{len(rows)} rows of images but {len(row_labels)} row labels")
    height, width = rows[0].shape[1:3]
    columns = max(len(row) for row in rows)
    largest = math.sqrt(max_pixels / (len(rows) * columns * height * width))  # factor for which there is room
    factor = min(-(-min_cell // max(height, width)), int(largest)) if largest >= 1 else largest
    cell_h, cell_w = max(1, int(height * factor)), max(1, int(width * factor))
    size = max(11, min(20, cell_h // 5))
    line = int(size * 1.5)
    names = [_cut(*drawable(label, size), LABEL_WIDTH, max(1, cell_h // line)) for label in row_labels]
    headings = [_cut(*drawable(" ".join(label.splitlines()), size), cell_w, 1) for label in column_labels]
    label_width = int(max((font.getlength(part) for text, font in names for part in text.split("\n")), default=0)) + 12
    header = line if any(text for text, _ in headings) else 0
    sheet = Image.new("RGB", (label_width + columns * (cell_w + gap), header + len(rows) * (cell_h + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (text, font) in enumerate(headings):
        draw_text(draw, label_width + column * (cell_w + gap) + cell_w // 2, header // 2, text, font, centred=True)
    resampling = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    for index, (row, (text, font)) in enumerate(zip(rows, names, strict=True)):
        top = header + index * (cell_h + gap)
        draw_text(draw, 6, top + cell_h // 2, text, font)
        for column, pixels in enumerate(row):
            image = to_pil(pixels).convert("RGB").resize((cell_w, cell_h), resampling)
            sheet.paste(image, (label_width + column * (cell_w + gap), top))
    return sheet


def _cut(text: str, font: Font, width: int, num_lines: int) -> tuple[str, Font]:
    """The first lines of a text, each cut to `width` pixels."""
    return "\n".join(cut_to_width(line, font, width) for line in text.split("\n")[:num_lines]), font


def shown_frames(length: int, num_frames: int = 8) -> list[int]:
    """Numbers of evenly spaced frames of a video of so many, first and last among them; all of a short one."""
    return np.linspace(0, length - 1, min(num_frames, length)).round().astype(int).tolist()


def frame_strip(videos: Sequence[np.ndarray], labels: Sequence[str], *, num_frames: int = 8) -> Image.Image:
    """A labelled sheet with one row per video and `num_frames` evenly spaced frames, first and last among them, numbered.

    videos: (T, H, W, 3) uint8 each, all of one length T; a shorter video than `num_frames` is shown whole.
    """
    lengths = {len(frames) for frames in videos}
    if len(lengths) != 1:
        raise ValueError(f"videos of {sorted(lengths)} frames cannot share columns; give videos of one length")
    if num_frames < 1:
        raise ValueError(f"num_frames {num_frames} must be at least 1")
    shown = shown_frames(lengths.pop(), num_frames)
    return labelled_grid([frames[shown] for frames in videos], labels, [str(index) for index in shown])


# -------------------------------------------------------------------------------------------------------------- videos


def enlarged(frames: np.ndarray, min_side: int = 128) -> np.ndarray:
    """Frames (T, H, W, 3) of small videos, each pixel repeated a whole number of times up to `min_side` pixels a side."""
    factor = max(1, min_side // min(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def save_gif(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write frames (T, H, W, 3) uint8 as a GIF that loops for ever, whole.

    A GIF counts in hundredths of a second, to which a frame's duration is rounded, and viewers slow down what is faster
    than 50 frames a second. All frames share one palette of 256 colours, without which still areas would flicker.
    """
    if not 0 < fps <= 50:
        raise ValueError(f"fps {fps} cannot be kept by a GIF; take more than 0 and at most 50")
    width = frames.shape[2]
    palette = Image.fromarray(frames.reshape(-1, width, 3)).quantize(256)  # of all frames, one below the other
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    with written_whole(path) as temporary:
        pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=round(100 / fps) * 10, loop=0
        )
        if not is_whole_gif(temporary, len(frames)):
            raise OSError(
                f"{path} was written without an error and cannot be read back; the disk may be full or damaged"
            )


def is_whole_gif(path: str | Path, num_frames: int) -> bool:
    """Whether a GIF of `save_gif` decodes to its end and can be of so many frames, equal neighbours being stored as one."""
    durations = []
    try:
        with decoded(path) as gif, Path(path).open("rb") as file:
            file.seek(-1, os.SEEK_END)
            if gif.format != "GIF" or file.read() != b";":  # what a GIF ends with
                return False
            for index in range(getattr(gif, "n_frames", 1)):
                gif.seek(index)
                gif.load()
                durations.append(gif.info["duration"])
    except DAMAGED:
        return False
    one, rest = divmod(sum(durations), num_frames)
    return rest == 0 and one > 0 and all(duration % one == 0 for duration in durations)


Quality = float | Literal["lossless"]


def video_facts(quality: Quality = 5) -> dict[str, Any]:
    """Encoder, constant rate factor and pixel format of a video, for records.

    quality: from 1 to 10 as in imageio, to whose formula the factor goes (5 is CRF 25, 8 is CRF 10), or "lossless", which
    keeps RGB as it is. UserError for any other.
    """
    if quality == "lossless":
        return {"codec": "libx264rgb", "crf": 0, "pixel_format": "rgb24"}
    if isinstance(quality, str) or not 1 <= quality <= 10:
        raise UserError(f'video quality {quality} must be a number from 1 to 10, or "lossless"')
    return {"codec": "libx264", "crf": int((1 - quality / 10.0) * 51), "pixel_format": "yuv420p"}


def save_mp4(path: str | Path, frames: np.ndarray, fps: float, *, quality: Quality = 5) -> None:
    """Write frames (T, H, W, 3) uint8 as H.264, whole; quality: of `video_facts`.

    Odd sides are padded by one pixel unless it is lossless, as halved colours need even ones. Bytes depend on frames, rate,
    quality and versions of ffmpeg and x264 alone, not on the processor or the number of its cores. UserError if ffmpeg is
    missing or fails, OSError if the disk is full.
    """
    facts = video_facts(quality)
    if quality != "lossless":
        pad_h, pad_w = frames.shape[1] % 2, frames.shape[2] % 2
        frames = np.pad(frames, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)), mode="edge")
    num_frames, height, width = frames.shape[:3]
    raw = (
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        str(Fraction(fps).limit_denominator()),
    )
    # accurate_rnd, bitexact and cpu-independent: without them results depend on what instructions the processor has.
    encoder = (
        *("-c:v", facts["codec"], "-crf", str(facts["crf"]), "-pix_fmt", facts["pixel_format"]),
        *("-threads", str(ENCODER_THREADS), "-x264-params", "cpu-independent=1"),
        *("-sws_flags", "bicubic+accurate_rnd+bitexact"),
    )
    with written_whole(path) as temporary:
        pixels = memoryview(np.ascontiguousarray(frames)).cast("B")  # type: ignore[arg-type]
        done = _ffmpeg("-y", *raw, "-i", "-", "-an", *encoder, "-f", "mp4", f"file:{temporary}", given=pixels)
        said = " ".join(done.stderr.decode(errors="replace").split())[:300]
        if done.returncode:
            for code in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(code) in said:
                    raise OSError(code, os.strerror(code), str(path))
            raise UserError(f"ffmpeg could not write {path} (exit status {done.returncode}: {said}); {_FFMPEG_REMEDY}")
        if _probe(temporary) != (num_frames, height, width):
            raise UserError(f"ffmpeg wrote {path} without an error, and it is not whole ({said}); {_FFMPEG_REMEDY}")


def is_whole_video(path: str | Path, num_frames: int, height: int, width: int) -> bool:
    """Whether a file decodes without an error to so many frames of this size, as given to `save_mp4`, which pads odd sides."""
    sizes = {(height, width), (height + height % 2, width + width % 2)}
    return whole_video_size(path) in {(num_frames, *size) for size in sizes}


def whole_video_size(path: str | Path) -> tuple[int, int, int] | None:
    """Number, height and width of the frames of an MP4 that decodes to its end without an error; None for any other file.

    ffmpeg decodes it rather than OpenCV, which is quicker by the 20 ms that ffmpeg takes to start, but passes over damage
    that ffmpeg finds: of 60 files with bytes changed inside OpenCV found 27, ffmpeg 51.
    """
    return _probe(path) if _ends_with_a_box(path) else None


def _ends_with_a_box(path: str | Path) -> bool:
    """Whether the boxes that an MP4 consists of fill the file exactly; decoders pass over a last one that is cut."""
    try:
        with Path(path).open("rb") as file:
            end, at = file.seek(0, os.SEEK_END), 0
            while at < end:
                file.seek(at)
                size, _, long = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
                at += long if size == 1 else size or end  # 1: the size follows with 64 bits; 0: to the end of the file
    except OSError:
        return False
    return at == end > 0


def _probe(path: str | Path) -> tuple[int, int, int] | None:
    """Number, height and width of the frames of a video, None if one of them cannot be decoded."""
    strict = ("-xerror", "-err_detect", "explode")
    done = _ffmpeg(*strict, "-i", f"file:{path}", "-map", "0:v:0", "-f", "framecrc", "-")  # a line for every frame
    lines = done.stdout.decode(errors="replace").splitlines()
    size = next((line.split()[-1] for line in lines if line.startswith("#dimensions")), None)
    if done.returncode or done.stderr or size is None:
        return None
    width, height = map(int, size.split("x"))
    return sum(not line.startswith("#") for line in lines), height, width


_FFMPEG_REMEDY = "pip install imageio-ffmpeg, or name an ffmpeg with libx264 in the variable IMAGEIO_FFMPEG_EXE"


def _ffmpeg(*arguments: str, given: memoryview | bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the ffmpeg of imageio-ffmpeg on what is given as its input; UserError if there is none that starts."""
    try:
        import imageio_ffmpeg

        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments]
        return subprocess.run(command, input=given, capture_output=True, check=False)
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(f"videos need ffmpeg, which cannot be started ({error}); {_FFMPEG_REMEDY}") from error
