"""What the commands that sample several caches share, be it images or videos: the job that a command line asks for.

A job checks plan, weights, prompts and sizes before it makes anything, replaces whole results one by one, and adds to the
records of its folder.
"""

import argparse
import json
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cache_dic import Cache, UserError
from cache_dic.cache import free_bytes
from cache_dic.errors import shown_bytes
from cache_dic.settings import values_of
from evaluation.backbones import count_caches
from seerkit.devices.distributed import World, start_world
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.claims import CACHE, PROMPTS, Claim, claim_samples, claimed_labels, state_folder
from seerkit.io.files import check_space, clear_partial, content_digest, read_json, writable_or_gone, write_json
from seerkit.io.images import digest
from seerkit.io.report import Row
from seerkit.sampling.compare import Outcome
from seerkit.text.prompts import Batch, make_batches

PATHS = ("ckpt", "vae", "image")  # settings that name files, whose contents are claimed instead
LONG_LIST = re.compile(r"\[[^][{}\"]*\]")  # of numbers, which JSON would spread over as many lines
SCRIPT = "TAYLORSEER_SCRIPT"  # the environment variable in which a scripts/run_*.sh names itself
CALMEST = {"interval": 1, "max_order": 0}  # settings that make forecasts smaller when they are lowered, and their least
LEAST_STREAMS = 4  # of the model's token stream at once in a full step: its tokens, queries, keys and values

Read = Mapping[str, Sequence[Path]]
"""Files and folders that a model reads, by the part that they are of."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a command line asks for. args: parsed, those of the caches among them.

    prompts: one per sample. caches: by label. settings: what the samples depend on but for caches, model and num_steps among
    them. sizes: of the workload, for `evaluation.backbones.workload`. out: gets a folder for every cache. find(world): look
    for, or download, every file that the model needs, and return them. record_name: of the record in `out`, without suffix.
    """

    command: str
    args: argparse.Namespace
    prompts: list[str]
    caches: dict[str, Cache]
    settings: dict[str, Any]
    sizes: dict[str, Any]
    out: Path
    find: Callable[[World], Read]
    record_name: str = "record"

    @property
    def record_path(self) -> Path:
        return self.out / f"{self.record_name}.json"

    @property
    def page_path(self) -> Path:
        """index.html, which is what opens a folder, or named as the record is where that has a name of its own."""
        return self.record_path.with_name("index.html" if self.record_name == "record" else f"{self.record_name}.html")

    def command_line(self, num_processes: int) -> str:
        """What repeats this run from the root of the repository: the script that it was started by, where that was one."""
        if num_processes > 1:
            launcher = ["torchrun", f"--nproc_per_node={num_processes}", self.command]
        elif script := os.environ.get(SCRIPT):
            launcher = ["bash", script]
        else:
            launcher = ["python", self.command]
        return shlex.join([*launcher, *self.args.command_line])

    @property
    def num_steps(self) -> int:
        return self.settings["num_steps"]

    @property
    def dtype(self) -> torch.dtype:
        return torch_dtype(self.args.precision)

    def batches(self) -> list[Batch]:
        return make_batches(self.prompts, self.args.batch_size)

    def counts(self) -> dict[str, dict[str, Any]]:
        """By label, FLOPs, full steps and kept bytes of the first batch."""
        samples = len(self.batches()[0].indices)
        return count_caches(
            self.settings["model"], self.caches, self.num_steps, self.dtype, num_samples=samples, **self.sizes
        )

    def print_plan(self, counts: dict[str, dict[str, Any]], **more: Any) -> None:
        """What --dry-run prints."""
        print_json({"settings": self.settings, "output_dir": str(self.out), "batch": counts, **more})

    # ----------------------------------------------------------------------------------------------------- before

    def prepare(
        self,
        world: World,
        counts: Mapping[str, Mapping[str, Any]],
        *,
        disk_bytes: int,
    ) -> dict[str, Claim]:
        """Everything that can be refused is refused here, before anything is made; then the folder is this job's.

        The claims, by label. disk_bytes: the least that the samples take. One process does this for all.
        """
        check_memory(counts, world.device)
        with writable_or_gone(self.out):
            check_space(self.out, disk_bytes, f"{len(self.prompts)} samples of {len(self.caches)} caches")
            claims = self.claims(digests(self.find(world)), world.device)
            claims = claim_samples(self.out, claims, has_samples=self.has_samples)
        clear_partial(self.out)
        return claims

    def has_samples(self, label: str) -> bool:
        """Whether a cache has samples in the folder, whole or not."""
        raise NotImplementedError

    def claims(self, contents: Mapping[str, str], device: torch.device) -> dict[str, Claim]:
        """By label, everything that the samples of a cache depend on."""
        shared = {PROMPTS: self.prompts, **self.settings}
        return {
            label: make_claim(shared, contents, cache, self.num_steps, self.args.accumulator_dtype, self.dtype, device)
            for label, cache in self.caches.items()
        }

    # ------------------------------------------------------------------------------------------------------ after

    def earlier_rows(self) -> dict[str, Row]:
        """By label, what earlier runs of this folder have recorded, each with its conditions and number of samples."""
        try:
            record = read_json(self.record_path, "record")
            shared = {name: record[name] for name in ("conditions", "num_samples")}
            shared["command_line"] = record.get("command_line")
            return {row["label"]: {**shared, **row} for row in record["rows"]}
        except (UserError, KeyError, TypeError):  # none, or one that nothing can be taken from
            return {}

    def write_record(self, record: dict[str, Any], earlier: Mapping[str, Row]) -> dict[str, Any]:
        """Write the record, with the rows of caches that earlier runs have sampled into this folder and this one has not."""
        known = {row["label"] for row in record["rows"]}
        others = [
            row for label, row in earlier.items() if label not in known and state_folder(self.out, label).is_dir()
        ]
        record["rows"] += others
        write_json(self.record_path, record)
        return record

    def own_rows(self, record: Mapping[str, Any]) -> list[Row]:
        """Those of a record that this run has made."""
        return [row for row in record["rows"] if row["label"] in self.caches]

    def check_outcomes(self, outcomes: Mapping[str, Outcome]) -> None:
        """UserError naming the samples that did not come out finite, with what can be done."""
        broken = {label: outcome.failed for label, outcome in outcomes.items() if outcome.failed}
        if broken:
            kept = any(map(self.has_samples, claimed_labels(self.out)))
            raise UserError(failure_message(broken, self.caches, self.dtype, kept=kept))


Made = tuple[dict[str, Any] | None, dict[str, Outcome]]
"""The record of a job, on the first process and where there is a sample, and what became of every cache."""


def carry_out(job: Job, make: Callable[[World], Made], text: Callable[[dict[str, Any]], str]) -> dict[str, Any] | None:
    """Make a job's samples, and print its record, as `text` has it unless it is asked for itself.

    The record, on the first process; None elsewhere and where nothing is made. UserError, at the end, for samples that did not
    come out finite.
    """
    world = start_world(job.args.device)
    record, outcomes = make(world)
    if not world.is_main:
        return None
    if record is not None:
        print(json.dumps(record) if job.args.json else text(record))
    job.check_outcomes(outcomes)
    return record


def print_json(value: Any) -> None:
    """A plan as JSON with its lists of numbers on lines of their own."""
    print(LONG_LIST.sub(lambda found: " ".join(found[0].split()), json.dumps(value, indent=2)))


def workload_in_words(settings: Mapping[str, Any]) -> str:
    """Sizes, steps and batch of a job's settings."""
    frames = f", {settings['frames']} frames" if "frames" in settings else ""
    return (
        f"{settings['width']}x{settings['height']}{frames}, {settings['num_steps']} steps, batches of "
        f"{settings['batch_size']}"
    )


def make_claim(
    settings: Mapping[str, Any],
    contents: Mapping[str, str],
    cache: Cache,
    num_steps: int,
    accumulator_dtype: str | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Claim:
    """Everything that samples depend on. contents: digests of what was read, by part.

    In float32 on a CPU, without compilation, sums are taken in one order whatever the batch; elsewhere the size of a batch may
    move a pixel by a grey level, and belongs to the claim.
    """
    left_out = set(PATHS)
    if dtype == torch.float32 and device.type == "cpu" and not settings.get("compile"):
        left_out.add("batch_size")
    return {
        **{name: value for name, value in settings.items() if name not in left_out},
        "device": device.type,
        "contents": dict(contents),
        CACHE: {
            "method": cache.method,
            "plan": cache.plan(num_steps).claim(),
            "engine": cache.engine,
            "accumulator_dtype": accumulator_dtype,
        },
    }


def digests(read: Read) -> dict[str, str]:
    """What tells the contents of a model's files apart, by part."""
    return {part: content_digest(*paths) for part, paths in read.items()}


def failure_message(
    broken: Mapping[str, Sequence[int]], caches: Mapping[str, Cache], dtype: torch.dtype, *, kept: bool
) -> str:
    """What is said of samples, by cache, that did not come out finite.

    kept: whether their folder keeps others, beside which none of other settings can be; a cache of other settings can.
    """
    told = []
    for label, indices in broken.items():
        shown = ", ".join(map(str, sorted(indices)[:8])) + (", …" if len(indices) > 8 else "")
        told.append(f"sample {shown} of {label}")
    asked = [{**caches[label].schedule_values, **values_of(caches[label].forecaster)} for label in broken]
    lower = [name for name, least in CALMEST.items() if all((settings.get(name) or 0) > least for settings in asked)]
    calmer = f"lower {' or '.join('--' + name.replace('_', '-') for name in lower)}, or " if lower else ""
    others, elsewhere = (", the others are kept", "another --output-dir with ") if kept else ("", "")
    precision = "" if dtype == torch.float32 else "--precision fp32 or "
    return (
        f"{'; '.join(told)} came out with NaN or infinity: not written, nor were more samples of that cache made{others}; "
        f"{calmer}take {elsewhere}{precision}a lower guidance weight"
    )


def check_memory(counts: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    """UserError if a full step cannot fit the device, by the least that it must hold at once."""
    free = free_bytes(device)
    needed = LEAST_STREAMS * max((count.get("stream_bytes", 0) for count in counts.values()), default=0)
    if free is not None and needed > free:
        raise UserError(
            f"a step of this size holds at least {shown_bytes(needed)} at once, and {shown_bytes(free)} are free on "
            f"{device}; ask for fewer pixels or frames, or a smaller batch"
        )


def output_folder(given: Path | None, family: str, settings: dict[str, Any]) -> Path:
    """The folder asked for, or outputs/FAMILY/MODEL-DIGEST."""
    return given or Path("outputs") / family / f"{settings['model'].replace('/', '-')}-{digest(settings)}"
