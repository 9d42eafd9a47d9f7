"""LoopSeer's evidence as figures: nearness to the uncached samples over operations saved, and the full steps found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.beyond.cells import by_label, facts
from evaluation.beyond.rivals import OURS
from evaluation.beyond.rows import EVEN, FEWER, FITTED, ON_LIST, PUBLISHED, RIVAL, RIVAL_ON_LIST
from evaluation.figures import look, plotting, save

SHOWN = {
    OURS: "LoopSeer",
    FITTED: "LoopSeer's forecast, published full steps",
    ON_LIST: "TaylorSeer, LoopSeer's full steps",
    PUBLISHED: "TaylorSeer, published full steps",
    EVEN: "TaylorSeer, even full steps",
    FEWER: "fewer steps",
    RIVAL: "best other method",
    RIVAL_ON_LIST: "best other forecast, LoopSeer's full steps",
}
"""Roles as the legend calls them; each has a colour of its own, in this order."""
LINES = (OURS,)


def stem(record: Mapping[str, Any]) -> str:
    return f"beyond-{record['settings']['model'].replace('/', '-')}"


def draw_beyond(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Both figures; their files."""
    return draw_quality(record, folder) + draw_lists(record, folder)


def points(record: Mapping[str, Any], role: str) -> list[tuple[float, float, float, float, str]]:
    """FLOPs ratio, mean PSNR and both ends of its interval, and name of every row in a role, by rising ratio."""
    rows = by_label(record)
    found = []
    for budget in record["budgets"]:
        for one in budget["rows"]:
            row = rows.get(one["label"])
            psnr = row and row["psnr"]
            if one["role"] == role and row and psnr and psnr["mean_db"] is not None:
                mean = psnr["mean_db"]
                ends = [mean if psnr[end] is None else psnr[end] for end in ("low_db", "high_db")]
                found.append((row["flops_ratio"], mean, *ends, one["name"]))
    return sorted(found)


def draw_quality(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """PSNR over FLOPs ratio: LoopSeer as a line, the others as points, with 95 % intervals; other methods by their names."""
    with plotting() as plt:
        figure, axis = plt.subplots(figsize=(8, 5))
        for number, (role, label) in enumerate(SHOWN.items()):
            own = points(record, role)
            if not own:
                continue
            x, y, low, high, names = zip(*own, strict=True)
            errors = ([a - b for a, b in zip(y, low, strict=True)], [b - a for a, b in zip(y, high, strict=True)])
            style = "-" if role in LINES else "none"
            axis.errorbar(
                x, y, yerr=errors, label=label, linestyle=style, markersize=7 if role in LINES else 5, elinewidth=0.8,
                zorder=3 if role in LINES else 2, **look(number),
            )  # fmt: skip
            if role in (RIVAL, RIVAL_ON_LIST):
                for at, psnr, name in zip(x, y, names, strict=True):
                    axis.annotate(name, (at, psnr), textcoords="offset points", xytext=(5, -9), fontsize=6)
        axis.set(xlabel="FLOPs ratio, uncached / this", ylabel="PSNR to uncached, dB")
        axis.set_title(facts(record))
        axis.legend(fontsize="small")
        figure.tight_layout()
        return save(figure, folder, stem(record))


def draw_lists(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Full steps of every budget: those that were found, and those of the published rule and of even spacing."""
    rows = by_label(record)
    lines: list[tuple[str, str, Sequence[int]]] = []
    for budget in record["budgets"]:
        for role in (OURS, PUBLISHED, EVEN):
            label = next((one["label"] for one in budget["rows"] if one["role"] == role), None)
            if label in rows:
                lines.append((f"{budget['full_steps']}, {SHOWN[role]}", role, rows[label]["full_steps"]))
    with plotting() as plt:
        figure, axis = plt.subplots(figsize=(8, 0.8 + 0.28 * len(lines)))
        for place, (_, role, full_steps) in enumerate(lines):
            number = list(SHOWN).index(role)
            axis.plot(full_steps, [place] * len(full_steps), linestyle="none", markersize=5, **look(number))
        axis.set_yticks(range(len(lines)), [text for text, *_ in lines], fontsize="small")
        axis.invert_yaxis()
        axis.set(xlabel="step", xlim=(-1, record["settings"]["num_steps"]))
        axis.set_title(f"{record['settings']['model']}: full steps")
        figure.tight_layout()
        return save(figure, folder, f"{stem(record)}-lists")
