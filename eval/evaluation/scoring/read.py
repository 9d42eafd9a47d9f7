"""Reading sets of samples shard by shard: kept as it is done, shared by processes, the same whatever was interrupted.

A shard is always read whole, so that what comes out of it does not depend on which shards a killed run had left. Beneath a work
folder, which may serve any number of sets and measures:

    READING-DIGEST/000000.safetensors    the arrays of a shard; the digest is that of contents, facts and shard size
    READING-DIGEST/claim.json            what the digest is of
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from tqdm import tqdm

from cache_dic import UserError
from evaluation.scoring.measures import Reading, Score, find_measure
from evaluation.scoring.samples import Samples, check_pairs, in_words
from seerkit.devices.distributed import World, gather
from seerkit.devices.dtypes import float32_products
from seerkit.io.claims import claimed_folder, open_claimed
from seerkit.weights.checkpoints import save_tensors

SHARD, VIDEO_SHARD = 50, 4  # samples, which are in memory together


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is scored: samples, and what they may be compared with; pairs and prompts are one for each sample."""

    samples: Samples
    reference: Samples | None = None
    pairs: Samples | None = None
    prompts: Sequence[str] | None = None

    def __post_init__(self) -> None:
        count = len(self.samples.names)
        for name, given in (("pairs", self.pairs and self.pairs.names), ("prompts", self.prompts)):
            if given is not None and len(given) != count:
                raise UserError(
                    f"{self.samples.path} has {count} samples and there are {len(given)} {name}; one for each is needed"
                )
        for other in (self.reference, self.pairs):
            if other is not None and other.is_video != self.samples.is_video:
                kinds = [("images", "videos")[one.is_video] for one in (self.samples, other)]
                raise UserError(
                    f"{self.samples.path} holds {kinds[0]} and {other.path} {kinds[1]}; compare like with like"
                )
        if self.pairs is not None:
            check_pairs(self.samples, self.pairs)


@dataclass(frozen=True)
class Shard:
    """Some samples of a task, read when they are asked for."""

    task: Task
    indices: range

    @cached_property
    def frames(self) -> list[np.ndarray]:
        """Of every sample (T, H, W, 3) uint8."""
        return _all_read(self.task.samples, self.indices)

    @cached_property
    def pairs(self) -> list[np.ndarray]:
        """Of every sample the frames that it is compared with, of the same shape."""
        assert self.task.pairs is not None
        found = _all_read(self.task.pairs, self.indices)
        for index, ours, theirs in zip(self.indices, self.frames, found, strict=True):
            if ours.shape != theirs.shape:
                names = (one.path / one.names[index] for one in (self.task.samples, self.task.pairs))
                told = [f"{name} is {frames.shape}" for name, frames in zip(names, (ours, theirs), strict=True)]
                raise UserError(f"{' and '.join(told)} (frames, height, width, channels); pairs must be of one shape")
        return found

    @property
    def prompts(self) -> list[str]:
        assert self.task.prompts is not None
        return [self.task.prompts[index] for index in self.indices]


def _all_read(samples: Samples, indices: range) -> list[np.ndarray]:
    """UserError that names every sample of them that cannot be read."""
    found, failures = [], []
    for index in indices:
        try:
            found.append(samples.read(index))
        except UserError as error:
            failures.append(str(error))
    if failures:
        raise UserError("; ".join(failures))
    return found


class Readout:
    """The arrays of a set, on disk, in the order of its samples.

    samples: what was read. facts: of the reading. statistics: mean and covariance that come with a reference, and stand for its
    arrays, which then are not there.
    """

    def __init__(
        self,
        samples: Samples,
        paths: Sequence[Path],
        facts: Mapping[str, Any],
        statistics: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        self.samples, self.paths, self.facts, self.statistics = samples, paths, facts, statistics

    def shards(self, name: str) -> Iterator[np.ndarray]:
        """One array, shard by shard, so that it need not fit into memory."""
        for path in self.paths:
            with safe_open(path, framework="np") as file:
                yield file.get_tensor(name)

    def whole(self, name: str) -> np.ndarray:
        """One array of the whole set."""
        return np.concatenate(list(self.shards(name)))


def read_samples(reading: Reading, task: Task, work: Path, world: World, *, quiet: bool = False) -> Readout:
    """Read whatever shards are not there, this process its share of them; the arrays of all."""
    size = VIDEO_SHARD if task.samples.is_video else SHARD
    claim = {
        "samples": task.samples.digest(),
        **{name: value for name, value in _beside(task).items() if name in reading.of},
        "reading": reading.name,
        "facts": dict(reading.facts),
        "shard": size,
        "device": world.device.type,
    }
    folder = claimed_folder(work, reading.name, claim)
    count = len(task.samples.names)
    starts = range(0, count, size)
    paths = {start: folder / f"{start:06d}.safetensors" for start in starts}
    if world.is_main:
        open_claimed(folder, claim)
    world.barrier()
    absent = [start for start in starts[world.rank :: world.size] if not _is_whole(paths[start])]
    missing = sorted(start for share in gather(absent, world) for start in share)
    mine = missing[world.rank :: world.size]
    failures: list[str] = []
    if mine:
        read: Callable[[Shard], Mapping[str, np.ndarray]] = reading.load(world.device)
        for start in tqdm(mine, reading.name, unit="shard", disable=quiet or not world.is_main, leave=False):
            shard = Shard(task, range(start, min(start + size, count)))
            try:
                with float32_products("ieee"):
                    arrays = read(shard)
            except UserError as error:  # the others are read all the same, and all faults told at once
                failures.append(str(error))
                continue
            _check_finite(arrays, shard)
            save_tensors(paths[start], {name: torch.from_numpy(values.copy()) for name, values in arrays.items()})
    told = [line for share in gather(failures, world) for line in share]
    if told:
        _refuse(
            f"{in_words(told)}; nothing is scored until all {count} samples can be read, what was read is kept", world
        )
    return Readout(task.samples, list(paths.values()), reading.facts)


def _refuse(message: str, world: World) -> NoReturn:
    """UserError on the first process, which reports it; the others leave quietly."""
    if world.is_main:
        raise UserError(message)
    sys.exit(2)


def _beside(task: Task) -> dict[str, Any]:
    return {"pairs": task.pairs and task.pairs.digest(), "prompts": task.prompts and list(task.prompts)}


def _is_whole(path: Path) -> bool:
    try:
        load_file(path)
    except (OSError, SafetensorError):
        return False
    return True


def _check_finite(arrays: Mapping[str, np.ndarray], shard: Shard) -> None:
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            first, last = (shard.task.samples.names[index] for index in (shard.indices[0], shard.indices[-1]))
            raise UserError(f"{name} of a sample among {first} to {last} is not finite; the weights may be damaged")


# ------------------------------------------------------------------------------------------------------------- scores


def check_task(task: Task, names: Sequence[str]) -> list[str]:
    """What stands in the way of measures of a task, a line for each."""
    there = {name for name in ("reference", "pairs", "prompts") if getattr(task, name) is not None}
    there.add("video" if task.samples.is_video else "image")
    lines: dict[str, list[str]] = {}
    for measure in map(find_measure, names):
        lacking = sorted(measure.needs - there)
        for line in [*([", ".join(lacking)] if lacking else []), *measure.missing()]:
            lines.setdefault(line, []).append(measure.name)
    return [f"{', '.join(found)} {'need' if len(found) > 1 else 'needs'} {line}" for line, found in lines.items()]


def score(
    task: Task,
    names: Sequence[str],
    work: Path,
    world: World,
    *,
    allow_duplicates: bool = False,
    quiet: bool = False,
) -> dict[str, Score]:
    """By name of a measure, its score on the first process; elsewhere nothing.

    Readings are kept beneath `work`. UserError for what stands in the way, and for samples that cannot be read.
    """
    if lines := check_task(task, names):
        _refuse("; ".join(lines), world)
    check_samples(task, work, world, allow_duplicates=allow_duplicates, quiet=quiet)
    scores, readouts = {}, dict[str, Readout]()

    def read(reading: Reading, of: Task) -> Readout:
        """Once for all measures of a reading."""
        key = json.dumps([reading.name, dict(reading.facts), of is task], sort_keys=True)
        if key not in readouts:
            readouts[key] = read_samples(reading, of, work, world, quiet=quiet)
        return readouts[key]

    for measure in map(find_measure, names):
        reading = measure.reading()
        reference = given = None
        if task.reference is not None and measure.statistics:
            given = task.reference.statistics(*measure.statistics)  # first, since wrong ones are refused
        readout = read(reading, task)
        if "reference" in measure.needs:
            assert task.reference is not None
            if given:
                reference = Readout(task.reference, [], reading.facts, given)
            else:
                reference = read(reading, Task(samples=task.reference))
        if world.is_main:
            found = measure.score(readout, reference)
            assert found["value"] is None or np.isfinite(found["value"])
            stand_in = ["stand-in weights"] if reading.facts.get("stand_in_weights") else []
            qualifiers = [*found.pop("qualifiers", ()), *stand_in]
            scores[measure.name] = {
                "title": measure.title + (f" ({', '.join(qualifiers)})" if qualifiers else ""),
                **found,
                "num": found.get("num", len(task.samples.names)),
                "facts": dict(reading.facts),
            }
        world.barrier()
    return scores


def _digests(shard: Shard) -> dict[str, np.ndarray]:
    """Of the pixels of every sample, (B, 4) of 64 bits."""
    hashes = [hashlib.sha256(f"{frames.shape}".encode() + frames.tobytes()).digest() for frames in shard.frames]
    return {"digest": np.frombuffer(b"".join(hashes), dtype=np.int64).reshape(-1, 4)}


PIXELS = Reading(name="pixels", facts={}, load=lambda _: _digests)
"""What tells samples apart, and that all of them can be read."""


def check_samples(task: Task, work: Path, world: World, *, allow_duplicates: bool, quiet: bool) -> None:
    """UserError naming samples that cannot be read, or that are equal to the last pixel, which a lost seed makes."""
    digests = read_samples(PIXELS, task, work, world, quiet=quiet).whole("digest")
    alike: dict[bytes, list[str]] = {}
    for name, digest in zip(task.samples.names, digests, strict=True):
        alike.setdefault(digest.tobytes(), []).append(name)
    groups = [" = ".join(names[:3]) + (" = …" if len(names) > 3 else "") for names in alike.values() if len(names) > 1]
    if groups and not allow_duplicates:
        _refuse(
            f"{task.samples.path} holds samples that are equal to the last pixel: {in_words(groups)}; make them anew, or take "
            "--allow-duplicates where they may be",
            world,
        )
