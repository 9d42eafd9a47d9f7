"""nearest.py: the nearest training image, by hand, and what is said where there are no samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import nearest
from seerkit.command.cli import run_command
from seerkit.data.emoji import EmojiData
from seerkit.io.images import image_path
from seerkit.io.media import save_png

SIDE = 4


@pytest.fixture(scope="module")
def main(load_command):
    return load_command("eval/nearest.py").main


def grey(*values: int) -> torch.Tensor:
    """Images (N, 3, SIDE, SIDE) of one grey each."""
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, SIDE, SIDE).contiguous()


def test_distances_are_root_mean_squares():
    distances, indices = nearest.nearest(grey(0, 100, 255, 130), grey(10, 120, 255))
    assert indices.tolist() == [0, 1, 2, 1]
    assert distances.tolist() == pytest.approx([10 / 255, 20 / 255, 0, 10 / 255], abs=1e-4)
    many = torch.randint(256, (200, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert nearest.nearest(many, many)[1].tolist() == list(range(200)), "in chunks, too"


def test_picture_and_record(main, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "samples" / "uncached"
    for index, value in enumerate((12, 250)):
        save_png(image_path(folder, index), np.full((SIDE, SIDE, 3), value, np.uint8))
    settings = {"prompts": ["a", "b"], "height": SIDE, "width": SIDE}
    (folder.parent / "record.json").write_text(json.dumps({"settings": settings, "rows": [{"label": "uncached"}]}))
    mask = torch.tensor([True, True, False])
    none = torch.zeros(3, dtype=torch.bool)
    data = EmojiData(
        images=grey(10, 255, 30), label=torch.tensor([0, 1, 1]), style=torch.tensor([0, 0, 0]), labels=["x", "y"],
        styles=["noto"], chars=["", ""], groups=["", ""], train=mask, test=~mask, held_out_style=none, held_out_label=none,
    )  # fmt: skip
    monkeypatch.setattr(nearest, "load_emoji", lambda folder: data)
    with pytest.raises(SystemExit) as stop:
        run_command(main, [str(tmp_path / "samples"), "--out", str(tmp_path / "near")])
    assert stop.value.code == 0
    record = json.loads((tmp_path / "near.json").read_text())
    assert [(row["prompt"], row["nearest"]) for row in record["nearest"]] == [("a", "x, noto"), ("b", "y, noto")]
    assert record["samples"]["p50"] == pytest.approx(3.5 / 255, abs=1e-4)
    assert record["real_test_images"]["p50"] == pytest.approx(20 / 255, abs=1e-4)
    assert (tmp_path / "near.png").is_file()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (None, "record.json cannot be read"),
        ([], "it is [] instead of an object"),
        ({"settings": {}, "rows": []}, 'settings lacks "prompts"'),
        (
            {"settings": {"prompts": ["a"], "height": "4", "width": 4}, "rows": []},
            'settings.height is "4" instead of a whole',
        ),
        (
            {"settings": {"prompts": ["a"], "height": 4, "width": 4}, "rows": [{"label": "fora"}]},
            "take one of fora as --label",
        ),
        (
            {"settings": {"prompts": ["a"], "height": 4, "width": 4}, "rows": [{"label": "uncached"}]},
            "is no image of 4 x 4",
        ),
    ],
)
def test_a_folder_without_samples(main, tmp_path, capsys, record, message):
    if record is not None:
        (tmp_path / "record.json").write_text(json.dumps(record))
    with pytest.raises(SystemExit) as stop:
        run_command(main, [str(tmp_path), "--out", str(tmp_path / "near")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "near.png").exists()


def test_names_of_the_outputs(tmp_path):
    both = tmp_path / "near-v1.5.png", tmp_path / "near-v1.5.json"
    for name in ("near-v1.5", "near-v1.5.png", "near-v1.5.json"):
        assert nearest.outputs(tmp_path / name) == both
    with pytest.raises(ValueError, match="is no name of a file"):
        nearest.outputs(Path("."))
