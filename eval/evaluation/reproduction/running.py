"""Runs of published tables: counted at published size, sampled, scored; everything is kept, so that a killed run goes on.

OUT/samples/steps-50/          a job's folder: samples, record and page of all runs of so many steps
OUT/samples/steps-50/state/    beside the job's own: LABEL/decided/000000.json, what a batch decided while it was sampled
OUT/scores/                    what was read of the samples (`evaluation.scoring.read`)
OUT/record.json                what is known of every run
"""

import argparse
import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cache_dic import Cache, UserError
from evaluation import fid_samples, images, videos
from evaluation.backbones import count_caches
from evaluation.families import FAMILIES, Family, fid_job
from evaluation.fid_samples import FidJob, class_of
from evaluation.images import ImageJob
from evaluation.jobs import Job
from evaluation.reproduction import real
from evaluation.reproduction.protocols import Protocol
from evaluation.reproduction.real import RealImages
from evaluation.reproduction.rows import UNCACHED, Row, Run, runs_of
from evaluation.scoring.measures import find_measure
from evaluation.scoring.read import Task, check_task, score
from evaluation.scoring.samples import Samples, open_samples
from evaluation.vbench import FLICKERING
from evaluation.vbench_dimensions import DIMENSIONS, missing
from evaluation.vbench_scores import score_videos
from evaluation.videos import VideoJob
from seerkit.devices.distributed import World, on_main
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.claims import state_folder
from seerkit.io.files import read_json, writable_directory, writable_file, write_json
from seerkit.io.records import conditions
from seerkit.io.report import decided_costs
from seerkit.sampling.flops import run_flops
from seerkit.text.prompts import Batch

VBENCH, VBENCH_FLICKERING = "vbench", "vbench-flickering"
TIMED = 4  # images of DiT that are made one at a time, for their latency


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a command line asks for.

    args: of the model that is sampled, its defaults filled in. rows: chosen ones. prompts, names: one per sample; names of
    videos alone, which VBench finds by them in its list full_info. command_line: what repeats it.
    """

    protocol: Protocol
    args: argparse.Namespace
    rows: Sequence[Row]
    prompts: list[str]
    names: list[str] | None
    prompts_note: str | None
    full_info: Path | None
    command_line: str

    @property
    def is_smoke(self) -> bool:
        return self.args.model == self.protocol.embedded

    @property
    def family(self) -> Family:
        return FAMILIES[self.protocol.package]

    @property
    def out(self) -> Path:
        return self.args.output_dir

    @property
    def num_samples(self) -> int:
        return self.args.num_samples

    @property
    def runs(self) -> dict[str, Run]:
        """What is sampled, by label."""
        return runs_of(self.rows, "sampled", self.protocol.num_steps)

    @property
    def measures(self) -> list[str]:
        chosen = self.protocol.embedded_measures if self.is_smoke else self.protocol.measures
        return [name for name in chosen if name != VBENCH]


COMMAND = "eval/reproduce.py"


def check_ahead(plan: Plan, copied: Path | None) -> None:
    """UserError for what would end a run after hours of sampling: a reference that is none, folders that cannot be written."""
    reference_of(plan)
    writable_directory(plan.out)
    if copied:
        writable_file(copied)


# -------------------------------------------------------------------------------------------------------------- count


def count(protocol: Protocol, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """By label, operations and kept bytes of one sample by the published model."""
    found: dict[str, dict[str, Any]] = {}
    runs = runs_of(rows, "counted", protocol.num_steps)
    for num_steps in sorted({run.num_steps for run in runs.values()}):
        alike = {label: run.cache for label, run in runs.items() if run.num_steps == num_steps}
        dtype = torch_dtype(protocol.flags["precision"])
        counts = count_caches(protocol.model, alike, num_steps, dtype, **protocol.sizes)
        for label, counted in counts.items():
            found[label] = {
                "num_steps": num_steps,
                **{key: counted[key] for key in ("flops_T", "full_steps")},
                **{key: counted[key] for key in ("full_steps_bounds", "flops_ratio_bounds") if key in counted},
                "partial_steps": counted.get("partial_steps"),
                "kept_bytes": counted["kept_bytes"][alike[label].engine],
                "flops_T_uncached": counted["flops_T_uncached"],
            }
    return found


# ------------------------------------------------------------------------------------------------------------- sample


@dataclass(frozen=True)
class Sampled:
    """The samples of a run: where they are, and what its job recorded of it; or why there are none."""

    path: Path | None = None
    row: Mapping[str, Any] | None = None
    why: str | None = None


def sample(plan: Plan, world: World) -> dict[str, Sampled]:
    """By label of a run, its samples; a run that fails leaves its error."""
    runs = plan.runs
    if told := on_main(world, lambda: missing_files(plan, runs, world)):
        return {label: Sampled(why=told) for label in runs}
    groups: dict[int, dict[str, Run]] = {}
    for label, run in runs.items():
        groups.setdefault(run.num_steps, {})[label] = run
    found: dict[str, Sampled] = {}
    for num_steps, alike in sorted(groups.items(), reverse=True):
        if plan.protocol.package == "dit":
            found |= _sample_classes(plan, num_steps, alike, world)
        elif plan.is_smoke or plan.family.makes == "image":
            found |= _sample_prompts(plan, num_steps, alike, world)
        else:  # one after the other, so that the latents of one alone are on the disk
            for label, run in alike.items():
                found |= _sample_prompts(plan, num_steps, {label: run}, world)
    return {label: found[label] for label in runs}


def missing_files(plan: Plan, runs: Mapping[str, Run], world: World) -> str | None:
    """What of the model is not there, in words; looked for once, or downloaded."""
    first = next(iter(runs.values()))
    try:
        if plan.protocol.package == "dit":
            _fid_job(plan, first).find()
        else:
            _job(plan, first.num_steps, {first.label: first}).find(world)
    except (UserError, FileNotFoundError) as error:
        return str(error)
    return None


def _caches(runs: Mapping[str, Run]) -> dict[str, Cache]:
    return {run.cache.label: run.cache for run in runs.values()}


def _args(plan: Plan, num_steps: int, **more: Any) -> argparse.Namespace:
    args = copy.copy(plan.args)
    args.num_steps, args.output_dir = num_steps, plan.out / "samples" / f"steps-{num_steps}"
    args.resume, args.json, args.dry_run = True, True, False
    for name, value in more.items():
        setattr(args, name, value)
    return args


def _job(plan: Plan, num_steps: int, runs: Mapping[str, Run]) -> Job:
    return plan.family.job(COMMAND, _args(plan, num_steps), plan.prompts, _caches(runs), plan.names)


class _Noting:
    """A pipeline that notes what was decided while a batch was sampled, so that a killed run knows it when it goes on."""

    def __init__(self, pipeline: Any, out: Path) -> None:
        self._pipeline, self._out = pipeline, out

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def sample(self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None]) -> tuple[Tensor, Any]:
        latents, run = self._pipeline.sample(cache, batch, callback)
        if cache.decides:
            flops, uncached = run_flops(run)
            decided = {"full_steps": run.record()["full_steps"], "flops": flops, "flops_uncached": uncached}
            write_json(_note_path(self._out, cache.label, batch), decided)
        return latents, run


def _note_path(out: Path, label: str, batch: Batch) -> Path:
    return state_folder(out, label) / "decided" / f"{batch.indices[0]:06d}.json"


def _decided(job: Job, label: str, count: Mapping[str, Any]) -> dict[str, Any]:
    """What full steps cost that were decided while sampling, by this process or an earlier one."""
    paths = [_note_path(job.out, label, batch) for batch in job.batches()]
    return decided_costs([read_json(path) for path in paths if path.is_file()], count)


def _make(job: Job, world: World) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """By label, the rows of a job's record with what they were measured on, on the first process; and why there is none."""
    counts = job.counts()
    make: Any = images.make if isinstance(job, ImageJob) else videos.make
    make_pipeline: Any = job.make_pipeline  # type: ignore[attr-defined]
    noting: Any = {"make_pipeline": lambda *given: _Noting(make_pipeline(*given), job.out)}
    record, outcomes = make(replace(job, **noting), counts, world)
    rows = {
        row["label"]: {"conditions": record["conditions"], **row, **_decided(job, row["label"], counts[row["label"]])}
        for row in (record["rows"] if record else ())
        if row["label"] in counts
    }
    return rows, {label: f"{len(o.failed)} samples came out not finite" for label, o in outcomes.items() if o.failed}


def _sample_prompts(plan: Plan, num_steps: int, runs: Mapping[str, Run], world: World) -> dict[str, Sampled]:
    job = _job(plan, num_steps, runs)
    assert isinstance(job, ImageJob | VideoJob)
    rows, failed = _make(job, world)
    return {
        label: Sampled(why=failed[run.cache.label])
        if run.cache.label in failed
        else Sampled(job.out / run.cache.label, rows.get(run.cache.label))
        for label, run in runs.items()
    }


def _fid_job(plan: Plan, run: Run) -> FidJob:
    args = _args(plan, run.num_steps, num_fid_samples=plan.num_samples, balanced=False, tf32=True)
    return fid_job(COMMAND, args, run.cache)


def _sample_classes(plan: Plan, num_steps: int, runs: Mapping[str, Run], world: World) -> dict[str, Sampled]:
    """Of DiT: the samples of every run into an .npz, and some more, one at a time, that are timed."""
    found: dict[str, Sampled] = {}
    for label, run in runs.items():
        job = _fid_job(plan, run)
        try:
            fid_samples.make(job, world)
        except UserError as error:
            found[label] = Sampled(why=str(error))
        else:
            found[label] = Sampled(fid_samples.npz_path(job.args.output_dir / job.name, plan.num_samples))
    made = {label: run for label, run in runs.items() if found[label].path}
    if not made:
        return found
    timed = _args(plan, num_steps, batch_size=1, classes=",".join(map(str, range(TIMED))))
    timed.output_dir = plan.out / "samples" / f"timed-{num_steps}"
    prompts = plan.family.prompts(timed)
    rows, _ = _make(plan.family.job(COMMAND, timed, prompts, _caches(made)), world)
    return found | {label: Sampled(found[label].path, rows.get(run.cache.label)) for label, run in made.items()}


def sampled_classes(args: argparse.Namespace, names: Sequence[str], count: int) -> list[str]:
    """The class of every sample of DiT."""
    return [names[class_of(index, args.seed, len(names), balanced=False)] for index in range(count)]


# -------------------------------------------------------------------------------------------------------------- score


def score_runs(
    plan: Plan, sampled: Mapping[str, Sampled], world: World
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """By label, the scores of a run by measure, on the first process; and by measure, why it is not taken of any run."""
    work = plan.out / "scores"
    reference = reference_of(plan)
    opened = {label: open_samples(one.path) for label, one in sampled.items() if one.path}
    scores: dict[str, dict[str, Any]] = {label: {} for label in opened}
    reasons: dict[str, str] = {}
    for label, samples in opened.items():
        task = Task(
            samples=samples,
            reference=reference,
            pairs=_pairs(label, opened),
            prompts=plan.prompts,
        )
        possible = []
        for name in plan.measures:
            needs = find_measure(name).needs
            if "pairs" in needs and label == UNCACHED:
                continue
            if lines := check_task(task, [name]):
                reasons[name] = "; ".join(lines)
            else:
                possible.append(name)
        scores[label] |= score(task, possible, work, world, quiet=plan.args.quiet)
    if world.is_main and plan.full_info is not None:
        by_vbench, reason = score_by_vbench(plan, sampled)
        for label, found in by_vbench.items():
            scores[label] |= found
        reasons |= {VBENCH: reason} if reason else {}
    return scores, reasons


def reference_of(plan: Plan) -> Samples | None:
    """The set that --reference names; of a smoke run without it, real images of the model's own kind, where a measure asks."""
    if plan.args.reference:
        return open_samples(plan.args.reference)
    return RealImages() if plan.is_smoke and real.MEASURE in plan.measures else None


def score_by_vbench(plan: Plan, sampled: Mapping[str, Sampled]) -> tuple[dict[str, dict[str, Any]], str | None]:
    """By label, what VBench says of a run, and why it says nothing where it cannot.

    Of a smoke run that is the one dimension without weights, of the uncached run and of TaylorSeer; the others are named with
    what they lack.
    """
    smoke = plan.is_smoke
    wanted = {label: one.path for label, one in sampled.items() if one.path and (not smoke or _is_shown(label))}
    scores: dict[str, dict[str, Any]] = {}
    for label, path in wanted.items():
        try:
            found = score_videos(
                path,
                plan.full_info,
                [FLICKERING] if smoke else list(DIMENSIONS),
                plan.out / "scores" / "vbench" / label,
                samples_per_prompt=1 if smoke else plan.protocol.samples_per_prompt,
                device=plan.args.device,
            )
        except (UserError, FileNotFoundError) as error:
            return scores, str(error)
        if told := "; ".join(found["errors"].values()):
            return scores, told
        if smoke:
            one = found["dimensions"][FLICKERING]
            scores[label] = {
                VBENCH_FLICKERING: {"value": one["normalised_percent"], "num": one["num_videos"], "facts": found}
            }
        else:
            scores[label] = {VBENCH: {"value": found["total"], "num": plan.num_samples, "facts": found}}
    return scores, lacking_dimensions() if smoke else None


def lacking_dimensions() -> str | None:
    """VBench's dimensions that could not be scored here, with the files that each lacks."""
    needing: dict[str, list[str]] = {}
    for name in DIMENSIONS:
        for line in missing(name):
            needing.setdefault(line, []).append(name)
    told = [f"VBench's {', '.join(names)} for want of {line}" for line, names in needing.items()]
    return "; ".join(told) or None


def _is_shown(label: str) -> bool:
    return label.startswith((UNCACHED, "taylorseer"))


def _pairs(label: str, opened: Mapping[str, Samples]) -> Samples | None:
    return opened.get(UNCACHED) if label != UNCACHED else None


# ------------------------------------------------------------------------------------------------------------- record


def reproduce(plan: Plan, world: World) -> dict[str, Any] | None:
    """Count, sample, score; the record, on the first process."""
    counted = on_main(world, lambda: count(plan.protocol, plan.rows))
    sampled = sample(plan, world)
    scores, reasons = score_runs(plan, sampled, world)
    if not world.is_main:
        return None
    runs = plan.runs
    base = sampled.get(UNCACHED, Sampled()).row
    record = {
        "command": COMMAND,
        "command_line": plan.command_line,
        "protocol": plan.protocol.name,
        "model": plan.args.model,
        "published_model": plan.protocol.model,
        "is_smoke": plan.is_smoke,
        "num_samples": plan.num_samples,
        "prompts": {
            "list": None if plan.protocol.prompts is None else plan.protocol.prompts.name,
            "note": plan.prompts_note,
            "digest": hashlib.sha256("\n".join(plan.prompts).encode()).hexdigest()[:16],
        },
        "settings": {name: getattr(plan.args, name) for name in plan.protocol.flags if not plan.is_smoke},
        "counts": counted,
        "runs": {label: _run_record(runs[label], one, base, scores.get(label, {})) for label, one in sampled.items()},
        "reference": _told(reference_of(plan)),
        "not_scored": reasons,
        "conditions": conditions(world.device, torch_dtype(plan.args.precision or "fp32")),
        "counts_conditions": conditions(torch.device("meta"), torch_dtype(plan.protocol.flags["precision"])),
    }
    write_json(plan.out / "record.json", record)
    return record


def _told(reference: Samples | None) -> str | None:
    return reference.images if isinstance(reference, RealImages) else reference and str(reference.path)


def _run_record(run: Run, one: Sampled, base: Mapping[str, Any] | None, scores: Mapping[str, Any]) -> dict[str, Any]:
    row = one.row or {}
    own, uncached = ((found or {}).get("latency") for found in (row, base))
    ratio = uncached["median_s"] / own["median_s"] if own and uncached else None
    kept = (
        "flops_T", "flops_ratio", "full_steps", "full_steps_by_batch", "partial_steps", "kept_bytes", "peak_bytes",
        "conditions",
    )  # fmt: skip
    return {
        "label": run.cache.label,
        "num_steps": run.num_steps,
        "note": run.note,
        "why": one.why,
        **{key: row[key] for key in kept if key in row},
        "latency": own and {**own, "ratio": ratio},
        "scores": dict(scores),
    }
