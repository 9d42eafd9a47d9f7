"""The page of a run: what it left, to be looked at from disk, without a server or a network.

OUT/index.html         text, style and script; images and videos are the run's own files beside it
OUT/page/LABEL/*.jpg   smaller copies of images above `LARGE` pixels a side, for the lists; comparisons show the images
OUT/tokens/LABEL.png   how often each token was computed, of methods that select some
"""

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from evaluation.forms import CONDITIONS, INTERVAL, SCORES
from seerkit.io.computed import draw_token_map, partly_computed, percent, shares_of, step_in_words
from seerkit.io.files import write_text, written_whole
from seerkit.io.images import read_image
from seerkit.io.media import save_png, to_pil
from seerkit.io.records import Form, misfit
from seerkit.io.report import MEANINGS, Comparison, Row
from seerkit.io.tables import counted

MOST_SHOWN = 1000  # samples of a page
LARGE, SMALL = 512, 384  # pixels a side: above which an image gets a smaller copy, and of that copy
BLOCKY = 256  # pixels a side up to which samples are enlarged by whole pixels rather than blurred
LONG_LINE = 72  # characters of a command that stays on one line


def on_a_grid(value: Any) -> bool:
    """shares of tokens on their grid"""
    if misfit(value, {"grid": [int], "share": [[float]]}) is not None or min(value["grid"]) < 1:
        return False
    *_, columns = value["grid"]
    return (
        len(value["grid"]) > 1
        and len(value["share"]) * columns == math.prod(value["grid"])
        and all(len(line) == columns for line in value["share"])
    )


READ: Form = {
    "label": str, "full_steps": [int], "num_steps": int, "kept_bytes": float,
    "flops_T": (None, float), "flops_ratio": (None, float),
    "latency": (None, {"median_s": float, "min_s": float, "max_s": float}), "psnr": (None, dict),
    "num_samples": (None, int), "command_line": (None, str), "partial_steps": (None, list), "left_out_of": (None, list),
    "computed_in_part": (None, [[str]]),
    "steps": (None, [{"step": int}]), "tokens_computed": (None, on_a_grid),
    **dict.fromkeys(SCORES, (None, INTERVAL)),
    "conditions": (None, {**CONDITIONS, "python": str, "commit": (None, str)}),
}  # fmt: skip
"""Of a row."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A sample of one cache. width, height: in pixels. frames: of a video, None of an image.

    gif, strip: shown where a browser cannot play the video, the first that is there.
    """

    label: str
    file: Path
    width: int
    height: int
    frames: int | None = None
    gif: Path | None = None
    strip: Path | None = None


def readable(rows: Sequence[Row]) -> list[Row]:
    """The rows that a table can be made of; a folder may hold some of a version that wrote others."""
    return [row for row in rows if misfit(row, READ) is None]


def write_page(
    path: Path,
    record: Mapping[str, Any],
    comparison: Comparison,
    samples: Sequence[tuple[str, Sequence[Shown]]],
    *,
    notes: Sequence[str] = (),
) -> None:
    """Write the page, whole, into the folder of the run.

    comparison: of all rows to show. samples: prompt and what the caches made of it, by number. notes: on what the page shows.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["broken"] = broken
    folder = path.parent
    shown = [_sample(folder, prompt, made) for prompt, made in samples[:MOST_SHOWN]]
    text = environment.get_template("index.html.j2").render(
        command=record["command"],
        command_line=record["command_line"],
        comparison=comparison,
        meanings={heading: MEANINGS[heading] for heading in comparison.header if heading in MEANINGS},
        strips=[_strip(row) for row in comparison.rows],
        kinds=KINDS,
        maps=[_map(folder, row) for row in comparison.rows if "tokens_computed" in row],
        samples=shown,
        num_samples=len(samples),
        is_video=any(figure["frames"] for sample in shown for figure in sample["figures"]),
        has_copies=any(figure["small"] != figure["url"] for sample in shown for figure in sample["figures"]),
        notes=notes,
        runs=_runs(record, comparison.rows),
        settings=flat(record["settings"]),
    )
    write_text(path, text)


# ------------------------------------------------------------------------------------------------------------- samples


def _sample(folder: Path, prompt: str, made: Sequence[Shown]) -> dict[str, Any]:
    figures = []
    for one in made:
        smaller = _copy(folder, one) if one.frames is None and max(one.width, one.height) > LARGE else one.file
        if smaller is not None:
            extra = next((path for path in (one.gif, one.strip) if path is not None and path.is_file()), None)
            figures.append(
                {
                    "label": one.label,
                    "url": _url(folder, one.file),
                    "small": _url(folder, smaller),
                    "width": one.width,
                    "height": one.height,
                    "frames": one.frames,
                    "still": extra and _url(folder, extra),
                    "still_is": "GIF" if extra is not None and extra == one.gif else "frames",
                    "blocky": max(one.width, one.height) <= BLOCKY,
                }
            )
    return {"prompt": prompt, "figures": figures}


def _copy(folder: Path, shown: Shown) -> Path | None:
    """A smaller copy of an image that is not older than it; None for an image that is damaged."""
    copy = folder / "page" / shown.label / f"{shown.file.stem}.jpg"
    if not copy.is_file() or copy.stat().st_mtime_ns < shown.file.stat().st_mtime_ns:
        pixels = read_image(shown.file)
        if pixels is None:
            return None
        image = to_pil(pixels)
        image.thumbnail((SMALL, SMALL), Image.Resampling.LANCZOS)
        with written_whole(copy) as temporary:
            image.save(temporary, format="JPEG", quality=85)
    return copy


def _url(folder: Path, file: Path) -> str:
    """Relative, percent-encoded whatever the name holds."""
    return quote(os.fsencode(file.relative_to(folder).as_posix()))


# --------------------------------------------------------------------------------------------------------------- words


KINDS = {
    "full": "the whole model is computed",
    "partial": "some of its sites or tokens are, what earlier steps left stands in for the rest",
    "forecast": "no block is entered, or only what decides the step is computed: what earlier steps left stands in",
}
"""Of steps."""


def _strip(row: Row) -> dict[str, Any]:
    """The kind of every step and what it computed, in words."""
    kinds = dict.fromkeys(range(row["num_steps"]), "forecast")
    kinds |= dict.fromkeys(row.get("partial_steps", ()), "partial") | dict.fromkeys(row["full_steps"], "full")
    by_step = {entry["step"]: text for entry in row.get("steps", ()) if (text := step_in_words(entry))}
    told = [f"full are {', '.join(map(str, row['full_steps']))}"]
    if row.get("partial_steps"):
        told.append(f"partial are {', '.join(map(str, row['partial_steps']))}")
    return {
        "label": row["label"],
        "cells": [(kind, f"step {step}: {by_step.get(step, kind)}") for step, kind in kinds.items()],
        "told": "; ".join(told),
        "computed": row.get("computed_in_part") or list(partly_computed(row)),
    }


def _map(folder: Path, row: Row) -> dict[str, Any]:
    """The picture of how often tokens were computed, written beside the samples."""
    path, tokens = folder / "tokens" / f"{row['label']}.png", row["tokens_computed"]
    sheet, shares = draw_token_map(tokens, row["label"]), shares_of(tokens)
    save_png(path, sheet)
    frames, rows, columns = shares.shape
    many = f"{counted(frames, 'frame')} of " if frames > 1 else ""
    return {
        "label": row["label"],
        "url": _url(folder, path),
        "width": sheet.width,
        "height": sheet.height,
        "told": f"{many}{rows} × {columns} tokens, computed {percent(shares.min())} to {percent(shares.max())} of the times",
    }


def in_words(conditions: Mapping[str, Any]) -> str:
    """Conditions of a record (`seerkit.io.records.conditions`) as a sentence."""
    threads, commit = conditions["threads"], conditions["commit"]
    on = conditions["device"] + (f", {threads} thread{'s' if threads > 1 else ''}" if threads else "")
    date = conditions["date"][:16].replace("T", " ")  # to the minute
    code = (
        f"at commit {commit}".replace("+changes", " with uncommitted changes") if commit else "outside a git checkout"
    )
    return (
        f"Measured on {on}, in {conditions['dtype']}, with torch {conditions['versions']['torch']} and Python "
        f"{conditions['python']}, on {date} UTC, {code}."
    )


def _runs(record: Mapping[str, Any], rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The runs that rows are of, this one and earlier ones into its folder: which rows, how many samples, where and how."""
    runs: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        own = {**record, **row}  # rows of earlier runs carry what differs
        run = own["num_samples"], in_words(own["conditions"]), own.get("command_line")
        runs.setdefault(run, []).append(row["label"])
    return [
        {"labels": labels, "num_samples": number, "measured": measured, "command_line": command}
        for (number, measured, command), labels in runs.items()
    ]


def broken(command_line: str) -> str:
    """A long command with its options on lines of their own, as a shell takes it; as it is where none would."""
    if len(command_line) <= LONG_LINE:
        return command_line
    try:
        words = shlex.split(command_line)
    except ValueError:
        return command_line
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return " \\\n  ".join(map(shlex.join, lines))


def flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as pairs of texts, those of nested objects as `outer.inner`; without prompts, which stand with their samples."""
    pairs: list[tuple[str, str]] = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            pairs += flat(value, f"{prefix}{name}.")
        elif name != "prompts":
            pairs.append((f"{prefix}{name}", _text(value)))
    return pairs


def _text(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
