"""Following the object of a clip of moving objects, and telling from that what the clip shows.

The background is the median colour of a clip. What a pixel differs from it, over what the object differs, is how much of the
pixel the object covers; from that come the object's place and extent in each frame, and from these the motion (`motion_of`).
Colour and background are the nearest of the captions' in RGB; the object is the one whose drawing, laid over what is covered at
the same centre and area, agrees best. Whatever else is shown gets the nearest of the captions' words, but a motion
is none of them where no rule holds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cache_dic import UserError
from seerkit.data.captions import BACKGROUNDS, COLOURS, DIRECTIONS, HELD_OUT, MOTIONS, OBJECTS
from seerkit.data.moving_objects import draw

Array = np.ndarray

LEAST_CONTRAST = 40.0  # grey levels between object and background, Euclidean in RGB; below it there is no object
LEAST_COVER = 0.25  # of a pixel; below it noise and compression are taken for background
LEAST_AREA = 4.0  # pixels in every frame; below it the object is lost
SOLID = 0.8  # cover of the pixels that the colour is read from

GROWTH = 1.5  # of the extent, first frame to last, from which an object grows; real clips have 2 and more
SAME_SIZE = (
    1.3  # ratio of extents, largest to smallest, up to which an object that goes straight or is still keeps its size
)
DISTANCE = 4.0  # pixels that a straight motion, or a jump, goes; real clips have 8 and more
SIDEWAYS = 2.5  # pixels that the other coordinate may span, and both of an object that is still or changes its size
DETOUR = 1.25  # way gone over distance, up to which a motion is straight
TURNS = 2  # turning points of a bounce, at the least
LEAST_STEP = 0.5  # pixels between frames, below which a step has no direction

FACTS = ("object", "colour", "motion", "background")


@dataclass(frozen=True)
class Track:
    """Where the object of a clip is: x, y (T,) its centroid and extent (T,) the root of its area, in pixels.

    cover (T, H, W) in [0, 1]. object_rgb, background_rgb (3,): colours, 0 to 255.
    """

    x: Array
    y: Array
    extent: Array
    cover: Array
    object_rgb: Array
    background_rgb: Array


def follow(frames: Array) -> Track | None:
    """The object in a clip (T, H, W, 3) of uint8, None where there is none, or none in some frame."""
    pixels = frames.astype(np.float64)
    background = np.median(pixels.reshape(-1, 3), axis=0)
    difference = np.linalg.norm(pixels - background, axis=-1)  # (T, H, W)
    seen = difference[difference > LEAST_CONTRAST]
    if len(seen) == 0:
        return None
    contrast = np.median(seen)
    cover = np.clip(difference / contrast, 0, 1)
    cover[cover < LEAST_COVER] = 0
    area = cover.sum(axis=(1, 2))
    if area.min() < LEAST_AREA:
        return None
    rows, columns = (np.arange(side) + 0.5 for side in cover.shape[1:])
    return Track(
        x=(cover.sum(axis=1) * columns).sum(axis=1) / area,
        y=(cover.sum(axis=2) * rows).sum(axis=1) / area,
        extent=np.sqrt(area),
        cover=cover,
        object_rgb=np.median(pixels[cover > SOLID], axis=0),
        background_rgb=background,
    )


def motion_of(track: Track) -> str | None:
    """The motion of MOTIONS that a track is, by the rules that the constants above state; None where none holds.

    An object grows or shrinks where its extent changes by GROWTH and its place spans no more than SIDEWAYS. Else its extent
    must be of SAME_SIZE. It moves in a direction where that coordinate gains DISTANCE on a way at most DETOUR times as long;
    it bounces where y spans DISTANCE and turns TURNS times; the other coordinate spans no more than SIDEWAYS. It is still
    where both span no more than half of that.
    """
    span_x, span_y = np.ptp(track.x), np.ptp(track.y)
    growth = track.extent[-1] / track.extent[0]
    if max(growth, 1 / growth) >= GROWTH:
        kept = max(span_x, span_y) <= SIDEWAYS
        return ("growing" if growth > 1 else "shrinking") if kept else None
    if track.extent.max() / track.extent.min() > SAME_SIZE:
        return None
    if max(span_x, span_y) <= SIDEWAYS / 2:
        return "still"
    for name, (right, down) in DIRECTIONS.items():
        along = right * track.x + down * track.y
        across = span_y if right else span_x
        distance = along[-1] - along[0]
        if distance >= DISTANCE and np.abs(np.diff(along)).sum() <= DETOUR * distance and across <= SIDEWAYS:
            return name
    steps = np.diff(track.y)
    signs = np.sign(steps[np.abs(steps) >= LEAST_STEP])
    if span_y >= DISTANCE and span_x <= SIDEWAYS and np.count_nonzero(np.diff(signs)) >= TURNS:
        return "bouncing"
    return None


def object_of(track: Track) -> str:
    """The object of OBJECTS whose drawing agrees best with what is covered, over all frames.

    Agreement: the least of the two covers over the greatest, both summed, the drawing having the track's centroid and area.
    """
    cover = torch.from_numpy(track.cover).float()
    (count, height, width), agreements = cover.shape, []
    side = max(height, width)
    for number in range(len(OBJECTS)):
        area, x, y = _UNIT[number]
        size = track.extent / math.sqrt(area)
        place = (torch.from_numpy(v).float()[:, None] for v in (track.x - x * size, track.y - y * size, size))
        drawn = draw(torch.full((count,), number), *place, side=side)[:, 0, :height, :width]
        agreements.append(float(torch.minimum(cover, drawn).sum() / torch.maximum(cover, drawn).sum()))
    return OBJECTS[int(np.argmax(agreements))]


def _units() -> list[tuple[float, float, float]]:
    """Of each object drawn with size 1: area, and how far the centroid lies from the centre, x and y."""
    side = 200.0
    middle = torch.full((len(OBJECTS), 1), side / 2)
    drawn = draw(torch.arange(len(OBJECTS)), middle, middle, middle, side=int(side))[:, 0].double()
    axis = torch.arange(side, dtype=torch.float64) + 0.5 - side / 2
    area = drawn.sum(dim=(1, 2))
    x, y = ((drawn.sum(dim=dim) * axis).sum(1) / area for dim in (1, 2))
    size = side / 2
    return [(a / size**2, x / size, y / size) for a, x, y in zip(*(v.tolist() for v in (area, x, y)), strict=True)]


_UNIT = _units()


def nearest(rgb: Array, colours: Mapping[str, Sequence[int]]) -> str:
    return min(colours, key=lambda name: float(np.linalg.norm(rgb - np.array(colours[name]))))


def told(frames: Array) -> dict[str, str | None]:
    """What a clip (T, H, W, 3) of uint8 shows, by FACTS, in the captions' words; None for what cannot be told."""
    track = follow(frames)
    if track is None:
        return dict.fromkeys(FACTS)
    return {
        "object": object_of(track),
        "colour": nearest(track.object_rgb, COLOURS),
        "motion": motion_of(track),
        "background": nearest(track.background_rgb, BACKGROUNDS),
    }


def asked(caption: str) -> dict[str, str]:
    """What a caption of the grammar asks for, by FACTS."""
    colour, name, *motion, _, background = caption.split()
    return {"object": name, "colour": colour, "motion": " ".join(motion), "background": background}


# ------------------------------------------------------------------------------------------------------- many captions


def held_out_captions(per_motion: int, seed: int) -> list[str]:
    """As many held-out captions of every motion, drawn with a seed, motion after motion; UserError if there are too few."""
    draw = np.random.default_rng(seed)
    chosen = []
    for motion in MOTIONS:
        known = sorted(caption for caption in HELD_OUT if asked(caption)["motion"] == motion)
        if len(known) < per_motion:
            raise UserError(
                f"{len(known)} captions with {motion!r} are held out, and {per_motion} are asked for; ask for fewer"
            )
        chosen += [known[index] for index in draw.choice(len(known), per_motion, replace=False)]
    return chosen


def rates(shown: Sequence[Mapping[str, str | None]], captions: Sequence[str]) -> list[dict[str, Any]]:
    """How often clips show what their captions ask for, by motion and then of all.

    shown: what is told of each clip. A row has `right_` and each of FACTS, or `everything` for all four: how many of its
    `num` clips show that; and `chance`: the share of other clips that move as a caption asks, averaged over captions.
    """
    wanted = [asked(caption) for caption in captions]
    rows = []
    for motion in (*MOTIONS, None):
        chosen = [index for index, facts in enumerate(wanted) if motion in (None, facts["motion"])]
        if not chosen:
            continue
        right = {fact: [shown[i][fact] == wanted[i][fact] for i in chosen] for fact in FACTS}
        others = [
            np.mean([clip["motion"] == wanted[i]["motion"] for j, clip in enumerate(shown) if j != i]) for i in chosen
        ]
        rows.append(
            {
                "motion": motion,
                "num": len(chosen),
                **{f"right_{fact}": sum(values) for fact, values in right.items()},
                "right_everything": sum(all(values) for values in zip(*right.values(), strict=True)),
                "chance": float(np.mean(others)),
            }
        )
    return rows
