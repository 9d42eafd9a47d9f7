"""eval/score.py with samples that take a while to read, so that it can be killed in their midst: FOLDER, then its arguments.

Every process leaves a file of its number in FOLDER.
"""

import os
import runpy
import sys
import time
from pathlib import Path

import numpy as np

from evaluation.scoring.samples import ImageFolder

ROOT = Path(__file__).parents[2]
read = ImageFolder.read


def read_slowly(self: ImageFolder, index: int) -> np.ndarray:
    time.sleep(0.002)
    return read(self, index)


ImageFolder.read = read_slowly  # type: ignore[method-assign]
folder = Path(sys.argv.pop(1))
(folder / str(os.getpid())).touch()
sys.argv[0] = str(ROOT / "eval/score.py")
runpy.run_path(sys.argv[0], run_name="__main__")
