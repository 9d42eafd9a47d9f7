"""Scores of folders of videos by VBench's own package, vbench 0.1.5, in the legacy environment.

One process and one call a dimension, each with a result file of its own, so that a failure costs one dimension and a killed run
goes on where it stopped:

    WORK/DIMENSION.json    score, values of the videos, and `claim`: everything that they depend on
    WORK/DIMENSION.log     what VBench printed
    WORK/DIMENSION.run/    while it runs: links to the videos of the dimension alone, and VBench's own files

VBench leaves out what it cannot find or read, and gives the mean of the rest. So the videos that a dimension must have are
listed here, read to their last frame by OpenCV, and counted in its answer. It runs as one process on one device: with several,
appearance_style and subject_consistency are other means. Scores depend on the codec of the videos, whose rate factor is
recorded, and a little on the device.
"""

import contextlib
import functools
import math
import re
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_dic import UserError
from cache_dic.errors import check_choice
from evaluation.legacy import (
    SETUP,
    LegacyError,
    LegacyWorker,
    legacy_facts,
    weights_digests,
)
from evaluation.metrics import mean_interval
from evaluation.scoring.samples import in_words, read_video
from evaluation.vbench import FLICKERING
from evaluation.vbench_dimensions import (
    DIMENSIONS,
    DINO,
    LIMIT_S,
    VARIABLE,
    Dimension,
    check_missing,
    summary,
    vbench_folder,
)
from seerkit.io.files import content_digest, read_json, write_json
from seerkit.io.images import digest
from seerkit.io.records import misfit
from seerkit.text.prompts import read_list

MOST_SAMPLES = 5  # of a prompt, that VBench looks at
CODEC_BYTES = 2**20  # of a video, among which x264 says what it was told
STATIC = (
    "meant for videos of static scenes: VBench's own protocol has 25 of a prompt and scores the first 5 that its static filter "
    "keeps (on a GPU alone); here, as in published figures of caching methods, nothing is filtered"
)

# ----------------------------------------------------------------------------------------------------------------- videos


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video that a dimension must have. name: that VBench knows it by, PROMPT-N.mp4. path: the file."""

    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What a dimension is scored on. entries: of the list, as VBench reads them. videos: in its order.

    A prompt that the list has twice for a dimension has its videos twice, as VBench counts them.
    """

    entries: Sequence[Mapping[str, Any]]
    videos: Sequence[Video]
    samples_per_prompt: int

    @property
    def files(self) -> dict[str, Path]:
        """By name, each once."""
        return {video.name: video.path for video in self.videos}


def read_full_info(path: Path) -> list[dict[str, Any]]:
    """The entries of a list such as VBench_full_info.json; UserError for one that is none."""
    if path.suffix.lower() != ".json":
        raise UserError(
            f'{path} is no list of VBench; give a .json file such as VBench_full_info.json, with "dimension"'
        )
    read_list(path)
    return read_json(path, "list")


def expected(
    entries: Sequence[Mapping[str, Any]], dimension: str, videos: Path, samples_per_prompt: int | None = None
) -> Expected:
    """The videos that a dimension must have, which all exist; UserError that names those which do not.

    A video is called PROMPT-N.mp4, or NAME-N.mp4 where an entry has a name. samples_per_prompt: None for as many as the prompt
    with the most of them has, at most MOST_SAMPLES.
    """
    check_choice("dimension", dimension, DIMENSIONS)
    mine = [entry for entry in entries if dimension in entry.get("dimension", ())]
    if not mine:
        raise UserError(f"no prompt of the list is for {dimension}; give a list with that dimension")
    stems = {entry["prompt_en"]: entry.get("name") or entry["prompt_en"] for entry in mine}
    if slashed := [prompt for prompt in stems if "/" in prompt]:
        raise UserError(f"VBench finds videos by their names, and {slashed[0]!r} has a slash; leave it out of the list")
    there = {path.name for path in videos.iterdir()} if videos.is_dir() else set()
    counts = [
        max((n + 1 for n in range(MOST_SAMPLES) if f"{stem}-{n}.mp4" in there), default=0) for stem in stems.values()
    ]
    count = samples_per_prompt or max(counts)
    names = [f"{stem}-{n}.mp4" for stem in stems.values() for n in range(max(count, 1))]
    if absent := [name for name in names if name not in there]:
        raise UserError(
            f"{videos} lacks {len(absent)} of the {len(names)} videos of {dimension}: {in_words(absent)}; make them (with "
            "--vbench, which names them so), or give the list of the prompts that there are"
        )
    listed = [
        Video(name=f"{prompt}-{n}.mp4", path=(videos / f"{stems[prompt]}-{n}.mp4").absolute())
        for prompt in (entry["prompt_en"] for entry in mine)
        for n in range(count)
    ]
    return Expected(entries=mine, videos=listed, samples_per_prompt=count)


def check_videos(paths: Sequence[Path]) -> None:
    """UserError that names every video that OpenCV does not read to its last frame, or that has one frame alone."""
    faults = []
    for path in paths:
        status = path.stat()
        faults += filter(None, [_fault(path, status.st_size, status.st_mtime_ns)])
    if faults:
        raise UserError(f"{in_words(faults)}; nothing is scored, as VBench would leave these out without a word")


@functools.cache
def _fault(path: Path, *_: int) -> str | None:
    """Of a file of this size and time of change, so that a video of several dimensions is read once."""
    try:
        frames, _ = read_video(path)
    except UserError as error:
        return str(error)
    return f"video {path} has one frame, and nothing can be said of its motion" if len(frames) < 2 else None


def codecs(paths: Sequence[Path]) -> list[str]:
    """What the encoder of videos says of itself, such as `x264 core 165 crf=25.0`, each once."""
    return sorted({_codec(path) for path in paths})


def _codec(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(CODEC_BYTES)
    core = re.search(rb"x264 - core (\d+)", head)
    rate = re.search(rb" rc=\w+ [^\0]*?\b((?:crf|qp|bitrate)=[\d.]+)", head)
    if core is None:
        return "unknown"
    return " ".join(["x264 core", core[1].decode(), *([rate[1].decode()] if rate else [])])


# ---------------------------------------------------------------------------------------------------------------- scoring


def _number(value: Any) -> bool:
    """a number, finite or not"""
    return isinstance(value, float | int)


def _values(value: Any) -> bool:
    """a list of names and numbers"""
    pairs = isinstance(value, list) and all(isinstance(one, list) and len(one) == 2 for one in value)
    return pairs and all(isinstance(name, str) and _number(number) for name, number in value)


ANSWER = {"score": _number, "values": _values, "device": str}
RESULT = {"raw": float, "normalised_percent": float, "interval_percent": ([float], None), "values": _values}
"""What is read of a result file, whose claim says that it is whole."""


def score_dimension(
    dimension: str, wanted: Expected, work: Path, *, device: str = "auto", resume: bool = True, limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """The result of one dimension, from its file where that is of the same claim, else scored and written there.

    raw and normalised_percent; interval_percent, of the latter over the prompts' means (Student's, 95 %), None where the score
    is not the mean over videos or there is one prompt; values, name and value of each video in VBench's own units; seconds,
    device, codecs and claim. UserError where something is missing, cannot be read, or is not answered in full.
    """
    check_missing([dimension])
    facts, asked, paths = legacy_facts(), DIMENSIONS[dimension], list(wanted.files.values())
    claim = {
        "dimension": dimension,
        "device": device,
        "entries": digest(wanted.entries, 16),
        "videos": digest({name: content_digest(path) for name, path in wanted.files.items()}, 16),
        "samples_per_prompt": wanted.samples_per_prompt,
        "weights": weights_digests(asked.needed, vbench_folder()),
        "python": facts["python"],
        "versions": facts["versions"],
    }
    place = work / f"{dimension}.json"
    if resume and (kept := _kept(place, claim)):
        return kept
    check_videos(paths)
    work.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    answer = _run(dimension, wanted, work, device, limit_s)
    _check_answer(dimension, wanted, answer)
    result = {
        "raw": answer["score"],
        "normalised_percent": 100 * asked.normalised(answer["score"]),
        "interval_percent": _interval(asked, answer),
        "num_videos": len(wanted.videos),
        "num_values": len(answer["values"]),
        "samples_per_prompt": wanted.samples_per_prompt,
        "seconds": time.monotonic() - start,
        "device": answer["device"],
        "codecs": codecs(paths),
        "values": answer["values"],
        "claim": claim,
    }
    write_json(place, result)
    return result


def _run(dimension: str, wanted: Expected, work: Path, device: str, limit_s: float) -> dict[str, Any]:
    """VBench's answer on links to the videos, in a process whose log keeps others from this dimension."""
    folder = (work / f"{dimension}.run").absolute()
    weights = vbench_folder()
    variables = {VARIABLE: str(weights)}
    if DINO in DIMENSIONS[dimension].needed:  # loaded from the cache of torch.hub, whatever VBench says
        variables["TORCH_HOME"] = str(folder / "torch")
    there = weights if weights.is_dir() else None
    with LegacyWorker(variables=variables, folder=there, log=work / f"{dimension}.log") as worker:
        shutil.rmtree(folder, ignore_errors=True)
        try:
            (folder / "videos").mkdir(parents=True)
            for name, path in wanted.files.items():
                (folder / "videos" / name).symlink_to(path)
            if "TORCH_HOME" in variables:
                checkpoints = folder / "torch" / "hub" / "checkpoints"
                checkpoints.mkdir(parents=True)
                (checkpoints / Path(DINO.name).name).symlink_to(weights / DINO.name)
            write_json(folder / "full_info.json", list(wanted.entries))
            return worker.ask(
                "vbench",
                ANSWER,
                limit_s=limit_s,
                dimension=dimension,
                full_info=str(folder / "full_info.json"),
                videos=str(folder / "videos"),
                out=str(folder / "out"),
                device=device,
            )
        except LegacyError as error:
            if error.kind == "UnpicklingError":
                files = ", ".join(str(weights / one.name) for one in DIMENSIONS[dimension].needed)
                raise LegacyError(
                    f"{dimension}: torch refuses to load one of {files}, which is damaged or holds more than tensors; where "
                    f"you trust its source, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 ({error})"
                ) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _check_answer(dimension: str, wanted: Expected, answer: Mapping[str, Any]) -> None:
    """UserError for an answer that is not of all videos that were expected, or not finite."""
    listed = sorted(video.name for video in wanted.videos)
    answered = sorted(name for name, _ in answer["values"])
    if DIMENSIONS[dimension].is_partial:
        strange = [name for name in answered if name not in set(listed)]
        wrong = bool(strange) or len(answered) > len(listed)
    else:
        wrong = answered != listed
    if wrong:
        absent = [name for name in dict.fromkeys(listed) if answered.count(name) < listed.count(name)]
        told = f", none of {in_words(absent)}" if absent else ""
        raise UserError(f"VBench answered {len(answered)} values of {dimension} for {len(listed)} videos{told}")
    bad = [name for name, value in answer["values"] if not math.isfinite(value)]
    if bad or not math.isfinite(answer["score"]):
        told = f": {in_words(bad)}" if bad else ""
        raise UserError(f"{dimension} is not finite{told}; the weights may be damaged, or such videos too short")


def _interval(asked: Dimension, answer: Mapping[str, Any]) -> list[float] | None:
    """Of the normalised score in percent, low and high, prompts being independent of each other."""
    prompts: dict[str, list[float]] = {}
    for name, value in answer["values"]:
        prompts.setdefault(name.rpartition("-")[0], []).append(asked.per_value * value)
    means = [statistics.fmean(values) for values in prompts.values()]
    if len(means) < 2 or not math.isclose(statistics.fmean(means), answer["score"], rel_tol=1e-6, abs_tol=1e-9):
        return None
    found = mean_interval(means)
    return [100 * asked.normalised(found[end]) for end in ("low", "high")]


def _kept(place: Path, claim: Mapping[str, Any]) -> dict[str, Any] | None:
    """A result of the same claim that an earlier run has left."""
    with contextlib.suppress(UserError):
        kept = read_json(place, "result")
        if isinstance(kept, dict) and kept.get("claim") == claim and misfit(kept, RESULT) is None:
            return kept
    return None


# ----------------------------------------------------------------------------------------------------------------- record


def full_info_path(given: Path | None) -> Path:
    """The list of prompts: the one that is given, or VBench's own."""
    if given is not None:
        return given
    folder = legacy_facts()["vbench_folder"]
    if folder is None:
        raise UserError(f"VBench's own list of prompts comes with VBench: `{SETUP}`, or name a list by --full-info")
    return Path(folder) / "VBench_full_info.json"


def score_videos(
    videos: Path,
    full_info: Path,
    dimensions: Sequence[str],
    work: Path,
    *,
    samples_per_prompt: int | None = None,
    device: str = "auto",
    resume: bool = True,
    limit_s: float = LIMIT_S,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Scores of a folder of videos: part of a record. tell: is given a line for each dimension.

    dimensions: by name, raw and normalised_percent with its interval_percent, counts, seconds, device, codecs; errors: of
    those that failed, by name; quality, semantic and total in percent, None where one lacks a dimension. Everything that can be
    refused, for all dimensions, is refused before the first one runs.
    """
    entries = read_full_info(full_info)
    check_missing(dimensions)
    wanted = {name: expected(entries, name, videos, samples_per_prompt) for name in dimensions}
    scored, errors = {}, {}
    for name, one in wanted.items():
        try:
            result = score_dimension(name, one, work, device=device, resume=resume, limit_s=limit_s)
        except UserError as error:
            errors[name] = str(error)
            tell(f"{name}: {error}")
            continue
        scored[name] = {key: value for key, value in result.items() if key not in ("values", "claim")}
        tell(f"{name}: {result['normalised_percent']:.2f} % (raw {result['raw']:.4f})")
    facts = legacy_facts()
    return {
        "videos": str(videos),
        "full_info": {"file": str(full_info), "digest": content_digest(full_info)},
        "dimensions": scored,
        "errors": errors,
        **summary({name: result["raw"] for name, result in scored.items()}),
        "notes": {FLICKERING: STATIC} if FLICKERING in scored else {},
        "python": facts["python"],
        "versions": facts["versions"],
    }
