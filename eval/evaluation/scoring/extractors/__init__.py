"""Networks whose features stand for images in distances between sets; each is loaded when it is asked for.

A distance is named after its network: FID and KID on the Inception of the FID authors alone, FD-NAME on any other.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_dic import UserError
from cache_dic.errors import check_choice
from evaluation.scoring.measures import Reading, missing_packages
from evaluation.scoring.read import Shard
from evaluation.scoring.weights import STAND_INS, sha256, stand_ins_allowed
from seerkit.devices.dtypes import float32_products
from seerkit.io.files import content_digest
from seerkit.weights.checkpoints import NotFoundError, Published, find_weights

BATCH = 50  # images that a network sees at once
Network = Callable[[Tensor], Mapping[str, Tensor]]
"""Images (B, 3, H, W) of uint8 -> features (B, D) by name of a layer."""


@dataclass(frozen=True)
class Weights:
    """The file of a network's weights. stand_in: it is known not to be the published one, and taken all the same."""

    path: Path
    stand_in: bool = False


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A network that turns images into features.

    name: in commands. title: in headings. layers: their widths by name; the first is that of most measures. seen: what becomes
    of an image first. find: the weights; FileNotFoundError or UserError that names file, place and size where they are missing
    or wrong. load: the network of a file, on a device. packages: what it needs besides the project's own.
    """

    name: str
    title: str
    layers: Mapping[str, int]
    seen: str
    find: Callable[[], Weights]
    load: Callable[[Path, torch.device], Network]
    packages: Sequence[str] = ()

    def missing(self) -> list[str]:
        """What has to be fetched before it can be used, a line each."""
        lines = missing_packages(*self.packages)
        try:
            self.find()
        except (FileNotFoundError, UserError) as error:
            lines.append(str(error))
        return lines

    def reading(self) -> Reading:
        """The features of every frame of a sample, and `frames`, the number of these (B,)."""
        weights = self.find()
        facts: dict[str, Any] = {
            "network": self.title,
            "layers": dict(self.layers),
            "input": self.seen,
            "weights": {"file": weights.path.name, "digest": content_digest(weights.path)},
            **{name: version(name) for name in self.packages},
        }
        if weights.stand_in:
            facts["stand_in_weights"] = True

        def load(device: torch.device) -> Callable[[Shard], Mapping[str, np.ndarray]]:
            network = self.load(weights.path, device)

            def read(shard: Shard) -> Mapping[str, np.ndarray]:
                counts = np.array([len(frames) for frames in shard.frames])
                return {**_features(network, shard.frames, device), "frames": counts}

            return read

        return Reading(name=f"features-{self.name}", facts=facts, load=load)

    def features(self, images: np.ndarray, device: str = "cpu") -> np.ndarray:
        """Features (N, D) of the first layer, of images (N, H, W, 3) of uint8."""
        network = _network(self.name, device)
        with float32_products("ieee"):
            return _features(network, [images], torch.device(device))[next(iter(self.layers))]


_MODULES = {
    "inception": "inception",
    "dinov2": "dinov2",
    "lite0": "embedded",
    "squeezenet": "embedded",
    "fashion": "embedded",
}


def find_extractor(name: str) -> Extractor:
    """A network; UserError for a name that there is not."""
    check_choice("extractor", name, tuple(_MODULES))
    return importlib.import_module(f"{__name__}.{_MODULES[name]}").EXTRACTORS[name]


def find_published(files: Sequence[Published], env: str, size: str, digest: str) -> Weights:
    """A copy of what is published under several names, that of an environment variable before all.

    digest: how its sha256 begins. FileNotFoundError with places, commands and size where there is none; UserError for a file of
    another content, unless stand-ins are allowed.
    """
    try:
        path = find_weights(None, files, env=env, download=False)
    except NotFoundError as error:
        if error.named:
            raise
        places = ", ".join(dict.fromkeys(place for file in files for place in (str(file.folder), file.cache)))
        names = " or ".join(file.name for file in files)
        raise FileNotFoundError(
            f"{names} ({size}), looked for in {places}; fetch it with `{files[0].command}`, or name it in {env}"
        ) from error
    found = sha256(path)
    if not found.startswith(digest) and not stand_ins_allowed():
        raise UserError(
            f"{path} is not what is published as {files[0].name}: its sha256 begins with {found[: len(digest)]} instead of "
            f"{digest}; fetch that ({size}) with `{files[0].command}`, or set {STAND_INS}=1 to try the command with a "
            "stand-in, whose figures mean nothing"
        )
    return Weights(path, stand_in=not found.startswith(digest))


@functools.lru_cache(maxsize=2)
def _network(name: str, device: str) -> Network:
    extractor = find_extractor(name)
    return extractor.load(extractor.find().path, torch.device(device))


@torch.inference_mode()
def _features(network: Network, samples: Sequence[np.ndarray], device: torch.device) -> dict[str, np.ndarray]:
    """Of the frames (T, H, W, 3) of all samples, one after the other, by layer (frames of all, D) in float32."""
    found: list[Mapping[str, Tensor]] = []
    for batch in _batches(samples):
        images = torch.from_numpy(batch).permute(0, 3, 1, 2).to(device)
        found.append({name: values.float().cpu() for name, values in network(images).items()})
    return {name: torch.cat([one[name] for one in found]).numpy() for name in found[0]}


def _batches(samples: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames of one size, at most `BATCH` at once, in their order."""
    waiting: list[np.ndarray] = []
    for frame in (frame for frames in samples for frame in frames):
        if waiting and (len(waiting) == BATCH or waiting[0].shape != frame.shape):
            yield np.stack(waiting)
            waiting = []
        waiting.append(frame)
    yield np.stack(waiting)
