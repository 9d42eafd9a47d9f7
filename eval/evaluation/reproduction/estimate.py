"""What running published tables takes, before anything starts: rows, samples, GPU hours, disk."""

import math
from collections.abc import Mapping
from typing import Any

from evaluation.reproduction.protocols import Protocol
from evaluation.reproduction.rows import UNCACHED, Row
from evaluation.reproduction.running import Plan, count
from seerkit.io.tables import number, text_table

PNG_SHARE = 0.6  # of the bytes of an image's pixels, about, that its PNG takes
MP4_MIB = 1.0  # of a video, about
SECONDS = 3600


def estimate(plan: Plan) -> dict[str, Any]:
    """A row for every run, and the sums.

    Seconds of an uncached sample are its operations over what an H100 keeps up; of a cached one as many times fewer as its
    published latency says, or, where none is known, as its operations are.
    """
    protocol = plan.protocol
    counts = count(protocol, plan.rows)
    tflops, source = protocol.sampling_tflops
    runs: dict[str, Row] = {}
    for row in plan.rows:
        if row.counted and row.sampled:
            runs.setdefault(row.counted.label, row)
    base = counts[UNCACHED]["flops_T"]
    rows = [_of(row, counts[label], base, plan, tflops) for label, row in runs.items()]
    left_out = {row.in_words: row.why for row in plan.rows if row.why}
    return {
        "table": protocol.name,
        "model": plan.args.model,
        "is_smoke": plan.is_smoke,
        "num_samples": plan.num_samples,
        "rows": rows,
        "left_out": left_out,
        "hours": None if plan.is_smoke else sum(row["hours"] for row in rows),
        "gib": sum(row["gib"] for row in rows),
        "basis": f"{tflops} TFLOPs a second ({source}); published ratios of latency where there are any",
    }


def _of(row: Row, counted: Mapping[str, Any], base: float, plan: Plan, tflops: float) -> dict[str, Any]:
    """base: operations of an uncached sample, 10^12."""
    assert row.counted is not None
    flops = counted["flops_T"]
    ratio = row.published.get("latency_speedup") or (base / flops if flops else row.published.get("speedup") or 1.0)
    hours = base / tflops / ratio * plan.num_samples / SECONDS
    return {
        "label": row.counted.label,
        "num_steps": row.counted.num_steps,
        "flops_T": flops,
        "hours": 0.0 if plan.is_smoke else hours,
        "gib": _bytes(plan.protocol) * plan.num_samples / 2**30 if not plan.is_smoke else 0.0,
    }


def _bytes(protocol: Protocol) -> float:
    """Of a sample on the disk, about."""
    sizes = protocol.sizes
    if "frames" in sizes:
        return MP4_MIB * 2**20
    pixels = 3 * math.prod((sizes["height"], sizes["width"]))
    return pixels * (PNG_SHARE + (protocol.prompts is None))  # without prompts there is an .npz, too


def estimate_text(told: Mapping[str, Any]) -> str:
    rows = [
        [
            row["label"],
            str(row["num_steps"]),
            number(row["flops_T"], 2),
            str(told["num_samples"]),
            number(None if told["is_smoke"] else row["hours"], 2),
            number(row["gib"], 1),
        ]
        for row in told["rows"]
    ]
    kind = f"a smoke run of {told['model']}: minutes, and little disk" if told["is_smoke"] else told["model"]
    total = (
        ""
        if told["hours"] is None
        else f"together about {told['hours']:.1f} hours of an H100 and {told['gib']:.0f} GiB of disk"
    )
    lines = [
        f"{told['table']}: {kind}",
        "",
        text_table(["row", "steps", "TFLOPs", "samples", "H100 hours", "GiB"], rows),
        "",
    ]
    lines += [total] if total else []
    lines += [f"hours: {told['basis']}; '–': operations are decided while sampling"]
    lines += [f"left out: {row}: {why}" for row, why in told["left_out"].items()]
    return "\n".join(lines)
