"""Methods of one's own: the documented examples, in a command and beside methods of ours."""

import json
import re
from pathlib import Path

import pytest
import reference
import torch

from cache_dic import UserError, make_cache
from flux import Flux, flux_config
from seerkit.command.cache_flags import load_plugin
from seerkit.weights.checkpoints import export_safetensors

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs/examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
MOST_LINES = 30


@pytest.fixture(scope="module")
def flags(tmp_path_factory) -> list[object]:
    """Of the debug model with every weight random."""
    model, draw = Flux(flux_config("flux-debug")), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    path = tmp_path_factory.mktemp("weights") / "debug.safetensors"
    export_safetensors(path, model.state_dict())
    return ["--model", "flux-debug", "--ckpt", path, "--num-steps", 12, "--prompt", "sunflower", "--json"]


def test_examples_are_short_and_the_readme_shows_one():
    assert [path.stem for path in EXAMPLES] == ["brightest_tokens", "damped_predictor", "steady_schedule"]
    assert all(len(path.read_text().splitlines()) <= MOST_LINES for path in EXAMPLES)
    shown = (ROOT / "README.md").read_text().split("<!-- plugin -->")[1].split("```python\n")[1].split("```")[0]
    assert shown == (FOLDER / "damped_predictor.py").read_text()


@pytest.mark.slow
def test_examples_join_a_command(run_script, flags, tmp_path):
    """A selector of tokens, a predictor, a schedule, and the last two together, beside a method of ours."""
    plugins = [part for path in EXAMPLES for part in ("--plugin", path)]
    asked = ["damped", "steady", "brightest", "taylorseer"]
    methods = ["--method", *asked, "--set", "damping=0.8", "--set", "threshold=0.2"]
    done = run_script(
        "TaylorSeer-FLUX/sample.py", *flags, "--compare", *plugins, *methods, "--output-dir", tmp_path / "own"
    )
    assert done.returncode == 0, done.stderr
    rows = {row["label"]: row for row in json.loads(done.stdout)["rows"]}
    assert list(rows) == [
        "uncached", "damped-N4-W2-damping=0.8", "steady-threshold=0.2", "brightest", "taylorseer-N4-W3-O2",
        "taylorseer-N6-W3-O2",
    ]  # fmt: skip
    assert rows["brightest"]["full_steps"] == [0, 4, 8]
    assert 1 < rows["brightest"]["flops_ratio"] < 12 / 3, "between full steps something is computed"
    assert rows["damped-N4-W2-damping=0.8"]["full_steps"] == [0, 1, 5, 9]

    plugins = [part for name in ("damped_predictor", "steady_schedule") for part in ("--plugin", FOLDER / f"{name}.py")]
    both = ["--method", "damped", "--schedule", "steady", "--set", "threshold=1000", "--output-dir", tmp_path / "both"]
    done = run_script("TaylorSeer-FLUX/sample.py", *flags, *plugins, *both)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert row["label"] == "damped-steady-threshold=1000-damping=0.5"
    (decided,) = row["full_steps_by_batch"]
    assert decided == [0, 6], "the threshold is never reached, five forecasts follow a full step"


@pytest.mark.slow
def test_a_schedule_of_ones_own_is_planned_with_its_bounds(run_script, flags, tmp_path):
    chosen = ["--plugin", FOLDER / "steady_schedule.py", "--method", "steady", "--dry-run", "--output-dir", tmp_path]
    done = run_script("TaylorSeer-FLUX/sample.py", *flags, *chosen)
    assert done.returncode == 0, done.stderr
    (planned,) = json.loads(done.stdout)["batch"].values()
    assert planned["full_steps"] is None
    assert planned["full_steps_bounds"] == [2, 12], "at least every sixth of twelve"
    lower, upper = planned["flops_ratio_bounds"]
    assert lower == 1.0
    assert 4 < upper < 6, "a little less than every sixth step, as forecasts cost something"


def test_lines_of_examples_are_named_where_they_fail(tmp_path):
    path = tmp_path / "steady.py"
    path.write_text(
        re.sub(
            r"tokens = look\.modulated\(\)", "tokens = look.modulated(3)", (FOLDER / "steady_schedule.py").read_text()
        )
    )
    line = next(i for i, text in enumerate(path.read_text().splitlines(), 1) if "modulated(3)" in text)
    load_plugin(path)
    cache = make_cache("steady")
    with pytest.raises(UserError, match=rf"schedule Steady failed at step 0: .*steady\.py:{line}: TypeError"):
        reference.sample("flux", reference.network("flux"), 3, cache)


def test_a_selector_of_ones_own_computes_its_tokens():
    """Of FLUX's MLPs and single blocks; which tokens those are is kept apart from what the site computes."""
    load_plugin(FOLDER / "brightest_tokens.py")
    network, loop = reference.network("flux"), reference.open_loop("flux", 5)
    _, run = reference.sample("flux", network, 5, make_cache("brightest", ratio=0.5))
    record = run.record()
    assert record["full_steps"] == [0, 4]
    num_image, num_text = loop.latents.shape[2], loop.branches[0]["txt"].shape[1]
    assert record["steps"][1]["computed"] == {
        "img_attn": "nothing", "img_mlp": num_image // 2, "txt_attn": "nothing", "txt_mlp": num_text // 2,
        "single": (num_image + num_text) // 2,
    }  # fmt: skip
