"""Train the embedded text-to-image model on emoji of several vendors: rectified flow with distilled guidance in one run.

The weight of classifier-free guidance is an input of the model, as in FLUX.1-dev, and is learnt in the same run. Everything
random is a function of --seed and the step, so a resumed run sees the batches of an uninterrupted one.
"""

from argparse import Namespace

from flux.config import CONFIGS, USAGE
from seerkit.command.cli import run_command
from seerkit.training.flags import ON_EMOJI, parse_training_args

EXAMPLES = """
python TaylorSeer-FLUX/train.py --output-dir outputs/flux-emoji
python TaylorSeer-FLUX/train.py --output-dir outputs/flux-emoji --resume
torchrun --nproc_per_node=8 TaylorSeer-FLUX/train.py --output-dir outputs/flux-emoji --batch-size 512
"""


def parse_args(argv: list[str] | None) -> Namespace:
    names = [name for name in CONFIGS if USAGE[name].factor == 1]
    return parse_training_args(
        argv, description=__doc__, examples=EXAMPLES, models=names, default="flux-tiny", **ON_EMOJI
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from flux.training import train

    train(args)


if __name__ == "__main__":
    run_command(main)
