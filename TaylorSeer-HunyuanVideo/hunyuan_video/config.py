"""HunyuanVideo configurations: the published model and the embedded text-to-video model, and how each is used."""

from dataclasses import InitVar, dataclass, replace

from cache_dic import UserError

_FIXED = ("mlp_act_type", "qk_norm", "qk_norm_type", "text_projection", "use_attention_mask")  # the same in every model


@dataclass(frozen=True, kw_only=True)
class HunyuanVideoConfig:
    """Shape of a HunyuanVideo transformer (Tencent/HunyuanVideo modules/models.py); field names are the official parameters'.

    Takes an official configuration whole: settings that are the same in every model are checked and not kept.
    Raises UserError naming the field when a value cannot make a model.
    """

    in_channels: int = 16
    out_channels: int = 16
    patch_size: tuple[int, ...] = (1, 2, 2)  # frames, rows and columns of latents in a token
    text_states_dim: int = 4096  # of the text token embeddings
    text_states_dim_2: int = 768  # of the pooled text embedding
    hidden_size: int = 3072
    mlp_width_ratio: float = 4.0  # width of an MLP over hidden_size
    heads_num: int = 24
    mm_double_blocks_depth: int = 20
    mm_single_blocks_depth: int = 40
    refiner_depth: int = 2  # blocks of the token refiner; always 2 officially, where it is no parameter
    rope_dim_list: tuple[int, ...] = (16, 56, 56)  # channels of a head that frame, row and column rotate
    rope_theta: int = 256  # base of the rotary frequencies
    qkv_bias: bool = True
    guidance_embed: bool = True  # takes the guidance weight as an input (distilled guidance)
    name: InitVar[str | None] = None  # the official one, which tells whether guidance is embedded
    mlp_act_type: InitVar[str] = "gelu_tanh"
    qk_norm: InitVar[bool] = True
    qk_norm_type: InitVar[str] = "rms"
    text_projection: InitVar[str] = "single_refiner"
    use_attention_mask: InitVar[bool] = True

    def __post_init__(self, name: str | None, *fixed: object) -> None:
        for field, value in zip(_FIXED, fixed, strict=True):
            if value != (only := getattr(type(self), field)):
                raise UserError(f"HunyuanVideoConfig.{field} = {value!r} must be {only!r}, as in every model")
        official = "HYVideo-T/2-cfgdistill" if self.guidance_embed else "HYVideo-T/2"
        if name not in (None, official):
            raise UserError(
                f"HunyuanVideoConfig.name = {name!r} must be {official!r} where guidance_embed = {self.guidance_embed}"
            )
        object.__setattr__(self, "mlp_width_ratio", float(self.mlp_width_ratio))
        for field in ("patch_size", "rope_dim_list"):
            value = tuple(getattr(self, field))
            if len(value) != 3 or min(value) < 1:
                raise UserError(
                    f"HunyuanVideoConfig.{field} = {value} must be three positive numbers: of frames, rows and columns"
                )
            object.__setattr__(self, field, value)
        positive = (
            "in_channels", "out_channels", "text_states_dim", "text_states_dim_2", "hidden_size", "heads_num", "rope_theta",
        )  # fmt: skip
        for field in positive:
            if getattr(self, field) < 1:
                raise UserError(f"HunyuanVideoConfig.{field} = {getattr(self, field)} must be at least 1")
        for field in ("mm_double_blocks_depth", "mm_single_blocks_depth", "refiner_depth"):
            if getattr(self, field) < 0:
                raise UserError(f"HunyuanVideoConfig.{field} = {getattr(self, field)} must be at least 0")
        if self.mm_double_blocks_depth + self.mm_single_blocks_depth < 1:
            raise UserError(
                "HunyuanVideoConfig.mm_double_blocks_depth and mm_single_blocks_depth are both 0; a model needs a block"
            )
        if self.hidden_size % self.heads_num:
            raise UserError(
                f"HunyuanVideoConfig.hidden_size = {self.hidden_size} must be a multiple of heads_num = {self.heads_num}"
            )
        if any(dim % 2 for dim in self.rope_dim_list) or sum(self.rope_dim_list) != self.head_dim:
            raise UserError(
                f"HunyuanVideoConfig.rope_dim_list = {self.rope_dim_list} must be even numbers with the sum of a head's "
                f"{self.head_dim} channels"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.heads_num

    @property
    def mlp_width(self) -> int:
        return int(self.hidden_size * self.mlp_width_ratio)


# Pixels of three channels in patches of 2 frames, 4 rows and columns; captions of seerkit.data.captions as one-hot words
# and their sum.
_TINY = HunyuanVideoConfig(
    in_channels=3, out_channels=3, patch_size=(2, 4, 4), text_states_dim=48, text_states_dim_2=48, hidden_size=192,
    heads_num=4, mm_double_blocks_depth=2, mm_single_blocks_depth=4, refiner_depth=1, rope_dim_list=(16, 16, 16),
)  # fmt: skip
CONFIGS: dict[str, HunyuanVideoConfig] = {
    "hunyuan-video": HunyuanVideoConfig(),
    "hunyuan-tiny": _TINY,
    "hunyuan-debug": replace(
        _TINY, hidden_size=32, heads_num=2, mm_double_blocks_depth=1, mm_single_blocks_depth=2, rope_dim_list=(4, 6, 6)
    ),
}


def hunyuan_video_config(name: str, *, depth: int | None = None) -> HunyuanVideoConfig:
    """The configuration called `name`; `depth` cuts it to that many double and twice as many single blocks, for trials."""
    if name not in CONFIGS:
        raise UserError(f"model {name!r} is unknown; choose from {', '.join(CONFIGS)}")
    config = CONFIGS[name]
    if depth is None:
        return config
    return replace(config, mm_double_blocks_depth=depth, mm_single_blocks_depth=2 * depth)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a model samples, and the settings that it was published with; size and frames are those of TaylorSeer's table."""

    latent_channels: int = 16  # 3 for pixels
    spatial_factor: int = 8  # pixels along the side of a latent; 1 for pixels
    temporal_factor: int = 4  # frames of a latent, of which the first holds one alone; 1 for pixels
    text_tokens: int = 256
    height: int = 480  # in pixels, as width
    width: int = 640
    frames: int = 65
    fps: int = 24
    num_steps: int = 50
    guidance: float = 6.0  # weight that the model takes as an input
    flow_shift: float = 7.0
    batch_size: int = 1
    precision: str = "bf16"


_PIXELS = Usage(
    latent_channels=3, spatial_factor=1, temporal_factor=1, text_tokens=8, height=24, width=24, frames=8, fps=8,
    guidance=3.0, flow_shift=3.0, batch_size=4, precision="fp32",
)  # fmt: skip
USAGE: dict[str, Usage] = {"hunyuan-video": Usage(), "hunyuan-tiny": _PIXELS, "hunyuan-debug": _PIXELS}


def latent_shape(name: str, height: int, width: int, frames: int) -> tuple[int, int, int, int]:
    """Channels, frames, height and width of the latents of a video of `frames` frames of `height` x `width` pixels.

    Raises UserError where patches do not fill it: HunyuanVideo takes 4k + 1 frames and multiples of 16 pixels.
    """
    usage, (pt, ph, pw) = USAGE[name], CONFIGS[name].patch_size
    for side, value, patch in (("height", height, ph), ("width", width, pw)):
        unit = usage.spatial_factor * patch
        if value < 1 or value % unit:
            nearest = max(unit, round(value / unit) * unit)
            raise UserError(f"{side} {value} must be a positive multiple of {unit} for {name}; {nearest} is near")
    first, unit = (pt - 1) * usage.temporal_factor + 1, pt * usage.temporal_factor
    if frames < first or (frames - first) % unit:
        nearest = first + max(0, round((frames - first) / unit)) * unit
        raise UserError(
            f"number of frames {frames} must be {first}, {first + unit}, {first + 2 * unit}, … for {name}; {nearest} is near"
        )
    factor = usage.spatial_factor
    return usage.latent_channels, (frames - 1) // usage.temporal_factor + 1, height // factor, width // factor


REPOS = {"hunyuan-video": "tencent/HunyuanVideo"}
"""Hub repositories of the published models, by name."""
DIFFUSERS_REPOS = {"hunyuan-video": "hunyuanvideo-community/HunyuanVideo"}
"""Those of diffusers' pipelines."""
