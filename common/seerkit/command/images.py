"""What the commands share that make images of prompts: a model's own settings, its prompts, decoding one image at a time."""

import argparse
from typing import Protocol

import torch
from torch import Tensor, nn

from seerkit.data.emoji import PROMPTS
from seerkit.devices.staging import staged_on
from seerkit.text.prompts import chosen_prompts, read_prompts


class Usage(Protocol):
    """A model's own settings; image_size is the side of a square in pixels."""

    image_size: int
    num_steps: int
    guidance: float
    batch_size: int
    precision: str


def fill_settings(args: argparse.Namespace, usage: Usage) -> None:
    """Set what was not given to the model's own settings."""
    own = {name: getattr(usage, name) for name in ("num_steps", "guidance", "batch_size", "precision")}
    for name, value in {"width": usage.image_size, "height": usage.image_size, **own}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def shipped_or_given_prompts(args: argparse.Namespace, *, published: bool) -> list[str]:
    """The prompts that the flags ask for, or of models that are not published the shipped ones.

    UserError if there are none or two sources of them.
    """
    default = None if published else lambda: read_prompts(PROMPTS)
    return chosen_prompts(args.prompt, args.prompt_file, flag="--prompt_file", model=args.model_name, default=default)


@torch.inference_mode()
def decode_singly(autoencoder: nn.Module, latents: Tensor, device: torch.device, *, offload: bool) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] on the CPU; with `offload` the autoencoder comes to the device for that alone."""
    with staged_on(device, autoencoder, offload):
        return torch.cat([autoencoder.decode(latent.to(device)).float().cpu() for latent in latents.split(1)])
