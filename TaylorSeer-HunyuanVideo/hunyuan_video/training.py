"""What train.py does: the velocity and the samples of HunyuanVideo in a run on moving objects."""

from argparse import Namespace

from torch import Tensor, nn

from hunyuan_video import HunyuanVideo, hunyuan_video_config, sample
from hunyuan_video.config import USAGE
from hunyuan_video.sampler import GUIDANCE_FACTOR
from seerkit.data.moving_objects import pooled
from seerkit.training import videos
from seerkit.training.videos import Texts


def velocity(forward: nn.Module, x: Tensor, sigma: Tensor, texts: Texts, weight: Tensor) -> Tensor:
    # Padding is attended to: every caption has the same words, and a mask would make attention slower.
    return forward(x, 1000 * sigma, texts.words, None, pooled(texts.words), GUIDANCE_FACTOR * weight)


def train(args: Namespace) -> None:
    """Train as the flags of train.py say, or with --dry-run show what would be."""
    config, usage = hunyuan_video_config(args.model), USAGE[args.model]

    def make() -> HunyuanVideo:
        return HunyuanVideo(config, attention=args.attention).initialize(args.seed)

    def draw(ema: nn.Module, noise: Tensor, texts: Texts) -> Tensor:
        settings = {"shift": usage.flow_shift, "guidance_scale": usage.guidance}
        return sample(ema, noise, texts.words, None, pooled(texts.words), usage.num_steps, **settings)

    videos.train(args, config, make, velocity, draw, shift=usage.flow_shift, distilled=True)
