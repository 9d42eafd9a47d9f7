"""LoopSeer at every budget beside what it is to beat, on the same samples; the record with its differences sample by sample.

OUT/rivals/     every other method on a few samples of their own, of which the best join
OUT/            a comparison as eval/compare.py makes one
OUT/beyond.json the record
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cache_dic import UserError, make_cache
from evaluation.beyond.calibrations import Calibration
from evaluation.beyond.choosing import Ratios, best, choices, placed_rivals, screened
from evaluation.beyond.paired import differences
from evaluation.beyond.rivals import OURS, Choice
from evaluation.beyond.rows import (
    FITTED,
    ON_LIST,
    PUBLISHED,
    RIVAL,
    RIVAL_ON_LIST,
    ROLES,
    Placed,
    fewer_steps,
    fixed_rows,
    reference,
)
from evaluation.comparing import Contest, Entry, entries_of, report
from evaluation.families import Family
from evaluation.variants import UNCACHED, Setup, Variant
from seerkit.devices.distributed import World
from seerkit.io.files import write_json
from seerkit.io.records import conditions

COMMAND = "eval/beyond.py"
FOLDER = "beyond"
DIGITS = 4
"""Of values of samples in a record."""
LEFT_OUT = ("full_steps_by_batch", "peak_bytes", "changes", "groups")
"""Of the rows of a comparison, what the record does not keep."""
UNITS = (
    "flops_ratio: uncached over this; psnr: dB, ssim and lite0 to the uncached samples, means over frames; differences: "
    "LoopSeer less the row, mean with Student's 95 % interval over samples; wins, losses: shares of the samples on which it is "
    "nearer or further; parts: dB of the first row less the second"
)
PARTS = {
    "whole": (OURS, PUBLISHED),
    "schedule": (ON_LIST, PUBLISHED),
    "forecast": (OURS, ON_LIST),
    "forecast on the published list": (FITTED, PUBLISHED),
    "schedule after the forecast": (OURS, FITTED),
}
"""What the gain over TaylorSeer's published rule is made of: the first role's samples less the second's."""


@dataclass(kw_only=True)
class Budget:
    """A number of full steps. fitted: LoopSeer's calibration for the published rule's list, if there is one. ratio: LoopSeer's
    FLOPs ratio there. tried: rivals on samples of their own."""

    calibration: Calibration
    fitted: Calibration | None = None
    ratio: float = 0.0
    placed: list[Placed] = field(default_factory=list)
    rivals: list[Placed] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def count(self) -> int:
        return self.calibration.count


@dataclass(kw_only=True)
class Evidence:
    """What a command line asks for.

    args, prompts: of the samples that are judged; rival_args, rival_prompts: of those on which the best rivals are found, None
    for no rivals. kept: how many of either role. seed: of the command. command_line: what repeats it.
    """

    args: argparse.Namespace
    prompts: list[str]
    rival_args: argparse.Namespace | None
    rival_prompts: list[str]
    family: Family
    setup: Setup
    budgets: list[Budget]
    kept: int
    seed: int
    resume: bool
    command_line: str

    def prepare(self) -> None:
        """The rows that need no sampling to be named, and what LoopSeer costs."""
        for budget in self.budgets:
            budget.placed = list(fixed_rows(budget.calibration, budget.fitted, self.setup))
        entries = self.entries(self.args, self.prompts, [budget.placed[0].variant for budget in self.budgets])
        for budget in self.budgets:
            ours = next(one for one in entries if one.label == budget.placed[0].variant.label)
            if ours.error is not None:
                raise UserError(f"LoopSeer with {budget.calibration.path.name}: {ours.error}")
            budget.ratio = entries[0].counts["flops_T"] / ours.counts["flops_T"]
            budget.placed += fewer_steps(budget.ratio, self.setup)

    def entries(
        self, args: argparse.Namespace, prompts: list[str], variants: Iterable[Variant], folder: str = FOLDER
    ) -> list[Entry]:
        """The uncached one, and every variant once."""
        found = {UNCACHED: Variant(label=UNCACHED, series=UNCACHED, cache=make_cache(UNCACHED))}
        for variant in variants:
            found.setdefault(variant.label, variant)
        return entries_of([*found.values()], COMMAND, args, self.family, prompts, folder=folder)

    # ------------------------------------------------------------------------------------------------------ rivals

    def find_rivals(self, world: World) -> None:
        """Choose settings for every budget, sample them, and keep the best."""
        assert self.rival_args is not None
        uncached = self.contest(self.entries(self.rival_args, self.rival_prompts, ()), world)
        uncached.prepare()
        ratios = Ratios(uncached, uncached.job.out / "ratios.json")
        for budget in self.budgets:
            budget.choices = choices(ratios, self.setup, budget.ratio)
            budget.rivals = placed_rivals(budget.choices, budget.calibration, self.setup)
        ratios.close()
        variants = [one.variant for budget in self.budgets for one in budget.rivals]
        entries = self.entries(self.rival_args, self.rival_prompts, variants)
        rows = self.sampled(entries, world)
        for budget in self.budgets:
            budget.tried = screened(budget.rivals, rows)
            budget.placed += best(budget.rivals, rows, self.kept)

    def contest(self, entries: list[Entry], world: World) -> Contest:
        return Contest(entries=entries, world=world, resume=self.resume)

    def sampled(self, entries: list[Entry], world: World) -> dict[str, dict[str, Any]]:
        """By label, the rows of a contest."""
        contest = self.contest(entries, world)
        contest.prepare()
        contest.run()
        record = report(contest, self.command_line)
        return {row["label"]: row for row in record["rows"] if row["label"] in {entry.label for entry in entries}}

    # ---------------------------------------------------------------------------------------------------- evidence

    def variants(self) -> list[Variant]:
        return [one.variant for budget in self.budgets for one in budget.placed] + [reference(self.setup)]

    def run(self, world: World) -> dict[str, Any]:
        """The record, written beside the comparison."""
        if self.rival_args is not None:
            self.find_rivals(world)
        entries = self.entries(self.args, self.prompts, self.variants())
        rows = self.sampled(entries, world)
        job = entries[0].job
        against = reference(self.setup).label
        record = {
            "command": COMMAND,
            "command_line": self.command_line,
            "settings": job.settings,
            "units": UNITS,
            "seed": self.seed,
            "roles": ROLES,
            "num_samples": len(self.prompts),
            "batch_size": job.args.batch_size,
            "num_rival_samples": len(self.rival_prompts) if self.rival_args is not None else 0,
            "reference": against,
            "scores": {},
            "budgets": [budget_record(budget, rows, against) for budget in self.budgets],
            "rows": [short(row) for row in rows.values()],
            "conditions": conditions(world.device, job.dtype),
        }
        write_json(job.out / "beyond.json", record)
        return record


# -------------------------------------------------------------------------------------------------------------- record


def short(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a comparison as the record keeps it, values of samples to DIGITS digits after the point."""
    kept = {key: value for key, value in row.items() if key not in LEFT_OUT}
    if "samples" in kept:
        kept["samples"] = {
            key: [None if value is None else round(value, DIGITS) for value in values]
            for key, values in row["samples"].items()
        }
    return {"groups": [], **kept}


def budget_record(budget: Budget, rows: Mapping[str, Mapping[str, Any]], against: str) -> dict[str, Any]:
    """What a budget came to; `against`: label of the published setting that LoopSeer is set beside at every budget."""
    by_role: dict[str, Mapping[str, Any]] = {}
    for one in budget.placed:
        row = rows.get(one.variant.label, {})
        if "error" not in row and row:
            by_role.setdefault(one.role, row)
    mine = by_role.get(OURS)
    placed = [{"role": one.role, "label": one.variant.label, "name": one.variant.name} for one in budget.placed]
    return {
        "full_steps": budget.count,
        "flops_ratio": budget.ratio,
        "calibration": budget.calibration.told(),
        "rows": [
            {**one, **_over(mine, rows.get(one["label"]))} if one["role"] != OURS else one for one in placed
        ],
        "over_reference": _over(mine, rows.get(against)).get("differences"),
        "parts": {
            name: differences(by_role[a], by_role[b])["psnr_db"]
            for name, (a, b) in PARTS.items()
            if a in by_role and b in by_role
        },
        "tried": budget.tried,
        "not_tried": {one.method: one.why for one in budget.choices if one.why is not None},
    }  # fmt: skip


def _over(mine: Mapping[str, Any] | None, row: Mapping[str, Any] | None) -> dict[str, Any]:
    """The differences of LoopSeer from a row, or why there are none."""
    for one in (mine, row):
        if one is None or "error" in one:
            return {"error": (one or {}).get("error", "it was not sampled")}
    return {"differences": differences(mine or {}, row or {})}


def plan(evidence: Evidence, entries: Sequence[Entry]) -> dict[str, Any]:
    """What --dry-run prints, before any rival has been sampled."""
    counts = {entry.label: entry.counts.get("flops_T") for entry in entries}
    base = counts[UNCACHED]
    return {
        "settings": entries[0].job.settings,
        "output_dir": str(entries[0].job.out),
        "num_samples": len(evidence.prompts),
        "num_rival_samples": len(evidence.rival_prompts) if evidence.rival_args is not None else 0,
        "uncached_runs": sum(made / base for made in counts.values() if made),
        "budgets": [
            {
                "full_steps": budget.count,
                "flops_ratio": budget.ratio,
                "calibration": str(budget.calibration.path),
                "rows": [
                    {
                        "role": one.role,
                        "name": one.variant.name,
                        "flops_ratio": (made := counts.get(one.variant.label)) and base / made,
                        **({"error": one.variant.error} if one.variant.error else {}),
                    }
                    for one in budget.placed
                ],
                "and_of_others": {RIVAL: evidence.kept, RIVAL_ON_LIST: evidence.kept} if evidence.rival_args else {},
            }
            for budget in evidence.budgets
        ],
    }
