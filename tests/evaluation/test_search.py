"""Searched schedules: the best list by hand, a search that is killed, what it is calibrated on, and what is shipped."""

import itertools
import json
import re

import numpy as np
import pytest
import torch

from cache_dic import PRESETS, UserError, make_cache
from cache_dic.searched import read_schedule
from evaluation import calibration, search
from evaluation.backbones import BACKBONES, PACKAGES, shipped_schedules
from evaluation.calibration import (
    calibration_prompts,
    default_samples,
    even_steps,
    noise_seed,
    sampling_args,
    shown_prompts,
)
from evaluation.flags import EMBEDDED
from evaluation.search import GapErrors, best_full_steps, published_steps, refine
from seerkit.command.cli import Parser, run_command
from seerkit.data.captions import HELD_OUT
from seerkit.sampling.seeds import SampleGenerators

COUNTS = (7, 8, 10, 14, 18)


def args_of(model: str, *flags: str):
    return sampling_args(Parser("", "", prog="search"), model, flags, seed=noise_seed(0))


# ------------------------------------------------------------------------------------------------- dynamic programming


def gram_of(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def random_walk(num_steps: int, seed: int) -> np.ndarray:
    """Features (T, 6) that move and turn."""
    return np.random.default_rng(seed).standard_normal((num_steps, 6)).cumsum(0).cumsum(0)


def test_the_error_of_a_gap_is_that_of_its_forecasts_added_up():
    features = random_walk(8, 0)
    errors = GapErrors(gram_of(features), lambda state, step: (-1.0, 2.0) if len(state) > 1 else (1.0,))
    reused = sum(features[0] - features[step] for step in (1, 2, 3))
    assert errors((0,), 4) == pytest.approx(reused @ reused)
    lines = sum(2 * features[3] - features[1] - features[step] for step in (4, 5))
    assert errors((1, 3), 6) == pytest.approx(lines @ lines)
    assert errors((1, 3), 4) == 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("settings", "memory"), [({"max_order": 0}, 1), ({"max_order": 1}, 2), ({"max_order": 2}, 3)])
def test_dynamic_programming_finds_what_trying_all_lists_finds(seed, settings, memory):
    forecaster = make_cache("newton", full_steps=[0], **settings).forecaster
    errors = GapErrors(gram_of(random_walk(10, seed)), forecaster.weights)

    def total(steps: tuple[int, ...]) -> float:
        return sum(
            errors(steps[max(0, i + 1 - memory) : i + 1], following)
            for i, following in enumerate((*steps[1:], 10))
        )  # fmt: skip

    for count in (1, 2, 4, 7):
        found = best_full_steps(10, count, errors, memory)
        every = [(0, *rest) for rest in itertools.combinations(range(1, 10), count - 1)]
        assert len(found) == count
        assert total(found) == pytest.approx(min(map(total, every)), rel=1e-12)


def test_full_steps_stand_where_features_turn():
    """A line that bends once: two points before the bend tell one line, two behind it the other."""
    features = np.array([[float(step)] if step < 6 else [6.0 - 5 * (step - 6)] for step in range(12)])
    forecaster = make_cache("newton", max_order=1, full_steps=[0]).forecaster
    errors = GapErrors(gram_of(features), forecaster.weights)
    found = best_full_steps(12, 4, errors, 2)
    assert found[0] == 0
    assert {6, 7} <= {*found} or {5, 6} <= {*found} or {*found} >= {7, 8}
    steps = (0, *found[1:])
    total = sum(errors(steps[max(0, i - 1) : i + 1], following) for i, following in enumerate((*steps[1:], 12)))
    assert total == pytest.approx(0, abs=1e-9)


def test_a_state_remembers_as_far_as_forecasts_reach_and_time_allows():
    def plan(num_steps: int, order: int):
        return make_cache("newton", max_order=order, full_steps=range(0, num_steps, 5)).plan(num_steps)

    assert search.remembered(plan(50, 0)) == 1
    assert search.remembered(plan(50, 1)) == 2
    assert search.remembered(plan(20, 2)) == 3
    assert search.remembered(plan(50, 4)) == 2
    assert search.remembered(plan(1000, 4)) == 1


def test_changes_are_those_of_the_latents_and_the_first_is_in_line_with_the_next():
    latents = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(0))
    found = search.changes_gram(list(latents))
    changes = latents[1:] - latents[:-1]
    whole = torch.cat([2 * changes[:1] - changes[1:2], changes]).double()  # (T, B, n)
    for row in range(2):
        torch.testing.assert_close(found[row], whole[:, row] @ whole[:, row].T, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------- refinement


def test_steps_are_moved_until_nothing_gains():
    asked = []

    def quality(steps: tuple[int, ...]) -> float:
        asked.append(steps)
        return -float(sum(abs(step - wanted) for step, wanted in zip(steps, (0, 3, 4, 11, 19), strict=True)))

    assert refine((0, 5, 10, 15, 17), quality, 20) == (0, 3, 4, 11, 19)
    assert all(steps[0] == 0 and len({*steps}) == 5 and max(steps) < 20 for steps in asked)


def test_a_gain_that_is_next_to_none_is_not_taken():
    assert refine((0, 5), lambda steps: 0.005 * steps[1], 20) == (0, 5)
    assert refine((0, 5), lambda steps: 0.02 * steps[1], 20) == (0, 19)


def test_refinement_stops_when_there_is_to_be_no_more():
    left = iter(range(3))
    assert refine((0, 5), lambda steps: float(steps[1]), 20, lambda: next(left, None) is not None) == (0, 6)


def test_lists_to_begin_with_have_the_full_steps_that_are_asked_for():
    for model, count in itertools.product(EMBEDDED, (1, 2, *COUNTS, 49)):
        warmup = PRESETS[PACKAGES[model]].warmup_steps
        for steps in (even_steps(50, count), published_steps(50, count, warmup)):
            assert len(steps) == count
            assert steps[0] == 0
            assert make_cache("fora", full_steps=steps).plan(50).full_steps == steps
    assert published_steps(50, 10, 3) == (0, 1, 2, 8, 14, 20, 26, 32, 38, 44)
    assert even_steps(50, 10) == tuple(range(0, 50, 5))


def test_similarity_is_the_ratio_of_energies():
    reference = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 0.0]])
    latents = torch.tensor([[3.0, 4.5], [1.0, 0.0], [torch.nan, 0.0]])
    assert search.similarity_db(latents, reference) == pytest.approx([20.0, 200.0, -200.0])


def test_extreme_samples_do_not_decide():
    assert search.typical([20.0]) == 20
    assert search.typical([20.0, 30.0]) == 25
    assert search.typical([20.0, 31.0, 33.0, 90.0]) == 32
    assert search.typical([1.0, 2.0, 20.0, 21.0, 22.0, 23.0, 80.0, 90.0]) == 21.5


# --------------------------------------------------------------------------------------------------------- calibration


@pytest.mark.parametrize("model", EMBEDDED)
@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_calibration_samples_are_none_that_results_are_shown_on(model, seed):
    args = args_of(model)
    drawn = calibration_prompts(args, None, None, seed)
    assert drawn == calibration_prompts(args, None, None, seed)
    assert drawn != calibration_prompts(args, None, None, seed + 1)
    shown = shown_prompts(model, args)
    assert {*default_samples(args)} <= {*shown}
    if model == "fashion-mnist":
        assert sorted(drawn) == sorted(shown), "every class is shown, so that only the noise is another"
    else:
        assert not {*drawn} & {*shown}
        assert not {*drawn} & HELD_OUT
    if model in ("flux-tiny", "hidream-tiny"):
        labels = {prompt.rpartition(",")[0] for prompt in shown}
        assert len(shown) == 216
        assert not {prompt.rpartition(",")[0] for prompt in drawn} & labels, "in no style"
    ours, theirs = (
        SampleGenerators(of, range(40)).randn(4).flatten().tolist() for of in (noise_seed(seed), calibration.SHOWN_SEED)
    )
    assert not {*ours} & {*theirs}


def test_more_samples_than_prompts_of_a_file_take_them_again(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("fox, noto\nowl, outline\n")
    args = args_of("flux-tiny")
    assert calibration_prompts(args, file, None, 0) == ["fox, noto", "owl, outline"]
    assert calibration_prompts(args, file, 3, 0) == ["fox, noto", "owl, outline", "fox, noto"]
    file.write_text("bag\n0\n")
    assert calibration_prompts(args_of("fashion-mnist"), file, None, 0) == ["bag", "t-shirt"]


@pytest.mark.parametrize(
    ("model", "prompt"),
    [
        ("flux-tiny", "Red  Apple, noto".replace("noto", "twemoji flat")),
        ("hidream-tiny", "rocket, 3d render"),
        ("wan-tiny", "red star moving left on black"),
        ("DiT-XL/2", "207"),
    ],
)
def test_prompts_that_results_are_shown_on_are_refused(tmp_path, model, prompt):
    file = tmp_path / "prompts.txt"
    file.write_text(prompt + "\n")
    flags = ("--image-size", "256") if model == "DiT-XL/2" else ()
    with pytest.raises(
        UserError, match=r"--calibration-prompts .* names '.*', which results are shown on; calibrate on"
    ):
        calibration_prompts(args_of(model, *flags), file, None, 0)


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def main(load_command):
    return load_command("eval/search_schedule.py").main


@pytest.fixture
def searched(main, checkpoint, tmp_path):
    """`searched(*more)`: the schedule that a small search writes to found.json in the test's folder."""

    def run(*more: object):
        flags = ["--model", "flux-debug", "--ckpt", checkpoint, "--num-steps", 9, "--full-steps", 3, "--samples", 2]
        flags += ["--device", "cpu", "--width", 16, "--height", 16, "--out", tmp_path / "found.json", *more]
        main([*map(str, flags)])
        return json.loads((tmp_path / "found.json").read_text())

    return run


def outcome(schedule: dict) -> dict:
    return {key: value for key, value in schedule.items() if key not in ("conditions", "command_line")}


def test_a_search_writes_a_schedule_that_is_no_worse_than_what_it_began_with(searched, tmp_path, capsys):
    schedule = searched()
    assert len(schedule["full_steps"]) == 3
    assert schedule["full_steps"][0] == 0
    assert (schedule["model"], schedule["num_steps"]) == ("flux-debug", 9)
    found = schedule["similarity_db"]
    assert found["searched"] == max(found.values())
    assert schedule["lists"]["even"] == [0, 3, 6]
    assert len(schedule["calibration"]["prompts"]) == 2
    assert schedule["searched_for"] == {"method": "taylorseer", "engine": "folded", "max_order": 2, "warmup_steps": 3}
    assert read_schedule(tmp_path / "found.json").full_steps == tuple(schedule["full_steps"])
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert f"searched  {found['searched']:6.2f} dB" in capsys.readouterr().out


@pytest.mark.parametrize("killed_at", [0, 1, 4])
def test_a_killed_search_goes_on_to_the_outcome_of_one_that_was_not(searched, tmp_path, monkeypatch, killed_at):
    whole = searched("--engine", "stack")
    (tmp_path / "found.json").unlink()
    add, sampled = search.State.add, []

    def killed(self, steps, *rest):
        sampled.append(steps)
        if len(sampled) > killed_at:
            raise KeyboardInterrupt
        add(self, steps, *rest)

    monkeypatch.setattr(search.State, "add", killed)
    with pytest.raises(KeyboardInterrupt):
        searched("--engine", "stack")
    assert not (tmp_path / "found.json").exists()
    monkeypatch.setattr(
        search.State, "add", lambda self, steps, *rest: (sampled.append(steps), add(self, steps, *rest))
    )
    monkeypatch.setattr(search, "changes_gram", None)  # nothing uncached is sampled again
    lost = sampled.pop()
    assert outcome(searched("--engine", "stack", "--resume")) == outcome(whole)
    assert len(sampled) == len({*sampled}) == whole["lists_sampled"], "each list once"
    assert lost in sampled


def test_a_search_of_other_settings_is_not_gone_on_with(searched, monkeypatch):
    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(search.State, "add", kill)
        with pytest.raises(KeyboardInterrupt):
            searched()
    with pytest.raises(UserError, match=r"found\.search is of another search: .*seed is .* leave out --resume"):
        searched("--seed", 1, "--resume")
    assert searched("--seed", 1)["seed"] == 1


def test_a_search_that_is_done_is_not_done_again(searched, monkeypatch):
    first = searched()
    with monkeypatch.context() as patch:
        patch.setattr(search, "Runner", None)
        assert searched("--resume") == first
    assert searched("--resume", "--max-order", 1)["searched_for"]["max_order"] == 1


def test_no_more_lists_are_sampled_than_allowed(searched):
    assert searched("--lists", 4)["lists_sampled"] <= 4
    assert searched("--minutes", 1e-6)["lists_sampled"] <= 3


def test_large_latents_are_measured_on_some_of_their_numbers(searched, monkeypatch):
    monkeypatch.setattr(search, "COORDINATES", 300)  # of 768
    assert len(searched()["full_steps"]) == 3


def test_a_plan_counts_network_evaluations(main, capsys):
    main(["--model", "flux-dev", "--full-steps", "13", "--samples", "3", "--lists", "20", "--dry-run", "--json"])
    plan = json.loads(capsys.readouterr().out)
    assert plan["evaluations"] == {"uncached": 150, "lists_at_most": 780}
    main(["--model", "wan-tiny", "--full-steps", "7", "--dry-run"])
    assert "on 2 calibration samples: 100 of uncached runs, then at most 560 for 40 lists" in capsys.readouterr().out


@pytest.mark.parametrize("model", [name for name in BACKBONES if not name.startswith("wan-i2v")])
def test_every_model_can_be_planned(main, model, capsys):
    main([*f"--model {model} --full-steps 3 --dry-run --json".split()])
    assert json.loads(capsys.readouterr().out)["model"] == model


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--full-steps 50", "--full-steps 50 leaves nothing to forecast; give fewer than the 50 steps"),
        ("--full-steps 5 --interval 3", "--interval has no effect on a search"),
        ("--full-steps 5 --compare", "--compare has no effect on a search"),
        ("--full-steps 5 --schedule fora", "--schedule has no effect on a search"),
        ("--full-steps 5 --method uncached", "without effect: --method uncached computes every step"),
        ("--full-steps 5 --method fora newton", "a search is for one caching method"),
        ("--full-steps 5 --model flux-dev", "flux-dev needs --calibration-prompts FILE with one prompt per line"),
        ("--full-steps 5 --calibration-prompts none.txt", "prompt file none.txt cannot be read"),
    ],
)
def test_what_cannot_be_searched_is_one_line(main, flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        run_command(main, flags.split())
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--prompt", "--compile", "--output-dir", "--nosuch", "--test-FLOPs"])
def test_flags_that_a_search_has_no_use_for_are_unknown(main, flag, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--full-steps", "5", flag, "x"])
    assert f"unrecognized arguments: {flag}" in capsys.readouterr().err


@pytest.mark.slow
def test_missing_weights_are_told_as_the_sampling_command_tells_them(
    main, load_command, without_checkpoints, tmp_path, monkeypatch
):
    without_checkpoints("FLUX_DEV", "AE")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("a fox\n")
    told = []
    for command, flags in (
        (main, "--full-steps 5 --calibration-prompts prompts.txt"),
        (load_command("TaylorSeer-FLUX/sample.py").main, "--prompt fox"),
    ):
        with pytest.raises(Exception, match="FLUX") as caught:
            command([*f"--model flux-dev --device cpu {flags}".split()])
        told.append((type(caught.value).__name__, str(caught.value)))
    assert told[0] == told[1]


@pytest.mark.slow
def test_a_command_follows_a_file_and_its_record_names_the_content(run_script, checkpoint, tmp_path):
    files = {}
    for folder, steps in (("a", [0, 2]), ("b", [0, 1])):
        files[folder] = tmp_path / folder / "mine.json"
        files[folder].parent.mkdir()
        files[folder].write_text(json.dumps({"model": "flux-debug", "num_steps": 4, "full_steps": steps}))
    flags = ["--model", "flux-debug", "--ckpt", checkpoint, "--num-steps", 4, "--prompt", "fox", "--device", "cpu"]
    flags += ["--output-dir", tmp_path / "out", "--width", 16, "--height", 16]
    for folder in files:
        done = run_script("TaylorSeer-FLUX/sample.py", *flags, "--schedule", files[folder])
        assert done.returncode == 0, done.stderr
        assert "warning" not in done.stderr
    rows = {
        tuple(row["full_steps"]): row["schedule"]
        for row in json.loads((tmp_path / "out" / "record.json").read_text())["rows"]
    }
    assert rows.keys() == {(0, 2), (0, 1)}, "two files of one name are two rows"
    assert rows[0, 2]["name"] == "searched"
    assert rows[0, 2]["file"]["digest"] == read_schedule(files["a"]).digest != rows[0, 1]["file"]["digest"]
    done = run_script("TaylorSeer-FLUX/sample.py", *flags, "--num-steps", 5, "--schedule", files["a"])
    assert done.returncode == 2
    assert re.fullmatch(
        r"sample\.py: error: schedule mine\.json is for runs of 4 steps, and this one has 5;.*\n", done.stderr
    )
    files["a"].write_text(json.dumps({"model": "flux-dev", "num_steps": 4, "full_steps": [0, 2]}))
    done = run_script("TaylorSeer-FLUX/sample.py", *flags, "--schedule", files["a"], "--dry-run")
    assert done.returncode == 0
    assert done.stderr == "warning: schedule mine.json was searched for flux-dev, and the model is flux-debug\n"


# ------------------------------------------------------------------------------------------------------------- shipped


@pytest.mark.parametrize("model", EMBEDDED)
def test_schedules_lie_beside_every_embedded_model(model):
    files = {len(read_schedule(path).full_steps): path for path in shipped_schedules(model, 50)}
    assert files.keys() == {*COUNTS}
    shown = {*shown_prompts(model, args_of(model))}
    for count, path in files.items():
        made = json.loads(path.read_text())
        assert path.name == f"{model}-{count}-of-50.json"
        assert (made["model"], made["num_steps"], len(made["full_steps"])) == (model, BACKBONES[model].num_steps, count)
        preset = PRESETS[PACKAGES[model]]
        assert made["searched_for"]["max_order"] == preset.max_order
        assert made["calibration"]["seed"] == noise_seed(made["seed"])
        assert model == "fashion-mnist" or not {*made["calibration"]["prompts"]} & shown
        found = made["similarity_db"]
        assert found["searched"] == max(found.values()) > found["published"]
