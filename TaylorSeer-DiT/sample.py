"""Sample a DiT with a caching method, or with several beside the uncached run: a labelled grid, a table, a JSON record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cache_dic import Cache
from dit import DiT, DiTConfig
from dit.command import (
    EMBEDDED,
    Batch,
    Pipeline,
    add_model_flags,
    caches,
    chosen_classes,
    class_names,
    config_of,
    resolved,
)  # fmt: skip
from evaluation.classifier import Classifier, class_accuracy, load_classifier
from evaluation.metrics import psnr, summarize_psnr
from seerkit.cli import Parser, positive_int, run_command, show_log
from seerkit.compare import UNCACHED, run_caches
from seerkit.distributed import resolve_device
from seerkit.files import writable_directory, write_json
from seerkit.flops import sampling_flops
from seerkit.media import save_png, to_uint8
from seerkit.records import conditions
from seerkit.report import comparison_table, draw_grid, make_rows
from seerkit.seeds import fix_summation_order
from seerkit.tables import number

EXAMPLES = """
python TaylorSeer-DiT/sample.py --compare
python TaylorSeer-DiT/sample.py --method taylorseer --interval 4 --max-order 4 --classes sandal,bag
python TaylorSeer-DiT/sample.py --model DiT-XL/2 --image-size 256 --cfg-scale 4.0 --compare
python TaylorSeer-DiT/sample.py --model DiT-XL/2 --image-size 256 --interval 3 4 5 --dry-run
"""


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    add_model_flags(parser, guidance_scale=2.0)
    parser.add_argument("--classes", help="comma-separated numbers or names (default: all, or the official eight)")
    parser.add_argument("--per-class", type=positive_int, default=4, help="samples a class; the grid shows the first")
    parser.add_argument("--batch-size", type=positive_int, help="samples a model call (default: one of each class)")
    parser.add_argument("--out", type=Path, help="output folder (default: outputs/dit/MODEL)")
    parser.add_argument("--name", help="name of the grid and the record in it (default: grid.png and record.json)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print configuration, full steps, FLOPs and kept bytes, and stop"
    )
    parser.add_argument(
        "--test-FLOPs", action="store_true", dest="test_flops", help="print the FLOPs of every cache and stop"
    )
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")
    return parser.parse_args(argv)


def make_batches(labels: list[int], batch_size: int) -> list[Batch]:
    """Samples in order, numbered from 0; their labels go through all classes again and again, a row of the grid each time."""
    starts = range(0, len(labels), batch_size)
    return [Batch(list(range(s, min(s + batch_size, len(labels)))), labels[s : s + batch_size]) for s in starts]


def count(config: DiTConfig, cache: Cache, num_steps: int, batch_size: int, guided: bool) -> dict[str, Any]:
    """FLOPs, full steps and kept bytes of a batch, from the model on the meta device."""
    with torch.device("meta"):
        model = DiT(config)
        latents = torch.empty(
            batch_size * (2 if guided else 1), config.in_channels, config.input_size, config.input_size
        )
        labels = torch.empty(len(latents), dtype=torch.int64)
    return sampling_flops(model, cache, num_steps, latents, y=labels)


def judge(images: dict[str, np.ndarray], labels: list[int], classifier: Classifier | None) -> dict[str, dict[str, Any]]:
    """By label: PSNR to the uncached samples and class accuracy, None where they cannot be had; images are uint8."""
    targets, scores = torch.tensor(labels), {}
    for label, pixels in images.items():
        compared = UNCACHED in images and label != UNCACHED
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        scores[label] = {
            "psnr": summarize_psnr(psnr(pixels, images[UNCACHED])) if compared else None,
            "class_accuracy": class_accuracy(classifier, tensor, targets) if classifier is not None else None,
        }
    return scores


def show(record: dict[str, Any]) -> None:
    """The record as a table, with what its figures mean."""
    s, real = record["settings"], record["real_test_accuracy"]
    print(f"\n{s['model']}, {record['num_samples']} samples in batches of {s['batch_size']}, {s['num_steps']} steps")
    accuracy = [number(row["class_accuracy"] * 100, 1, " %") for row in record["rows"]] if real is not None else []
    print(comparison_table(record["rows"], {"class accuracy": accuracy} if accuracy else {}))
    if real is not None:
        print(f"class accuracy by the shipped in-domain classifier; on the real test images {real:.1%}")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, chosen = config_of(args), caches(args)
    classes = chosen_classes(args.classes, config)
    batch_size = args.batch_size or len(classes)
    settings = {**resolved(args, config), "classes": classes, "per_class": args.per_class, "batch_size": batch_size}
    num_steps, guided = args.num_sampling_steps, args.cfg_scale != 1
    counts = {label: count(config, cache, num_steps, batch_size, guided) for label, cache in chosen.items()}
    if args.test_flops:
        print(json.dumps(counts, indent=2))
        return
    if args.dry_run:
        print(json.dumps({"settings": settings, "batch": counts}, indent=2))
        return

    fix_summation_order()
    device = resolve_device(args.device)
    out = writable_directory(args.out or Path("outputs/dit") / args.model.replace("/", "-"))
    if not args.json:
        show_log()
    pipeline = Pipeline(args, device)
    classifier = load_classifier() if args.model == EMBEDDED else None
    labels = classes * args.per_class
    outcomes = run_caches(chosen, make_batches(labels, batch_size), pipeline.sample, num_steps=num_steps, device=device)
    images = {label: to_uint8(pipeline.decode(torch.cat(outcome.latents))) for label, outcome in outcomes.items()}
    record = {
        "command": "TaylorSeer-DiT/sample.py",
        "settings": settings,
        "units": "flops_T: 10^12 operations and latency: seconds, both for one batch; psnr: dB to the uncached samples",
        "num_samples": len(labels),
        "real_test_accuracy": classifier.test_accuracy if classifier is not None else None,
        "rows": make_rows(chosen, num_steps, outcomes, counts, judge(images, labels, classifier)),
        "conditions": conditions(device, pipeline.model.pos_embed.dtype),
    }
    grid_path, record_path = out / f"{args.name or 'grid'}.png", out / f"{args.name or 'record'}.json"
    names = class_names(config)
    save_png(grid_path, draw_grid(images, [names[c] for c in classes]), settings)
    write_json(record_path, record)
    if args.json:
        print(json.dumps(record))
        return
    show(record)
    print(f"images: {grid_path}\nrecord: {record_path}")


if __name__ == "__main__":
    run_command(main)
