"""Training the embedded text-to-image models: the flow's velocity on emoji, with or without distilled guidance."""

import argparse
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seerkit.data.emoji import EmojiData, find_emoji, load_emoji
from seerkit.devices.distributed import World
from seerkit.io.media import labelled_grid, save_png, to_uint8
from seerkit.sampling.flow_solvers import shift_mu, shift_sigmas
from seerkit.sampling.seeds import SampleGenerators, derive_seed, generator
from seerkit.text.minilm import TextTable
from seerkit.training.loop import (
    LARGEST_WEIGHT,
    Training,
    batch_indices,
    check_samples,
    export,
    fit,
    flow_loss,
    num_guided,
    resolved,
    start_training,
)

NO_TEXT, NO_STYLE = 0.1, 0.1  # shares of captions that are dropped in whole, and of styles that are dropped
SHOWN = ("red apple", "dog face", "rocket", "sunflower", "hamburger", "grinning face", "house", "red heart")
LABELS = {"flow": "velocity"}

Texts = tuple[Tensor, Tensor]
"""Tokens (B, L, D) and pooled vectors (B, V)."""
Velocity = Callable[[nn.Module, Tensor, Tensor, Texts, Tensor], Tensor]
"""`velocity(forward, x, t, texts, weight)` -> (B, C, H, W), the model's answer; t (B,) in [0, 1], 1 is noise."""
Sample = Callable[[nn.Module, Tensor, Texts, Texts], Tensor]
"""`sample(ema, noise, texts, no_texts)` -> images (B, C, H, W) in [-1, 1]."""


class Captions:
    """Embeddings of every label and style, so that a caption's is two look-ups."""

    def __init__(self, table: TextTable, data: EmojiData) -> None:
        self.labels, self.label_vectors = table.encode(data.labels)
        self.styles, self.style_vectors = table.encode([f", {style}" for style in data.styles])

    def __call__(self, label: Tensor, style: Tensor, keep_label: Tensor, keep_style: Tensor) -> Texts:
        """Texts for labels and styles (B,), each kept or dropped."""
        label_on, style_on = keep_label.float(), keep_style.float()
        txt = self.labels[label] * label_on[:, None, None] + self.styles[style] * style_on[:, None, None]
        y = self.label_vectors[label] * label_on[:, None] + self.style_vectors[style] * style_on[:, None]
        return txt, y


class EmojiLoss:
    """The training objective, for one step at a time.

    distilled: the weight of guidance is an input of the model and is learnt in half of every batch (`guided_answers`); else
    the weight is 1. tokens: of an image; the times are shifted with their number.
    """

    def __init__(
        self,
        data: EmojiData,
        captions: Captions,
        velocity: Velocity,
        args: argparse.Namespace,
        world: World,
        *,
        tokens: int,
        distilled: bool,
    ) -> None:
        self.num_guided = num_guided(args.batch_size, 2 if distilled else None, world)
        chosen = data.train
        self.images, self.label, self.style = data.images[chosen], data.label[chosen], data.style[chosen]
        self.captions, self.velocity, self.args, self.world = captions, velocity, args, world
        self.shift = math.exp(shift_mu(tokens))

    def batch(self, step: int) -> dict[str, Tensor]:
        """This process's share of step `step`, independent of the number of processes."""
        args, draw = self.args, generator(self.args.seed, 1, step)
        count = args.batch_size
        chosen = torch.from_numpy(batch_indices(step, count, len(self.images), args.seed))
        noise = torch.randn(count, *self.images.shape[1:], generator=draw)
        t = shift_sigmas(torch.sigmoid(torch.randn(count, generator=draw)), self.shift)
        text_kept, style_kept = torch.rand(2, count, generator=draw)
        # The first rows of a batch learn guided answers; the others are the plain model.
        guided = torch.arange(count) < self.num_guided
        weight = torch.where(guided, 1 + (LARGEST_WEIGHT - 1) * torch.rand(count, generator=draw), 1.0)
        keep_text = (text_kept >= NO_TEXT) | guided
        txt, y = self.captions(self.label[chosen], self.style[chosen], keep_text, keep_text & (style_kept >= NO_STYLE))
        images = self.images[chosen].float() / 127.5 - 1
        whole = {"images": images, "noise": noise, "t": t, "weight": weight, "txt": txt, "y": y}
        share = slice(self.world.rank, None, self.world.size)
        return {name: value[share].to(self.world.device, non_blocking=True) for name, value in whole.items()}

    def __call__(self, forward: nn.Module, step: int) -> dict[str, Tensor]:
        b, velocity = self.batch(step), functools.partial(self.velocity, forward)
        guided = slice(self.num_guided // self.world.size)  # of this process's rows
        texts = b["txt"], b["y"]
        none = tuple(torch.zeros_like(part[guided]) for part in texts)
        return {"flow": flow_loss(velocity, b["images"], b["noise"], b["t"], texts, none, b["weight"], guided)}


class SampleGrid:
    """Samples of shown labels: a row for every style, a column for every label."""

    def __init__(
        self,
        sample: Sample,
        table: TextTable,
        styles: Sequence[str],
        shape: Sequence[int],
        seed: int,
        device: torch.device,
    ) -> None:
        self.sample, self.styles = sample, list(styles)
        prompts = [f"{label}, {style}" for style in styles for label in SHOWN]
        self.texts = tuple(part.to(device) for part in table.encode(prompts))
        generators = SampleGenerators(derive_seed(seed, 2), range(len(prompts)))
        self.noise = generators.randn(*shape, device=device)

    def __call__(self, path: Path, ema: nn.Module) -> None:
        none = tuple(torch.zeros_like(part) for part in self.texts)
        images = to_uint8(check_samples(self.sample(ema, self.noise, self.texts, none), path.parent))
        rows = [images[i : i + len(SHOWN)] for i in range(0, len(images), len(SHOWN))]
        save_png(path, labelled_grid(rows, self.styles, SHOWN, min_cell=96))


def train(
    args: argparse.Namespace,
    config: Any,
    make_model: Callable[[], nn.Module],
    velocity: Velocity,
    sample: Sample,
    *,
    patch: int,
    distilled: bool,
    watch: Callable[[nn.Module], Callable[[], Mapping[str, Tensor]]] | None = None,
    facts: Callable[[nn.Module, EmojiLoss], Mapping[str, Any]] | None = None,
) -> None:
    """Train, or with --dry-run show what would be. velocity, sample: of `EmojiLoss` and `SampleGrid`. patch: side of a token.

    watch(model): what gives further losses of each step, by name, after the model was called. facts(ema, losses): more for
    the model's card.
    """
    world = start_training(config, args)
    if world is None:
        return
    data = load_emoji(args.data)
    shape = data.images.shape[1:]
    table = TextTable.load(find_emoji(args.data).with_name("text.safetensors"))
    training = Training.begin(make_model().to(world.device), args)
    tokens = math.prod(side // patch for side in shape[1:])
    losses = EmojiLoss(data, Captions(table, data), velocity, args, world, tokens=tokens, distilled=distilled)
    further = watch(training.model) if watch else dict
    styles = [style for i, style in enumerate(data.styles) if (losses.style == i).any()]

    def all_losses(forward: nn.Module, step: int) -> dict[str, Tensor]:
        return {**losses(forward, step), **further()}

    draw = SampleGrid(sample, table, styles, shape, args.seed, world.device)
    fit(training, all_losses, args, world, labels=LABELS, settings=resolved(config, args), save_grid=draw)
    export(
        training.ema, args, world, tuple(LABELS),
        training_images=len(losses.images),
        styles=styles,
        data="emoji of several vendors on white, by scripts/get_emoji.sh; licences in common/emoji/NOTICE",
        **(facts(training.ema, losses) if facts else {}),
    )  # fmt: skip
