"""Samples for an FID by index, shared by processes: the folder and the .npz that they end in."""

import argparse
import json
import math
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cache_dic import Cache, UserError
from evaluation.images import ImagePipeline, decode_finite, save_finite
from evaluation.jobs import Read, digests, failure_message, make_claim
from seerkit.command.cli import show_log
from seerkit.devices.distributed import World, gather, on_main, start_world
from seerkit.devices.dtypes import float32_products, torch_dtype
from seerkit.io.claims import Claim, claim_samples, renew_claim
from seerkit.io.files import check_space, clear_partial, writable_or_gone, write_json, written_whole
from seerkit.io.images import image_path, read_image
from seerkit.io.records import Form, conditions, read_record
from seerkit.sampling.seeds import derive_seed
from seerkit.text.prompts import Batch, check_number

RUN: Form = {"num_samples": int, "num_made": int, "npz": (None, str), "run": (None, dict)}
RECORD: Form = ({"settings": dict, "runs": [RUN]}, {"settings": dict, **RUN})
"""What is read of an earlier record: a run by number of samples or, as they once were, the last run alone."""
SHARED = ("command", "settings", "units")  # of a record, by all its runs

CLASS_KEY = 1  # beside seed and index, so that a sample's class and noise are drawn apart


@dataclass(frozen=True, kw_only=True)
class FidJob:
    """What a command line asks for. args: parsed: seed, batch_size, num_fid_samples, balanced, output_dir, resume, … .

    class_names: of the model. shape: (H, W, C) of an image. name: of the folder and the .npz. settings: what the images
    depend on but for the cache and the contents of files. find: look for, or download, every file that the model needs, and
    return them.
    """

    command: str
    args: argparse.Namespace
    cache: Cache
    class_names: Sequence[str]
    shape: tuple[int, int, int]
    name: str
    settings: Mapping[str, Any]
    find: Callable[[], Read]
    make_pipeline: Callable[[torch.device], ImagePipeline]


# -------------------------------------------------------------------------------------------------------------- samples


def class_of(index: int, seed: int, num_classes: int, *, balanced: bool) -> int:
    """The class of sample `index`: index mod num_classes, or uniform from its own seed (off by less than 1e-12)."""
    return index % num_classes if balanced else derive_seed(seed, index, CLASS_KEY) % num_classes


def make_batch(number: int, job: FidJob) -> Batch:
    """Batch `number`, always full: a sample has the same neighbours whatever is missing or asked for."""
    args, names = job.args, job.class_names
    indices = list(range(number * args.batch_size, (number + 1) * args.batch_size))
    return Batch(indices, [names[class_of(i, args.seed, len(names), balanced=args.balanced)] for i in indices])


# ---------------------------------------------------------------------------------------------------------------- files


def npz_path(folder: Path, count: int) -> Path:
    """FOLDER.npz, or FOLDER-COUNT.npz beside one that holds more images."""
    whole = folder.with_name(f"{folder.name}.npz")
    return folder.with_name(f"{folder.name}-{count}.npz") if images_in(whole) > count else whole


def images_in(path: Path) -> int:
    """How many images an .npz of ours holds, 0 if there is none or it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
            np.lib.format.read_magic(file)
            shape, _, _ = np.lib.format.read_array_header_1_0(file)
            return shape[0]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return 0


def record_path(folder: Path) -> Path:
    """Beside the folder, which holds what evaluators read and nothing else."""
    return folder.with_name(f"{folder.name}.json")


def earlier_runs(folder: Path, claim: Claim) -> dict[int, dict[str, Any]]:
    """By number of samples, what the record of a folder holds of runs with the same claim."""
    try:
        record = read_record(record_path(folder), RECORD, "TaylorSeer-DiT/sample_ddp.py")
    except UserError:  # none, or one that nothing can be taken from
        return {}
    if record["settings"] != json.loads(json.dumps(claim)):
        return {}
    runs = record.get("runs") or [{name: value for name, value in record.items() if name not in SHARED}]
    return {run["num_samples"]: run for run in runs}


def with_run(runs: Mapping[int, dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """All runs of a record, by number of samples; of one number that which made the most of them, the last one among equals.

    An .npz that the new run has written is of its number alone.
    """
    count, npz = new["num_samples"], new["npz"]
    kept = max(new, runs.get(count, new), key=lambda run: run["num_made"])
    others = [
        run | {"npz": None} if run.get("npz") and Path(run["npz"]).name == Path(npz).name else run
        for number, run in runs.items()
        if number != count
    ]
    return sorted([*others, kept | {"npz": npz}], key=lambda run: run["num_samples"])


def write_npz(path: Path, images: Iterable[np.ndarray], shape: tuple[int, int, int, int]) -> None:
    """`arr_0`, uint8 of `shape`, as np.savez writes it: image by image, so that it need not fit into memory, and undated."""
    with written_whole(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        member = zipfile.ZipInfo("arr_0.npy")  # dated 1980
        with archive.open(member, "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for image in images:
                file.write(np.ascontiguousarray(np.broadcast_to(image, shape[1:])).data)


def kept_images(folder: Path, count: int, shape: tuple[int, int, int]) -> Iterable[np.ndarray]:
    for index in range(count):
        pixels = read_image(image_path(folder, index), shape)
        if pixels is None:
            raise UserError(f"{image_path(folder, index)} went missing or was damaged meanwhile; run the command again")
        yield pixels


# ------------------------------------------------------------------------------------------------------------ processes


def find_missing(folder: Path, count: int, shape: tuple[int, int, int], world: World) -> list[int]:
    """Indices of samples that are not there whole; each process looks at its share, all get the same answer."""
    share = tqdm(range(world.rank, count, world.size), "checking", disable=not world.is_main, leave=False, delay=5)
    missing = [i for i in share if read_image(image_path(folder, i), shape) is None]
    return sorted(i for share in gather(missing, world) for i in share)


def make_samples(
    job: FidJob, pipeline: ImagePipeline, missing: list[int], folder: Path, claim: Claim, done: int, world: World
) -> tuple[dict | None, list[int]]:
    """Make the missing samples, batch by batch in turn over the processes.

    The record of this process's last run, and the numbers of its samples that did not come out finite, after which it stops.
    """
    args, record = job.args, None
    failed: list[int] = []
    wanted: dict[int, list[int]] = {}
    for index in missing:
        wanted.setdefault(index // args.batch_size, []).append(index)
    batches = list(wanted)
    with tqdm(total=args.num_fid_samples, initial=done, unit="image", disable=not world.is_main, smoothing=0.05) as bar:
        for first in range(0, len(batches), world.size):
            turn = batches[first : first + world.size]
            if world.rank < len(turn) and not failed:
                number = turn[world.rank]
                batch = make_batch(number, job)
                latents, run = pipeline.sample(job.cache, batch, lambda *_: None)
                rows = [index - batch.indices[0] for index in wanted[number]]
                images = decode_finite(pipeline, latents)[rows]
                failed = save_finite(folder, wanted[number], images)
                renew_claim(args.output_dir, job.name, claim)
                record = run.record()
            bar.update(sum(len(wanted[number]) for number in turn))
    return record, failed


def make(job: FidJob, world: World) -> dict[str, Any] | None:
    """Make the images that are missing, the .npz and the record, of which the first process returns this run's part.

    UserError where they cannot be made.
    """
    args, cache, settings, shape = job.args, job.cache, job.settings, job.shape
    count, folder = args.num_fid_samples, args.output_dir / job.name
    check_number(count)

    def has_samples(_: str) -> bool:
        return any(folder.glob("*.png"))

    def prepare() -> dict[str, Any]:
        """Refuse what can be refused before anything is made; the claim of the folder, which is then this run's."""
        with writable_or_gone(folder):
            check_space(args.output_dir, count * math.prod(shape), f"the .npz of {count} images")
            contents = digests(job.find())  # one process downloads what the others then load
            dtype = torch_dtype(args.precision)
            claim = make_claim(settings, contents, cache, args.num_steps, args.accumulator_dtype, dtype, world.device)
            claim_samples(args.output_dir, {job.name: claim}, has_samples=has_samples, alone=True)
        clear_partial(folder)
        clear_partial(args.output_dir, folder.with_name(f"{job.name}.npz"))
        return claim

    claim = on_main(world, prepare)
    if not folder.is_dir():
        raise UserError(f"process {world.rank} does not see {folder}; --output-dir must be shared by all nodes")
    missing = find_missing(folder, count, shape, world) if args.resume else list(range(count))
    began = time.perf_counter()
    run, failed = None, []
    if missing:
        with float32_products("tf32" if args.tf32 else "ieee"):
            pipeline = job.make_pipeline(world.device)
            run, failed = make_samples(job, pipeline, missing, folder, claim, count - len(missing), world)
    failed = [index for share in gather(failed, world) for index in share]
    if not world.is_main:
        return None
    if failed:
        kept, dtype = has_samples(job.name), torch_dtype(args.precision)
        raise UserError(failure_message({cache.label: failed}, {cache.label: cache}, dtype, kept=kept))
    seconds = time.perf_counter() - began
    npz, npz_shape = npz_path(folder, count), (count, *shape[:2], 3)
    write_npz(npz, kept_images(folder, count, shape), npz_shape)
    earlier = earlier_runs(folder, claim)
    shared = {
        "command": job.command,
        "settings": claim,
        "units": "seconds: from the first model call to the last file, of the num_made samples that a run of the command made, "
        "null where it made none",
    }
    own = {
        "num_samples": count,
        "num_made": len(missing),
        "seconds": seconds if missing else None,
        "num_processes": world.size,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "npz": str(npz),
        "npz_shape": npz_shape,
        "run": run or next(filter(None, (other.get("run") for other in earlier.values())), None),
        "conditions": conditions(world.device, torch_dtype(args.precision)),
    }
    write_json(record_path(folder), shared | {"runs": with_run(earlier, own)})
    return shared | own


def run(job: FidJob) -> None:
    """Carry out a job of a command: the files, and a summary or the record on stdout."""
    args, cache = job.args, job.cache
    count, folder = args.num_fid_samples, args.output_dir / job.name
    if args.dry_run:
        check_number(count)
        shown = {"num_samples": count, "folder": str(folder), "npz": str(npz_path(folder, count))}
        plan = cache.plan(args.num_steps)
        full_steps = list(plan.full_steps) if plan.foreseen else "decided while sampling"
        print(json.dumps({"settings": job.settings, "cache": cache.label, "full_steps": full_steps, **shown}, indent=2))
        return
    world = start_world(args.device)
    if world.is_main and not args.json:
        show_log()
    record = make(job, world)
    if record is None:
        return
    if args.json:
        print(json.dumps(record))
        return
    made, seconds, size = record["num_made"], record["seconds"], record["num_processes"]
    now = f"{made} made now in {seconds:.1f} s by {size} process(es)" if made else "none made now"
    print(f"{count} images, {now}")
    print(f"images: {folder}\nnpz: {record['npz']}\nrecord: {record_path(folder)}")
