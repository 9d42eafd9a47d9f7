"""A perceptual distance from the network that ships with the emoji scorer, EfficientNet-Lite0, trained on ImageNet.

It is LPIPS's formula on another network, without the weights that LPIPS fitted to people's judgements: call it Lite0 distance,
never LPIPS, and compare it with no LPIPS. In an order of samples by nearness it is a second opinion beside PSNR and SSIM, which
see pixels alone.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_dic import UserError
from evaluation.scorer import INPUT_SIZE, Lite0, load_scorer

SCALE = 1000.0  # of a squared distance of unit vectors, which is small between samples of one seed
STRIDE = 32  # pixels of an image to one of the last stage's


@functools.cache
def _network() -> Lite0:
    return load_scorer().backbone


@torch.inference_mode()
def unit_features(images: Tensor) -> list[Tensor]:
    """Outputs of the seven stages, each (B, C, h, w) with unit vectors over C, of images (B, 3 or 1, H, W) of uint8.

    A side is resized to the nearest multiple of 32 pixels, and to at least 96.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images {tuple(images.shape)} of {images.dtype} must be (B, 3 or 1, H, W) of uint8")
    size = [max(INPUT_SIZE, STRIDE * round(side / STRIDE)) for side in images.shape[2:]]
    x = images.float().expand(-1, 3, -1, -1)
    if size != [*images.shape[2:]]:
        x = F.interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0, 255)
    network = _network()
    x = F.relu6(network.stem((x - 127) / 128))
    found = []
    for stage in network.stages:
        x = stage(x)
        found.append(F.normalize(x, dim=1))
    return found


def lite0_distance(features: list[Tensor], reference: list[Tensor]) -> Tensor:
    """Distance (B,) of what `unit_features` gives of images and of their references: LPIPS's form (arXiv 1801.03924, Eq. 1).

    Squared differences summed over channels, mean over places and, all weighted alike, over stages; times `SCALE`.
    """
    stages = [(a - b).square().sum(dim=1).mean(dim=(1, 2)) for a, b in zip(features, reference, strict=True)]
    return SCALE * torch.stack(stages).mean(dim=0)
