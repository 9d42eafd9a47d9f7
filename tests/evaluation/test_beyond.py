"""eval/beyond.py: differences sample by sample, the choice of rivals, calibrations carried over, and the tables of records."""

import argparse
import json
import math
import runpy
import shlex
from pathlib import Path

import pytest
import torch

import flux
from cache_dic import UserError
from evaluation.beyond import studies
from evaluation.beyond.calibrations import Calibration, by_budget, for_published, mapped, read, shipped
from evaluation.beyond.cells import baselines, by_label, failures, headline_cells, reference_cells, rival_cells
from evaluation.beyond.evidence import Budget, budget_record
from evaluation.beyond.paired import difference, differences, verdict
from evaluation.beyond.rivals import Choice, choose, forecasters, nearest, rivals
from evaluation.beyond.rows import (
    EVEN,
    FEWER,
    FITTED,
    ON_LIST,
    PUBLISHED,
    RIVAL,
    WHOLE,
    Placed,
    fewer_steps,
    fixed_rows,
    published_list,
)
from evaluation.beyond.samples import HELD_OUT, UNUSUAL, check_unseen, drawn, pool, sample_seed
from evaluation.beyond.studies import Case, grouped, make_missing, slug
from evaluation.calibration import noise_seed
from evaluation.comparing import LatePipeline
from evaluation.families import FAMILIES
from evaluation.forms import BEYOND, STUDY
from evaluation.variants import Setup, Variant
from seerkit.io.records import misfit, read_record
from seerkit.weights.checkpoints import export_safetensors

ROOT = Path(__file__).parents[2]
COMMAND = runpy.run_path(str(ROOT / "eval" / "beyond.py"))
TABLES = runpy.run_path(str(ROOT / "eval" / "tables.py"))
FLUX = Setup(model="flux-tiny", package="flux", num_steps=50)
CONDITIONS = {
    "device": "A Processor", "threads": 2, "dtype": "float32", "versions": {"torch": "2.13.0"},
    "date": "2026-01-02T03:04:05+00:00",
}  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- differences


def test_a_difference_is_the_interval_of_pairs():
    found = difference([30.0, 33.0, 31.0, None], [29.0, 31.0, 31.0, 40.0])
    # differences 1, 2, 0: mean 1, deviation 1, t of 2 degrees of freedom 4.302653
    half = 4.302652729911275 / math.sqrt(3)
    assert found == pytest.approx(
        {"mean": 1.0, "low": 1 - half, "high": 1 + half, "num": 3, "wins": 2 / 3, "losses": 0.0}
    )


def test_less_is_better_of_a_distance():
    found = difference([5.0, 9.0], [6.0, 7.0], better=-1)
    assert (found["mean"], found["wins"], found["losses"]) == (0.5, 0.5, 0.5)


def test_without_pairs_there_is_no_difference():
    found = difference([None, 30.0], [30.0, None])
    assert found == {"mean": None, "low": None, "high": None, "num": 0, "wins": None, "losses": None}
    assert verdict(found) == "open"


def test_differences_are_of_the_measures_that_both_have():
    mine = {"samples": {"psnr_db": [30.0, 31.0], "lite0": [4.0, 4.0], "score": [1.0, 1.0]}}
    other = {"samples": {"psnr_db": [29.0, 29.0], "ssim": [0.9, 0.9], "lite0": [5.0, 7.0]}}
    found = differences(mine, other)
    assert {key: one["mean"] for key, one in found.items()} == {"psnr_db": 1.5, "lite0": -2.0}
    assert found["lite0"]["wins"] == 1.0


@pytest.mark.parametrize(
    ("low", "high", "goal", "expected"),
    [(0.1, 2.0, 0.0, "yes"), (-0.1, 2.0, 0.0, "open"), (-2.0, -0.1, 0.0, "no"), (5.0, 7.0, 6.0, "open"), (1.0, 5.9, 6.0, "no")],
)  # fmt: skip
def test_a_verdict_needs_the_whole_interval(low, high, goal, expected):
    assert verdict({"low": low, "high": high}, goal) == expected


# --------------------------------------------------------------------------------------------------------------- rivals


def test_the_nearest_reaches_most_of_the_budget():
    found = [({"interval": 4}, 3.6), ({"interval": 5}, 4.62), ({"interval": 6}, 5.6)]
    assert nearest(found, 5.0) == ({"interval": 6}, 5.6), "4.62 is less than 0.93 of 5"
    assert nearest(found, 4.9) == ({"interval": 5}, 4.62)
    assert nearest(found, 7.0) is None


def test_a_published_row_that_is_near_stands():
    asked = []

    def ratio(settings):
        asked.append(dict(settings))
        return float(settings["interval"])

    choice = choose("fora", [{"interval": 4}, {"interval": 6}], "interval", None, ratio, 5.7)
    assert choice == Choice(method="fora", settings={"interval": 6}, ratio=6.0)
    assert asked == [{"interval": 4}, {"interval": 6}]


def test_what_was_tried_for_another_budget_serves_where_no_row_is_near():
    def ratio(settings):
        return 10 * settings["threshold"]

    rows, earlier = [{"threshold": 0.2}], [{"threshold": 0.51}]
    assert choose("m", rows, "threshold", 0.2, ratio, 5.0, earlier).settings == {"threshold": 0.51}
    assert choose("m", [{"threshold": 0.49}], "threshold", 0.2, ratio, 5.0, earlier).settings == {"threshold": 0.49}


def test_an_interval_is_turned_on_the_nearest_row():
    rows = [{"interval": 3, "max_order": 1}, {"interval": 10, "max_order": 2}]
    choice = choose("m", rows, "interval", None, lambda settings: float(settings["interval"]), 7.2)
    assert choice.settings == {"interval": 7, "max_order": 2}


def test_a_threshold_is_bisected_to_the_budget():
    tried = []

    def ratio(settings):
        tried.append(settings["threshold"])
        return 1 + 10 * settings["threshold"]

    choice = choose("teacache", [{"threshold": 0.05}], "threshold", 0.05, ratio, 5.0)
    assert 0.93 * 5 <= choice.ratio <= 5 / 0.93
    assert choice.settings["threshold"] == pytest.approx(0.4, rel=0.15)
    assert len(tried) <= 2 + 8 + 6


def test_a_threshold_is_lowered_where_the_row_saves_too_much():
    choice = choose("m", [{"threshold": 0.8}], "threshold", 0.8, lambda given: 1 + 10 * given["threshold"], 3.0)
    assert choice.ratio == pytest.approx(3.0, rel=0.08)


def test_what_does_not_reach_a_budget_says_how_far_it_comes():
    choice = choose("pab", [{"threshold": 0.1}], "threshold", 0.1, lambda _: 1.2, 5.0)
    assert choice == Choice(method="pab", why="reaches 1.20x")
    assert choose("m", [{}], None, None, lambda _: None, 5.0).why == "none of its settings can be had here"


def test_rivals_are_all_methods_but_ours_and_taylorseer():
    found = rivals(FLUX)
    assert {"fora", "teacache", "toca", "hicache"} <= found.keys()
    assert not {"loopseer", "taylorseer", "uncached"} & found.keys()
    on_lists = forecasters(FLUX)
    assert {"fora", "foca", "hicache", "newton"} <= {*on_lists}
    assert not {"teacache", "toca", "procache"} & {*on_lists}, "they decide, choose tokens, or are FORA on a list"


def test_fewer_steps_come_nearest_in_cost():
    (one,) = fewer_steps(4.66, FLUX)
    assert (one.role, one.variant.changes) == (FEWER, {"num_steps": 11})
    wan = Setup(model="wan-tiny", package="wan", num_steps=50, solver="unipc", solvers=("unipc", "dpm++"))
    assert [dict(one.variant.changes) for one in fewer_steps(5.0, wan)] == [
        {"num_steps": 10},
        {"num_steps": 10, "solver": "dpm++"},
    ]


# ------------------------------------------------------------------------------------------------------------- samples


def args_of(model: str) -> argparse.Namespace:
    return argparse.Namespace(model=model, num_classes=None)


def test_prompts_are_held_out_of_training_and_calibration():
    from seerkit.data.captions import HELD_OUT as UNSEEN

    emoji = pool(args_of("flux-tiny"))
    assert len(emoji) == len({*emoji}) == 200 * 8
    assert not any(prompt.endswith("emojione") for prompt in emoji)
    assert all(prompt.endswith("emojione") for prompt in pool(args_of("flux-tiny"), UNUSUAL))
    assert {*pool(args_of("wan-tiny"))} == {*UNSEEN}
    with pytest.raises(UserError, match="fashion-mnist has no unusual prompts"):
        pool(args_of("fashion-mnist"), UNUSUAL)
    with pytest.raises(UserError, match="flux-dev needs --prompt-file"):
        pool(args_of("flux-dev"))


def test_prompts_are_drawn_once_each_by_the_seed():
    first, again, other = (drawn(args_of("hidream-tiny"), 256, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({*first}) == 256
    assert sample_seed(0) not in (0, noise_seed(0), sample_seed(1))


def test_a_calibration_that_has_seen_a_prompt_is_refused():
    one = Calibration(path=Path("loopseer-x.json"), data={"made_with": {"prompts": ["red apple, noto"]}})
    with pytest.raises(UserError, match=r"loopseer-x\.json was made with 'red apple, noto'"):
        check_unseen("flux-tiny", ["key, noto", "red apple, noto"], [one])
    with pytest.raises(UserError, match="made with 'red apple, noto'"):
        check_unseen("flux-tiny", ["Red  apple, NOTO"], [one])
    check_unseen("flux-tiny", ["key, noto"], [one])
    check_unseen("fashion-mnist", ["red apple, noto"], [one])


# -------------------------------------------------------------------------------------------------------- calibrations


def calibration(full_steps: list[int], num_steps: int, **more) -> dict:
    return {
        "model": "flux-tiny", "num_steps": num_steps, "full_steps": full_steps, "engine": "folded", "basis": "taylor",
        "max_order": 2, "warmup_steps": 3, "corrections": [[0.1]] * len(full_steps), **more,
    }  # fmt: skip


def written(folder: Path, name: str, data: dict) -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(data))
    return path


def test_those_that_ship_are_found_by_full_steps(tmp_path):
    written(tmp_path, "loopseer-flux-tiny-3-of-10", calibration([0, 3, 6], 10))
    written(tmp_path, "loopseer-flux-tiny-2-of-10", calibration([0, 5], 10))
    written(tmp_path, "loopseer-flux-tiny-2-of-10-published", calibration([0, 1], 10))
    assert [*shipped("flux-tiny", 10, folder=tmp_path)] == [3, 2]
    assert shipped("flux-tiny", 10, ending="published", folder=tmp_path)[2].full_steps == (0, 1)
    assert shipped("flux-tiny", 20, folder=tmp_path) == {}


def test_those_for_the_published_list_stand_apart(tmp_path):
    mine = written(tmp_path, "mine", calibration([0, 3, 6], 10))
    other = written(tmp_path, "mine-published", calibration([0, 1, 6], 10))
    assert by_budget("flux-tiny", 10, [3], [mine, other])[3].path == mine
    assert {count: one.path for count, one in for_published("flux-tiny", 10, [mine, other]).items()} == {3: other}
    with pytest.raises(UserError, match=r"mine-published\.json is for 10 steps of flux-tiny, not for 10 of wan-tiny"):
        for_published("wan-tiny", 10, [other])


def test_two_of_as_many_full_steps_are_refused(tmp_path):
    paths = [written(tmp_path, name, calibration([0, 3, 6], 10)) for name in ("one", "two")]
    with pytest.raises(UserError, match=r"one\.json and .*two\.json both have 3 full steps"):
        by_budget("flux-tiny", 10, [3], paths)


def test_a_name_alone_makes_no_calibration_of_the_published_list(tmp_path):
    even, published = [*range(0, 50, 5)], published_list(FLUX, 10)
    one = read(written(tmp_path, "mine", calibration(even, 50)))
    right = read(written(tmp_path, "right-published", calibration([*published], 50)))
    assert [placed.role for placed in fixed_rows(one, right, FLUX)][-1] == FITTED
    wrong = read(written(tmp_path, "wrong-published", calibration(even, 50)))
    with pytest.raises(UserError, match=r"wrong-published\.json is called one for the published rule's full steps"):
        list(fixed_rows(one, wrong, FLUX))


def test_budgets_without_a_calibration_are_named(tmp_path):
    path = written(tmp_path, "mine", calibration([0, 3, 6], 10))
    assert by_budget("flux-tiny", 10, [3], [path])[3].setting == str(path)
    with pytest.raises(UserError, match=r"for 10 steps of flux-tiny has 7, 5 full steps; .*\(3 are there\)"):
        by_budget("flux-tiny", 10, [7, 3, 5], [path])
    with pytest.raises(UserError, match="is for 10 steps of flux-tiny, not for 50 of flux-tiny"):
        by_budget("flux-tiny", 50, [3], [path])
    with pytest.raises(UserError, match=r'is not a record of `eval/calibrate_loopseer\.py`: it lacks "full_steps"'):
        read(written(tmp_path, "other", {"model": "flux-tiny", "num_steps": 10}))


def test_a_list_is_carried_over_by_its_place():
    found = mapped(Calibration(path=Path("x.json"), data=calibration([0, 4], 7)), 13)
    assert (found["num_steps"], found["full_steps"], found["corrections"]) == (13, [0, 8], [[0.1], [0.1]])
    with pytest.raises(UserError, match="2 full steps leave nothing to forecast of 2"):
        mapped(Calibration(path=Path("x.json"), data=calibration([0, 4], 7)), 2)


def test_full_steps_that_would_meet_are_kept_apart():
    one = Calibration(path=Path("x.json"), data=calibration([0, 1, 2, 8], 10))
    assert mapped(one, 5)["full_steps"] == [0, 1, 2, 4]
    assert mapped(Calibration(path=Path("x.json"), data=calibration([0, 7, 8, 9], 10)), 5)["full_steps"] == [0, 2, 3, 4]


# ------------------------------------------------------------------------------------------------------------- records


def row(label: str, psnr: list[float], ratio: float = 5.0, **more) -> dict:
    mean = sum(psnr) / len(psnr)
    return {
        "label": label, "name": label, "series": label, "form": "folded", "groups": [], "num_steps": 50,
        "full_steps": [0, 25], "computed": {"mean": 10, "min": 10, "max": 10}, "flops_ratio": ratio, "kept_bytes": 2**20,
        "latency": {"ratio": 4.0}, "psnr": {"mean_db": mean, "low_db": mean - 1, "high_db": mean + 1, "num_images": 3},
        "samples": {"psnr_db": psnr}, **more,
    }  # fmt: skip


def evidence_record(tmp_path: Path) -> dict:
    """LoopSeer at 10 full steps: 4, 8 and 9 dB above TaylorSeer, above even spacing, level with another method."""
    path = written(tmp_path, "loopseer-flux-tiny-10-of-50", calibration([*range(0, 50, 5)], 50))
    rows = {
        "uncached": {**row("uncached", [50.0, 50.0, 50.0], 1.0), "psnr": None, "samples": {}},
        "ours": row("ours", [40.0, 41.0, 42.0]),
        "published": row("published", [36.0, 33.0, 33.0]),
        "even": row("even", [38.0, 38.0, 39.5]),
        "list": row("list", [38.5, 38.5, 39.5]),
        "other": row("other", [41.0, 41.0, 41.5]),
        "n4": row("n4", [41.0, 41.0, 41.0], 3.5),
    }
    roles = {"ours": "loopseer", "published": PUBLISHED, "even": EVEN, "list": ON_LIST, "other": RIVAL, "gone": FEWER}
    budget = Budget(
        calibration=read(path),
        ratio=4.9,
        placed=[Placed(role=role, variant=Variant(label=label, series=label)) for label, role in roles.items()],
        choices=[Choice(method="pab", why="reaches 1.20x"), Choice(method="other", settings={}, ratio=5.0)],
        tried=[{"name": "other-10", "role": RIVAL, "label": "other", "flops_ratio": 5.0, "psnr_db": 40.5}],
    )
    return {
        "settings": {"model": "flux-tiny", "num_steps": 50, "seed": 1}, "seed": 0, "num_samples": 3, "num_rival_samples": 2,
        "batch_size": 3, "reference": "n4", "budgets": [budget_record(budget, rows, "n4")], "rows": [*rows.values()],
        "conditions": CONDITIONS,
    }  # fmt: skip


def test_a_budget_says_what_the_gain_is_made_of(tmp_path):
    (budget,) = evidence_record(tmp_path)["budgets"]
    means = {name: one["mean"] for name, one in budget["parts"].items()}
    assert means == pytest.approx({"whole": 7.0, "schedule": 38.8333333 - 34.0, "forecast": 41 - 38.8333333})
    assert budget["over_reference"]["psnr_db"]["mean"] == pytest.approx(0.0)
    by_role = {one["role"]: one for one in budget["rows"]}
    assert by_role[PUBLISHED]["differences"]["psnr_db"]["wins"] == 1.0
    assert by_role[FEWER]["error"] == "it was not sampled"
    assert "differences" not in by_role["loopseer"]
    assert budget["not_tried"] == {"pab": "reaches 1.20x"}


def test_the_headline_says_plainly_what_is_not_above(tmp_path):
    record = evidence_record(tmp_path)
    assert misfit(record, BEYOND) is None
    (cells,) = headline_cells(record)
    assert cells[:3] == ["flux-tiny", "10", "4.90x"]
    assert cells[5].startswith("+7.00 ± ")
    assert cells[6:9] == ["open", "+4.83 dB, 69 %", "+2.17 dB, 31 %"]
    assert cells[9] == "other"
    assert cells[10].startswith("-0.17 ± ")
    assert cells[11:13] == ["33 %", "open"]
    assert cells[13] == "list"
    ((*_, reached),) = reference_cells(record)
    assert reached == "open"


def test_a_baseline_that_equals_the_uncached_samples_is_the_best(tmp_path):
    record = evidence_record(tmp_path)
    other = next(one for one in record["rows"] if one["label"] == "list")
    other["psnr"] = {"mean_db": None, "low_db": None, "high_db": None, "num_images": 0}
    rows = by_label(record)
    (best, _), *_ = baselines(record["budgets"][0], rows, lambda _: True)
    assert best["label"] == "list"


def test_a_loss_has_no_shares(tmp_path):
    record = evidence_record(tmp_path)
    record["budgets"][0]["parts"]["whole"] |= {"mean": -1.0, "low": -2.0, "high": -0.5}
    assert headline_cells(record)[0][5:9] == ["-1.00 ± 0.75", "no", "+4.83 dB", "+2.17 dB"]


def test_a_loss_beyond_the_interval_is_not_above(tmp_path):
    record = evidence_record(tmp_path)
    over = next(one for one in record["budgets"][0]["rows"] if one["role"] == RIVAL)["differences"]["psnr_db"]
    over |= {"mean": -2.0, "low": -3.0, "high": -1.0}
    assert headline_cells(record)[0][12] == "not above"


def test_tables_are_made_of_the_record(tmp_path):
    record = evidence_record(tmp_path)
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "beyond-flux-tiny.json").write_text(json.dumps(record))
    tables = TABLES["TABLES"]
    text = tables["beyond"](tmp_path)
    assert "| flux-tiny | 10 | 4.90x | 41.00 ± 1.00 | 34.00 ± 1.00 | +7.00 ±" in text
    assert text.count("not run on official weights") == 5
    assert "not run on fashion-mnist, hidream-tiny, hunyuan-tiny, wan-tiny" in text
    own = tables["flux-beyond"](tmp_path).splitlines()
    names = [line.split(" | ")[1] for line in own if line.startswith("| 10 ")]
    assert names == ["ours", "other", "list", "even", "published"], "by falling PSNR, ours first"
    assert rival_cells(record)[1] == [["other", "40.5 (5.00x)"], ["pab", "reaches 1.20x"]]
    assert tables["dit-beyond"](tmp_path).startswith("Not run; `python eval/beyond.py --model fashion-mnist")


def test_figures_are_drawn_of_the_record(tmp_path):
    from evaluation.figures.beyond import draw_beyond, points

    record = evidence_record(tmp_path)
    assert points(record, "loopseer") == [(5.0, 41.0, 40.0, 42.0, "ours")]
    made = draw_beyond(record, tmp_path)
    assert [path.name for path in made] == [
        "beyond-flux-tiny.png", "beyond-flux-tiny.svg", "beyond-flux-tiny-lists.png", "beyond-flux-tiny-lists.svg",
    ]  # fmt: skip
    assert "TaylorSeer, published full steps" in (tmp_path / "beyond-flux-tiny.svg").read_text()


# -------------------------------------------------------------------------------------------------------------- studies


def whole(tmp_path: Path) -> Calibration:
    return read(written(tmp_path, "loopseer-flux-tiny-10-of-50", calibration([*range(0, 50, 5)], 50)))


@pytest.mark.parametrize(
    "stages",
    [
        [1],
        [{"stage": ["a"]}],
        [{"stage": "even", "similarity_db": "x"}],
        [{"stage": "corrections", "tried": [{"gain_on_unseen_db": "x"}]}],
    ],
)
def test_stages_of_a_calibration_that_are_none_are_refused(tmp_path, stages):
    with pytest.raises(UserError, match="stages"):
        read(written(tmp_path, "x", calibration([0, 5], 50, stages=stages)))


def test_ablations_change_one_part_each(tmp_path):
    stages = [{"stage": "proposed", "full_steps": [*range(10)]}, {"stage": "moved", "full_steps": [*range(0, 50, 5)]}]
    seen = {"prompts": ["red apple, noto"] * 16}
    one = read(
        written(
            tmp_path,
            "x",
            calibration([*range(0, 50, 5)], 50, stages=stages, made_with=seen, searched_for={"fit": "closed"}),
        )
    )
    cases = studies.ablations(one, "flux-tiny", FLUX, tmp_path / "made")
    assert (cases[0].group, cases[0].make) == (WHOLE, None)
    made = {(case.group, case.label): case.make for case in cases[1:]}
    listed = ("--list", "0,5,10,15,20,25,30,35,40,45")
    fixed = (*listed, "--form", "folded", "--basis", "taylor", "--damping", "1")
    as_many = ("--samples", "16")  # as the whole method's, whatever is usual of the model
    assert made["weights", "without corrections"] == (*fixed, "--max-order", "2", "--fit", "none", *as_many)
    assert [label for group, label in made if group == "weights"] == [
        "without corrections",
        "fitted to uncached runs",
        "fitted in the model of a run",
    ]
    as_many += ("--fit", "closed")
    assert made["form", "hidden"] == (*listed, "--form", "hidden", *as_many)
    assert [label for group, label in made if group == "order"] == ["1", "3", "4"]
    assert [label for group, label in made if group == "damping"] == ["0.7"]
    assert made["damping", "0.7"][-8:] == ("--max-order", "2", "--damping", "0.7", *as_many)
    published = ",".join(map(str, published_list(FLUX, 10)))
    assert made["full steps", "of the published rule"] == ("--list", published, *as_many)
    assert made["full steps", "as proposed"] == ("--list", "0,1,2,3,4,5,6,7,8,9", *as_many)
    assert ("full steps", "as moved") not in made, "it is the outcome"
    assert made["calibration samples", "4"] == ("--full-steps", "10", "--samples", "4", "--fit", "closed")
    assert [label for group, label in made if group == "calibration samples"] == ["4", "8", "32"]
    assert len({case.calibration for case in cases}) == len(cases)
    assert len(grouped(cases)) == 1, "one contest for all"


def test_a_model_without_prompts_of_its_own_is_calibrated_on_those_of_the_whole_method(tmp_path, monkeypatch):
    folder = tmp_path / "made"
    seen = {"prompts": ["a fox", "a bear", "a fox"]}
    one = read(written(tmp_path, "x", calibration([*range(0, 50, 5)], 50, made_with=seen)))
    cases = studies.ablations(one, "flux-dev", FLUX, folder, ["--offload"])
    asked = ("--calibration-prompts", str(folder / studies.PROMPTS))
    assert all(case.make[-3:] == ("--offload", *asked) for case in cases[1:])
    monkeypatch.setattr(studies.subprocess, "run", lambda *_, **__: argparse.Namespace(returncode=0))
    make_missing(cases, "flux-dev", one.seen)
    assert (folder / studies.PROMPTS).read_text() == "a fox\na bear\n"


def test_transfers_are_contests_of_their_own_flags(tmp_path):
    cases = studies.transfers(whole(tmp_path), "flux-tiny", FLUX, tmp_path / "made")
    folders = [slug(group) for group in grouped(cases)]
    assert folders[:2] == ["as-calibrated", "guidance-scale-1.5"]
    assert {"num-steps-30", "width-48-height-48", "unusual"} <= {*folders}
    assert len({*folders}) == len(folders)
    assert not (tmp_path / "made").exists(), "a plan writes nothing"
    many = read(written(tmp_path, "many", calibration([*range(45)], 80)))
    labels = [case.label for case in studies.transfers(many, "flux-tiny", FLUX, tmp_path) if case.group == "steps"]
    assert labels == [], "30 and 40 steps leave nothing to forecast, 80 are its own"
    make_missing(cases, "flux-tiny")
    (thirty,) = (case for case in cases if case.label == "30 steps")
    assert read(thirty.calibration).full_steps == (0, 3, 6, 9, 12, 15, 18, 21, 24, 27)


def test_a_study_has_its_table(tmp_path):
    told = {"name": "x", "digest": "0", "full_steps": [0, 25]}
    over = {"psnr_db": difference([40.0, 42.0], [36.0, 37.0])}
    case = {"group": "guidance weight", "label": "1.5", "flags": [], "prompts": HELD_OUT}
    record = {
        "study": "transfer", "settings": {"model": "flux-tiny", "num_steps": 50, "seed": 1}, "seed": 0, "full_steps": 10,
        "num_samples": 2, "conditions": CONDITIONS,
        "contests": [
            {
                "flags": [], "prompts": HELD_OUT, "against": {PUBLISHED: "published", ON_LIST: "list"},
                "rows": [row("ours", [40.0, 42.0]), row("published", [36.0, 37.0])],
            }
        ],
        "cases": [
            {**case, "contest": 0, "row": "ours", "calibration": told, "over": {PUBLISHED: over}},
            {**case, "label": "9", "error": "too much guidance"},
        ],
    }  # fmt: skip
    assert misfit(record, STUDY) is None
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "beyond-flux-tiny-transfer.json").write_text(json.dumps(record))
    text = TABLES["TABLES"]["beyond-transfer"](tmp_path)
    line = next(line for line in text.splitlines() if line.startswith("| flux-tiny"))
    assert line.startswith("| flux-tiny | guidance weight | 1.5 | 36.50 ± 1.00 | 41.00 ± 1.00 | +4.50 ± 6.35 | – |")
    assert "guidance weight, 9, not run: too much guidance" in text


def test_a_case_that_failed_is_told_by_the_exit_code_and_one_that_cannot_be_is_not():
    case = {"group": "weights", "label": "closed", "flags": [], "prompts": HELD_OUT}
    cases = [{**case, "error": "disk full", "failed": True}, {**case, "label": "9", "error": "too much guidance"}]
    assert failures({"cases": cases}) == ["weights, closed failed: disk full"]


def test_a_case_without_a_command_to_make_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ROOT", tmp_path)
    case = Case(group="form", label="hidden", calibration=tmp_path / "x.json", make=("--form", "hidden"))
    with pytest.raises(UserError, match=r"calibrate_loopseer\.py is not there to make .*x\.json"):
        make_missing([case], "flux-tiny")


def test_a_calibration_of_other_flags_is_made_again(tmp_path, monkeypatch):
    case = Case(group="form", label="hidden", calibration=tmp_path / "x.json", make=("--form", "hidden"))
    commands = []

    def made(command, **_):
        commands.append(command)
        line = shlex.join(["python", *case.command("flux-tiny")])
        case.calibration.write_text(json.dumps({"command_line": line}))
        return argparse.Namespace(returncode=0, stderr="")

    monkeypatch.setattr(studies.subprocess, "run", made)
    for _ in range(2):
        assert make_missing([case], "flux-tiny") == {}
    assert len(commands) == 1
    case.calibration.write_text(json.dumps({"command_line": "python eval/calibrate_loopseer.py --guidance-scale 5"}))
    make_missing([case], "flux-tiny")
    assert len(commands) == 2


def test_a_calibration_gets_the_flags_of_model_sampling_and_device():
    mine = ["--model", "flux-debug", "--ablations", "--budgets", "2", "3", "--seed", "3", "--output-dir", "out"]
    passed = ["--ckpt", "x", "--num_steps=4", "--device", "cpu"]
    assert COMMAND["passed_on"]([*mine[:3], *passed, *mine[3:]], FAMILIES["flux"]) == passed


def test_figures_are_copied_whole_and_a_budget_stands_once(tmp_path, monkeypatch):
    figure, copied, asked = tmp_path / "one.png", tmp_path / "results" / "flux" / "one.png", []
    figure.write_bytes(b"whole")

    def evidence(argv, args, family, out, budgets):
        asked.append(budgets)
        return {"rows": []}, "told", lambda *_: [figure]

    def killed(_, target):
        Path(target).write_bytes(b"who")
        raise KeyboardInterrupt

    main = COMMAND["main"]
    monkeypatch.setitem(main.__globals__, "run_evidence", evidence)
    flags = ["--model", "flux-tiny", "--budgets", "10", "7", "10", "--results", str(tmp_path / "results")]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", killed)
        with pytest.raises(KeyboardInterrupt):
            main(flags)
    assert not copied.exists()
    main(flags)
    assert copied.read_bytes() == b"whole"
    assert asked == [(10, 7)] * 2


# ---------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture
def flags(tmp_path) -> list[str]:
    """Of a FLUX with random weights in 8 steps, with a calibration for 3 of them."""
    model, draw = flux.Flux(flux.flux_config("flux-debug")), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draw))
    export_safetensors(tmp_path / "flux.safetensors", model.state_dict())
    found = calibration([0, 2, 5], 8, model="flux-debug", corrections=[[], [0.05], [0.0, 0.05]])
    given = ["--calibrations", written(tmp_path, "three", found), "--budgets", 3, "--num-samples", 4, "--device", "cpu"]
    return [
        "--model",
        "flux-debug",
        "--ckpt",
        tmp_path / "flux.safetensors",
        "--num-steps",
        8,
        "--batch-size",
        2,
        *given,
    ]


@pytest.mark.slow
def test_evidence_end_to_end_goes_on_where_it_was(flags, tmp_path, load_command, monkeypatch, capsys):
    argv = [
        *map(str, flags),
        "--rivals",
        "0",
        "--output-dir",
        str(tmp_path / "out"),
        "--results",
        str(tmp_path / "results"),
    ]
    command = load_command("eval/beyond.py")
    command.main(argv)
    record = read_record(tmp_path / "results" / "flux" / "beyond-flux-debug.json", BEYOND, "eval/beyond.py")
    (budget,) = record["budgets"]
    assert [one["role"] for one in budget["rows"]] == ["loopseer", PUBLISHED, EVEN, ON_LIST, FEWER]
    rows = {row["label"]: row for row in record["rows"]}
    ours, other = rows[budget["rows"][0]["label"]], rows[budget["rows"][3]["label"]]
    assert ours["full_steps"] == other["full_steps"] == [0, 2, 5]
    by_hand = [a - b for a, b in zip(ours["samples"]["psnr_db"], other["samples"]["psnr_db"], strict=True)]
    assert budget["parts"]["forecast"]["mean"] == pytest.approx(sum(by_hand) / 4, abs=1e-3)
    assert "with the weights in flux.safetensors, 8 steps, 4 images" in capsys.readouterr().out
    assert (tmp_path / "results" / "flux" / "beyond-flux-debug-lists.png").is_file()

    monkeypatch.setattr(LatePipeline, "sample", lambda *_: pytest.fail("it is there already"))
    command.main(argv)
    again = read_record(tmp_path / "results" / "flux" / "beyond-flux-debug.json", BEYOND, "eval/beyond.py")
    assert again["budgets"] == record["budgets"]


@pytest.mark.slow
def test_rivals_are_found_at_the_budget(flags, tmp_path, load_command):
    rival = ["--rivals", 1, "--rival-samples", 2, "--output-dir", tmp_path / "out"]
    load_command("eval/beyond.py").main([*map(str, flags), *map(str, rival)])
    record = read_record(tmp_path / "out" / "beyond.json", BEYOND, "eval/beyond.py")
    (budget,) = record["budgets"]
    tried = {one["name"]: one for one in budget["tried"]}
    assert {"fora-3", "hicache-3", "foca-on-the-list-3"} <= tried.keys()
    assert all(one["flops_ratio"] >= 0.9 * budget["flops_ratio"] for one in tried.values() if "flops_ratio" in one)
    assert budget["not_tried"]["pab"].startswith("reaches 1.")
    best = max((one for one in tried.values() if one["role"] == RIVAL), key=lambda one: one.get("psnr_db") or 0.0)
    assert best["name"] in [one["name"] for one in budget["rows"]]


@pytest.mark.slow
def test_transfer_end_to_end(flags, tmp_path, load_command, monkeypatch):
    monkeypatch.setattr(studies, "OTHER_STEPS", (12,))
    monkeypatch.setattr(studies, "CHANGES", {"flux": [("guidance weight", "5", ("--guidance-scale", "5"))]})
    load_command("eval/beyond.py").main([*map(str, flags), "--transfer", "--output-dir", str(tmp_path / "out")])
    record = read_record(tmp_path / "out" / "beyond.json", STUDY, "eval/beyond.py")
    assert [(case["group"], case["label"]) for case in record["cases"]] == [
        (WHOLE, "as calibrated"), ("guidance weight", "5"), ("steps", "12 steps"),
    ]  # fmt: skip
    assert [contest["settings"]["num_steps"] for contest in record["contests"]] == [8, 8, 12]
    assert record["contests"][1]["settings"]["guidance"] == 5
    assert record["cases"][2]["calibration"]["full_steps"] == [0, 3, 8]
