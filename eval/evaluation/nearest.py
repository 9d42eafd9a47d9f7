"""The nearest training image of every sample of an embedded text-to-image model."""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cache_dic import UserError
from seerkit.data.emoji import load_emoji
from seerkit.io.files import writable_file, write_json
from seerkit.io.images import image_path, read_image
from seerkit.io.media import labelled_grid, save_png
from seerkit.io.records import read_record

COMMAND = "TaylorSeer-FLUX/sample.py or TaylorSeer-HiDream/sampling.py"
RECORD = {"settings": {"prompts": [str], "height": int, "width": int}, "rows": [{"label": str}]}
CHUNK = 64  # images compared with all others at once


def nearest(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to, and index of, the nearest of `others` (M, C, H, W) for each of images (N, C, H, W), both uint8."""
    distances, indices = [], []
    table = others.flatten(1).float() / 255  # (M, P)
    for part in images.split(CHUNK):
        squared = torch.cdist(part.flatten(1).float() / 255, table).square() / table.shape[1]  # (n, M)
        value, index = squared.min(dim=1)
        distances.append(value.sqrt())
        indices.append(index)
    return torch.cat(distances), torch.cat(indices)


def read_samples(folder: Path, label: str) -> tuple[Tensor, list[str]]:
    """Images (N, 3, H, W) uint8 of a cache and their prompts, by the folder's record; UserError if they are not there."""
    record = read_record(folder / "record.json", RECORD, COMMAND)
    settings, labels = record["settings"], [row["label"] for row in record["rows"]]
    if label not in labels:
        raise UserError(f"{folder} holds no samples of {label!r}; take one of {', '.join(labels)} as --label")
    shape = settings["height"], settings["width"], 3
    images = []
    for index in range(len(settings["prompts"])):
        path = image_path(folder / label, index)
        if (pixels := read_image(path, shape)) is None:
            raise UserError(f"{path} is no image of {shape[1]} x {shape[0]} pixels; make it anew with --resume")
        images.append(pixels)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), settings["prompts"]


def outputs(out: Path) -> tuple[Path, Path]:
    """The files of picture and record, of which --out is the name with either suffix or without; UserError without one."""
    name = out.name.removesuffix(".png").removesuffix(".json")
    if name in ("", ".."):
        raise UserError(f"--out {out} is no name of a file; give one, as outputs/nearest")
    return out.with_name(f"{name}.png"), out.with_name(f"{name}.json")


def quantiles(distances: Tensor) -> dict[str, float]:
    """The spread of a set of distances."""
    return {f"p{round(100 * q)}": torch.quantile(distances, q).item() for q in (0.05, 0.25, 0.5, 0.75, 0.95)}


def compare(args: argparse.Namespace) -> None:
    """Write the picture and the record that the flags of nearest.py ask for."""
    images, prompts = read_samples(args.samples, args.label)
    picture, written = (writable_file(path) for path in outputs(args.out))
    data = load_emoji(args.data)
    train = data.images[data.train]
    if images.shape[1:] != train.shape[1:]:
        raise UserError(
            f"samples of {tuple(images.shape[1:])} cannot be compared with images of {tuple(train.shape[1:])}"
        )
    distances, indices = nearest(images, train)
    real, _ = nearest(data.images[data.test], train)
    names = [data.prompt(i) for i in data.train.nonzero().flatten().tolist()]
    record = {
        "command": "eval/nearest.py",
        "label": args.label,
        "units": "root mean square difference of pixels in [0, 1] to the nearest training image",
        "training_images": len(train),
        "num_real_test_images": len(real),
        "samples": quantiles(distances),
        "real_test_images": quantiles(real),
        "nearest": [
            {"prompt": prompt, "nearest": names[i], "distance": d}
            for prompt, i, d in zip(prompts, indices.tolist(), distances.tolist(), strict=True)
        ],
    }
    shown = slice(args.shown)
    rows = [pixels.permute(0, 2, 3, 1).numpy() for pixels in (images[shown], train[indices[shown]])]
    below = [f"{d:.3f}" for d in distances[shown].tolist()]
    save_png(picture, labelled_grid(rows, ["sample", "nearest in\ntraining"], below))
    write_json(written, record)
    for name in ("samples", "real_test_images"):
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in record[name].items()))
    print(f"picture: {picture}\nrecord: {written}")
