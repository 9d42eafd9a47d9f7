"""Samples side by side, from the folder of a sampling command or of eval/compare.py: a row a method, a column a prompt."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cache_dic import UserError
from evaluation.families import flags_of
from evaluation.figures import plotting, save
from seerkit.io.claims import state_folder
from seerkit.io.images import image_path, read_image
from seerkit.io.media import shown_frames
from seerkit.io.records import Form, positive
from seerkit.io.tables import counted, psnr_cell

MOST_COLUMNS = 5
LONG_NAME = 24  # characters, above which the name of the series stands for that of the settings
RATIO = 5.0
"""FLOPs ratio that methods are compared at."""
SAMPLED: Form = {
    "settings": {"model": str, "num_steps": int, "prompts": (None, [str]), "classes": (None, [int]), "frames": (None, int)},
    "num_samples": int,
    "rows": [
        (
            {"label": str, "name": (None, str), "method": str, "series": (None, str), "flops_ratio": positive,
             "psnr": (None, dict)},
            {"error": str},
        )
    ],
}  # fmt: skip
"""What is read of a record that lies beside its samples."""


def chosen_rows(rows: Sequence[Mapping[str, Any]], ratio: float) -> list[Mapping[str, Any]]:
    """The uncached run, and of every series (or method) the row whose FLOPs ratio is nearest to `ratio`, the slowest first."""
    by_series: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        name = row.get("series") or row["method"]
        other = by_series.get(name)
        if other is None or abs(row["flops_ratio"] - ratio) < abs(other["flops_ratio"] - ratio):
            by_series[name] = row
    first = by_series.pop("uncached", None)
    others = sorted(by_series.values(), key=lambda row: row["flops_ratio"])
    return [first, *others] if first is not None else others


def draw_samples(record: Mapping[str, Any], source: Path, folder: Path, ratio: float = RATIO) -> list[Path]:
    """samples-MODEL, of the samples in the folder `source`. Of a video the frame in its middle is shown.

    UserError where a sample is missing or damaged.
    """
    s = record["settings"]
    rows = chosen_rows([row for row in record["rows"] if "error" not in row], ratio)
    places = range(min(MOST_COLUMNS, record["num_samples"]))
    there = sum(_path(source, rows[0]["label"], index, s.get("frames")).is_file() for index in places)
    prompts = column_names(s)[: max(there, 1)]  # of videos a comparison keeps the first ones
    pixels = [[_sample(source, row["label"], index, s.get("frames")) for index in range(len(prompts))] for row in rows]
    with plotting() as plt:
        size = (1.05 * len(prompts) + 2.7, 1.07 * len(rows) + 1.1)
        figure, axes = plt.subplots(len(rows), len(prompts), figsize=size, squeeze=False)
        for line, row, images in zip(axes, rows, pixels, strict=True):
            for axis, image in zip(line, images, strict=True):
                grey = {"cmap": "gray", "vmin": 0, "vmax": 255} if image.shape[-1] == 1 else {}
                axis.imshow(image.squeeze(-1) if grey else image, interpolation="none", **grey)
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
            line[0].set_ylabel(_told(row), rotation=0, ha="right", va="center", labelpad=6)
        for axis, prompt in zip(axes[0], prompts, strict=True):
            axis.set_title("\n".join(textwrap.wrap(prompt, 15)), fontsize="small")
        frames = f", frame {s['frames'] // 2 + 1} of {s['frames']}" if s.get("frames") else ""
        figure.suptitle(
            f"{s['model']} (trained weights), {s['num_steps']} steps{frames}\n"
            f"settings nearest to {ratio:g}x fewer FLOPs of every method; PSNR of {counted(record['num_samples'], 'sample')}"
        )
        figure.tight_layout(h_pad=0.3, w_pad=0.3)
        return save(figure, folder, f"samples-{s['model'].replace('/', '-')}")


def column_names(settings: Mapping[str, Any]) -> list[str]:
    """Prompts of the samples; of DiT the names of their classes."""
    if settings.get("classes") is None:
        return list(settings["prompts"])
    from dit.config import CONFIGS

    names = flags_of("dit").class_names(CONFIGS[settings["model"]])
    return [names[number] for number in settings["classes"]]


def _told(row: Mapping[str, Any]) -> str:
    name = row.get("name") or row["label"]
    name = (row.get("series") or row["method"]) if len(name) > LONG_NAME else name
    if row["psnr"] is None:
        return name
    psnr = psnr_cell(row["psnr"])
    return f"{name}\n{row['flops_ratio']:.2f}x, {psnr}" + ("" if psnr == "identical" else " dB")


def _path(source: Path, label: str, index: int, frames: int | None) -> Path:
    """An image, or the strip of frames that is kept of a video."""
    return image_path(state_folder(source, label) / "rows" if frames else source / label, index)


def _sample(source: Path, label: str, index: int, frames: int | None) -> np.ndarray:
    """Pixels (H, W, 3 or 1) of an image, or of the middle one of the frames that are kept of a video."""
    path = _path(source, label, index, frames)
    pixels = read_image(path)
    if pixels is None:
        raise UserError(f"{path} is missing or damaged; make the samples anew, or name the folder that they lie in")
    if not frames:
        return pixels
    count = len(shown_frames(frames))
    return np.split(pixels, count, axis=1)[count // 2]
