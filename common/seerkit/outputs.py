"""Folders of sampled images: numbered PNGs and the settings that made them, claimed before, read back whole."""

import glob
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from seerkit.files import write_json


def claim_folder(folder: Path, settings: dict[str, Any], *, flag: str, samples: str = "[0-9]*.png") -> None:
    """Mark `folder` as of these settings, or ValueError if it is of others; clear what a killed run left half written.

    flag: the option that chooses another folder, for the message. samples: what the files of samples are called.
    """
    path = folder / "settings.json"
    if path.exists():
        try:
            theirs = json.loads(path.read_text())
            differ = [key for key in settings | theirs if settings.get(key) != theirs.get(key)]
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); choose another {flag}") from error
        if differ:
            shown = ", ".join(f"{key} is {theirs.get(key)} there and {settings.get(key)} here" for key in differ)
            raise ValueError(f"{folder} holds samples of other settings: {shown}; choose another {flag}")
    elif any(folder.glob(samples)):
        raise ValueError(f"{folder} holds samples but no settings.json; choose another {flag}")
    else:
        write_json(path, settings)
    half_npz = folder.parent.glob(f".{glob.escape(folder.name)}.*.partial.npz")
    for leftover in (*folder.glob(".*.partial.*"), *half_npz):
        leftover.unlink()


def image_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.png"


def read_image(path: Path, shape: tuple[int, int, int]) -> np.ndarray | None:
    """The pixels (H, W, 3 or 1) of a PNG, None if it is missing, damaged or of another shape."""
    try:
        with Image.open(path) as image:
            image.verify()  # to the end of the file; decoding alone passes over a missing tail
        with Image.open(path) as image:
            if image.mode not in ("L", "RGB"):
                return None
            pixels = np.asarray(image)
    except (OSError, SyntaxError):  # Pillow raises SyntaxError for some broken PNGs
        return None
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels if pixels.shape == shape and pixels.dtype == np.uint8 else None


def digest(settings: dict[str, Any]) -> str:
    """Eight characters that tell one set of settings from another."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
