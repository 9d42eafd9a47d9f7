"""The tables of the report: for every kind of record a list of lines, over all backbones."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cache_dic import METHODS
from evaluation.cells import (
    CHANGES,
    COSTS_HEADER,
    FLICKER_MEANING,
    INTERVALS,
    LITE0,
    LITE0_MEANING,
    MIB,
    PARTIAL_HEADER,
    PARTIAL_MEANING,
    change_cell,
    computed_cell,
    cost_cells,
    partial_cells,
    plus_minus,
)
from evaluation.families import FAMILIES
from evaluation.figures.features import FEATURES
from evaluation.figures.published import METRICS, PUBLISHED
from evaluation.forms import (
    BENCHMARK,
    COMPARISON,
    CONDITIONS,
    GAINS,
    INTERVAL,
    METHOD_COSTS,
    PARTIAL_STEPS,
    PSNR,
    SCORES,
    VALIDATION,
)
from evaluation.gpu import report as gpu
from evaluation.page import flat
from evaluation.paper import published_flops
from evaluation.report_page.records import Row, Stored
from evaluation.reproduction.protocols import PROTOCOLS
from evaluation.reproduction.rows import make_rows
from evaluation.reproduction.tables import figure, notes
from evaluation.validation import cells as verdicts
from evaluation.validation.rules import screened
from seerkit.io.records import Form, positive
from seerkit.io.report import MEANINGS
from seerkit.io.tables import number, psnr_cell

GIB = 2**30
LEADING = re.compile(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?")
NOTHING = number(None)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a table. cells: texts, the first of them names it. backbone, method: what it is filtered by.

    place: the anchor of its conditions. id: its own anchor, where something leads to it.
    """

    cells: Sequence[str]
    backbone: str
    method: str
    place: str
    id: str | None = None

    @cached_property
    def keys(self) -> list[float | None]:
        """What cells are sorted by: the number that they begin with, infinity where samples are identical; None for a text."""
        return [_key(cell) for cell in self.cells]


def _key(cell: str) -> float | None:
    if cell == "identical":
        return float("inf")
    found = LEADING.match(cell)
    return float(found[0]) if found else None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table. id: of its section. caption: what it shows. meanings: of its columns, by heading."""

    id: str
    title: str
    caption: str
    header: Sequence[str]
    lines: Sequence[Line]
    meanings: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @cached_property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers: those whose cells, dashes apart, all begin with one."""
        shown = [[line.keys[i] for line in self.lines if line.cells[i] != NOTHING] for i in range(len(self.header))]
        return [i > 0 and bool(keys) and None not in keys for i, keys in enumerate(shown)]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of record: how their names begin or end, what is read of them, and the tables of all of them."""

    pattern: str
    form: Form
    tables: Sequence[Callable[[Sequence[Stored]], Table]]

    def takes(self, stored: Stored) -> bool:
        return re.fullmatch(self.pattern, stored.name) is not None


def method_of(row: Row) -> str:
    """What a row is filtered by: the series of a comparison without its settings, a method, or the beginning of a label."""
    for key in ("series", "method"):
        if isinstance(row.get(key), str):
            return row[key].split(",")[0]
    return str(row.get("label") or row.get("name") or NOTHING).partition("-")[0]


def figures(stored: Stored) -> list[Row]:
    """Rows that did not fail."""
    return [row for row in stored.rows if "error" not in row]


# ------------------------------------------------------------------------------------------------------- eval/compare.py

INTERVAL_KEYS = {"ssim": ("SSIM", 3), "lite0": (LITE0, 1)}
"""Headings and digits of figures with intervals that are known; others have the name of their key."""
KNOWN = {"label", "name", "latency", "psnr", "samples", "computed"}


def compared(records: Sequence[Stored]) -> Table:
    """Every row of every comparison; a figure of merit is a column of its own, whatever records have."""
    rows = [(stored, i, row) for stored in records for i, row in enumerate(figures(stored))]
    keys = [key for key in dict.fromkeys(key for _, _, row in rows for key in row) if key not in KNOWN]
    merits = [key for key in keys if any(_is_interval(row.get(key)) for _, _, row in rows)]
    # The change of a score says more than the score, which differs from one sample to the next more than by method.
    merits = [key for key in merits if f"{key}_change" not in merits]
    shown, left_out = _screened(records, {key.removesuffix("_change"): _merit_heading(key) for key in merits})
    merits = [key for key in merits if key.removesuffix("_change") in set().union(*shown.values())]

    def line(stored: Stored, i: int, row: Row) -> Line:
        latency = row["latency"]
        cells = [
            row["name"],
            stored.folder,
            stored.model,
            computed_cell(row),
            number(row["flops_ratio"], 2, "x"),
            number(latency["ratio"], 2, "x"),
            number(latency.get("processor_ratio"), 2, "x"),
            number(row["kept_bytes"] / MIB, 1),
            psnr_cell(row["psnr"]),
            *(
                _merit_cell(row, key) if key.removesuffix("_change") in shown[stored.name] else NOTHING
                for key in merits
            ),
        ]
        return Line(
            cells=cells, backbone=stored.folder, method=method_of(row), place=stored.place_of(row),
            id=row_id(stored, i),
        )  # fmt: skip

    ratio = "of the median of the uncached batch timed beside it"
    return Table(
        id="compared",
        title="Every method on the embedded models",
        caption=f"Distances are to the uncached sample of the same noise. {INTERVALS}; {CHANGES}.",
        header=[
            "method", "backbone", "model", "full steps", "FLOPs ratio", "latency ratio", "processor time ratio", "cache MiB",
            "PSNR dB", *(_merit_heading(key) for key in merits),
        ],
        lines=[line(*row) for row in rows],
        meanings={
            **{name: MEANINGS[name] for name in ("full steps", "FLOPs ratio", "cache MiB", "PSNR dB")},
            "latency ratio": f"time {ratio} over that of this one",
            "processor time ratio": "the same of the time that processors spent, which other work on the machine changes less",
            **({LITE0: LITE0_MEANING.removeprefix(f"{LITE0}: ")} if "lite0" in merits else {}),
        },
        notes=left_out,
    )  # fmt: skip


def _screened(records: Sequence[Stored], headings: Mapping[str, str]) -> tuple[dict[str, list[str]], list[str]]:
    """By record, which figures of merit mean something on its model; and lines on the others, those of all models."""
    shown, lines = {}, []
    for stored in records:
        own = {key: heading for key, heading in headings.items() if any(row.get(key) for row in figures(stored))}
        shown[stored.name], told = screened(stored.model, own, stored.value["num_samples"])
        lines += told
    return shown, list(dict.fromkeys(lines))


def row_id(stored: Stored, number_of_row: int) -> str:
    """The anchor of a row that did not fail, which plots lead to."""
    return f"{stored.place}-row-{number_of_row}"


def _is_interval(value: Any) -> bool:
    return isinstance(value, dict) and {"mean", "low", "high"} <= value.keys()


def _merit_cell(row: Row, key: str) -> str:
    if not _is_interval(row.get(key)):
        return NOTHING
    if key.endswith("_change"):
        return change_cell(row, key.removesuffix("_change"))
    return plus_minus(row[key], INTERVAL_KEYS.get(key, ("", 2))[1])


def _merit_heading(key: str) -> str:
    words = key.replace("_", " ")
    if key.endswith("_change"):
        points = ", points" if key.endswith("accuracy_change") else ""
        return f"change of {words.removesuffix(' change')}{points}"
    return INTERVAL_KEYS.get(key, (words, 2))[0]


# ---------------------------------------------------------------------------------------------------- sampling commands

SAMPLED: Form = {
    "settings": {"model": str},
    "num_samples": int,
    "rows": [
        {
            "label": str, "full_steps": [int], "num_steps": int, "flops_ratio": positive, "kept_bytes": float,
            "latency": (None, {"ratio": (None, float)}), "psnr": (None, PSNR), **dict.fromkeys(SCORES, (None, INTERVAL)),
        }
    ],
}  # fmt: skip
SCORES_MEAN = {
    "score": "100 x cosine of image and prompt by the shipped in-domain scorer, not CLIP",
    "class accuracy %": "by the shipped in-domain classifier",
    "flicker": FLICKER_MEANING.removeprefix("flicker: "),
}


def sampled(records: Sequence[Stored]) -> Table:
    headings = dict(zip(SCORES, SCORES_MEAN, strict=True))
    shown, left_out = _screened(records, headings)
    scores = [key for key in SCORES if key in set().union(*shown.values())]

    def score(stored: Stored, row: Row, key: str) -> str:
        scale = 100 if key.endswith("accuracy") else 1
        return plus_minus(row.get(key), 1, scale=scale) if key in shown[stored.name] else NOTHING

    def line(stored: Stored, row: Row) -> Line:
        cells = [
            row["label"],
            stored.folder,
            stored.stem,
            f"{len(row['full_steps'])}/{row['num_steps']}",
            number(row["flops_ratio"], 2, "x"),
            number((row.get("latency") or {}).get("ratio"), 2, "x"),
            number(row["kept_bytes"] / MIB, 1),
            psnr_cell(row.get("psnr")),
            *(score(stored, row, key) for key in scores),
        ]
        return Line(cells=cells, backbone=stored.folder, method=method_of(row), place=stored.place_of(row))

    return Table(
        id="sampled",
        title="Samples of the sampling commands",
        caption="TaylorSeer and FORA as scripts/run_*.sh make them; held-out: prompts with labels that were not trained on. "
        f"{INTERVALS}.",
        header=[
            "method", "backbone", "record", "full steps", "FLOPs ratio", "latency ratio", "cache MiB", "PSNR dB",
            *(headings[key] for key in scores),
        ],
        lines=[line(stored, row) for stored in records for row in figures(stored)],
        meanings={
            **{name: MEANINGS[name] for name in ("full steps", "FLOPs ratio", "latency ratio", "cache MiB", "PSNR dB")},
            **{headings[key]: SCORES_MEAN[headings[key]] for key in scores},
        },
        notes=left_out,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- eval/flops.py

COUNTED: Form = {
    "rows": [
        {
            "label": str, "method": str, "full_steps": [int], "flops_T": positive, "flops_ratio": positive,
            "kept_bytes": {str: float}, "settings": {"model": str, "num_steps": int}, "schedule": (None, dict),
        }
    ]
}  # fmt: skip


def counted_table(paper: Mapping[str, Mapping[str, Any]]) -> Callable[[Sequence[Stored]], Table]:
    """paper: by backbone, what is published, in which counts are looked up by method and interval."""

    def table(records: Sequence[Stored]) -> Table:
        def line(stored: Stored, row: Row) -> Line:
            theirs = published_count(paper.get(stored.folder), row) if stored.stem == "flops" else None
            kept = (row["kept_bytes"].get(engine) for engine in ("folded", "layerwise"))
            cells = [
                row["label"],
                stored.folder,
                row["settings"]["model"],
                f"{len(row['full_steps'])}/{row['settings']['num_steps']}",
                number(row["flops_T"], 2),
                number(theirs, 2),
                NOTHING if theirs is None else f"{100 * (row['flops_T'] / theirs - 1):+.2f} %",
                number(row["flops_ratio"], 2, "x"),
                *(number(None if size is None else size / GIB, 3) for size in kept),
            ]
            return Line(cells=cells, backbone=stored.folder, method=method_of(row), place=stored.place_of(row))

        return Table(
            id="counted",
            title="Operations at published sizes",
            caption="Counted on the meta device, 2 operations per multiply-add, forecasts included; one sample.",
            header=[
                "method", "backbone", "model", "full steps", "TFLOPs", "published TFLOPs", "ours to published", "FLOPs ratio",
                "folded keeps GiB", "layerwise keeps GiB",
            ],
            lines=[line(stored, row) for stored in records for row in figures(stored)],
            meanings={
                "published TFLOPs": "of the first published row with this method and interval; works count by different rules, "
                "which the documents of the backbones explain",
                "folded keeps GiB": "features kept from one step to the next by the folded engine, of both guidance branches",
            },
        )  # fmt: skip

    return table


def published_count(facts: Mapping[str, Any] | None, row: Row) -> float | None:
    """TFLOPs that are published for a counted run; from the speed-up where the count itself is not."""
    if facts is None:
        return None
    match = published_flops(facts, row["method"], (row.get("schedule") or {}).get("interval"))
    if row["method"] == "uncached":
        match = published_flops(facts, "uncached")
    base = published_flops(facts, "uncached")
    if match is None or match.get("flops_T") is not None:
        return match and match["flops_T"]
    return base["flops_T"] / match["speedup"] if base and base.get("flops_T") and match.get("speedup") else None


# -------------------------------------------------------------------------------------- times and costs, random weights


def timed(records: Sequence[Stored]) -> Table:
    def line(stored: Stored) -> Line:
        record, s = stored.value, stored.settings
        full, forecast = record["full_step"]["plain"]["median_s"], record["forecast_step"]
        name, first = next(iter(forecast.items()))
        cells = [
            record["label"],
            stored.folder,
            s["model"] + (", reduced depth" if s["reduced_depth"] else ""),
            str(record["conditions"]["device"]),
            s["precision"],
            number(1e3 * full, 1),
            f"{100 * first['median_s'] / full:.2f} % ({name})",
            number(record["speedup"].get("measured"), 2, "x"),
            number(record["speedup"]["composed"], 2, "x"),
            number(record["speedup"]["flops"], 2, "x"),
        ]
        return Line(cells=cells, backbone=stored.folder, method=method_of(record), place=stored.runs[0].place)

    return Table(
        id="timed",
        title="Time of full and forecast steps",
        caption="Random weights; medians. A speed-up is a ratio within one process.",
        header=[
            "method", "backbone", "model", "device", "precision", "full step ms", "forecast step, of a full one",
            "speed-up measured", "speed-up composed", "FLOPs ratio",
        ],
        lines=[line(stored) for stored in records],
        meanings={
            "speed-up measured": "of whole runs; a dash where none was run",
            "speed-up composed": "of the timed steps put together to a run",
        },
    )  # fmt: skip


def of_cells(
    id: str,
    title: str,
    caption: str,
    header: Sequence[str],
    cells: Callable[[Mapping[str, Any]], Sequence[Sequence[str]]],
) -> Callable[[Sequence[Stored]], Table]:
    """A table of records whose cells are those of the documents; the label of a row comes first in them."""

    def table(records: Sequence[Stored]) -> Table:
        lines = [
            Line(
                cells=[first, stored.folder, stored.model, *rest], backbone=stored.folder,
                method=first.partition("-")[0], place=stored.runs[0].place,
            )
            for stored in records
            for first, *rest in cells(stored.value)
        ]  # fmt: skip
        return Table(
            id=id, title=title, caption=caption, header=[header[0], "backbone", "model", *header[1:]], lines=lines
        )

    return table


method_costs = of_cells(
    "costs",
    "What deciding and forecasting cost",
    "Random weights at full width; shares are of an uncached step.",
    COSTS_HEADER,
    cost_cells,
)
partial_steps = of_cells(
    "partial",
    "Steps that compute part of a model",
    f"Random weights at full width; shares are of an uncached step. {PARTIAL_MEANING}.",
    PARTIAL_HEADER,
    partial_cells,
)


# -------------------------------------------------------------------------------------------------- schedules, features


def schedules(records: Sequence[Stored]) -> Table:
    def line(stored: Stored, row: Row) -> Line:
        gain = (row.get("gain") or {}).get("published", {})
        mean, half = gain.get("mean_db"), gain.get("ci95_db")
        cells = [
            row["schedule"],
            stored.folder,
            stored.model,
            f"{row['count']}/{stored.value['num_steps']}",
            psnr_cell(row["psnr"]),
            NOTHING if mean is None else f"{mean:+.1f} ± {number(half, 1)}",
            " ".join(map(str, row["full_steps"])),
        ]
        return Line(cells=cells, backbone=stored.folder, method="taylorseer", place=stored.runs[0].place)

    return Table(
        id="schedules",
        title="Searched schedules",
        caption="The same predictor with full steps by the published rule, evenly spaced, and searched; on samples that no "
        "search has seen.",
        header=[
            "schedule",
            "backbone",
            "model",
            "full steps",
            "PSNR dB",
            "gain over the published rule, dB",
            "which steps",
        ],
        lines=[line(stored, row) for stored in records for row in figures(stored)],
    )


SHOWN_DISTANCES, SHOWN_INTERVAL, SHOWN_ORDERS = (1, 5, 10), 5, ("0", "1", "2")


def features(records: Sequence[Stored]) -> Table:
    def line(stored: Stored, site: Row) -> Line:
        alike, errors = site["similarity"], site["forecast_error"]
        cosines = dict(zip(alike["distance"], alike["mean"], strict=True))

        def error(order: str) -> str:
            found = errors["by_order"].get(order)
            if found is None or SHOWN_INTERVAL not in errors["interval"]:
                return NOTHING
            i = errors["interval"].index(SHOWN_INTERVAL)
            return plus_minus({key: found[key][i] for key in found}, 1, scale=100)

        cells = [
            f"{site['name']}, block {site['block']} ({site['depth']})",
            stored.folder,
            stored.model,
            *(number(cosines.get(distance), 4) for distance in SHOWN_DISTANCES),
            *(error(order) for order in SHOWN_ORDERS),
        ]
        return Line(cells=cells, backbone=stored.folder, method="taylorseer", place=stored.runs[0].place)

    errors = [f"error of {'reuse' if order == '0' else f'order {order}'}, %" for order in SHOWN_ORDERS]
    return Table(
        id="features",
        title="Features of uncached runs",
        caption=f"Forecasts with every {SHOWN_INTERVAL}th step full: mean of |forecast - feature| / |feature|, ± half of the "
        "95 % interval over samples. The figures below show all distances.",
        header=[
            "site", "backbone", "model", *(f"cosine at distance {distance}" for distance in SHOWN_DISTANCES), *errors
        ],
        lines=[line(stored, site) for stored in records for site in stored.value["sites"]],
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------------- published


def published(records: Sequence[Stored]) -> Table:
    merits = [key for key in METRICS if any(row.get(key) is not None for stored in records for row in _quoted(stored))]

    def line(stored: Stored, row: Row) -> Line:
        cells = [
            row["method"],
            stored.stem,
            number(row.get("interval"), 0),
            number(row.get("flops_T"), 2),
            number(row.get("speedup") or row.get("flops_speedup"), 2, "x"),
            number(row.get("latency_s"), 2),
            number(row.get("latency_speedup"), 2, "x"),
            *(number(row.get(key), 3) for key in merits),
            row["source"],
            str(row.get("confidence", NOTHING)),
        ]
        return Line(cells=cells, backbone=stored.stem, method=row["method"], place=stored.runs[0].place)

    return Table(
        id="published",
        title="Published figures",
        caption="Quoted, not measured here. Baselines of one name differ between works: compare within one source.",
        header=[
            "method", "backbone", "interval", "TFLOPs", "FLOPs speed-up", "seconds", "latency speed-up",
            *(METRICS[key] for key in merits), "source", "confidence",
        ],
        lines=[line(stored, row) for stored in records for row in _quoted(stored)],
        meanings={
            "confidence": "read: it stands in text of the work named; requoted: seen in another work, or in a note on it"
        },
    )  # fmt: skip


def _quoted(stored: Stored) -> list[Row]:
    return [*stored.value["flops"], *stored.value["latency"]]


# ------------------------------------------------------------------------------------------------------ eval/reproduce.py


def of_protocol(value: Any) -> bool:
    """the name of a protocol"""
    return isinstance(value, str) and value in PROTOCOLS


REPRODUCED: Form = {
    "protocol": of_protocol,
    "model": str, "is_smoke": bool, "num_samples": int, "counts": {str: dict}, "counts_conditions": CONDITIONS,
    "runs": {str: {"why": (None, str), "scores": dict}}, "not_scored": dict, "conditions": CONDITIONS,
}  # fmt: skip


def reproduced(records: Sequence[Stored]) -> Table:
    """A line for every published figure of the rows that a record counted."""

    def lines(stored: Stored) -> Iterator[Line]:
        record = stored.value
        protocol = PROTOCOLS[record["protocol"]]
        for row in make_rows(protocol, record["model"]):
            if row.table is None or (row.counted is not None and row.counted.label not in record["counts"]):
                continue
            told = notes(row, record) or NOTHING
            for key in row.table.columns:
                one = figure(key, row, row.table, record)
                if one.values != (None, None):
                    cells = [
                        row.name, stored.folder, row.table.title, one.heading, one.published, one.ours, one.difference,
                        record["model"] if record["is_smoke"] else protocol.model, told,
                    ]  # fmt: skip
                    method = row.published["method"]
                    yield Line(cells=cells, backbone=stored.folder, method=method, place=stored.runs[0].place)

    return Table(
        id="reproduced",
        title="Published tables beside ours",
        caption="Operations are those of the published model. Of a smoke run nothing else is: its samples are of the embedded "
        "model, whose time and quality compare with no published figure and are left out here.",
        header=[
            "run", "backbone", "table", "quantity", "published", "ours", "difference", "samples of", "note"
        ],
        lines=[line for stored in records for line in lines(stored)],
        meanings={"difference": "ours less the published figure; of TFLOPs in percent"},
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- eval/validate_measures.py

BACKBONE_OF = {family.flags.EMBEDDED: family.folder for family in FAMILIES.values()}


def of_measures(
    id: str,
    title: str,
    meaning: str,
    header: Sequence[str],
    cells: Callable[[Mapping[str, Any]], Iterable[Sequence[str]]],
) -> Callable[[Sequence[Stored]], Table]:
    """A table of the measures of every embedded model, with the cells of the documents."""

    def line(stored: Stored, cells: Sequence[str]) -> Line:
        backbone = BACKBONE_OF.get(stored.model, NOTHING)
        first, *rest = cells
        return Line(
            cells=[first, backbone, stored.model, *rest], backbone=backbone, method=NOTHING, place=stored.runs[0].place
        )

    return lambda records: Table(
        id=id,
        title=title,
        caption=f"{meaning}.",
        header=[header[0], "backbone", "model", *header[1:]],
        lines=[line(stored, one) for stored in records for one in cells(stored.value)],
    )


# --------------------------------------------------------------------------------------------------- eval/measure_gpu.py


def on_gpu(name: str) -> Callable[[Sequence[Stored]], Table]:
    """A table of `evaluation.gpu.report` over all records."""
    rows_of, what = gpu.TABLES[name]

    def table(records: Sequence[Stored]) -> Table:
        lines, header = [], [""]
        for stored in records:
            header, rows = rows_of(stored.value)
            for first, *rest in rows:
                lines.append(
                    Line(
                        cells=[first, stored.folder, stored.model, stored.value["device"], *rest],
                        backbone=stored.folder,
                        method=first.partition("-")[0] if header[0] == "method" else NOTHING,
                        place=stored.runs[0].place,
                    )
                )
        return Table(
            id=f"gpu-{name}",
            title=f"On a GPU: {what}",
            caption=f"Published size, random weights. {gpu.NOTES.get(name, 'Ceilings are measured')}.",
            header=[header[0] or "figure", "backbone", "model", "device", *header[1:]],
            lines=lines,
            notes=[
                f"{gpu.title(one.value)}: {'; '.join([gpu.facts(one.value), *gpu.gaps(one.value)])}" for one in records
            ],
        )

    return table


# ----------------------------------------------------------------------------------------------------------------- others

MOST_COLUMNS, LONGEST_CELL, LONGEST_LIST, DIGITS = 12, 120, 8, 5
NOT_ROWS = ("settings", "conditions", "config", "machine")
"""Objects of objects that are facts rather than rows."""


def others(stored: Stored) -> list[Table]:
    """What a record lists of which nothing more is known, each list a table of numbers and short texts."""
    return [
        made
        for key, inner in stored.value.items()
        if key not in NOT_ROWS and (listed := _listed(inner)) and (made := _other(stored, key, listed)) is not None
    ]


def _listed(value: Any) -> list[Row]:
    """Objects in a list, or in an object, by whose keys they are then called."""
    if isinstance(value, list):
        return [row for row in value if isinstance(row, dict)]
    if isinstance(value, dict) and len(value) > 1 and all(isinstance(inner, dict) for inner in value.values()):
        return [{"name": name, **inner} for name, inner in value.items()]
    return []


def _other(stored: Stored, key: str, listed: Sequence[Row]) -> Table | None:
    rows = [dict(_short(row)) for row in listed]
    header = list(dict.fromkeys(name for row in rows for name in row))
    first = [name for name in ("label", "method", "name") if name in header][:1]
    header = [*first, *(name for name in header if name not in first)][:MOST_COLUMNS]
    if not header:
        return None
    lines = [
        Line(
            cells=[row.get(name, NOTHING) for name in header], backbone=stored.folder, method=method_of(whole),
            place=stored.place_of(whole),
        )
        for row, whole in zip(rows, listed, strict=True)
    ]  # fmt: skip
    return Table(
        id=f"{stored.place}-{key}",
        title=stored.name,
        caption=f"{stored.name}, {key.replace('_', ' ')}: numbers and short texts as they stand there",
        header=[name.replace("_", " ") for name in header],
        lines=lines,
    )


def facts(stored: Stored) -> list[tuple[str, str]]:
    """Numbers and short texts of a record that are not of its rows, settings and conditions."""
    left_out = {*NOT_ROWS, "command", "command_line"}
    own = {key: value for key, value in stored.value.items() if key not in left_out and not _listed(value)}
    return _short(own)


def _short(value: Mapping[str, Any]) -> list[tuple[str, str]]:
    plain = {key: _rounded(inner) for key, inner in value.items() if key not in NOT_ROWS and not _is_long(inner)}
    return [(key, text) for key, text in flat(plain) if len(text) <= LONGEST_CELL]


def _is_long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > LONGEST_LIST


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items() if not _is_long(inner)}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


# ------------------------------------------------------------------------------------------------------------------ kinds


def kinds(stored: Iterable[Stored]) -> list[Kind]:
    """In the order of the report."""
    paper = {one.stem: one.value for one in stored if one.folder == "paper" and one.misfit(PUBLISHED) is None}
    backbone = "(?!paper/|metrics/)[^/]+/"
    return [
        Kind(pattern=backbone + r"compare-.*\.json", form=COMPARISON, tables=[compared]),
        Kind(pattern=backbone + r"flops.*\.json", form=COUNTED, tables=[counted_table(paper)]),
        Kind(pattern=backbone + r"reproduced.*\.json", form=REPRODUCED, tables=[reproduced]),
        Kind(pattern=backbone + r"benchmark-.*\.json", form=BENCHMARK, tables=[timed]),
        Kind(pattern=backbone + r"method-costs\.json", form=METHOD_COSTS, tables=[method_costs]),
        Kind(pattern=backbone + r"partial-steps\.json", form=PARTIAL_STEPS, tables=[partial_steps]),
        Kind(pattern=backbone + r"schedules\.json", form=GAINS, tables=[schedules]),
        Kind(pattern=backbone + r"features-.*\.json", form=FEATURES, tables=[features]),
        Kind(
            pattern=backbone + r"(?!reproduced|gpu|.*-(nearest|training)\.json|op-counts|fronts|busy-machine).*\.json",
            form=SAMPLED,
            tables=[sampled],
        ),
        Kind(
            pattern=r"metrics/.*\.json",
            form=VALIDATION,
            tables=[
                of_measures(
                    "measures",
                    "Which measures mean something",
                    verdicts.MEANING,
                    verdicts.HEADER,
                    verdicts.verdict_cells,
                ),
                of_measures(
                    "noise",
                    "How many samples it takes to tell caching methods apart",
                    verdicts.NOISE_MEANING,
                    verdicts.NOISE_HEADER,
                    verdicts.noise_cells,
                ),
            ],
        ),
        Kind(pattern=backbone + r"gpu-.*\.json", form=gpu.RECORD, tables=[*map(on_gpu, gpu.TABLES)]),
        Kind(pattern=r"paper/.*\.json", form=PUBLISHED, tables=[published]),
    ]


def has_method(name: str) -> bool:
    """Whether a published method is one of those here."""
    return name in METHODS or name == "fewer steps"
