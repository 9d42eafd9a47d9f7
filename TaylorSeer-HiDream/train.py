"""Train the embedded text-to-image model on emoji of several vendors: rectified flow, and all experts kept in use.

A tenth of the captions is dropped, so that the model can be guided. As in the official training code a small loss keeps the
gates from sending all tokens to the same experts: E Σ_e f_e P_e with f_e an expert's share of the choices and P_e its mean
score (Switch Transformers, arXiv 2101.03961, Eq. 4), 1 where all are used alike. Everything random is a function of --seed
and the step, so a resumed run sees the batches of an uninterrupted one.
"""

from argparse import Namespace

from hidream.config import CONFIGS, USAGE
from seerkit.command.cli import run_command
from seerkit.training.flags import ON_EMOJI, parse_training_args

EXAMPLES = """
python TaylorSeer-HiDream/train.py --output-dir outputs/hidream-emoji
python TaylorSeer-HiDream/train.py --output-dir outputs/hidream-emoji --resume
torchrun --nproc_per_node=8 TaylorSeer-HiDream/train.py --output-dir outputs/hidream-emoji --batch-size 512
"""


def parse_args(argv: list[str] | None) -> Namespace:
    names = [name for name in CONFIGS if USAGE[name].factor == 1]
    return parse_training_args(
        argv, description=__doc__, examples=EXAMPLES, models=names, default="hidream-tiny", **ON_EMOJI
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from hidream.training import train

    train(args)


if __name__ == "__main__":
    run_command(main)
