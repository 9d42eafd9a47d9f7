"""A small CNN for Fashion-MNIST: the judge of class-conditional samples, and an in-domain feature extractor.

It is trained on clean images only, so that noise and artefacts cost accuracy. A Fréchet distance on its features is
called FD-FashionCNN: it is not FID, which is defined on Inception-v3 features.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cache_dic import UserError
from seerkit.data.fashion_mnist import IMAGE_SIZE, to_unit_range
from seerkit.io.files import write_json
from seerkit.weights.checkpoints import save_tensors

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "fashion-mnist-classifier.safetensors"


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Sizes of the classifier; the defaults are the shipped one, 0.48 M parameters."""

    in_channels: int = 1
    input_size: int = IMAGE_SIZE  # pixels a side
    num_classes: int = 10
    widths: tuple[int, ...] = (32, 64, 128)  # channels per stage, each at half the resolution of the one before

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if not self.widths or min(self.widths) < 1:
            raise UserError(f"widths {self.widths} must be one or more positive channel counts")
        if self.in_channels < 1 or self.num_classes < 1:
            raise UserError(f"in_channels {self.in_channels} and num_classes {self.num_classes} must be at least 1")
        if self.input_size % 2 ** len(self.widths):
            raise UserError(f"input_size {self.input_size} must be divisible by {2 ** len(self.widths)}")


def _convolution(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out))


class Stage(nn.Module):
    """Halve the resolution, then one residual block (He et al., arXiv 1512.03385) at the new one."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.down = _convolution(channels_in, channels_out, kernel, stride=2)
        self.conv1 = _convolution(channels_out, channels_out, 3)
        self.conv2 = _convolution(channels_out, channels_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(x))  # (B, C, H/2, W/2)
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class Classifier(nn.Module):
    """Images (B, 1, 32, 32) in [-1, 1] -> logits (B, 10)."""

    test_accuracy: float | None = None  # on the real test images, as recorded in the file it was loaded from

    def __init__(self, config: ClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config or ClassifierConfig()
        channels = (self.config.in_channels, *self.config.widths)
        kernels = (5, *[3] * (len(self.config.widths) - 1))
        self.stages = nn.Sequential(*map(Stage, channels[:-1], channels[1:], kernels))
        self.head = nn.Linear(channels[-1], self.config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate layer: means over space of the last stage, (B, widths[-1]), never negative."""
        size = (self.config.in_channels, self.config.input_size, self.config.input_size)
        if tuple(images.shape[1:]) != size:
            raise UserError(f"images are {tuple(images.shape)}, the classifier takes (B, {', '.join(map(str, size))})")
        return self.stages(images).mean(dim=(2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def save_classifier(path: str | Path, classifier: Classifier, card: dict[str, Any]) -> None:
    """Write weights and batch statistics in fp16, with config and `card` as metadata, and the same as JSON beside them.

    Metadata values are JSON texts. `card` must hold `test_accuracy`, measured with the rounded weights.
    """
    card = {"config": asdict(classifier.config), "num_parameters": num_parameters(classifier), **card}
    tensors = {name: value.half().contiguous().cpu() for name, value in _stored(classifier).items()}
    save_tensors(path, tensors, {key: json.dumps(value, allow_nan=False) for key, value in card.items()})
    write_json(Path(path).with_suffix(".json"), card)


def read_card(path: str | Path | None = None) -> dict[str, Any]:
    """The metadata that `save_classifier` wrote: config, test accuracy, seed, epochs, command, data."""
    return _read(Path(path or WEIGHTS))[1]


def load_classifier(path: str | Path | None = None, device: str | torch.device = "cpu") -> Classifier:
    """The classifier in a file of `save_classifier` (default: the shipped one), in float32, frozen, in eval mode.

    Raises FileNotFoundError if the file is missing, UserError if it is damaged or its tensors do not fit its config.
    """
    path = Path(path or WEIGHTS)
    tensors, card = _read(path)
    try:
        config, test_accuracy = ClassifierConfig(**card["config"]), float(card["test_accuracy"])
        with torch.device("meta"):  # of whatever sizes the file says
            expected = {name: tuple(value.shape) for name, value in _stored(Classifier(config)).items()}
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # RuntimeError: sizes beyond all memory
        raise UserError(f"{path} has no usable config or test accuracy ({error}); {_remedy(path)}") from error
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != expected:
        name = min(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        shapes = f"{name} is {found.get(name, 'absent')}, its config asks for {expected.get(name, 'no such tensor')}"
        raise UserError(f"{path} does not fit: {shapes}; {_remedy(path)}")
    if not all(value.float().isfinite().all() for value in tensors.values()):
        raise UserError(f"{path} holds values that are not finite; {_remedy(path)}")
    classifier = Classifier(config)
    classifier.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=False)
    classifier.test_accuracy = test_accuracy
    return classifier.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)  # a third faster


def class_accuracy(classifier: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 256) -> float:
    """The share of images (B, C, H, W) that the classifier assigns to their labels (B,), in [0, 1].

    images: uint8, or float in [-1, 1]; generated values beyond that are clipped, as they would be in an image file.
    """
    logits = classify(classifier, images, batch_size)
    if labels.shape != (len(images),):
        raise UserError(f"{len(images)} images but labels {tuple(labels.shape)}")
    return (logits.argmax(dim=1) == labels.cpu()).double().mean().item()


def classify(classifier: nn.Module, images: Tensor, batch_size: int = 256) -> Tensor:
    """Logits (B, num_classes) in float32 on the CPU, batch by batch in eval mode; images as `class_accuracy`."""
    training = classifier.training
    classifier.eval()
    with torch.inference_mode():
        logits = [classifier(batch).float().cpu() for batch in _batches(classifier, images, batch_size)]
    classifier.train(training)
    return torch.cat(logits)


def extract_features(classifier: Classifier, images: Tensor, batch_size: int = 256) -> Tensor:
    """Penultimate features (B, widths[-1]) in float32 on the CPU, for FD-FashionCNN; images as `class_accuracy`."""
    with torch.inference_mode():
        return torch.cat([classifier.features(batch).cpu() for batch in _batches(classifier, images, batch_size)])


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _batches(classifier: nn.Module, images: Tensor, batch_size: int) -> Iterator[Tensor]:
    if images.ndim != 4 or not len(images):
        raise UserError(f"images {tuple(images.shape)} must be (B, C, H, W) with B of at least 1")
    if batch_size < 1:
        raise UserError(f"batch_size {batch_size} must be at least 1")
    device = next((parameter.device for parameter in classifier.parameters()), torch.device("cpu"))
    for batch in images.split(batch_size):
        values = to_unit_range(batch) if batch.dtype == torch.uint8 else batch.float().clamp(-1, 1)
        yield values.to(device)


def _stored(classifier: Classifier) -> dict[str, Tensor]:
    """What a file holds: all but batch normalisation's step counters, which serve training alone."""
    return {name: value for name, value in classifier.state_dict().items() if value.is_floating_point()}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"classifier weights {path} do not exist; {_remedy(path)}")
    try:
        with safe_open(path, framework="pt") as file:
            card = {key: json.loads(text) for key, text in (file.metadata() or {}).items()}
            return {name: file.get_tensor(name) for name in file.keys()}, card  # noqa: SIM118 (not a mapping)
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"classifier weights {path} cannot be read ({error}); {_remedy(path)}") from error


def _remedy(path: Path) -> str:
    return f"restore the file, or train it with `python eval/train_classifier.py --overwrite --out {path}`"
