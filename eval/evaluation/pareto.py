"""Quality against cost from a record of eval/compare.py: two panels a figure of merit, over FLOPs ratio and latency ratio."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.cells import LITE0
from seerkit.io.files import written_whole

Row = Mapping[str, Any]
Cost = Callable[[Row], float]
BUSY = 0.8  # of the processors that a process has threads for: below, others had work too
MARKERS = "osD^vP*X<>ph8d"
SUFFIXES = (".png", ".svg")


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


def merits(rows: Sequence[Row], scores: Sequence[str]) -> list[Merit]:
    """The figures of merit that rows have. scores: keys of those without a reference, of which more is better."""
    known = [
        Merit("PSNR to uncached, dB", _psnr, 1),
        Merit(f"{LITE0} to uncached", _interval("lite0"), -1, logarithmic=True),
        *(Merit(f"change of {key.replace('_', ' ')}", _interval(f"{key}_change"), 1) for key in scores),
        Merit("change of flicker, grey levels", _interval("flicker_change"), 0),
    ]
    return [merit for merit in known if any(merit.value(row) is not None for row in rows)]


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


def draw_pareto(record: Mapping[str, Any], path: Path) -> None:
    """Write the plot, PNG or SVG by its name: series by colour and marker, bars for 95 % intervals, the front in grey.

    Where rows have nothing to draw, there is no plot.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in record["rows"] if "error" not in row]
    shown = merits(rows, list(record["scores"]))
    if not shown:
        path.unlink(missing_ok=True)
        return
    series = list(dict.fromkeys(row["series"] for row in rows if row["series"] != "uncached"))
    colours = plt.get_cmap("tab20").colors
    # SVGs of one record are the same to the byte, their words text.
    with plt.rc_context({"svg.hashsalt": "compare", "svg.fonttype": "none"}):
        figure, axes = plt.subplots(len(shown), 2, figsize=(12, 3.8 * len(shown)), squeeze=False, sharey="row")
        for line, merit in zip(axes, shown, strict=True):
            for axis, (title, cost) in zip(line, costs(record, rows).items(), strict=True):
                _draw_panel(axis, rows, merit, cost, series, colours)
                axis.set(xlabel=title, ylabel=merit.title if axis is line[0] else None)
                axis.grid(alpha=0.3)
                if merit.logarithmic:
                    axis.set_yscale("log", nonpositive="clip")
        handles, labels = [], []
        for axis in axes.flat:
            for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
                if label not in labels:
                    handles.append(handle)
                    labels.append(label)
        figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.99, 0.97), fontsize="small")
        s = record["settings"]
        figure.suptitle(f"{s['model']}, {s['num_steps']} steps, {record['num_samples']} samples")
        figure.tight_layout()
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with written_whole(path) as temporary:
            figure.savefig(temporary, format=path.suffix[1:], dpi=110, bbox_inches="tight", metadata=metadata)
        plt.close(figure)


def _draw_panel(
    axis: Any,
    rows: Sequence[Row],
    merit: Merit,
    cost: Cost,
    series: Sequence[str],
    colours: Sequence[Any],
) -> None:
    for number, name in enumerate(series):
        own = [(cost(row), *value) for row in rows if row["series"] == name and (value := merit.value(row)) is not None]
        if not own:
            continue
        own.sort()
        x, y = [point[0] for point in own], [point[1] for point in own]
        low = [0 if point[2] is None else point[1] - point[2] for point in own]
        high = [0 if point[3] is None else point[3] - point[1] for point in own]
        axis.errorbar(
            x, y, yerr=(low, high), label=name, color=colours[number % len(colours)], marker=MARKERS[number % len(MARKERS)],
            markersize=5, linewidth=1, elinewidth=0.5, capsize=1.5,
        )  # fmt: skip
    axis.axvline(1, color="black", linestyle="--", linewidth=0.8, label="uncached")
    if merit.best:
        points = [(cost(row), value[0]) for row in rows if (value := merit.value(row)) is not None]
        best = front(points, merit.best)
        if best:
            axis.plot(
                *zip(*best, strict=True), color="grey", alpha=0.4, linewidth=5, zorder=0, label="not beaten in both"
            )
