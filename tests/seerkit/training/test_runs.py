"""The training commands: short runs of each, their files, how they resume, processes that share batches, refusals.

Under torchrun, this file does the runs of several processes.
"""

import gzip
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dit
import flux
import hidream
import hunyuan_video
import wan
from dit.weights import load_dit
from flux.weights import load_flux
from hidream.weights import load_hidream
from hunyuan_video.weights import load_hunyuan_video
from seerkit.command.cli import run_command
from seerkit.data.captions import PROMPTS
from seerkit.data.emoji import load_emoji
from seerkit.data.fashion_mnist import CLASS_NAMES
from seerkit.devices.distributed import stop_world
from seerkit.training.emoji import SHOWN
from seerkit.training.loop import read_losses
from wan.weights import load_wan

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Setup:
    """What a backbone is trained on in these tests, and what its run leaves."""

    data: str | None  # the fixture, None where none is needed
    fetch: str  # the script that gets the real data
    flags: str  # of the run
    first_loss: tuple[float, float]  # between which the first row is
    learns: float  # the last loss is less than this share of the first
    grid: tuple[int, int, int]  # rows, columns, and pixels of a cell's side
    losses: tuple[str, ...] = ("flow",)
    facts: frozenset[str] = frozenset()  # in the card, besides those of every model


ON_CLASSES = Setup(
    "fashion_mnist_folder", "get_fashion_mnist.sh",
    "--steps 40 --lr-warmup-steps 5 --log-every 4 --save-every 10",
    (0.85, 1.15), 0.8, (4, len(CLASS_NAMES), 96), ("simple", "vlb"),
)  # fmt: skip
ON_EMOJI = Setup(
    "emoji_folder", "get_emoji.sh",
    "--steps 20 --lr-warmup-steps 5 --log-every 4 --save-every 10",
    (1, 2), 0.9, (2, len(SHOWN), 96), facts=frozenset({"training_images", "styles"}),
)  # fmt: skip
ON_CLIPS = Setup(
    None, "",
    "--steps 4 --lr-warmup-steps 1 --log-every 1 --save-every 2",
    (1, 2), 1, (len(PROMPTS), 8, 72),
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A backbone: its training command, its model for tests, the one for users, and one that is not trained here."""

    script: str
    debug: str
    config: Any  # of that model as it is trained
    default: Any
    published: str
    model: type[nn.Module]
    load: Callable[..., nn.Module]
    setup: Setup
    batch_unit: int = 1  # that every batch is a multiple of


FAMILIES = {
    "dit": Family(
        "TaylorSeer-DiT/train.py", "debug",
        replace(dit.dit_config("debug", image_size=32), num_classes=len(CLASS_NAMES)), dit.CONFIGS["fashion-mnist"],
        "DiT-XL/2", dit.DiT, load_dit, ON_CLASSES,
    ),
    "flux": Family(
        "TaylorSeer-FLUX/train.py", "flux-debug", flux.CONFIGS["flux-debug"], flux.CONFIGS["flux-tiny"],
        "flux-dev", flux.Flux, load_flux, ON_EMOJI, 2,
    ),
    "hidream": Family(
        "TaylorSeer-HiDream/train.py", "hidream-debug", hidream.CONFIGS["hidream-debug"], hidream.CONFIGS["hidream-tiny"],
        "hidream-full", hidream.HiDream, load_hidream,
        replace(ON_EMOJI, facts=ON_EMOJI.facts | {"expert_shares"}),
    ),
    "wan": Family(
        "TaylorSeer-Wan2.1/train.py", "wan-debug", wan.CONFIGS["wan-debug"], wan.CONFIGS["wan-tiny"],
        "wan-t2v-1.3B", wan.Wan, load_wan, ON_CLIPS,
    ),
    "hunyuan": Family(
        "TaylorSeer-HunyuanVideo/train.py", "hunyuan-debug", hunyuan_video.CONFIGS["hunyuan-debug"],
        hunyuan_video.CONFIGS["hunyuan-tiny"], "hunyuan-video", hunyuan_video.HunyuanVideo, load_hunyuan_video, ON_CLIPS, 4,
    ),
}  # fmt: skip
EMOJI = ("flux", "hidream")
FACTS = {"config", "num_parameters", "training", "images_seen", "seconds", "final_loss", "data", "conditions"}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the processes that are started here, so that sums are taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def fashion_mnist_folder(tmp_path_factory) -> Path:
    """50 images in the IDX layout of Fashion-MNIST: bright squares whose place tells their class."""
    folder = tmp_path_factory.mktemp("fashion-mnist")
    labels = np.arange(50, dtype=np.uint8) % 10
    images = np.zeros((50, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 8, 5:20] = 200
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        (folder / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def command(family, load_command) -> ModuleType:
    return load_command(family.script)


@pytest.fixture(scope="module")
def data(family, request) -> Path | None:
    return request.getfixturevalue(family.setup.data) if family.setup.data else None


def flags_of(family: Family, data: Path | None, out: Path, *more: object) -> list[str]:
    fixed = "--batch-size 8 --lr 0.01 --lr-schedule constant --grid-every 1000 --precision fp32 --device cpu"
    given = ["--model", family.debug, *family.setup.flags.split(), *fixed.split()]
    where = () if data is None else ("--data", data)
    return [str(part) for part in (*given, *where, "--output-dir", out, *more)]


@pytest.fixture(scope="module")
def arguments(family, data) -> Callable[..., list[str]]:
    """`arguments(out, *more, data=…)`: the flags of a short run."""

    def make(out: Path, *more: object, data: Path | None = data) -> list[str]:
        return flags_of(family, data, out, *more)

    return make


@pytest.fixture(scope="module")
def settings(command, arguments) -> Namespace:
    """Those of the run."""
    return command.parse_args(arguments(Path("out")))


@pytest.fixture(scope="module")
def whole(family, command, arguments, tmp_path_factory) -> Path:
    """The folder of a run on one process, not interrupted; done once, though slow tests come before all others."""
    out = tmp_path_factory.getbasetemp() / f"whole-{family.debug}"
    if not out.exists():
        command.main(arguments(out))
    return out


@pytest.fixture
def refusal(family, command, monkeypatch, capsys) -> Callable[[list[str]], str]:
    """`refusal(argv)`: the one line that a refused command writes, its exit code checked."""

    def said(argv: list[str]) -> str:
        monkeypatch.setattr(sys, "argv", [family.script])
        with pytest.raises(SystemExit) as left:
            run_command(command.main, argv)
        assert left.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return said


def state(out: Path) -> dict[str, Any]:
    return torch.load(out / "state.pt", weights_only=True)


def as_read(config: Any) -> dict[str, Any]:
    """A configuration as JSON gives it back."""
    return json.loads(json.dumps(asdict(config)))


def assert_same_run(out: Path, whole: Path, steps: int) -> None:
    """All but the seconds in loss.csv."""
    losses = [[line.rsplit(",", 1)[0] for line in (run / "loss.csv").read_text().splitlines()] for run in (out, whole)]
    assert losses[0] == losses[1]
    found, expected = state(out), state(whole)
    for part in ("model", "ema"):
        assert all(torch.equal(value, expected[part][name]) for name, value in found[part].items())
    for file in ("model.safetensors", f"samples-{steps:07d}.png"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()


def test_run_learns_and_leaves_its_files(family, settings, whole):
    rows, last = read_losses(whole / "loss.csv"), settings.steps + 1
    every = range(settings.log_every, last, settings.log_every), range(settings.save_every, last, settings.save_every)
    assert [row["step"] for row in rows] == sorted({*every[0], *every[1]})
    assert list(rows[0]) == ["step", *family.setup.losses, "lr", "seconds"]
    (least, most), name = family.setup.first_loss, family.setup.losses[0]
    assert least < rows[0][name] < most, "a model that predicts nothing, of unit noise or of that and the data"
    assert rows[-1][name] < family.setup.learns * rows[0][name]
    num_rows, num_columns, cell = family.setup.grid
    width, height = Image.open(whole / f"samples-{settings.steps:07d}.png").size
    assert width > num_columns * cell
    assert num_rows * cell < height < (num_rows + 1) * cell
    assert not list(whole.glob(".*"))


def test_exported_weights_are_the_averaged_ones_and_load(family, whole):
    averaged, last = (state(whole)[part] for part in ("ema", "model"))
    assert any(not torch.equal(averaged[name], last[name]) for name in averaged)
    for name, value in family.load(family.config, whole / "state.pt").state_dict().items():
        assert torch.equal(value, averaged[name])
    for name, value in family.load(family.config, whole / "model.safetensors").state_dict().items():
        assert torch.equal(value, averaged[name].half().float())
    with pytest.raises(ValueError, match="of another configuration"):
        family.load(family.default, whole / "model.safetensors")


def test_card_has_the_facts(family, settings, whole, data):
    facts = json.loads((whole / "model.json").read_text())
    assert facts.keys() == FACTS | family.setup.facts
    assert facts["config"] == as_read(family.config)
    assert facts["config"] == json.loads((whole / "settings.json").read_text())["config"]
    assert facts["num_parameters"] == sum(p.numel() for p in family.model(family.config).parameters())
    assert facts["images_seen"] == settings.batch_size * settings.steps
    rows = read_losses(whole / "loss.csv")[-10:]
    means = {name: np.mean([row[name] for row in rows]) for name in family.setup.losses}
    assert facts["final_loss"] == pytest.approx(means)
    assert facts["training"]["lr_schedule"] == "constant"
    assert facts["conditions"]["dtype"] == "float32"
    assert data is None or str(data) not in json.dumps(facts)


@pytest.mark.parametrize("family", EMOJI, indirect=True)
def test_card_says_what_was_seen_of_the_emoji(whole, data):
    facts = json.loads((whole / "model.json").read_text())
    assert facts["training_images"] == int(load_emoji(data).train.sum())
    assert facts["styles"] == ["twemoji flat", "noto"]


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(command, arguments, settings, whole, tmp_path):
    for more in (["--steps", settings.save_every], ["--resume"]):
        command.main(arguments(tmp_path, *more))
    assert_same_run(tmp_path, whole, settings.steps)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dit"], indirect=True)
def test_killed_run_resumes_to_the_same_losses_and_weights(family, run_script, arguments, settings, tmp_path):
    """All in processes of their own: what this one has set for its products is not set there."""
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    argv = [sys.executable, ROOT / family.script, *arguments(killed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (killed / "state.pt").exists():
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert settings.save_every <= state(killed)["step"] < settings.steps
    with (killed / "loss.csv").open("a") as file:
        file.write("39,9.9,9.9,1e-3,99.9\n")  # of a step after the checkpoint, which is done again
    for argv in (arguments(killed, "--resume"), arguments(alone)):
        done = run_script(family.script, *argv)
        assert done.returncode == 0, done.stderr
    assert_same_run(killed, alone, settings.steps)


@pytest.fixture(scope="session")
def by_two(request, load_command, run_script, tmp_path_factory) -> Path:
    """The beginning of every family's run on two processes, in a folder named as the model; one start: imports take longest."""
    root, runs = tmp_path_factory.mktemp("by-two"), []
    for family in FAMILIES.values():
        data = request.getfixturevalue(family.setup.data) if family.setup.data else None
        flags = flags_of(family, data, root / family.debug)
        steps = load_command(family.script).parse_args(flags).save_every
        runs.append([family.script, [*flags, "--steps", str(steps)]])
    done = run_script(__file__, json.dumps(runs), processes=2)
    assert done.returncode == 0, done.stderr
    return root


@pytest.mark.slow
def test_two_processes_train_alike(family, settings, whole, by_two):
    """What is summed in another order differs in the last bit, and more after every step; at a constant rate of learning."""
    ours, one = (read_losses(out / "loss.csv") for out in (by_two / family.debug, whole))
    assert [row["step"] for row in ours] == [row["step"] for row in one if row["step"] <= settings.save_every]
    for name in family.setup.losses:
        values = [[row[name] for row in rows] for rows in (ours, one[: len(ours)])]
        np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)


def test_a_damaged_checkpoint_is_named_and_kept(whole, arguments, refusal, tmp_path):
    (tmp_path / "state.pt").write_bytes((whole / "state.pt").read_bytes()[:-500])
    said = refusal(arguments(tmp_path, "--resume"))
    assert "state.pt is truncated, damaged or not a PyTorch checkpoint" in said
    assert (tmp_path / "state.pt").exists()


def test_existing_run_is_not_overwritten(whole, arguments, refusal):
    before = (whole / "state.pt").read_bytes()
    assert "continue it with --resume" in refusal(arguments(whole))
    assert (whole / "state.pt").read_bytes() == before


def test_refusals_name_the_remedy(family, arguments, refusal, tmp_path):
    new = tmp_path / "new"
    assert "start without --resume" in refusal(arguments(new, "--resume"))
    if family.setup.data:
        assert f"scripts/{family.setup.fetch}" in refusal(arguments(new, data=tmp_path / "none"))
    else:
        assert "unrecognized arguments: --data" in refusal(arguments(new, "--data", tmp_path))
    (tmp_path / "file").touch()
    assert "cannot be written" in refusal(arguments(tmp_path / "file"))
    assert "--ema-decay: 1 must lie in [0, 1)" in refusal(arguments(new, "--ema-decay", 1))
    assert "invalid choice" in refusal(arguments(new, "--model", family.published))
    if family.batch_unit > 1:
        said = refusal(arguments(new, "--batch-size", family.batch_unit + 1))
        assert f"--batch-size {family.batch_unit + 1} must be a multiple of {family.batch_unit}" in said


def test_dry_run_writes_nothing(family, command, tmp_path, capsys):
    command.main(["--output-dir", str(tmp_path / "out"), "--dry-run"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"] == as_read(family.default)
    assert shown["training"]["steps"] == "40000"
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    for script, argv in json.loads(sys.argv[1]):
        runpy.run_path(str(ROOT / script))["main"](argv)
    stop_world()
