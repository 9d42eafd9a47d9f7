"""SqueezeNet 1.1 (arXiv 1602.07360), trained on ImageNet, without its classifier: a second pair of eyes beside Lite0.

The weights come by way of the package ndf 0.1.4, whose author converted them from Keras; whose training they are is not told.
What they expect is Caffe's input, not torchvision's: they name photographs rightly with the one and wrongly with the other.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seerkit.weights.checkpoints import load_weights, read_state

WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "squeezenet.safetensors"
INPUT_SIZE = 96  # pixels a side, as of Lite0; photographs of ImageNet are seen at 227
FEATURES = 512
BGR_MEAN = (103.939, 116.779, 123.68)  # of ImageNet, in 0..255
# Channels of each fire module's squeeze layer and of either of its expand layers, in the stages between poolings.
STAGES = {1: ((16, 64),) * 2, 2: ((32, 128),) * 2, 3: ((48, 192),) * 2 + ((64, 256),) * 2}
STEM = 64


class Fire(nn.Module):
    def __init__(self, channels_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1(x), self.expand3(x)], dim=1))


class SqueezeNet(nn.Module):
    """Images (B, 3, H, W) in RGB, 0 to 255 -> the last fire module's output, (B, 512, H/16, W/16) or a little less."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = STEM
        for sizes in STAGES.values():
            stage = nn.Sequential()
            for squeeze, expand in sizes:
                stage.append(Fire(channels, squeeze, expand))
                channels = 2 * expand
            self.stages.append(stage)

    def forward(self, images: Tensor) -> Tensor:
        x = images.flip(1) - images.new_tensor(BGR_MEAN)[:, None, None]
        x = F.relu(self.stem(x))
        for stage in self.stages:
            x = stage(F.max_pool2d(x, 3, stride=2, ceil_mode=True))
        return x


def from_ndf(weights: dict) -> dict[str, Tensor]:
    """The state dict of `SqueezeNet` from ndf's arrays, whose kernels are (h, w, in, out) and whose classifier is dropped."""
    layers = {"squeeze1x1": "squeeze", "expand1x1": "expand1", "expand3x3": "expand3"}
    state = {}
    for name, (kernel, bias) in weights.items():
        if name == "conv10":
            continue
        ours = "stem"
        if name != "conv1":
            fire, layer = name.split("/")
            number = int(fire.removeprefix("fire")) - 2
            ours = f"stages.{min(number // 2, 2)}.{number - 2 * min(number // 2, 2)}.{layers[layer]}"
        state[f"{ours}.weight"] = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous()
        state[f"{ours}.bias"] = torch.from_numpy(bias)
    return state


def load_squeezenet(path: Path = WEIGHTS, device: str | torch.device = "cpu") -> SqueezeNet:
    """The network that ships with the repository, in float32, frozen; FileNotFoundError or UserError without its file."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there; restore it, or make it with `python eval/weights/prepare_squeezenet.py`"
        )
    network = load_weights(SqueezeNet(), read_state(path))
    return network.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
