"""What steps that are not full computed, in words, and how often each token was, as a picture; of records, without torch."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from seerkit.io.labels import draw_text, drawable

COLOURS = ((33, 27, 82), (31, 109, 140), (86, 178, 115), (246, 224, 94))
"""Of a map, from its least share to its greatest, evenly spaced; they brighten evenly, so that grey prints tell as much."""
CELL, MAP_SIDE, MOST_WIDE, TEXT = 2, 320, 960, 13  # pixels: of a token at least, of a frame, of a sheet, of its text


# --------------------------------------------------------------------------------------------------------------- words


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers with those that follow each other together: `3–5, 7`."""
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def step_in_words(entry: Mapping[str, Any]) -> str:
    """What a step computed, of its entry in a record; nothing of one that computed all or was forecast as a whole."""
    if "made_of" in entry:
        return f"made of {entry['made_of']}"
    parts, reused = [], []
    for site, work in entry.get("computed", {}).items():
        if set(work if isinstance(work, list) else [work]) == {"nothing"}:
            reused.append(site)
        else:
            parts.append(f"{site}: {_work(work)}")
    parts += [f"reused: {', '.join(reused)}"] if reused else []
    parts += [_range(*part) for part in entry.get("blocks", ()) if part[2] != "walk"]
    return "; ".join(parts)


def _work(work: Any) -> str:
    """Of a site in all its blocks, neighbours of a kind together."""
    if not isinstance(work, list):
        return _amount([work])
    kinds = [list(same) for _, same in groupby(work, lambda done: done if isinstance(done, str) else "tokens")]
    if len(kinds) == 1:
        return _amount(work)
    return ", then ".join(f"{_amount(same)} in {len(same)} block{'' if len(same) == 1 else 's'}" for same in kinds)


def _amount(same: Sequence[Any]) -> str:
    if isinstance(same[0], str):
        return {"rest": "all but its attention"}.get(same[0], same[0])
    low, high = min(same), max(same)
    return f"{low} token{'' if low == 1 else 's'}" if low == high else f"{low} to {high} tokens"


def _range(start: int, stop: int, how: str) -> str:
    blocks = f"block {start}" if stop == start + 1 else f"blocks {start}–{stop - 1}"
    instead = {
        "residual": "what they last added is added",
        "hidden": "the tokens after them are those of the step before",
    }
    return f"{blocks} left out: {instead[how]}"


def partly_computed(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Steps of a row that are not full, and what they computed; those that did the same together. And of several branches of
    guidance those that one was left out of."""
    same: dict[str, list[int]] = {}
    for entry in row.get("steps", ()):
        if text := step_in_words(entry):
            same.setdefault(text, []).append(entry["step"])
    if left_out := sorted(set(row.get("left_out_of", ()))):
        same["the other guidance branch is left out and made of this one"] = left_out
    yield from ((f"step{'s' * (len(steps) > 1)} {spans(steps)}", text) for text, steps in same.items())


# ----------------------------------------------------------------------------------------------------------------- map


def shares_of(tokens: Mapping[str, Any]) -> np.ndarray:
    """`tokens_computed` of a record as (frames, rows, columns); one frame of an image."""
    return np.asarray(tokens["share"], dtype=float).reshape(-1, *tokens["grid"][-2:])


def coloured(shares: np.ndarray, low: float, high: float) -> np.ndarray:
    """Shares (…) as colours (…, 3) uint8, from low to high."""
    place = (shares - low) / (high - low) if high > low else np.zeros_like(shares)
    stops = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(place, stops, channel) for channel in zip(*COLOURS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def draw_token_map(tokens: Mapping[str, Any], label: str) -> Image.Image:
    """`tokens_computed` of a record as a white sheet: label, the frames with their numbers, scale.

    Each token is a square of whole pixels; frames stand side by side and go on below.
    """
    shares = shares_of(tokens)
    frames, rows, columns = shares.shape
    low, high = float(shares.min()), float(shares.max())
    beside = min(frames, max(1, MOST_WIDE // (columns * CELL + TEXT)))
    cell = max(CELL, min(MAP_SIDE // max(rows, columns), (MOST_WIDE // beside - TEXT) // columns))
    height, width, line = rows * cell, columns * cell, 2 * TEXT
    numbered = line if frames > 1 else 0
    lines = -(-frames // beside)
    sheet_width = max(beside * (width + TEXT) + TEXT, 24 * TEXT)
    sheet = Image.new("RGB", (sheet_width, line + lines * (numbered + height + TEXT) + 2 * line), "white")
    draw = ImageDraw.Draw(sheet)
    draw_text(draw, TEXT, line // 2, *drawable(label, TEXT))
    for number, image in enumerate(coloured(shares, low, high)):
        x, y = TEXT + number % beside * (width + TEXT), line + number // beside * (numbered + height + TEXT)
        if numbered:
            draw_text(draw, x, y + numbered // 2, *drawable(f"frame {number}", TEXT))
        sheet.paste(Image.fromarray(image).resize((width, height), Image.Resampling.NEAREST), (x, y + numbered))
    scale = coloured(np.linspace(low, high, 10 * TEXT)[None].repeat(TEXT, axis=0), low, high)
    y = sheet.height - 2 * line
    sheet.paste(Image.fromarray(scale), (TEXT, y))
    draw_text(draw, TEXT, y + line, *drawable(f"{percent(low)} to {percent(high)} of the times", TEXT))
    return sheet
