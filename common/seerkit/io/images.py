"""Folders of sampled images: numbered PNGs, read back whole."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from seerkit.io.media import DAMAGED, decoded


def image_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def read_image(path: Path, shape: tuple[int, int, int] | None = None) -> np.ndarray | None:
    """The pixels (H, W, 3 or 1) of a PNG, None if it is missing, damaged or of another shape than one that is asked for."""
    try:
        with decoded(path) as image:
            if image.mode not in ("L", "RGB"):
                return None
            pixels = np.asarray(image)
    except DAMAGED:
        return None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels if shape in (None, pixels.shape) and pixels.dtype == np.uint8 else None


def digest(settings: Any, length: int = 8) -> str:
    """So many characters that tell one set of settings, or another value of JSON, from the next."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:length]
