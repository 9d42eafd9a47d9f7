"""Train a DiT on Fashion-MNIST: EMA, learning-rate schedule with warm-up, bf16, resume, sample grids, loss curve, torchrun.

Everything random is a function of --seed and the step, so a resumed run sees the batches of an uninterrupted one.
"""

from argparse import Namespace

from dit.config import CONFIGS
from seerkit.command.cli import run_command
from seerkit.training.flags import parse_training_args

EXAMPLES = """
python TaylorSeer-DiT/train.py --output-dir outputs/dit-fashion
python TaylorSeer-DiT/train.py --output-dir outputs/dit-fashion --resume
torchrun --nproc_per_node=8 TaylorSeer-DiT/train.py --output-dir outputs/dit-fashion --precision bf16
"""


def parse_args(argv: list[str] | None) -> Namespace:
    names = [name for name, config in CONFIGS.items() if config.in_channels == 1]
    return parse_training_args(
        argv,
        description=__doc__,
        examples=EXAMPLES,
        models=names,
        default="fashion-mnist",
        data="folder with the four IDX files of Fashion-MNIST (default: where they are found)",
        steps=40000,
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from dit.training import train

    train(args)


if __name__ == "__main__":
    run_command(main)
