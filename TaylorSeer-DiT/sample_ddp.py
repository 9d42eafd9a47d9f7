"""Sample the images of an FID evaluation: PNGs and one .npz for the ADM evaluator, on one process or many, resumable.

Sample i is a function of seed and i alone. Noise and class come from its own generators, and samples bB … bB + B - 1 are
always computed together, the last batch filled up with samples that are not kept. So for a batch size B the files are the
same to the byte for every number of processes (of as many threads) and after every interruption. For pixel models in fp32
on CPUs with MKL they are also the same for every B and number of threads, because sums are then taken in one order
(`seerkit.environment`). Elsewhere (CUDA, bf16, fp16, the autoencoder) another B or number of threads can round
otherwise in the last bits, and so move a pixel by a grey level now and then; another kind of processor can everywhere.
"""

import argparse

from cache_dic import UserError
from dit.flags import add_fid_flags, caches
from seerkit.command.cli import Parser, run_command
from seerkit.command.flags import add_dry_run_flag

EXAMPLES = """
python TaylorSeer-DiT/sample_ddp.py --num-fid-samples 1000 --method taylorseer --interval 4
torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2 --image-size 256 --interval 4 --compile
torchrun --nproc_per_node=8 TaylorSeer-DiT/sample_ddp.py --model DiT-XL/2 --image-size 256 --method uncached --solver ddpm
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    add_fid_flags(parser)
    add_dry_run_flag(parser)
    parser.section("output").add_argument("--json", action="store_true", help="print the record instead of a summary")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    chosen = caches(args)
    if len(chosen) > 1:
        raise UserError(
            f"one cache is sampled at a time, these are {len(chosen)}: {', '.join(chosen)}; name one method and interval"
        )
    (cache,) = chosen.values()

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.families import fid_job
    from evaluation.fid_samples import run

    run(fid_job("TaylorSeer-DiT/sample_ddp.py", args, cache))


if __name__ == "__main__":
    run_command(main)
