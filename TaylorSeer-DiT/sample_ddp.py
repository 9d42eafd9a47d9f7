"""Sample the images of an FID evaluation: PNGs and one .npz for the ADM evaluator, on one process or many, resumable.

Sample i is a function of seed and i alone. Noise and class come from its own generators, and samples bB … bB + B - 1 are
always computed together, the last batch filled up with samples that are not kept. So for a batch size B the files are the
same to the byte for every number of processes (of as many threads) and after every interruption. For pixel models in fp32
on CPUs with MKL they are also the same for every B and number of threads, because sums are then taken in one order
(`seerkit.environment`). Elsewhere (CUDA, bf16, fp16, the autoencoder) another B or number of threads can round
otherwise in the last bits, and so move a pixel by a grey level now and then; another kind of processor can everywhere.
"""

from argparse import BooleanOptionalAction
from pathlib import Path

from dit.flags import add_flags
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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from dit.fid_samples import run

    run(args)


if __name__ == "__main__":
    run_command(main)
