"""Operations of a sampling run with and without a cache, and what leads there from the paper's own count."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cache_dic import UserError
from cache_dic.settings import json_value
from evaluation.backbones import BACKBONES, count_case
from evaluation.flags import cache_of, describe, workload_of
from evaluation.operations import attention_flops
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.files import write_json
from seerkit.io.records import conditions, read_record
from seerkit.io.tables import number, text_table
from seerkit.sampling.flops import partial_counts, partial_steps
from seerkit.sampling.published import PARTIAL, Counter, PartialCounts
from seerkit.sampling.workload import Case

UNITS = "flops_T: 10^12 operations, 2 per multiply-add; kept_bytes: the most bytes of features kept between steps, of all rows"
GIB = 2**30
COMMAND = "eval/flops.py"


def no_rows(rows: Any) -> bool:
    """a list of rows"""
    return rows == []


RECORD = {"command": COMMAND, "rows": (no_rows, [{"label": str, "settings": dict}])}


def count(args: argparse.Namespace) -> dict[str, Any]:
    """The record of one run: settings, counts, and what the paper's own counter, if there is one, would have printed."""
    backbone, workload, cache = BACKBONES[args.model], workload_of(args), cache_of(args, partial=True)
    dtype = torch_dtype(args.precision)
    if args.kept_goal_gib and cache.engine == "partial":
        raise UserError(f"--kept-goal-gib is of the folded engine, which {cache.label} has no use for; leave it out")
    with torch.device("meta"):
        case = backbone.build(workload, dtype)
    counts = count_case(backbone, case, cache, args.num_steps)
    full_steps, attention = len(counts["full_steps"]), step_attention(case) / 1e12
    partial = "partial_steps" in counts
    record = {
        "label": cache.label,
        "method": cache.method,
        "engine": cache.engine,
        "schedule": {"name": cache.schedule, **json_value(cache.schedule_settings)},
        "forecaster": {"name": type(cache.forecaster).__name__, **vars(cache.forecaster)},
        **counts,
        "flops_T_without_attention": None if partial else counts["flops_T"] - full_steps * attention,
        "flops_T_uncached_without_attention": counts["flops_T_uncached"] - args.num_steps * attention,
        "settings": describe(args, case),
        "units": UNITS,
        "conditions": {**conditions(torch.device("meta"), dtype), "device": "none: counted on the meta device"},
    }
    if args.kept_goal_gib:
        kept = counts["kept_bytes"]["folded"] / GIB
        record["kept_goal"] = {"bound_gib": args.kept_goal_gib, "value_gib": kept, "met": kept < args.kept_goal_gib}
    counter = backbone.counter(case)
    if partial:
        times = backbone.timesteps(case, args.num_steps).cpu()
        made, *_ = partial_steps(case.model, cache, args.num_steps, case.latents, case.conditions, times)
        counted = partial_counts(made.runs[0], case.model, case.latents, case.conditions)
        record["flops_T_observed"] = counted.observed_T
        record["published_convention"] = published_partial(counter, counted, cache.method)
    else:
        record["published_convention"] = published_convention(counter, counts, args.num_steps)
    return record


def published_convention(counter: Counter | None, counts: Mapping[str, Any], num_steps: int) -> dict[str, Any] | None:
    """The run by the paper's own counter, and what leads from there to `counts`; None where no count is published."""
    if counter is None:
        return None
    (full, forecast), full_steps = counter.steps, len(counts["full_steps"])
    return {
        "flops_T": (full_steps * full + (num_steps - full_steps) * forecast) / 1e12,
        "flops_T_uncached": num_steps * full / 1e12,
        "flops_T_full_step": full / 1e12,
        "flops_T_forecast_step": forecast / 1e12,
        "difference": counter.difference(counts, num_steps),
    }


def published_partial(counter: Counter | None, counted: PartialCounts, method: str) -> dict[str, Any] | None:
    """As `published_convention`, of a method that computes part of a step; None of one whose totals are not published."""
    if method not in PARTIAL or not hasattr(counter, "partial_step"):
        return None
    full, _ = counter.steps
    parts = [
        counter.partial_step(work, method)
        for work, is_full in zip(counted.works, counted.full, strict=True)
        if not is_full
    ]
    return {
        "flops_T": counted.total(counter, method) / 1e12,
        "flops_T_uncached": len(counted.full) * full / 1e12,
        "flops_T_full_step": full / 1e12,
        "flops_T_other_steps": sorted({part / 1e12 for part in parts}),
        "difference": counter.partial_difference(counted, method),
    }


def step_attention(case: Case) -> int:
    """Operations of attention's products in a full step; a forecast step has none."""
    time = {case.model.TIME: torch.zeros(case.rows, device="meta")}
    return attention_flops(lambda: case.model(case.latents, **time, **case.conditions))


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of this command, none where there is no file; UserError for another file."""
    return read_record(path, RECORD, COMMAND)["rows"] if path.exists() else []


def add_row(path: Path, record: dict[str, Any]) -> None:
    """Write `record` among the rows of a JSON file, in place of an earlier one of the same run."""

    def run(row: dict[str, Any]) -> tuple:
        return row["label"], row["settings"]

    kept = [row for row in rows_of(path) if run(row) != run(json.loads(json.dumps(record)))]
    write_json(path, {"command": COMMAND, "rows": [*kept, record]})


def text(record: dict[str, Any]) -> str:
    """The count as a reader wants it: where the operations go, and what each engine would keep."""
    s, full_steps = record["settings"], len(record["full_steps"])
    others = s["num_steps"] - full_steps
    each = record["flops_T_forecast_step"]
    parts = [("full step", record["flops_T_full_step"], full_steps), ("forecast step", each, others)]
    work = [f"{record['engine']} engine", "", "", number(record["flops_T_engine"], 4)]
    if "partial_steps" in record:  # those differ
        whole, seen = parts[0], record["flops_T_observed"]
        rest = record["flops_T"] - seen - whole[1] * whole[2]
        parts = [whole, ("other step, on average", rest / others if others else None, others)]
        work = ["to see attention", "", "", number(seen, 4)]
    lines = [
        [name, number(each, 5), str(times), number(each * times if times else 0, 4)] for name, each, times in parts
    ]
    lines.append(work)
    lines.append(["run", "", str(s["num_steps"]), number(record["flops_T"], 4)])
    lines.append(
        [
            "uncached run",
            number(record["flops_T_full_step"], 5),
            str(s["num_steps"]),
            number(record["flops_T_uncached"], 4),
        ]
    )
    kept = [[name, number(size / 2**20, 1)] for name, size in record["kept_bytes"].items()]
    goal = record.get("kept_goal")
    shown = [
        f"{s['model']}, {s['rows']} rows of {s['tokens']} tokens, {s['sites']} sites, {s['precision']}: {record['label']}",
        f"full steps ({full_steps} of {s['num_steps']}): {' '.join(map(str, record['full_steps']))}",
        "",
        text_table(["", "TFLOPs per step", "steps", "TFLOPs"], lines),
        f"{record['flops_ratio']:.2f}x fewer than uncached; without attention's products "
        f"{number(record['flops_T_without_attention'], 4)}, uncached {record['flops_T_uncached_without_attention']:.4f}",
        "",
        text_table(["features kept by", "MiB"], kept),
        *([f"folded under {goal['bound_gib']:g} GiB: {'met' if goal['met'] else 'not met'}"] if goal else []),
    ]
    if theirs := record["published_convention"]:
        shown += [
            "",
            text_table(
                ["from the paper's counter to this one", "TFLOPs"],
                [
                    ["the paper's counter", number(theirs["flops_T"], 4)],
                    *([t["term"], f"{t['flops_T']:+.4f}"] for t in theirs["difference"]),
                    ["this count", number(record["flops_T"], 4)],
                ],
            ),
        ]
    return "\n".join(shown)
