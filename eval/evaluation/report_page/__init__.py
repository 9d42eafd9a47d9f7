"""The report: one page of all records, to be opened from disk, without a server or a network.

Everything is in the page but the figures of the results folder and the pages of runs, which it leads to.
"""

import datetime
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cache_dic import UserError
from evaluation import page
from evaluation.families import FAMILIES
from evaluation.figures.published import METRICS
from evaluation.page import broken
from evaluation.report_page.plots import HEIGHT, WIDTH, look, plot_of
from evaluation.report_page.records import Stored, read_results
from evaluation.report_page.tables import (
    NOTHING,
    Kind,
    Line,
    Table,
    facts,
    has_method,
    kinds,
    others,
)  # fmt: skip
from seerkit.io.files import read_json, write_text
from seerkit.io.tables import counted

FIGURES = {
    "features": "Similarity of features from step to step, and errors of forecasts",
    "trajectories": "Paths of features in the plane of their first principal components, and forecasts beside them",
    "samples": "Samples side by side, a row for every method and a column for every prompt",
    "published": "Published quality over published speed-ups, for every source",
}
"""By the beginning of their names, what figures show."""
COMPARED = "compare-"
"""How names of records begin that a plot is drawn of."""
MOST_DEEP = 4
"""Folders between one that is given for runs and a page in it."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """What was not run: what, why, and what would make it."""

    what: str
    why: str
    command: str | None = None


def write_report(results: Path, out: Path, runs: Sequence[Path]) -> dict[str, int]:
    """Write the page, whole; what it holds, in numbers. UserError where there is no record."""
    import jinja2

    stored, unread = read_results(results)
    if not stored:
        raise UserError(f"{results} has no record that can be read; name the results folder of the repository")
    tables, rest = _tables(stored)
    compared = [one for one in stored if one.name not in rest and one.stem.startswith(COMPARED)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, Path(page.__file__).parent]),
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters["broken"] = broken
    unknown = [(one, rest[one.name], facts(one), others(one)) for one in stored if one.name in rest]
    lines = [line for table in (*tables, *(table for *_, made in unknown for table in made)) for line in table.lines]
    shown = {
        "stored": stored,
        "overview": _overview(stored),
        "tables": [table for table in tables if table.lines],
        "plots": [plot for one in compared if (plot := plot_of(one)) is not None],
        "figures": _figures(results, out),
        "others": unknown,
        "missing": _missing(stored, unread),
        "unmeasured": _unmeasured([one for one in stored if one.name not in rest]),
        "pages": _pages(runs, out),
        "making": [(one, one.command) for one in compared if one.command],
        "runs_named": [str(folder) for folder in runs],
        "backbones": sorted({line.backbone for line in lines}),
        "methods": sorted({line.method for line in lines}),
    }
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    text = environment.get_template("report.html.j2").render(
        **shown, look=look, width=WIDTH, height=HEIGHT, date=date, results=results.name, dash=NOTHING
    )
    write_text(out, text)
    return {
        "records": len(stored),
        "rows": len(lines),
        "plots": len(shown["plots"]),
        "pages of runs": len(shown["pages"]),
        "things not run": len(shown["missing"]) + len(shown["unmeasured"].lines),
    }


def _tables(stored: Sequence[Stored]) -> tuple[list[Table], dict[str, str]]:
    """The tables of known kinds, and by name the records of other kinds, with what is known of the reason."""
    taken: set[str] = set()
    tables, rest = [], {}
    for kind in kinds(stored):
        fitting = []
        for one in stored:
            if one.name in taken or not kind.takes(one):
                continue
            taken.add(one.name)
            if found := one.misfit(kind.form) or _fault(one, kind):
                rest[one.name] = f"It is not as its name says: {found}."
            else:
                fitting.append(one)
        tables += [table(fitting) for table in kind.tables]
    rest |= {one.name: "" for one in stored if one.name not in taken}
    return tables, rest


def _fault(one: Stored, kind: Kind) -> str | None:
    """Why there is no table of a record that has the form of its kind, as lists of unequal lengths; None where there is."""
    try:
        for table in kind.tables:
            table([one])
        if one.stem.startswith(COMPARED):
            plot_of(one)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        return f"{type(error).__name__} {error}"
    return None


# -------------------------------------------------------------------------------------------------------------- overview


def _overview(stored: Sequence[Stored]) -> Table:
    """A line for every backbone: what there is of it."""
    by_folder: dict[str, list[Stored]] = {}
    for one in stored:
        if one.folder not in ("paper", "metrics"):
            by_folder.setdefault(one.folder, []).append(one)
    lines = []
    for folder, records in by_folder.items():
        rows = [row for one in records for row in one.rows]
        failed = sum("error" in row for row in rows)
        dates = [date for one in records for run in one.runs if isinstance(date := run.conditions.get("date"), str)]
        devices = {str(run.conditions.get("device", NOTHING)) for one in records for run in one.runs}
        measured = sorted(device for device in devices if not device.startswith("none") and device != NOTHING)
        cells = [
            folder or "results",
            str(len(records)),
            str(len(rows) - failed),
            str(failed),
            ", ".join(measured) or NOTHING,
            max(dates, default=NOTHING)[:10],
        ]
        lines.append(Line(cells=cells, backbone=folder, method=NOTHING, place=records[0].place))
    return Table(
        id="overview",
        title="Overview",
        caption="What is recorded of every backbone.",
        header=["backbone", "records", "rows with figures", "rows that failed", "measured on", "newest"],
        lines=lines,
    )


# --------------------------------------------------------------------------------------------------------------- not run


def _expected() -> list[tuple[str, str, str]]:
    """Records that the repository makes: what it is, its name as a pattern, and the command."""
    found = []
    for family in FAMILIES.values():
        name, embedded = family.folder, family.flags.EMBEDDED
        found += [
            (f"{embedded}: every method compared", f"{name}/compare-{embedded}.json", "bash scripts/compare.sh"),
            (f"{embedded}: samples", f"{name}/{embedded}.json", f"bash scripts/run_{name}.sh --compare"),
            (f"{name}: operations at published size", f"{name}/flops.json", f"bash scripts/reproduce_{name}_flops.sh"),
            (
                f"{name}: times of steps",
                f"{name}/benchmark-*.json",
                f"python eval/benchmark.py --whole-run --out results/{name}/benchmark-cpu.json",
            ),
            (
                f"{embedded}: searched schedules",
                f"{name}/schedules.json",
                f"python eval/schedule_gains.py --model {embedded} --out results/{name}/schedules.json",
            ),
            (
                f"{embedded}: features of uncached runs",
                f"{name}/features-{embedded}.json",
                f"bash scripts/reproduce_figures.sh {embedded}",
            ),
            (
                f"{name}: published tables with own values",
                f"{name}/reproduced*.json",
                f"bash scripts/reproduce_{name}.sh",
            ),
            (f"{name}: latency and memory on a GPU", f"{name}/gpu-*.json", "bash scripts/measure_gpu.sh"),
        ]
    found.append(("validation of the measures of quality", "metrics/*.json", "python eval/validate_measures.py"))
    return found


def _missing(stored: Sequence[Stored], unread: Mapping[str, str]) -> list[Missing]:
    """Rows with errors, records that cannot be read, and records that are expected and not there."""
    found = [
        Missing(
            what=f"{one.name}: {row.get('label') or row.get('name', 'a row')}",
            why=str(row["error"]),
            command=one.command,
        )
        for one in stored
        for row in one.rows
        if "error" in row
    ]
    for one in stored:
        runs = one.value.get("runs")
        whys = [run.get("why") for run in runs.values() if isinstance(run, dict)] if isinstance(runs, dict) else []
        for why in dict.fromkeys(why for why in whys if why and isinstance(why, str)):
            what = f"{one.name}: {whys.count(why)} of {counted(len(whys), 'run')}"
            found.append(Missing(what=what, why=why, command=one.command))
    found += [Missing(what=name, why=why) for name, why in unread.items()]
    names = [Path(one.name) for one in stored]
    found += [
        Missing(what=what, why=f"there is no record {pattern}", command=command)
        for what, pattern, command in _expected()
        if not any(name.match(pattern) for name in names)
    ]
    return found


def _unmeasured(stored: Sequence[Stored]) -> Table:
    """Published rows by source, and how many of them have a value of ours."""
    counts = {
        (one.folder, row["method"], (row.get("schedule") or {}).get("interval")): one
        for one in stored
        if one.stem == "flops"
        for row in one.rows
        if isinstance(row.get("method"), str)
    }
    lines = []
    for one in stored:
        rows = [row for row in one.value.get("flops", ()) if isinstance(row, dict)] if one.folder == "paper" else []
        for source in dict.fromkeys(row.get("source", NOTHING) for row in rows):
            own = [row for row in rows if row.get("source", NOTHING) == source]
            is_counted = [
                row["method"] == "uncached" or (one.stem, row["method"], row.get("interval")) in counts for row in own
            ]
            merits = [METRICS[key].split(" ↑")[0].split(" ↓")[0] for key in METRICS if any(row.get(key) for row in own)]
            lacking = sorted({row["method"] for row in own if not has_method(row["method"])})
            cells = [
                source,
                one.stem,
                str(len(own)),
                f"{sum(is_counted)} of {len(own)}",
                ", ".join(merits) or NOTHING,
                ", ".join(lacking) or NOTHING,
            ]
            lines.append(Line(cells=cells, backbone=one.stem, method=NOTHING, place=one.runs[0].place))
    return Table(
        id="unmeasured",
        title="Published rows",
        caption="Published tables by source. Quality at published size takes published weights, which the repository does not "
        "hold; the reproduction scripts say what is missing.",
        header=[
            "source",
            "backbone",
            "rows",
            "operations counted here",
            "quality published",
            "methods that are not here",
        ],
        lines=lines,
    )


# ----------------------------------------------------------------------------------------------------- pages and figures


def _url(out: Path, file: Path) -> str:
    """Relative to the page, percent-encoded whatever the name holds."""
    return quote(os.fsencode(os.path.relpath(file.absolute(), out.absolute().parent)))


def _pages(runs: Iterable[Path], out: Path) -> list[dict[str, Any]]:
    """The pages that lie beside records of runs: where, of which model, with which rows."""
    found = []
    for folder in runs:
        depths = ["/".join(["*"] * deep) for deep in range(MOST_DEEP + 1)]
        for record_path in sorted(
            {path for depth in depths for path in folder.glob(f"{depth}/record.json".lstrip("/"))}
        ):
            made = record_path.with_name("index.html")
            try:
                record = read_json(record_path)
            except UserError:
                continue
            if made.is_file() and isinstance(record, dict) and isinstance(record.get("rows"), list):
                settings = record.get("settings") if isinstance(record.get("settings"), dict) else {}
                found.append(
                    {
                        "url": _url(out, made),
                        "folder": str(record_path.parent),
                        "model": str(settings.get("model", "a model")),
                        "told": f"{counted(len(record['rows']), 'row')}, {counted(record.get('num_samples') or 0, 'sample')}",
                    }
                )
    return found


def _figures(results: Path, out: Path) -> list[dict[str, str]]:
    """Figures of a results folder that are not drawn within the page."""
    found = []
    for start, what in FIGURES.items():
        for path in sorted(results.glob(f"[!.]*/{start}-*.png")):
            vector = path.with_suffix(".svg")
            found.append(
                {
                    "url": _url(out, path),
                    "vector": _url(out, vector) if vector.is_file() else _url(out, path),
                    "name": path.stem,
                    "backbone": path.parent.name,
                    "told": f"{what}: {path.stem.removeprefix(f'{start}-')}",
                }
            )
    return found
