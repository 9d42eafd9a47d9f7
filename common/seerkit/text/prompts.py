"""Prompts of a sampling command: read from files, one for every sample, cut into batches."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cache_dic import UserError
from seerkit.io.files import read_json, read_text

ANY_PROMPT = "…"
"""Stands for a prompt where a run is only planned, whose counts do not depend on it."""
MAX_SAMPLES = 1_000_000  # their numbers have six digits in the names of files
FORMS = 'give a list of objects with "prompt_en", as VBench_full_info.json is, or a .txt file with one prompt per line'


@dataclass(frozen=True)
class Listed:
    """A line of a prompt file.

    name: what its files are called after in place of the prompt, None where nothing is said. dimensions: of VBench, that the
    prompt is for.
    """

    prompt: str
    name: str | None = None
    dimensions: tuple[str, ...] = ()


def require(given: object, message: str) -> None:
    """UserError with `message` if something that is needed was not given."""
    if not given:
        raise UserError(message)


def chosen_list(
    given: list[str] | None, file: Path | None, *, model: str, default: Callable[[], list[str]] | None
) -> list[Listed]:
    """The prompts of --prompt, or of --prompt-file, or those that come with a model.

    Raises UserError if there are none, or two sources of them.
    """
    if given and file:
        raise UserError("--prompt and --prompt-file exclude each other; name one source of prompts")
    if given:
        return [Listed(_typed(prompt)) for prompt in given]
    if file is not None:
        return read_list(file)
    if default is None:
        raise UserError(f'{model} needs --prompt "…" or --prompt-file FILE with one prompt per line')
    return [Listed(prompt) for prompt in default()]


def chosen_prompts(
    given: list[str] | None, file: Path | None, *, model: str, default: Callable[[], list[str]] | None
) -> list[str]:
    """The texts of `chosen_list`."""
    return [listed.prompt for listed in chosen_list(given, file, model=model, default=default)]


def read_prompts(path: Path) -> list[str]:
    """The texts of `read_list`."""
    return [listed.prompt for listed in read_list(path)]


def read_list(path: Path) -> list[Listed]:
    """What a prompt file lists: the lines of a text that are not empty, or of a .json file VBench's list of objects.

    An object has its prompt as "prompt_en" and, where it likes, "dimension", a list of names, and "name", for a prompt that
    cannot be the name of a file. A line ends where an editor ends it (LF, CRLF or CR), whatever else a prompt holds; what
    stands twice is listed twice. Raises UserError for a file that cannot be read, is no such list, or holds no prompt.
    """
    if Path(path).suffix.lower() == ".json":
        listed = [entry for entry in _read_entries(path) if entry.prompt]
    else:
        text = read_text(path, "prompt file").replace("\ufeff", "")  # marks also stand where files were put together
        lines = enumerate(map(str.strip, text.split("\n")), start=1)
        listed = [Listed(_checked(line, f"prompt file {path}", f"in line {n}")) for n, line in lines if line]
    if not listed:
        raise UserError(f"prompt file {path} holds no prompt; write one per line")
    return listed


def _read_entries(path: Path) -> list[Listed]:
    """The entries of a list such as VBench_full_info.json (Vchitect/VBench)."""
    entries = read_json(path, "prompt file")
    if not isinstance(entries, list):
        raise UserError(f"prompt file {path} holds no list; {FORMS}")
    return [_read_entry(entry, f"prompt file {path}", f"in entry {number}") for number, entry in enumerate(entries)]


def _read_entry(entry: object, file: str, where: str) -> Listed:
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt_en"), str):
        raise UserError(f'{file} has no text "prompt_en" {where}; {FORMS}')
    name, dimensions = entry.get("name"), entry.get("dimension") or []
    if not isinstance(name, str | None):
        raise UserError(f'{file} has no text as "name" {where}; write one, or leave it out')
    dimensions = [dimensions] if isinstance(dimensions, str) else dimensions
    if not isinstance(dimensions, list) or not all(isinstance(dimension, str) for dimension in dimensions):
        raise UserError(f'{file} has no list of texts as "dimension" {where}; write one, or leave it out')
    name = _checked((name or "").strip(), file, where) or None
    return Listed(_checked(entry["prompt_en"].strip(), file, where), name, tuple(dimensions))


def _checked(text: str, file: str, where: str) -> str:
    """A text that files and text encoders take; UserError otherwise."""
    if "\0" in text:
        raise UserError(
            f"{file} holds a zero byte {where}: no text, or UTF-16 without a byte order mark; save the file as UTF-8"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise UserError(f"{file} holds {half} {where}, half of a character; write the character itself") from None
    return text


def _typed(prompt: str) -> str:
    """A prompt from the command line, whose bytes are UTF-8 even where the locale is none that says so."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(prompt).decode()
        except UnicodeError:
            raise UserError(
                f"--prompt {prompt!a} is not UTF-8 text; write it into a file and save that as such"
            ) from None
    return prompt


def repeated(prompts: Sequence[str], samples_per_prompt: int) -> list[str]:
    """Each prompt as many times as it has samples, which follow each other; UserError for more than can be numbered."""
    check_number(len(prompts) * samples_per_prompt)
    return [prompt for prompt in prompts for _ in range(samples_per_prompt)]


def cycled(prompts: Sequence[str], samples_per_prompt: int) -> list[str]:
    """All prompts, again and again, each as many times as it has samples; UserError for more than can be numbered."""
    check_number(len(prompts) * samples_per_prompt)
    return list(prompts) * samples_per_prompt


def check_number(num_samples: int) -> None:
    """UserError for more samples than the names of files can number."""
    if num_samples > MAX_SAMPLES:
        raise UserError(f"{num_samples} samples are too many for one run; at most {MAX_SAMPLES} are numbered")


@dataclass(frozen=True)
class Batch:
    """Samples to make together: their numbers, which give the noise, and their prompts."""

    indices: list[int]
    prompts: list[str]


def make_batches(prompts: Sequence[str], batch_size: int) -> list[Batch]:
    """Prompts in order, sample i for prompt i; the same batches whatever the number of processes."""
    starts = range(0, len(prompts), batch_size)
    return [Batch(list(range(s, min(s + batch_size, len(prompts)))), list(prompts[s : s + batch_size])) for s in starts]
