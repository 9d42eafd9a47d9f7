"""Quality against cost from a record of eval/compare.py: two panels a figure of merit, over FLOPs ratio and latency ratio."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.cells import LITE0
from evaluation.figures import SUFFIXES, look, plotting, save, shared_legend
from evaluation.validation.rules import is_shown

Row = Mapping[str, Any]
Cost = Callable[[Row], float]
BUSY = 0.8  # of the processors that a process has threads for: below, others had work too


@dataclass(frozen=True)
class Merit:
    """A figure of merit. value(row): mean, low, high; None where a row has none. best: 1 upwards, -1 downwards, 0 neither."""

    title: str
    value: Callable[[Row], tuple[float, float | None, float | None] | None]
    best: int
    logarithmic: bool = False


def _psnr(row: Row) -> tuple[float, float | None, float | None] | None:
    psnr = row["psnr"]
    return None if psnr is None or psnr["mean_db"] is None else (psnr["mean_db"], psnr["low_db"], psnr["high_db"])


def _interval(key: str) -> Callable[[Row], tuple[float, float | None, float | None] | None]:
    def value(row: Row) -> tuple[float, float | None, float | None] | None:
        found = row.get(key)
        return None if found is None or found["mean"] is None else (found["mean"], found["low"], found["high"])

    return value


def merits(record: Mapping[str, Any], rows: Sequence[Row]) -> list[Merit]:
    """The figures of merit that rows of a comparison have, and that mean something on its model."""
    known = {
        "psnr": Merit("PSNR to uncached, dB", _psnr, 1),
        "lite0": Merit(f"{LITE0} to uncached", _interval("lite0"), -1, logarithmic=True),
        **{
            key: Merit(f"change of {key.replace('_', ' ')}", _interval(f"{key}_change"), 1)
            for key in record.get("scores", ())
        },
        "flicker": Merit("change of flicker, grey levels", _interval("flicker_change"), 0),
    }
    model, num_samples = record["settings"]["model"], record["num_samples"]
    return [
        merit
        for key, merit in known.items()
        if any(merit.value(row) is not None for row in rows) and is_shown(model, key, num_samples)
    ]


def front(points: Sequence[tuple[float, float]], best: int) -> list[tuple[float, float]]:
    """The points (ratio, merit) that no other beats in both, by rising ratio. best: 1 where more merit is better, else -1."""
    kept: list[tuple[float, float]] = []
    for ratio, merit in sorted(points, reverse=True):
        if not kept or best * merit > best * kept[-1][1]:
            kept.append((ratio, merit))
    return kept[::-1]


def costs(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Cost]:
    """What figures of merit are drawn over: operations, and time, on a machine with other work that of the processors."""
    shares = [row["latency"].get("processor_share") for row in rows]
    threads = record["conditions"].get("threads") or 1
    busy = None not in shares and bool(shares) and statistics.median(shares) < BUSY * threads
    time: dict[str, Cost] = (
        {"processor time ratio, uncached / this (busy machine)": lambda row: row["latency"]["processor_ratio"]}
        if busy
        else {"latency ratio, uncached / this": lambda row: row["latency"]["ratio"]}
    )
    return {"FLOPs ratio, uncached / this": lambda row: row["flops_ratio"], **time}


def draw_pareto(record: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """Write the plot as PNG and SVG: series by colour and marker, bars for 95 % intervals, the front in grey with names;
    the files.

    Where rows have nothing to draw, there is no plot, and one of before is removed.
    """
    rows = [row for row in record["rows"] if "error" not in row]
    shown = merits(record, rows)
    if not shown:
        for suffix in SUFFIXES:
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
        return []
    series = list(dict.fromkeys(row["series"] for row in rows if row["series"] != "uncached"))
    with plotting() as plt:
        figure, axes = plt.subplots(len(shown), 2, figsize=(12, 3.8 * len(shown)), squeeze=False, sharey="row")
        for line, merit in zip(axes, shown, strict=True):
            for axis, (title, cost) in zip(line, costs(record, rows).items(), strict=True):
                _draw_panel(axis, rows, merit, cost, series)
                axis.set(xlabel=title, ylabel=merit.title if axis is line[0] else None)
                if merit.logarithmic:
                    axis.set_yscale("log", nonpositive="clip")
                    axis.yaxis.set_major_formatter(plt.matplotlib.ticker.FormatStrFormatter("%g"))
        s = record["settings"]
        figure.suptitle(f"{s['model']} (trained weights), {s['num_steps']} steps, {record['num_samples']} samples")
        figure.tight_layout()
        shared_legend(figure, axes, loc="upper left", bbox_to_anchor=(0.99, 0.97), fontsize="small")
        return save(figure, folder, name)


def _draw_panel(
    axis: Any,
    rows: Sequence[Row],
    merit: Merit,
    cost: Cost,
    series: Sequence[str],
) -> None:
    for number, name in enumerate(series):
        own = [(cost(row), *value) for row in rows if row["series"] == name and (value := merit.value(row)) is not None]
        if not own:
            continue
        own.sort()
        x, y = [point[0] for point in own], [point[1] for point in own]
        low = [0 if point[2] is None else point[1] - point[2] for point in own]
        high = [0 if point[3] is None else point[3] - point[1] for point in own]
        axis.errorbar(x, y, yerr=(low, high), label=name, markersize=5, linewidth=1, elinewidth=0.5, **look(number))
    axis.axvline(1, color="black", linestyle="--", linewidth=0.8, label="uncached")
    if merit.best:
        names = {(cost(row), value[0]): row["series"] for row in rows if (value := merit.value(row)) is not None}
        best = front(list(names), merit.best)
        if best:
            axis.plot(
                *zip(*best, strict=True), color="grey", alpha=0.4, linewidth=5, zorder=0, label="not beaten in both"
            )
        for name, (point, *_) in itertools.groupby(best, names.__getitem__):
            axis.annotate(
                name, point, textcoords="offset points", xytext=(4, 5 * merit.best), fontsize=6.5, in_layout=False,
                va="bottom" if merit.best > 0 else "top", rotation=20 * merit.best, rotation_mode="anchor",
            )  # fmt: skip
