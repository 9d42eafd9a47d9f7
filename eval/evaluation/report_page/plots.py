"""Plots of the report: the panels of `evaluation.pareto`, laid out in numbers for an SVG within the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.figures import COLOURS
from evaluation.pareto import Row, costs, front, merits
from evaluation.report_page.records import Stored
from evaluation.report_page.tables import figures, method_of, row_id
from seerkit.io.tables import number

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 42
SHAPES = 9
"""Markers of the template; their number and that of colours have no common divisor."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A row: where it lies in pixels, the ends of its interval, and what is said of it."""

    x: float
    y: float
    low: float | None
    high: float | None
    name: str
    told: str
    method: str
    row: str
    series: int
    on_front: bool


@dataclass(frozen=True, kw_only=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure of merit over a cost. points: by rising ratio. lines, front: points of polylines."""

    merit: str
    cost: str
    better: str
    points: Sequence[Point]
    lines: Sequence[tuple[int, str]]
    front: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The panels of one comparison. series: names, whose places say their colours and markers."""

    id: str
    title: str
    backbone: str
    series: Sequence[str]
    panels: Sequence[Panel]

    @property
    def merits(self) -> list[str]:
        return list(dict.fromkeys(panel.merit for panel in self.panels))

    @property
    def costs(self) -> list[str]:
        return list(dict.fromkeys(panel.cost for panel in self.panels))


def look(series: int) -> tuple[int, int]:
    """Numbers of colour and marker."""
    return series % len(COLOURS), series % SHAPES


def plot_of(stored: Stored) -> Plot | None:
    """The plot of a comparison; None where no row has a figure of merit."""
    record, rows = stored.value, figures(stored)
    series = list(dict.fromkeys(row["series"] for row in rows if row["series"] != "uncached"))
    panels = []
    for merit in merits(record, rows):
        for title, cost in costs(record, rows).items():
            found = [
                (i, row, cost(row), value) for i, row in enumerate(rows) if (value := merit.value(row)) is not None
            ]
            panels.append(_panel(stored, merit.title, merit.best, merit.logarithmic, title, found, series))
    if not panels:
        return None
    title = f"{stored.model}, {record['settings']['num_steps']} steps, {record['num_samples']} samples"
    return Plot(id=f"plot-{stored.place}", title=title, backbone=stored.folder, series=series, panels=panels)


def _panel(
    stored: Stored,
    merit: str,
    best: int,
    logarithmic: bool,
    cost: str,
    found: Sequence[tuple[int, Row, float, tuple[float, float | None, float | None]]],
    series: Sequence[str],
) -> Panel:
    scale = math.log10 if logarithmic else float
    found = [one for one in found if not logarithmic or one[3][0] > 0]
    xs, ys = [ratio for _, _, ratio, _ in found] + [1.0], [scale(value[0]) for *_, value in found]
    x_of, x_ticks = _axis(xs, LEFT, WIDTH - RIGHT)
    y_of, y_ticks = _axis(ys, HEIGHT - BOTTOM, TOP, logarithmic)
    kept = set(front([(ratio, value[0]) for _, _, ratio, value in found], best)) if best else set()

    def end(value: float | None) -> float | None:
        if value is None or (logarithmic and value <= 0):
            return None
        return round(min(max(y_of(scale(value)), TOP), HEIGHT - BOTTOM), 1)

    points = []
    for i, row, ratio, (mean, low, high) in sorted(found, key=lambda one: one[2]):
        interval = f" ({number(low, 2)} to {number(high, 2)})" if low is not None else ""
        points.append(
            Point(
                x=round(x_of(ratio), 1), y=round(y_of(scale(mean)), 1), low=end(low), high=end(high), name=row["name"],
                told=f"{cost.partition(',')[0]} {ratio:.2f}, {merit} {mean:.2f}{interval}", method=method_of(row),
                row=row_id(stored, i), series=series.index(row["series"]) if row["series"] in series else 0,
                on_front=(ratio, mean) in kept,
            )
        )  # fmt: skip
    lines = [(one, _polyline([p for p in points if p.series == one])) for one in range(len(series))]
    return Panel(
        merit=merit,
        cost=cost,
        better={1: "higher is better", -1: "lower is better"}.get(best, "nearer to 0 is better"),
        points=points,
        lines=[(one, line) for one, line in lines if " " in line],
        front=_polyline([p for p in points if p.on_front]),
        x_ticks=x_ticks,
        y_ticks=y_ticks,
    )


def _polyline(points: Sequence[Point]) -> str:
    return " ".join(f"{point.x:g},{point.y:g}" for point in points)


def _axis(values: Sequence[float], begin: float, end: float, logarithmic: bool = False):
    """What maps values to pixels, and ticks at round numbers; of logarithms, at powers of ten and twice and five times them."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.5
    low, high = low - room, high + room

    def place(value: float) -> float:
        return begin + (value - low) / (high - low) * (end - begin)

    if logarithmic:
        powers = range(math.floor(low), math.ceil(high) + 1)
        shown = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        return place, [
            Tick(at=round(place(math.log10(one)), 1), text=f"{one:g}")
            for one in shown
            if low <= math.log10(one) <= high
        ]
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
    first = math.ceil(low / step)
    shown = [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]
    return place, [Tick(at=round(place(one), 1), text=f"{one:g}") for one in shown]
