"""Put the nearest training image beside every sample of an embedded text-to-image model: is it memory or imagination?

Distance is the root mean square difference of pixels in [0, 1]. Real images that were not trained on, those of the test
split, have distances of their own, which are the measure: samples much nearer than those are copies.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from seerkit.cli import Parser, positive_int, run_command
from seerkit.emoji import load_emoji
from seerkit.files import write_json
from seerkit.media import labelled_grid, save_png
from seerkit.outputs import image_path, read_image

EXAMPLES = """
python eval/nearest.py outputs/flux/flux-tiny-1a2b3c4d --out outputs/nearest
python eval/nearest.py outputs/flux/flux-tiny-1a2b3c4d --label taylorseer-N6-W3-O2 --out outputs/nearest
"""
CHUNK = 64  # images compared with all others at once


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    parser.add_argument(
        "samples", type=Path, help="output folder of TaylorSeer-FLUX/sample.py or TaylorSeer-HiDream/sampling.py"
    )
    parser.add_argument("--label", default="uncached", help="the cache whose images are looked at")
    parser.add_argument("--data", type=Path, help="folder that scripts/get_emoji.sh has made (default: data/emoji)")
    parser.add_argument("--shown", type=positive_int, default=16, help="samples in the picture")
    parser.add_argument("--out", type=Path, required=True, help="name of the picture (.png) and the record (.json)")
    return parser.parse_args(argv)


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
    """Images (N, 3, H, W) uint8 of a cache and their prompts; ValueError if they are not there."""
    try:
        settings = json.loads((folder / label / "settings.json").read_text())
        prompts, shape = settings["prompts"], (settings["height"], settings["width"], 3)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{folder / label} holds no samples of emoji; name the output folder of a sampling command and a --label in it"
        ) from error
    images = [read_image(image_path(folder / label, index), shape) for index in range(len(prompts))]
    if any(pixels is None for pixels in images):
        raise ValueError(f"images are missing in {folder / label}; finish them with --resume")
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), prompts


def quantiles(distances: Tensor) -> dict[str, float]:
    """The spread of a set of distances."""
    return {f"p{round(100 * q)}": torch.quantile(distances, q).item() for q in (0.05, 0.25, 0.5, 0.75, 0.95)}


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    images, prompts = read_samples(args.samples, args.label)
    data = load_emoji(args.data)
    train = data.images[data.train]
    if images.shape[1:] != train.shape[1:]:
        raise ValueError(
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
    save_png(args.out.with_suffix(".png"), labelled_grid(rows, ["sample", "nearest in\ntraining"], below))
    write_json(args.out.with_suffix(".json"), record)
    for name in ("samples", "real_test_images"):
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in record[name].items()))
    print(f"picture: {args.out.with_suffix('.png')}\nrecord: {args.out.with_suffix('.json')}")


if __name__ == "__main__":
    run_command(main)
