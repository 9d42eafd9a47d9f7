"""Sample the images of an FID evaluation: PNGs and one .npz for the ADM evaluator, on one process or many, resumable.

Sample i is a function of seed and i alone. Noise and class come from its own generators, and samples bB … bB + B - 1 are
always computed together, the last batch filled up with samples that are not kept. So for a batch size B the files are the
same to the byte for every number of processes (of as many threads) and after every interruption. For pixel models in fp32
on CPUs with MKL they are also the same for every B and number of threads, because sums are then taken in one order
(`seerkit.command.cli`). Elsewhere (CUDA, bf16, fp16, the autoencoder) another B or number of threads can round
otherwise in the last bits, and so move a pixel by a grey level now and then; another kind of processor can everywhere.
"""

from seerkit.command.cli import Parser, positive_int, run_command, show_log  # isort: skip

import json
import math
import time
import zipfile
from argparse import BooleanOptionalAction
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cache_dic import Cache, UserError
from dit import DiTConfig
from dit.command import (
    Pipeline,
    add_model_flags,
    caches,
    class_names,
    config_of,
    find_everything,
    resolved,
)  # fmt: skip
from evaluation.images import decode_finite, save_finite
from evaluation.jobs import check_number, digests, failure_message, make_claim
from seerkit.devices.distributed import World, gather, on_main, start_world
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.claims import claim_samples
from seerkit.io.files import check_space, clear_partial, read_json, writable_directory, write_json, written_whole
from seerkit.io.images import image_path, read_image
from seerkit.io.records import conditions
from seerkit.sampling.seeds import derive_seed
from seerkit.text.prompts import Batch

EXAMPLES = """
python TaylorSeer-DiT/sample_ddp.py --num-fid-samples 1000 --method taylorseer --interval 4
torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2 --image-size 256 --interval 4 --compile
torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2 --image-size 256 --method uncached --ddpm-sample
"""

CLASS_KEY = 1  # beside seed and index, so that a sample's class and noise are drawn apart


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    add_model_flags(parser, guidance_scale=1.5)
    parser.add_argument("--num-fid-samples", type=positive_int, default=50000, help="images in the .npz")
    parser.add_argument(
        "--per-proc-batch-size", type=positive_int, default=32, help="samples a model call; always full"
    )
    parser.add_argument(
        "--sample-dir",
        type=Path,
        default=Path("outputs/samples"),
        help="gets a folder and a .npz for every configuration; shared by all nodes",
    )
    parser.add_argument("--balanced", action="store_true", help="class i mod num_classes (default: drawn uniformly)")
    parser.add_argument("--tf32", action=BooleanOptionalAction, default=True, help="TF32 matrix products on CUDA")
    parser.add_argument(
        "--resume",
        action=BooleanOptionalAction,
        default=True,
        help="keep the images that are there, make those missing; --no-resume makes all again",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved configuration and paths, and stop")
    parser.add_argument("--json", action="store_true", help="print the record instead of a summary")
    return parser.parse_args(argv)


# -------------------------------------------------------------------------------------------------------------- samples


def class_of(index: int, seed: int, num_classes: int, *, balanced: bool) -> int:
    """The class of sample `index`: index mod num_classes, or uniform from its own seed (off by less than 1e-12)."""
    return index % num_classes if balanced else derive_seed(seed, index, CLASS_KEY) % num_classes


def make_batch(number: int, args, config: DiTConfig) -> Batch:
    """Batch `number`, always full: a sample has the same neighbours whatever is missing or asked for."""
    indices = list(range(number * args.per_proc_batch_size, (number + 1) * args.per_proc_batch_size))
    names = class_names(config)
    return Batch(indices, [names[class_of(i, args.seed, len(names), balanced=args.balanced)] for i in indices])


# ---------------------------------------------------------------------------------------------------------------- files


def folder_name(args, cache: Cache) -> str:
    """`MODEL[-size-S]-LABEL-SOLVER-steps-50-cfg-1.5-seed-0[-balanced]`."""
    parts = [args.model]
    parts += ["size", args.image_size] if args.image_size else []
    parts += [cache.label, "ddpm" if args.ddpm_sample else "ddim", "steps", args.num_sampling_steps]
    parts += ["cfg", args.cfg_scale, "seed", args.seed, *(["balanced"] if args.balanced else [])]
    return "-".join(map(str, parts)).replace("/", "-")


def settings_of(args, config: DiTConfig) -> dict[str, Any]:
    """What the images depend on, but for the cache and the contents of files."""
    return {
        **resolved(args, config),
        "classes": "balanced" if args.balanced else "random",
        "tf32": args.tf32,
        "batch_size": args.per_proc_batch_size,
    }


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


def earlier_run(folder: Path) -> dict[str, Any] | None:
    """What an earlier run of the command recorded of its last sampling run."""
    try:
        return read_json(record_path(folder), "record")["run"]
    except (UserError, KeyError, TypeError):
        return None


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
    pipeline: Pipeline, cache: Cache, missing: list[int], folder: Path, done: int, world: World
) -> tuple[dict | None, list[int]]:
    """Make the missing samples, batch by batch in turn over the processes.

    The record of this process's last run, and the numbers of its samples that did not come out finite, after which it stops.
    """
    args, record = pipeline.args, None
    failed: list[int] = []
    wanted: dict[int, list[int]] = {}
    for index in missing:
        wanted.setdefault(index // args.per_proc_batch_size, []).append(index)
    batches = list(wanted)
    with tqdm(total=args.num_fid_samples, initial=done, unit="image", disable=not world.is_main, smoothing=0.05) as bar:
        for first in range(0, len(batches), world.size):
            turn = batches[first : first + world.size]
            if world.rank < len(turn) and not failed:
                number = turn[world.rank]
                batch = make_batch(number, args, pipeline.config)
                latents, run = pipeline.sample(cache, batch)
                rows = [index - batch.indices[0] for index in wanted[number]]
                images = decode_finite(pipeline, latents)[rows]
                failed = save_finite(folder, wanted[number], images)
                record = run.record()
            bar.update(sum(len(wanted[number]) for number in turn))
    return record, failed


# -------------------------------------------------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, chosen = config_of(args), caches(args)
    if len(chosen) > 1:
        raise UserError(
            f"one cache is sampled at a time, these are {len(chosen)}: {', '.join(chosen)}; name one method and interval"
        )
    ((label, cache),) = chosen.items()
    count, shape = args.num_fid_samples, config.image_shape
    check_number(count)
    name = folder_name(args, cache)
    folder, settings = args.sample_dir / name, settings_of(args, config)
    if args.dry_run:
        shown = {"num_samples": count, "folder": str(folder), "npz": str(npz_path(folder, count))}
        full_steps = list(cache.plan(args.num_sampling_steps).full_steps)
        print(json.dumps({"settings": settings, "cache": label, "full_steps": full_steps, **shown}, indent=2))
        return

    world = start_world(args.device)
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = (
        "tf32" if args.tf32 else "ieee"
    )
    if world.is_main and not args.json:
        show_log()

    def prepare() -> dict[str, Any]:
        """Refuse what can be refused before anything is made; the claim of the folder, which is then this run's."""
        writable_directory(folder)
        check_space(args.sample_dir, count * math.prod(shape), f"the .npz of {count} images")
        contents = digests(find_everything(args, config))  # one process downloads what the others then load
        dtype = torch_dtype(args.precision)
        claim = make_claim(
            settings, contents, cache, args.num_sampling_steps, args.accumulator_dtype, dtype, world.device
        )
        claim_samples(
            args.sample_dir,
            {name: claim},
            has_samples=lambda _: any(folder.glob("*.png")),
            flag="--sample-dir",
            alone=True,
        )
        clear_partial(folder)
        clear_partial(args.sample_dir, folder.with_name(f"{name}.npz"))
        return claim

    claim = on_main(world, prepare)
    if not folder.is_dir():
        raise UserError(f"process {world.rank} does not see {folder}; --sample-dir must be shared by all nodes")
    missing = find_missing(folder, count, shape, world) if args.resume else list(range(count))
    began = time.perf_counter()
    run, failed = None, []
    if missing:
        pipeline = Pipeline(args, world.device)
        run, failed = make_samples(pipeline, cache, missing, folder, count - len(missing), world)
    failed = [index for share in gather(failed, world) for index in share]
    if not world.is_main:
        return
    if failed:
        raise UserError(failure_message({label: failed}))
    seconds = time.perf_counter() - began
    npz, npz_shape = npz_path(folder, count), (count, *shape[:2], 3)
    write_npz(npz, kept_images(folder, count, shape), npz_shape)
    record = {
        "command": "TaylorSeer-DiT/sample_ddp.py",
        "settings": claim,
        "units": "seconds: from the first model call to the last file, of the samples made by this run of the command",
        "num_samples": count,
        "num_made": len(missing),
        "seconds": seconds,
        "num_processes": world.size,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "npz": str(npz),
        "npz_shape": npz_shape,
        "run": run or earlier_run(folder),
        "conditions": conditions(world.device, torch_dtype(args.precision)),
    }
    write_json(record_path(folder), record)
    if args.json:
        print(json.dumps(record))
        return
    print(f"{count} images, {len(missing)} made now in {seconds:.1f} s by {world.size} process(es)")
    print(f"images: {folder}\nnpz: {npz}\nrecord: {record_path(folder)}")


if __name__ == "__main__":
    run_command(main)
