"""Records of eval/measure_gpu.py put together from the files of its slices, and their tables; needs no torch."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from cache_dic import UserError
from evaluation.gpu.journal import COMMAND, SLICE
from evaluation.gpu.slices import COMMON, KINDS, SUBJECTS
from seerkit.io.files import write_json
from seerkit.io.records import Form, read_record
from seerkit.io.tables import counted, markdown_table, number, text_table

MIB, GIB, MS = 2**20, 2**30, 1e3
NAMED = 80
"""Letters of an error that a table shows."""

RECORD: Form = {
    "command": COMMAND,
    "model": str,
    "size": str,
    "precision": str,
    "device": str,
    "ceilings": (None, dict),
    "tests": (None, dict),
    "slices": {str: SLICE},
}
Record = Mapping[str, Any]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def device_slug(device: str) -> str:
    """A device's name as a part of a file's: NVIDIA H200 -> nvidia-h200."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")[:60]


# ------------------------------------------------------------------------------------------------------------- records


def collect(folder: Path, results: Path, device: str) -> dict[Path, Record]:
    """Write results/BACKBONE/gpu-DEVICE.json from the slices measured on a device, those of an earlier record kept."""
    found = [read_record(path, SLICE, COMMAND) for path in sorted(folder.glob("*.json"))]
    slices = {one["settings"]["slice"]: one for one in found if one["settings"].get("device") == device}
    common = {kind: value_of(slices.get(kind), part) for kind, part in zip(COMMON, ("pytest", "ceilings"), strict=True)}
    records = {}
    for name in SUBJECTS:
        own = {kind: slices[f"{name}-{kind}"] for kind in KINDS if begun(slices.get(f"{name}-{kind}"))}
        if not own:
            continue
        path = results / name / f"gpu-{device_slug(device)}.json"
        first = next(iter(own.values()))["settings"]
        made = {key: first[key] for key in ("model", "size", "precision", "device")}
        old = read_record(path, RECORD, COMMAND) if path.exists() else {}
        kept = old["slices"] if {key: old.get(key) for key in made} == made else {}
        shared = {kind: value or (old.get(kind) if kept else None) for kind, value in common.items()}
        records[path] = {"command": COMMAND, "weights": "random", **made, **shared, "slices": {**kept, **own}}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, records[path])
    return records


def begun(one: Mapping[str, Any] | None) -> bool:
    """Whether a slice has something to tell."""
    return one is not None and bool(one["parts"] or one["left_out"])


def value_of(one: Mapping[str, Any] | None, part: str) -> Any:
    """What a part of a slice measured, None where there is nothing."""
    return ((one or {}).get("parts", {}).get(part) or {}).get("value")


def get(record: Record, kind: str, part: str) -> Any:
    return value_of(record["slices"].get(kind), part)


def all_of(record: Record, kind: str) -> dict[str, Any]:
    """Parts of a slice that have a value."""
    parts = record["slices"].get(kind, {}).get("parts", {})
    return {name: part["value"] for name, part in parts.items() if "value" in part}


def gaps(record: Record) -> list[str]:
    """What of a record is missing, and why: slices left out or not finished, and parts that failed."""
    lines = []
    for kind in KINDS:
        one = record["slices"].get(kind)
        if one is None:
            continue
        if one["left_out"]:
            lines.append(f"{kind}: left out, {one['left_out']}")
            continue
        lines += [
            f"{kind}, {name}: {shortened(part['error'])}" for name, part in one["parts"].items() if "error" in part
        ]
        waiting = [name for name in one["planned"] or () if name not in one["parts"]]
        if waiting:
            lines.append(f"{kind}: not measured yet, {', '.join(waiting)}")
    return lines


def shortened(text: str) -> str:
    return text if len(text) <= NAMED else f"{text[: NAMED - 1]}…"


# -------------------------------------------------------------------------------------------------------------- tables


def ms(seconds: float | None) -> str:
    return number(None if seconds is None else MS * seconds, 2)


def gib(size: float | None) -> str:
    return number(None if size is None else size / GIB, 2)


def spread_cell(timing: Mapping[str, Any] | None) -> str:
    """Median and range in ms."""
    if timing is None:
        return number(None)
    return f"{ms(timing['median_s'])} ({ms(timing['min_s'])} – {ms(timing['max_s'])})"


def steps_table(record: Record) -> Table:
    """Steps and runs, eager and compiled."""
    compared = ["eager", "compiled"]
    measured = [get(record, "steps", "steps"), get(record, "compiled", "steps")]
    pairs = [pairs_of(record, "runs"), pairs_of(record, "compiled")]
    counts, memory = get(record, "steps", "counts"), get(record, "steps", "memory")

    def row(name: str, value: Callable[[Any], str], of: Sequence[Any] = measured) -> list[str]:
        return [name, *(number(None) if one is None else value(one) for one in of)]

    def folded(one: Any) -> Any:
        return one["forecast_step"]["folded"]

    rows = [
        row("full step, ms", lambda one: spread_cell(one["full_step"]["plain"])),
        row("full step with folding, ms", lambda one: spread_cell(one["full_step"]["folded"])),
        row("forecast step, folded, ms", lambda one: spread_cell(folded(one))),
        row(
            "forecast / full step, %",
            lambda one: number(100 * folded(one)["median_s"] / one["full_step"]["plain"]["median_s"], 2),
        ),
        *(
            [f"{name}, ms", spread_cell(value), number(None)]
            for name, value in all_of(record, "steps").items()
            if name.startswith("forecast ")
        ),
        row("kernels of a forecast step", lambda one: number(one["kernels"], 0)),
        row("modulation of a run, ms", lambda one: spread_cell(one["modulation_table"]["folded"])),
        row("speed-up composed of steps", lambda one: number(one["composed_run"]["speedup"], 2, "x")),
        row("speed-up of whole runs", lambda one: runs_cell(one), pairs),
        ["FLOPs ratio", number(counts and counts["run"].get("flops_ratio"), 2, "x"), number(None)],
        row("peak of a run, uncached, GiB", lambda one: gib(one[0]["uncached"]["peak_bytes"]), pairs),
        row("peak of a run, cached, GiB", lambda one: gib(one[0]["cached"]["peak_bytes"]), pairs),
        *(
            [f"peak of a run, {name.removeprefix('run ')}, GiB", gib(value["peak_bytes"]), number(None)]
            for name, value in all_of(record, "runs").items()
            if name.startswith("run ")
        ),
        ["weights, GiB", gib(memory and memory["weights_bytes"]), number(None)],
        ["kept by folding, MiB", number(counts and counts["run"]["kept_bytes"]["folded"] / MIB, 1), number(None)],
        *(
            [f"full step, ours to diffusers', {name}", *cells]
            for name, cells in (("eager", _against(record, 0)), ("compiled", _against(record, 1)))
            if any(cell != number(None) for cell in cells)
        ),
    ]
    return ["", *compared], rows


def _against(record: Record, column: int) -> list[str]:
    found = [get(record, "diffusers", "full step"), get(record, "compiled", "diffusers' model")][column]
    cell = number(found and found["ours_over_theirs"]["median"], 3, "x")
    return [cell if at == column else number(None) for at in range(2)]


def pairs_of(record: Record, kind: str) -> list[Any] | None:
    """Pairs of whole runs, None where there are none."""
    return [value for name, value in all_of(record, kind).items() if name.startswith("pair ")] or None


def runs_cell(pairs: Sequence[Record]) -> str:
    ratios = [pair["ratio"] for pair in pairs]
    before, after = (median(pair[name]["seconds"] for pair in pairs) for name in ("uncached", "cached"))
    return f"{median(ratios):.2f}x, {before:.2f} s → {after:.2f} s ({counted(len(pairs), 'pair')})"


def roofline_table(record: Record) -> Table:
    """Operations and bytes of a step, what they take at the measured ceilings, and the share of that in what is measured."""
    counts, ceilings = get(record, "steps", "counts"), record["ceilings"]
    header = [
        "step",
        "TFLOP",
        "GB at least",
        "FLOP/byte",
        "attainable ms",
        "bound by",
        "measured ms",
        "of the attainable, %",
    ]
    if not counts or not ceilings:
        return header, []
    rows = []
    for how, kind in (("eager", "steps"), ("compiled", "compiled")):
        measured = get(record, kind, "steps")
        if not measured:
            continue
        for name, work, timing in (
            ("full", counts["full"], measured["full_step"]["plain"]),
            ("forecast, folded", counts["forecast"], measured["forecast_step"]["folded"]),
        ):
            bound, at_best = attainable(work, ceilings)
            rows.append(
                [
                    f"{name}, {how}",
                    number(work["flops"] / 1e12, 4),
                    number(work["bytes"] / 1e9, 3),
                    number(work["flops"] / work["bytes"], 1),
                    number(MS * at_best, 3),
                    bound,
                    ms(timing["median_s"]),
                    number(100 * at_best / timing["median_s"], 1),
                ]
            )
    return header, rows


def attainable(work: Record, ceilings: Record) -> tuple[str, float]:
    """What bounds a step, and the seconds that it takes at best."""
    times = {
        "operations": work["flops"] / ceilings["flops"]["per_s"],
        "bytes": work["bytes"] / ceilings["bytes"]["per_s"],
    }
    bound = max(times, key=lambda name: times[name])
    return bound, times[bound]


def methods_table(record: Record) -> Table:
    """A run of every method, beside uncached steps of the same process."""
    header = ["method", "decided", "steps", "time ratio", "FLOPs ratio", "run, s", "kept MiB", "peak GiB"]
    rows = [
        [
            value["label"],
            value["decided"],
            ", ".join(f"{kind['steps']} {name}" for name, kind in value["kinds"].items()),
            number(value["ratio"], 2, "x"),
            number(value["flops_ratio"], 2, "x"),
            number(value["total_s"], 2),
            number(value["kept_bytes"] / MIB, 1),
            gib(value["peak_bytes"]),
        ]
        for value in all_of(record, "methods").values()
    ]
    return header, rows


def rivals_table(record: Record) -> Table:
    """diffusers' model with what others put on it, beside our steps in the same process."""
    header = [
        "on diffusers' model", "full step ms", "computed ms", "cached ms", "cached / full %", "ours, forecast / full %",
        "memory of its steps GiB", "still held GiB",
    ]  # fmt: skip
    rows = []
    for kind in ("diffusers", "cache-dit"):
        for value in all_of(record, kind).values():
            if "cached_over_full" not in value:
                continue
            steps, ours, memory = value["steps"], value["ours"], value["memory"]
            rows.append(
                [
                    value["label"],
                    spread_cell(value["full_step"]),
                    spread_cell(steps.get("computed")),
                    spread_cell(steps["cached"]),
                    number(100 * value["cached_over_full"], 2),
                    number(100 * ours["forecast_s"] / ours["full_s"], 2),
                    gib(memory and memory["peak"] - memory["before"]),
                    gib(memory and memory["after"] - memory["before"]),
                ]
            )
    return header, rows


def pipeline_table(record: Record) -> Table:
    """What a sample takes from prompt to picture, put together from its pieces: uncached and cached."""
    header = ["piece", "ms", "share uncached %", "share cached %", "weights GiB", "memory of its work GiB"]
    found = all_of(record, "pipeline")
    denoising = found.pop("denoising", None)
    if denoising is None or not found:
        return header, []
    run = denoising["composed_run"]
    around = sum(value["median_s"] for value in found.values())
    totals = [around + run[name] for name in ("uncached_s", "cached_s")]

    def shares(seconds: Sequence[float]) -> list[str]:
        return [number(100 * one / total, 2) for one, total in zip(seconds, totals, strict=True)]

    rows = [
        [
            value["label"],
            spread_cell(value),
            *shares([value["median_s"]] * 2),
            gib(value["weights_bytes"]),
            gib(value["memory"] and value["memory"]["peak"] - value["memory"]["before"]),
        ]
        for value in found.values()
    ]
    dash = number(None)
    whole = [run["uncached_s"], run["cached_s"]]
    rows.append([f"denoising, uncached → {denoising['label']}", " → ".join(map(ms, whole)), *shares(whole), dash, dash])
    rows.append(["all", " → ".join(map(ms, totals)), dash, dash, dash, dash])
    return header, rows


TABLES: dict[str, tuple[Callable[[Record], Table], str]] = {
    "steps": (steps_table, "steps and runs"),
    "roofline": (roofline_table, "steps beside what the device attains"),
    "methods": (methods_table, "runs of every method, steps timed one by one"),
    "rivals": (rivals_table, "others' caches, by step"),
    "pipeline": (pipeline_table, "from prompt to picture, composed of pieces"),
}
"""By name: the rows of a record, and what they are."""

NOTES = {
    "steps": "median (range); composed: of medians, as eval/benchmark.py composes a run",
    "methods": (
        "time ratio: steps of an uncached run over those of the method's, all in one process; what is decided while sampling "
        "is decided on random weights, so that how many steps are full says nothing, only what a step of a kind takes"
    ),
    "rivals": (
        "cached: calls that leave the attention of the last block out; hooks skip whenever their warm-up and interval let them"
    ),
    "pipeline": "denoising composed of full and forecast steps; text encoders read the prompts of all guidance branches",
}


def title(record: Record) -> str:
    tiny = ", TINY: a trial, its times say nothing" if record["size"] == "tiny" else ""
    return f"{record['model']} on random weights, {record['precision']}, {record['device']}{tiny}"


def facts(record: Record) -> str:
    """Conditions of a record in a line."""
    made = next((one["conditions"] for one in record["slices"].values() if one["conditions"]), None)
    counts, ceilings = get(record, "steps", "counts"), record["ceilings"]
    return "; ".join(
        [
            *([f"{counted(counts['rows'], 'row')} of {counts['tokens']} tokens"] if counts else []),
            *(
                [
                    f"ceilings measured: {ceilings['flops']['per_s'] / 1e12:.1f} TFLOP/s ({record['precision']} product of "
                    f"{ceilings['flops']['side']} squared), {ceilings['bytes']['per_s'] / 1e12:.2f} TB/s (copy)"
                ]
                if ceilings
                else ["no ceilings measured"]
            ),
            *(
                [
                    f"driver {made.get('driver') or 'none'}, torch {made['versions']['torch']}, commit {made['commit']}, "
                    f"{made['date'][:10]}"
                ]
                if made
                else []
            ),
        ]
    )


def text(record: Record) -> str:
    """The tables of a record for the terminal, and what it lacks."""
    blocks = [title(record), facts(record)]
    for rows_of, what in TABLES.values():
        header, rows = rows_of(record)
        if rows:
            blocks.append(f"{what}\n{text_table(header, rows)}")
    return "\n\n".join([*blocks, *(["missing:\n" + "\n".join(gaps(record))] if gaps(record) else [])])


def document_table(results: Path, name: str) -> str:
    """A table of TABLES for documents, of every record results/*/gpu-*.json."""
    paths = [path for folder in SUBJECTS for path in sorted((results / folder).glob("gpu-*.json"))]
    if not paths:
        raise UserError(
            f"a record gpu-DEVICE.json of a backbone under {results} is not there; make it on a GPU with "
            "`bash scripts/measure_gpu.sh`"
        )
    rows_of, _ = TABLES[name]
    blocks = []
    for path in paths:
        record = read_record(path, RECORD, COMMAND)
        header, rows = rows_of(record)
        if rows:
            blocks += [f"**{title(record)}**", markdown_table(header, rows), f"*{facts(record)}*"]
    if not blocks:
        raise UserError(
            f"no record gpu-DEVICE.json under {results} has what this table shows; `bash scripts/measure_gpu.sh`"
        )
    return "\n\n".join([*blocks, *([f"*{NOTES[name]}*"] if name in NOTES else [])])
