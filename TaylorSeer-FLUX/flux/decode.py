"""From samples to pictures: pixel models need nothing, latent models FLUX's autoencoder of 16 channels."""

from pathlib import Path

import torch

from flux.config import REPOS, USAGE, flux_config
from flux.weights import licence_hint
from seerkit.weights.autoencoders import Autoencoder, Pixels, load_image_autoencoder
from seerkit.weights.checkpoints import Published, find_weights

ENV = "AE"  # names the autoencoder's file, or a folder with it


def published(config_name: str) -> tuple[Published, ...]:
    """Files of the autoencoder, which is the same in all repositories; the model's own comes first."""
    repos = sorted(REPOS.items(), key=lambda item: item[0] != config_name)
    names = ("ae.safetensors", "vae/diffusion_pytorch_model.safetensors")
    return tuple(Published(name, repo=repo) for _, repo in repos for name in names)


def load_autoencoder(
    config_name: str,
    given: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    tiled: bool = False,
    download: bool = True,
) -> Autoencoder | Pixels:
    """The decoder of a configuration, a module with `decode(latents)`.

    given: the official ae.safetensors, diffusers' file with its config.json beside it, or a folder with one of them (a
    whole FLUX repository, too); None looks at the environment variable AE and then where it is published. tiled: images
    of more than 1024 pixels a side are decoded in overlapping tiles, which takes less memory and may leave faint seams.
    Raises FileNotFoundError with the command that fetches the autoencoder, UserError for a file that does not fit.
    """
    flux_config(config_name)  # names an unknown one
    if USAGE[config_name].factor == 1:
        return Pixels()
    path = find_autoencoder(config_name, given, download=download)
    return load_image_autoencoder(path, device, dtype, tiled=tiled)


def find_autoencoder(config_name: str, given: str | Path | None = None, *, download: bool = True) -> Path:
    """The autoencoder's file, as `load_autoencoder` looks for it; FileNotFoundError with what is missing."""
    files = published(config_name)
    try:
        return find_weights(given, files, env=ENV, download=download)
    except FileNotFoundError as error:
        error.args = (f"{error}; {licence_hint(files[0].repo)}",)
        raise
