"""From samples to pictures: pixel models need nothing, latent models the Stable Diffusion autoencoder."""

from collections.abc import Callable

import torch
from torch import Tensor

from dit.config import DiTConfig

LATENT_SCALE = 0.18215  # latents are the autoencoder's times this (facebookresearch/DiT sample.py)
VAES = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}

Decoder = Callable[[Tensor], Tensor]
"""Samples (B, C, H, W) -> images (B, 3 or 1, H', W') in [-1, 1], not clipped."""


def load_decoder(config: DiTConfig, vae: str, device: torch.device) -> Decoder:
    """The decoder for a configuration. vae: a key of VAES, a local folder in diffusers' layout, or a hub repository.

    Raises FileNotFoundError with the command that fetches the autoencoder when it is not to be had.
    """
    if config.in_channels != 4:
        return lambda samples: samples
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.disable_progress_bar()
    name = VAES.get(vae, vae)
    folder = f"checkpoints/{name.split('/')[-1]}"
    try:
        autoencoder = AutoencoderKL.from_pretrained(name).to(device).eval()
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"the autoencoder {name} is neither a folder here nor to be had from the hub "
            f"({str(error).splitlines()[0][:120]}); fetch it with `hf download {name} --local-dir {folder}` "
            f"and pass --vae {folder}"
        ) from error
    return lambda samples: autoencoder.decode(samples.to(autoencoder.dtype) / LATENT_SCALE).sample
