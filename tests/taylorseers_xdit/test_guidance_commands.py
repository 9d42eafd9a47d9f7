"""generate.py and sampling.py with --guidance-parallel: the files of two processes are those of one."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

CACHE = ["--num-steps", 6, "--method", "first_block_cache", "--set", "threshold=0.6", "--device", "cpu"]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def runs(run_script, tmp_path: Path, script: str, *flags: object) -> tuple[Path, Path]:
    """Folders of one process and of two."""
    folders = tmp_path / "one", tmp_path / "two"
    for processes, folder in enumerate(folders, 1):
        more = ["--guidance-parallel"] if processes == 2 else []
        done = run_script(script, *flags, *CACHE, *more, "--output-dir", folder, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = map(record_of, folders)
    assert (one["settings"].get("guidance_parallel"), two["settings"]["guidance_parallel"]) == (None, True)
    (row,), (other,) = one["rows"], two["rows"]
    assert 0 < len(row["full_steps"]) < 6
    assert other["full_steps"] == row["full_steps"]
    assert other["flops_T"] == pytest.approx(row["flops_T"], rel=1e-3)  # embeddings of the time are once a batch
    return folders


def test_videos_of_wan(run_script, tmp_path):
    captions = ("blue cross growing on grey", "red star moving left on black")
    flags = ("--prompt", *captions, "--batch-size", 1, "--keep-latents", "--set", "by_branch=false")
    one, two = runs(run_script, tmp_path, "TaylorSeer-Wan2.1/generate.py", *flags)
    files = sorted(one.rglob("*.safetensors"))
    assert len(files) == 2
    for file in files:
        for name, expected in load_file(file).items():
            error = (load_file(two / file.relative_to(one))[name] - expected).abs().max()
            assert error <= 1e-5 * expected.abs().max()


def test_images_of_hidream(run_script, tmp_path):
    flags = ("--prompt", "red apple, noto", "rocket, 3d render", "--batch-size", 1)
    one, two = runs(run_script, tmp_path, "TaylorSeer-HiDream/sampling.py", *flags)
    files = sorted(one.rglob("0*.png"))
    assert len(files) == 2
    for file in files:
        first, second = (np.asarray(Image.open(path), np.int16) for path in (file, two / file.relative_to(one)))
        assert np.abs(first - second).max() <= 1
