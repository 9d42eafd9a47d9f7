"""What train.py does: the loss of DiT on Fashion-MNIST, grids of samples, the run."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dit import DiT, DiTConfig, dit_config
from dit.diffusion import Diffusion
from dit.sampler import sample
from seerkit.data.fashion_mnist import CLASS_NAMES, IMAGE_SIZE, load_fashion_mnist, to_unit_range
from seerkit.devices.distributed import World
from seerkit.io.media import labelled_grid, save_png, to_uint8
from seerkit.sampling.seeds import SampleGenerators, derive_seed, generator
from seerkit.training.loop import (
    Training,
    batch_indices,
    check_samples,
    export,
    fit,
    resolved,
    start_training,
)

LABELS = {"simple": "noise (L_simple)", "vlb": "variance (L_vlb, bits)"}


class DiffusionLoss:
    """The training objective, for one step at a time."""

    def __init__(self, images: Tensor, labels: Tensor, config: DiTConfig, args, world: World) -> None:
        self.images, self.labels, self.config, self.args, self.world = images, labels, config, args, world
        self.diffusion = Diffusion.respaced()

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """This process's share of step `step`, independent of the number of processes.

        x0 (B, 1, H, W), y (B,) with dropped labels, time indices i (B,) and noise (B, 1, H, W).
        """
        count, draw = self.args.batch_size, generator(self.args.seed, 1, step)
        chosen = torch.from_numpy(batch_indices(step, count, len(self.images), self.args.seed))
        i = torch.randint(len(self.diffusion), (count,), generator=draw)
        noise = torch.randn(count, *self.images.shape[1:], generator=draw)
        dropped = torch.rand(count, generator=draw) < self.config.class_dropout_prob
        y = torch.where(dropped, torch.tensor(self.config.num_classes), self.labels[chosen])
        share = slice(self.world.rank, None, self.world.size)
        batch = (to_unit_range(self.images[chosen[share]]), y[share], i[share], noise[share])
        return tuple(part.to(self.world.device, non_blocking=True) for part in batch)

    def __call__(self, forward: nn.Module, step: int) -> dict[str, Tensor]:
        x0, y, i, noise = self.batch(step)
        output = forward(self.diffusion.add_noise(x0, i, noise), self.diffusion.timesteps.to(i.device)[i], y)
        losses = self.diffusion.training_loss(output, x0, noise, i)
        return {name: loss.mean() for name, loss in zip(LABELS, losses, strict=True)}


def save_grid(path: Path, ema: DiT, args, device: torch.device, per_class: int = 4) -> None:
    """Guided 50-step DDIM samples of every class, one column per class."""
    classes = ema.config.num_classes
    labels = torch.arange(classes).repeat(per_class)
    noise = SampleGenerators(derive_seed(args.seed, 2), range(len(labels))).randn(1, IMAGE_SIZE, IMAGE_SIZE)
    samples = sample(ema, noise.to(device), labels.to(device), 50, guidance_scale=2.0)
    images = to_uint8(check_samples(samples, path.parent))
    rows = [images[i * classes : (i + 1) * classes] for i in range(per_class)]
    save_png(path, labelled_grid(rows, [""] * per_class, CLASS_NAMES, min_cell=96))


def train(args: Namespace) -> None:
    """Train as the flags of train.py say, or with --dry-run show what would be."""
    config = replace(dit_config(args.model, image_size=IMAGE_SIZE), num_classes=len(CLASS_NAMES))
    world = start_training(config, args)
    if world is None:
        return
    images, labels = load_fashion_mnist("train", args.data)
    training = Training.begin(DiT(config, attention=args.attention).initialize(args.seed).to(world.device), args)
    losses = DiffusionLoss(images, labels, config, args, world)

    def draw(path: Path, ema: nn.Module) -> None:
        save_grid(path, ema, args, world.device)

    fit(training, losses, args, world, labels=LABELS, settings=resolved(config, args), save_grid=draw)
    data = "Fashion-MNIST training images (Zalando, MIT licence), 28 pixels with a border of 2"
    export(training.ema, args, world, tuple(LABELS), data=data)
