"""Train the embedded text-to-video model on clips of moving objects, whose captions say all there is to see.

The weight of guidance is an input of the model, learnt without a teacher (`seerkit.training.videos.ClipLoss`). Everything
random is a function of --seed and the step, so a resumed run sees the batches of an uninterrupted one.
"""

from argparse import Namespace

from hunyuan_video.config import CONFIGS, USAGE
from seerkit.command.cli import run_command
from seerkit.training.flags import ON_CLIPS, parse_training_args

EXAMPLES = """
python TaylorSeer-HunyuanVideo/train.py --output-dir outputs/hunyuan-clips
python TaylorSeer-HunyuanVideo/train.py --output-dir outputs/hunyuan-clips --resume
torchrun --nproc_per_node=8 TaylorSeer-HunyuanVideo/train.py --output-dir outputs/hunyuan-clips --batch-size 512
"""


def parse_args(argv: list[str] | None) -> Namespace:
    names = [name for name in CONFIGS if USAGE[name].spatial_factor == 1]
    return parse_training_args(
        argv, description=__doc__, examples=EXAMPLES, models=names, default="hunyuan-tiny", **ON_CLIPS
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from hunyuan_video.training import train

    train(args)


if __name__ == "__main__":
    run_command(main)
