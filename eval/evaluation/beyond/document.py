"""Tables of docs/beyond.md from the records of eval/beyond.py; needs no torch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.backbones import PACKAGES
from evaluation.beyond import by_sample, calibrations
from evaluation.beyond.cells import (
    ABLATIONS_HEADER,
    BUDGETS_HEADER,
    HEADLINE_HEADER,
    MEANING,
    REFERENCE_HEADER,
    TIME_MEANING,
    TRANSFER_HEADER,
    ablation_cells,
    budget_cells,
    facts,
    failures,
    gain,
    headline_cells,
    not_run,
    reference_cells,
    rival_cells,
    roles_told,
    transfer_cells,
)
from evaluation.cells import INTERVALS, LITE0_MEANING
from evaluation.families import FAMILIES
from evaluation.flags import EMBEDDED
from evaluation.forms import BEYOND, STUDY
from evaluation.validation.candidates import CANDIDATES, PAIRED
from evaluation.validation.rules import Verdict, verdict
from seerkit.io.records import Form, read_record
from seerkit.io.tables import markdown_table

COMMAND = "eval/beyond.py"
OFFICIAL = "not run on official weights"
OFFICIAL_MODELS = ("flux-dev", "hidream-full", "hunyuan-video", "wan-t2v-1.3B", "DiT-XL/2")

Record = Mapping[str, Any]


def records(results: Path, suffix: str, form: Form) -> dict[str, Record]:
    """By embedded model, the records that there are. suffix: of a study's name."""
    found = {}
    for model in EMBEDDED:
        path = results / FAMILIES[PACKAGES[model]].folder / f"beyond-{model}{suffix}.json"
        if path.is_file():
            found[model] = read_record(path, form, f"{COMMAND} --model {model}")
    return found


def missing(found: Mapping[str, Record]) -> list[str]:
    """Models without a record, in words."""
    others = [model for model in EMBEDDED if model not in found]
    return [f"not run on {', '.join(others)}"] if others else []


def noted(*facts_told: str) -> str:
    """The line of conditions under a table."""
    return "*" + "; ".join(facts_told) + "*"


def made_on(record: Record) -> str:
    c = record["conditions"]
    return f"{facts(record)}, {c['device']}, {c['dtype']}, torch {c['versions']['torch']}, {c['date'][:10]}"


def unpaired(found: Mapping[str, Record], results: Path) -> str:
    """The measures that need no uncached sample beside each and passed their validation for as many samples."""
    passed = [
        f"{one.title} on {model}"
        for model, record in found.items()
        for one in CANDIDATES[model]
        if one.kind != PAIRED and verdict(model, one.name, record["num_samples"], results / "metrics") == Verdict(True)
    ]
    return f"of the measures that compare no pairs {', '.join(passed) or 'none'} passed validation for as many samples"


def headline(results: Path) -> str:
    """What LoopSeer gains on every model at every budget."""
    found = records(results, "", BEYOND)
    if not found:
        return f"Not run; `python {COMMAND} --results results` does, of one model."
    cells = [line for record in found.values() for line in headline_cells(record)]
    official = [[model, *[""] * (len(HEADLINE_HEADER) - 2), OFFICIAL] for model in OFFICIAL_MODELS]
    return "\n\n".join(
        [
            markdown_table(HEADLINE_HEADER, cells + official, left=(0, 9, 13)),
            noted(MEANING, unpaired(found, results), *map(made_on, found.values()), *missing(found)),
        ]
    )


def reference(results: Path) -> str:
    """LoopSeer beside the published setting that it is to reach with fewer full steps."""
    found = records(results, "", BEYOND)
    if not found:
        return f"Not run; `python {COMMAND} --results results` does, of one model."
    cells = [line for record in found.values() for line in reference_cells(record)]
    return "\n\n".join([markdown_table(REFERENCE_HEADER, cells, left=(0, 1)), noted(MEANING, *missing(found))])


def of_model(model: str) -> Callable[[Path], str]:
    """What makes the table of a model's rows at every budget, with both figures."""

    def table(results: Path) -> str:
        found = records(results, "", BEYOND).get(model)
        if found is None:
            return f"Not run; `python {COMMAND} --model {model} --results results` does."
        folder = FAMILIES[PACKAGES[model]].folder
        figures = [
            f"![{what}](../results/{folder}/{name})"
            for what, name in (
                ("PSNR over the operations saved", f"beyond-{model}.png"),
                ("full steps of every budget", f"beyond-{model}-lists.png"),
            )
            if (results / folder / name).is_file()
        ]
        told = [roles_told(), MEANING, TIME_MEANING, INTERVALS, LITE0_MEANING, made_on(found), *failures(found)]
        return "\n\n".join([markdown_table(BUDGETS_HEADER, budget_cells(found), left=(0, 1)), noted(*told), *figures])

    return table


def rivals_of(model: str) -> Callable[[Path], str]:
    """What makes the table of the other methods that were tried for a model."""

    def table(results: Path) -> str:
        found = records(results, "", BEYOND).get(model)
        if found is None or not found["num_rival_samples"]:
            return f"Not run; `python {COMMAND} --model {model} --results results` does."
        header, cells = rival_cells(found)
        told = (
            f"PSNR in dB and FLOPs ratio on {found['num_rival_samples']} samples, others than those of the tables above"
        )
        return "\n\n".join([markdown_table(header, cells), noted(told)])

    return table


def study(name: str) -> Callable[[Path], str]:
    """What makes the table of a study, models one after the other."""
    header, cells_of, left = {
        "ablations": (ABLATIONS_HEADER, ablation_cells, (0, 1, 2, 6)),
        "transfer": (TRANSFER_HEADER, transfer_cells, (0, 1, 2)),
    }[name]

    def table(results: Path) -> str:
        found = records(results, f"-{name}", STUDY)
        if not found:
            return f"Not run; `python {COMMAND} --{name} --results results` does, of one model."
        cells: Sequence[Sequence[str]] = [
            [model, *line] for model, record in found.items() for line in cells_of(record)
        ]
        lines = [f"{made_on(record)}, {record['full_steps']} full steps" for record in found.values()]
        why = [line for record in found.values() for line in not_run(record)]
        return "\n\n".join(
            [markdown_table(["model", *header], cells, left=left), noted(MEANING, *lines, *why, *missing(found))]
        )

    return table


STAGES = {
    "published": "published rule",
    "even": "even",
    "searched schedule": "searched schedule",
    "proposed": "proposed",
    "proposed again": "again",
    "form": "every form",
    "damping": "damped",
    "moved": "moved",
    "fitted": "corrected",
}
"""Of a search, with their headings."""


def search(_: Path) -> str:
    """What every stage of the search gave, of all calibrations that ship."""
    cells = []
    for one in calibrations.every():
        stages, data = one.similarity_by_stage(), one.data
        found = [f"{stages[stage]:.1f}" if stage in stages else "–" for stage in STAGES]
        weights = f"{data['engine']}, {data['basis']} {data['max_order']}"
        weights += f", damping {one.damping:g}" if one.damping != 1 else ""
        gain = one.gain_of_corrections()
        unseen = "–" if gain is None else f"{gain:+.2f}"
        cells.append([data["model"], str(one.count), str(len(one.seen)), *found, unseen, one.fit, weights])
    header = ["model", "full steps", "samples", *STAGES.values(), "by corrections, unseen", "fit", "form and weights"]
    told = (
        "energy of the uncached final latents over that of the difference, in dB, the mean over the calibration samples, of "
        "the best after each stage, and of the two lists that every search begins with, at the published order; –: there was "
        "no such stage, as where the list was given, or no such list; by corrections, unseen: the most that samples gained by "
        "corrections that were fitted to others"
    )
    return "\n\n".join([markdown_table(header, cells, left=(0, len(header) - 2, len(header) - 1)), noted(told)])


def number_by_sample(results: Path) -> str:
    """What could be gained by giving every sample its own number of full steps."""
    found = records(results, "", BEYOND)
    if not found:
        return f"Not run; `python {COMMAND} --results results` does, of one model."
    header = [
        "model", "full steps", "gained at most dB", "gained by how difficult a sample is dB", "with full steps in the mean",
    ]  # fmt: skip
    cells = [
        [
            model, str(one["full_steps"]), f"{one['most_db']:+.2f}", gain(one["by_difficulty"]),
            f"{one['mean_full_steps']:.1f}",
        ]
        for model, record in found.items()
        for one in by_sample.gains(record)
    ]  # fmt: skip
    told = (
        "over the same number of full steps for every sample, in dB of PSNR to the uncached sample; at most: chosen among "
        "LoopSeer's budgets by one who knows how each ends; by how difficult a sample is: by one who knows its PSNR with the "
        "fewest full steps, and from other samples what follows from that; ±: half of Student's 95 % interval"
    )
    return "\n\n".join([markdown_table(header, cells, left=(0,)), noted(told, *missing(found))])


TABLES: dict[str, Callable[[Path], str]] = {
    "beyond": headline,
    "beyond-reference": reference,
    "beyond-search": search,
    "beyond-by-sample": number_by_sample,
    **{f"{FAMILIES[PACKAGES[model]].folder}-beyond": of_model(model) for model in EMBEDDED},
    **{f"{FAMILIES[PACKAGES[model]].folder}-beyond-rivals": rivals_of(model) for model in EMBEDDED},
    "beyond-ablations": study("ablations"),
    "beyond-transfer": study("transfer"),
}
"""By the name of their markers."""
