"""What train.py does: the velocity and the samples of FLUX in a run on emoji."""

from argparse import Namespace

from torch import Tensor, nn

from flux import Flux, flux_config, sample
from flux.config import USAGE, patch_side
from flux.latents import image_ids, pack, text_ids, unpack
from seerkit.training import emoji
from seerkit.training.emoji import Texts


def train(args: Namespace) -> None:
    """Train as the flags of train.py say, or with --dry-run show what would be."""
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

    emoji.train(args, config, make, velocity, draw, patch=patch, distilled=True)
