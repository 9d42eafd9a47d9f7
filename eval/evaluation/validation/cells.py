"""Cells of the tables of a validation, in the terminal and in documents; needs no torch."""

from collections.abc import Iterator, Mapping
from typing import Any

from seerkit.io.tables import number

Row = Mapping[str, Any]
PASSES = {True: "yes", False: "no"}
HEADER = ["measure", "real", "mildest step", "floor", "ladders", "agreement", "order", "samples needed", "shown"]
MEANING = (
    "real: on real samples, with half of the 95 % interval; mildest step: how much worse the first rung is of the ladder "
    "that is seen least; ladders: followed, of those that must be; agreement: highest rank correlation with a measure that "
    "looks with other eyes; order: from 50 to 20, 20 to 10 and 10 to 5 steps, worse (+), better (-) or within noise (=); "
    "samples needed: by floor and order, with the noise that was found"
)
ORDER = {True: "+", False: "-", None: "="}
NOISE_HEADER = ["measure", "from", "to", "worse by", "samples needed", "± at 100", "± at 1000", "shown"]
NOISE_MEANING = (
    "worse by: of samples of the same prompts and noise, with half of the 95 % interval, negative where the second is better; "
    "samples needed: at which the interval ends at zero; ±: half of the interval of so many samples, noise falling as one over "
    "their root"
)


def verdict_cells(record: Mapping[str, Any]) -> list[list[str]]:
    """A line for every measure of a record."""
    return [_verdict(row) for row in record["rows"]]


def _shown(row: Row, value: float | None) -> str:
    return number(None if value is None else row["scale"] * value, row["digits"])


def plus_minus(row: Row, figure: Mapping[str, float]) -> str:
    return f"{_shown(row, figure['value'])} ± {_shown(row, figure['half'])}"


def _verdict(row: Row) -> list[str]:
    floor, ladders = row["floor"], row["ladders"]
    followed = [ladder["name"] for ladder in ladders if ladder["passes"]]
    lost = [ladder["name"] for ladder in ladders if not ladder["passes"]]
    known = {name: value for name, value in row["agreement"]["by"].items() if value is not None}
    best = max(known, key=lambda name: known[name], default=None)
    return [
        row["title"],
        plus_minus(row, floor) if floor else number(None),
        _shown(row, floor["mildest_step"]) if floor else number(None),
        PASSES[floor["passes"]] if floor else number(None),
        f"{len(followed)}/{len(ladders)}" + (f" (not {', '.join(lost)})" if lost else ""),
        number(None) if best is None else f"{number(known[best], 2)} ({best})",
        " ".join(ORDER[direction(one)] for one in row["order"]["differences"]),
        samples_cell(row["least_samples"]),
        PASSES[row["shown"]],
    ]


def samples_cell(count: int | None) -> str:
    return number(None) if count is None else f"{count:,}"


def direction(difference: Mapping[str, float]) -> bool | None:
    """True: worse beyond noise; False: better beyond noise; None: neither."""
    return difference["value"] > 0 if abs(difference["value"]) > difference["half"] else None


def noise_cells(record: Mapping[str, Any]) -> Iterator[list[str]]:
    """How far caching methods can be told apart: a line for each measure and each pair of them."""
    for row in record["rows"]:
        for one in row["methods"]["differences"]:
            at = [_shown(row, one["half_at"][count]) for count in ("100", "1000")]
            yield [
                row["title"],
                one["from"],
                one["to"],
                plus_minus(row, one),
                samples_cell(one["needed"]),
                *at,
                PASSES[row["shown"]],
            ]
