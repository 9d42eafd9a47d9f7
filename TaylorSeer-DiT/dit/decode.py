"""From samples to pictures: pixel models need nothing, latent models the Stable Diffusion autoencoder."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cache_dic import UserError
from dit.config import DiTConfig
from seerkit.devices.memory import is_out_of_memory

LATENT_SCALE = 0.18215  # latents are the autoencoder's times this (facebookresearch/DiT sample.py)
WEIGHTS = "diffusion_pytorch_model"
VAES = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}

Decoder = Callable[[Tensor], Tensor]
"""Samples (B, C, H, W) -> images (B, 3 or 1, H', W') in [-1, 1], not clipped."""


def find_vae(vae: str) -> list[Path]:
    """The files of an autoencoder. vae: a key of VAES, a local folder in diffusers' layout, or a hub repository.

    Raises FileNotFoundError with the command that fetches it when it is not to be had.
    """
    name = VAES.get(vae, vae)
    folder = Path(name)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(name, allow_patterns=["config.json", f"{WEIGHTS}.safetensors"]))
        except Exception as error:  # of its HTTP client, its transfer backend or its own, with no common base
            place = f"checkpoints/{name.split('/')[-1]}"
            raise FileNotFoundError(
                f"the autoencoder {name} is neither a folder here nor to be had from the hub ({_reason(error)}); fetch it "
                f"with `hf download {name} --local-dir {place}` and pass --vae {place}"
            ) from error
    return [folder / "config.json", *sorted(folder.glob(f"{WEIGHTS}*"))]


def load_decoder(config: DiTConfig, vae: str | None, device: torch.device) -> Decoder:
    """The decoder for a configuration; vae as in `find_vae`, None for pixels.

    Raises FileNotFoundError as `find_vae` does, UserError for a folder that holds no autoencoder.
    """
    if not config.is_latent:
        return lambda samples: samples
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.disable_progress_bar()
    folder = find_vae(vae)[0].parent
    try:
        autoencoder = AutoencoderKL.from_pretrained(folder)
    except Exception as error:  # files of another kind raise almost anything there
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"--vae {folder} cannot be read as an AutoencoderKL ({_reason(error)}); fetch it again"
        ) from error
    autoencoder.to(device).eval()
    return lambda samples: autoencoder.decode(samples.to(autoencoder.dtype) / LATENT_SCALE).sample


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
