"""FLUX configurations: the published models and the embedded text-to-emoji model, and how each is used."""

import math
from dataclasses import dataclass, replace

from cache_dic import UserError


@dataclass(frozen=True, kw_only=True)
class FluxConfig:
    """Shape of a FLUX transformer (black-forest-labs/flux model.py); field names are the official parameters'.

    Raises UserError naming the field when a value cannot make a model.
    """

    in_channels: int = 64  # of an image token: latent channels times patch side squared
    out_channels: int = 64
    vec_in_dim: int = 768  # of the pooled text embedding
    context_in_dim: int = 4096  # of the text token embeddings
    hidden_size: int = 3072
    mlp_ratio: float = 4.0  # width of an MLP over hidden_size
    num_heads: int = 24
    depth: int = 19  # number of double-stream blocks
    depth_single_blocks: int = 38
    axes_dim: tuple[int, ...] = (16, 56, 56)  # channels of a head that each axis of the position rotates
    theta: int = 10000  # base of the rotary frequencies
    qkv_bias: bool = True
    guidance_embed: bool = True  # takes the guidance weight as an input (distilled guidance)

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes_dim", tuple(self.axes_dim))
        positive = (
            "in_channels", "out_channels", "vec_in_dim", "context_in_dim", "hidden_size", "num_heads", "theta"
        )  # fmt: skip
        for field in positive:
            if getattr(self, field) < 1:
                raise UserError(f"FluxConfig.{field} = {getattr(self, field)} must be at least 1")
        for field in ("depth", "depth_single_blocks"):
            if getattr(self, field) < 0:
                raise UserError(f"FluxConfig.{field} = {getattr(self, field)} must be at least 0")
        if self.depth + self.depth_single_blocks < 1:
            raise UserError("FluxConfig.depth and depth_single_blocks are both 0; a model needs a block")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"FluxConfig.hidden_size = {self.hidden_size} must be a multiple of num_heads = {self.num_heads}"
            )
        if any(dim % 2 for dim in self.axes_dim) or sum(self.axes_dim) != self.head_dim:
            raise UserError(
                f"FluxConfig.axes_dim = {self.axes_dim} must be even numbers with the sum of a head's {self.head_dim} channels"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_width(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


CONFIGS: dict[str, FluxConfig] = {
    "flux-dev": FluxConfig(),
    "flux-schnell": FluxConfig(guidance_embed=False),
    # Pixels of three channels in patches of 4; label and style of a prompt, embedded by all-MiniLM-L6-v2.
    "flux-tiny": FluxConfig(
        in_channels=48, out_channels=48, vec_in_dim=768, context_in_dim=384,
        hidden_size=256, num_heads=4, depth=3, depth_single_blocks=6, axes_dim=(16, 24, 24),
    ),
    "flux-debug": FluxConfig(
        in_channels=48, out_channels=48, vec_in_dim=768, context_in_dim=384,
        hidden_size=32, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=(4, 6, 6),
    ),
}  # fmt: skip


def flux_config(name: str, *, depth: int | None = None) -> FluxConfig:
    """The configuration called `name`; `depth` cuts it to that many double and twice as many single blocks, for trials."""
    if name not in CONFIGS:
        raise UserError(f"model {name!r} is unknown; choose from {', '.join(CONFIGS)}")
    config = CONFIGS[name]
    return config if depth is None else replace(config, depth=depth, depth_single_blocks=2 * depth)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a model samples, and the settings that it was published with."""

    latent_channels: int = 16  # 3 for pixels
    factor: int = 8  # pixels along the side of a latent; 1 for pixels
    text_tokens: int = 512
    image_size: int = 1024  # side in pixels
    num_steps: int = 50
    guidance: float = 3.5
    batch_size: int = 1
    precision: str = "bf16"


_PIXELS = Usage(
    latent_channels=3, factor=1, text_tokens=16, image_size=32, guidance=3.0, batch_size=8, precision="fp32"
)
USAGE: dict[str, Usage] = {
    "flux-dev": Usage(),
    "flux-schnell": Usage(text_tokens=256, num_steps=4),
    "flux-tiny": _PIXELS,
    "flux-debug": _PIXELS,
}


def patch_side(in_channels: int, latent_channels: int) -> int:
    """Side of a patch, from the channels of a token and of the latents; UserError if there is none."""
    side = math.isqrt(max(0, in_channels // latent_channels))
    if side * side * latent_channels != in_channels:
        raise UserError(f"latents of {latent_channels} channels cannot be packed into tokens of {in_channels}")
    return side


def latent_shape(name: str, height: int, width: int) -> tuple[int, int, int]:
    """Channels, height and width of the latents of an image of `height` x `width` pixels.

    Raises UserError where patches do not fill it: FLUX.1 takes multiples of 16.
    """
    usage = USAGE[name]
    unit = usage.factor * patch_side(CONFIGS[name].in_channels, usage.latent_channels)
    for side, value in (("height", height), ("width", width)):
        if value < 1 or value % unit:
            nearest = max(unit, round(value / unit) * unit)
            raise UserError(f"{side} {value} must be a positive multiple of {unit} for {name}; {nearest} is near")
    return usage.latent_channels, height // usage.factor, width // usage.factor


REPOS = {"flux-dev": "black-forest-labs/FLUX.1-dev", "flux-schnell": "black-forest-labs/FLUX.1-schnell"}
"""Hub repositories of the published models, by name."""
