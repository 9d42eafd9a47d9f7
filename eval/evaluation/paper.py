"""Published figures: what stands in results/paper/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seerkit.io.files import read_json

FIGURES = Path(__file__).resolve().parents[2] / "results" / "paper"


def published(name: str) -> dict[str, Any]:
    """The published figures of a backbone with their sources: results/paper/NAME.json."""
    return read_json(FIGURES / f"{name}.json", "record")


def published_flops(facts: Mapping[str, Any], method: str, interval: int | None = None) -> dict[str, Any] | None:
    """The first published row of a method and interval that has a count or a ratio; None if there is none."""
    for row in facts["flops"]:
        if (row["method"], row.get("interval")) == (method, interval) and (row["flops_T"] or row["speedup"]):
            return row
    return None


def published_latency(facts: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    """Published latency and FLOPs speed-ups of a method, whether they stand apart or in a row with a count."""
    beside = [{**row, "flops_speedup": row["speedup"]} for row in facts["flops"] if row.get("latency_speedup")]
    return [row for row in (*facts["latency"], *beside) if row["method"] == method]
