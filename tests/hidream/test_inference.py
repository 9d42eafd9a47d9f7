"""inference.py on the debug model: the image of sampling.py with the same flags, what is printed, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hidream import hidream_config
from seerkit.command.cli import run_command
from seerkit.data.emoji import PROMPTS
from seerkit.io.media import read_png_settings
from seerkit.text.prompts import read_prompts
from seerkit.weights.checkpoints import export_safetensors

HOUSE = "house, noto"


@pytest.fixture(scope="module")
def model(tmp_path_factory, random_model) -> list[str]:
    """Flags that name the debug model with its weights."""
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    export_safetensors(path, random_model(torch.float32, hidream_config("hidream-debug")).state_dict())
    return ["--model", "hidream-debug", "--ckpt", str(path), "--num-steps", "9"]


@pytest.fixture
def run(load_command, capsys, monkeypatch, model, tmp_path):
    """`run(*flags)` -> exit code, stdout and stderr of the command, begun in `tmp_path`."""
    command = load_command("TaylorSeer-HiDream/inference.py")
    monkeypatch.chdir(tmp_path)

    def call(*flags: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run_command(command.main, [*model, *flags])
        return (stop.value.code, *capsys.readouterr())

    return call


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.mark.parametrize(
    ("flags", "label", "steps"),
    [
        ([], "taylorseer-N4-W1-O2", [0, 4, 8]),
        (["--method", "fora", "--interval", "3"], "fora-N3-W1", [0, 3, 6]),
        (["--method", "uncached"], "uncached", list(range(9))),
    ],
)
def test_it_is_the_first_image_of_sampling(run, load_command, model, tmp_path, flags, label, steps):
    code, out, err = run("--prompt", HOUSE, "--output", "new/house.png", *flags)
    assert code == 0, err
    sampling = load_command("TaylorSeer-HiDream/sampling.py")
    sampling.main([*model, "--prompt", HOUSE, "--batch-size", "1", "--output-dir", str(tmp_path / "out"), *flags])
    one, first = tmp_path / "new" / "house.png", tmp_path / "out" / label / "000000.png"
    assert np.array_equal(pixels(one), pixels(first))
    assert read_png_settings(one) == read_png_settings(first)
    assert f"full steps: {' '.join(map(str, steps))} ({len(steps)} of 9)" in out
    ratio = float(out.partition("T (")[2].partition("x)")[0])
    assert ratio == pytest.approx(9 / len(steps), rel=0.15), "forecast steps, and what is computed once, are not free"
    assert "latency: " in out
    assert "image: new/house.png" in out


def test_without_a_prompt_it_takes_a_shipped_one(run, tmp_path):
    code, out, err = run()
    assert code == 0, err
    settings = read_png_settings(tmp_path / "output.png")
    assert settings["prompt"] == read_prompts(PROMPTS)[0]
    assert settings["prompt"] in out


def test_dry_run_tells_the_plan_and_writes_nothing(run, tmp_path):
    code, out, err = run("--prompt", HOUSE, "--dry-run")
    assert code == 0, err
    plan = json.loads(out)
    assert plan["settings"]["prompts"] == [HOUSE]
    assert plan["image"]["taylorseer-N4-W1-O2"]["full_steps"] == [0, 4, 8]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--interval", "3", "4"], "taylorseer-N3-W1-O2, taylorseer-N4-W1-O2 would make 2 images; ask for one, or use"),
        (["--compare"], "would make 5 images"),
        (["--output", "house.jpg"], "--output house.jpg cannot be written; name a file that ends in .png"),
        (["--model", "large"], "argument --model/--model-type: invalid choice: 'large'"),
        (["--height", "33"], "height 33 must be a positive multiple of 4 for hidream-debug; 32 is near"),
        (["--ckpt", "/nowhere/x.safetensors"], "/nowhere/x.safetensors (does not exist)"),
        (["--prompt-file", "prompts.txt"], "unrecognized arguments: --prompt-file"),
    ],
)
def test_bad_input_is_named_in_one_line(run, tmp_path, flags, message):
    code, _, err = run(*flags)
    assert code == 2
    assert message in err
    assert err.strip().count("\n") == 0
    assert list(tmp_path.iterdir()) == []
