"""From samples to pictures: pixel models need nothing, HiDream-I1 the autoencoder in its repository, which is FLUX's."""

from pathlib import Path

import torch

from hidream.config import REPOS, USAGE, hidream_config
from seerkit.weights.autoencoders import Autoencoder, Pixels, load_image_autoencoder
from seerkit.weights.checkpoints import Published, find_weights

ENV = "HIDREAM_VAE"  # names the autoencoder's file, or a folder with it
PUBLISHED = {name: Published("vae/diffusion_pytorch_model.safetensors", repo=repo) for name, repo in REPOS.items()}


def load_autoencoder(
    name: str,
    given: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    tiled: bool = False,
    download: bool = True,
) -> Autoencoder | Pixels:
    """The decoder of a model of `CONFIGS`, a module with `decode(latents)`.

    given: diffusers' file with its config.json beside it, FLUX's ae.safetensors, or a folder with one of them (a whole
    HiDream-I1 repository, too); None looks at the environment variable HIDREAM_VAE and then where it is published. tiled as
    in `load_image_autoencoder`. Raises FileNotFoundError with the command that fetches the autoencoder, UserError for a
    file that does not fit.
    """
    hidream_config(name)  # names an unknown one
    if USAGE[name].factor == 1:
        return Pixels()
    return load_image_autoencoder(find_autoencoder(name, given, download=download), device, dtype, tiled=tiled)


def find_autoencoder(name: str, given: str | Path | None = None, *, download: bool = True) -> Path:
    """The autoencoder's file of a published model, as `load_autoencoder` looks for it; FileNotFoundError if it is missing."""
    return find_weights(given, [PUBLISHED[name]], env=ENV, download=download)
