"""Train the embedded text-to-video model on clips of moving Fashion-MNIST objects, whose captions say all there is to see.

A tenth of the captions is dropped, so that the model can be guided. Everything random is a function of --seed and the step,
so a resumed run sees the batches of an uninterrupted one.
"""

from seerkit.command.cli import run_command  # isort: skip

from argparse import Namespace

from torch import Tensor, nn

from seerkit.training.videos import Texts, encode_texts, train
from seerkit.training.videos import parse_args as parse_training_args
from wan import CONFIGS, Wan, sample, wan_config
from wan.config import USAGE

EXAMPLES = """
python TaylorSeer-Wan2.1/train.py --out outputs/wan-clips
python TaylorSeer-Wan2.1/train.py --out outputs/wan-clips --resume
torchrun --nproc_per_node=8 TaylorSeer-Wan2.1/train.py --out outputs/wan-clips --batch-size 512
"""


def parse_args(argv: list[str] | None) -> Namespace:
    names = [name for name in CONFIGS if USAGE[name].factor == 1]
    return parse_training_args(argv, description=__doc__, examples=EXAMPLES, models=names, default="wan-tiny")


def velocity(forward: nn.Module, x: Tensor, sigma: Tensor, texts: Texts, weight: Tensor) -> Tensor:
    return forward(x, 1000 * sigma, texts.words)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, usage = wan_config(args.model), USAGE[args.model]

    def make() -> Wan:
        return Wan(config, attention=args.attention).initialize(args.seed)

    def draw(ema: nn.Module, noise: Tensor, texts: Texts) -> Tensor:
        negative = encode_texts([""] * len(noise)).to(noise.device)
        settings = {"shift": usage.shift, "guidance_scale": usage.guidance}
        return sample(ema, noise, texts.words, negative.words, usage.num_steps, **settings)

    train(args, config, make, velocity, draw, shift=usage.shift, distilled=False)


if __name__ == "__main__":
    run_command(main)
