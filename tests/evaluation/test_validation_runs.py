"""Validation from end to end at the smallest size: samples that are kept, a record, a figure, and what stops it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from cache_dic import make_cache
from evaluation.forms import VALIDATION
from evaluation.validation import estimates, generated, study
from evaluation.validation.generated import Generated, Row
from seerkit.devices.distributed import start_world
from seerkit.io.records import misfit

PROMPTS = ["bag", "coat", "sandal"]
ROWS = [
    Row(label="uncached-2", num_steps=2, cache=make_cache("uncached")),
    Row(label="uncached-1", num_steps=1, cache=make_cache("uncached")),
]


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "SHARD", {"image": 2, "video": 2})
    return lambda **given: Generated("fashion-mnist", PROMPTS, tmp_path, start_world("cpu"), rows=ROWS, **given)


def test_samples_are_kept_and_more_are_added_to_them(make):
    some = make()
    some.make(2, quiet=True)
    assert [(number, one.row.label) for number, one in some.missing(4)] == [(1, "uncached-2"), (1, "uncached-1")]
    before = some.pixels(2)["uncached-2"]()
    path = some.made[0].path(0)
    made_at = path.stat().st_mtime_ns
    some.make(4, quiet=True)
    after = some.pixels(4)["uncached-2"]()
    assert after.shape == (4, 1, 32, 32, 1)
    assert after.dtype == np.uint8
    assert (after[:2] == before).all()
    assert path.stat().st_mtime_ns == made_at
    assert (some.pixels(3)["uncached-1"]() != after[:3]).any()


def test_a_damaged_shard_is_made_again_as_it_was(make):
    some = make()
    some.make(2, quiet=True)
    path = some.made[1].path(0)
    before = path.read_bytes()
    path.write_bytes(before[:100])
    assert len(some.missing(2)) == 1
    some.make(2, quiet=True)
    assert path.read_bytes() == before


def test_other_seeds_have_folders_of_their_own(make):
    folders = {one.folder for given in ({}, {"seed": 1}) for one in make(**given).made}
    assert len(folders) == 4


@pytest.fixture
def clothes(tmp_path, monkeypatch) -> Path:
    """120 images in the layout of Fashion-MNIST's test set, whose texture and shade tell their class."""
    folder = tmp_path / "clothes"
    folder.mkdir()
    labels = np.arange(120, dtype=np.uint8) % 10
    draw = np.random.default_rng(0)
    images = (draw.integers(0, 120, (120, 28, 28)) * (labels[:, None, None] % 2) + 12 * labels[:, None, None]).astype(
        np.uint8
    )
    for prefix in ("train", "t10k"):
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            (folder / f"{prefix}-{name}-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
    monkeypatch.setenv("FASHION_MNIST", str(folder))
    return folder


@pytest.fixture
def small(monkeypatch, load_command):
    """The command at a size of seconds."""
    command = load_command("eval/validate_measures.py")
    monkeypatch.setattr(command, "LEAST", 8)
    monkeypatch.setattr(estimates, "BLOCKS", 4)
    monkeypatch.setattr(generated, "SHARD", {"image": 8, "video": 2})
    monkeypatch.setattr(study, "LEAST_ROWS", 3)
    for module in (generated, study):
        monkeypatch.setattr(module, "STEPS", (4, 3, 2, 1))
    return command


@pytest.mark.slow
def test_the_command_leaves_a_record_and_a_figure_and_goes_on_where_it_stopped(clothes, small, tmp_path, capsys):
    flags = [
        "--model",
        "fashion-mnist",
        "--num-samples",
        "8",
        "--num-reference",
        "10",
        "--work",
        str(tmp_path / "work"),
    ]
    small.main([*flags, "--dry-run"])
    told = json.loads(capsys.readouterr().out)
    assert told["samples_missing"] == 6 * 8
    small.main([*flags, "--results", str(tmp_path / "results")])
    assert "FD-Lite0" in capsys.readouterr().out
    path = tmp_path / "results" / "metrics" / "fashion-mnist.json"
    record = json.loads(path.read_text())
    assert misfit(record, VALIDATION) is None
    assert path.with_suffix(".png").stat().st_size > 10_000
    names = [row["name"] for row in record["rows"]]
    assert {"fd-lite0", "fd-squeezenet", "fd-fashion", "class-accuracy", "psnr"} <= {*names}
    psnr = record["rows"][names.index("psnr")]
    blur = next(ladder for ladder in psnr["ladders"] if ladder["name"] == "blur")
    assert blur["passes"]
    assert blur["rungs"][0]["value"] > blur["rungs"][-1]["value"]
    assert psnr["floor"] is None
    assert [one["steps"] for one in psnr["order"]["values"]] == [3, 2, 1], "nearness to the run of most steps"
    accuracy = record["rows"][names.index("class-accuracy")]
    wrong = next(ladder for ladder in accuracy["ladders"] if ladder["name"] == "wrong captions")
    assert wrong["rungs"][-1]["value"] <= wrong["rungs"][0]["value"]
    small.main([*flags, "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == record["rows"]
    small.main([*flags, "--dry-run"])
    assert json.loads(capsys.readouterr().out)["samples_missing"] == 0


def test_too_few_samples_are_refused(small, capsys):
    with pytest.raises(SystemExit) as stopped:
        small.main(["--model", "fashion-mnist", "--num-samples", "7"])
    assert stopped.value.code == 2
    assert "--num-samples 7 is too few for an interval of a distance; give 8 or more" in capsys.readouterr().err


def test_missing_data_say_how_they_are_had(small, monkeypatch, tmp_path):
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"scripts/get_fashion_mnist\.sh"):
        small.main(["--model", "fashion-mnist", "--num-samples", "8"])
