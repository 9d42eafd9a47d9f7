"""The first frame of image to video: its size, its CLIP tokens, and the channels beside the noise (wan image2video.py)."""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_dic import UserError
from seerkit.io.media import read_picture
from seerkit.text.encoders import Encoder, Source, find_encoder, from_folder
from seerkit.weights.autoencoders import VideoAutoencoder
from wan.config import DIFFUSERS_REPOS

CLIP = Encoder(
    "image encoder CLIP ViT-H/14",
    "--clip",
    tuple(Source(repo, "image_encoder", "image_processor") for repo in DIFFUSERS_REPOS.values() if "I2V" in repo),
    processor="preprocessor",
)


def read_image(path: str | Path) -> Tensor:
    """An image file as (1, 3, H, W) in [-1, 1], float32; UserError if it cannot be read (`seerkit.io.media.read_picture`)."""
    return torch.from_numpy(read_picture(path)).permute(2, 0, 1)[None].float() / 127.5 - 1


def output_size(height: int, width: int, max_area: int, unit: int = 16) -> tuple[int, int]:
    """Height and width of the video of an image: its aspect ratio, at most `max_area` pixels, in multiples of `unit`.

    unit: pixels along the side of a token of the model. A size that fits exactly may lose one to rounding, as in the official
    code: 480 x 832 pixels become 464 x 832. Raises UserError if the image is too narrow.
    """
    aspect = height / width
    sides = (math.sqrt(max_area * aspect), math.sqrt(max_area / aspect))
    size = tuple(int(side // unit) * unit for side in sides)
    if not all(size):
        raise UserError(
            f"an image of {height} x {width} pixels has no place in {max_area} pixels: a side would be below {unit}; crop it"
        )
    return size


def resized(image: Tensor, height: int, width: int) -> Tensor:
    """Images (B, 3, H, W) at another size, bicubic without smoothing, as the official code resizes both its inputs."""
    return F.interpolate(image, size=(height, width), mode="bicubic", align_corners=False)


def first_frame_condition(
    image: Tensor, num_frames: int, height: int, width: int, autoencoder: VideoAutoencoder
) -> Tensor:
    """The model's input y (B, 4 + C, T, h, w) in float32: which frames are known, and latents of a video with only these.

    image: (B, 3, H, W) in [-1, 1] of any size. num_frames, height, width: of the video in pixels.
    The video is the image and then frames of zeros, grey. The mask has a channel for each frame of a latent; the first
    latent, of one frame, counts it four times, so all of its channels are 1.
    """
    first = resized(image, height, width)[:, :, None]  # (B, 3, 1, height, width)
    video = F.pad(first, (0, 0, 0, 0, 0, num_frames - 1))
    latents = autoencoder.encode(video.to(autoencoder.scale.device))  # (B, C, T, h, w)
    batch, _, *grid = latents.shape
    mask = latents.new_zeros(batch, autoencoder.frame_factor, *grid)
    mask[:, :, 0] = 1
    return torch.cat([mask, latents], dim=1)


class ImageEncoder:
    """The image tower of CLIP ViT-H/14, loaded at the first image and freed by `drop`.

    given: a folder as in `find_encoder`. dtype: the official code has float16.
    """

    def __init__(
        self,
        given: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        download: bool = True,
    ) -> None:
        self.given, self.device, self.dtype, self.download = given, torch.device(device), dtype, download
        self._loaded: tuple[Any, Tensor, Tensor] | None = None

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    def load(self) -> tuple[Any, Tensor, Tensor]:
        """The model, and mean and deviation (3, 1, 1) that its pixels in [0, 1] are normalised with."""
        if self._loaded is None:
            folder, processor = find_encoder(CLIP, self.given, download=self.download)
            from transformers import CLIPVisionModel

            model = from_folder(CLIPVisionModel, folder, dtype=self.dtype).to(self.device)
            self._loaded = model, *(value.to(self.device) for value in _statistics(processor))
        return self._loaded

    @torch.inference_mode()
    def encode(self, image: Tensor) -> Tensor:
        """Tokens (B, 257, 1280) before the last layer, of images (B, 3, H, W) in [-1, 1] of any size.

        An image is squeezed into a square, as in the official code; diffusers' pipeline crops it instead.
        """
        model, mean, std = self.load()
        side = model.config.image_size
        pixels = (resized(image.to(self.device).float(), side, side) / 2 + 0.5 - mean) / std
        return model(pixel_values=pixels.to(self.dtype), output_hidden_states=True).hidden_states[-2]

    def drop(self) -> None:
        """Free the encoder; the next image loads it again."""
        self._loaded = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _statistics(folder: Path) -> tuple[Tensor, Tensor]:
    path = folder / "preprocessor_config.json"
    try:
        settings = json.loads(path.read_text())
        return tuple(torch.tensor(settings[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} has no image_mean and image_std of three numbers ({error}); fetch it again") from error
