import argparse
import csv
import functools
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit import CONFIGS, dit_config
from dit.weights import load_dit
from seerkit.cli import run_command
from seerkit.distributed import World
from seerkit.fashion_mnist import CLASS_NAMES

COMMAND = Path(__file__).parents[2] / "TaylorSeer-DiT" / "train.py"
NUM_STEPS = 40
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("TaylorSeer-DiT/train.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """50 images in the IDX layout of Fashion-MNIST: bright squares whose place tells their class."""
    folder = tmp_path_factory.mktemp("data")
    labels = np.arange(50, dtype=np.uint8) % 10
    images = np.zeros((50, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 8, 5:20] = 200
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def arguments(data: Path, out: Path, *more: object) -> list[str]:
    flags = ["--model", "debug", "--data", data, "--out", out, "--steps", NUM_STEPS, "--batch-size", 8, "--lr", 0.01]
    every = ["--log-every", 4, "--save-every", 10, "--grid-every", 1000, "--lr-warmup-steps", 5]
    return [str(part) for part in (*flags, *every, "--precision", "fp32", "--device", "cpu", *more)]


@pytest.fixture(scope="module")
def run(run_script):
    return functools.partial(run_script, "TaylorSeer-DiT/train.py")


def losses(out: Path) -> list[dict[str, str]]:
    """loss.csv as it stands there, without the seconds."""
    with (out / "loss.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def state(out: Path) -> dict:
    return torch.load(out / "state.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(run, data, tmp_path_factory) -> Path:
    """The folder of a run on one process, not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    done = run(*arguments(data, out))
    assert done.returncode == 0, done.stderr
    return out


def test_run_learns_and_leaves_its_files(whole):
    rows = losses(whole)
    assert [int(row["step"]) for row in rows] == sorted({*range(4, NUM_STEPS + 1, 4), *range(10, NUM_STEPS + 1, 10)})
    assert float(rows[0]["simple"]) == pytest.approx(1, abs=0.15)  # a model that predicts nothing, of unit noise
    assert float(rows[-1]["simple"]) < 0.8 * float(rows[0]["simple"])
    assert Image.open(whole / f"samples-{NUM_STEPS:07d}.png").size > (10 * 32, 4 * 32)
    settings = json.loads((whole / "settings.json").read_text())
    assert (settings["config"]["input_size"], settings["config"]["num_classes"]) == (32, len(CLASS_NAMES))
    card = json.loads((whole / "model.json").read_text())
    assert (card["images_seen"], card["config"]) == (8 * NUM_STEPS, settings["config"])
    assert not list(whole.glob(".*"))


def test_both_checkpoints_hold_the_averaged_weights(whole, command):
    config = command.replace(dit_config("debug", image_size=32), num_classes=len(CLASS_NAMES))
    averaged, last = state(whole)["ema"], state(whole)["model"]
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)
    for name, value in load_dit(config, whole / "state.pt").state_dict().items():
        torch.testing.assert_close(value, averaged[name], rtol=0, atol=0)
    for name, value in load_dit(config, whole / "model.safetensors").state_dict().items():
        torch.testing.assert_close(value, averaged[name].half().float(), rtol=0, atol=0)


@pytest.mark.slow
def test_killed_run_resumes_to_the_same_losses_and_weights(run, whole, data, tmp_path):
    argv = arguments(data, tmp_path)
    with subprocess.Popen([sys.executable, COMMAND, *argv], env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        while not (tmp_path / "state.pt").exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert 10 <= state(tmp_path)["step"] < NUM_STEPS
    with (tmp_path / "loss.csv").open("a") as file:
        file.write("39,9.9,9.9,1e-3,99.9\n")  # of a step after the checkpoint, which is done again
    done = run(*arguments(data, tmp_path, "--resume"))
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path) == losses(whole)
    for part in ("model", "ema"):
        expected = state(whole)[part]
        assert all(torch.equal(value, expected[name]) for name, value in state(tmp_path)[part].items())
    for file in ("model.safetensors", f"samples-{NUM_STEPS:07d}.png"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
def test_two_processes_train_alike(run, whole, data, tmp_path):
    done = run(*arguments(data, tmp_path), processes=2)
    assert done.returncode == 0, done.stderr
    ours, one = losses(tmp_path), losses(whole)
    assert [row["step"] for row in ours] == [row["step"] for row in one]
    for key in ("simple", "vlb"):
        values = [[float(row[key]) for row in rows] for rows in (ours, one)]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)


def refusal(command, monkeypatch, capsys, argv: list[str]) -> str:
    """The one line that a refused command writes, its exit code checked."""
    monkeypatch.setattr(sys, "argv", [str(COMMAND)])
    with pytest.raises(SystemExit) as left:
        run_command(command.main, argv)
    assert left.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_damaged_checkpoint_is_named_and_kept(whole, data, command, monkeypatch, capsys, tmp_path):
    (tmp_path / "state.pt").write_bytes((whole / "state.pt").read_bytes()[:-500])
    said = refusal(command, monkeypatch, capsys, arguments(data, tmp_path, "--resume"))
    assert "state.pt is truncated, damaged or not a PyTorch checkpoint" in said
    assert (tmp_path / "state.pt").exists()


def test_existing_run_is_not_overwritten(whole, data, command, monkeypatch, capsys):
    before = (whole / "state.pt").read_bytes()
    assert "continue it with --resume" in refusal(command, monkeypatch, capsys, arguments(data, whole))
    assert (whole / "state.pt").read_bytes() == before


def test_refusals_name_the_remedy(data, command, tmp_path, monkeypatch, capsys):
    nothing = refusal(command, monkeypatch, capsys, arguments(data, tmp_path / "new", "--resume"))
    assert "start without --resume" in nothing
    absent = refusal(command, monkeypatch, capsys, arguments(tmp_path, tmp_path / "new"))
    assert "get_fashion_mnist.sh" in absent
    (tmp_path / "file").touch()
    unwritable = refusal(command, monkeypatch, capsys, arguments(data, tmp_path / "file"))
    assert "cannot be written" in unwritable
    decay = refusal(command, monkeypatch, capsys, arguments(data, tmp_path / "new", "--ema-decay", 1))
    assert "--ema-decay 1.0 must lie in [0, 1)" in decay


def test_dry_run_writes_nothing(command, tmp_path, capsys):
    command.main(["--out", str(tmp_path / "out"), "--dry-run"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == asdict(CONFIGS["fashion-mnist"])
    assert shown["training"]["steps"] == "40000"
    assert list(tmp_path.iterdir()) == []


def test_processes_share_the_batch_of_one(command):
    images = torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1).expand(50, 1, 4, 4)
    labels, args = torch.arange(50) % 10, argparse.Namespace(batch_size=6, seed=0)
    config, cpu = CONFIGS["fashion-mnist"], torch.device("cpu")

    def parts(rank: int, size: int) -> tuple[torch.Tensor, ...]:
        return command.DiffusionLoss(images, labels, config, args, World(rank, size, cpu)).batch(5)

    for one, first, second in zip(parts(0, 1), parts(0, 2), parts(1, 2), strict=True):
        torch.testing.assert_close(torch.stack([first, second], dim=1).flatten(0, 1), one, rtol=0, atol=0)
