"""Ablations and transfer: LoopSeer with a calibration that lacks something, or on what it was not calibrated for. Either is a
list of cases, each a calibration file and changed flags of sampling, that one comparison runs."""

import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cache_dic import UserError
from evaluation.backbones import PACKAGES, ROOT
from evaluation.beyond.calibrations import MADE_BY, Calibration, mapped, read, shipped
from evaluation.beyond.evidence import COMMAND, Evidence, short
from evaluation.beyond.paired import differences
from evaluation.beyond.rows import ON_LIST, PUBLISHED, WHOLE, fixed_rows, ours, published_list
from evaluation.beyond.samples import HELD_OUT, KINDS, UNUSUAL, check_unseen, drawn_by
from evaluation.calibration import even_steps
from evaluation.flags import EMBEDDED
from evaluation.variants import Setup, Variant
from seerkit.devices.distributed import World
from seerkit.io.files import read_json, write_json, write_text
from seerkit.io.records import conditions

ABLATIONS, TRANSFER = "ablations", "transfer"
UNITS = (
    "flops_ratio: uncached over this; psnr: dB, ssim and lite0 to the uncached samples of the same contest, means over frames; "
    "over: the case less another row of its contest, mean with Student's 95 % interval over samples; wins, losses: shares of "
    "the samples on which the case is nearer or further"
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A calibration and what it is used on. group: what is varied. flags: of sampling, that stand against those of the command.
    kind: of prompts.

    make: flags of the calibration command that make the file where it is not there. holds: what is written into the file, of
    one that is made of another.
    """

    group: str
    label: str
    calibration: Path
    make: tuple[str, ...] | None = None
    flags: tuple[str, ...] = ()
    kind: str = HELD_OUT
    holds: Mapping[str, Any] | None = field(default=None, compare=False)

    def command(self, model: str) -> list[str]:
        """What makes the calibration."""
        return [MADE_BY, "--model", model, *(self.make or ()), "--resume", "--out", str(self.calibration)]


# -------------------------------------------------------------------------------------------------------------- cases


def ablations(one: Calibration, model: str, setup: Setup, folder: Path, flags: Sequence[str] = ()) -> list[Case]:
    """The whole method, and calibrations for as many full steps with one part changed each. flags: of model and sampling."""
    listed = ("--list", _written(one.full_steps))
    form, basis, order = (str(one.data[name]) for name in ("engine", "basis", "max_order"))
    damping = f"{one.damping:g}"
    undamped = (*listed, "--form", form, "--basis", basis)
    fixed = (*undamped, "--damping", damping)
    lists = {
        "of the published rule": published_list(setup, one.count),
        "evenly spaced": even_steps(setup.num_steps, one.count),
        **{f"as {stage}": steps for stage, steps in one.lists_by_stage().items() if stage not in ("published", "even")},
    }
    budget = ("--full-steps", str(one.count))
    lacking: list[tuple[str, str, tuple[str, ...]]] = [
        *[
            ("weights", what, (*fixed, "--max-order", order, "--fit", fit))
            for fit, what in FITS.items()
            if fit != one.fit
        ],
        *[("form", other, (*listed, "--form", other)) for other in FORMS if other != form],
        *[("order", other, (*fixed, "--max-order", other)) for other in ORDERS[basis] if other != order],
        *[("basis", other, (*listed, "--form", form, "--basis", other)) for other in ORDERS if other != basis],
        *[
            ("damping", other, (*undamped, "--max-order", order, "--damping", other))
            for other in DAMPINGS
            if other != damping
        ],
        *[("full steps", name, ("--list", _written(steps))) for name, steps in lists.items()],
        *[("calibration samples", number, (*budget, "--samples", number)) for number in sample_counts(len(one.seen))],
        ("calibration seed", "1", (*budget, "--seed", "1")),
    ]
    if model not in EMBEDDED and one.seen:  # which has no prompts to draw from
        flags = (*flags, "--calibration-prompts", str(folder / PROMPTS))
    cases = [Case(group=WHOLE, label=WHOLE, calibration=one.path)]
    for group, label, own in lacking:
        if one.seen and "--samples" not in own:
            own = (*own, "--samples", str(len(one.seen)))
        if "--fit" not in own:
            own = (*own, "--fit", one.fit)
        name = f"{model}-{one.count}-{group}-{label}".replace("/", "-").replace(" ", "-").replace("'", "")
        cases.append(Case(group=group, label=label, calibration=folder / f"{name}.json", make=(*own, *flags)))
    return cases


PROMPTS = "prompts.txt"
"""In the folder of the calibrations: those of the whole method's samples, where a model has none of its own."""
FITS = {
    "none": "without corrections",
    "teacher": "fitted to uncached runs",
    "model": "fitted in the model of a run",
    "closed": "fitted to sampled runs",
}
"""Of corrections."""
FORMS = ("folded", "hidden", "output")
DAMPINGS = ("1", "0.7")
ORDERS = {"taylor": ("1", "2", "3", "4"), "newton": ("1", "2", "3"), "foca": ("2",)}


def sample_counts(usual: int) -> list[str]:
    """A quarter, half and twice as many calibration samples as usual, as --samples takes them; none where that is not known."""
    if not usual:
        return []
    return [str(count) for count in sorted({max(1, usual // 4), max(1, usual // 2), 2 * usual} - {usual})]


def _written(full_steps: Sequence[int]) -> str:
    """As --list takes them."""
    return ",".join(map(str, full_steps))


CHANGES: Mapping[str, Sequence[tuple[str, str, tuple[str, ...]]]] = {
    "dit": [("guidance weight", weight, ("--guidance-scale", weight)) for weight in ("1.5", "4")],
    "flux": [
        *[("guidance weight", weight, ("--guidance-scale", weight)) for weight in ("1.5", "5")],
        *[("resolution", f"{side}x{side}", ("--width", side, "--height", side)) for side in ("24", "48")],
    ],
    "hidream": [
        *[("guidance weight", weight, ("--guidance-scale", weight)) for weight in ("2", "7")],
        ("resolution", "24x24", ("--width", "24", "--height", "24")),
    ],
    "hunyuan_video": [("guidance weight", weight, ("--guidance-scale", weight)) for weight in ("2", "9")],
    "wan": [("guidance weight", weight, ("--guidance-scale", weight)) for weight in ("2", "8")],
}
"""By backbone, flags of sampling that a calibration is tried with: what is varied, in words, and the flags."""
OTHER_STEPS = (30, 40, 80)


def transfers(one: Calibration, model: str, setup: Setup, folder: Path, _: Sequence[str] = ()) -> list[Case]:
    """The calibration where it belongs, on other flags, numbers of steps and prompts, and another model's in its place."""
    cases = [Case(group=WHOLE, label="as calibrated", calibration=one.path)]
    cases += [
        Case(group=group, label=label, calibration=one.path, flags=flags)
        for group, label, flags in CHANGES[setup.package]
    ]
    for num_steps in (other for other in OTHER_STEPS if one.count < other != one.num_steps):
        path, flags = folder / f"{one.path.stem}-for-{num_steps}.json", ("--num-steps", str(num_steps))
        holds = mapped(one, num_steps)
        cases.append(Case(group="steps", label=f"{num_steps} steps", calibration=path, flags=flags, holds=holds))
    if model in EMBEDDED and drawn_by(model) in KINDS[UNUSUAL]:
        cases.append(Case(group="prompts", label=KINDS[UNUSUAL][drawn_by(model)], calibration=one.path, kind=UNUSUAL))
    return cases + list(_wrong(one, model, setup))


def _wrong(one: Calibration, model: str, setup: Setup) -> Iterator[Case]:
    """Those that ship for other embedded models, of as many full steps."""
    for other in (name for name in EMBEDDED if name != model and name in PACKAGES):
        found = shipped(other, setup.num_steps).get(one.count)
        if found is not None:
            yield Case(group="another model's calibration", label=other, calibration=found.path)


STUDIES: Mapping[str, Callable[[Calibration, str, Setup, Path, Sequence[str]], list[Case]]] = {
    ABLATIONS: ablations,
    TRANSFER: transfers,
}


# --------------------------------------------------------------------------------------------------------------- make


def make_missing(cases: Sequence[Case], model: str, prompts: Sequence[str] = ()) -> dict[Path, str]:
    """Make the calibrations that are not there as the case's command makes them, one after the other; by file, why one could
    not be made. prompts: of the whole method's calibration, for commands that name a file of them."""
    failed: dict[Path, str] = {}
    missing = [case for case in cases if case.make is not None and not _is_made(case, model)]
    if missing and not (ROOT / MADE_BY).is_file():
        raise UserError(f"{MADE_BY} is not there to make {missing[0].calibration}")
    for case in cases:
        if case.holds is not None:
            case.calibration.parent.mkdir(parents=True, exist_ok=True)
            write_json(case.calibration, dict(case.holds))
    for case in tqdm(missing, "calibrating", unit="file", disable=not missing):
        case.calibration.parent.mkdir(parents=True, exist_ok=True)
        if str(case.calibration.parent / PROMPTS) in (case.make or ()):
            write_text(case.calibration.parent / PROMPTS, "".join(f"{prompt}\n" for prompt in dict.fromkeys(prompts)))
        command = [sys.executable, str(ROOT / MADE_BY), *case.command(model)[1:]]
        done = subprocess.run(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, check=False)
        if done.returncode:
            failed[case.calibration] = (done.stderr.strip().splitlines() or ["it failed"])[-1]
    return failed


def _is_made(case: Case, model: str) -> bool:
    """Whether its file is what its command writes, and not of other flags of sampling."""
    try:
        made = read_json(case.calibration)
    except UserError:
        return False
    return isinstance(made, dict) and made.get("command_line") == shlex.join(["python", *case.command(model)])


# ---------------------------------------------------------------------------------------------------------------- run


@dataclass(frozen=True, kw_only=True)
class Contestants:
    """Cases that are sampled with the same flags and prompts. evidence: makes and runs their entries."""

    flags: tuple[str, ...]
    kind: str
    cases: list[Case]


def grouped(cases: Sequence[Case]) -> list[Contestants]:
    """Cases by what they are used on, in their order."""
    found: dict[tuple[tuple[str, ...], str], list[Case]] = {}
    for case in cases:
        found.setdefault((case.flags, case.kind), []).append(case)
    return [Contestants(flags=flags, kind=kind, cases=own) for (flags, kind), own in found.items()]


def plan(cases: Sequence[Case], model: str) -> list[dict[str, Any]]:
    """What --dry-run prints."""
    return [
        {
            "group": case.group,
            "label": case.label,
            "calibration": str(case.calibration),
            "flags": list(case.flags),
            "prompts": case.kind,
            **({"made_by": shlex.join(["python", *case.command(model)])} if case.make is not None else {}),
        }
        for case in cases
    ]


def run(
    study: str,
    count: int,
    cases: Sequence[Case],
    failed: Mapping[Path, str],
    open_evidence: Callable[[Contestants], Evidence],
    world: World,
    command_line: str,
    out: Path,
    seed: int,
) -> dict[str, Any]:
    """The record of a study, written to out/beyond.json. open_evidence: what samples cases that belong together."""
    told: list[dict[str, Any]] = []
    contests: list[dict[str, Any]] = []
    settings: dict[str, Any] | None = None
    for group in grouped(cases):
        try:
            made, found = _contest(group, failed, open_evidence, world)
        except UserError as error:
            told += [{**_identity(case), "error": str(error)} for case in group.cases]
            continue
        settings = settings or made["settings"]
        told += [{**one, "contest": len(contests)} for one in found]
        contests.append(made)
    if settings is None:
        raise UserError(f"no case of {study} could be run: {told[0]['error'] if told else 'there is none'}")
    record = {
        "command": COMMAND,
        "command_line": command_line,
        "study": study,
        "units": UNITS,
        "seed": seed,
        "settings": settings,
        "full_steps": count,
        "num_samples": contests[0]["num_samples"],
        "contests": contests,
        "cases": told,
        "conditions": contests[0]["conditions"],
    }
    write_json(out / "beyond.json", record)
    return record


def _identity(case: Case) -> dict[str, Any]:
    return {"group": case.group, "label": case.label, "flags": list(case.flags), "prompts": case.kind}


def _contest(
    group: Contestants,
    failed: Mapping[Path, str],
    open_evidence: Callable[[Contestants], Evidence],
    world: World,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A contest and its cases, as the record has them."""
    evidence = open_evidence(group)
    setup, args = evidence.setup, evidence.args
    calibrations = {case: read(case.calibration) for case in group.cases if case.calibration not in failed}
    check_unseen(args.model, evidence.prompts, calibrations.values())
    mine: dict[Case, Variant] = {
        case: ours(one, setup, f"loopseer, {case.label}") for case, one in calibrations.items()
    }
    first = next(iter(calibrations.values()), None)
    if first is None:
        raise UserError(next(iter(failed.values())))
    others = {one.role: one.variant for one in fixed_rows(first, None, setup) if one.role in (PUBLISHED, ON_LIST)}
    entries = evidence.entries(args, evidence.prompts, [*mine.values(), *others.values()])
    rows = evidence.sampled(entries, world)
    against = {role: variant.label for role, variant in others.items()}
    if (whole := next((case for case in mine if case.group == WHOLE), None)) is not None:
        against[WHOLE] = mine[whole].label
    told = []
    for case in group.cases:
        row = rows[mine[case].label] if case in mine else {"error": failed[case.calibration]}
        if "error" in row:
            told.append({**_identity(case), "error": row["error"], "failed": True})
            continue
        over = {
            name: differences(row, rows[label])
            for name, label in against.items()
            if "error" not in rows[label] and label != row["label"]
        }
        told.append({**_identity(case), "row": row["label"], "calibration": calibrations[case].told(), "over": over})
    job = entries[0].job
    made = {
        "flags": list(group.flags),
        "prompts": group.kind,
        "settings": job.settings,
        "num_samples": len(evidence.prompts),
        "against": against,
        "rows": [short(row) for row in rows.values()],
        "conditions": conditions(world.device, job.dtype),
    }
    return made, told


def slug(group: Contestants) -> str:
    """The folder of a contest in the output."""
    parts = [part.strip("-") for part in group.flags] + ([] if group.kind == HELD_OUT else [group.kind])
    return "-".join(parts) or "as-calibrated"
