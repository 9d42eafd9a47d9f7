"""schedule_gains.py: gains by hand, a record of a debug model, and schedules that are not for the model."""

import json
import math
from pathlib import Path

import pytest
import torch

import wan
from cache_dic import UserError
from evaluation.schedule_gains import gain, read_schedules
from seerkit.weights.checkpoints import export_safetensors


@pytest.fixture(scope="module")
def main(load_command):
    return load_command("eval/schedule_gains.py").main


def write(path: Path, full_steps: list[int], model: str = "wan-debug", num_steps: int = 6) -> Path:
    path.write_text(json.dumps({"model": model, "num_steps": num_steps, "full_steps": full_steps}))
    return path


def test_gains_are_paired_and_of_samples_that_differ():
    assert gain([31.0, 35.0], [30.0, 30.0]) == pytest.approx({"mean_db": 3.0, "ci95_db": 1.96 * 2.0})
    assert gain([31.0], [30.0]) == {"mean_db": 1.0, "ci95_db": 0.0}
    assert gain([math.inf, 31.0], [30.0, 29.0]) == {"mean_db": 2.0, "ci95_db": 0.0}
    assert gain([math.inf], [30.0]) is None


def test_schedules_of_others_are_refused(tmp_path):
    few, many = (write(tmp_path / f"{len(steps)}.json", steps) for steps in ([0, 2], [0, 1, 3]))
    assert [len(file.full_steps) for file in read_schedules([many, few], "wan-debug", 6)] == [2, 3]
    for model, num_steps in (("wan-tiny", 6), ("wan-debug", 5)):
        with pytest.raises(
            UserError, match=f"is for 6 steps of wan-debug, not for {num_steps} of {model}; leave it out"
        ):
            read_schedules([few], model, num_steps)
    with pytest.raises(UserError, match="there is no schedule for 7 steps of wan-tiny; search one"):
        read_schedules([], "wan-tiny", 7)


@pytest.mark.slow
def test_a_record_has_the_published_the_even_and_the_searched_list(main, tmp_path, capsys):
    model, draw = wan.Wan(wan.wan_config("wan-debug")), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    export_safetensors(tmp_path / "wan.safetensors", model.state_dict())
    flags = ["--model", "wan-debug", "--ckpt", tmp_path / "wan.safetensors", "--num-steps", 6, "--num-frames", 4]
    flags += ["--device", "cpu", "--samples", 2, "--out", tmp_path / "gains.json"]
    main([*map(str, flags), "--schedules", str(write(tmp_path / "two.json", [0, 2]))])
    record = json.loads((tmp_path / "gains.json").read_text())
    assert [(row["schedule"], row["full_steps"]) for row in record["rows"]] == [
        ("published", [0, 3]),
        ("even", [0, 3]),
        ("searched", [0, 2]),
    ]
    published, even, searched = record["rows"]
    assert published["psnr"] == even["psnr"]
    difference = searched["psnr"]["mean_db"] - even["psnr"]["mean_db"]
    assert searched["gain"]["even"] == searched["gain"]["published"]
    assert searched["gain"]["even"]["mean_db"] == pytest.approx(difference)
    assert record["num_samples"] == 2
    assert f"{difference:+.2f} ± " in capsys.readouterr().out


def test_a_model_without_prompts_of_its_own_is_refused(main):
    with pytest.raises(UserError, match="flux-dev has no prompts of its own; take one of fashion-mnist"):
        main(["--model", "flux-dev"])
