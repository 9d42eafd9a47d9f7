"""When a measure is shown: rules that were written before any figure was looked at, and the verdicts of the records.

Needs no torch, so that tables and pages can ask.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.forms import VALIDATION
from evaluation.validation.candidates import CANDIDATES
from seerkit.io.records import read_record

RESULTS = Path(__file__).resolve().parents[3] / "results" / "metrics"
FLOOR_SHARE = 0.5
"""Of the smallest mildest step of a ladder, that half of the floor's interval may be: then real samples and the mildest
degradation of as many, each with its own interval, do not overlap."""
AGREEMENT = 0.8
"""Rank correlation that a measure must reach, over all rows, with one that looks with other eyes: usually called strong, and
what EfficientNet-Lite0 and SqueezeNet reach on these domains; two that agree are not both ruled by quirks of their own."""
RULES = (
    f"floor: half of the interval of real samples is at most {FLOOR_SHARE:g} of the smallest mildest step of a ladder",
    "ladders: no rung is better than the one before it beyond noise, and the last is worse than real samples beyond noise",
    f"agreement: rank correlation of at least {AGREEMENT:g} over all rows with a measure that looks with other eyes",
    "order: 50, 20, 10 and 5 steps come out in this order, each difference beyond noise",
)
"""Noise: Student's 95 % interval, of differences sample by sample (of distances, block by block of the jackknife)."""


KEYS = {"score": "emoji-score", "class_accuracy": "class-accuracy"}
"""Keys of the rows of comparisons that are not the names of their measures."""


@dataclass(frozen=True)
class Verdict:
    """Whether a table shows a measure, and why not; or, of one that is shown, that nothing has validated it."""

    shown: bool
    why: str | None = None


def verdict(model: str, measure: str, num_samples: int, results: Path = RESULTS) -> Verdict:
    """Of a measure, by its name or by its key in rows, in a table of so many samples of a model.

    Only embedded models are judged: on any other a measure is what its publication made of it, and is shown.
    """
    if model not in CANDIDATES:
        return Verdict(True)
    row = _rows(model, results).get(KEYS.get(measure, measure))
    if row is None:
        return Verdict(True, f"not validated on {model}")
    if failed := failures(row):
        return Verdict(False, f"failed on {model}: {', '.join(failed)}")
    if row["least_samples"] > num_samples:
        return Verdict(False, f"takes {row['least_samples']:,} samples on {model}, here are {num_samples:,}")
    return Verdict(True)


def is_shown(model: str, measure: str, num_samples: int, results: Path = RESULTS) -> bool:
    """`verdict` in a word."""
    return verdict(model, measure, num_samples, results).shown


def screened(
    model: str, headings: Mapping[str, str], num_samples: int, results: Path = RESULTS
) -> tuple[list[str], list[str]]:
    """The measures that a table shows, of those that its records have, and lines for under it on the others.

    headings: what each measure, by its name or its key in rows, is called in the table.
    """
    verdicts = {measure: verdict(model, measure, num_samples, results) for measure in headings}
    told: dict[tuple[bool, str], list[str]] = {}
    for measure, found in verdicts.items():
        if found.why:
            told.setdefault((found.shown, found.why), []).append(headings[measure])
    lines = [f"{'' if shown else 'left out, '}{', '.join(which)}: {why}" for (shown, why), which in told.items()]
    return [measure for measure, found in verdicts.items() if found.shown], lines


def failures(row: Mapping[str, Any]) -> list[str]:
    """What a measure did not pass, of a row of a record."""
    failed = [part for part in ("floor", "agreement", "order") if row[part] and not row[part]["passes"]]
    lost = [ladder["name"] for ladder in row["ladders"] if not ladder["passes"]]
    return failed + ([f"ladders ({', '.join(lost)})"] if lost else [])


@functools.cache
def _rows(model: str, results: Path) -> dict[str, dict[str, Any]]:
    """What was found of the measures of a model, by their names; empty where it has no record."""
    path = record_path(model, results)
    if not path.is_file():
        return {}
    return {row["name"]: row for row in read_record(path, VALIDATION, command(model))["rows"]}


def record_path(model: str, results: Path = RESULTS) -> Path:
    return results / f"{model}.json"


def command(model: str) -> str:
    return f"python eval/validate_measures.py --model {model}"


# --------------------------------------------------------------------------------------------------------------- rules
# Of figures {"value", "half"}; differences are such of how much worse a set is than another, whatever way the measure runs.

Figure = Mapping[str, Any]


def is_worse(difference: Figure) -> bool:
    """Beyond noise."""
    return difference["value"] > difference["half"]


def climbs(steps: Sequence[Figure], whole: Figure) -> bool:
    """Whether a ladder is followed. steps: of each rung from the one before it; whole: of the last from real samples."""
    return all(step["value"] > -step["half"] for step in steps) and is_worse(whole)


def floor_is_low(half: float, mildest: Sequence[float]) -> bool:
    """mildest: how much worse the first rung of each ladder is than real samples."""
    return bool(mildest) and half <= FLOOR_SHARE * min(mildest)


def least_samples(num: int, floor: tuple[float, float] | None, needed: Sequence[int | None]) -> int | None:
    """How many samples the floor and the order take, with noise that falls as one over their root.

    floor: half of its interval with `num` samples, and the smallest mildest step; None of a measure that has no floor. needed:
    samples that each difference of the order takes. None where no number would do.
    """
    counts = [*needed]
    if floor is not None:
        half, mildest = floor
        counts.append(math.ceil(num * (half / (FLOOR_SHARE * mildest)) ** 2) if mildest > 0 else None)
    known = [count for count in counts if count is not None]
    return max(known) if len(known) == len(counts) else None


def agrees(correlations: Mapping[str, float | None]) -> bool:
    """With any of the measures of other eyes."""
    known = [value for value in correlations.values() if value is not None and math.isfinite(value)]
    return max(known, default=0.0) >= AGREEMENT
