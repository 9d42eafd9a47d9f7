"""Prompts of a list as VBench (Vchitect/VBench) wants their videos: how many of each, and called what.

VBench finds the videos of a prompt by their names, PROMPT-0.mp4, PROMPT-1.mp4 and on, PROMPT being "prompt_en" in its
VBench_full_info.json. That list has 946 entries of 944 prompts, two of which differ in case alone, and each prompt is sampled
once for all its dimensions. Its lists of lengthened prompts (prompts/augmented_prompts there) have one per line in the same
order; their videos are called after the short ones.
"""

import logging
import tempfile
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cache_dic import UserError
from seerkit.text.prompts import Listed

FLICKERING = "temporal_flickering"
FLICKERING_SAMPLES = 25
"""Videos of a prompt of that dimension in VBench's own protocol (its prompts/README.md); of others 5.

It then scores the first 5 that its static filter keeps. Published figures of caching methods are of 5 without the filter,
which is why more are made only where they are asked for.
"""
LONGEST_STEM = 239  # bytes; of the 255 that a file's name may have, 16 are left for a suffix
GIVE_A_NAME = 'give its name apart, as "name" in a .json list or in a file of names'

logger = logging.getLogger("cache_dic")


@dataclass(frozen=True)
class Entry:
    """A prompt and its videos: NAME-0 … NAME-(num_samples - 1)."""

    prompt: str
    name: str
    num_samples: int


def make_entries(
    listed: Sequence[Listed],
    *,
    num_samples: int,
    flickering_samples: int | None = None,
    names: Sequence[Listed] | None = None,
) -> list[Entry]:
    """What a list asks for, in its order, each name once.

    num_samples: videos of a prompt. flickering_samples: of one whose dimensions have temporal_flickering, where that shall be
    another number. names: a second list, line by line that of the names (and dimensions) of the first, as the short prompts
    are of lengthened ones. Of entries of one name the first is sampled, for the dimensions of all. Raises UserError for lists
    of different lengths and names that no file can have.
    """
    if names is not None:
        listed = _named(listed, names)
    merged: dict[str, Listed] = {}
    other_prompts = []
    for one in listed:
        name = one.name or one.prompt
        first = merged.setdefault(name, one)
        merged[name] = replace(first, dimensions=(*first.dimensions, *one.dimensions))
        if first.prompt != one.prompt:
            other_prompts.append(name)
    if other_prompts:
        logger.warning(
            "%d names stand in the list again with another prompt, and the first prompt of each is sampled: %s",
            len(other_prompts), "; ".join(map(repr, other_prompts[:5])),
        )  # fmt: skip
    flickering = [name for name, one in merged.items() if FLICKERING in one.dimensions]
    if flickering_samples is not None and not flickering:
        raise UserError(
            f"{flickering_samples} samples of prompts for {FLICKERING} are asked for, and no prompt of the list is for it: its "
            '"dimension" says so in VBench_full_info.json'
        )
    counts = dict.fromkeys(flickering, flickering_samples or num_samples)
    entries = [Entry(one.prompt, name, counts.get(name, num_samples)) for name, one in merged.items()]
    for entry in entries:
        _check_name(entry)
    return entries


def expand(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """The samples in order: each one's prompt and the name of its file without suffix."""
    return [(entry.prompt, f"{entry.name}-{index}") for entry in entries for index in range(entry.num_samples)]


def check_folder(names: Iterable[str], folder: Path) -> None:
    """UserError if files of several names would be one file in a folder, whose file system does not tell case apart."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(unicodedata.normalize("NFC", name).casefold(), []).append(name)
    twins = [" and ".join(map(repr, names)) for names in alike.values() if len(names) > 1]
    if twins and _ignores_case(folder):
        raise UserError(
            f"{folder} is on a file system that does not tell upper from lower case, where {'; '.join(twins[:5])} would be one "
            "file; choose an output folder on another one"
        )


def _named(listed: Sequence[Listed], names: Sequence[Listed]) -> list[Listed]:
    if len(listed) != len(names):
        raise UserError(
            f"{len(listed)} prompts and {len(names)} names do not belong together; give a list of names with one for each "
            "prompt, in the same order"
        )
    return [
        Listed(one.prompt, name.name or name.prompt, (*one.dimensions, *name.dimensions))
        for one, name in zip(listed, names, strict=True)
    ]


def _check_name(entry: Entry) -> None:
    """UserError for a name that no file can have, or that tools would take for an option or overlook."""
    name, stem = entry.name, f"{entry.name}-{entry.num_samples - 1}"
    shown = repr(name if len(name) <= 60 else f"{name[:60]}…")
    if reason := _refusal(name, stem):
        raise UserError(f"videos cannot be called after the prompt {shown}: {reason}; {GIVE_A_NAME}")


def _refusal(name: str, stem: str) -> str | None:
    if "/" in name:
        return "it holds a slash"
    if name.startswith((".", "-")):
        return f"it begins with {name[0]!r}"
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        return "it holds a line break or another control character"
    if len(stem.encode()) > LONGEST_STEM:
        return f"with its number it has {len(stem.encode())} bytes, and {LONGEST_STEM} are possible"
    return None


def _ignores_case(folder: Path) -> bool:
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".case") as file:
        return Path(file.name).with_name(Path(file.name).name.swapcase()).exists()
