"""Tables of published figures beside ours: Markdown, LaTeX, and CSV with a line for each figure."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from evaluation.cells import plus_minus
from evaluation.reproduction.protocols import COLUMNS, COSTS, Protocol, PublishedTable, measure_of
from evaluation.reproduction.rows import UNCACHED, Row
from evaluation.reproduction.running import VBENCH_FLICKERING, Plan
from evaluation.scoring.measures import find_measure
from evaluation.validation.rules import screened
from seerkit.io.files import write_text
from seerkit.io.tables import markdown_table, number

NOTHING = "–"
LATEX = str.maketrans(
    {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#", "$": r"\$", "±": r"$\pm$", "–": "--", "×": r"$\times$"}
)


@dataclass(frozen=True)
class Figure:
    """A published figure and ours, ready to show. difference: ours less the published one, of operations in percent."""

    heading: str
    published: str
    ours: str
    difference: str
    values: tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A score of the embedded model: as `evaluation.scoring.measures.Measure`."""

    name: str
    title: str
    digits: int
    meaning: str


FLICKERING = Extra(
    name=VBENCH_FLICKERING,
    title="VBench temporal_flickering %",
    digits=2,
    meaning="VBench temporal_flickering: of vbench 0.1.5, normalised, of the videos that stand still",
)


@dataclass(frozen=True)
class Line:
    """A row of a table: its name, figures by column, further ones of the embedded model, and notes."""

    row: Row
    figures: Sequence[Figure]
    embedded: Sequence[str]
    note: str


# -------------------------------------------------------------------------------------------------------------- values


def our_value(key: str, row: Row, table: PublishedTable, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a record has beside a published column: value, and low and high, or a text that is shown in place of them.

    A smoke run counts the published model, and its samples say nothing about that one's time and quality; where full steps are
    decided while sampling, it counts as many as the embedded model took.
    """
    if row.counted is None:
        return {"value": None}
    counts = record["counts"].get(row.counted.label)
    run = {} if record["is_smoke"] else _run_of(row, record)
    latency = run.get("latency") or {}
    if key in ("flops_T", "speedup"):
        flops = run.get("flops_T") or (counts or {}).get("flops_T")
        base = record["counts"][UNCACHED]["flops_T"]
        if flops is None:
            return _decided(key, row, record)
        return {"value": flops if key == "flops_T" else base / flops}
    if key in COSTS:
        return {"value": latency.get("median_s" if key == "latency_s" else "ratio")}
    measure = measure_of(key, table)
    return run.get("scores", {}).get(measure, {"value": None})


def _decided(key: str, row: Row, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Operations, or their ratio, where full steps are decided while sampling: of those that were taken, or else a range."""
    assert row.counted is not None
    counts = record["counts"].get(row.counted.label, {})
    if "flops_ratio_bounds" not in counts:
        return {"value": None}
    base = record["counts"][UNCACHED]["flops_T"]
    most, least = (base / ratio for ratio in counts["flops_ratio_bounds"])
    taken = taken_steps(row, record)
    if taken is None:
        ends = (least, most) if key == "flops_T" else (base / most, base / least)
        return {"value": None, "text": f"{ends[0]:.2f} to {ends[1]:.2f}"}
    flops = float(np.interp(taken, counts["full_steps_bounds"], (least, most)))
    value = flops if key == "flops_T" else base / flops
    return {"value": value, "text": f"{value:.{COLUMNS[key].digits}f} ({taken:.1f} full steps)"}


def taken_steps(row: Row, record: Mapping[str, Any]) -> float | None:
    """Full steps that were decided while sampling, in the mean over batches; None where there are none."""
    by_batch = _run_of(row, record).get("full_steps_by_batch")
    return fmean(map(len, by_batch)) if by_batch else None


def _run_of(row: Row, record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a record has of the run of a row's samples, nothing where there is none."""
    return record["runs"].get(row.sampled.label, {}) if row.sampled else {}


def score_cell(found: Mapping[str, Any], digits: int) -> str:
    """A value with half of its interval, or the text in place of them."""
    interval = {"mean": found["value"], "low": found.get("low"), "high": found.get("high")}
    return found.get("text") or found.get("note") or plus_minus(interval, digits)


def figure(key: str, row: Row, table: PublishedTable, record: Mapping[str, Any]) -> Figure:
    column, theirs = COLUMNS[key], row.published.get(key)
    found = our_value(key, row, table, record)
    ours = found["value"]
    shown = score_cell(found, column.digits)
    difference = NOTHING
    if ours is not None and theirs is not None and "text" not in found:
        difference = (
            f"{100 * (ours / theirs - 1):+.2f} %" if key == "flops_T" else f"{ours - theirs:+.{column.digits}f}"
        )
    heading = column.heading + (f" ({table.clip})" if key == "clip_score" else "")
    about = "about " if row.published.get("approximate") and theirs is not None else ""
    return Figure(heading, about + number(theirs, column.digits), shown, difference, (theirs, ours))


def embedded_cells(row: Row, record: Mapping[str, Any], measures: Sequence[Extra]) -> list[str]:
    """Of a smoke run: ratios of operations and latency, and scores, of the embedded model."""
    run = _run_of(row, record)
    cells = [number(run.get("flops_ratio"), 2, "x"), number((run.get("latency") or {}).get("ratio"), 2, "x")]
    for measure in measures:
        cells.append(score_cell(run.get("scores", {}).get(measure.name, {"value": None}), measure.digits))
    return cells


def notes(row: Row, record: Mapping[str, Any]) -> str:
    """What must be known of a row."""
    run = _run_of(row, record)
    found = [f"not run: {row.why}"] if row.why else []
    found += [f"not run: {run['why']}"] if run.get("why") and not lacks_all(record) else []
    found += [row.counted.note] if row.counted and row.counted.note else []
    found += [row.published[key] for key in ("discrepancy", "note") if row.published.get(key)]
    return "; ".join(found)


def lacks_all(record: Mapping[str, Any]) -> str | None:
    """Why nothing could be sampled, where one thing stands in the way of all runs."""
    reasons = {run["why"] for run in record["runs"].values()}
    return reasons.pop() if len(reasons) == 1 else None


# -------------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Sheet:
    """One published table with ours: title, header, lines of cells, and what stands under it."""

    title: str
    header: Sequence[str]
    cells: Sequence[Sequence[str]]
    below: Sequence[str]
    lines: Sequence[Line]
    source: str


def make_sheet(
    table: PublishedTable | None, rows: Sequence[Row], record: Mapping[str, Any], protocol: Protocol
) -> Sheet:
    """A table of rows that are all of one publication, or of methods of the user's own (None)."""
    smoke = record["is_smoke"]
    shown = table or _own_table(protocol)
    measures, left_out = extras(protocol, record) if smoke else ([], [])
    lines = [
        Line(
            row,
            [figure(key, row, shown, record) for key in shown.columns],
            embedded_cells(row, record, measures) if smoke else [],
            notes(row, record),
        )
        for row in rows
    ]
    header = ["run"]
    for one in lines[0].figures:
        header += [f"{one.heading}, published", "ours", "difference"]
    header += (
        [f"{record['model']}: {name}" for name in ("FLOPs ratio", "latency ratio", *(m.title for m in measures))]
        if smoke
        else []
    )
    header.append("note")
    cells = [
        [
            line.row.name,
            *(cell for one in line.figures for cell in (one.published, one.ours, one.difference)),
            *line.embedded,
            line.note or NOTHING,
        ]
        for line in lines
    ]
    title = f"{protocol.title}: {shown.title}"
    if smoke:
        title += f" – SMOKE RUN of {record['model']}, {record['num_samples']} samples"
    below = [*_below(shown, record, protocol, measures), *left_out]
    return Sheet(title, header, cells, below, lines, shown.source)


def extras(protocol: Protocol, record: Mapping[str, Any]) -> tuple[list[Extra], list[str]]:
    """What a smoke run shows of the embedded model, and lines on what it has scored and does not show."""
    measures = map(find_measure, protocol.embedded_measures)
    known = [Extra(name=m.name, title=m.title, digits=m.digits, meaning=m.meaning) for m in measures]
    scored = {extra.name: extra for extra in (*known, FLICKERING) if _is_scored(extra.name, record)}
    titles = {name: extra.title for name, extra in scored.items()}
    names, lines = screened(record["model"], titles, record["num_samples"])
    return [scored[name] for name in names], [f"{line[:1].upper()}{line[1:]}." for line in lines]


def _own_table(protocol: Protocol) -> PublishedTable:
    columns = list(dict.fromkeys(key for table in protocol.tables for key in table.columns))
    clip = next((table.clip for table in protocol.tables if table.clip), None)
    return PublishedTable(key="own", title="methods of your own", source="not published", columns=columns, clip=clip)


def _is_scored(name: str, record: Mapping[str, Any]) -> bool:
    return any(name in run["scores"] for run in record["runs"].values())


def _below(
    table: PublishedTable, record: Mapping[str, Any], protocol: Protocol, measures: Sequence[Extra]
) -> list[str]:
    made, counted = record["conditions"], record["counts_conditions"]
    decided = "a range where full steps are decided while sampling"
    if any(run.get("full_steps_by_batch") for run in record["runs"].values()) and record["is_smoke"]:
        decided = (
            f"where full steps are decided while sampling, of as many as {record['model']} took, in the mean, without what "
            "deciding costs: the published model may take more or fewer, and no difference is given"
        )
    found = [f"Published: {table.source} (results/paper/{protocol.name}.json)."]
    found += [f"Protocol: {'; '.join(protocol.facts)}."]
    found += [
        f"TFLOPs of ours: {protocol.model} at published size, counted on the meta device, 2 operations per multiply-add, "
        f"torch {counted['versions']['torch']}, {counted['date'][:10]}; {decided}."
    ]
    if record["is_smoke"]:
        found += [
            f"This is a smoke run: columns of {record['model']} are those of the embedded model with {record['num_samples']} "
            f"samples, on {made['device']}; they show that the whole way works and compare with no published figure."
        ]
        found += [f"{measure.title}: {measure.meaning}{_remarks(measure.name, record)}." for measure in measures]
    elif record["num_samples"] != protocol.num_samples:
        found += [f"Ours of {record['num_samples']} samples; published of {protocol.num_samples}."]
    if told := lacks_all(record):
        found += [f"Not run: {told}"]
    found += [f"Not scored: {reason}" for reason in record["not_scored"].values()]
    if not record["is_smoke"] and not lacks_all(record):
        others = {key: value for key, value in record["settings"].items() if value != protocol.flags[key]}
        told = ", ".join(f"{key} {value} instead of {protocol.flags[key]}" for key, value in others.items())
        found += [f"Sampled by another protocol: {told}."] if told else []
        found += [f"Prompts: {record['prompts']['note']}." if record["prompts"]["note"] else ""]
        found += [f"Ours on {made['device']}, {made['dtype']}, torch {made['versions']['torch']}, {made['date'][:10]}."]
    return [line for line in found if line]


def _remarks(name: str, record: Mapping[str, Any]) -> str:
    """What must be known of the figures of a measure: what they are distances from, and what the scores say of themselves."""
    scores = [run["scores"][name] for run in record["runs"].values() if name in run["scores"]]
    reference = [f"to {record['reference']}"] if any("num_features" in score for score in scores) else []
    return "".join(f"; {told}" for told in [*reference, *dict.fromkeys(s["remark"] for s in scores if "remark" in s)])


def sheets(record: Mapping[str, Any], plan: Plan) -> list[Sheet]:
    """A sheet for every table that has chosen rows."""
    tables = [*plan.protocol.tables, None]
    by_table = [(table, [row for row in plan.rows if row.table is table]) for table in tables]
    return [make_sheet(table, rows, record, plan.protocol) for table, rows in by_table if rows]


def markdown(sheet: Sheet) -> str:
    last = len(sheet.header) - 1
    table = markdown_table(sheet.header, [[_plain(cell) for cell in line] for line in sheet.cells], left=(0, last))
    return "\n\n".join([f"### {sheet.title}", table, *(f"*{line}*" for line in map(_plain, sheet.below))])


def _plain(cell: str) -> str:
    return " ".join(cell.replace("|", r"\|").split())


def latex(sheet: Sheet) -> str:
    """A table environment for the package booktabs, without the notes, which stand below it as a comment."""
    kinds = "l" + "r" * (len(sheet.header) - 2)
    lines = [[cell.translate(LATEX) for cell in line[:-1]] for line in (sheet.header, *sheet.cells)]
    body = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{sheet.title.translate(LATEX)}}}",
            rf"\begin{{tabular}}{{{kinds}}}",
            r"\toprule",
            body[0],
            r"\midrule",
            *body[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            *(f"% {' '.join(line.split())}" for line in sheet.below),
        ]
    )


def csv_text(made: Sequence[Sheet]) -> str:
    """A line for each figure of each row: table, row, quantity, published value and source, ours, difference, note."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["table", "row", "quantity", "published", "source", "ours", "difference", "note"])
    for sheet in made:
        for line in sheet.lines:
            for one in line.figures:
                theirs, ours = one.values
                difference = None if one.difference == NOTHING else ours - theirs  # type: ignore[operator]
                cells = ["" if value is None else repr(value) for value in (theirs, ours, difference)]
                source = line.row.published.get("source", "")
                writer.writerow(
                    [sheet.title, line.row.name, one.heading, cells[0], source, cells[1], cells[2], line.note]
                )
    return text.getvalue()


def write_tables(record: Mapping[str, Any], plan: Plan) -> tuple[str, dict[str, Path]]:
    """Write tables.md, tables.tex and tables.csv beside the record; the Markdown, and the files by kind."""
    made = sheets(record, plan)
    text = "\n\n".join(map(markdown, made))
    files = {kind: plan.out / f"tables.{kind}" for kind in ("md", "tex", "csv")}
    write_text(files["md"], text + "\n")
    write_text(files["tex"], "\n\n".join(map(latex, made)) + "\n")
    write_text(files["csv"], csv_text(made))
    return text, {"record": plan.out / "record.json", **files}
