"""The figure of a validation: of every measure, its ladders and the samples whose order is known."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.figures import plotting, save

COLUMNS = 3  # measures side by side
MARKERS = "osD^vP"


def draw_validation(record: Mapping[str, Any], path: Path) -> None:
    """Two panels of each measure: its ladders from real samples on; steps and caching methods. Bars are 95 % intervals."""
    rows = record["rows"]
    lines = -(-len(rows) // COLUMNS)
    with plotting() as plt:
        size = (5 * COLUMNS, 2.2 * lines)
        figure, panels = plt.subplots(lines, 2 * COLUMNS, figsize=size, layout="constrained", squeeze=False)
        for index, row in enumerate(rows):
            left, right = panels[index // COLUMNS][2 * (index % COLUMNS) : 2 * (index % COLUMNS) + 2]
            _ladders(left, row)
            _order(right, row)
        for index in range(len(rows), lines * COLUMNS):
            for panel in panels[index // COLUMNS][2 * (index % COLUMNS) : 2 * (index % COLUMNS) + 2]:
                panel.set_axis_off()
        save(figure, path.parent, path.stem, [path.suffix])


def _bars(
    panel: Any, places: Sequence[float], figures: Sequence[Mapping[str, float]], row: Mapping[str, Any], **style: Any
) -> None:
    scaled = [[row["scale"] * one[key] for one in figures] for key in ("value", "half")]
    panel.errorbar(places, scaled[0], yerr=scaled[1], capsize=2, markersize=4, linewidth=1, **style)


def _ladders(panel: Any, row: Mapping[str, Any]) -> None:
    floor = row["floor"]
    for marker, ladder in zip(MARKERS, row["ladders"], strict=False):
        rungs = ([floor] if floor else []) + ladder["rungs"]
        places = range(0 if floor else 1, len(ladder["rungs"]) + 1)
        _bars(panel, places, rungs, row, marker=marker, label=ladder["name"])
    panel.set_title(f"{row['title']}{'' if row['shown'] else ' (not shown)'}", fontsize=9, loc="left")
    panel.set_xticks(range(4), ["real", "mild", "", "strong"], fontsize=7)
    panel.tick_params(labelsize=7)
    panel.legend(fontsize=6, frameon=False)


def _order(panel: Any, row: Mapping[str, Any]) -> None:
    steps, methods = row["order"]["values"], row["methods"]["values"]
    cached = [one for one in methods if not one["label"].startswith("uncached")]
    _bars(panel, range(len(steps)), steps, row, marker="o", color="black")
    for offset, one in enumerate(cached):
        _bars(panel, [len(steps) + offset], [one], row, marker="s", color=f"C{offset}", linestyle="none")
    names = [f"{one['steps']}" for one in steps] + [one["label"].split("-")[0] for one in cached]
    panel.set_xticks(range(len(names)), names, fontsize=7)
    panel.set_xlabel("steps, caching methods", fontsize=7)
    panel.tick_params(labelsize=7)
