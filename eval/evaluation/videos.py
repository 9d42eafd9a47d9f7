"""What the video commands share: from prompts to videos by several caches, each against the uncached run.

A run has three stages with one component on the device in each: prompts are encoded, latents sampled, videos decoded. Every
stage leaves files, whole ones, so that a killed run goes on with --resume where it stopped:

    OUT/LABEL/NAME.mp4 (and .gif)    the videos of a cache, named by number or as VBench expects them
    OUT/LABEL/latents/000000.safetensors, OUT/LABEL/figures/000000.json
    OUT/strips/000000.png            frames of one prompt, a row for every cache
    OUT/record.json                  everything measured
"""

import argparse
import json
from argparse import BooleanOptionalAction
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from cache_dic import Cache
from evaluation.jobs import Job
from evaluation.metrics import finite_or_none, summarize_psnr
from evaluation.video_metrics import flicker, flicker_error, video_psnr
from seerkit.cli import Parser, positive_int, show_log
from seerkit.compare import UNCACHED, Outcome, gather_outcomes, run_caches
from seerkit.distributed import World, on_main, start_world
from seerkit.files import writable_directory, write_json, written_whole
from seerkit.media import enlarged, frame_strip, save_gif, save_mp4, save_png, video_to_uint8
from seerkit.outputs import claim_folder
from seerkit.prompts import Batch
from seerkit.records import conditions
from seerkit.report import comparison_table, make_rows
from seerkit.seeds import fix_summation_order
from seerkit.tables import number

LONGEST_NAME = 229  # bytes of a prompt in a file's name, with its number and what a half-written file adds at most 255
FLICKER_FRAMES = 3  # the fewest that can flicker
GIF_SIDE = 128  # videos up to this many pixels a side are also written as GIF


class VideoPipeline(Protocol):
    """A backbone's way from prompts to videos; one component is on the device at a time."""

    fps: int

    def encode(self, batches: Sequence[Batch]) -> None:
        """Encode the prompts of batches; the encoders are gone when this returns."""

    def load(self, world: World) -> None:
        """Load the transformer, shared by the processes of `world` where the flags ask for that."""

    def sample(self, cache: Cache, batch: Batch, callback: Callable[[int, Tensor], None]) -> tuple[Tensor, Any]:
        """Final latents (B, C, T, h, w) in float32 and the run; a sample's noise comes from its own number."""

    def unload(self) -> None:
        """Free the transformer."""

    def decode(self, latents: Tensor) -> Tensor:
        """Latents of one video (1, C, T, h, w) -> (1, 3, F, H, W) in [-1, 1] on the CPU."""


@dataclass(frozen=True, kw_only=True)
class VideoJob(Job):
    """A job of a command with the flags of `add_video_flags`.

    sequence_parallel: all processes make one video together instead of sharing the prompts. find: look for, or download,
    every file that the model needs.
    """

    sequence_parallel: bool
    find: Callable[[World], None]
    make_pipeline: Callable[[World], VideoPipeline]


def add_video_flags(parser: Parser) -> None:
    """Flags of a command that makes videos."""
    group = parser.add_argument_group("videos")
    group.add_argument("--prompt-file", type=Path, help="prompts, one a line, or VBench_full_info.json")
    group.add_argument(
        "--samples-per-prompt", type=positive_int, default=1, metavar="N", help="videos of every prompt (VBench: 5)"
    )
    group.add_argument(
        "--vbench", action="store_true", help="name the videos PROMPT-0.mp4, PROMPT-1.mp4, … as VBench expects them"
    )
    group.add_argument("--gif", action=BooleanOptionalAction, default=True, help="small videos also as GIF")
    group.add_argument("--resume", action="store_true", help="keep what is there, make what is missing")
    group.add_argument(
        "--dry-run", action="store_true", help="print configuration, full steps, FLOPs and kept bytes, and stop"
    )
    group.add_argument("--json", action="store_true", help="print the record instead of the table")


def video_names(args: argparse.Namespace, prompts: Sequence[str]) -> list[str]:
    """File names without suffix for the samples: their numbers, or prompt and number within it."""
    if not args.vbench:
        return [f"{index:06d}" for index in range(len(prompts))]
    for prompt in prompts:
        if "/" in prompt or len(prompt.encode()) > LONGEST_NAME:
            raise ValueError(
                f"--vbench names files by their prompts, and {prompt[:60]!r}… cannot be one: it has a slash or more than "
                f"{LONGEST_NAME} bytes"
            )
    if len(set(prompts)) * args.samples_per_prompt != len(prompts):
        raise ValueError("--vbench names files by their prompts, and one stands in the list twice; name each once")
    return [f"{prompt}-{index % args.samples_per_prompt}" for index, prompt in enumerate(prompts)]


# --------------------------------------------------------------------------------------------------------------- files


class VideoFolder:
    """The videos of one cache, with their latents and figures."""

    def __init__(self, parent: Path, label: str, names: Sequence[str]) -> None:
        self.path, self.names = parent / label, names

    def video(self, index: int, suffix: str = ".mp4") -> Path:
        return self.path / f"{self.names[index]}{suffix}"

    def latents(self, index: int) -> Path:
        return self.path / "latents" / f"{index:06d}.safetensors"

    def figures(self, index: int) -> Path:
        return self.path / "figures" / f"{index:06d}.json"

    def claim(self, settings: dict[str, Any], *, resume: bool) -> None:
        """Make the folder this run's; without `resume` samples of the same settings go."""
        writable_directory(self.path)
        claim_folder(self.path, settings, flag="output folder", samples="*.mp4")
        for part in (self.path, self.path / "latents", self.path / "figures"):
            _clear_partial(part)
        if not resume:
            for pattern in ("*.mp4", "*.gif", "latents/*.safetensors", "figures/*.json"):
                for path in self.path.glob(pattern):
                    path.unlink()

    def has_latents(self, index: int) -> bool:
        """Whether latents are there and whole, by their size; the values are not read."""
        try:
            with safe_open(self.latents(index), framework="pt") as file:
                return "latents" in file.keys()  # noqa: SIM118, the file is no mapping
        except (OSError, SafetensorError):
            return False

    def read_latents(self, index: int) -> Tensor | None:
        """Latents (C, T, h, w), None if they are missing or damaged."""
        try:
            return load_file(self.latents(index))["latents"]
        except (OSError, SafetensorError, KeyError):
            return None

    def write_latents(self, batch: Batch, latents: Tensor) -> None:
        for index, values in zip(batch.indices, latents, strict=True):
            if not values.isfinite().all():
                raise ValueError(
                    f"the latents of video {index} have NaN or infinity ({self.path.name}); try another --precision"
                )
            with written_whole(self.latents(index)) as temporary:
                save_file({"latents": values.float().cpu().contiguous()}, temporary)

    def read_figures(self, index: int, *, compared: bool) -> dict[str, Any] | None:
        """What was measured on a video, None if that or the video itself is missing.

        compared: against the uncached video too, which a run without one does not.
        """
        try:
            figures = json.loads(self.figures(index).read_text())
        except (OSError, ValueError):
            return None
        complete = self.video(index).is_file() and (figures["psnr"] is not None or not compared)
        return figures if complete else None


def _clear_partial(folder: Path) -> None:
    """Remove what a killed run left half written."""
    for leftover in folder.glob(".*.partial.*"):
        leftover.unlink()


def _strip(out: Path, index: int) -> Path:
    return out / "strips" / f"{index:06d}.png"


def _is_compared(label: str, labels: Container[str]) -> bool:
    """Whether the videos of a cache are measured against uncached ones."""
    return UNCACHED in labels and label != UNCACHED


# -------------------------------------------------------------------------------------------------------------- stages


def sample_missing(
    job: VideoJob, pipeline: VideoPipeline, folders: dict[str, VideoFolder], world: World
) -> dict[str, Outcome]:
    """Sample the latents that are missing; outcomes of all processes together."""
    batches = job.batches()

    def there(label: str, batch: Batch) -> bool:
        return all(folders[label].has_latents(index) for index in batch.indices)

    # One process looks: while the others still do, it may already write.
    done = on_main(world, lambda: {(c, b.indices[0]) for c in folders for b in batches if there(c, b)})
    mine = batches if job.sequence_parallel else batches[world.rank :: world.size]
    pending = [batch for batch in mine if any((label, batch.indices[0]) not in done for label in folders)]
    outcomes = {label: Outcome() for label in job.caches}
    if pending:
        pipeline.encode(pending)
        pipeline.load(world)

        def keep(label: str, batch: Batch, latents: Tensor) -> None:
            if world.is_main or not job.sequence_parallel:
                folders[label].write_latents(batch, latents)

        outcomes = run_caches(
            job.caches, pending, pipeline.sample, num_steps=job.num_steps, device=world.device,
            skip=lambda label, batch: (label, batch.indices[0]) in done, keep=keep, quiet=not world.is_main,
        )  # fmt: skip
        pipeline.unload()
    if job.sequence_parallel and not world.is_main:  # all processes timed the same runs
        outcomes = {label: Outcome(peak_bytes=outcome.peak_bytes) for label, outcome in outcomes.items()}
    return gather_outcomes(outcomes, world)


def decode_missing(job: VideoJob, pipeline: VideoPipeline, folders: dict[str, VideoFolder], world: World) -> None:
    """Decode this process's share of the samples whose videos, figures or strip are missing, all caches of one together."""
    mine = range(len(job.prompts))[world.rank :: world.size]

    def there(index: int) -> bool:
        measured = (f.read_figures(index, compared=_is_compared(label, folders)) for label, f in folders.items())
        return _strip(job.out, index).exists() and all(row is not None for row in measured)

    pending = [index for index in mine if not there(index)]
    for index in tqdm(pending, desc="videos", unit="video", disable=not world.is_main, mininterval=0.5):
        videos = {}
        for label, folder in folders.items():
            latents = folder.read_latents(index)
            if latents is None:
                raise ValueError(f"{folder.latents(index)} went missing or was damaged meanwhile; use --resume")
            (videos[label],) = video_to_uint8(pipeline.decode(latents[None]))
        for label, frames in videos.items():
            folder, shown = folders[label], enlarged(frames)
            save_mp4(folder.video(index), shown, pipeline.fps)
            if job.args.gif and min(shown.shape[1:3]) <= GIF_SIDE:
                save_gif(folder.video(index, ".gif"), shown, pipeline.fps)
            own = {"prompt": job.prompts[index], "index": index, "cache": label}
            write_json(folder.figures(index), {**own, **figures(frames, videos.get(UNCACHED), label)})
        save_png(_strip(job.out, index), frame_strip(list(videos.values()), [c.replace("-", "\n", 1) for c in videos]))


def figures(frames: np.ndarray, reference: np.ndarray | None, label: str) -> dict[str, Any]:
    """PSNR to the uncached video (mean and least over the frames) and flicker of one video (T, H, W, 3).

    None for PSNR where there is nothing to compare with or the videos are equal, for flicker where frames are too few.
    """
    measured: dict[str, Any] = {"flicker": None, "psnr": None, "flicker_error": None}
    compared, moving = reference is not None and label != UNCACHED, len(frames) >= FLICKER_FRAMES
    if compared:
        psnr = video_psnr(frames[None], reference[None])
        measured["psnr"] = {name: finite_or_none(values[0]) for name, values in psnr.items()}
    if moving:
        measured["flicker"] = float(flicker(frames[None])[0])
    if moving and compared:
        measured["flicker_error"] = finite_or_none(flicker_error(frames[None], reference[None])[0])
    return measured


def judge(folders: Mapping[str, VideoFolder], num_samples: int) -> dict[str, dict[str, Any]]:
    """By label: PSNR to the uncached videos and flicker, means over the samples."""
    scores = {}
    for label, folder in folders.items():
        compared = _is_compared(label, folders)
        rows = [folder.read_figures(index, compared=compared) for index in range(num_samples)]
        if None in rows:
            raise ValueError(f"{folder.video(rows.index(None))} went missing meanwhile; use --resume")
        psnr = (
            [np.inf if row["psnr"]["mean_db"] is None else row["psnr"]["mean_db"] for row in rows] if compared else []
        )
        flickers = [row["flicker"] for row in rows if row["flicker"] is not None]
        errors = [row["flicker_error"] for row in rows if row["flicker_error"] is not None]
        scores[label] = {
            "psnr": summarize_psnr(psnr) if compared else None,
            "flicker": {
                "mean": float(np.mean(flickers)) if flickers else None,
                "error": float(np.mean(errors)) if errors else None,
            },
        }
    return scores


# -------------------------------------------------------------------------------------------------------------- report


def show(record: dict[str, Any]) -> None:
    """The record as a table, with what its figures mean."""
    s = record["settings"]
    size = f"{s['width']}x{s['height']}, {s['frames']} frames, {s['num_steps']} steps, batches of {s['batch_size']}"
    print(f"\n{s['model']}, number of videos: {record['num_samples']}, {size}")
    flickers = [number(row["flicker"]["mean"], 2) for row in record["rows"]]
    errors = [row["flicker"]["error"] for row in record["rows"]]
    extra = {"flicker": flickers, "flicker change": ["–" if e is None else f"{100 * e:+.1f} %" for e in errors]}
    print(comparison_table(record["rows"], extra))
    print("flicker: mean second difference in time, of 255 grey levels; its change is against the uncached video")


def run(job: VideoJob) -> dict[str, Any] | None:
    """Carry out a job: the files described above, a table or the record on stdout.

    The record, on the first process; None elsewhere and where nothing is made.
    """
    args = job.args
    names = video_names(args, job.prompts)
    counts = job.counts()
    if args.dry_run:
        job.print_plan(counts)
        return None
    fix_summation_order()
    world = start_world(args.device)
    if world.is_main and not args.json:
        show_log()
    folders = {label: VideoFolder(job.out, label, names) for label in job.caches}

    def prepare() -> None:
        writable_directory(job.out)
        for part in (job.out, job.out / "strips"):
            _clear_partial(part)
        job.find(world)  # one process downloads what the others then load
        for label, folder in folders.items():
            folder.claim(job.claims(label), resume=args.resume)

    on_main(world, prepare)
    pipeline = job.make_pipeline(world)
    outcomes = sample_missing(job, pipeline, folders, world)
    decode_missing(job, pipeline, folders, world)
    world.barrier()
    if not world.is_main:
        return None
    record = {
        "command": job.command,
        "settings": job.settings,
        "units": "flops_T: 10^12 operations and latency: seconds, both for one batch; psnr: dB to the uncached videos, mean "
        "over frames; flicker: grey levels of 255, error relative to the uncached videos",
        "num_samples": len(job.prompts),
        "processes": world.size,
        "rows": make_rows(job.caches, job.num_steps, outcomes, counts, judge(folders, len(job.prompts))),
        "conditions": conditions(world.device, job.dtype),
    }
    write_json(job.out / "record.json", record)
    if args.json:
        print(json.dumps(record))
    else:
        show(record)
        print(f"videos: {job.out}\nstrips of frames: {job.out / 'strips'}\nrecord: {job.out / 'record.json'}")
    return record
