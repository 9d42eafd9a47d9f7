"""Fashion-MNIST as Zalando publishes it: four gzipped IDX files (Debian package dataset-fashion-mnist)."""

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cache_dic import UserError

if TYPE_CHECKING:
    from torch import Tensor

CLASS_NAMES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DEBIAN_FOLDER = Path("usr/share/datasets/fashion-mnist")  # inside the package
IMAGE_SIZE = 32  # 28 pixels and a border of 2


def find_fashion_mnist(folder: str | Path | None = None) -> Path:
    """The folder of the IDX files: `folder`, else $FASHION_MNIST, data/ in the repository, the installed Debian package."""
    repository = Path(__file__).resolve().parents[3]
    if folder is None:
        folder = os.environ.get("FASHION_MNIST")
    places = [Path(folder)] if folder else [repository / "data" / DEBIAN_FOLDER, Path("/") / DEBIAN_FOLDER]
    for place in places:
        if (place / "train-images-idx3-ubyte.gz").is_file():
            return place
    raise FileNotFoundError(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}; fetch it with `bash scripts/get_fashion_mnist.sh`"
    )


def load_fashion_mnist(split: str, folder: str | Path | None = None) -> "tuple[Tensor, Tensor]":
    """Images (N, 1, 32, 32) uint8, zero border of 2 around 28 pixels, and labels (N,) int64 of `train` or `test`."""
    import torch

    prefix = {"train": "train", "test": "t10k"}[split]
    place = find_fashion_mnist(folder)
    images = _read_idx(place / f"{prefix}-images-idx3-ubyte.gz")
    labels = _read_idx(place / f"{prefix}-labels-idx1-ubyte.gz")
    if labels.ndim != 1 or images.shape != (len(labels), 28, 28) or (labels >= len(CLASS_NAMES)).any():
        raise UserError(
            f"{place}: images {images.shape} and labels {labels.shape} are not those of Fashion-MNIST; fetch the files again"
        )
    padding = (IMAGE_SIZE - 28) // 2
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding)))
    return torch.from_numpy(padded).unsqueeze(1), torch.from_numpy(labels).long()


def to_unit_range(images: "Tensor") -> "Tensor":
    """uint8 -> float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def _read_idx(path: Path) -> np.ndarray:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise UserError(f"{path} is not an IDX file of bytes; fetch it again")
    ndim = data[3]
    if len(data) < 4 + 4 * ndim:
        raise UserError(f"{path} is truncated: it ends within its header; fetch it again")
    shape = np.frombuffer(data, ">u4", count=ndim, offset=4)
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * ndim)
    if values.size != math.prod(shape.tolist()):
        raise UserError(f"{path} is damaged: {values.size} of {math.prod(shape.tolist())} values; fetch it again")
    return values.reshape(shape).copy()
