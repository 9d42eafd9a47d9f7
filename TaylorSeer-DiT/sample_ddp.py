"""Sample the images of an FID evaluation: PNGs and one .npz for the ADM evaluator, on one process or many, resumable.

Sample i is a function of seed and i alone. Noise and class come from its own generators, and samples bB … bB + B - 1 are
always computed together, the last batch filled up with samples that are not kept. So for a batch size B the files are the
same to the byte for every number of processes (of as many threads) and after every interruption. For pixel models in fp32
on CPUs with MKL they are also the same for every B and number of threads, because sums are then taken in one order
(`seerkit.environment`). Elsewhere (CUDA, bf16, fp16, the autoencoder) another B or number of threads can round
otherwise in the last bits, and so move a pixel by a grey level now and then; another kind of processor can everywhere.
"""

import argparse
from argparse import BooleanOptionalAction
from pathlib import Path

from cache_dic import UserError
from dit.flags import add_flags, caches, class_names, config_of
from seerkit.command.cli import Parser, positive_int, run_command
from seerkit.command.flags import add_dry_run_flag

EXAMPLES = """
python TaylorSeer-DiT/sample_ddp.py --num-fid-samples 1000 --method taylorseer --interval 4
torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2 --image-size 256 --interval 4 --compile
torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2 --image-size 256 --method uncached --solver ddpm
"""


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    parser.section("prompts").add_argument(
        "--balanced", action="store_true", help="class i mod num_classes (default: drawn uniformly)"
    )
    add_flags(parser, guidance_scale=1.5)
    sampling, output = parser.section("sampling"), parser.section("output")
    sampling.add_argument("--num-fid-samples", type=positive_int, default=50000, metavar="N", help="images in the .npz")
    sampling.add_argument(
        "--batch-size",
        "--per-proc-batch-size",
        type=positive_int,
        default=32,
        metavar="N",
        help="images per model call, which is always full",
    )
    output.add_argument(
        "--output-dir",
        "--sample-dir",
        type=Path,
        default=Path("outputs/samples"),
        metavar="DIR",
        help="gets a folder and a .npz for every configuration; shared by all nodes",
    )
    output.add_argument(
        "--resume",
        action=BooleanOptionalAction,
        default=True,
        help="keep the images that are there, make those missing; --no-resume makes all again",
    )
    add_dry_run_flag(parser)
    output.add_argument("--json", action="store_true", help="print the record instead of a summary")
    parser.section("device").add_argument(
        "--tf32", action=BooleanOptionalAction, default=True, help="TF32 matrix products on CUDA"
    )
    return parser.parse_args(argv)


def folder_name(args: argparse.Namespace, label: str) -> str:
    """`MODEL[-size-S]-LABEL-SOLVER-steps-50-cfg-1.5-seed-0[-balanced]`."""
    parts = [args.model]
    parts += ["size", args.image_size] if args.image_size else []
    parts += [label, args.solver, "steps", args.num_steps]
    parts += ["cfg", args.guidance_scale, "seed", args.seed, *(["balanced"] if args.balanced else [])]
    return "-".join(map(str, parts)).replace("/", "-")


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    config, chosen = config_of(args), caches(args)
    if len(chosen) > 1:
        raise UserError(
            f"one cache is sampled at a time, these are {len(chosen)}: {', '.join(chosen)}; name one method and interval"
        )
    (cache,) = chosen.values()

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from dit.pipeline import Pipeline, find_everything, settings_of
    from evaluation.fid_samples import FidJob, run

    run(
        FidJob(
            command="TaylorSeer-DiT/sample_ddp.py",
            args=args,
            cache=cache,
            class_names=class_names(config),
            shape=config.image_shape,
            name=folder_name(args, cache.label),
            settings={
                **settings_of(args, config),
                "classes": "balanced" if args.balanced else "random",
                "tf32": args.tf32,
                "batch_size": args.batch_size,
            },
            find=lambda: find_everything(args, config),
            make_pipeline=lambda device: Pipeline(args, device),
        )
    )


if __name__ == "__main__":
    run_command(main)
