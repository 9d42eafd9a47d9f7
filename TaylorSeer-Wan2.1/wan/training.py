"""What train.py does: the velocity and the samples of Wan2.1 in a run on moving objects."""

from argparse import Namespace

from torch import Tensor, nn

from seerkit.training import videos
from seerkit.training.videos import Texts, encode_texts
from wan import Wan, sample, wan_config
from wan.config import USAGE


def velocity(forward: nn.Module, x: Tensor, sigma: Tensor, texts: Texts, weight: Tensor) -> Tensor:
    return forward(x, 1000 * sigma, texts.words)


def train(args: Namespace) -> None:
    """Train as the flags of train.py say, or with --dry-run show what would be."""
    config, usage = wan_config(args.model), USAGE[args.model]

    def make() -> Wan:
        return Wan(config, attention=args.attention).initialize(args.seed)

    def draw(ema: nn.Module, noise: Tensor, texts: Texts) -> Tensor:
        negative = encode_texts([""] * len(noise)).to(noise.device)
        settings = {"shift": usage.shift, "guidance_scale": usage.guidance}
        return sample(ema, noise, texts.words, negative.words, usage.num_steps, **settings)

    videos.train(args, config, make, velocity, draw, shift=usage.shift, distilled=False)
