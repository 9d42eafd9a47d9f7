"""Short clips of one Fashion-MNIST object moving over a plain background: text-to-video made on the fly."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_dic import UserError
from seerkit.data.captions import (
    BACKGROUNDS,
    CAPTIONS,
    COLOURS,
    DIRECTIONS,
    MAX_WORDS,
    MOTIONS,
    OBJECTS,
    grammar,
    is_held_out,
    word_indices,
)
from seerkit.data.fashion_mnist import IMAGE_SIZE
from seerkit.sampling.seeds import generator

NUM_FRAMES = 16
FRAME_SIZE = 32  # edge in pixels
FPS = 8  # at which the clips are meant to be watched
TEXT_DIM = 48  # of the one-hot words; those beyond the vocabulary stay zero

_CAPTION_INDEX = {caption: index for index, caption in enumerate(CAPTIONS)}


# ---------------------------------------------------------------------------------------------------------------- text


def encode(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Captions as one-hot words (B, MAX_WORDS, TEXT_DIM) float32, zero after the last word, and a mask (B, MAX_WORDS) bool.

    The mask is True at words. The empty caption, the condition of an unconditional prediction, is all zeros, and its
    first position counts as a word, so that attention over the text stays defined. Raises UserError for a word outside
    the vocabulary or more than MAX_WORDS words.
    """
    tokens = torch.zeros(len(captions), MAX_WORDS, TEXT_DIM)
    mask = torch.zeros(len(captions), MAX_WORDS, dtype=torch.bool)
    mask[:, 0] = True
    for row, caption in enumerate(captions):
        words = word_indices(caption)
        tokens[row, range(len(words)), words] = 1.0
        mask[row, : len(words)] = True
    return tokens, mask


def pooled(tokens: Tensor) -> Tensor:
    """One vector per caption: the sum of its one-hot words, (B, MAX_WORDS, TEXT_DIM) -> (B, TEXT_DIM)."""
    return tokens.sum(dim=1)


# --------------------------------------------------------------------------------------------------------------- clips


class MovingObjects:
    """An endless set of clips; clip `index` is a pure function of (images, seed, index), whatever the batch around it."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int = 0) -> None:
        """images: (N, 1, 32, 32) uint8, bright objects on black. labels: (N,) int64, indices of OBJECTS, each at hand."""
        if images.shape != (len(labels), 1, IMAGE_SIZE, IMAGE_SIZE) or images.dtype != torch.uint8:
            raise UserError(
                f"images are {tuple(images.shape)} {images.dtype} for {len(labels)} labels; they must be uint8 "
                f"(N, 1, {IMAGE_SIZE}, {IMAGE_SIZE}), as seerkit.data.fashion_mnist.load_fashion_mnist gives them"
            )
        counts = torch.bincount(labels, minlength=len(OBJECTS))
        if len(counts) > len(OBJECTS) or not counts.all():
            raise UserError(f"labels occur {counts.tolist()} times; all of 0..{len(OBJECTS) - 1} must occur, no others")
        self.images, self.seed, self.counts = images, seed, counts
        self.of_class = labels.argsort(stable=True)  # image indices, class after class
        self.first = counts.cumsum(0) - counts  # of each class in `of_class`
        self.training = torch.tensor([i for i, caption in enumerate(CAPTIONS) if not is_held_out(caption)])
        self.colours, self.backgrounds = (
            torch.tensor(list(colours.values())) / 127.5 - 1 for colours in (COLOURS, BACKGROUNDS)
        )

    def batch(self, step: int, batch_size: int) -> tuple[Tensor, list[str]]:
        """The clips and captions of a training step: indices step · batch_size and on."""
        return self.clips(range(step * batch_size, (step + 1) * batch_size))

    def clips(self, indices: Sequence[int], captions: Sequence[str] | None = None) -> tuple[Tensor, list[str]]:
        """Clips (B, 3, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE) float32 in [-1, 1] and their captions.

        captions: what to show, of CAPTIONS, held-out ones too; None draws them uniformly from the training ones.
        """
        if captions is not None and len(captions) != len(indices):
            raise UserError(f"{len(captions)} captions for {len(indices)} clips; give one per clip")
        draws = torch.stack([torch.rand(8, generator=generator(self.seed, i), dtype=torch.float64) for i in indices])
        if captions is None:
            chosen = self.training[(draws[:, 0] * len(self.training)).long()]
        else:
            chosen = torch.tensor([_caption_index(caption) for caption in captions])
        sizes = [len(part) for part in (OBJECTS, COLOURS, MOTIONS, BACKGROUNDS)]
        objects, colours, motions, backgrounds = torch.unravel_index(chosen, sizes)
        images = self.of_class[self.first[objects] + (draws[:, 1] * self.counts[objects]).long()]
        grid = _sampling_grid(motions, draws[:, 2:].float())
        video = _composite(self.images[images], grid, self.colours[colours], self.backgrounds[backgrounds])
        return video, [CAPTIONS[index] for index in chosen.tolist()]


def _caption_index(caption: str) -> int:
    if caption not in _CAPTION_INDEX:
        raise UserError(f"{caption!r} cannot be drawn; {grammar()}")
    return _CAPTION_INDEX[caption]


def _sampling_grid(motions: Tensor, draws: Tensor) -> Tensor:
    """Where each pixel of each frame lies in the object's image, (B, NUM_FRAMES, 32, 32, 2), as grid_sample reads it.

    motions: (B,) indices of MOTIONS. draws: (B, 6) uniform in [0, 1). The object's box keeps inside the frame (when it
    spins, its corners may leave it). All motions are smooth in time, and all but bouncing at constant speed.
    """
    size_draw, offset_x, offset_y, speed, phase, side = draws.unsqueeze(-1).unbind(1)  # (B, 1) each
    motion = {name: (motions == index).float()[:, None] for index, name in enumerate(MOTIONS)}
    time = torch.linspace(0, 1, NUM_FRAMES)[None]  # 0 at the first frame, 1 at the last

    small, large = 9 + 3 * speed, 20 + 4 * phase
    growth = motion["growing"] * time + motion["shrinking"] * (1 - time)
    resizing = motion["growing"] + motion["shrinking"]
    size = (1 - resizing) * (16 + 6 * size_draw) + resizing * (small + (large - small) * growth)  # (B, NUM_FRAMES), px
    room = (FRAME_SIZE - size.amax(dim=1, keepdim=True)) / 2  # how far the centre may be from the frame's, px

    reach = 0.75 + 0.25 * speed  # of the room, in a straight motion or a bounce
    direction = torch.zeros(len(MOTIONS), 2)
    direction[: len(DIRECTIONS)] = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)
    step_x, step_y = direction[motions].unsqueeze(-1).unbind(1)
    jump = (2 * time + phase) % 1  # two jumps in a clip
    height = 1 - 1.4 * reach * 4 * jump * (1 - jump)  # 1 on the floor
    loose = 1 - 0.5 * motion["spinning"]
    x = (1 - step_x.abs()) * (2 * offset_x - 1) * loose + step_x * reach * (2 * time - 1)
    y = (1 - step_y.abs()) * (2 * offset_y - 1) * loose + step_y * reach * (2 * time - 1)
    y = torch.lerp(y, height, motion["bouncing"])
    x, y = x * room / (FRAME_SIZE / 2), y * room / (FRAME_SIZE / 2)  # in half frames, as the grid

    turns = (0.6 + 0.4 * speed) * torch.where(side < 0.5, -1.0, 1.0)
    angle = motion["spinning"] * 2 * math.pi * turns * time
    zoom = (IMAGE_SIZE - 4) / size  # pixels of the image's 28 to one of the frame
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    theta = torch.stack([cos, sin, -cos * x - sin * y, -sin, cos, sin * x - cos * y], dim=-1)  # inverse map, row by row
    grid = F.affine_grid(
        theta.reshape(-1, 2, 3), [theta[..., 0].numel(), 1, FRAME_SIZE, FRAME_SIZE], align_corners=False
    )
    return grid.reshape(len(motions), NUM_FRAMES, FRAME_SIZE, FRAME_SIZE, 2)


def _composite(images: Tensor, grid: Tensor, colours: Tensor, backgrounds: Tensor) -> Tensor:
    """The tinted object over its background, (B, 3, NUM_FRAMES, 32, 32). images: (B, 1, 32, 32) uint8; colours (B, 3).

    The image is blurred a little, as it is drawn smaller than it is. Where it is dark but not black the object is opaque
    and shaded, so that dark garments do not let the background through.
    """
    kernel = torch.tensor([0.25, 0.5, 0.25])
    blurred = F.conv2d(images / 255, (kernel[:, None] * kernel)[None, None], padding=1)
    grey = F.grid_sample(blurred, grid.flatten(1, 2), align_corners=False).flatten(1)  # (B, NUM_FRAMES · 32 · 32)
    alpha = (4 * grey).clamp_(max=1)
    shaded = alpha * (0.45 + 0.55 * grey)
    # background + alpha · (shade · (colour + 1) - 1 - background): shade 0 is black, which is -1
    weights = torch.stack([colours + 1, -1 - backgrounds], dim=-1)  # (B, 3, 2)
    video = torch.baddbmm(backgrounds.unsqueeze(-1), weights, torch.stack([shaded, alpha], dim=1))
    return video.clamp_(-1, 1).reshape(-1, 3, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)
