"""Captions of the clips of moving objects, and the words that they are made of; needs no torch.

A caption is "{colour} {object} {motion} on {background}", such as "red star moving left on black". No word has two
roles, so a caption is known from its words in any order.
"""

import hashlib
import itertools

from cache_dic import UserError

OBJECTS = ("circle", "bar", "triangle", "star", "heart", "cross", "ring", "moon")
COLOURS = {
    "red": (230, 30, 35),
    "orange": (255, 135, 20),
    "yellow": (255, 230, 40),
    "green": (40, 190, 60),
    "cyan": (40, 225, 235),
    "blue": (55, 105, 255),
    "purple": (160, 60, 225),
    "pink": (255, 125, 190),
    "white": (255, 255, 255),
}  # RGB
BACKGROUNDS = {"black": (0, 0, 0), "grey": (95, 95, 95), "brown": (85, 50, 25), "navy": (10, 20, 70)}
DIRECTIONS = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}  # (x, y)
MOTIONS = (*DIRECTIONS, "growing", "shrinking", "bouncing", "still")

CAPTIONS = tuple(
    f"{colour} {name} {motion} on {background}"
    for name, colour, motion, background in itertools.product(OBJECTS, COLOURS, MOTIONS, BACKGROUNDS)
)
HELD_OUT_SHARE = 0.1
HELD_OUT = frozenset(
    caption
    for caption in CAPTIONS
    if int.from_bytes(hashlib.sha256(caption.encode()).digest()[:4], "big") < HELD_OUT_SHARE * 2**32
)
"""The captions that no training clip has: a tenth of all, chosen by hash."""

PROMPTS = (
    "red star moving left on black",
    "yellow moon moving right on navy",
    "cyan heart moving up on brown",
    "pink ring moving down on black",
    "blue cross growing on grey",
    "orange triangle shrinking on black",
    "green circle bouncing on grey",
    "white bar still on navy",
)
"""What the sampling commands draw by default: every object and every motion once, all of them seen in training."""

VOCABULARY = tuple(
    dict.fromkeys([*OBJECTS, *COLOURS, *(word for motion in MOTIONS for word in motion.split()), "on", *BACKGROUNDS])
)
MAX_WORDS = 8

_WORD_INDEX = {word: index for index, word in enumerate(VOCABULARY)}


def is_held_out(caption: str) -> bool:
    """Whether the caption, of the grammar and in its order of words, is left out of training."""
    return caption in HELD_OUT


def word_indices(caption: str) -> list[int]:
    """A caption as indices of VOCABULARY; UserError for a word outside it, or more than MAX_WORDS words."""
    words = [_word_index(word, caption) for word in caption.lower().split()]
    if len(words) > MAX_WORDS:
        raise UserError(f"{caption!r} has {len(words)} words; at most {MAX_WORDS} are read: {grammar()}")
    return words


def _word_index(word: str, caption: str) -> int:
    if word not in _WORD_INDEX:
        raise UserError(f"{word!r} in {caption!r} is not a known word; {grammar()}")
    return _WORD_INDEX[word]


def grammar() -> str:
    """What can be said, for messages."""
    parts = {"colour": COLOURS, "object": OBJECTS, "motion": MOTIONS, "background": BACKGROUNDS}
    words = "; ".join(f"{part}: {', '.join(values)}" for part, values in parts.items())
    return f'write "{{colour}} {{object}} {{motion}} on {{background}}" with {words}'
