"""Cells and words of the tables of a comparison, in the terminal, on the page and in documents; needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.metrics import wilson_interval
from seerkit.io.tables import full_steps_cell, number

LITE0 = "Lite0 distance"
LITE0_MEANING = (
    "Lite0 distance: squared distance of the unit features of EfficientNet-Lite0 (ImageNet) to those of the uncached sample, "
    "mean over places and seven stages, x 1000; LPIPS's formula on another network, with equal weights: not LPIPS"
)
FLICKER_MEANING = "flicker: mean second difference in time, of 255 grey levels"
INTERVALS = "±: half of Student's 95 % interval over samples"
CHANGES = "change: from the uncached sample of the same noise"

Interval = Mapping[str, Any]
"""Of `evaluation.metrics.mean_interval`."""


def half_width(interval: Interval | None) -> float | None:
    """Half the width of an interval, None where there is none."""
    return None if interval is None or interval.get("low") is None else (interval["high"] - interval["low"]) / 2


def plus_minus(interval: Interval | None, digits: int, *, scale: float = 1.0, signed: bool = False) -> str:
    """A mean with half the width of its interval."""
    if interval is None or interval.get("mean") is None:
        return number(None)
    mean = number(scale * interval["mean"], digits)
    mean = f"+{mean}" if signed and not mean.startswith("-") else mean
    half = half_width(interval)
    return mean if half is None else f"{mean} ± {number(scale * half, digits)}"


def change_cell(row: Mapping[str, Any], key: str) -> str:
    """The change of a score from the uncached samples; of shares such as an accuracy in points of a hundred."""
    share = key.endswith("accuracy")
    return plus_minus(row.get(f"{key}_change"), 1 if share else 2, scale=100 if share else 1, signed=True)


def flicker_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Columns of a table of videos, by heading."""
    return {
        "flicker": [plus_minus(row.get("flicker"), 2) for row in rows],
        "change": [change_cell(row, "flicker") for row in rows],
    }


def computed_cell(row: Mapping[str, Any]) -> str:
    """Full steps of a row, mean and range where they differ from sample to sample, and partial ones."""
    done, partial = row["computed"], len(row.get("partial_steps", ()))
    return full_steps_cell(done["mean"], done["min"], done["max"], row["num_steps"], partial)


TRACKING_HEADER = [
    "motion", "clips", "moves as asked %", "object %", "colour %", "background %", "all four %", "real clips move %",
    "by chance %",
]  # fmt: skip
TRACKING_MEANING = (
    "moves as asked: by the path and extent of the object, which is followed in the clip; real clips: drawn ones of "
    "the same captions; by chance: clips under other captions than their own; in brackets: 95 % interval of the share (Wilson)"
)


def tracking_cells(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a record of eval/track.py, motion after motion, then all."""
    generated, real = record["rows"]["generated"], record["rows"]["real"]

    def share(row: Mapping[str, Any], fact: str) -> str:
        found = row[fact] / row["num"]
        if row["motion"] is not None:
            return number(100 * found, 0)
        return f"{100 * found:.0f} ({' – '.join(f'{100 * end:.0f}' for end in wilson_interval(found, row['num']))})"

    facts = ("motion", "object", "colour", "background", "everything")
    return [
        [
            row["motion"] or "all",
            str(row["num"]),
            *(share(row, f"right_{fact}") for fact in facts),
            share(drawn, "right_motion"),
            number(100 * row["chance"], 0),
        ]
        for row, drawn in zip(generated, real, strict=True)
    ]


COSTS_HEADER = ["method", "decided", "form", "kept MiB", "decision %", "forecast %", "forecast step %"]
MIB = 2**20


def cost_cells(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of a record of eval/method_costs.py that have no error; shares are of an uncached step."""

    def share(seconds: float | None) -> str:
        return number(None if seconds is None else 100 * seconds / record["full_step_s"], 2)

    return [
        [
            row["label"],
            row["decided"],
            row["engine"],
            number(row["kept_bytes"] / MIB, 1),
            *(share(row[key]) for key in ("decide_s", "forecast_s", "forecast_step_s")),
        ]
        for row in record["rows"]
        if "error" not in row
    ]


PARTIAL_HEADER = [
    "method", "step", "steps of this kind", "FLOPs % of all of them", "FLOPs % of the timed ones", "time %", "range %",
    "processor time %", "processor time / FLOPs", "looking at attention, % of an uncached step",
]  # fmt: skip
PARTIAL_MEANING = (
    "timed are the first steps of a kind, and all times are theirs; where their share of the FLOPs is not that of all steps of "
    "the kind, they are no typical ones: what a method computes changes over a run; processor time / FLOPs is that of these, "
    "'–' where their share is below 1 %"
)
LEAST_SHARE = 0.01
"""Of the FLOPs of an uncached step, below which a step is overhead and its time over its FLOPs says nothing."""


def partial_cells(record: Mapping[str, Any]) -> list[list[str]]:
    """A line for every kind of step of the rows of a record of eval/partial_steps.py that have no error; medians."""

    def percent(value: float) -> str:
        return number(100 * value, 1)

    def of_run(row: Mapping[str, Any], kind: str) -> tuple[str, str]:
        run = row["kinds"].get(kind)
        return (f"{run['steps']}/{row['num_steps']}", percent(run["flops"]["median"])) if run else (number(None),) * 2

    def over_flops(time: float, share: float) -> str:
        return number(time / share if share >= LEAST_SHARE else None, 2)

    return [
        [
            row["label"],
            kind,
            *of_run(row, kind),
            percent(of["flops"]["median"]),
            percent(of["time"]["median"]),
            f"{percent(of['time']['min'])} – {percent(of['time']['max'])}",
            percent(of["processor_time"]["median"]),
            over_flops(of["processor_time"]["median"], of["flops"]["median"]),
            percent(of["observing"]["median"]) if of["observing"]["max"] else number(None),
        ]
        for row in record["rows"]
        if "error" not in row
        for kind, of in row["steps"].items()
    ]


def cost_errors(record: Mapping[str, Any]) -> list[str]:
    """Methods of a record of times that could not be timed, and why."""
    return [f"{row['label']}: {row['error']}" for row in record["rows"] if "error" in row]


FRONTS_HEADER = [
    "",
    "operations",
    "full step ms",
    "forecast step ms",
    "forecast / full",
    "kept MiB",
    "graphs",
    "breaks",
]


def front_cells(row: Mapping[str, Any]) -> list[str]:
    """A row of `FRONTS_HEADER`."""
    label = row["label"] + (f", {row['package']}" if row.get("package") else "")
    if "skipped" in row:
        return [f"{label}: {row['skipped']}", *["–"] * (len(FRONTS_HEADER) - 1)]
    ratio, kept = row.get("forecast_over_full"), row.get("kept_bytes")
    return [
        label,
        number(row["operations"] if row.get("operations") else row["full_operations"], 0),
        _milliseconds(row.get("full_step")),
        _milliseconds(row.get("forecast_step")),
        f"{ratio['median']:.3f} ({ratio['min']:.3f}-{ratio['max']:.3f})" if ratio else "–",
        number(None if kept is None else kept / 2**20, 2),
        "fails" if row.get("compiling") else number(row.get("graphs"), 0),
        number(row.get("graph_breaks"), 0),
    ]


def _milliseconds(timing: Mapping[str, float] | None) -> str:
    return number(timing["median_s"] * 1e3 if timing else None, 1)
