"""Which prompt each sample of a set was made from: by a list, by the record of the run, or by the names of the files."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_dic import UserError
from evaluation.scoring.samples import NpzBatch, Samples, in_words
from seerkit.io.claims import PROMPTS, state_folder
from seerkit.io.files import read_json
from seerkit.text.prompts import read_list

NUMBERED = re.compile("(.+)-[0-9]+", re.DOTALL)  # as VBench has its videos, PROMPT-0 and on


def prompts_in_names(samples: Samples) -> list[str]:
    """PROMPT of the files PROMPT-0.mp4 and on; UserError for a name that is none such."""
    names = [_named(stem) for stem in _stems(samples)]
    others = [name for name, prompt in zip(samples.names, names, strict=True) if prompt is None]
    if others:
        raise UserError(f"{samples.path} has files that are not called PROMPT-NUMBER: {in_words(others)}")
    return [name for name in names if name is not None]


def listed_prompts(samples: Samples, path: Path) -> list[str]:
    """The prompts of a file of `read_list`, by name where the files are called NAME-NUMBER after its entries, else in order."""
    listed = read_list(path)
    by_name = {one.name or one.prompt: one.prompt for one in reversed(listed)}  # the first of a name is sampled
    names = [_named(stem) for stem in _stems(samples)]
    if all(name in by_name for name in names):
        return [by_name[name] for name in names if name is not None]
    if len(listed) != len(samples.names):
        raise UserError(
            f"{path} has {len(listed)} prompts and {samples.path} {len(samples.names)} samples, which are not called "
            "PROMPT-NUMBER after them; give one prompt a line for each sample, in order of names"
        )
    return [one.prompt for one in listed]


def recorded_prompts(samples: Samples, path: Path) -> list[str]:
    """The prompts that a run has recorded, in record.json or in state/LABEL/claim.json, by the numbers of the files.

    Classes are the prompts of a class-conditional model, whose record does not list them: they are taken from the claim that
    lies beside it. UserError for samples that the run does not have.
    """
    recorded = _recorded(read_json(path, "record"))
    if recorded is None:
        claim = state_folder(path.parent, samples.path.name) / "claim.json"
        recorded = _recorded(read_json(claim, "claim")) if claim.is_file() else None
        if recorded is None:
            raise UserError(
                f"record {path} lists no prompts, nor does {claim}; give the claim.json of the run, or --prompt-file"
            )
    stems = _stems(samples)
    if all(re.fullmatch("[0-9]+", stem) for stem in stems):
        beyond = [stem for stem in stems if int(stem) >= len(recorded)]
        if beyond:
            raise UserError(f"record {path} has {len(recorded)} prompts, and {samples.path} samples {in_words(beyond)}")
        return [recorded[int(stem)] for stem in stems]
    known = set(recorded)
    names = [_named(stem) for stem in stems]
    others = [file for file, name in zip(samples.names, names, strict=True) if name not in known]
    if others:
        raise UserError(
            f"record {path} has no prompt for {in_words(others)} of {samples.path}: files are called by number, or "
            "PROMPT-NUMBER; give --prompt-file"
        )
    return [name for name in names if name is not None]


def _recorded(value: Any) -> Sequence[str] | None:
    """The prompts in a record or a claim, None where there is no list of texts."""
    if not isinstance(value, Mapping):
        return None
    settings = value.get("settings")
    found = value.get(PROMPTS) or (settings.get(PROMPTS) if isinstance(settings, Mapping) else None)
    is_list = isinstance(found, list) and found and all(isinstance(prompt, str) for prompt in found)
    return found if is_list else None


def _stems(samples: Samples) -> list[str]:
    """Names without suffix, whatever dots they hold; numbers where the samples are no files."""
    if isinstance(samples, NpzBatch):
        return [f"{index:06d}" for index in range(len(samples.names))]
    return [name.rpartition(".")[0] or name for name in samples.names]


def _named(stem: str) -> str | None:
    found = NUMBERED.fullmatch(stem)
    return found[1] if found else None
