"""What the samples of a folder were made with: compared before any is taken over, written down before any is made.

    OUT/LABEL/                   the samples of a cache and nothing else, as evaluators read them
    OUT/state/LABEL/claim.json   everything that they depend on

A claim is a JSON object: settings, contents of what was read, and the cache's own plan. Prompts are numbered, so a list that
goes on where another ends is the same claim.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cache_dic import UserError
from seerkit.io.files import clear_partial, read_json, write_json
from seerkit.io.images import digest

Claim = dict[str, Any]

CACHE = "cache"  # the part of a claim that the caches of one folder do not share
PROMPTS = "prompts"
LONGEST_VALUE, MOST_SHOWN = 60, 6  # of a message: characters of a value, differences


def state_folder(out: Path, label: str) -> Path:
    """Where everything about the samples of a cache lies that is no sample."""
    return out / "state" / label


def claimed_folder(parent: Path, name: str, claim: Mapping[str, Any]) -> Path:
    """PARENT/NAME-DIGEST, of what depends on a claim and on nothing else: another claim has another folder."""
    return parent / f"{name}-{digest(claim, 12)}"


def open_claimed(folder: Path, claim: Mapping[str, Any]) -> None:
    """Make such a folder, or clear one of what a killed process has left half written; claim.json says what it is of."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_partial(folder)
    write_json(folder / "claim.json", claim)


def claim_samples(
    out: Path, claims: Mapping[str, Claim], *, has_samples: Callable[[str], bool], alone: bool = False
) -> dict[str, Claim]:
    """Claim the folders of some caches in `out`, by label, and return what was written.

    UserError, with nothing changed, where samples are of other claims. All samples in `out` share everything but their caches,
    unless each folder stands `alone`. has_samples(label): whether a folder holds any; a claim without samples, as a failed run
    leaves it, binds nobody.
    """
    ours = {label: json.loads(json.dumps(claim)) for label, claim in claims.items()}
    shared = {} if alone else {key: value for key, value in next(iter(ours.values())).items() if key != CACHE}
    known = {label: _claim_path(out, label) for label in claimed_labels(out)}
    longest = {}
    for label in (*ours, *(label for label in known if label not in ours)):
        if not has_samples(label):
            continue
        if label not in known:
            raise UserError(
                f"{out / label} holds samples, and nothing says how they were made; choose another --output-dir"
            )
        theirs, wanted = read_json(known[label], "claim"), ours.get(label, shared)
        if not isinstance(theirs, dict):
            raise UserError(f"{known[label]} is no claim; choose another --output-dir")
        told = {key: value for key, value in theirs.items() if key in wanted or (wanted and key != CACHE)}
        if differ := differences(told, wanted):
            more = f" and {len(differ) - MOST_SHOWN} more" if len(differ) > MOST_SHOWN else ""
            raise UserError(
                f"{out / label} holds samples of other settings: {', '.join(differ[:MOST_SHOWN])}{more}; choose another "
                "--output-dir"
            )
        longest[label] = max(theirs.get(PROMPTS, []), wanted.get(PROMPTS, []), key=len)
    for label, claim in ours.items():
        if PROMPTS in claim:
            claim[PROMPTS] = longest.get(label, claim[PROMPTS])
        write_json(_claim_path(out, label), claim)
    return ours


def renew_claim(out: Path, label: str, claim: Claim) -> None:
    """Write the claim of samples that were just made, if it was removed during the run: --resume then knows of them."""
    path = _claim_path(out, label)
    if not path.exists():
        write_json(path, claim)


def claimed_labels(out: Path) -> list[str]:
    """The caches that have a claim in `out`."""
    return [path.parent.name for path in sorted(state_folder(out, "").glob("*/claim.json"))]


def _claim_path(out: Path, label: str) -> Path:
    return state_folder(out, label) / "claim.json"


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two claims differ in, each as `NAME is THIS there and THAT here`."""
    found = []
    for key in dict.fromkeys((*ours, *theirs)):
        name, there, here = f"{prefix}{key}", theirs.get(key), ours.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            found += differences(there, here, f"{name}.")
        elif key == PROMPTS and isinstance(there, list) and isinstance(here, list):
            pairs = zip(there, here, strict=False)
            other = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
            if other is not None:
                found.append(f"prompt {other} is {_short(there[other])} there and {_short(here[other])} here")
        elif there != here:
            found.append(f"{name} is {_short(there)} there and {_short(here)} here")
    return found


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if value is None:
        return "not set"
    shown = "".join(itertools.islice(text, LONGEST_VALUE))
    return repr(shown + "…") if len(text) > LONGEST_VALUE else (repr(text) if isinstance(value, str) else text)
