"""Prompts of a sampling command: read from files, cut into batches."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


def require(given: object, message: str) -> None:
    """ValueError with `message` if something that is needed was not given."""
    if not given:
        raise ValueError(message)


def chosen_prompts(
    given: list[str] | None, file: Path | None, *, flag: str, model: str, default: Callable[[], list[str]] | None
) -> list[str]:
    """The prompts of --prompt, or of the file that `flag` names, or those that come with a model.

    Raises ValueError if there are none, or two sources of them.
    """
    if given and file:
        raise ValueError(f"--prompt and {flag} exclude each other; name one source of prompts")
    if given:
        return given
    if file is not None:
        return read_prompts(file)
    require(default, f'{model} needs --prompt "…" or {flag} FILE with one prompt a line')
    return default()


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty; of a .json file, which is VBench's list of objects, each one's "prompt_en".

    Raises ValueError for a file that cannot be read, is no such list, or holds no prompt.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"prompt file {path} is not UTF-8 text ({error}); save it as such") from error
    except OSError as error:
        raise ValueError(f"prompt file {path} cannot be read ({error.strerror})") from error
    listed = _vbench_prompts(text, path) if path.suffix == ".json" else text.splitlines()
    prompts = [prompt.strip() for prompt in listed if prompt.strip()]
    if not prompts:
        raise ValueError(f"prompt file {path} holds no prompt; write one a line")
    return prompts


def _vbench_prompts(text: str, path: Path) -> list[str]:
    """The prompts of VBench_full_info.json (Vchitect/VBench), a list of objects with "prompt_en" and "dimension"."""
    wanted = (
        'give a list of objects with "prompt_en", as VBench_full_info.json is, or a .txt file with one prompt a line'
    )
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"prompt file {path} is not JSON ({error}); {wanted}") from error
    if not isinstance(entries, list):
        raise ValueError(f"prompt file {path} holds no list; {wanted}")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt_en"), str):
            raise ValueError(f'prompt file {path} has no text "prompt_en" in entry {number}; {wanted}')
    return [entry["prompt_en"] for entry in entries]


@dataclass(frozen=True)
class Batch:
    """Samples to make together: their numbers, which give the noise, and their prompts."""

    indices: list[int]
    prompts: list[str]


def make_batches(prompts: Sequence[str], batch_size: int) -> list[Batch]:
    """Prompts in order, sample i for prompt i; the same batches whatever the number of processes."""
    starts = range(0, len(prompts), batch_size)
    return [Batch(list(range(s, min(s + batch_size, len(prompts)))), list(prompts[s : s + batch_size])) for s in starts]
