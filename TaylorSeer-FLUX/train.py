"""Train the embedded text-to-image model on emoji of several vendors: rectified flow with distilled guidance in one run.

The weight of classifier-free guidance is an input of the model, as in FLUX.1-dev, and is learnt in the same run. Everything
random is a function of --seed and the step, so a resumed run sees the batches of an uninterrupted one.
"""

from seerkit.command.cli import run_command  # isort: skip

from argparse import Namespace

from torch import Tensor, nn

from flux import CONFIGS, Flux, flux_config, sample
from flux.config import USAGE, patch_side
from flux.latents import image_ids, pack, text_ids, unpack
from seerkit.training.emoji import Texts, train
from seerkit.training.emoji import parse_args as parse_training_args

EXAMPLES = """
python TaylorSeer-FLUX/train.py --out outputs/flux-emoji
python TaylorSeer-FLUX/train.py --out outputs/flux-emoji --resume
torchrun --nproc_per_node=8 TaylorSeer-FLUX/train.py --out outputs/flux-emoji --batch-size 512
"""


def parse_args(argv: list[str] | None) -> Namespace:
    names = [name for name in CONFIGS if USAGE[name].factor == 1]
    return parse_training_args(argv, description=__doc__, examples=EXAMPLES, models=names, default="flux-tiny")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, usage = flux_config(args.model), USAGE[args.model]
    patch = patch_side(config.in_channels, usage.latent_channels)

    def make() -> Flux:
        return Flux(config, attention=args.attention).initialize(args.seed)

    def velocity(forward: nn.Module, x: Tensor, t: Tensor, texts: Texts, weight: Tensor) -> Tensor:
        count, (height, width), (txt, y) = len(x), x.shape[-2:], texts
        ids = image_ids(count, height // patch, width // patch, x.device), text_ids(count, txt.shape[1], x.device)
        return unpack(forward(pack(x, patch), ids[0], txt, ids[1], t, y, weight), height, width, patch)

    def draw(ema: nn.Module, noise: Tensor, texts: Texts, none: Texts) -> Tensor:
        return sample(ema, noise, *texts, usage.num_steps, guidance_scale=usage.guidance)

    train(args, config, make, velocity, draw, patch=patch, distilled=True)


if __name__ == "__main__":
    run_command(main)
