"""One component of a pipeline on the device at a time."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def staged_on(device: str | torch.device, module: nn.Module, offload: bool) -> Iterator[nn.Module]:
    """`module` on `device` within the context; with `offload` back where it was afterwards.

    What it gets back are the very tensors that it had, so that nothing is copied from the device, and weights mapped from a
    file stay mapped: changes made within are lost.
    """
    homes = [(part, dict(part._buffers), dict(part._parameters)) for part in module.modules()] if offload else []
    values = [(p, p.data) for _, _, parameters in homes for p in parameters.values() if p is not None]
    try:
        yield module.to(device)
    finally:
        for part, buffers, parameters in homes:
            part._buffers.update(buffers)
            part._parameters.update(parameters)
        for parameter, value in values:
            if parameter.device != value.device:
                parameter.data = value
        if offload and torch.device(device).type == "cuda":
            torch.cuda.empty_cache()


@torch.inference_mode()
def decode_singly(autoencoder: nn.Module, latents: Tensor, device: torch.device, *, offload: bool) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] on the CPU; with `offload` the autoencoder comes to the device for that alone."""
    with staged_on(device, autoencoder, offload):
        return torch.cat([autoencoder.decode(latent.to(device)).float().cpu() for latent in latents.split(1)])
