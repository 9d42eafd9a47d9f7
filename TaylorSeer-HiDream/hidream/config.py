"""HiDream-I1 configurations: the published model, in three trainings, and the embedded one, and how each is used."""

from dataclasses import dataclass, replace

from cache_dic import UserError

FREQUENCY_DIM = 256  # channels of the sinusoidal embedding of the timestep
WIDTH_UNIT = 256  # widths of feed-forward layers are rounded up to multiples of it


@dataclass(frozen=True, kw_only=True)
class HiDreamConfig:
    """Shape of a HiDream transformer (HiDream-ai/HiDream-I1 transformer_hidream_image.py); field names are the official ones.

    Raises UserError naming the field when a value cannot make a model.
    """

    patch_size: int = 2
    in_channels: int = 16  # of the latents
    out_channels: int = 16
    num_layers: int = 16  # double-stream blocks
    num_single_layers: int = 32
    attention_head_dim: int = 128
    num_attention_heads: int = 20
    caption_channels: tuple[int, int] = (4096, 4096)  # of the T5 tokens, of Llama's hidden states
    text_emb_dim: int = 2048  # of the pooled text embedding, CLIP-L and CLIP-G together
    num_routed_experts: int = 4
    num_activated_experts: int = 2  # experts that a token goes to
    axes_dims_rope: tuple[int, ...] = (64, 32, 32)  # channels of a head that each axis of the position rotates
    max_resolution: tuple[int, int] = (128, 128)  # most latents along height and width of a square
    llama_layers: tuple[int, ...] = (*range(32), *[31] * 16)  # hidden states that each block gets, by their number

    def __post_init__(self) -> None:
        for field in ("caption_channels", "axes_dims_rope", "max_resolution", "llama_layers"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        positive = (
            "patch_size", "in_channels", "out_channels", "attention_head_dim", "num_attention_heads", "text_emb_dim",
            "num_routed_experts", "num_activated_experts",
        )  # fmt: skip
        for field in positive:
            if getattr(self, field) < 1:
                raise UserError(f"HiDreamConfig.{field} = {getattr(self, field)} must be at least 1")
        for field in ("num_layers", "num_single_layers"):
            if getattr(self, field) < 0:
                raise UserError(f"HiDreamConfig.{field} = {getattr(self, field)} must be at least 0")
        if self.num_blocks < 1:
            raise UserError("HiDreamConfig.num_layers and num_single_layers are both 0; a model needs a block")
        if self.num_activated_experts > self.num_routed_experts:
            raise UserError(
                f"HiDreamConfig.num_activated_experts = {self.num_activated_experts} must be at most num_routed_experts = "
                f"{self.num_routed_experts}"
            )
        if any(dim % 2 for dim in self.axes_dims_rope) or sum(self.axes_dims_rope) != self.attention_head_dim:
            raise UserError(
                f"HiDreamConfig.axes_dims_rope = {self.axes_dims_rope} must be even numbers with the sum of a head's "
                f"{self.attention_head_dim} channels"
            )
        if len(self.axes_dims_rope) != 3:
            raise UserError(f"HiDreamConfig.axes_dims_rope = {self.axes_dims_rope} must have three axes")
        for field in ("caption_channels", "max_resolution"):
            if len(getattr(self, field)) != 2 or min(getattr(self, field)) < 1:
                raise UserError(f"HiDreamConfig.{field} = {getattr(self, field)} must be two positive numbers")
        if len(self.llama_layers) != self.num_blocks or min(self.llama_layers) < 0:
            raise UserError(
                f"HiDreamConfig.llama_layers = {self.llama_layers} must name one hidden state for each of the "
                f"{self.num_blocks} blocks"
            )

    @property
    def num_blocks(self) -> int:
        return self.num_layers + self.num_single_layers

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def expert_width(self) -> int:
        """Hidden width of a routed expert, and of the text's feed-forward layer."""
        return _swiglu_width(4 * self.hidden_size)

    @property
    def shared_width(self) -> int:
        """Hidden width of the expert that every token goes to."""
        return _swiglu_width(2 * self.hidden_size)

    @property
    def max_tokens(self) -> int:
        """Tokens of the largest square; images that are not square are padded to as many."""
        height, width = self.max_resolution
        return height * width // self.patch_size**2


def _swiglu_width(hidden: int) -> int:
    """Width that gives a gated layer the parameters of a plain one of `hidden`, rounded up (HiDream-I1 attention.py)."""
    return -(-int(2 * hidden / 3) // WIDTH_UNIT) * WIDTH_UNIT


_I1 = HiDreamConfig()
CONFIGS: dict[str, HiDreamConfig] = {
    # Dev and Fast are distilled from Full; the three differ in their weights and in how they are sampled.
    "hidream-full": _I1,
    "hidream-dev": _I1,
    "hidream-fast": _I1,
    # Pixels of three channels in patches of 4; label and style of a prompt, embedded by all-MiniLM-L6-v2, for T5 and Llama.
    "hidream-tiny": HiDreamConfig(
        patch_size=4, in_channels=3, out_channels=3, num_layers=2, num_single_layers=4, attention_head_dim=48,
        num_attention_heads=4, caption_channels=(384, 384), text_emb_dim=768, axes_dims_rope=(16, 16, 16),
        max_resolution=(32, 32), llama_layers=(0,) * 6,
    ),
    "hidream-debug": HiDreamConfig(
        patch_size=4, in_channels=3, out_channels=3, num_layers=1, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, caption_channels=(384, 384), text_emb_dim=768, axes_dims_rope=(4, 6, 6),
        max_resolution=(32, 32), llama_layers=(0,) * 3,
    ),
}  # fmt: skip


def hidream_config(name: str, *, depth: int | None = None) -> HiDreamConfig:
    """The configuration called `name`; `depth` cuts it to that many double and twice as many single blocks, for trials."""
    if name not in CONFIGS:
        raise UserError(f"model {name!r} is unknown; choose from {', '.join(CONFIGS)}")
    config = CONFIGS[name]
    if depth is None:
        return config
    layers = config.llama_layers[: 3 * depth]
    if len(layers) < 3 * depth:
        raise UserError(f"depth {depth} of {name} must be at most {config.num_blocks // 3}, that of its Llama layers")
    return replace(config, num_layers=depth, num_single_layers=2 * depth, llama_layers=layers)


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a model samples, and the settings that it was published with (HiDream-I1 inference.py).

    solver: a name in `hidream.sampler.SOLVERS`. shift: of the noise levels, towards noise.
    """

    factor: int = 8  # pixels along the side of a latent; 1 for pixels
    text_tokens: int = 128  # to which each encoder's prompts are padded or cut
    image_size: int = 1024  # side in pixels
    num_steps: int = 50
    guidance: float = 5.0  # weight of the second branch; 1 runs none
    solver: str = "unipc"
    shift: float = 3.0
    batch_size: int = 1
    precision: str = "bf16"


_PIXELS = Usage(factor=1, text_tokens=16, image_size=32, guidance=3.0, batch_size=8, precision="fp32")
USAGE: dict[str, Usage] = {
    "hidream-full": Usage(),
    "hidream-dev": Usage(num_steps=28, guidance=1.0, solver="flash", shift=6.0),
    "hidream-fast": Usage(num_steps=16, guidance=1.0, solver="flash", shift=3.0),
    "hidream-tiny": _PIXELS,
    "hidream-debug": _PIXELS,
}


def latent_shape(name: str, height: int, width: int) -> tuple[int, int, int]:
    """Channels, height and width of the latents of an image of `height` x `width` pixels.

    Raises UserError where patches do not fill it (HiDream-I1 takes multiples of 16) or the model has too few positions.
    """
    usage, config = USAGE[name], CONFIGS[name]
    unit = usage.factor * config.patch_size
    for side, value in (("height", height), ("width", width)):
        if value < 1 or value % unit:
            nearest = max(unit, round(value / unit) * unit)
            raise UserError(f"{side} {value} must be a positive multiple of {unit} for {name}; {nearest} is near")
    if (height // unit) * (width // unit) > config.max_tokens:
        shrink = (config.max_tokens * unit**2 / (height * width)) ** 0.5  # as the official pipeline fits any size
        sides = [max(1, int(side * shrink) // unit) for side in (height, width)]
        fits = " x ".join(str(min(side, config.max_tokens // min(sides)) * unit) for side in sides)
        raise UserError(
            f"an image of {height} x {width} pixels has {(height // unit) * (width // unit)} tokens, {name} has "
            f"positions for {config.max_tokens}; {fits} fits"
        )
    return config.in_channels, height // usage.factor, width // usage.factor


REPOS = {f"hidream-{kind.lower()}": f"HiDream-ai/HiDream-I1-{kind}" for kind in ("Full", "Dev", "Fast")}
"""Hub repositories of the published models, by name."""
