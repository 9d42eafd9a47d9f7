"""From samples to pictures: pixel models need nothing, latent models FLUX's autoencoder of 16 channels."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flux.config import USAGE, flux_config
from flux.weights import REPOS, licence_hint
from seerkit.autoencoders import Pixels, load_diffusers_model
from seerkit.weights import Layout, Published, Rule, find_weights

ENV = "AE"  # names the autoencoder's file, or a folder with it
# The official file has no configuration beside it; this is its architecture in the terms of diffusers' AutoencoderKL
# (black-forest-labs/flux util.py: ch 128, ch_mult 1 2 4 4, two residual blocks a level, scale_factor, shift_factor).
OFFICIAL_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "sample_size": 1024,  # side of a tile in pixels, where images are decoded in tiles
}


def _resnet(ours: str, theirs: str) -> list[Rule]:
    same = [Rule(f"{ours}.{part}.{{p}}", f"{theirs}.{part}.{{p}}") for part in ("norm1", "conv1", "norm2", "conv2")]
    return [*same, Rule(f"{ours}.conv_shortcut.{{p}}", f"{theirs}.nin_shortcut.{{p}}")]


def _attention(ours: str, theirs: str) -> list[Rule]:
    rules = [Rule(f"{ours}.group_norm.{{p}}", f"{theirs}.norm.{{p}}")]
    for to, part in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
        # A convolution over single pixels, (D, D, 1, 1), is a linear layer.
        rules.append(Rule(f"{ours}.{to}.weight", f"{theirs}.{part}.weight", transform=lambda w: w.flatten(1)))
        rules.append(Rule(f"{ours}.{to}.bias", f"{theirs}.{part}.bias"))
    return rules


def official_layout(levels: int) -> Layout:
    """The official autoencoder's names -> diffusers', for a number of resolutions.

    The official decoder counts its levels from the finest to the coarsest, diffusers in the order of their use.
    """
    rules: list[Rule] = []
    for half in ("encoder", "decoder"):
        rules += [
            Rule(f"{half}.conv_in.{{p}}", f"{half}.conv_in.{{p}}"),
            Rule(f"{half}.conv_norm_out.{{p}}", f"{half}.norm_out.{{p}}"),
            Rule(f"{half}.conv_out.{{p}}", f"{half}.conv_out.{{p}}"),
            *_resnet(f"{half}.mid_block.resnets.0", f"{half}.mid.block_1"),
            *_attention(f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"),
            *_resnet(f"{half}.mid_block.resnets.1", f"{half}.mid.block_2"),
        ]
    for level in range(levels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{levels - 1 - level}"
        rules += _resnet(down + ".resnets.{j}", f"encoder.down.{level}.block.{{j}}")
        rules += _resnet(up + ".resnets.{j}", f"decoder.up.{level}.block.{{j}}")
        rules.append(Rule(down + ".downsamplers.0.conv.{p}", f"encoder.down.{level}.downsample.conv.{{p}}"))
        rules.append(Rule(up + ".upsamplers.0.conv.{p}", f"decoder.up.{level}.upsample.conv.{{p}}"))
    return Layout("official", tuple(rules))


class Autoencoder(nn.Module):
    """The decoder of latents.

    channels: of the latents. factor: pixels along the side of a latent.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.scale, self.shift = model.config.scaling_factor, model.config.shift_factor or 0.0
        self.channels = model.config.latent_channels
        self.factor = 2 ** (len(model.config.block_out_channels) - 1)

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, 16, h, w) -> images (B, 3, 8h, 8w) in [-1, 1], not clipped, in the autoencoder's dtype."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise ValueError(f"latents of shape {tuple(latents.shape)} must be (B, {self.channels}, h, w)")
        return self.model.decode(latents.to(self.model.dtype) / self.scale + self.shift).sample


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
    Raises FileNotFoundError with the command that fetches the autoencoder, ValueError for a file that does not fit.
    """
    flux_config(config_name)  # names an unknown one
    if USAGE[config_name].factor == 1:
        return Pixels()
    path = find_autoencoder(config_name, given, download=download)
    model = load_diffusers_model(
        "AutoencoderKL",
        path,
        device=device,
        dtype=dtype,
        published=OFFICIAL_CONFIG,
        layouts=lambda model: [official_layout(len(model.config.block_out_channels))],
    )
    if tiled:
        model.enable_tiling()
    return Autoencoder(model)


def find_autoencoder(config_name: str, given: str | Path | None = None, *, download: bool = True) -> Path:
    """The autoencoder's file, as `load_autoencoder` looks for it; FileNotFoundError with what is missing."""
    files = published(config_name)
    try:
        return find_weights(given, files, env=ENV, download=download)
    except FileNotFoundError as error:
        error.args = (f"{error}; {licence_hint(files[0].repo)}",)
        raise
