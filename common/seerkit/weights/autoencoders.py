"""Between pictures or videos and what a model samples: nothing for pixels, an autoencoder of diffusers for latents."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import UserError
from seerkit.io.files import read_json
from seerkit.weights.checkpoints import checkpoint_files, load_checkpoint
from seerkit.weights.layouts import Layout, Rule

# FLUX's autoencoder, which HiDream-I1 uses, too. The official file has no configuration beside it; this is its architecture
# in the terms of diffusers' AutoencoderKL (black-forest-labs/flux util.py: ch 128, ch_mult 1 2 4 4, two residual blocks a
# level, scale_factor, shift_factor).
FLUX_CONFIG: dict[str, Any] = {
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


class Pixels(nn.Module):
    """The decoder of models that sample pixels."""

    channels, factor, frame_factor = 3, 1, 1

    def decode(self, latents: Tensor) -> Tensor:
        return latents


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
        """Latents (B, C, h, w) -> images (B, 3, H, W) in [-1, 1], not clipped, in the autoencoder's dtype."""
        if latents.ndim != 4 or latents.shape[1] != self.channels:
            raise UserError(f"latents of shape {tuple(latents.shape)} must be (B, {self.channels}, h, w)")
        return self.model.decode(latents.to(self.model.dtype) / self.scale + self.shift).sample


class VideoAutoencoder(nn.Module):
    """An autoencoder whose latents z a model sees as (z - shift) · scale, each one number, or one per channel.

    channels: of the latents. factor: pixels along the side of a latent. frame_factor: frames per latent but for the first,
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
            raise UserError(f"latents of shape {tuple(latents.shape)} must be (B, {self.channels}, T, h, w)")
        z = latents.float() / self.scale + self.shift
        return self.model.decode(z.to(self.model.dtype)).sample

    @torch.inference_mode()
    def encode(self, video: Tensor) -> Tensor:
        """Video (B, 3, F, H, W) in [-1, 1] -> latents (B, C, T, h, w) in float32: the posterior's mode.

        F is 1 and a multiple of frame_factor, H and W are multiples of factor.
        """
        if video.ndim != 5 or video.shape[1] != 3:
            raise UserError(f"a video of shape {tuple(video.shape)} must be (B, 3, F, H, W)")
        frames, *sides = video.shape[2:]
        if (frames - 1) % self.frame_factor or any(side % self.factor for side in sides):
            raise UserError(
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

    published: its configuration where there is no config.json beside a file in diffusers' layout; its values there are of
    the same kinds. layouts: others, of a model.
    Raises UserError for a file, or a configuration, that is not of the class.
    """
    import diffusers

    kind, config = getattr(diffusers, class_name), _config_beside(path)
    model = _from_file(kind, config, published) if config else _on_meta(kind, published)
    others = {layout: layout.convert for layout in layouts(model)}
    return load_checkpoint(model, path, layouts=others, dtype=dtype, device=device).requires_grad_(False)


def autoencoder_files(path: Path) -> list[Path]:
    """All files that `load_diffusers_model` reads for a checkpoint: its own, and the config.json beside it."""
    config = _config_beside(path)
    return [*checkpoint_files(path), *([config] if config else [])]


def _config_beside(path: Path) -> Path | None:
    """The configuration of a file in diffusers' layout; other files may lie beside those of other models."""
    beside = path.parent / "config.json"
    return beside if path.name.startswith("diffusion_pytorch_model") and beside.is_file() else None


def _on_meta(kind: Any, config: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return kind.from_config(config)


def _from_file(kind: Any, path: Path, published: Mapping[str, Any]) -> Any:
    """A model of a configuration in a file; UserError for a file that is none of its class."""
    config = read_json(path, "configuration")
    if not isinstance(config, dict):
        raise UserError(f"configuration {path} is no object with names but of type {type(config).__name__}")
    if config.get("_class_name", kind.__name__) != kind.__name__:
        raise UserError(f"{path} is the configuration of {config['_class_name']}, not of {kind.__name__}")
    for name, example in published.items():
        value = config.get(name)
        if value is not None and _form(value) is not _form(example):
            raise UserError(f"configuration {path} has {name} {value!r:.100}, unlike {example}; fetch it again")
    try:
        return _on_meta(kind, config)
    except Exception as error:  # a configuration of something else raises almost anything there
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"configuration {path} is not of {kind.__name__} ({reason[0][:160]}); fetch it again"
        ) from error


def _form(value: Any) -> type:
    """The kind of a value: numbers are one, sequences another."""
    kinds = {int: float, tuple: list}
    return kinds.get(type(value), type(value))


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


def flux_layout(levels: int) -> Layout:
    """The names of FLUX's official autoencoder -> diffusers', for a number of resolutions.

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


ATTENTION_BEFORE = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def early_layout(names: Iterable[str]) -> Layout:
    """The names of diffusers before 0.18, with which Stable Diffusion's autoencoders are published -> its present `names`."""

    def before(name: str) -> str:
        return re.sub(r"(?<=\.)(to_[qkv]|to_out\.0)(?=\.)", lambda found: ATTENTION_BEFORE[found[0]], name)

    return Layout("diffusers before 0.18", tuple(Rule(name, before(name)) for name in names))


def load_image_autoencoder(
    path: Path,
    device: str | torch.device,
    dtype: torch.dtype,
    *,
    tiled: bool = False,
    published: Mapping[str, Any] | None = None,
) -> Autoencoder:
    """FLUX's autoencoder from its official file, or any AutoencoderKL of diffusers with its config.json beside it.

    published: the configuration of a file without one, None for FLUX's. tiled: images of more than the configuration's
    `sample_size` pixels a side are decoded in overlapping tiles.
    Raises UserError for a file that is neither.
    """
    model = load_diffusers_model(
        "AutoencoderKL",
        path,
        device=device,
        dtype=dtype,
        published=published or FLUX_CONFIG,
        layouts=lambda model: [
            flux_layout(len(model.config.block_out_channels)),
            early_layout(model.state_dict()),
        ],
    )
    if tiled:
        model.enable_tiling()
    return Autoencoder(model)
