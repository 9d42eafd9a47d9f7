"""What the video commands share: from prompts to videos by several caches, each against the uncached run.

A run has three stages with one component on the device in each: prompts are encoded, latents sampled, videos decoded. Every
stage leaves files, whole ones, so that a killed run goes on with --resume where it stopped:

    OUT/LABEL/NAME.mp4               the videos of a cache, named by number or as VBench expects them, and nothing else
    OUT/gif/LABEL/NAME.gif           small ones, to look at
    OUT/strips/000000.png            frames of one prompt, a row for every cache
    OUT/state/LABEL/                 claim.json, and by number figures/, rows/ of strips, and latents/ until they are decoded
    OUT/record.json                  everything measured, of all runs into this folder
    OUT/index.html                   all of it to look at (see `evaluation.page`)
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from cache_dic import Cache, UserError
from cache_dic.errors import shown_bytes
from evaluation.cells import CHANGES, FLICKER_MEANING, INTERVALS, flicker_columns
from evaluation.jobs import Job, Made, carry_out, workload_in_words
from evaluation.metrics import finite_or_none, summarize_samples
from evaluation.page import Shown, readable, write_page
from evaluation.validation.rules import screened
from evaluation.vbench import check_folder
from evaluation.video_metrics import flicker, video_psnr
from seerkit.command.cli import show_log
from seerkit.devices.distributed import World, gather, on_main
from seerkit.io.claims import Claim, renew_claim, state_folder
from seerkit.io.files import check_space, read_json, write_json
from seerkit.io.images import read_image
from seerkit.io.media import (
    enlarged,
    finite_rows,
    is_whole_gif,
    is_whole_video,
    labelled_grid,
    save_gif,
    save_mp4,
    save_png,
    shown_frames,
    video_to_uint8,
)
from seerkit.io.records import conditions
from seerkit.io.report import Comparison, Row, make_rows
from seerkit.io.tables import counted
from seerkit.sampling.compare import UNCACHED, Outcome, gather_outcomes, of_the_first, run_caches
from seerkit.text.prompts import Batch
from seerkit.weights.checkpoints import save_tensors

FLICKER_FRAMES = 3  # the fewest that can flicker
GIF_SIDE = 128  # videos up to this many pixels a side are also written as GIF
SHOWN_SIDE = 256  # of a frame in a strip, at most


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

    names: of the videos' files, without suffix. latent_shape: (C, T, h, w) of a sample. together: all processes make one
    video together instead of sharing the prompts.
    """

    names: Sequence[str]
    latent_shape: Sequence[int]
    together: bool
    make_pipeline: Callable[[World], VideoPipeline]

    @property
    def latent_bytes(self) -> int:
        """Of one sample."""
        return 4 * math.prod(self.latent_shape)

    def has_samples(self, label: str) -> bool:
        """Whether a cache has videos or latents in the folder, whole or not."""
        places = ((self.out / label, "*.mp4"), (state_folder(self.out, label) / "latents", "[0-9]*.safetensors"))
        return any(next(folder.glob(pattern), None) is not None for folder, pattern in places)


# --------------------------------------------------------------------------------------------------------------- files


class VideoFolder:
    """The videos of one cache, with what is known of them."""

    def __init__(self, job: VideoJob, label: str) -> None:
        self.job, self.label = job, label
        self.state = state_folder(job.out, label)

    def video(self, index: int) -> Path:
        return self.job.out / self.label / f"{self.job.names[index]}.mp4"

    def gif(self, index: int) -> Path:
        return self.job.out / "gif" / self.label / f"{self.job.names[index]}.gif"

    def latents(self, index: int) -> Path:
        return self.state / "latents" / f"{index:06d}.safetensors"

    def figures(self, index: int) -> Path:
        return self.state / "figures" / f"{index:06d}.json"

    def row(self, index: int) -> Path:
        return self.state / "rows" / f"{index:06d}.png"

    # ------------------------------------------------------------------------------------------------- latents

    def read_latents(self, index: int) -> Tensor | None:
        """Latents (C, T, h, w), None if they are missing, damaged, of another shape or not finite."""
        try:
            values = load_file(self.latents(index))["latents"]
        except (OSError, SafetensorError, KeyError):
            return None
        return values if values.shape == tuple(self.job.latent_shape) and values.isfinite().all() else None

    def write_latents(self, batch: Batch, latents: Tensor) -> list[int]:
        """Write latents (B, C, T, h, w); the numbers of those that are not finite, which are not written."""
        finite = finite_rows(latents)
        for index, values, whole in zip(batch.indices, latents, finite, strict=True):
            if whole:
                save_tensors(self.latents(index), {"latents": values.float().cpu().contiguous()})
        return [index for index, whole in zip(batch.indices, finite, strict=True) if not whole]

    # -------------------------------------------------------------------------------------------------- videos

    def write(self, index: int, frames: np.ndarray, reference: np.ndarray | None, fps: int) -> None:
        """Write the video of frames (T, H, W, 3), what goes with it, and last of all what was measured on it."""
        shown = enlarged(frames)
        save_mp4(self.video(index), shown, fps, quality=self.job.args.quality)
        if self.job.args.gif and min(shown.shape[1:3]) <= GIF_SIDE:
            save_gif(self.gif(index), shown, fps)
        save_png(self.row(index), np.concatenate(reduced(frames[shown_frames(len(frames))]), axis=1))
        own = {"prompt": self.job.prompts[index], "index": index, "cache": self.label}
        size = dict(zip(("frames", "height", "width"), shown.shape, strict=False))
        write_json(self.figures(index), {**own, **size, **figures(frames, reference)})

    def read_figures(self, index: int, *, compared: bool) -> dict[str, Any] | None:
        """What was measured on a video, None if that is missing. compared: against the uncached video, too."""
        try:
            measured = read_json(self.figures(index), "figures")
            return measured if measured["psnr"] is not None or not compared else None
        except (UserError, KeyError, TypeError):
            return None

    def has(self, index: int, *, compared: bool) -> bool:
        """Whether a video is there, measured and whole to its last frame, with all that goes with it."""
        measured = self.read_figures(index, compared=compared)
        if measured is None or measured.get("prompt") != self.job.prompts[index]:
            return False
        frames, height, width = (measured.get(name, 0) for name in ("frames", "height", "width"))
        gif = self.job.args.gif and min(height, width) <= GIF_SIDE
        return (
            is_whole_video(self.video(index), frames, height, width)
            and (not gif or is_whole_gif(self.gif(index), frames))
            and self.read_row(index) is not None
        )

    def shown(self, index: int) -> Shown | None:
        """What the page shows of a sample, None if there is no video of it."""
        measured = self.read_figures(index, compared=False)
        if measured is None or measured.get("prompt") != self.job.prompts[index] or not self.video(index).is_file():
            return None
        size = {name: measured[name] for name in ("frames", "height", "width")}
        return Shown(label=self.label, file=self.video(index), gif=self.gif(index), strip=self.row(index), **size)

    def read_row(self, index: int) -> np.ndarray | None:
        """The frames of a video that a strip shows, (n, H, W, 3); None if they are missing or damaged."""
        measured = self.read_figures(index, compared=False) or {}
        pixels = read_image(self.row(index))
        count = len(shown_frames(measured.get("frames", 0)))
        if pixels is None or not count or pixels.shape[1] % count:
            return None
        return np.stack(np.split(pixels, count, axis=1))


def reduced(frames: np.ndarray) -> np.ndarray:
    """Frames (n, H, W, 3) of at most SHOWN_SIDE pixels a side, by the mean over whole blocks of pixels."""
    factor = -(-max(frames.shape[1:3]) // SHOWN_SIDE)
    if factor == 1:
        return frames
    height, width = (side // factor for side in frames.shape[1:3])
    blocks = frames[:, : height * factor, : width * factor].reshape(-1, height, factor, width, factor, 3)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def strip_path(out: Path, index: int) -> Path:
    return out / "strips" / f"{index:06d}.png"


def write_strip(job: VideoJob, folders: Mapping[str, VideoFolder], index: int) -> None:
    """A sheet of the frames of one sample, a row for every cache that has it."""
    rows = {label: folder.read_row(index) for label, folder in folders.items()}
    rows = {label: row for label, row in rows.items() if row is not None}
    if rows:
        length = folders[next(iter(rows))].read_figures(index, compared=False)["frames"]
        labels = [label.replace("-", "\n", 1) for label in rows]
        sheet = labelled_grid(list(rows.values()), labels, [str(frame) for frame in shown_frames(length)])
        save_png(strip_path(job.out, index), sheet)


# -------------------------------------------------------------------------------------------------------------- stages


def find_missing(job: VideoJob, folders: Mapping[str, VideoFolder], world: World) -> dict[int, set[str]]:
    """By sample, the caches whose videos are to be made; all processes get the same answer.

    A video that is to be compared needs the uncached one, whose frames no file has.
    """
    missing: dict[int, set[str]] = {}
    mine = range(world.rank, len(job.prompts), world.size)
    for index in tqdm(mine, "looking", unit="sample", disable=not (world.is_main and job.args.resume), leave=False):
        wanted = {
            label
            for label, folder in folders.items()
            if not (job.args.resume and folder.has(index, compared=_is_compared(label, folders)))
        }
        if any(_is_compared(label, folders) for label in wanted):
            wanted.add(UNCACHED)
        if wanted:
            missing[index] = wanted
    return {index: labels for share in gather(missing, world) for index, labels in share.items()}


def _is_compared(label: str, labels: Mapping[str, Any]) -> bool:
    """Whether the videos of a cache are measured against uncached ones."""
    return UNCACHED in labels and label != UNCACHED


def sample_missing(
    job: VideoJob,
    pipeline: VideoPipeline,
    folders: Mapping[str, VideoFolder],
    claims: Mapping[str, Claim],
    missing: Mapping[int, set[str]],
    world: World,
) -> dict[str, Outcome]:
    """Sample the latents that the missing videos need; outcomes of all processes together."""
    batches = job.batches()

    def there(label: str, batch: Batch) -> bool:
        wanted = [index for index in batch.indices if label in missing.get(index, ())]
        return all(job.args.resume and folders[label].read_latents(index) is not None for index in wanted)

    # One process looks: while the others still do, it may already write.
    done = on_main(world, lambda: {(c, b.indices[0]) for c in folders for b in batches if there(c, b)})
    samples = sum(len(b.indices) for c in folders for b in batches if (c, b.indices[0]) not in done)
    check_space(job.out, job.latent_bytes * samples, "the latents, until their videos are written,")
    mine = batches if job.together else batches[world.rank :: world.size]
    pending = [batch for batch in mine if any((label, batch.indices[0]) not in done for label in folders)]
    outcomes = {label: Outcome() for label in job.caches}
    if pending:
        pipeline.encode(pending)
        pipeline.load(world)

        def keep(label: str, batch: Batch, latents: Tensor) -> list[int]:
            if world.is_main or not job.together:
                failed = folders[label].write_latents(batch, latents)
                renew_claim(job.out, label, claims[label])
                return failed
            return [index for index, whole in zip(batch.indices, finite_rows(latents), strict=True) if not whole]

        outcomes = run_caches(
            job.caches, pending, pipeline.sample, num_steps=job.num_steps, device=world.device,
            skip=lambda label, batch: (label, batch.indices[0]) in done, keep=keep, quiet=not world.is_main,
        )  # fmt: skip
        pipeline.unload()
    if job.together:
        outcomes = of_the_first(outcomes, world)
    return gather_outcomes(outcomes, world)


def decode_missing(
    job: VideoJob,
    pipeline: VideoPipeline,
    folders: Mapping[str, VideoFolder],
    claims: Mapping[str, Claim],
    missing: Mapping[int, set[str]],
    outcomes: Mapping[str, Outcome],
    world: World,
) -> None:
    """Decode this process's share of the missing videos, all caches of a sample together; adds to what failed.

    A sample whose latents are not there because its cache failed stays without a video.
    """
    mine = sorted(missing)[world.rank :: world.size]
    failed: dict[str, list[int]] = {label: [] for label in folders}
    for index in tqdm(mine, desc="videos", unit="video", disable=not world.is_main, mininterval=0.5):
        videos: dict[str, np.ndarray] = {}
        wanted = {label: folder for label, folder in folders.items() if label in missing[index]}
        there = {label: folder.read_latents(index) for label, folder in wanted.items()}
        lost = [label for label, latents in there.items() if latents is None and not outcomes[label].failed]
        if lost and all(folder.has(index, compared=_is_compared(c, folders)) for c, folder in wanted.items()):
            continue  # another process that works on this folder was faster
        if lost:
            raise UserError(f"{folders[lost[0]].latents(index)} went missing or was damaged meanwhile; use --resume")
        for label, latents in there.items():
            if latents is None:
                continue
            decoded = pipeline.decode(latents[None])
            if finite_rows(decoded) == [True]:
                (videos[label],) = video_to_uint8(decoded)
            else:
                failed[label].append(index)
        for label, frames in videos.items():
            reference = videos.get(UNCACHED) if label != UNCACHED else None
            folders[label].write(index, frames, reference, pipeline.fps)
            renew_claim(job.out, label, claims[label])
        for label in () if job.args.keep_latents else wanted:
            folders[label].latents(index).unlink(missing_ok=True)
    for index in range(world.rank, len(job.prompts), world.size):
        if index in missing or read_image(strip_path(job.out, index)) is None:
            write_strip(job, folders, index)
    for share in gather(failed, world):
        for label, indices in share.items():
            outcomes[label].failed += indices


def figures(frames: np.ndarray, reference: np.ndarray | None) -> dict[str, Any]:
    """PSNR to the uncached video (mean and least over the frames) and flicker of one video (T, H, W, 3).

    None for PSNR where there is nothing to compare with, and for its decibels where the videos are equal; None for flicker
    where frames are too few.
    """
    measured: dict[str, Any] = {"flicker": None, "psnr": None}
    if reference is not None:
        psnr = video_psnr(frames[None], reference[None])
        measured["psnr"] = {name: finite_or_none(values[0]) for name, values in psnr.items()}
    if len(frames) >= FLICKER_FRAMES:
        measured["flicker"] = float(flicker(frames[None])[0])
    return measured


def judge(folders: Mapping[str, VideoFolder], num_samples: int) -> dict[str, dict[str, Any]]:
    """By label: PSNR to the uncached videos and flicker, as `summarize_samples` has them."""
    measured: dict[str, list[dict[str, float | None]]] = {label: [] for label in folders}
    for label, folder in folders.items():
        compared = _is_compared(label, folders)
        for index in range(num_samples):
            row = folder.read_figures(index, compared=compared)
            if row is None:
                raise UserError(f"{folder.figures(index)} went missing or was damaged meanwhile; use --resume")
            found = {"psnr_db": row["psnr"]["mean_db"]} if compared else {}
            found |= {} if row["flicker"] is None else {"flicker": row["flicker"]}
            measured[label].append(found)
    return {
        label: summarize_samples(of, measured[UNCACHED] if _is_compared(label, folders) else None)
        for label, of in measured.items()
    }


# -------------------------------------------------------------------------------------------------------------- report


def compared(record: dict[str, Any], rows: Sequence[Row]) -> Comparison:
    """Some rows of a record as a table, with what its figures mean."""
    s, num_samples = record["settings"], record["num_samples"]
    measured = {"flicker": "flicker"} if any("flicker" in row for row in rows) else {}
    shown, left_out = screened(s["model"], measured, num_samples)
    return Comparison(
        title=s["model"],
        facts=f"{counted(num_samples, 'video')}, {workload_in_words(s)}",
        rows=rows,
        extra=flicker_columns(rows) if shown else {},
        explanations=[INTERVALS, *([FLICKER_MEANING, CHANGES] if shown else []), *left_out],
    )


ENCODED = (
    "The videos shown are compressed, and so are their differences here; PSNR and flicker were measured on the frames before "
    "that, PSNR as the mean over frames."
)
LOSSLESS = "The videos keep their frames as they are, which not every browser plays; PSNR is the mean over frames."


def write_video_page(job: VideoJob, record: dict[str, Any]) -> None:
    """The page of a record, with all its caches that have videos of this run's prompts."""
    rows = readable(record["rows"])
    samples = []
    for index, prompt in enumerate(job.prompts):
        made = (VideoFolder(job, row["label"]).shown(index) for row in rows)
        samples.append((prompt, [shown for shown in made if shown is not None]))
    there = {shown.label for _, made in samples for shown in made}
    note = LOSSLESS if job.args.quality == "lossless" else ENCODED
    comparison = compared(record, [row for row in rows if row["label"] in there])
    write_page(job.page_path, record, comparison, samples, notes=[note])


def make(job: VideoJob, counts: dict[str, Any], world: World) -> Made:
    """Make the videos that are missing and all that is made of them: the files described above.

    The record, on the first process and where there is a video, and what became of every cache; check that with
    `Job.check_outcomes`, since videos that did not come out finite are not written.
    """
    args, latent_bytes = job.args, total_latent_bytes(job)
    folders = {label: VideoFolder(job, label) for label in job.caches}

    def prepare() -> dict[str, Claim]:
        kept = latent_bytes if args.keep_latents and not args.resume else 0
        claims = job.prepare(world, counts, disk_bytes=kept)
        check_folder(job.names, job.out)
        return claims

    claims = on_main(world, prepare)
    if world.is_main and not args.json:
        until = "are kept" if args.keep_latents else "are dropped when their videos are written"
        print(f"latents take up to {shown_bytes(latent_bytes)} in {job.out} and {until}")
    pipeline = job.make_pipeline(world)
    missing = find_missing(job, folders, world)
    outcomes = sample_missing(job, pipeline, folders, claims, missing, world)
    world.barrier()
    decode_missing(job, pipeline, folders, claims, missing, outcomes, world)
    world.barrier()
    if not world.is_main:
        return None, outcomes
    for folder in folders.values():
        with contextlib.suppress(OSError):  # still has some, or never was
            (folder.state / "latents").rmdir()
    whole = {label: folder for label, folder in folders.items() if not outcomes[label].failed}
    return report(job, counts, outcomes, whole, world) if whole else None, outcomes


def report(
    job: VideoJob,
    counts: dict[str, Any],
    outcomes: dict[str, Outcome],
    folders: dict[str, VideoFolder],
    world: World,
) -> dict[str, Any]:
    """Write record and page of the caches whose videos are all there, and return the record."""
    earlier = job.earlier_rows()
    scores = judge(folders, len(job.prompts))
    record = {
        "command": job.command,
        "command_line": job.command_line(world.size),
        "settings": job.settings,
        "units": "flops_T: 10^12 operations and latency: seconds, both for one batch; psnr: dB to the uncached videos, "
        "mean over frames; flicker: grey levels of 255; low, high: Student's 95 % interval of the mean over samples",
        "num_samples": len(job.prompts),
        "processes": world.size,
        "rows": make_rows(
            {label: job.caches[label] for label in folders}, job.num_steps, outcomes, counts, scores, earlier
        ),
        "conditions": conditions(world.device, job.dtype),
    }
    record = job.write_record(record, earlier)
    write_video_page(job, record)
    return record


def total_latent_bytes(job: VideoJob) -> int:
    """Of all samples of all caches."""
    return job.latent_bytes * len(job.prompts) * len(job.caches)


def run(job: VideoJob) -> dict[str, Any] | None:
    """Carry out a job of a command: the files, and a table or the record on stdout.

    The record, on the first process; None elsewhere and where nothing is made. UserError, at the end, for videos that did not
    come out finite.
    """
    counts = job.counts()
    if job.args.dry_run:
        job.print_plan(counts, latent_bytes=total_latent_bytes(job))
        return None

    def text(record: dict[str, Any]) -> str:
        table = compared(record, job.own_rows(record)).text()
        strips = job.out / "strips"
        return f"\n{table}\nvideos: {job.out}\nstrips of frames: {strips}\nrecord: {job.record_path}\npage: {job.page_path}"

    def made(world: World) -> Made:
        if world.is_main and not job.args.json:
            show_log()
        return make(job, counts, world)

    return carry_out(job, made, text)
