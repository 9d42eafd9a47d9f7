"""Images and videos on disk: PNG with its settings inside, labelled grids, GIF, MP4. Pixels are uint8, H × W × 3 or 1."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from seerkit.files import written_whole


def to_uint8(images: Tensor) -> np.ndarray:
    """Images (B, C, H, W) in [-1, 1] -> (B, H, W, C) uint8, clipped; 127.5 x + 128 as the reference samplers round."""
    pixels = torch.clamp(127.5 * images.detach().float() + 128.0, 0, 255)
    return pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


def video_to_uint8(videos: Tensor) -> np.ndarray:
    """Videos (B, 3, T, H, W) in [-1, 1] -> (B, T, H, W, 3) uint8, rounded as `to_uint8` does."""
    frames = to_uint8(videos.transpose(1, 2).flatten(0, 1))  # (B·T, H, W, 3)
    return frames.reshape(len(videos), -1, *frames.shape[1:])


def to_pil(pixels: np.ndarray) -> Image.Image:
    """(H, W, 1 or 3) uint8 as a PIL image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def save_png(path: str | Path, image: Image.Image | np.ndarray, settings: dict[str, Any] | None = None) -> None:
    """Write a PNG whole, with generation settings as JSON in its text chunk `settings`."""
    image = to_pil(image) if isinstance(image, np.ndarray) else image
    info = PngInfo()
    if settings is not None:
        info.add_itxt("settings", json.dumps(settings, ensure_ascii=False))
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_png_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings that `save_png` put into a PNG, None if there are none."""
    with Image.open(path) as image:
        image.load()
        text = image.info.get("settings")
    return None if text is None else json.loads(text)


def labelled_grid(
    rows: Sequence[np.ndarray],
    row_labels: Sequence[str],
    column_labels: Sequence[str] = (),
    *,
    min_cell: int = 64,
    gap: int = 2,
) -> Image.Image:
    """A white sheet of images with a label left of each row and above each column.

    rows: per row (columns, H, W, C) uint8. Small images are enlarged by a whole factor to `min_cell` pixels a side.
    """
    if len(rows) != len(row_labels):
        raise ValueError(f"{len(rows)} rows of images but {len(row_labels)} row labels")
    height, width = rows[0].shape[1:3]
    factor = max(1, -(-min_cell // max(height, width)))
    cell_h, cell_w, columns = height * factor, width * factor, max(len(row) for row in rows)
    font = ImageFont.load_default(size=max(11, min(20, cell_h // 5)))
    line = int(font.size * 1.5)
    label_width = int(max((font.getlength(part) for label in row_labels for part in label.split("\n")), default=0)) + 12
    header = line if any(column_labels) else 0
    sheet = Image.new("RGB", (label_width + columns * (cell_w + gap), header + len(rows) * (cell_h + gap)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, label in enumerate(column_labels):
        centre = label_width + column * (cell_w + gap) + cell_w // 2
        draw.text((centre, header // 2), _fit(label, font, cell_w), fill="black", font=font, anchor="mm")
    for index, (row, label) in enumerate(zip(rows, row_labels, strict=True)):
        top = header + index * (cell_h + gap)
        draw.multiline_text((6, top + cell_h // 2), label, fill="black", font=font, anchor="lm")
        for column, pixels in enumerate(row):
            image = to_pil(pixels).convert("RGB").resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(image, (label_width + column * (cell_w + gap), top))
    return sheet


def frame_strip(videos: Sequence[np.ndarray], labels: Sequence[str], *, num_frames: int = 8) -> Image.Image:
    """A labelled sheet with one row a video and `num_frames` evenly spaced frames, first and last among them, numbered.

    videos: (T, H, W, 3) uint8 each, all of one length T; a shorter video than `num_frames` is shown whole.
    """
    lengths = {len(frames) for frames in videos}
    if len(lengths) != 1:
        raise ValueError(f"videos of {sorted(lengths)} frames cannot share columns; give videos of one length")
    if num_frames < 1:
        raise ValueError(f"num_frames {num_frames} must be at least 1")
    length = lengths.pop()
    shown = np.linspace(0, length - 1, min(num_frames, length)).round().astype(int)
    return labelled_grid([frames[shown] for frames in videos], labels, [str(index) for index in shown])


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


def save_mp4(path: str | Path, frames: np.ndarray, fps: int) -> None:
    """Write frames (T, H, W, 3) uint8 as H.264; odd sides are padded by one pixel, as the codec needs even ones."""
    import imageio.v3 as imageio

    pad_h, pad_w = frames.shape[1] % 2, frames.shape[2] % 2
    frames = np.pad(frames, ((0, 0), (0, pad_h), (0, pad_w), (0, 0)), mode="edge")
    with written_whole(path) as temporary:
        imageio.imwrite(temporary, frames, fps=fps, codec="libx264", macro_block_size=1)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text` cut to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
