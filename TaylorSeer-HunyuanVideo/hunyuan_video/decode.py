"""HunyuanVideo's autoencoder: 16 channels, 8 x 8 pixels and 4 frames per latent (hyvideo vae/)."""

from pathlib import Path
from typing import Any

import torch

from hunyuan_video.config import DIFFUSERS_REPOS, REPOS
from seerkit.weights.autoencoders import VideoAutoencoder, load_diffusers_model
from seerkit.weights.checkpoints import Published, find_weights

ENV = "HUNYUAN_VAE"  # names the autoencoder's file, or a folder with it
PUBLISHED = (  # the same under the same names
    *(Published("hunyuan-video-t2v-720p/vae/pytorch_model.pt", repo=repo) for repo in REPOS.values()),
    *(Published("vae/diffusion_pytorch_model.safetensors", repo=repo) for repo in DIFFUSERS_REPOS.values()),
)
CONFIG: dict[str, Any] = {  # of the published one, in the terms of diffusers' AutoencoderKLHunyuanVideo
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.476986,
    "spatial_compression_ratio": 8,
    "temporal_compression_ratio": 4,
}
# Frames of a tile and from one tile to the next (hyvideo vae/autoencoder_kl_causal_3d.py); diffusers' own 16 and 12 give
# more seams. In space both have 256 and 192 pixels.
TILE_FRAMES, TILE_STRIDE = 64, 48


def load_autoencoder(
    given: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    tiled: bool = True,
    download: bool = True,
) -> VideoAutoencoder:
    """The autoencoder; the official sampler runs it in float16.

    given: the official pytorch_model.pt, diffusers' file with its config.json beside it, or a folder with one of them (a
    whole repository, too); None looks at the environment variable HUNYUAN_VAE and then where it is published. tiled: more
    than 64 frames, or 256 pixels a side, go in overlapping tiles, as in the official sampler.
    Raises FileNotFoundError with the command that fetches the autoencoder, UserError for a file that does not fit.
    """
    path = find_autoencoder(given, download=download)
    model = load_diffusers_model("AutoencoderKLHunyuanVideo", path, device=device, dtype=dtype, published=CONFIG)
    model.use_framewise_encoding = model.use_framewise_decoding = tiled
    if tiled:
        model.enable_tiling(tile_sample_min_num_frames=TILE_FRAMES, tile_sample_stride_num_frames=TILE_STRIDE)
    return VideoAutoencoder(
        model,
        channels=model.config.latent_channels,
        factor=model.config.spatial_compression_ratio,
        frame_factor=model.config.temporal_compression_ratio,
        scale=model.config.scaling_factor,
    )


def find_autoencoder(given: str | Path | None = None, *, download: bool = True) -> Path:
    """The autoencoder's file, as `load_autoencoder` looks for it; FileNotFoundError with what is missing."""
    return find_weights(given, PUBLISHED, env=ENV, download=download)
