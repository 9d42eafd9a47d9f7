"""Train the embedded text-to-video model on clips of moving objects, whose captions say all there is to see.

A tenth of the captions is dropped, so that the model can be guided. Everything random is a function of --seed and the step,
so a resumed run sees the batches of an uninterrupted one.
"""

from argparse import Namespace

from seerkit.command.cli import run_command
from seerkit.training.flags import ON_CLIPS, parse_training_args
from wan.config import CONFIGS, USAGE

EXAMPLES = """
python TaylorSeer-Wan2.1/train.py --output-dir outputs/wan-clips
python TaylorSeer-Wan2.1/train.py --output-dir outputs/wan-clips --resume
torchrun --nproc_per_node=8 TaylorSeer-Wan2.1/train.py --output-dir outputs/wan-clips --batch-size 512
"""


def parse_args(argv: list[str] | None) -> Namespace:
    names = [name for name in CONFIGS if USAGE[name].factor == 1]
    return parse_training_args(
        argv, description=__doc__, examples=EXAMPLES, models=names, default="wan-tiny", **ON_CLIPS
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from wan.training import train

    train(args)


if __name__ == "__main__":
    run_command(main)
