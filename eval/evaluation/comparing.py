"""Every way to sample on the same inputs: what the samples cost, and how far they are from the uncached ones; row by row.

All of it is kept whole as it is made, so that a killed run goes on where it stopped, and methods asked for later join:

    OUT/LABEL/                        the samples of a variant; of videos, those that the page shows
    OUT/state/LABEL/claim.json        what they were made with
    OUT/state/LABEL/batches/*.json    of every batch: seconds, beside those of the uncached batch, and what was computed
    OUT/state/LABEL/measured/*.json   of every sample: distances to the uncached one, and scores
    OUT/record.json, pareto.png, pareto.svg, index.html
"""

import argparse
import copy
import os
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cache_dic import UserError
from evaluation.cells import CHANGES, FLICKER_MEANING, INTERVALS, LITE0, LITE0_MEANING, flicker_columns, plus_minus
from evaluation.families import Family
from evaluation.images import DENSEST, Folder, ImageJob, Judge, decode_finite
from evaluation.jobs import Job, check_memory, digests, output_folder, workload_in_words
from evaluation.metrics import SSIM_WINDOW, finite_or_none, psnr, ssim, summarize_samples
from evaluation.page import Shown, readable, write_page
from evaluation.pareto import draw_pareto
from evaluation.perceptual import lite0_distance, unit_features
from evaluation.validation.rules import screened
from evaluation.variants import UNCACHED, Variant
from evaluation.video_metrics import flicker
from evaluation.videos import FLICKER_FRAMES, VideoFolder, VideoJob
from seerkit.devices.distributed import World
from seerkit.devices.timing import peak_memory, reset_peak_memory, spread, timed
from seerkit.io.claims import claim_samples, state_folder
from seerkit.io.computed import partly_computed
from seerkit.io.files import check_space, clear_partial, read_json, writable_or_gone, write_json
from seerkit.io.images import image_path
from seerkit.io.media import finite_rows, video_to_uint8
from seerkit.io.records import conditions
from seerkit.io.report import Comparison, Row
from seerkit.io.tables import counted
from seerkit.sampling.flops import run_flops
from seerkit.text.prompts import Batch

SHOWN = 4  # videos of a variant that are written for the page
OF_RUN = (
    "method", "engine", "schedule", "forecaster", "num_steps", "full_steps", "partial_steps", "left_out_of", "tokens_computed",
    "max_weight", "sites",
)  # fmt: skip
"""What a row takes from the record of a run."""


class Samples(Protocol):
    """The samples of one variant."""

    def has(self, index: int) -> bool:
        """Whether a sample is there, or has been measured and is not needed any more."""

    def write(self, batch: Batch, latents: Tensor) -> list[int]:
        """Keep the samples of latents (B, ...); the numbers of those that are not finite, which are not kept."""

    def frames(self, index: int) -> np.ndarray:
        """A sample, (T, H, W, C) uint8; an image has one frame. UserError where it is missing or not finite."""

    def show(self, index: int, frames: np.ndarray, reference: np.ndarray | None) -> None:
        """Write what the page shows of a sample, where that is not there already, and drop what nothing else needs."""

    def shown(self, index: int) -> Shown | None:
        """What the page shows of a sample."""


@dataclass(kw_only=True)
class Entry:
    """A variant with its own job, and what has become of it. counts: of its job. error: why it has no row of figures."""

    variant: Variant
    job: Job
    counts: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def label(self) -> str:
        return self.variant.label

    @property
    def state(self) -> Path:
        return state_folder(self.job.out, self.label)

    def fail(self, error: Exception) -> None:
        """Note why a variant has no row; without uncached samples there is nothing to compare, and the error goes on."""
        if self.label == UNCACHED:
            raise error
        self.error = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        tqdm.write(f"{self.label} failed: {self.error}", file=sys.stderr)
        if os.environ.get("TAYLORSEER_TRACEBACK"):
            traceback.print_exception(error)

    def batch_path(self, batch: Batch) -> Path:
        return self.state / "batches" / f"{batch.indices[0]:06d}.json"

    def measured_path(self, index: int) -> Path:
        return self.state / "measured" / f"{index:06d}.json"

    def read_batch(self, batch: Batch) -> dict[str, Any] | None:
        """What was kept of sampling a batch, None if nothing was or the batch was another."""
        kept = _read(self.batch_path(batch))
        return kept if kept is not None and kept.get("indices") == batch.indices else None

    def read_measured(self, index: int) -> dict[str, Any] | None:
        return _read(self.measured_path(index))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except UserError:
        return None
    return value if isinstance(value, dict) else None


def count(entries: Sequence[Entry]) -> None:
    """Count all entries that can be, those of equal steps together; what cannot be counted is an error of its entry."""
    for changes in {str(entry.variant.changes): None for entry in entries}:
        alike = [entry for entry in entries if entry.error is None and str(entry.variant.changes) == changes]
        caches = {entry.label: entry.variant.cache for entry in alike}
        try:
            counts = replace(alike[0].job, caches=caches).counts() if alike else {}
        except Exception:  # of one of them
            for entry in alike:
                try:
                    entry.counts = entry.job.counts()[entry.label]
                except Exception as error:
                    entry.fail(error)
        else:
            for entry in alike:
                entry.counts = counts[entry.label]


def entries_of(
    asked: Sequence[Variant],
    command: str,
    args: argparse.Namespace,
    family: Family,
    prompts: list[str],
    *,
    folder: str,
) -> list[Entry]:
    """An entry for every variant, the uncached one first, each with a job of its own, counted.

    folder: in outputs/, of runs for which --output-dir names none; set in `args`.
    """
    entries = []
    for variant in asked:
        own = copy.copy(args)
        for name, value in variant.changes.items():
            setattr(own, name, value)
        caches = {} if variant.cache is None else {variant.label: variant.cache}
        job = family.job(command, own, prompts, caches)
        if variant.label == UNCACHED:
            args.output_dir = output_folder(args.output_dir, folder, job.settings)
            job = family.job(command, copy.copy(args), prompts, caches)
        entries.append(Entry(variant=variant, job=job, error=variant.error))
    count(entries)
    return entries


class Images:
    """Samples that are PNGs."""

    def __init__(self, entry: Entry, pipeline: Any) -> None:
        assert isinstance(entry.job, ImageJob)
        self.folder = Folder(entry.job.out, entry.label, entry.job.shape)
        self.pipeline = pipeline

    def has(self, index: int) -> bool:
        return self.folder.read(index) is not None

    def write(self, batch: Batch, latents: Tensor) -> list[int]:
        return self.folder.write(batch, decode_finite(self.pipeline, latents), None)

    def frames(self, index: int) -> np.ndarray:
        return self.folder.load([index])

    def show(self, index: int, frames: np.ndarray, reference: np.ndarray | None) -> None:
        pass

    def shown(self, index: int) -> Shown | None:
        height, width, _ = self.folder.shape
        path = image_path(self.folder.path, index)
        return Shown(label=self.folder.label, file=path, width=width, height=height) if path.is_file() else None


class Videos:
    """Samples that are kept as latents until they are measured, the uncached ones for ever."""

    def __init__(self, entry: Entry, pipeline: Any) -> None:
        assert isinstance(entry.job, VideoJob)
        self.entry, self.folder, self.pipeline = entry, VideoFolder(entry.job, entry.label), pipeline

    def has(self, index: int) -> bool:
        measured = self.entry.label != UNCACHED and self.entry.read_measured(index) is not None
        return measured or self.folder.read_latents(index) is not None

    def write(self, batch: Batch, latents: Tensor) -> list[int]:
        return self.folder.write_latents(batch, latents)

    def frames(self, index: int) -> np.ndarray:
        latents = self.folder.read_latents(index)
        if latents is None:
            raise UserError(f"{self.folder.latents(index)} went missing or was damaged meanwhile; start again")
        decoded = self.pipeline.decode(latents[None])
        if finite_rows(decoded) != [True]:
            raise UserError(f"sample {index} came out of the decoder with NaN or infinity")
        (frames,) = video_to_uint8(decoded)
        return frames

    def show(self, index: int, frames: np.ndarray, reference: np.ndarray | None) -> None:
        if index < SHOWN:
            self.folder.write(index, frames, reference, self.pipeline.fps)
        if self.entry.label != UNCACHED:
            self.folder.latents(index).unlink(missing_ok=True)

    def shown(self, index: int) -> Shown | None:
        return self.folder.shown(index) if index < SHOWN else None


@dataclass(kw_only=True)
class Contest:
    """A comparison: the entries, the uncached one first, and where it runs."""

    entries: list[Entry]
    world: World
    resume: bool = True
    quiet: bool = False

    @property
    def uncached(self) -> Entry:
        return self.entries[0]

    @property
    def job(self) -> Job:
        """Of the uncached entry, whose settings are those that the variants change."""
        return self.uncached.job

    @property
    def is_video(self) -> bool:
        return isinstance(self.job, VideoJob)

    def whole(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.error is None]

    # -------------------------------------------------------------------------------------------------- before

    def prepare(self) -> None:
        """Refuse what can be refused before anything is made; then the folders are these variants'."""
        device, job = self.world.device, self.job
        check_memory({entry.label: entry.counts for entry in self.whole()}, device)
        num_bytes = len(job.prompts) * len(self.entries) * int(np.prod(_sample_shape(job)))
        with writable_or_gone(job.out):
            check_space(job.out, num_bytes // DENSEST, f"{len(job.prompts)} samples of {len(self.entries)} variants")
            contents = digests(job.find(self.world))
            claims = {entry.label: entry.job.claims(contents, device)[entry.label] for entry in self.whole()}
            claim_samples(job.out, claims, has_samples=job.has_samples, alone=True)
        clear_partial(job.out)

    # -------------------------------------------------------------------------------------------------- sample

    def run(self) -> None:
        """Sample and measure whatever is not there; what fails leaves its error in its entry."""
        pipeline: Any = LatePipeline(self)
        samples = {entry.label: (Videos if self.is_video else Images)(entry, pipeline) for entry in self.whole()}
        pending = [
            (batch, waiting)
            for batch in self.job.batches()
            if (waiting := [entry for entry in self.whole() if not self._done(entry, batch, samples[entry.label])])
        ]
        if pending:
            pipeline.load([batch for batch, _ in pending])
            self._sample(pipeline, pending, samples)
            pipeline.unload()
        self._measure(samples)

    def _done(self, entry: Entry, batch: Batch, samples: Samples) -> bool:
        return self.resume and entry.read_batch(batch) is not None and all(map(samples.has, batch.indices))

    def _sample(
        self, pipeline: Any, pending: Sequence[tuple[Batch, list[Entry]]], samples: Mapping[str, Samples]
    ) -> None:
        """Sample batch by batch, the variants of a batch in turn, so that a drift of the machine's speed falls on all alike.

        The uncached batch goes first whether or not its samples are there, for a ratio of times within one process.
        """
        rounds = [
            (batch, [self.uncached, *(entry for entry in waiting if entry is not self.uncached)])
            for batch, waiting in pending
        ]
        self._rehearse(pipeline, rounds[0])
        made_on = conditions(self.world.device, self.job.dtype)
        total = sum(entry.job.num_steps for _, entries in rounds for entry in entries)
        with tqdm(total=total, unit="step", mininterval=0.5, disable=self.quiet) as bar:
            for number_of, (batch, entries) in enumerate(rounds, 1):
                uncached_seconds = None
                for entry in entries:
                    bar.set_description(f"{entry.label} {number_of}/{len(rounds)}")
                    begun = bar.n
                    if entry.error is None:
                        try:
                            kept = self._sample_one(entry, batch, pipeline, samples[entry.label], bar)
                            uncached_seconds = uncached_seconds or kept["seconds"]
                            more = {"uncached_seconds": uncached_seconds, "conditions": made_on}
                            write_json(entry.batch_path(batch), kept | more)
                        except OSError:  # a full disk is no matter of one variant
                            raise
                        except Exception as error:
                            entry.fail(error)
                    bar.update(entry.job.num_steps - (bar.n - begun))

    def _sample_one(self, entry: Entry, batch: Batch, pipeline: Any, samples: Samples, bar: Any) -> dict[str, Any]:
        """Sample a batch and keep its samples; what is to be kept of how that went. UserError for samples not finite."""
        device = self.world.device
        reset_peak_memory(device)
        begun = time.process_time()
        (latents, run), seconds = timed(lambda: pipeline.sample(entry, batch, lambda *_: bar.update()), device)
        processor = time.process_time() - begun if device.type == "cpu" else None
        for index in batch.indices:
            entry.measured_path(index).unlink(missing_ok=True)
        if failed := samples.write(batch, latents):
            shown = ", ".join(map(str, failed))
            raise UserError(f"sample {shown} came out with NaN or infinity; take --precision fp32")
        return {
            "indices": batch.indices,
            "seconds": seconds,
            "processor_seconds": processor,
            "flops": run_flops(run)[0],
            "peak_bytes": peak_memory(device),
            "record": run.record(),
        }

    def _rehearse(self, pipeline: Any, first: tuple[Batch, list[Entry]]) -> None:
        """The first call pays for kernels and memory: it is that of the cheapest variant, or with --compile one of each.

        What fails here fails again where it is noted.
        """
        batch, entries = first
        able = [entry for entry in entries if entry.error is None]
        if not vars(self.job.args).get("compile"):
            able = [min(able, key=lambda entry: entry.variant.cache.plan(entry.job.num_steps).least_full)]
        for entry in able:
            try:
                pipeline.sample(entry, batch, lambda *_: None)
            except Exception:
                continue

    # -------------------------------------------------------------------------------------------------- measure

    def _measure(self, samples: Mapping[str, Samples]) -> None:
        judge = self.judge()
        work = [
            (index, waiting)
            for index in range(len(self.job.prompts))
            if (waiting := [entry for entry in self.whole() if entry.read_measured(index) is None])
        ]
        for index, waiting in tqdm(work, "measuring", unit="sample", disable=self.quiet or not work):
            reference = Reference(samples[UNCACHED].frames(index))
            for entry in waiting:
                try:
                    is_reference = entry is self.uncached
                    frames = reference.frames if is_reference else samples[entry.label].frames(index)
                    found = measure(frames, None if is_reference else reference)
                    if judge is not None:
                        image = torch.from_numpy(frames).permute(0, 3, 1, 2)
                        found[judge.key] = float(judge.score(image, [self.job.prompts[index]])[0])
                    write_json(entry.measured_path(index), found)
                    samples[entry.label].show(index, frames, None if is_reference else reference.frames)
                except Exception as error:
                    entry.fail(error)

    def judge(self) -> Judge | None:
        return self.job.judge if isinstance(self.job, ImageJob) else None

    # -------------------------------------------------------------------------------------------------- report

    def rows(self) -> list[Row]:
        """A row for every entry: figures, or its error."""
        return [self._row(entry) if entry.error is None else _failed_row(entry) for entry in self.entries]

    def _batches(self, entry: Entry) -> list[dict[str, Any]]:
        return [entry.read_batch(batch) or {} for batch in self.job.batches()]

    def _measured(self, entry: Entry) -> list[dict[str, Any]]:
        return [entry.read_measured(index) or {} for index in range(len(self.job.prompts))]

    def _row(self, entry: Entry) -> Row:
        batches, uncached = self._batches(entry), self._batches(self.uncached)
        measured = self._measured(entry)
        last = batches[-1]["record"]
        return {
            **_identity(entry),
            **{key: last[key] for key in OF_RUN if key in last},
            **({"computed_in_part": told} if (told := [list(pair) for pair in partly_computed(last)]) else {}),
            "computed": computed(batches),
            "full_steps_by_batch": [kept["record"]["full_steps"] for kept in batches],
            "flops_T": batches[0]["flops"] / 1e12,
            "flops_T_uncached": uncached[0]["flops"] / 1e12,
            "flops_ratio": sum(kept["flops"] for kept in uncached) / sum(kept["flops"] for kept in batches),
            "latency": latency(batches, uncached),
            "kept_bytes": max(kept["record"]["kept_bytes"] for kept in batches),
            "peak_bytes": max(kept["peak_bytes"] for kept in batches),
            **summarize_samples(measured, self._measured(self.uncached) if entry is not self.uncached else None),
            "samples": {key: [one[key] for one in measured] for key in measured[0]},
            "conditions": batches[-1]["conditions"],
        }


class LatePipeline:
    """A family's pipeline that is loaded when something is to be sampled, with a sampler for every variant."""

    def __init__(self, contest: Contest) -> None:
        self.contest, self.loaded = contest, None
        self.samplers: dict[str, Any] = {}

    def _make(self, batches: Sequence[Batch]) -> Any:
        job, world = self.contest.job, self.contest.world
        return job.make_pipeline(world) if self.contest.is_video else job.make_pipeline(batches, world.device)

    def load(self, batches: Sequence[Batch]) -> None:
        self.loaded = self._make(batches)
        if self.contest.is_video:
            self.loaded.encode(batches)
            self.loaded.load(self.contest.world)

    def unload(self) -> None:
        """Free the transformer of a video model, which is not decoded beside it."""
        self.samplers.clear()
        if self.contest.is_video:
            self.loaded.unload()

    def sample(self, entry: Entry, batch: Batch, callback: Any) -> tuple[Tensor, Any]:
        changes = str(sorted(entry.variant.changes.items()))
        if changes not in self.samplers:
            self.samplers[changes] = self.loaded.make_sampler(entry.job.args)
        self.loaded.sampler = self.samplers[changes]
        return self.loaded.sample(entry.variant.cache, batch, callback)

    def decode(self, latents: Tensor) -> Tensor:
        if self.loaded is None:
            self.loaded = self._make([])
        return self.loaded.decode(latents)

    @property
    def fps(self) -> int:
        return self.loaded.fps


def _sample_shape(job: Job) -> Sequence[int]:
    return job.latent_shape if isinstance(job, VideoJob) else job.shape if isinstance(job, ImageJob) else ()


# ------------------------------------------------------------------------------------------------------------- figures


class Reference:
    """Uncached frames (T, H, W, C), whose features are computed once."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames = frames
        self.features = unit_features(torch.from_numpy(frames).permute(0, 3, 1, 2))


def measure(frames: np.ndarray, reference: Reference | None) -> dict[str, Any]:
    """Distances of a sample (T, H, W, C) to the uncached one, means over its frames, and the flicker of a video.

    psnr_db: null where the samples are equal.
    """
    found: dict[str, Any] = {}
    if reference is not None:
        found["psnr_db"] = finite_or_none(psnr(frames, reference.frames).mean())
        if min(frames.shape[1:3]) >= SSIM_WINDOW:
            found["ssim"] = float(ssim(frames, reference.frames).mean())
        features = unit_features(torch.from_numpy(frames).permute(0, 3, 1, 2))
        found["lite0"] = float(lite0_distance(features, reference.features).mean())
    if len(frames) >= FLICKER_FRAMES:
        found["flicker"] = float(flicker(frames[None])[0])
    return found


def computed(batches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Full steps of a sample: mean, least and most over the samples, which share a decision with their batch."""
    full = [len(kept["record"]["full_steps"]) for kept in batches for _ in kept["indices"]]
    return {"mean": statistics.mean(full), "min": min(full), "max": max(full)}


def latency(batches: Sequence[Mapping[str, Any]], uncached: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds of a batch, and the median ratio of the uncached batch that was timed beside it.

    On a CPU also what other work on the machine hardly changes, the time that its processors spent on this one:
    `processor_ratio` to the uncached batches, and `processor_share`, the median of processors that a batch had at a time.
    """
    ratios = [kept["uncached_seconds"] / kept["seconds"] for kept in batches]
    found = {**spread([kept["seconds"] for kept in batches]), "ratio": statistics.median(ratios)}
    spent, base = ([kept["processor_seconds"] for kept in given] for given in (batches, uncached))
    if None in (*spent, *base):
        return found
    shares = [kept["processor_seconds"] / kept["seconds"] for kept in batches]
    ratios = [theirs / own for theirs, own in zip(base, spent, strict=True)]
    return {**found, "processor_ratio": statistics.median(ratios), "processor_share": statistics.median(shares)}


def _identity(entry: Entry) -> Row:
    """What a row is of."""
    variant = entry.variant
    return {
        "label": variant.label,
        "name": variant.name,
        "series": variant.series,
        "form": variant.form,
        "groups": sorted(variant.groups),
        "changes": dict(variant.changes),
    }


def _failed_row(entry: Entry) -> Row:
    return {**_identity(entry), "error": entry.error}


# -------------------------------------------------------------------------------------------------------------- report


def report(contest: Contest, command_line: str) -> dict[str, Any]:
    """Write record, plots and page of what there is, with the rows of other methods that earlier runs left here."""
    job, judge = contest.job, contest.judge()
    record = {
        "command": job.command,
        "command_line": command_line,
        "settings": job.settings,
        "units": "flops_T: 10^12 operations of the first batch; flops_ratio: over all batches; latency: seconds for one batch; "
        "psnr: dB, ssim and lite0 to the uncached samples, means over frames; low, high: Student's 95 % interval of the mean "
        "over samples; flicker: grey levels of 255; computed: full steps of a sample",
        "num_samples": len(job.prompts),
        "batch_size": job.args.batch_size,
        "scores": {} if judge is None else {judge.key: judge.facts},
        "rows": contest.rows(),
        "conditions": conditions(contest.world.device, job.dtype),
    }
    record["rows"] += list(_earlier_rows(job, record))
    write_json(job.record_path, record)
    draw_pareto(record, job.out, "pareto")
    _write_page(contest, record, judge)
    return record


def _earlier_rows(job: Job, record: Mapping[str, Any]) -> Iterator[Row]:
    """Figures of variants that this run was not asked for."""
    earlier = _read(job.record_path) or {}
    if earlier.get("num_samples") == record["num_samples"]:
        known = {row["label"] for row in record["rows"]}
        yield from (row for row in earlier.get("rows", ()) if row["label"] not in known and "error" not in row)


def compared(record: Mapping[str, Any], judge: Judge | None, rows: Sequence[Row]) -> Comparison:
    """Rows with figures as a table, with what these mean; without the scores that mean nothing on this model."""
    s, num_samples = record["settings"], record["num_samples"]
    headings = {"ssim": "SSIM", "lite0": LITE0}
    headings |= {} if judge is None else {judge.key: judge.heading}
    headings |= {"flicker": "flicker"} if any("flicker" in row for row in rows) else {}
    shown, left_out = screened(s["model"], headings, num_samples)
    extra, explanations = {}, [INTERVALS]
    if "ssim" in shown:
        extra["SSIM"] = [plus_minus(row.get("ssim"), 3) for row in rows]
    if "lite0" in shown:
        extra[LITE0] = [plus_minus(row.get("lite0"), 2) for row in rows]
        explanations.append(LITE0_MEANING)
    if judge is not None and judge.key in shown:
        extra |= judge.columns(rows)
        explanations += [judge.explanation, CHANGES]
    if "flicker" in shown:
        extra |= flicker_columns(rows)
        explanations += [FLICKER_MEANING, CHANGES]
    explanations += left_out
    kind = "video" if "frames" in s else "image"
    facts = f"{counted(num_samples, kind)}, {workload_in_words({**s, 'batch_size': record['batch_size']})}"
    return Comparison(title=s["model"], facts=facts, rows=rows, extra=extra, explanations=explanations)


def _write_page(contest: Contest, record: Mapping[str, Any], judge: Judge | None) -> None:
    job = contest.job
    make = Videos if contest.is_video else Images
    views = [make(entry, None) for entry in contest.whole()]
    prompts = job.prompts[: SHOWN if contest.is_video else None]
    samples = [
        (prompt, [shown for view in views if (shown := view.shown(index)) is not None])
        for index, prompt in enumerate(prompts)
    ]
    rows = readable([row for row in record["rows"] if "error" not in row])
    notes = [f"{row['label']} failed: {row['error']}" for row in record["rows"] if "error" in row]
    write_page(job.page_path, record, compared(record, judge, rows), samples, notes=notes)
