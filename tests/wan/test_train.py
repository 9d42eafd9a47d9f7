"""Training the embedded Wan2.1: a run in this process on tiny clips, its files, and the settings that are refused."""

import gzip
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seerkit.moving_objects import PROMPTS
from seerkit.training import read_losses
from wan import CONFIGS, Wan
from wan.weights import load_wan

NUM_STEPS = 4


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("TaylorSeer-Wan2.1/train.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """20 images in the IDX layout of Fashion-MNIST: bright squares whose place tells their class."""
    folder = tmp_path_factory.mktemp("data")
    labels = np.arange(20, dtype=np.uint8) % 10
    images = np.zeros((20, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 8, 5:20] = 200
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return folder


def arguments(data: Path, out: Path, *more: object) -> list[str]:
    flags = [
        "--model",
        "wan-debug",
        "--data",
        data,
        "--out",
        out,
        "--steps",
        NUM_STEPS,
        "--batch-size",
        4,
        "--lr",
        0.01,
    ]
    every = [
        "--log-every",
        1,
        "--save-every",
        2,
        "--grid-every",
        1000,
        "--lr-warmup-steps",
        1,
        "--lr-schedule",
        "constant",
    ]
    return [str(part) for part in (*flags, *every, "--precision", "fp32", "--device", "cpu", *more)]


@pytest.fixture(scope="module")
def whole(command, data, tmp_path_factory) -> Path:
    """The folder of a run that was not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    command.main(arguments(data, out))
    return out


def test_run_leaves_its_files(whole):
    rows = read_losses(whole / "loss.csv")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert list(rows[0]) == ["step", "flow", "lr", "seconds"]
    assert 1 < rows[0]["flow"] < 2, "a model that predicts nothing, of unit noise and a clip"
    width, height = Image.open(whole / f"samples-{NUM_STEPS:07d}.png").size
    assert height > len(PROMPTS) * 32
    assert width > 4 * 32
    assert not list(whole.glob(".*"))


def test_exported_weights_are_the_averaged_ones_and_load(whole):
    state = torch.load(whole / "state.pt", weights_only=True)
    averaged, last = state["ema"], state["model"]
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)
    for name, value in load_wan("wan-debug", whole / "state.pt").state_dict().items():
        assert torch.equal(value, averaged[name])
    for name, value in load_wan("wan-debug", whole / "model.safetensors").state_dict().items():
        assert torch.equal(value, averaged[name].half().float())
    with pytest.raises(ValueError, match="of another configuration"):
        load_wan("wan-tiny", whole / "model.safetensors")


def test_card_has_the_facts(whole, data):
    facts = json.loads((whole / "model.json").read_text())
    assert facts["config"] == json.loads(json.dumps(asdict(CONFIGS["wan-debug"])))
    assert facts["config"] == json.loads((whole / "settings.json").read_text())["config"]
    assert facts["num_parameters"] == sum(p.numel() for p in Wan(CONFIGS["wan-debug"]).parameters())
    assert facts["images_seen"] == 4 * NUM_STEPS
    assert str(data) not in json.dumps(facts)


def test_resumed_run_equals_an_uninterrupted_one(command, whole, data, tmp_path):
    for more in (["--steps", 2], ["--resume"]):
        command.main(arguments(data, tmp_path, *more))
    losses = [
        [(row["step"], row["flow"], row["lr"]) for row in read_losses(out / "loss.csv")] for out in (tmp_path, whole)
    ]
    assert losses[0] == losses[1]
    for file in ("model.safetensors", f"samples-{NUM_STEPS:07d}.png"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()


def test_settings_out_of_range_are_refused(command, data, whole, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scripts/get_fashion_mnist\.sh"):
        command.main(arguments(tmp_path / "none", tmp_path / "out"))
    with pytest.raises(ValueError, match=r"--ema-decay 1\.0 must lie in"):
        command.main(arguments(data, tmp_path, "--ema-decay", 1))
    with pytest.raises(ValueError, match="continue it with --resume"):
        command.main(arguments(data, whole))
    with pytest.raises(SystemExit):
        command.parse_args(arguments(data, tmp_path, "--model", "wan-t2v-1.3B"))


def test_dry_run_writes_nothing(command, tmp_path, capsys):
    command.main(["--out", str(tmp_path / "out"), "--dry-run"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == json.loads(json.dumps(asdict(CONFIGS["wan-tiny"])))
    assert shown["training"]["steps"] == "40000"
    assert list(tmp_path.iterdir()) == []
