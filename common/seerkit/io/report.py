"""What a sampling command reports of several caches on the same inputs: rows of a record, a table, a grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from PIL import Image

from cache_dic import Cache
from seerkit.io.media import labelled_grid
from seerkit.io.tables import full_steps_cell, number, psnr_cell, text_table
from seerkit.sampling.compare import Outcome, latency

Row = dict[str, Any]


def make_rows(
    caches: Mapping[str, Cache],
    num_steps: int,
    outcomes: Mapping[str, Outcome],
    counts: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]],
    earlier: Mapping[str, Row] = MappingProxyType({}),
) -> list[Row]:
    """A row of the record for every cache: cost, quality, and what was computed at every step.

    Where nothing was sampled now, because a resumed run had it all, what an `earlier` row measured stands, with its conditions;
    where there is none, the plan stands for what was computed, and there is no latency. counts: of `sampling_flops`. scores:
    what is added to each row.
    """
    timings = latency(dict(outcomes))
    rows = []
    for label, cache in caches.items():
        if not outcomes[label].record and label in earlier:
            rows.append({**earlier[label], **scores[label]})
            continue
        planned = {
            "method": cache.method,
            "engine": cache.engine,
            "num_steps": num_steps,
            "full_steps": counts[label]["full_steps"] or [],
            **{key: counts[label][key] for key in ("partial_steps",) if key in counts[label]},
            "kept_bytes": counts[label]["kept_bytes"][cache.engine],
        }
        rows.append(
            {
                "label": label,
                **{key: counts[label][key] for key in ("flops_T", "flops_T_uncached", "flops_ratio")},
                "latency": timings[label],
                "peak_bytes": outcomes[label].peak_bytes,
                **scores[label],
                **(outcomes[label].record or planned),
                **decided_costs(outcomes[label].decided, counts[label]),
            }
        )
    return rows


def decided_costs(batches: Sequence[Mapping[str, Any]], count: Mapping[str, Any]) -> dict[str, Any]:
    """What full steps cost that were decided while sampling, in the mean over batches, and which they were by batch.

    batches: of `Outcome.decided`. count: of `sampling_flops`. Nothing where there are no batches.
    """
    if not batches:
        return {}
    by_batch = {"full_steps_by_batch": [batch["full_steps"] for batch in batches]}
    if any(batch["flops"] is None for batch in batches):
        return by_batch
    ratio = sum(batch["flops_uncached"] for batch in batches) / sum(batch["flops"] for batch in batches)
    return {"flops_ratio": ratio, "flops_T": count["flops_T_uncached"] / ratio, **by_batch}


def _full_steps(row: Row) -> str:
    """Full steps of all, in the mean and the range over batches where they differ, and partial ones of the last batch."""
    counts = [len(steps) for steps in row.get("full_steps_by_batch", [row["full_steps"]])]
    partial = len(row.get("partial_steps", ()))
    return full_steps_cell(sum(counts) / len(counts), min(counts), max(counts), row["num_steps"], partial)


MEANINGS = {
    "method": "the cache: N steps from one full step to the next, W full steps at the start, O the highest order forecast",
    "full steps": "steps at which the whole model was computed, of all; partial ones computed some of its sites or tokens",
    "TFLOPs": "10¹² operations for one batch, 2 per multiply-add, forecasts included",
    "FLOPs ratio": "operations of the uncached run over those of this one",
    "latency s": "seconds for one batch, the median (and the range) over batches; a first call includes work that is done once",
    "latency ratio": "median of the uncached run over that of this one",
    "cache MiB": "the most features kept from one step to the next",
    "PSNR dB": "peak signal-to-noise ratio to the uncached samples, the mean over those that differ: nearness, not quality",
}
"""The columns of every comparison, by heading."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a run says of its rows, the same in the terminal and on the page.

    title: the model. facts: of the workload, one line. extra: further columns of ready cells by heading.
    """

    title: str
    facts: str
    rows: Sequence[Row]
    extra: Mapping[str, Sequence[str]]
    explanations: Sequence[str]

    @property
    def header(self) -> list[str]:
        return [*MEANINGS, *self.extra]

    @property
    def cells(self) -> list[list[str]]:
        return [[*line, *(column[i] for column in self.extra.values())] for i, line in enumerate(_cells(self.rows))]

    def text(self) -> str:
        """As the terminal shows it."""
        latency = f"latency s: {MEANINGS['latency s']}"
        return "\n".join(
            [f"{self.title}, {self.facts}", text_table(self.header, self.cells), latency, *self.explanations]
        )


def _cells(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of `MEANINGS`, a list for every row."""
    lines = []
    for row in rows:
        timing = row["latency"]
        lines.append(
            [
                row["label"],
                _full_steps(row),
                number(row["flops_T"], 3),
                number(row["flops_ratio"], 2, "x"),
                seconds(timing),
                number(timing["ratio"] if timing else None, 2, "x"),
                number(row["kept_bytes"] / 2**20, 1),
                psnr_cell(row["psnr"]),
            ]
        )
    return lines


def seconds(timing: Mapping[str, Any] | None) -> str:
    """Seconds per batch of `seerkit.sampling.compare.latency` as a cell: median and range, or the one first call there was."""
    if timing is None:
        return "–"
    if timing.get("first_call"):
        return f"{timing['median_s']:.2f} (first call)"
    return f"{timing['median_s']:.2f} ({timing['min_s']:.2f}-{timing['max_s']:.2f})"


def draw_grid(images: Mapping[str, np.ndarray], columns: Sequence[str]) -> Image.Image:
    """A row for every cache, its label in two lines; a column for each of the first samples."""
    rows = [pixels[: len(columns)] for pixels in images.values()]
    return labelled_grid(rows, [label.replace("-", "\n", 1) for label in images], columns)
