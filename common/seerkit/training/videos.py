"""Training the embedded video models: the flow's velocity on clips of moving objects, with or without distilled guidance."""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seerkit.data.captions import PROMPTS
from seerkit.data.moving_objects import FRAME_SIZE, NUM_FRAMES, MovingObjects, encode
from seerkit.devices.distributed import World
from seerkit.io.media import frame_strip, save_png, video_to_uint8
from seerkit.sampling.flow_solvers import shift_sigmas
from seerkit.sampling.seeds import SampleGenerators, derive_seed, generator
from seerkit.training.loop import (
    LARGEST_WEIGHT,
    Training,
    check_samples,
    export,
    fit,
    flow_loss,
    num_guided,
    resolved,
    start_training,
)

CLIP_SHAPE = (3, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)
NO_TEXT = 0.1  # share of captions that are dropped
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

    distilled: the weight of guidance is an input of the model and is learnt in a quarter of every batch (`guided_answers`).
    A share of the other captions is dropped, for guidance by two calls where the weight is always 1.
    """

    def __init__(
        self, clips: MovingObjects, velocity: Velocity, args, world: World, *, shift: float, distilled: bool
    ) -> None:
        self.num_guided = num_guided(args.batch_size, 4 if distilled else None, world)
        self.clips, self.velocity, self.args, self.world, self.shift = clips, velocity, args, world, shift

    def __call__(self, forward: nn.Module, step: int) -> dict[str, Tensor]:
        args, device = self.args, self.world.device
        draw, count = generator(args.seed, 1, step), args.batch_size
        noise = torch.randn(count, *CLIP_SHAPE, generator=draw)
        sigma = shift_sigmas(torch.sigmoid(torch.randn(count, generator=draw)), self.shift)
        dropped = torch.rand(count, generator=draw) < NO_TEXT
        weight = 1 + (LARGEST_WEIGHT - 1) * torch.rand(count, generator=draw)
        guided = torch.arange(count) < self.num_guided

        share = slice(self.world.rank, None, self.world.size)
        with torch.autocast("cpu", enabled=False):  # bf16 is for the model, not for its data
            clips, captions = self.clips.clips(range(step * count, (step + 1) * count)[share])
        texts = encode_texts(captions).without((dropped & ~guided)[share]).to(device)
        noise, sigma, weight = (v[share].to(device) for v in (noise, sigma, torch.where(guided, weight, 1.0)))
        velocity = functools.partial(self.velocity, forward)
        rows = slice(self.num_guided // self.world.size)  # of this process's
        none = texts[rows].without(torch.ones_like(weight[rows], dtype=torch.bool))
        return {"flow": flow_loss(velocity, clips.to(device), noise, sigma, texts, none, weight, rows)}


@dataclass(frozen=True)
class SampleStrips:
    """Samples of the default prompts, a row of frames each. sample(ema, noise, texts) -> clips."""

    sample: Callable[[nn.Module, Tensor, Texts], Tensor]
    seed: int
    device: torch.device

    def __call__(self, path: Path, ema: nn.Module) -> None:
        noise = SampleGenerators(derive_seed(self.seed, 2), range(len(PROMPTS))).randn(*CLIP_SHAPE, device=self.device)
        clips = self.sample(ema, noise, encode_texts(PROMPTS).to(self.device))
        strip = frame_strip([*video_to_uint8(check_samples(clips, path.parent))], PROMPTS)
        save_png(path, strip)


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
    world = start_training(config, args)
    if world is None:
        return
    clips = MovingObjects(args.seed)
    training = Training.begin(make_model().to(world.device), args)
    losses = ClipLoss(clips, velocity, args, world, shift=shift, distilled=distilled)
    strips = SampleStrips(sample, args.seed, world.device)
    fit(training, losses, args, world, labels=LABELS, settings=resolved(config, args), save_grid=strips)
    data = "moving objects by seerkit.data.moving_objects, captions exact"
    export(training.ema, args, world, tuple(LABELS), data=data)
