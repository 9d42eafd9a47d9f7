"""Published quality over published speed-ups, for each source by itself: its baselines are those of no other."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.figures import look, plotting, save
from seerkit.io.records import Form

METRICS = {
    "image_reward": "ImageReward ↑",
    "clip_score": "CLIP score ↑",
    "fid": "FID ↓",
    "vbench": "VBench total, % ↑",
    "lpips": "LPIPS to uncached ↓",
    "psnr": "PSNR to uncached, dB ↑",
}
"""Of published rows, with what is better."""
COSTS = {"speedup": "FLOPs speed-up", "latency_speedup": "latency speed-up"}
_NUMBER: Form = (None, float)
_ROW: Form = {
    "method": str, "source": str, "interval": (None, int), "flops_T": _NUMBER, "latency_s": _NUMBER,
    **dict.fromkeys((*METRICS, *COSTS), _NUMBER),
}  # fmt: skip


def nothing(value: Any) -> bool:
    """an empty list, or rows"""
    return value == []


PUBLISHED: Form = {"model": str, **dict.fromkeys(("flops", "latency"), ([_ROW], nothing))}
"""What is read of results/paper/NAME.json."""


class Point(NamedTuple):
    """A published row. costs, merits: by keys of COSTS and METRICS."""

    method: str
    interval: int | None
    costs: Mapping[str, float]
    merits: Mapping[str, float]


def points(facts: Mapping[str, Any]) -> dict[str, list[Point]]:
    """By source, what has a speed-up and a figure of merit.

    A speed-up that is not printed follows from the row's count or seconds and those of the same source's uncached run.
    """
    by_source: dict[str, list[Mapping[str, Any]]] = {}
    for row in (*facts["flops"], *facts["latency"]):
        by_source.setdefault(row["source"], []).append(row)
    found = {}
    for source, rows in by_source.items():
        base = next((row for row in rows if row["method"] == "uncached"), {})
        made = []
        for row in rows:
            costs = {}
            for cost, amount in (("speedup", "flops_T"), ("latency_speedup", "latency_s")):
                if row.get(cost):
                    costs[cost] = row[cost]
                elif row.get(amount) and base.get(amount):
                    costs[cost] = base[amount] / row[amount]
            merits = {key: row[key] for key in METRICS if row.get(key) is not None}
            if costs and merits:
                made.append(Point(row["method"], row.get("interval"), costs, merits))
        if made:
            found[source] = made
    return found


def draw_published(facts: Mapping[str, Any], folder: Path, name: str) -> list[Path]:
    """published-NAME: for each source a panel for each figure of merit and speed-up of which it has two points at least.

    No file where there is no such panel.
    """
    by_source = points(facts)
    panels = [
        (source, shown, merit, cost)
        for source, made in by_source.items()
        for merit in METRICS
        for cost in COSTS
        if len(shown := [point for point in made if merit in point.merits and cost in point.costs]) > 1
    ]
    if not panels:
        return []
    methods = list(dict.fromkeys(point.method for _, shown, _, _ in panels for point in shown))
    with plotting() as plt:
        columns = min(4, len(panels))
        rows = -(-len(panels) // columns)
        figure, axes = plt.subplots(rows, columns, figsize=(3.3 * columns, 2.7 * rows + 0.8), squeeze=False)
        for axis, (source, shown, merit, cost) in zip(axes.flat, panels, strict=False):
            _draw(axis, shown, merit, cost, methods)
            axis.locator_params(nbins=5)
            axis.set(xlabel=COSTS[cost], ylabel=METRICS[merit])
            axis.set_title(textwrap.shorten(source, 44, placeholder=" …"), loc="left", fontsize="small")
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        handles = [
            plt.Line2D([], [], linestyle="-", markersize=5, label=method, **look(number))
            for number, method in enumerate(methods)
        ]
        title = f"Published, not measured here: {facts['model']}\nnumbers at points: interval; dashed: uncached"
        figure.suptitle("\n".join(textwrap.fill(line, 24 * columns + 10) for line in title.splitlines()))
        figure.tight_layout()
        figure.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 0.97))
        return save(figure, folder, f"published-{name}")


def _draw(axis: Any, shown: Sequence[Point], merit: str, cost: str, methods: Sequence[str]) -> None:
    for number, method in enumerate(methods):
        own = sorted(
            (point.costs[cost], point.merits[merit], point.interval) for point in shown if point.method == method
        )
        if not own:
            continue
        axis.plot([x for x, _, _ in own], [y for _, y, _ in own], markersize=5, linewidth=1, **look(number))
        for x, y, interval in own:
            if interval is not None:
                axis.annotate(str(interval), (x, y), textcoords="offset points", xytext=(3, 3), fontsize=6.5)
    uncached = next((point.merits[merit] for point in shown if point.method == "uncached"), None)
    if uncached is not None:
        axis.axhline(uncached, color="black", linestyle="--", linewidth=0.8)
