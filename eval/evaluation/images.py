"""What the commands that make images share: images by several caches, each against the uncached run.

Image i is that of prompt i. A run leaves whole files, so that a killed one goes on with --resume where it stopped:

    OUT/LABEL/000000.png and on      the images of a cache, and nothing else
    OUT/state/LABEL/claim.json       what they were made with
    OUT/grid.png                     the first images, a row for every cache
    OUT/record.json                  everything measured, of all runs into this folder
    OUT/index.html                   all of it to look at, with OUT/page/ where images are large (see `evaluation.page`)
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cache_dic import Cache, UserError
from evaluation.cells import CHANGES, INTERVALS, change_cell, plus_minus
from evaluation.jobs import Job, Made, carry_out, workload_in_words
from evaluation.metrics import finite_or_none, psnr, summarize_samples
from evaluation.page import Shown, readable, write_page
from evaluation.scorer import load_scorer
from evaluation.validation.rules import screened
from seerkit.command.cli import show_log
from seerkit.devices.distributed import World, on_main
from seerkit.io.claims import Claim, renew_claim
from seerkit.io.images import image_path, read_image
from seerkit.io.media import finite_rows, save_png, to_uint8
from seerkit.io.records import conditions
from seerkit.io.report import Comparison, Row, draw_grid, make_rows
from seerkit.io.tables import counted, number
from seerkit.sampling.compare import UNCACHED, Outcome, gather_outcomes, of_the_first, run_caches
from seerkit.text.minilm import TEXT_TABLE, TextTable
from seerkit.text.prompts import Batch

SHOWN = 16  # images of a row of the grid, at most
JUDGED = 16  # images that are read and judged at a time
DENSEST = 4  # times that a PNG is smaller than its pixels, at most: for the least disk that images take


class ImagePipeline(Protocol):
    """A backbone's loaded model with its sampler and decoder."""

    def sample(self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None]) -> tuple[Tensor, Any]:
        """Final latents (B, C, h, w) in float32 and the run; an image's noise comes from its own number."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3 or 1, H, W) in [-1, 1] on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Judge:
    """What scores images of their prompts: key of the rows of a record, heading of the table's column.

    score(images, prompts): images (B, C, H, W) uint8 -> (B,). scale: of what is shown. facts: of the record. explanation: under
    the table.
    """

    key: str
    heading: str
    score: Callable[[Tensor, Sequence[str]], Tensor]
    scale: float = 1.0
    facts: Mapping[str, Any]
    explanation: str

    def columns(self, rows: Sequence[Row]) -> dict[str, list[str]]:
        """Columns of a table of rows, by heading: means with intervals, and changes from the uncached samples."""
        return {
            self.heading: [plus_minus(row.get(self.key), 1, scale=self.scale) for row in rows],
            "change": [change_cell(row, self.key) for row in rows],
        }


@dataclass(frozen=True, kw_only=True)
class ImageJob(Job):
    """A job of a command with the flags of `add_image_flags`; height and width are among its settings.

    channels: of an image. make_judge: of what scores the images, None where nothing does. make_pipeline: for the batches that
    will be sampled, on a device. columns: headings of the grid, None for the first prompts. grid_name: of the grid in `out`,
    without suffix. together: all processes make the same images together instead of sharing the prompts.
    """

    channels: int = 3
    make_judge: Callable[[], Judge] | None = None
    make_pipeline: Callable[[Sequence[Batch], torch.device], ImagePipeline]
    columns: Sequence[str] | None = None
    grid_name: str = "grid"
    together: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.settings["height"], self.settings["width"], self.channels

    @functools.cached_property
    def judge(self) -> Judge | None:
        """What scores the images, loaded when it is asked for."""
        return self.make_judge() if self.make_judge else None

    def has_samples(self, label: str) -> bool:
        return next((self.out / label).glob("[0-9]*.png"), None) is not None

    @property
    def grid_path(self) -> Path:
        return self.out / f"{self.grid_name}.png"


def png_settings(settings: dict[str, Any], *, label: str, prompt: str, index: int) -> dict[str, Any]:
    """What is written into the PNG of one image: the run's settings with its own prompt instead of all."""
    common = {name: value for name, value in settings.items() if name != "prompts"}
    return {**common, "cache": label, "prompt": prompt, "index": index}


# -------------------------------------------------------------------------------------------------------------- sample


def save_finite(
    folder: Path, indices: Sequence[int], images: Tensor, settings: Sequence[dict[str, Any] | None] | None = None
) -> list[int]:
    """Write images (B, C, H, W) in [-1, 1] under their numbers, with settings inside where there are any.

    The numbers of those that are not finite, which are not written.
    """
    failed = []
    for row, (index, whole) in enumerate(zip(indices, finite_rows(images), strict=True)):
        if whole:
            (pixels,) = to_uint8(images[row : row + 1])
            save_png(image_path(folder, index), pixels, settings[row] if settings else None)
        else:
            failed.append(index)
    return failed


def decode_finite(pipeline: ImagePipeline, latents: Tensor) -> Tensor:
    """The images of latents, NaN where the latents are not finite, whatever a decoder makes of that."""
    whole = torch.tensor(finite_rows(latents)).reshape(-1, 1, 1, 1)
    return torch.where(whole, pipeline.decode(latents), torch.nan)


class Folder:
    """The images of one cache: PARENT/LABEL/000000.png and on. shape: (H, W, C)."""

    def __init__(self, parent: Path, label: str, shape: tuple[int, int, int]) -> None:
        self.path, self.label, self.shape = parent / label, label, shape

    def read(self, index: int) -> np.ndarray | None:
        """The pixels of an image, None if it is missing or damaged."""
        return read_image(image_path(self.path, index), self.shape)

    def has(self, batch: Batch) -> bool:
        return all(self.read(index) is not None for index in batch.indices)

    def write(self, batch: Batch, images: Tensor, settings: dict[str, Any] | None) -> list[int]:
        """Write images (B, C, H, W) in [-1, 1], each with its own of the run's settings unless those are None.

        The numbers of those that are not finite, which are not written.
        """
        own = [
            settings and png_settings(settings, label=self.label, prompt=prompt, index=index)
            for index, prompt in zip(batch.indices, batch.prompts, strict=True)
        ]
        return save_finite(self.path, batch.indices, images, own)

    def load(self, indices: Sequence[int]) -> np.ndarray:
        """Some images, (N, H, W, C) uint8; UserError if one is missing or damaged."""
        images = [self.read(index) for index in indices]
        for index, pixels in zip(indices, images, strict=True):
            if pixels is None:
                raise UserError(f"{image_path(self.path, index)} went missing or was damaged meanwhile; use --resume")
        return np.stack(images)


def sample_missing(
    job: ImageJob, folders: dict[str, Folder], claims: Mapping[str, Claim], world: World
) -> dict[str, Outcome]:
    """Make the images that are missing, or all without --resume, this process's share of the batches; all outcomes together."""
    mine = job.batches() if job.together else job.batches()[world.rank :: world.size]

    def there() -> set[tuple[str, int]]:
        return {(c, b.indices[0]) for c in folders for b in mine if job.args.resume and folders[c].has(b)}

    # Where processes go through the same batches, one looks: while the others still do, it may already write.
    done = on_main(world, there) if job.together else there()
    pending = [batch for batch in mine if any((label, batch.indices[0]) not in done for label in folders)]
    outcomes = {label: Outcome() for label in job.caches}
    if pending:
        pipeline = job.make_pipeline(pending, world.device)
        settings = job.settings if job.args.add_sampling_metadata else None

        def keep(label: str, batch: Batch, latents: Tensor) -> list[int]:
            if job.together and not world.is_main:
                return [index for index, whole in zip(batch.indices, finite_rows(latents), strict=True) if not whole]
            failed = folders[label].write(batch, decode_finite(pipeline, latents), settings)
            renew_claim(job.out, label, claims[label])
            return failed

        outcomes = run_caches(
            job.caches, pending, pipeline.sample, num_steps=job.num_steps, device=world.device,
            skip=lambda label, batch: (label, batch.indices[0]) in done, keep=keep, quiet=not world.is_main,
        )  # fmt: skip
    if job.together:
        outcomes = of_the_first(outcomes, world)
    return gather_outcomes(outcomes, world)


# -------------------------------------------------------------------------------------------------------------- report


def judge_images(
    folders: Mapping[str, Folder], prompts: Sequence[str], judge: Judge | None
) -> dict[str, dict[str, Any]]:
    """By label: PSNR to the uncached images and the judge's scores, as `summarize_samples` has them.

    A few images are in memory at a time, however many there are.
    """
    measured: dict[str, list[dict[str, float | None]]] = {label: [] for label in folders}
    for first in range(0, len(prompts), JUDGED):
        indices = range(first, min(first + JUDGED, len(prompts)))
        images = {label: folder.load(indices) for label, folder in folders.items()}
        for label, pixels in images.items():
            found: dict[str, Sequence[float | None]] = {}
            if label != UNCACHED and UNCACHED in images:
                found["psnr_db"] = [finite_or_none(value) for value in psnr(pixels, images[UNCACHED])]
            if judge is not None:
                tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
                found[judge.key] = judge.score(tensor, prompts[first : indices.stop]).double().tolist()
            measured[label] += [{key: values[i] for key, values in found.items()} for i in range(len(indices))]
    uncached = measured.get(UNCACHED)
    return {label: summarize_samples(of, uncached if label != UNCACHED else None) for label, of in measured.items()}


def emoji_judge() -> Judge:
    """The shipped image-text scorer, on prompts of the emoji's words."""
    scorer, table = load_scorer(), TextTable.load(TEXT_TABLE)
    new = scorer.card["splits"]["held_out_label"]["ceiling"]  # of images that neither model nor scorer was trained on
    return Judge(
        key="score",
        heading="score",
        score=lambda images, prompts: scorer.score(images, table.encode(prompts)[1]),
        facts={"scorer": {"ceiling": scorer.ceiling, "ceiling_new_labels": new, "floor": scorer.floor}},
        explanation="score: 100 x cosine of image and prompt by the shipped in-domain scorer (not CLIP); real images reach "
        f"{scorer.ceiling:.1f} with their own captions, {new:.1f} where the label was never trained on, and "
        f"{number(scorer.floor, 1)} with shuffled captions",
    )


def report(
    job: ImageJob,
    counts: dict[str, Any],
    outcomes: dict[str, Outcome],
    folders: dict[str, Folder],
    world: World,
) -> dict[str, Any]:
    """Write grid, record and page of the caches whose images are all there, and return the record."""
    earlier, judge = job.earlier_rows(), job.judge
    record = {
        "command": job.command,
        "command_line": job.command_line(world.size),
        "settings": job.settings,
        "units": "flops_T: 10^12 operations and latency: seconds, both for one batch; psnr: dB to the uncached images; low, "
        "high: Student's 95 % interval of the mean over samples",
        "num_samples": len(job.prompts),
        **({"scorer": None} if judge is None else judge.facts),
        "rows": make_rows(
            {label: job.caches[label] for label in folders},
            job.num_steps, outcomes, counts, judge_images(folders, job.prompts, judge), earlier,
        ),
        "conditions": conditions(world.device, job.dtype),
    }  # fmt: skip
    columns = (job.prompts if job.columns is None else job.columns)[:SHOWN]
    shown = {label: folder.load(range(len(columns))) for label, folder in folders.items()}
    save_png(job.grid_path, draw_grid(shown, columns), job.settings)
    record = job.write_record(record, earlier)
    write_image_page(job, record, judge)
    return record


def compared(record: dict[str, Any], judge: Judge | None, rows: Sequence[Row]) -> Comparison:
    """Some rows of a record as a table, with what its figures mean."""
    s, num_samples = record["settings"], record["num_samples"]
    shown, left_out = screened(s["model"], {judge.key: judge.heading} if judge else {}, num_samples)
    judged = judge if judge is not None and judge.key in shown else None
    return Comparison(
        title=s["model"],
        facts=f"{counted(num_samples, 'image')}, {workload_in_words(s)}",
        rows=rows,
        extra=judged.columns(rows) if judged else {},
        explanations=[INTERVALS, *([judged.explanation, CHANGES] if judged else []), *left_out],
    )


def write_image_page(job: ImageJob, record: dict[str, Any], judge: Judge | None) -> None:
    """The page of a record, with all its caches that have images of this run's prompts."""
    height, width, _ = job.shape
    rows = readable(record["rows"])
    samples = [
        (
            prompt,
            [
                Shown(label=row["label"], file=path, width=width, height=height)
                for row in rows
                if (path := image_path(job.out / row["label"], index)).is_file()
            ],
        )
        for index, prompt in enumerate(job.prompts)
    ]
    there = {shown.label for _, made in samples for shown in made}
    write_page(job.page_path, record, compared(record, judge, [row for row in rows if row["label"] in there]), samples)


def make(job: ImageJob, counts: dict[str, Any], world: World) -> Made:
    """Make the images that are missing and all that is made of them: the files described above.

    The record, on the first process and where there is an image, and what became of every cache; check that with
    `Job.check_outcomes`, since images that did not come out finite are not written.
    """
    folders = {label: Folder(job.out, label, job.shape) for label in job.caches}
    pixels = len(job.prompts) * len(job.caches) * int(np.prod(job.shape))
    claims = on_main(world, lambda: job.prepare(world, counts, disk_bytes=pixels // DENSEST))
    outcomes = sample_missing(job, folders, claims, world)
    world.barrier()
    whole = {label: folder for label, folder in folders.items() if not outcomes[label].failed}
    if not world.is_main or not whole:
        return None, outcomes
    return report(job, counts, outcomes, whole, world), outcomes


def run(job: ImageJob) -> dict[str, Any] | None:
    """Carry out a job of a command: the files, and a table or the record on stdout.

    The record, on the first process; None elsewhere and where nothing is made. UserError, at the end, for images that did not
    come out finite.
    """
    counts = job.counts()
    if job.args.test_flops:
        print(json.dumps(counts, indent=2))
        return None
    if job.args.dry_run:
        job.print_plan(counts)
        return None

    def text(record: dict[str, Any]) -> str:
        table = compared(record, job.judge, job.own_rows(record)).text()
        return f"\n{table}\nimages: {job.out}\ngrid: {job.grid_path}\nrecord: {job.record_path}\npage: {job.page_path}"

    def made(world: World) -> Made:
        if world.is_main and not job.args.json:
            show_log()
        return make(job, counts, world)

    return carry_out(job, made, text)
