"""Sample the images of an FID evaluation: PNGs and one .npz for the ADM evaluator, on one process or many, resumable.

Sample i is a function of seed and i alone. Noise and class come from its own generators, and samples bB … bB + B - 1 are
always computed together, the last batch filled up with samples that are not kept. So for a batch size B the files are the
same to the byte for every number of processes (of as many threads) and after every interruption. For pixel models in fp32
on CPUs with MKL they are also the same for every B and number of threads, because sums are then taken in one order
(`fix_summation_order`, `fold_alike`). Elsewhere (CUDA, bf16, fp16, the autoencoder) another B or number of threads can round
otherwise in the last bits, and so move a pixel by a grey level now and then; another kind of processor can everywhere.
"""

import hashlib
import json
import time
import zipfile
from argparse import BooleanOptionalAction
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from cache_dic import Cache
from dit import DiTConfig
from dit.command import Batch, Pipeline, add_model_flags, caches, config_of, resolved
from dit.weights import find_dit
from seerkit.cli import Parser, positive_int, run_command, show_log
from seerkit.distributed import World, on_main, start_world
from seerkit.files import writable_directory, write_json, written_whole
from seerkit.media import save_png, to_uint8
from seerkit.outputs import claim_folder, image_path, read_image
from seerkit.records import conditions
from seerkit.seeds import derive_seed, fix_summation_order

EXAMPLES = """
python TaylorSeer-DiT/sample_ddp.py --num-fid-samples 1000 --method taylorseer --interval 4
torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2 --image-size 256 --interval 4
torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2 --image-size 256 --method uncached --ddpm-sample
"""

GROUP_BYTES_PER_SAMPLE = 2**24  # features that the folded engine holds before it folds them together
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
    return Batch(indices, [class_of(i, args.seed, config.num_classes, balanced=args.balanced) for i in indices])


def fold_alike(cache: Cache, batch_size: int) -> Cache:
    """The cache with groups of the same sites for every batch size; a group is summed before it is accumulated."""
    settings = replace(cache.engine_settings, group_bytes=GROUP_BYTES_PER_SAMPLE * batch_size)
    return replace(cache, engine_settings=settings)


# ---------------------------------------------------------------------------------------------------------------- files


def folder_name(args, cache: Cache) -> str:
    """`MODEL[-size-S]-LABEL-SOLVER-steps-50-cfg-1.5-seed-0[-balanced]`."""
    parts = [args.model]
    parts += ["size", args.image_size] if args.image_size else []
    parts += [cache.label, "ddpm" if args.ddpm_sample else "ddim", "steps", args.num_sampling_steps]
    parts += ["cfg", args.cfg_scale, "seed", args.seed, *(["balanced"] if args.balanced else [])]
    return "-".join(map(str, parts)).replace("/", "-")


def settings_of(args, config: DiTConfig, cache: Cache) -> dict[str, Any]:
    """What the images depend on, but for the weights; the checkpoint's path is no part of it."""
    settings = resolved(args, config)
    del settings["ckpt"]
    return {
        **settings,
        "classes": "balanced" if args.balanced else "random",
        "tf32": args.tf32,
        "cache": cache.label,
        "accumulator_dtype": args.accumulator_dtype,
        "full_steps": list(cache.plan(args.num_sampling_steps).full_steps),
    }


def weights_digest(model: nn.Module) -> str:
    """The start of the SHA-256 of the weights as they are used, whatever file or layout they came in."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.flatten().view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()[:16]


def image_shape(config: DiTConfig) -> tuple[int, int, int]:
    """(H, W, 3 or 1) of an image: the autoencoder makes 8 pixels of a latent unit."""
    return (
        (8 * config.input_size,) * 2 + (3,)
        if config.in_channels == 4
        else (config.input_size,) * 2 + (config.in_channels,)
    )


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
            raise ValueError(
                f"{image_path(folder, index)} went missing or was damaged meanwhile; run the command again"
            )
        yield pixels


# ------------------------------------------------------------------------------------------------------------ processes


def find_missing(folder: Path, count: int, shape: tuple[int, int, int], world: World) -> list[int]:
    """Indices of samples that are not there whole; each process looks at its share, all get the same answer."""
    share = tqdm(range(world.rank, count, world.size), "checking", disable=not world.is_main, leave=False, delay=5)
    missing = [i for i in share if read_image(image_path(folder, i), shape) is None]
    shares = [missing]
    if world.size > 1:
        shares = [None] * world.size
        dist.all_gather_object(shares, missing)
    return sorted(i for share in shares for i in share)


def make_samples(
    pipeline: Pipeline, cache: Cache, missing: list[int], folder: Path, done: int, world: World
) -> dict | None:
    """Make the missing samples, batch by batch in turn over the processes; the record of this process's last run."""
    args, record = pipeline.args, None
    wanted: dict[int, list[int]] = {}
    for index in missing:
        wanted.setdefault(index // args.per_proc_batch_size, []).append(index)
    batches = list(wanted)
    with tqdm(total=args.num_fid_samples, initial=done, unit="image", disable=not world.is_main, smoothing=0.05) as bar:
        for first in range(0, len(batches), world.size):
            turn = batches[first : first + world.size]
            if world.rank < len(turn):
                number = turn[world.rank]
                batch = make_batch(number, args, pipeline.config)
                latents, run = pipeline.sample(cache, batch)
                images = to_uint8(pipeline.decode(latents))
                for index in wanted[number]:
                    save_png(image_path(folder, index), images[index - batch.indices[0]])
                record = run.record()
            bar.update(sum(len(wanted[number]) for number in turn))
    return record


# -------------------------------------------------------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, chosen = config_of(args), caches(args)
    if len(chosen) > 1:
        raise ValueError(
            f"one cache is sampled at a time, these are {len(chosen)}: {', '.join(chosen)}; name one method and interval"
        )
    cache = fold_alike(*chosen.values(), args.per_proc_batch_size)
    folder = args.sample_dir / folder_name(args, cache)
    npz = folder.with_name(folder.name + ".npz")
    settings, shape = settings_of(args, config, cache), image_shape(config)
    if args.dry_run:
        size = {"num_samples": args.num_fid_samples, "per_proc_batch_size": args.per_proc_batch_size}
        print(json.dumps({"settings": settings, **size, "folder": str(folder), "npz": str(npz)}, indent=2))
        return

    fix_summation_order()
    world = start_world(args.device)
    torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision = (
        "tf32" if args.tf32 else "ieee"
    )
    if world.is_main and not args.json:
        show_log()

    def prepare() -> None:
        writable_directory(folder)
        find_dit(config, args.ckpt)  # one process downloads what the others then load

    on_main(world, prepare)
    pipeline = Pipeline(args, world.device)
    claimed = {**settings, "weights": weights_digest(pipeline.model)}
    on_main(world, lambda: claim_folder(folder, claimed, flag="--sample-dir"))
    if not (folder / "settings.json").is_file():
        raise ValueError(f"process {world.rank} does not see {folder}; --sample-dir must be shared by all nodes")
    missing = find_missing(folder, args.num_fid_samples, shape, world)
    began = time.perf_counter()
    run = make_samples(pipeline, cache, missing, folder, args.num_fid_samples - len(missing), world)
    world.barrier()
    if not world.is_main:
        return
    seconds = time.perf_counter() - began
    npz_shape = (args.num_fid_samples, *shape[:2], 3)
    write_npz(npz, kept_images(folder, args.num_fid_samples, shape), npz_shape)
    record = {
        "command": "TaylorSeer-DiT/sample_ddp.py",
        "settings": json.loads((folder / "settings.json").read_text()),
        "units": "seconds: from the first model call to the last file, of the samples made by this run of the command",
        "num_samples": args.num_fid_samples,
        "num_made": len(missing),
        "seconds": seconds,
        "per_proc_batch_size": args.per_proc_batch_size,
        "num_processes": world.size,
        "ckpt": str(args.ckpt) if args.ckpt else None,
        "npz": str(npz),
        "npz_shape": npz_shape,
        "run": run,
        "conditions": conditions(world.device, pipeline.model.pos_embed.dtype),
    }
    write_json(folder / "record.json", record)
    if args.json:
        print(json.dumps(record))
        return
    print(f"{args.num_fid_samples} images, {len(missing)} made now in {seconds:.1f} s by {world.size} process(es)")
    print(f"images: {folder}\nnpz: {npz}\nrecord: {folder / 'record.json'}")


if __name__ == "__main__":
    run_command(main)
