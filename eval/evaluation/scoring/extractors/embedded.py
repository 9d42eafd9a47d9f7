"""Networks whose weights ship with the repository."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_dic import UserError
from evaluation import classifier, scorer, squeezenet
from evaluation.scoring.extractors import Extractor, Network, Weights
from seerkit.data.fashion_mnist import IMAGE_SIZE


def _shipped(path: Path) -> Weights:
    if not path.is_file():
        raise FileNotFoundError(f"{path}, which comes with the repository and is not there; restore it")
    return Weights(path)


def _scaled(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) of uint8 as squares of `side` pixels, float32 in 0..255, smoothed where they are made smaller."""
    x = images.to(memory_format=torch.channels_last).float()
    return F.interpolate(x, size=(side, side), mode="bicubic", antialias=True).clamp(0, 255)


def _lite0(path: Path, device: torch.device) -> Network:
    backbone = scorer.load_scorer(path, device).backbone
    return lambda images: {"pool": backbone((_scaled(images, scorer.INPUT_SIZE) - 127) / 128)[:, -scorer.LAST :]}


def _squeezenet(path: Path, device: torch.device) -> Network:
    network = squeezenet.load_squeezenet(path, device)
    return lambda images: {"pool": network(_scaled(images, squeezenet.INPUT_SIZE)).mean(dim=(2, 3))}


def _fashion(path: Path, device: torch.device) -> Network:
    network = classifier.load_classifier(path, device)

    def features(images: Tensor) -> dict[str, Tensor]:
        grey = images[:, :1]
        if images.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE) or not torch.equal(images, grey.expand_as(images)):
            raise UserError(
                f"the Fashion-MNIST classifier knows grey images of {IMAGE_SIZE} x {IMAGE_SIZE} pixels alone, and some are "
                f"{images.shape[3]} x {images.shape[2]} or coloured; take another network for them, such as lite0"
            )
        return {"pool": classifier.extract_features(network, grey)}

    return features


EXTRACTORS = {
    extractor.name: extractor
    for extractor in (
        Extractor(
            name="lite0",
            title="Lite0",
            layers={"pool": scorer.LAST},
            seen=f"bicubic to {scorer.INPUT_SIZE} x {scorer.INPUT_SIZE} with antialiasing, (x - 127) / 128",
            find=lambda: _shipped(scorer.WEIGHTS),
            load=_lite0,
        ),
        Extractor(
            name="squeezenet",
            title="SqueezeNet",
            layers={"pool": squeezenet.FEATURES},
            seen=f"bicubic to {squeezenet.INPUT_SIZE} x {squeezenet.INPUT_SIZE} with antialiasing, BGR less its mean",
            find=lambda: _shipped(squeezenet.WEIGHTS),
            load=_squeezenet,
        ),
        Extractor(
            name="fashion",
            title="FashionCNN",
            layers={"pool": classifier.ClassifierConfig().widths[-1]},
            seen=f"grey, {IMAGE_SIZE} x {IMAGE_SIZE}, x / 127.5 - 1",
            find=lambda: _shipped(classifier.WEIGHTS),
            load=_fashion,
        ),
    )
}
"""EfficientNet-Lite0 and SqueezeNet 1.1 learned from ImageNet's photographs, FashionCNN from Fashion-MNIST."""
