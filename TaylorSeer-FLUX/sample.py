"""Images from prompts with a caching method, or with several beside the uncached run: PNGs, a grid, a table, a record.

Image i is that of prompt i and depends on its prompt, --seed and i alone. A killed run goes on with --resume; under torchrun
the processes share the prompts.
"""

import json
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_dic import Cache
from evaluation.backbones import count_caches
from evaluation.metrics import psnr, summarize_psnr
from evaluation.scorer import Scorer, load_scorer
from flux.command import (
    EMBEDDED,
    Pipeline,
    add_flags,
    caches,
    encode_prompts,
    fill_defaults,
    find_everything,
    prompts_of,
    settings_of,
)  # fmt: skip
from seerkit.cli import PRECISIONS, Parser, run_command, show_log
from seerkit.compare import UNCACHED, Outcome, gather_outcomes, run_caches
from seerkit.distributed import World, on_main, start_world
from seerkit.files import writable_directory, write_json
from seerkit.media import save_png, to_uint8
from seerkit.outputs import claim_folder, digest, image_path, read_image
from seerkit.prompts import Batch, make_batches
from seerkit.records import conditions
from seerkit.report import comparison_table, draw_grid, make_rows
from seerkit.seeds import fix_summation_order
from seerkit.tables import number

EXAMPLES = """
python TaylorSeer-FLUX/sample.py --compare
python TaylorSeer-FLUX/sample.py --prompt "red apple, noto" "rocket, 3d render" --interval 6 --max-order 2
python TaylorSeer-FLUX/sample.py --model_name flux-dev --prompt "a photo of a fox in the snow" --offload
torchrun --nproc_per_node=8 TaylorSeer-FLUX/sample.py --model_name flux-dev --prompt_file DrawBench.txt --compare --resume
"""
SHOWN = 16  # images of a row of the grid, at most


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    add_flags(parser)
    parser.add_argument(
        "--output_dir", type=Path, help="gets a folder of PNGs for every cache (default: outputs/flux/MODEL-DIGEST)"
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
    args = parser.parse_args(argv)
    fill_defaults(args)
    return args


# -------------------------------------------------------------------------------------------------------------- sample


class Folder:
    """The images of one cache: OUTPUT_DIR/LABEL/000000.png and on, with settings.json beside them."""

    def __init__(self, parent: Path, label: str, args) -> None:
        self.path, self.shape = parent / label, (args.height, args.width, 3)

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
        for index, prompt, pixels in zip(batch.indices, batch.prompts, images, strict=True):
            own = None if settings is None else {**settings, "prompt": prompt, "index": index}
            save_png(image_path(self.path, index), pixels, own)


def sample_all(
    args, chosen: dict[str, Cache], batches: list[Batch], folders: dict[str, Folder], world: World
) -> dict[str, Outcome]:
    """Make the images that are missing, this process's share of the batches; outcomes of all processes together."""
    mine = batches[world.rank :: world.size]
    pending = [batch for batch in mine if not all(folder.has(batch) for folder in folders.values())]
    outcomes = {label: Outcome() for label in chosen}
    if pending:
        pipeline = Pipeline(args, pending, world.device)
        shown = settings_of(args, ())
        del shown["prompts"]  # each image has its own

        def keep(label: str, batch: Batch, latents: Tensor) -> None:
            settings = {**shown, "cache": label} if args.add_sampling_metadata else None
            folders[label].write(batch, to_uint8(pipeline.decode(latents)), settings)

        outcomes = run_caches(
            chosen, pending, pipeline.sample, num_steps=args.num_steps, device=world.device,
            skip=lambda label, batch: folders[label].has(batch), keep=keep, quiet=not world.is_main,
        )  # fmt: skip
    return gather_outcomes(outcomes, world)


# -------------------------------------------------------------------------------------------------------------- report


def load_images(folder: Folder, num_images: int) -> np.ndarray:
    """All images of a cache, (N, H, W, 3) uint8."""
    images = [folder.read(index) for index in range(num_images)]
    for index, pixels in enumerate(images):
        if pixels is None:
            raise ValueError(f"{image_path(folder.path, index)} went missing or was damaged meanwhile; use --resume")
    return np.stack(images)


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
            f"trained on, and {scorer['floor']:.1f} with shuffled captions"
        )


def report(
    args, chosen: dict[str, Cache], counts: dict[str, Any], outcomes: dict[str, Outcome], folders: dict[str, Folder],
    settings: dict[str, Any], out: Path, device: torch.device,
) -> dict[str, Any]:  # fmt: skip
    """Write grid and record, and return the record."""
    prompts = settings["prompts"]
    images = {label: load_images(folder, len(prompts)) for label, folder in folders.items()}
    scorer = load_scorer() if args.model_name == EMBEDDED else None
    y = encode_prompts(args, prompts, device)[1] if scorer is not None else None
    record = {
        "command": "TaylorSeer-FLUX/sample.py",
        "settings": settings,
        "units": "flops_T: 10^12 operations and latency: seconds, both for one batch; psnr: dB to the uncached images",
        "num_samples": len(prompts),
        "scorer": scorer_facts(scorer) if scorer is not None else None,
        "rows": make_rows(chosen, args.num_steps, outcomes, counts, judge(images, y, scorer)),
        "conditions": conditions(device, PRECISIONS[args.precision]),
    }
    save_png(out / "grid.png", draw_grid(images, prompts[:SHOWN]), settings)
    write_json(out / "record.json", record)
    return record


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    prompts, chosen = prompts_of(args), caches(args)
    settings = settings_of(args, prompts)
    batches = make_batches(prompts, args.batch_size)
    counts = count_caches(
        args.model_name, chosen, args.num_steps, PRECISIONS[args.precision],
        height=args.height, width=args.width, num_samples=len(batches[0].indices),
    )  # fmt: skip
    out = args.output_dir or Path("outputs/flux") / f"{args.model_name}-{digest(settings)}"
    if args.test_flops:
        print(json.dumps(counts, indent=2))
        return
    if args.dry_run:
        print(json.dumps({"settings": settings, "output_dir": str(out), "batch": counts}, indent=2))
        return

    fix_summation_order()
    world = start_world(args.device)
    if world.is_main and not args.json:
        show_log()
    folders = {label: Folder(out, label, args) for label in chosen}

    def prepare() -> None:
        writable_directory(out)
        find_everything(args)  # one process downloads what the others then load
        for label, folder in folders.items():
            claimed = {**settings, "cache": label, "accumulator_dtype": args.accumulator_dtype}
            folder.claim(claimed, resume=args.resume)

    on_main(world, prepare)
    outcomes = sample_all(args, chosen, batches, folders, world)
    world.barrier()
    if not world.is_main:
        return
    record = report(args, chosen, counts, outcomes, folders, settings, out, world.device)
    if args.json:
        print(json.dumps(record))
        return
    show(record)
    print(f"images: {out}\ngrid: {out / 'grid.png'}\nrecord: {out / 'record.json'}")


if __name__ == "__main__":
    run_command(main)
