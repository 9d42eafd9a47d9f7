"""DiT configurations: the official family and the embedded Fashion-MNIST model."""

from dataclasses import dataclass, replace

from cache_dic import UserError


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Shape of a DiT (facebookresearch/DiT models.py); field names are the official constructor's.

    Raises UserError naming the field when a value cannot make a model.
    """

    input_size: int = 32  # side of the square input, in latent (or pixel) units
    patch_size: int = 2  # side of a patch, in the same units
    in_channels: int = 4  # latent channels; 1 for grey pixels
    hidden_size: int = 1152
    depth: int = 28  # number of blocks
    num_heads: int = 16
    mlp_ratio: float = 4.0  # width of the MLP over hidden_size
    class_dropout_prob: float = 0.1  # share of training labels replaced by the null class, for guidance
    num_classes: int = 1000
    learn_sigma: bool = True  # predict the variance beside the noise

    def __post_init__(self) -> None:
        for field in ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "num_classes"):
            if getattr(self, field) < 1:
                raise UserError(f"DiTConfig.{field} = {getattr(self, field)} must be at least 1")
        if self.input_size % self.patch_size:
            raise UserError(
                f"DiTConfig.input_size = {self.input_size} is not a multiple of patch_size = {self.patch_size}"
            )
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise UserError(
                f"DiTConfig.hidden_size = {self.hidden_size} must be a multiple of 4 and of num_heads = {self.num_heads}"
            )
        if not 0 <= self.class_dropout_prob < 1:
            raise UserError(f"DiTConfig.class_dropout_prob = {self.class_dropout_prob} must lie in [0, 1)")

    @property
    def num_tokens(self) -> int:
        return (self.input_size // self.patch_size) ** 2

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def is_latent(self) -> bool:
        """Whether samples are latents of Stable Diffusion's autoencoder rather than pixels."""
        return self.in_channels == 4

    @property
    def pixels_per_unit(self) -> int:
        """Of the input, along a side."""
        return 8 if self.is_latent else 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, 3 or 1) of an image in pixels."""
        side = self.input_size * self.pixels_per_unit
        return side, side, 3 if self.is_latent else self.in_channels

    @property
    def has_null_class(self) -> bool:
        """Whether the label table carries the extra row that classifier-free guidance needs."""
        return self.class_dropout_prob > 0


_FAMILY = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}

CONFIGS: dict[str, DiTConfig] = {
    f"DiT-{size}/{patch}": DiTConfig(patch_size=patch, **shape)
    for size, shape in _FAMILY.items()
    for patch in (2, 4, 8)
}
CONFIGS["fashion-mnist"] = DiTConfig(
    input_size=32, patch_size=4, in_channels=1, hidden_size=256, depth=8, num_heads=4, num_classes=10
)
CONFIGS["debug"] = DiTConfig(
    input_size=8, patch_size=4, in_channels=1, hidden_size=32, depth=2, num_heads=2, num_classes=3
)


PUBLISHED_SIZES = (256, 512)
"""Sides in pixels that DiT-XL/2 is published for."""
TRAIN_STEPS = 1000
"""Of the linear schedule that DiT is trained with."""


def dit_config(name: str, *, image_size: int | None = None) -> DiTConfig:
    """The configuration called `name`; `image_size` in pixels resizes the latent models (8 pixels a latent unit)."""
    if name not in CONFIGS:
        raise UserError(f"model {name!r} is unknown; choose from {', '.join(CONFIGS)}")
    config = CONFIGS[name]
    if image_size is None:
        return config
    unit = config.pixels_per_unit
    if image_size < 1 or image_size % (unit * config.patch_size):
        raise UserError(
            f"image size {image_size} does not fit {name}: a positive multiple of {unit * config.patch_size} is needed"
        )
    return replace(config, input_size=image_size // unit)


VAES = {"ema": "stabilityai/sd-vae-ft-ema", "mse": "stabilityai/sd-vae-ft-mse"}
"""Hub repositories of the autoencoders that latent models are decoded by, by the names that flags have for them."""
