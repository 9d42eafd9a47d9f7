"""Short clips of one flat shape moving over a plain background: text-to-video drawn on the fly, without any files."""

import functools
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
from seerkit.sampling.seeds import generator

NUM_FRAMES = 8
FRAME_SIZE = 24  # edge in pixels
FPS = 8  # at which the clips are meant to be watched
TEXT_DIM = 48  # of the one-hot words; those beyond the vocabulary stay zero

SWAY = 2.0  # pixels to each side of the middle, where an object may be that does not move that way

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


# -------------------------------------------------------------------------------------------------------------- shapes

REACH, RESOLUTION = 1.5, 96  # a table of distances covers [-REACH, REACH]², RESOLUTION points along a side


def _outlines() -> dict[str, Tensor]:
    """Corners (N, 2) of the objects with straight or finely cut outlines, x to the right and y down, within [-1, 1]²."""
    turn = torch.arange(10) * (math.pi / 5)
    star = torch.where(torch.arange(10) % 2 == 0, 1.15, 0.38)
    arm = 0.28
    t = torch.arange(48) * (2 * math.pi / 48)
    heart_y = 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()
    return {
        "bar": torch.tensor([(-1.1, -0.4), (1.1, -0.4), (1.1, 0.4), (-1.1, 0.4)]),
        "triangle": torch.tensor([(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]),
        "star": torch.stack([star * turn.sin(), 0.08 - star * turn.cos()], dim=-1),
        "heart": torch.stack([t.sin().pow(3), -heart_y / 16 - 0.15], dim=-1),
        "cross": torch.tensor(
            [
                (-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm), (arm, 1), (-arm, 1), (-arm, arm),
                (-1, arm), (-1, -arm), (-arm, -arm),
            ]
        ),
    }  # fmt: skip


def _outline_distance(points: Tensor, corners: Tensor) -> Tensor:
    """Signed distance of points (…, 2) to a polygon with corners (N, 2), negative inside."""
    edge = corners.roll(-1, 0) - corners  # (N, 2)
    offset = points.unsqueeze(-2) - corners  # (…, N, 2)
    along = ((offset * edge).sum(-1) / edge.square().sum(-1)).clamp(0, 1)
    distance = (offset - along.unsqueeze(-1) * edge).norm(dim=-1).amin(-1)
    # A ray to the right crosses the outline an odd number of times from within.
    spans = (offset[..., 1] >= 0) != (offset[..., 1] >= edge[:, 1])
    to_the_right = offset[..., 0] < offset[..., 1] * edge[:, 0] / torch.where(edge[:, 1] == 0, 1.0, edge[:, 1])
    inside = (spans & to_the_right).sum(-1) % 2 == 1
    return torch.where(inside, -distance, distance)


@functools.cache
def shape_distances() -> Tensor:
    """Signed distances to the outlines of OBJECTS, negative inside, (objects, RESOLUTION, RESOLUTION).

    Of points over [-REACH, REACH]², in which an object of half its size 1 fills about [-1, 1]²; as grid_sample reads images.
    """
    axis = REACH * (2 * torch.arange(RESOLUTION) + 1 - RESOLUTION) / RESOLUTION
    points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)  # (R, R, 2)

    def disc(radius: float, x: float = 0.0, y: float = 0.0) -> Tensor:
        return (points - torch.tensor([x, y])).norm(dim=-1) - radius

    round_ones = {
        "circle": disc(1.0),
        "ring": (disc(0.76)).abs() - 0.26,
        "moon": torch.maximum(disc(1.0, -0.05), -disc(0.85, 0.5, -0.2)),
    }
    straight = {name: _outline_distance(points, corners) for name, corners in _outlines().items()}
    return torch.stack([(round_ones | straight)[name] for name in OBJECTS])


def draw(objects: Tensor, x: Tensor, y: Tensor, size: Tensor, side: int = FRAME_SIZE) -> Tensor:
    """How much of each pixel an object covers, in [0, 1], (B, T, side, side): its edge is a pixel wide.

    objects: (B,) indices of OBJECTS. x, y, size: (B, T) centre and size in pixels of the frame, (0, 0) its upper left corner.
    """
    half = (size / 2)[..., None, None]
    pixel = torch.arange(side) + 0.5
    across, down = (pixel - x.unsqueeze(-1)).unsqueeze(-2) / half, (pixel - y.unsqueeze(-1)).unsqueeze(-1) / half
    grid = torch.stack(torch.broadcast_tensors(across, down), dim=-1) / REACH  # (B, T, side, side, 2)
    table = shape_distances()[objects].unsqueeze(1)
    distance = F.grid_sample(table, grid.flatten(1, 2), padding_mode="border", align_corners=False)
    return (0.5 - distance.reshape(grid.shape[:-1]) * half).clamp(0, 1)


# --------------------------------------------------------------------------------------------------------------- clips


class MovingObjects:
    """An endless set of clips; clip `index` is a pure function of (seed, index), whatever the batch around it."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
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
        draws = torch.stack([torch.rand(6, generator=generator(self.seed, i), dtype=torch.float64) for i in indices])
        if captions is None:
            chosen = self.training[(draws[:, 0] * len(self.training)).long()]
        else:
            chosen = torch.tensor([_caption_index(caption) for caption in captions])
        sizes = [len(part) for part in (OBJECTS, COLOURS, MOTIONS, BACKGROUNDS)]
        objects, colours, motions, backgrounds = torch.unravel_index(chosen, sizes)
        cover = draw(objects, *_paths(motions, draws[:, 1:].float())).unsqueeze(1)  # (B, 1, T, side, side)
        colour, background = self.colours[colours], self.backgrounds[backgrounds]
        video = torch.lerp(*(values[..., None, None, None] for values in (background, colour)), cover)
        return video, [CAPTIONS[index] for index in chosen.tolist()]


def _caption_index(caption: str) -> int:
    if caption not in _CAPTION_INDEX:
        raise UserError(f"{caption!r} cannot be drawn; {grammar()}")
    return _CAPTION_INDEX[caption]


def _paths(motions: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centre x, y and size of the object in each frame, in pixels, (B, NUM_FRAMES) each.

    motions: (B,) indices of MOTIONS. draws: (B, 5) uniform in [0, 1). The object keeps inside the frame, and within SWAY of the
    middle where it does not move. All motions but bouncing, which is two jumps from the floor, are at constant speed.
    """
    size_draw, offset_x, offset_y, speed, change = draws.unsqueeze(-1).unbind(1)  # (B, 1) each
    motion = {name: (motions == index).float()[:, None] for index, name in enumerate(MOTIONS)}
    time = torch.linspace(0, 1, NUM_FRAMES)[None]  # 0 at the first frame, 1 at the last

    small, large = 5.5 + speed, 14 + 2 * change
    growth = motion["growing"] * time + motion["shrinking"] * (1 - time)
    resizing = motion["growing"] + motion["shrinking"]
    size = (1 - resizing) * (10 + 2 * size_draw) + resizing * (small + (large - small) * growth)
    room = (FRAME_SIZE - size.amax(dim=1, keepdim=True)) / 2 - 0.5  # how far the centre may be from the frame's

    reach = (0.8 + 0.2 * speed) * room  # in a straight motion or a bounce
    direction = torch.zeros(len(MOTIONS), 2)
    direction[: len(DIRECTIONS)] = torch.tensor(list(DIRECTIONS.values()), dtype=torch.float32)
    step_x, step_y = direction[motions].unsqueeze(-1).unbind(1)
    jump = 2 * time % 1
    height = reach * (1 - 8 * jump * (1 - jump))  # from the floor, below the middle, to as far above it
    x = (1 - step_x.abs()) * SWAY * (2 * offset_x - 1) + step_x * reach * (2 * time - 1)
    y = (1 - step_y.abs()) * SWAY * (2 * offset_y - 1) + step_y * reach * (2 * time - 1)
    y = torch.lerp(y, height, motion["bouncing"])
    middle = FRAME_SIZE / 2
    return middle + x, middle + y, size.expand(-1, NUM_FRAMES)
