"""Training the embedded video models: a run in this process on tiny clips, its files, and the settings that are refused."""

import gzip
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import hunyuan_video
import wan
from hunyuan_video.weights import load_hunyuan_video
from seerkit.moving_objects import PROMPTS
from seerkit.training import read_losses
from wan.weights import load_wan

NUM_STEPS = 4


@dataclass(frozen=True)
class Family:
    """A video backbone: its training command, its models for tests and for users, one that is not trained here."""

    script: str
    debug: str
    tiny: str
    published: str
    configs: dict[str, Any]
    model: type[nn.Module]
    load: Callable[..., nn.Module]
    batch_unit: int  # that every batch is a multiple of


FAMILIES = {
    "wan": Family(
        "TaylorSeer-Wan2.1/train.py", "wan-debug", "wan-tiny", "wan-t2v-1.3B", wan.CONFIGS, wan.Wan, load_wan, 1
    ),
    "hunyuan": Family(
        "TaylorSeer-HunyuanVideo/train.py", "hunyuan-debug", "hunyuan-tiny", "hunyuan-video", hunyuan_video.CONFIGS,
        hunyuan_video.HunyuanVideo, load_hunyuan_video, 4,
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def command(family, load_command):
    return load_command(family.script)


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


@pytest.fixture(scope="module")
def arguments(family, data) -> Callable[..., list[str]]:
    """`arguments(out, *more, data=…)`: the flags of a short run."""
    fixed = "--lr 0.01 --lr-warmup-steps 1 --lr-schedule constant --log-every 1 --save-every 2 --grid-every 1000"
    given = ["--steps", NUM_STEPS, "--batch-size", 4, *fixed.split(), "--precision", "fp32", "--device", "cpu"]

    def make(out: Path, *more: object, data: Path = data) -> list[str]:
        return [str(part) for part in ("--model", family.debug, "--data", data, "--out", out, *given, *more)]

    return make


@pytest.fixture(scope="module")
def whole(command, arguments, tmp_path_factory) -> Path:
    """The folder of a run that was not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    command.main(arguments(out))
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


def test_exported_weights_are_the_averaged_ones_and_load(family, whole):
    state = torch.load(whole / "state.pt", weights_only=True)
    averaged, last = state["ema"], state["model"]
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)
    for name, value in family.load(family.debug, whole / "state.pt").state_dict().items():
        assert torch.equal(value, averaged[name])
    for name, value in family.load(family.debug, whole / "model.safetensors").state_dict().items():
        assert torch.equal(value, averaged[name].half().float())
    with pytest.raises(ValueError, match="of another configuration"):
        family.load(family.tiny, whole / "model.safetensors")


def test_card_has_the_facts(family, whole, data):
    facts = json.loads((whole / "model.json").read_text())
    assert facts["config"] == json.loads(json.dumps(asdict(family.configs[family.debug])))
    assert facts["config"] == json.loads((whole / "settings.json").read_text())["config"]
    assert facts["num_parameters"] == sum(p.numel() for p in family.model(family.configs[family.debug]).parameters())
    assert facts["images_seen"] == 4 * NUM_STEPS
    assert str(data) not in json.dumps(facts)


def test_resumed_run_equals_an_uninterrupted_one(command, arguments, whole, tmp_path):
    for more in (["--steps", 2], ["--resume"]):
        command.main(arguments(tmp_path, *more))
    losses = [
        [(row["step"], row["flow"], row["lr"]) for row in read_losses(out / "loss.csv")] for out in (tmp_path, whole)
    ]
    assert losses[0] == losses[1]
    for file in ("model.safetensors", f"samples-{NUM_STEPS:07d}.png"):
        assert (tmp_path / file).read_bytes() == (whole / file).read_bytes()


def test_settings_out_of_range_are_refused(family, command, arguments, whole, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scripts/get_fashion_mnist\.sh"):
        command.main(arguments(tmp_path / "out", data=tmp_path / "none"))
    with pytest.raises(ValueError, match=r"--ema-decay 1\.0 must lie in"):
        command.main(arguments(tmp_path, "--ema-decay", 1))
    with pytest.raises(ValueError, match="continue it with --resume"):
        command.main(arguments(whole))
    if family.batch_unit > 1:
        with pytest.raises(ValueError, match=f"--batch-size 6 must be a multiple of {family.batch_unit}"):
            command.main(arguments(tmp_path, "--batch-size", 6))
    with pytest.raises(SystemExit):
        command.parse_args(arguments(tmp_path, "--model", family.published))


def test_dry_run_writes_nothing(family, command, tmp_path, capsys):
    command.main(["--out", str(tmp_path / "out"), "--dry-run"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == json.loads(json.dumps(asdict(family.configs[family.tiny])))
    assert shown["training"]["steps"] == "40000"
    assert list(tmp_path.iterdir()) == []
