"""When a measure is shown: rules that were written before any figure was looked at, and the verdicts of the records.

Needs no torch, so that tables and pages can ask.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.forms import VALIDATION
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


@functools.cache
def shown_measures(model: str, num_samples: int | None = None, results: Path = RESULTS) -> frozenset[str] | None:
    """Names of the measures that passed on an embedded model, None for a model that has no record of a validation.

    num_samples: of a table; of fewer than a measure needs it is not shown. None asks for those that any number would show.
    """
    path = record_path(model, results)
    if not path.is_file():
        return None
    rows = read_record(path, VALIDATION, command(model))["rows"]
    return frozenset(
        row["name"] for row in rows if row["shown"] and (num_samples is None or row["least_samples"] <= num_samples)
    )


def is_shown(model: str, measure: str, num_samples: int) -> bool:
    """Whether a table of so many samples shows a measure, by its name or by its key in rows; of a model without record, any."""
    shown = shown_measures(model, num_samples)
    return shown is None or KEYS.get(measure, measure) in shown


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
