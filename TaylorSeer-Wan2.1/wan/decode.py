"""Wan2.1's autoencoder: 16 channels, 8 x 8 pixels and 4 frames per latent (wan modules/vae.py)."""

from pathlib import Path
from typing import Any

import torch

from seerkit.weights.autoencoders import VideoAutoencoder, load_diffusers_model
from seerkit.weights.checkpoints import Published, find_weights
from seerkit.weights.layouts import Layout, Rule
from wan.config import DIFFUSERS_REPOS, REPOS

ENV = "WAN_VAE"  # names the autoencoder's file, or a folder with it
OFFICIAL_FILE = "Wan2.1_VAE.pth"  # beside the transformer's
PUBLISHED = (  # all the same
    *(Published(OFFICIAL_FILE, repo=repo) for repo in REPOS.values()),
    *(Published("vae/diffusion_pytorch_model.safetensors", repo=repo) for repo in DIFFUSERS_REPOS.values()),
)
CONFIG: dict[str, Any] = {  # of the published one, in the terms of diffusers' AutoencoderKLWan; it has the statistics
    "base_dim": 96,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
}


def _residual(ours: str, theirs: str) -> list[Rule]:
    return [
        Rule(f"{ours}.norm1.gamma", f"{theirs}.residual.0.gamma"),
        Rule(f"{ours}.conv1.{{p}}", f"{theirs}.residual.2.{{p}}"),
        Rule(f"{ours}.norm2.gamma", f"{theirs}.residual.3.gamma"),
        Rule(f"{ours}.conv2.{{p}}", f"{theirs}.residual.6.{{p}}"),
        Rule(f"{ours}.conv_shortcut.{{p}}", f"{theirs}.shortcut.{{p}}"),
    ]


def _resample(ours: str, theirs: str) -> list[Rule]:
    return [Rule(f"{ours}.{part}.{{p}}", f"{theirs}.{part}.{{p}}") for part in ("resample.1", "time_conv")]


def official_layout(levels: int, num_res_blocks: int) -> Layout:
    """The official autoencoder's names -> diffusers', for a number of resolutions and of residual blocks in each.

    Both count the layers of the encoder in one list; of the decoder, with a block more in each level, the official one alone.
    """
    rules = [Rule("quant_conv.{p}", "conv1.{p}"), Rule("post_quant_conv.{p}", "conv2.{p}")]
    for half in ("encoder", "decoder"):
        attention = f"{half}.mid_block.attentions.0"
        rules += [
            Rule(f"{half}.conv_in.{{p}}", f"{half}.conv1.{{p}}"),
            *_residual(f"{half}.mid_block.resnets.0", f"{half}.middle.0"),
            *(
                Rule(f"{attention}.{part}.{{p}}", f"{half}.middle.1.{part}.{{p}}")
                for part in ("norm", "to_qkv", "proj")
            ),
            *_residual(f"{half}.mid_block.resnets.1", f"{half}.middle.2"),
            Rule(f"{half}.norm_out.gamma", f"{half}.head.0.gamma"),
            Rule(f"{half}.conv_out.{{p}}", f"{half}.head.2.{{p}}"),
        ]
    for make in (_residual, _resample):
        rules += make("encoder.down_blocks.{i}", "encoder.downsamples.{i}")
    for level in range(levels):
        first = level * (num_res_blocks + 2)
        for block in range(num_res_blocks + 1):
            rules += _residual(f"decoder.up_blocks.{level}.resnets.{block}", f"decoder.upsamples.{first + block}")
        rules += _resample(f"decoder.up_blocks.{level}.upsamplers.0", f"decoder.upsamples.{first + num_res_blocks + 1}")
    return Layout("official", tuple(rules))


def load_autoencoder(
    given: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    tiled: bool = False,
    download: bool = True,
) -> VideoAutoencoder:
    """The autoencoder; the official code runs it in float32.

    given: the official Wan2.1_VAE.pth, diffusers' file with its config.json beside it, or a folder with one of them (a
    whole repository, too); None looks at the environment variable WAN_VAE and then where it is published. tiled: more
    than 256 pixels a side go in overlapping tiles, which takes less memory and may leave faint seams.
    Raises FileNotFoundError with the command that fetches the autoencoder, UserError for a file that does not fit.
    """
    path = find_autoencoder(given, download=download)
    model = load_diffusers_model(
        "AutoencoderKLWan",
        path,
        device=device,
        dtype=dtype,
        published=CONFIG,
        layouts=lambda model: [official_layout(len(model.config.dim_mult), model.config.num_res_blocks)],
    )
    if tiled:
        model.enable_tiling()
    return VideoAutoencoder(
        model,
        channels=model.config.z_dim,
        factor=model.config.scale_factor_spatial,
        frame_factor=model.config.scale_factor_temporal,
        scale=[1 / std for std in model.config.latents_std],
        shift=model.config.latents_mean,
    )


def find_autoencoder(given: str | Path | None = None, *, download: bool = True) -> Path:
    """The autoencoder's file, as `load_autoencoder` looks for it; FileNotFoundError with what is missing."""
    return find_weights(given, PUBLISHED, env=ENV, download=download)
