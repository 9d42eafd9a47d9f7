"""From samples to pictures: pixel models need nothing, latent models the Stable Diffusion autoencoder."""

import re
from pathlib import Path
from typing import Any

import torch

from dit.config import VAES, DiTConfig
from seerkit.weights.autoencoders import Autoencoder, Pixels, load_image_autoencoder
from seerkit.weights.checkpoints import Published, find_weights

WEIGHTS = "diffusion_pytorch_model.safetensors"
REPOSITORY = re.compile(
    r"(?!.*(--|\.\.))(?!.{97})\w([\w.-]*\w)?/\w([\w.-]*\w)?(?<!\.git)", re.ASCII
)  # what the hub takes
LATENT_SCALE = 0.18215  # latents are the autoencoder's times this, whatever it says (facebookresearch/DiT sample.py)
CONFIG: dict[str, Any] = {  # of the published ones, in the terms of diffusers' AutoencoderKL
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "scaling_factor": LATENT_SCALE,
    "sample_size": 256,
}


def is_folder(vae: str) -> bool:
    """Whether an autoencoder is named by a folder or file, rather than by a key of VAES or a hub repository."""
    return vae not in VAES and (REPOSITORY.fullmatch(vae) is None or Path(vae).exists())


def published(vae: str) -> Published:
    """The file of an autoencoder in its repository; of the default one for a folder, in which it has that name, too."""
    repo = VAES["ema"] if is_folder(vae) else VAES.get(vae, vae)
    return Published(WEIGHTS, repo=repo, beside=("config.json",))


def find_autoencoder(vae: str, *, download: bool = True) -> Path:
    """The autoencoder's file. vae: a key of VAES, a file or folder in diffusers' layout, or a hub repository.

    Raises FileNotFoundError with the places looked at and the command that fetches it.
    """
    return find_weights(vae if is_folder(vae) else None, [published(vae)], download=download)


def load_autoencoder(
    config: DiTConfig, vae: str | None, device: str | torch.device = "cpu", *, download: bool = True
) -> Autoencoder | Pixels:
    """The decoder of a configuration, in float32, a module with `decode(latents)`; vae as in `find_autoencoder`.

    Raises FileNotFoundError as `find_autoencoder` does, UserError for a file that holds no autoencoder.
    """
    if not config.is_latent:
        return Pixels()
    path = find_autoencoder(vae, download=download)
    autoencoder = load_image_autoencoder(path, device, torch.float32, published=CONFIG)
    autoencoder.scale, autoencoder.shift = LATENT_SCALE, 0.0
    return autoencoder
