"""Training the embedded video models: the flow's velocity on clips of moving objects, with or without distilled guidance."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seerkit.cli import Parser
from seerkit.distributed import World, start_world
from seerkit.fashion_mnist import load_fashion_mnist
from seerkit.files import writable_directory
from seerkit.flow_solvers import shift_sigmas
from seerkit.media import frame_strip, save_png, video_to_uint8
from seerkit.moving_objects import FRAME_SIZE, NUM_FRAMES, PROMPTS, MovingObjects, encode
from seerkit.seeds import SampleGenerators, derive_seed, generator
from seerkit.training import Training, add_training_flags, check_training_flags, export, fit, resolved

CLIP_SHAPE = (3, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)
NO_TEXT = 0.1  # share of captions that are dropped
LARGEST_WEIGHT = 5.0  # of distilled guidance, in training
LABELS = {"flow": "velocity"}


@dataclass(frozen=True)
class Texts:
    """Captions as the models take them: words (B, L, D) and which of them count, mask (B, L)."""

    words: Tensor
    mask: Tensor

    def __getitem__(self, rows: slice) -> "Texts":
        return Texts(self.words[rows], self.mask[rows])

    def to(self, device: torch.device) -> "Texts":
        return Texts(self.words.to(device), self.mask.to(device))

    def without(self, dropped: Tensor) -> "Texts":
        """The empty caption in the rows where `dropped` (B,) holds."""
        none = encode_texts([""]).to(self.words.device)
        return Texts(
            torch.where(dropped[:, None, None], none.words, self.words),
            torch.where(dropped[:, None], none.mask, self.mask),
        )


def encode_texts(captions: list[str] | tuple[str, ...]) -> Texts:
    return Texts(*encode(captions))


Velocity = Callable[[nn.Module, Tensor, Tensor, Texts, Tensor], Tensor]
"""`velocity(forward, x, sigma, texts, weight)` -> (B, C, T, H, W), the model's answer; weight (B,) of distilled guidance."""


class ClipLoss:
    """The training objective, for one step at a time.

    distilled: the weight of guidance is an input of the model and is learnt without a teacher (guidance-free training,
    arXiv 2501.15420): with w the weight and v(x | none) the model's own unguided answer, held fixed,
    v(x | text, w) / w + (1 - 1 / w) · v(x | none) is fitted to the flow's velocity, for a quarter of every batch.
    Otherwise a share of the captions is dropped, for guidance by two calls, and the weight is 1.
    """

    def __init__(
        self, clips: MovingObjects, velocity: Velocity, args, world: World, *, shift: float, distilled: bool
    ) -> None:
        self.guided_share = 4 if distilled else None
        unit = (self.guided_share or 1) * world.size
        if args.batch_size % unit:
            raise ValueError(f"--batch-size {args.batch_size} must be a multiple of {unit}")
        self.clips, self.velocity, self.args, self.world, self.shift = clips, velocity, args, world, shift

    def __call__(self, forward: nn.Module, step: int) -> dict[str, Tensor]:
        args, device = self.args, self.world.device
        draw, count = generator(args.seed, 1, step), args.batch_size
        noise = torch.randn(count, *CLIP_SHAPE, generator=draw)
        sigma = shift_sigmas(torch.sigmoid(torch.randn(count, generator=draw)), self.shift)
        dropped = torch.rand(count, generator=draw) < NO_TEXT
        weight = 1 + (LARGEST_WEIGHT - 1) * torch.rand(count, generator=draw)
        guided = torch.arange(count) < (count // self.guided_share if self.guided_share else 0)

        share = slice(self.world.rank, None, self.world.size)
        with torch.autocast("cpu", enabled=False):  # bf16 is for the model, not for its data
            clips, captions = self.clips.clips(range(step * count, (step + 1) * count)[share])
        texts = encode_texts(captions).without((dropped & ~guided)[share]).to(device)
        noise, sigma, weight = (v[share].to(device) for v in (noise, sigma, torch.where(guided, weight, 1.0)))
        clips = clips.to(device)
        x = torch.lerp(clips, noise, sigma[:, None, None, None, None])
        beta = (1 / weight)[:, None, None, None, None]
        answer = beta * self.velocity(forward, x, sigma, texts, weight).float()
        if self.guided_share:
            rows = slice(int(guided[share].sum()))
            none = texts[rows].without(torch.ones_like(weight[rows], dtype=torch.bool))
            with torch.no_grad():
                ones = torch.ones_like(weight[rows])
                unguided = self.velocity(forward, x[rows], sigma[rows], none, ones).float()
            answer = torch.cat([answer[rows] + (1 - beta[rows]) * unguided, answer[rows.stop :]])
        return {"flow": (answer - (noise - clips)).square().mean()}


@dataclass(frozen=True)
class SampleStrips:
    """Samples of the default prompts, a row of frames each. sample(ema, noise, texts) -> clips."""

    sample: Callable[[nn.Module, Tensor, Texts], Tensor]
    seed: int
    device: torch.device

    def __call__(self, path: Path, ema: nn.Module) -> None:
        noise = SampleGenerators(derive_seed(self.seed, 2), range(len(PROMPTS))).randn(*CLIP_SHAPE, device=self.device)
        clips = video_to_uint8(self.sample(ema, noise, encode_texts(PROMPTS).to(self.device)))
        save_png(path, frame_strip(clips, PROMPTS))


def parse_args(
    argv: Sequence[str] | None, *, description: str, examples: str, models: Sequence[str], default: str
) -> argparse.Namespace:
    """The command line of a training command for one of `models`."""
    parser = Parser(description, examples)
    parser.add_argument("--model", choices=models, default=default, help="shape of the model to train")
    parser.add_argument("--data", type=Path, help="folder of the Fashion-MNIST files (default: where they are found)")
    add_training_flags(parser, steps=40000, batch_size=64)
    return parser.parse_args(argv)


def train(
    args: argparse.Namespace,
    config: Any,
    make_model: Callable[[], nn.Module],
    velocity: Velocity,
    sample: Callable[[nn.Module, Tensor, Texts], Tensor],
    *,
    shift: float,
    distilled: bool,
) -> None:
    """Train, or with --dry-run show what would be. velocity, sample: of `ClipLoss` and `SampleStrips`."""
    check_training_flags(args)
    settings = resolved(config, args)
    if args.dry_run:
        print(json.dumps(settings, indent=2))
        return
    world = start_world(args.device)
    writable_directory(args.out)
    clips = MovingObjects(*load_fashion_mnist("train", args.data), args.seed)
    training = Training.begin(make_model().to(world.device), args)
    losses = ClipLoss(clips, velocity, args, world, shift=shift, distilled=distilled)
    strips = SampleStrips(sample, args.seed, world.device)
    fit(training, losses, args, world, labels=LABELS, settings=settings, save_grid=strips)
    data = "moving Fashion-MNIST objects by seerkit.moving_objects, captions exact"
    export(training.ema, args, world, tuple(LABELS), data=data)
