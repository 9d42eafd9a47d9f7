"""Between pictures or videos and what a model samples: nothing for pixels, an autoencoder of diffusers for latents."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seerkit.weights import Layout, load_checkpoint


class Pixels(nn.Module):
    """The decoder of models that sample pixels."""

    channels, factor, frame_factor = 3, 1, 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class VideoAutoencoder(nn.Module):
    """An autoencoder whose latents z a model sees as (z - shift) · scale, each a number or one a channel.

    channels: of the latents. factor: pixels along the side of a latent. frame_factor: frames a latent but for the first,
    which stands for one frame.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        channels: int,
        factor: int,
        frame_factor: int,
        scale: float | Sequence[float],
        shift: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.channels, self.factor, self.frame_factor = channels, factor, frame_factor
        for name, value in (("scale", scale), ("shift", shift)):
            self.register_buffer(name, torch.tensor(value, device=model.device).view(-1, 1, 1, 1), persistent=False)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, T, h, w) -> video (B, 3, F, H, W) in [-1, 1], maybe a little beyond, in the autoencoder's dtype.

        F = (T - 1) · frame_factor + 1, H = h · factor, W = w · factor.
        """
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise ValueError(f"latents of shape {tuple(latents.shape)} must be (B, {self.channels}, T, h, w)")
        z = latents.float() / self.scale + self.shift
        return self.model.decode(z.to(self.model.dtype)).sample

    @torch.inference_mode()
    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, F, H, W) in [-1, 1] -> latents (B, C, T, h, w) in float32: the posterior's mode.

        F is 1 and a multiple of frame_factor, H and W are multiples of factor.
        """
        if video.ndim != 5 or video.shape[1] != 3:
            raise ValueError(f"a video of shape {tuple(video.shape)} must be (B, 3, F, H, W)")
        frames, *sides = video.shape[2:]
        if (frames - 1) % self.frame_factor or any(side % self.factor for side in sides):
            raise ValueError(
                f"a video of {frames} frames of {sides[0]} x {sides[1]} pixels cannot be encoded: it takes 1 and a multiple "
                f"of {self.frame_factor} frames, and sides in multiples of {self.factor}"
            )
        z = self.model.encode(video.to(self.model.dtype)).latent_dist.mode()
        return (z.float() - self.shift) * self.scale


def load_diffusers_model(
    class_name: str,
    path: Path,
    *,
    device: str | torch.device,
    dtype: torch.dtype,
    published: Mapping[str, Any],
    layouts: Callable[[Any], Sequence[Layout]] = lambda model: (),
) -> Any:
    """A model of diffusers in eval mode, without gradients, from a checkpoint.

    published: its configuration where there is no config.json beside a file in diffusers' layout. layouts: others, of a model.
    Raises ValueError for a file, or a configuration, that is not of the class.
    """
    import diffusers

    with torch.device("meta"):
        model = getattr(diffusers, class_name).from_config(_config_beside(path, class_name) or published)
    others = {layout: layout.convert for layout in layouts(model)}
    return load_checkpoint(model, path, layouts=others, dtype=dtype, device=device).requires_grad_(False)


def _config_beside(path: Path, class_name: str) -> dict[str, Any] | None:
    beside = path.parent / "config.json"
    if not path.name.startswith("diffusion_pytorch_model") or not beside.is_file():
        return None
    try:
        config = dict(json.loads(beside.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{beside} cannot be read ({error})") from error
    if config.get("_class_name", class_name) != class_name:
        raise ValueError(f"{beside} is the configuration of {config['_class_name']}, not of {class_name}")
    return config
