"""What the commands that make images of prompts share: images by several caches, each against the uncached run.

Image i is that of prompt i. A run leaves whole files, so that a killed one goes on with --resume where it stopped:

    OUT/LABEL/000000.png and on      the images of a cache, with settings.json beside them
    OUT/grid.png                     the first images, a row for every cache
    OUT/record.json                  everything measured
"""

import json
from argparse import BooleanOptionalAction
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from cache_dic import Cache
from evaluation.jobs import Job
from evaluation.metrics import psnr, summarize_psnr
from evaluation.scorer import Scorer, load_scorer
from seerkit.cli import Parser, show_log
from seerkit.compare import UNCACHED, Outcome, gather_outcomes, run_caches
from seerkit.distributed import World, on_main, start_world
from seerkit.files import writable_directory, write_json
from seerkit.media import save_png, to_uint8
from seerkit.minilm import TEXT_TABLE, TextTable
from seerkit.outputs import claim_folder, image_path, read_image
from seerkit.prompts import Batch
from seerkit.records import conditions
from seerkit.report import comparison_table, draw_grid, make_rows
from seerkit.seeds import fix_summation_order
from seerkit.tables import number

SHOWN = 16  # images of a row of the grid, at most


class ImagePipeline(Protocol):
    """A backbone's loaded model with its sampler and decoder."""

    def sample(self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None]) -> tuple[Tensor, Any]:
        """Final latents (B, C, h, w) in float32 and the run; an image's noise comes from its own number."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] on the CPU."""


@dataclass(frozen=True, kw_only=True)
class ImageJob(Job):
    """A job of a command with the flags of `add_image_flags`; height and width are among its sizes.

    scored: the prompts are the emoji's, whose images the shipped scorer judges. find: look for, or download, every file that
    the model needs. make_pipeline: for the batches that will be sampled, on a device.
    """

    scored: bool
    find: Callable[[], None]
    make_pipeline: Callable[[Sequence[Batch], torch.device], ImagePipeline]


def add_image_flags(parser: Parser, *, folder: str) -> None:
    """Flags of a command that makes images; `folder` is the family's in outputs/."""
    parser.add_argument(
        "--output_dir",
        type=Path,
        help=f"gets a folder of PNGs for every cache (default: outputs/{folder}/MODEL-DIGEST)",
    )
    parser.add_argument(
        "--add_sampling_metadata", action=BooleanOptionalAction, default=True, help="put the settings into the PNGs"
    )
    parser.add_argument("--resume", action="store_true", help="keep the images that are there, make those missing")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configuration, full steps, FLOPs and kept bytes, and stop"
    )
    parser.add_argument(
        "--test_FLOPs", action="store_true", dest="test_flops", help="print the FLOPs of every cache and stop"
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")


def png_settings(settings: dict[str, Any], *, label: str, prompt: str, index: int) -> dict[str, Any]:
    """What is written into the PNG of one image: the run's settings with its own prompt instead of all."""
    common = {name: value for name, value in settings.items() if name != "prompts"}
    return {**common, "cache": label, "prompt": prompt, "index": index}


# -------------------------------------------------------------------------------------------------------------- sample


class Folder:
    """The images of one cache: PARENT/LABEL/000000.png and on, with settings.json beside them. shape: (H, W, 3)."""

    def __init__(self, parent: Path, label: str, shape: tuple[int, int, int]) -> None:
        self.path, self.label, self.shape = parent / label, label, shape

    def claim(self, settings: dict[str, Any], *, resume: bool) -> None:
        """Make the folder this run's; without `resume` images of the same settings go."""
        writable_directory(self.path)
        claim_folder(self.path, settings, flag="--output_dir")
        for image in () if resume else self.path.glob("[0-9]*.png"):
            image.unlink()

    def read(self, index: int) -> np.ndarray | None:
        """The pixels of an image, None if it is missing or damaged."""
        return read_image(image_path(self.path, index), self.shape)

    def has(self, batch: Batch) -> bool:
        return all(self.read(index) is not None for index in batch.indices)

    def write(self, batch: Batch, images: np.ndarray, settings: dict[str, Any] | None) -> None:
        """Write images (B, H, W, 3) uint8, each with its own of the run's settings unless those are None."""
        for index, prompt, pixels in zip(batch.indices, batch.prompts, images, strict=True):
            own = settings and png_settings(settings, label=self.label, prompt=prompt, index=index)
            save_png(image_path(self.path, index), pixels, own)

    def load(self, num_images: int) -> np.ndarray:
        """All images, (N, H, W, 3) uint8; ValueError if one is missing or damaged."""
        images = [self.read(index) for index in range(num_images)]
        for index, pixels in enumerate(images):
            if pixels is None:
                raise ValueError(f"{image_path(self.path, index)} went missing or was damaged meanwhile; use --resume")
        return np.stack(images)


def sample_missing(job: ImageJob, folders: dict[str, Folder], world: World) -> dict[str, Outcome]:
    """Make the images that are missing, this process's share of the batches; outcomes of all processes together."""
    mine = job.batches()[world.rank :: world.size]
    pending = [batch for batch in mine if not all(folder.has(batch) for folder in folders.values())]
    outcomes = {label: Outcome() for label in job.caches}
    if pending:
        pipeline = job.make_pipeline(pending, world.device)

        def keep(label: str, batch: Batch, latents: Tensor) -> None:
            settings = job.settings if job.args.add_sampling_metadata else None
            folders[label].write(batch, to_uint8(pipeline.decode(latents)), settings)

        outcomes = run_caches(
            job.caches, pending, pipeline.sample, num_steps=job.num_steps, device=world.device,
            skip=lambda label, batch: folders[label].has(batch), keep=keep, quiet=not world.is_main,
        )  # fmt: skip
    return gather_outcomes(outcomes, world)


# -------------------------------------------------------------------------------------------------------------- report


def judge(images: dict[str, np.ndarray], y: Tensor | None, scorer: Scorer | None) -> dict[str, dict[str, Any]]:
    """By label: PSNR to the uncached images and mean image-text score, None where they cannot be had."""
    scores = {}
    for label, pixels in images.items():
        compared = UNCACHED in images and label != UNCACHED
        scores[label] = {"psnr": summarize_psnr(psnr(pixels, images[UNCACHED])) if compared else None}
        if scorer is not None:
            tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
            scores[label]["score"] = scorer.score(tensor, y).mean().item()
    return scores


def scorer_facts(scorer: Scorer) -> dict[str, float]:
    """Mean scores of real images that neither the model nor the scorer was trained on: what scores are read against."""
    new = scorer.card["splits"]["held_out_label"]["ceiling"]
    return {"ceiling": scorer.ceiling, "ceiling_new_labels": new, "floor": scorer.floor}


def report(
    job: ImageJob,
    counts: dict[str, Any],
    outcomes: dict[str, Outcome],
    folders: dict[str, Folder],
    device: torch.device,
) -> dict[str, Any]:
    """Write grid and record, and return the record."""
    images = {label: folder.load(len(job.prompts)) for label, folder in folders.items()}
    scorer = load_scorer() if job.scored else None
    y = TextTable.load(TEXT_TABLE).encode(job.prompts)[1] if job.scored else None
    record = {
        "command": job.command,
        "settings": job.settings,
        "units": "flops_T: 10^12 operations and latency: seconds, both for one batch; psnr: dB to the uncached images",
        "num_samples": len(job.prompts),
        "scorer": scorer_facts(scorer) if scorer is not None else None,
        "rows": make_rows(job.caches, job.num_steps, outcomes, counts, judge(images, y, scorer)),
        "conditions": conditions(device, job.dtype),
    }
    save_png(job.out / "grid.png", draw_grid(images, job.prompts[:SHOWN]), job.settings)
    write_json(job.out / "record.json", record)
    return record


def show(record: dict[str, Any]) -> None:
    """The record as a table, with what its figures mean."""
    s, scorer = record["settings"], record["scorer"]
    size = f"{s['width']}x{s['height']}, {s['num_steps']} steps, batches of {s['batch_size']}"
    print(f"\n{s['model']}, number of images: {record['num_samples']}, {size}")
    extra = {"score": [number(row["score"], 1) for row in record["rows"]]} if scorer else {}
    print(comparison_table(record["rows"], extra))
    if scorer:
        print(
            "score: 100 x cosine of image and prompt by the shipped in-domain scorer (not CLIP); real images reach "
            f"{scorer['ceiling']:.1f} with their own captions, {scorer['ceiling_new_labels']:.1f} where the label was never "
            f"trained on, and {number(scorer['floor'], 1)} with shuffled captions"
        )


def run(job: ImageJob) -> dict[str, Any] | None:
    """Carry out a job: the files described above, a table or the record on stdout.

    The record, on the first process; None elsewhere and where nothing is made.
    """
    args = job.args
    counts = job.counts()
    if args.test_flops:
        print(json.dumps(counts, indent=2))
        return None
    if args.dry_run:
        job.print_plan(counts)
        return None

    fix_summation_order()
    world = start_world(args.device)
    if world.is_main and not args.json:
        show_log()
    shape = job.sizes["height"], job.sizes["width"], 3
    folders = {label: Folder(job.out, label, shape) for label in job.caches}

    def prepare() -> None:
        writable_directory(job.out)
        job.find()  # one process downloads what the others then load
        for label, folder in folders.items():
            folder.claim(job.claims(label), resume=args.resume)

    on_main(world, prepare)
    outcomes = sample_missing(job, folders, world)
    world.barrier()
    if not world.is_main:
        return None
    record = report(job, counts, outcomes, folders, world.device)
    if args.json:
        print(json.dumps(record))
    else:
        show(record)
        print(f"images: {job.out}\ngrid: {job.out / 'grid.png'}\nrecord: {job.out / 'record.json'}")
    return record
