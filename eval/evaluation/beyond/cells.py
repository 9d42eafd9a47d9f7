"""Cells and words of the tables of LoopSeer's evidence, in the terminal and in documents; needs no torch."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.beyond.paired import verdict
from evaluation.beyond.rivals import OURS
from evaluation.beyond.rows import EVEN, FEWER, OF_LIST, ON_LIST, PUBLISHED, RIVAL, RIVAL_ON_LIST, ROLES, WHOLE
from evaluation.cells import plus_minus
from seerkit.io.tables import counted, number, psnr_cell, text_table

GOAL_DB = 6.0
"""Of the gain over TaylorSeer's published setting."""
MOST_FULL_STEPS = 10
"""With which the quality of the reference is to be reached."""
OPEN = "open"
MEANING = (
    "dB: PSNR to the uncached sample of the same noise; gains: LoopSeer less the other, sample by sample; ±: half of Student's "
    f"95 % interval; yes, no: beyond the interval, {OPEN}: within it; nearer: share of the samples on which LoopSeer is nearer"
)
TIME_MEANING = "time ratio: of the uncached batch to this one, on a CPU of what its processors spent, else on the clock"

Record = Mapping[str, Any]
Row = Mapping[str, Any]


def by_label(record: Record) -> dict[str, Row]:
    return {row["label"]: row for row in record["rows"] if "error" not in row}


def gain(found: Mapping[str, Any] | None, digits: int = 2) -> str:
    """A mean difference with half of its interval."""
    return plus_minus(found, digits, signed=True)


def percent(share: float | None) -> str:
    return number(None if share is None else 100 * share, 0, " %")


def baselines(budget: Record, rows: Mapping[str, Row], accept: Callable[[str], bool]) -> list[tuple[Row, Row]]:
    """Of a budget, what stands beside LoopSeer in the accepted roles and can be compared: entry and row, best first."""
    able = [
        (one, rows[one["label"]])
        for one in budget["rows"]
        if accept(one["role"]) and "differences" in one and one["label"] in rows
    ]

    def psnr(pair: tuple[Row, Row]) -> float:
        mean = pair[1]["psnr"]["mean_db"]
        return math.inf if mean is None else mean  # of samples that all equal the uncached ones

    return sorted(able, key=psnr, reverse=True)


def is_own_list(role: str) -> bool:
    """A baseline that has full steps of its own."""
    return role in (PUBLISHED, EVEN, FEWER, RIVAL)


def is_on_list(role: str) -> bool:
    return role in OF_LIST


# ------------------------------------------------------------------------------------------------------------ headline

HEADLINE_HEADER = [
    "model", "full steps", "FLOPs ratio", "LoopSeer dB", "TaylorSeer dB", "gain over it dB", f"+{GOAL_DB:g} dB",
    "of it by schedule", "by forecast", "best baseline", "gain over it dB", "nearer", "above",
    "best forecast on the same full steps", "gain over it dB",
]  # fmt: skip


def headline_cells(record: Record) -> list[list[str]]:
    """A line for every budget of a record."""
    rows = by_label(record)
    return [_headline(record["settings"]["model"], budget, rows) for budget in record["budgets"]]


def _headline(model: str, budget: Record, rows: Mapping[str, Row]) -> list[str]:
    mine = role_row(budget, rows, OURS)
    published = next(iter(baselines(budget, rows, lambda role: role == PUBLISHED)), None)
    parts = budget["parts"]
    cells = [
        model,
        str(budget["full_steps"]),
        number(budget["flops_ratio"], 2, "x"),
        psnr_cell(mine and mine["psnr"]),
        psnr_cell(published and published[1]["psnr"]),
        gain(parts.get("whole")),
        verdict(parts["whole"], GOAL_DB) if "whole" in parts else number(None),
        *(_share(parts, name) for name in ("schedule", "forecast")),
    ]
    for accept, whole in ((is_own_list, True), (is_on_list, False)):
        found = baselines(budget, rows, accept)
        if not found:
            cells += [number(None)] * (4 if whole else 2)
            continue
        (entry, _), *_ = found
        over = entry["differences"]["psnr_db"]
        cells += [entry["name"], gain(over), *([percent(over["wins"]), above(over)] if whole else [])]
    return cells


def above(found: Mapping[str, Any]) -> str:
    """Whether LoopSeer is above a baseline, in words."""
    return {"yes": "yes", "no": "not above", OPEN: OPEN}[verdict(found)]


def _share(parts: Mapping[str, Any], name: str) -> str:
    """What a part of the gain is in dB, and of the whole where that is one."""
    mean, whole = (parts.get(one, {}).get("mean") for one in (name, "whole"))
    if mean is None:
        return number(None)
    return f"{mean:+.2f} dB" + (f", {percent(mean / whole)}" if whole and whole > 0 else "")


def role_row(budget: Record, rows: Mapping[str, Row], role: str) -> Row | None:
    """What stands at a budget in a role that one row has; None where it failed."""
    labels = [one["label"] for one in budget["rows"] if one["role"] == role]
    return next((rows[label] for label in labels if label in rows), None)


# ----------------------------------------------------------------------------------------------------------- reference

REFERENCE_HEADER = [
    "model",
    "reference",
    "full steps",
    "dB",
    "LoopSeer with",
    "dB",
    "LoopSeer less the reference dB",
    "reached",
]


def reference_cells(record: Record) -> list[list[str]]:
    """The published setting that is to be reached beside LoopSeer at the largest budget that may be had."""
    rows = by_label(record)
    against = rows.get(record["reference"])
    able = [one for one in record["budgets"] if one["full_steps"] <= MOST_FULL_STEPS]
    if against is None or not able:
        return []
    budget = max(able, key=lambda one: one["full_steps"])
    mine, over = role_row(budget, rows, OURS), (budget["over_reference"] or {}).get("psnr_db")
    if mine is None or over is None:
        return []
    return [
        [
            record["settings"]["model"], against["name"], number(against["computed"]["mean"], 0), psnr_cell(against["psnr"]),
            str(budget["full_steps"]), psnr_cell(mine["psnr"]), gain(over), verdict(over),
        ]
    ]  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- budgets

BUDGETS_HEADER = [
    "full steps", "row", "FLOPs ratio", "time ratio", "cache MiB", "PSNR dB", "LoopSeer less it dB", "nearer",
    "SSIM", "LoopSeer less it", "Lite0 distance", "LoopSeer less it",
]  # fmt: skip
MIB = 2**20


def budget_cells(record: Record) -> list[list[str]]:
    """A line for every row of every budget, LoopSeer first and the others by falling PSNR."""
    rows = by_label(record)
    lines = []
    for budget in record["budgets"]:
        others = baselines(budget, rows, lambda role: role != OURS)
        mine = [(one, rows[one["label"]]) for one in budget["rows"] if one["role"] == OURS and one["label"] in rows]
        for entry, row in [*mine, *others]:
            over = entry.get("differences", {})
            lines.append(
                [
                    str(budget["full_steps"]),
                    entry["name"],
                    number(row["flops_ratio"], 2, "x"),
                    number(row["latency"].get("processor_ratio") or row["latency"]["ratio"], 2, "x"),
                    number(row["kept_bytes"] / MIB, 1),
                    psnr_cell(row["psnr"]),
                    gain(over.get("psnr_db")),
                    percent(over.get("psnr_db", {}).get("wins")),
                    plus_minus(row.get("ssim"), 4),
                    gain(over.get("ssim"), 4),
                    plus_minus(row.get("lite0"), 2),
                    gain(over.get("lite0")),
                ]
            )
    return lines


# --------------------------------------------------------------------------------------------------------------- rivals

NOT_THERE = "–"


def rival_cells(record: Record) -> tuple[list[str], list[list[str]]]:
    """Header and a line for every other method: PSNR and FLOPs ratio at every budget, on the samples of the trial."""
    budgets = record["budgets"]
    header = ["method", *(f"{one['full_steps']} full steps, {number(one['flops_ratio'], 2, 'x')}" for one in budgets)]
    names: dict[tuple[str, str], list[str]] = {}
    for place, budget in enumerate(budgets):
        for tried in budget["tried"]:
            name = tried["name"].removesuffix(f"-{budget['full_steps']}")
            cells = names.setdefault((tried["role"], name), [NOT_THERE] * len(budgets))
            cells[place] = tried_cell(tried)
        for method, why in budget["not_tried"].items():
            names.setdefault((RIVAL, method), [NOT_THERE] * len(budgets))[place] = why
    order = sorted(names, key=lambda key: key[0] == RIVAL_ON_LIST)
    return header, [[name, *names[role, name]] for role, name in order]


def tried_cell(tried: Mapping[str, Any]) -> str:
    if "error" in tried:
        return "failed"
    psnr = "identical" if tried.get("psnr_db") is None else number(tried["psnr_db"], 1)
    return f"{psnr} ({number(tried['flops_ratio'], 2, 'x')})"


# -------------------------------------------------------------------------------------------------------------- studies

ABLATIONS_HEADER = [
    "what is changed", "to", "PSNR dB", "less the whole method dB", "over TaylorSeer's published rule dB", "full steps",
]  # fmt: skip
TRANSFER_HEADER = [
    "what is changed", "to", "TaylorSeer, published rule dB", "LoopSeer dB", "gain over it dB",
    "over TaylorSeer on the same full steps dB",
]  # fmt: skip


def ablation_cells(record: Record) -> list[list[str]]:
    """A line for every case that could be run."""
    return [
        [
            case["group"], case["label"], psnr_cell(row["psnr"]), _over(case, WHOLE), _over(case, PUBLISHED),
            " ".join(map(str, case["calibration"]["full_steps"])),
        ]
        for case, row, _ in _run(record)
    ]  # fmt: skip


def transfer_cells(record: Record) -> list[list[str]]:
    """A line for every case that could be run; the rows that it is set beside are of its own flags and prompts."""
    return [
        [
            case["group"], case["label"], psnr_cell(others.get(PUBLISHED, {}).get("psnr")), psnr_cell(row["psnr"]),
            _over(case, PUBLISHED), _over(case, ON_LIST),
        ]
        for case, row, others in _run(record)
    ]  # fmt: skip


def _run(record: Record) -> list[tuple[Row, Row, Mapping[str, Row]]]:
    """Cases with figures, each with its row and, by role, the rows of its contest that it is set beside."""
    found = []
    for number_of, contest in enumerate(record["contests"]):
        rows = by_label(contest)
        others = {role: rows[label] for role, label in contest["against"].items() if label in rows}
        own = [case for case in record["cases"] if "error" not in case and case["contest"] == number_of]
        found += [(case, rows[case["row"]], others) for case in own if case["row"] in rows]
    return found


def _over(case: Row, name: str) -> str:
    """What a case gains over one of the rows that it is set beside."""
    return gain(case["over"].get(name, {}).get("psnr_db"))


def not_run(record: Record) -> list[str]:
    """Cases without figures, and why."""
    return [
        f"{case['group']}, {case['label']}, not run: {case['error']}" for case in record["cases"] if "error" in case
    ]


def study_text(record: Record) -> str:
    """What the command prints of a study."""
    header, cells = (
        (ABLATIONS_HEADER, ablation_cells(record))
        if record["study"] == "ablations"
        else (TRANSFER_HEADER, transfer_cells(record))
    )
    return "\n\n".join([facts(record), text_table(header, cells), *not_run(record)])


# ---------------------------------------------------------------------------------------------------------------- text


def facts(record: Record) -> str:
    s = record["settings"]
    kind = "video" if "frames" in s else "image"
    weights = f" with the weights in {Path(s['ckpt']).name}" if s.get("ckpt") else ""
    samples = counted(record["num_samples"], kind)
    return f"{s['model']}{weights}, {s['num_steps']} steps, {samples}, --seed {record['seed']}"


def failures(record: Record) -> list[str]:
    """Rows that are not there, and why; of a study the cases, but not those that a model cannot have."""
    rows = [(row["name"], row["error"]) for row in record.get("rows", ()) if "error" in row]
    cases = [case for case in record.get("cases", ()) if case.get("failed")]
    rows += [(f"{case['group']}, {case['label']}", case["error"]) for case in cases]
    return [f"{name} failed: {why}" for name, why in rows]


def evidence_text(record: Record) -> str:
    """What the command prints."""
    parts: Sequence[str] = [
        facts(record),
        text_table(BUDGETS_HEADER, budget_cells(record)),
        text_table(HEADLINE_HEADER, headline_cells(record)),
        *([text_table(REFERENCE_HEADER, found)] if (found := reference_cells(record)) else []),
        *failures(record),
    ]
    return "\n\n".join(parts)


def roles_told() -> str:
    """What the rows are, for under a table."""
    return "; ".join(f"{role}: {what}" for role, what in ROLES.items())
