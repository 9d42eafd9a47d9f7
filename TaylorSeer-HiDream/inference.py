"""One image of one prompt, with TaylorSeer or the caching method that is asked for, and what it cost."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cache_dic import UserError
from hidream.config import REPOS
from hidream.flags import add_single_image_flags, caches, fill_defaults, sizes_of
from seerkit.command.cli import Parser, run_command, show_log
from seerkit.command.flags import add_dry_run_flag

if TYPE_CHECKING:
    from cache_dic import Cache

EXAMPLES = """
python TaylorSeer-HiDream/inference.py
python TaylorSeer-HiDream/inference.py --prompt "rocket, 3d render" --method uncached --output rocket.png
python TaylorSeer-HiDream/inference.py --model hidream-full --prompt "a photo of a fox in the snow"
"""
PROMPT = "a wooden boat on a mountain lake at sunrise, mist over the water"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(__doc__, EXAMPLES)
    parser.section("prompts").add_argument(
        "--prompt", metavar="TEXT", help=f"default: {PROMPT}; of hidream-tiny, the first of those shipped with it"
    )
    parser.section("output").add_argument(
        "--output",
        type=Path,
        default=Path("output.png"),
        metavar="FILE",
        help="the image, a PNG with the settings in it",
    )
    add_dry_run_flag(parser)
    add_single_image_flags(parser)
    parser.set_defaults(batch_size=1)
    args = parser.parse_args(argv)
    if args.telemetry:
        raise UserError("--telemetry has no effect on a single image, which has no record; use sampling.py")
    fill_defaults(args)
    chosen = caches(args)
    if len(chosen) > 1:
        raise UserError(f"{', '.join(chosen)} would make {len(chosen)} images; ask for one, or use sampling.py")
    if args.output.suffix != ".png" or args.output.is_dir():
        raise UserError(f"--output {args.output} cannot be written; name a file that ends in .png")
    (cache,) = chosen.items()
    make_image(args, *cache)


def make_image(args: argparse.Namespace, label: str, cache: "Cache") -> None:
    """Sample the prompt's image into --output and print what it cost, or with --dry-run the plan alone."""
    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.backbones import count_caches
    from evaluation.images import decode_finite, png_settings
    from evaluation.jobs import check_memory, failure_message
    from hidream.pipeline import Pipeline, find_everything, settings_of
    from seerkit.data.emoji import PROMPTS
    from seerkit.devices.distributed import resolve_device
    from seerkit.devices.dtypes import torch_dtype
    from seerkit.io.files import writable_or_gone
    from seerkit.io.media import finite_rows, save_png, to_uint8
    from seerkit.io.report import make_rows
    from seerkit.sampling.compare import run_caches
    from seerkit.text.prompts import make_batches, read_prompts

    if args.prompt is None:
        args.prompt = PROMPT if args.model in REPOS else read_prompts(PROMPTS)[0]
    chosen = {label: cache}
    counts = count_caches(args.model, chosen, args.num_steps, torch_dtype(args.precision), **sizes_of(args))
    settings = settings_of(args, [args.prompt])
    if args.dry_run:
        print(json.dumps({"settings": settings, "output": str(args.output), "image": counts}, indent=2))
        return

    device = resolve_device(args.device)
    check_memory(counts, device)
    with writable_or_gone(args.output.parent):
        find_everything(args)
    show_log()
    batches = make_batches([args.prompt], args.batch_size)
    pipeline = Pipeline(args, batches, device)

    def keep(label, batch, latents):
        images = decode_finite(pipeline, latents)
        if finite_rows(images) != [True]:
            return batch.indices
        save_png(args.output, to_uint8(images)[0], png_settings(settings, label=label, prompt=args.prompt, index=0))
        return []

    outcomes = run_caches(chosen, batches, pipeline.sample, num_steps=args.num_steps, device=device, keep=keep)
    outcome = outcomes[label]
    if outcome.failed:
        raise UserError(failure_message({label: outcome.failed}))

    (row,) = make_rows(chosen, args.num_steps, outcomes, counts, {label: {}})
    print(f"{args.model}, {label}: {args.prompt}")
    print(f"full steps: {' '.join(map(str, row['full_steps']))} ({len(row['full_steps'])} of {row['num_steps']})")
    if partial := row.get("partial_steps"):
        print(f"partial steps: {' '.join(map(str, partial))}")
    print(f"latency: {row['latency']['median_s']:.2f} s, the first call's work included")
    print(f"FLOPs: {row['flops_T']:.3f} of {row['flops_T_uncached']:.3f} T ({row['flops_ratio']:.2f}x)")
    print(f"image: {args.output}")


if __name__ == "__main__":
    run_command(main)
