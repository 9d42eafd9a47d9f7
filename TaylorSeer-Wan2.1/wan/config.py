"""Wan2.1 configurations: the published models and the embedded text-to-video model, and how each is used."""

import math
from dataclasses import InitVar, dataclass, replace

from cache_dic import UserError

_FIXED = ("window_size", "qk_norm", "cross_attn_norm")  # the same in every model


@dataclass(frozen=True, kw_only=True)
class WanConfig:
    """Shape of a Wan2.1 transformer (Wan-Video/Wan2.1 model.py); field names are the official parameters'.

    Takes an official configuration whole: settings that are the same in every model are checked and not kept.
    Raises UserError naming the field when a value cannot make a model.
    """

    model_type: str = "t2v"  # or i2v, which also attends to CLIP tokens of the first frame
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_len: int = 512  # tokens that a text is padded to; the padding is attended to
    in_dim: int = 16  # channels: for i2v latents, mask and first frame
    dim: int = 1536
    ffn_dim: int = 8960
    freq_dim: int = 256  # channels of the sinusoidal embedding of time
    text_dim: int = 4096
    out_dim: int = 16
    num_heads: int = 12
    num_layers: int = 30
    image_dim: int = 1280  # of the CLIP tokens, i2v alone
    eps: float = 1e-6
    window_size: InitVar[tuple[int, int]] = (-1, -1)  # of attention: everywhere
    qk_norm: InitVar[bool] = True
    cross_attn_norm: InitVar[bool] = True

    def __post_init__(self, window_size: tuple[int, int], *norms: bool) -> None:
        size = tuple(window_size) if isinstance(window_size, list) else window_size
        for field, value in zip(_FIXED, (size, *norms), strict=True):
            if value != (only := getattr(type(self), field)):
                raise UserError(f"WanConfig.{field} = {value!r} must be {only!r}, as in every model")
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        if self.model_type not in ("t2v", "i2v"):
            raise UserError(f"WanConfig.model_type = {self.model_type!r} must be t2v or i2v")
        positive = (
            "text_len", "in_dim", "dim", "ffn_dim", "freq_dim", "text_dim", "out_dim", "num_heads", "num_layers",
            "image_dim",
        )  # fmt: skip
        for field in positive:
            if getattr(self, field) < 1:
                raise UserError(f"WanConfig.{field} = {getattr(self, field)} must be at least 1")
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise UserError(f"WanConfig.patch_size = {self.patch_size} must be three numbers of at least 1")
        if self.dim % (2 * self.num_heads):
            raise UserError(f"WanConfig.dim = {self.dim} must be a multiple of twice num_heads = {self.num_heads}")
        if self.in_dim < self.out_dim:
            raise UserError(f"WanConfig.in_dim = {self.in_dim} must be at least out_dim = {self.out_dim}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def rope_dims(self) -> tuple[int, int, int]:
        """Channels of a head that frame, row and column rotate: a third each, what is left goes to the frames."""
        third = 2 * (self.head_dim // 6)
        return self.head_dim - 2 * third, third, third


# Pixels of three channels; captions of seerkit.data.captions as one-hot words.
_TINY = WanConfig(
    patch_size=(2, 4, 4), text_len=8, text_dim=48, in_dim=3, out_dim=3, dim=192, ffn_dim=768, num_heads=4, num_layers=6
)  # fmt: skip
_14B = {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40}
CONFIGS: dict[str, WanConfig] = {
    "wan-t2v-1.3B": WanConfig(),
    "wan-t2v-14B": WanConfig(**_14B),
    "wan-i2v-14B-480P": WanConfig(**_14B, model_type="i2v", in_dim=36),
    "wan-i2v-14B-720P": WanConfig(**_14B, model_type="i2v", in_dim=36),
    "wan-tiny": _TINY,
    "wan-debug": replace(_TINY, dim=32, ffn_dim=64, num_heads=2, num_layers=2),
}


def wan_config(name: str, *, depth: int | None = None) -> WanConfig:
    """The configuration called `name`; `depth` cuts it to that many blocks, for trials."""
    if name not in CONFIGS:
        raise UserError(f"model {name!r} is unknown; choose from {', '.join(CONFIGS)}")
    config = CONFIGS[name]
    return config if depth is None else replace(config, num_layers=depth)


# The official negative prompt (wan configs/shared_config.py); for image to video it has two words more in front.
NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，丑陋的，残缺的，"
    "多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，杂乱的背景，三条腿，背景人很多，"
    "倒着走"
)
NEGATIVE_PROMPT_I2V = "镜头晃动，" + NEGATIVE_PROMPT


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a model samples, and the settings that it was published with."""

    latent_channels: int = 16  # 3 for pixels
    factor: int = 8  # pixels along the side of a latent; 1 for pixels
    frame_factor: int = 4  # frames of a latent, after the first, which stands alone; 1 for pixels
    text_tokens: int = 512
    sizes: tuple[tuple[int, int], ...]  # published (width, height)
    frames: int = 81
    fps: int = 16
    num_steps: int = 50
    guidance: float = 5.0
    shift: float = 5.0
    batch_size: int = 1
    precision: str = "bf16"
    negative_prompt: str = NEGATIVE_PROMPT


_480P, _720P = ((832, 480), (480, 832)), ((1280, 720), (720, 1280))
_PIXELS = Usage(
    latent_channels=3, factor=1, frame_factor=1, text_tokens=_TINY.text_len, sizes=((24, 24),), frames=8, fps=8,
    guidance=2.0, shift=3.0, batch_size=4, precision="fp32", negative_prompt="",
)  # fmt: skip
USAGE: dict[str, Usage] = {
    "wan-t2v-1.3B": Usage(sizes=_480P),
    "wan-t2v-14B": Usage(sizes=_720P + _480P),
    "wan-i2v-14B-480P": Usage(sizes=_480P, num_steps=40, shift=3.0, negative_prompt=NEGATIVE_PROMPT_I2V),
    "wan-i2v-14B-720P": Usage(sizes=_720P, num_steps=40, negative_prompt=NEGATIVE_PROMPT_I2V),
    "wan-tiny": _PIXELS,
    "wan-debug": _PIXELS,
}


def latent_shape(name: str, height: int, width: int, frames: int) -> tuple[int, int, int, int]:
    """Channels, frames, height and width of the latents of a video.

    Raises UserError where patches do not fill it: Wan2.1 takes 4k + 1 frames and sides that are multiples of 16.
    """
    usage, (pt, ph, pw) = USAGE[name], wan_config(name).patch_size
    for side, value, patch in (("height", height, ph), ("width", width, pw)):
        unit = usage.factor * patch
        if value < 1 or value % unit:
            nearest = max(unit, round(value / unit) * unit)
            raise UserError(f"{side} {value} must be a positive multiple of {unit} for {name}; {nearest} is near")
    first = 1 if usage.frame_factor > 1 else 0
    unit = usage.frame_factor * pt
    if frames < 1 or (frames - first) % unit:
        nearest = max(first or unit, round((frames - first) / unit) * unit + first)
        kind = f"{unit}k + 1" if first else f"a multiple of {unit}"
        raise UserError(f"number of frames {frames} must be {kind} for {name}; {nearest} is near")
    return (
        usage.latent_channels,
        math.ceil(frames / usage.frame_factor),
        height // usage.factor,
        width // usage.factor,
    )


REPOS = {
    "wan-t2v-1.3B": "Wan-AI/Wan2.1-T2V-1.3B",
    "wan-t2v-14B": "Wan-AI/Wan2.1-T2V-14B",
    "wan-i2v-14B-480P": "Wan-AI/Wan2.1-I2V-14B-480P",
    "wan-i2v-14B-720P": "Wan-AI/Wan2.1-I2V-14B-720P",
}
"""Hub repositories of the published models, by name."""
DIFFUSERS_REPOS = {name: f"{repo}-Diffusers" for name, repo in REPOS.items()}
"""Those of diffusers' pipelines, which have text encoder and VAE, too."""
