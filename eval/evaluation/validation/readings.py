"""What is read of samples for the candidates, kept by `evaluation.scoring.read`, and the sets that it is read of."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from evaluation.classifier import WEIGHTS as CLASSIFIER
from evaluation.classifier import classify, load_classifier
from evaluation.metrics import psnr, ssim
from evaluation.optical_flow import warping_error
from evaluation.perceptual import lite0_distance, unit_features
from evaluation.scorer import WEIGHTS as SCORER
from evaluation.scorer import load_scorer
from evaluation.scoring.extractors import find_extractor
from evaluation.scoring.measures import Reading
from evaluation.scoring.read import Shard, Task, read_samples
from evaluation.scoring.videos import PER_MILLE
from evaluation.video_metrics import flicker
from seerkit.devices.distributed import World
from seerkit.io.files import content_digest

FRAMES = 4  # of a video, evenly spaced from first to last, that networks look at
MOST_DB = 60.0  # that a pair counts for, so that equal ones have a mean


class Held:
    """A set of samples in memory, (N, T, H, W, C) uint8, as `evaluation.scoring` reads them."""

    def __init__(self, name: str, pixels: np.ndarray) -> None:
        self.path, self.pixels, self.is_video = Path(name), pixels, pixels.shape[1] > 1

    @property
    def names(self) -> Sequence[str]:
        return [f"{self.path}[{index}]" for index in range(len(self.pixels))]

    def read(self, index: int) -> np.ndarray:
        one = self.pixels[index]
        return np.broadcast_to(one, (*one.shape[:3], 3))

    @functools.cache  # noqa: B019 (as long as the set lives)
    def digest(self) -> str:
        return hashlib.sha256(f"{self.pixels.shape}".encode() + np.ascontiguousarray(self.pixels).data).hexdigest()


def thinned(pixels: np.ndarray) -> np.ndarray:
    """FRAMES frames of every sample (N, T, H, W, C), all of those that have no more."""
    length = pixels.shape[1]
    return pixels if length <= FRAMES else pixels[:, np.linspace(0, length - 1, FRAMES).round().astype(int)]


def _images(shard: Shard) -> torch.Tensor:
    """All frames of a shard, (B·F, 3, H, W) uint8."""
    return torch.from_numpy(np.concatenate(shard.frames)).permute(0, 3, 1, 2)


Read = Callable[[Shard], Mapping[str, np.ndarray]]


def _classes(device: torch.device) -> Read:
    """The class of every image, (B,)."""
    network = load_classifier(device=device)
    return lambda shard: {"class": classify(network, _images(shard)[:, :1]).argmax(dim=1).numpy()}


def _emoji_vectors(device: torch.device) -> Read:
    """The scorer's vector of every image, (B, 128)."""
    network = load_scorer(device=device)

    @torch.inference_mode()
    def read(shard: Shard) -> Mapping[str, np.ndarray]:
        return {"vector": network.embed_features(network.features(_images(shard).to(device))).cpu().numpy()}

    return read


def _flicker(_: torch.device) -> Read:
    return lambda shard: {"flicker": flicker(np.stack(shard.frames))}


def _warping(_: torch.device) -> Read:
    return lambda shard: {"warping": np.array([PER_MILLE * warping_error(frames)[0] for frames in shard.frames])}


def _paired(_: torch.device) -> Read:
    """Distances of samples to their pairs, means over frames."""

    def read(shard: Shard) -> Mapping[str, np.ndarray]:
        ours, theirs = np.concatenate(shard.frames), np.concatenate(shard.pairs)
        a, b = (unit_features(torch.from_numpy(one).permute(0, 3, 1, 2)) for one in (ours, theirs))
        found = {
            "psnr": psnr(ours, theirs).clip(max=MOST_DB),
            "ssim": ssim(ours, theirs),
            "lite0": lite0_distance(a, b),
        }
        count = len(shard.indices)
        return {name: np.asarray(each, np.float64).reshape(count, -1).mean(axis=1) for name, each in found.items()}

    return read


NETWORKS = ("lite0", "squeezenet", "fashion")
"""Extractors of `evaluation.scoring` whose features distances are made of."""
OWN = {
    "class": Reading(name="class", facts={"weights": content_digest(CLASSIFIER)}, load=_classes),
    "vector": Reading(name="vector", facts={"weights": content_digest(SCORER)}, load=_emoji_vectors),
    "flicker": Reading(name="flicker", facts={}, load=_flicker),
    "warping": Reading(name="warping", facts={}, load=_warping),
}
"""What else is read of a set alone, an array of the reading's name."""
OF_ALL_FRAMES = ("flicker", "warping")
PAIRED = Reading(
    name="paired", facts={"most_db": MOST_DB, "weights": content_digest(SCORER)}, load=_paired, of=("pairs",)
)


def read_set(name: str, pixels: np.ndarray, work: Path, world: World) -> np.ndarray:
    """An array of a set of pixels (N, T, H, W, C): features (N, F, D) of a network's FRAMES frames, or one of OWN, (N, ...)."""
    samples = Held(name, pixels if name in OF_ALL_FRAMES else thinned(pixels))
    if name in OWN:
        return read_samples(OWN[name], Task(samples=samples), work, world, quiet=True).whole(name)
    extractor = find_extractor(name)
    readout = read_samples(extractor.reading(), Task(samples=samples), work, world, quiet=True)
    rows = readout.whole(next(iter(extractor.layers)))
    return rows.reshape(len(pixels), -1, rows.shape[-1])


def read_pairs(pixels: np.ndarray, others: np.ndarray, work: Path, world: World) -> dict[str, np.ndarray]:
    """Of FRAMES frames of every sample, what PAIRED measures, by name (N,)."""
    ours, theirs = Held("samples", thinned(pixels)), Held("pairs", thinned(others))
    readout = read_samples(PAIRED, Task(samples=ours, pairs=theirs), work, world, quiet=True)
    return {name: readout.whole(name) for name in ("psnr", "ssim", "lite0")}
