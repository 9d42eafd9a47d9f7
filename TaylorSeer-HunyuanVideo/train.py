"""Train the embedded text-to-video model on clips of moving Fashion-MNIST objects, whose captions say all there is to see.

The weight of guidance is an input of the model, learnt without a teacher (`seerkit.training.videos.ClipLoss`). Everything
random is a function of --seed and the step, so a resumed run sees the batches of an uninterrupted one.
"""

from seerkit.command.cli import run_command  # isort: skip

from argparse import Namespace

from torch import Tensor, nn

from hunyuan_video import CONFIGS, HunyuanVideo, hunyuan_video_config, sample
from hunyuan_video.config import USAGE
from hunyuan_video.sampler import GUIDANCE_FACTOR
from seerkit.data.moving_objects import pooled
from seerkit.training.videos import Texts, train
from seerkit.training.videos import parse_args as parse_training_args

EXAMPLES = """
python TaylorSeer-HunyuanVideo/train.py --out outputs/hunyuan-clips
python TaylorSeer-HunyuanVideo/train.py --out outputs/hunyuan-clips --resume
torchrun --nproc_per_node=8 TaylorSeer-HunyuanVideo/train.py --out outputs/hunyuan-clips --batch-size 512
"""


def parse_args(argv: list[str] | None) -> Namespace:
    names = [name for name in CONFIGS if USAGE[name].spatial_factor == 1]
    return parse_training_args(argv, description=__doc__, examples=EXAMPLES, models=names, default="hunyuan-tiny")


def velocity(forward: nn.Module, x: Tensor, sigma: Tensor, texts: Texts, weight: Tensor) -> Tensor:
    # Padding is attended to: every caption has the same words, and a mask would make attention slower.
    return forward(x, 1000 * sigma, texts.words, None, pooled(texts.words), GUIDANCE_FACTOR * weight)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, usage = hunyuan_video_config(args.model), USAGE[args.model]

    def make() -> HunyuanVideo:
        return HunyuanVideo(config, attention=args.attention).initialize(args.seed)

    def draw(ema: nn.Module, noise: Tensor, texts: Texts) -> Tensor:
        settings = {"shift": usage.flow_shift, "guidance_scale": usage.guidance}
        return sample(ema, noise, texts.words, None, pooled(texts.words), usage.num_steps, **settings)

    train(args, config, make, velocity, draw, shift=usage.flow_shift, distilled=True)


if __name__ == "__main__":
    run_command(main)
