"""DINOv2 ViT-L/14, whose class token FD-DINOv2 is measured on (arXiv 2306.04675), by way of timm.

As its authors' code does (layer6ai-labs/dgm-eval, dgm_eval/models/dinov2.py): bicubic to 224 x 224 by Pillow, whatever the
image's proportions, and ImageNet's mean and deviation. Position embeddings, which are of 37 x 37 patches, are made smaller as
the published network does it (facebookresearch/dinov2, dinov2/models/vision_transformer.py), not with timm's antialiasing.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cache_dic import UserError
from evaluation.scoring.extractors import Extractor, Network, find_published
from seerkit.weights.checkpoints import Published, load_weights, read_state

NAME = "vit_large_patch14_dinov2"
DIGEST = "d5383ea8"  # the first of the sha256 of the authors' file; that of timm's copy was not to be found out
FILES = (
    Published(
        "dinov2_vitl14_pretrain.pth",
        url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
    ),
)
ENV = "DINOV2_WEIGHTS"  # names another file
SIDE, PATCH = 224, 14  # pixels
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _dinov2(path: Path, device: torch.device) -> Network:
    return load_dinov2(path, device, NAME)


def load_dinov2(path: Path, device: torch.device, name: str) -> Network:
    """The network of a file in timm's layout or in the authors', which differ in a tensor that only training needs."""
    import timm

    state = dict(read_state(path))
    state.pop("mask_token", None)
    try:
        state["pos_embed"] = resized_positions(state["pos_embed"], SIDE // PATCH)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not hold the tensors of DINOv2 ({error!r}); fetch it again") from error
    with torch.device("meta"):
        network = timm.create_model(name, pretrained=False, num_classes=0, img_size=SIDE)
    network = load_weights(network, state, device=device).eval().requires_grad_(False)
    mean, deviation = (torch.tensor(values, device=device)[:, None, None] for values in (MEAN, DEVIATION))

    def features(images: Tensor) -> dict[str, Tensor]:
        small = [
            np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            for image in images.permute(0, 2, 3, 1).cpu().numpy()
        ]
        x = torch.from_numpy(np.stack(small)).to(device).permute(0, 3, 1, 2) / 255
        return {"token": network((x - mean) / deviation)}

    return features


def resized_positions(embedding: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + side², D) of a class token and side x side patches, from those of more or fewer patches.

    A tenth of a patch more is asked for than is taken, as in the published network, whose features depend on it.
    """
    token, patches = embedding.float().split([1, embedding.shape[1] - 1], dim=1)
    before = round(patches.shape[1] ** 0.5)
    if before == side:
        return embedding
    grid = patches.reshape(1, before, before, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=(side + 0.1) / before, mode="bicubic")
    return torch.cat([token, grid.flatten(2).transpose(1, 2)], dim=1)


EXTRACTORS = {
    "dinov2": Extractor(
        name="dinov2",
        title="DINOv2",
        layers={"token": 1024},
        seen=f"bicubic to {SIDE} x {SIDE} by Pillow, ImageNet's mean and deviation",
        find=lambda: find_published(FILES, ENV, "1.2 GB", DIGEST),
        load=_dinov2,
        packages=("timm",),
    )
}
