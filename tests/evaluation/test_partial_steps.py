"""Times of partial steps: what is taken when, honest shares, refusals."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from cache_dic import make_cache
from cache_dic.partial_run import OBSERVERS
from evaluation.backbones import BACKBONES, workload
from evaluation.benchmark import Bench, FullSteps
from evaluation.cells import PARTIAL_HEADER, partial_cells
from evaluation.method_costs import methods_of as methods_with_costs
from evaluation.partial_steps import Course, Pair, Stopwatch, Timings, methods_of, text

ROOT = Path(__file__).parents[2]
COMMAND = runpy.run_path(str(ROOT / "eval" / "partial_steps.py"))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def debug() -> tuple:
    """The small FLUX, its timesteps, and itself on the meta device."""
    backbone = BACKBONES["flux-debug"]
    with torch.device("meta"):
        on_meta = backbone.build(workload("flux-debug"), torch.float32)
    torch.manual_seed(0)
    case = backbone.build(workload("flux-debug"), torch.float32)
    return case, backbone.timesteps(case, 12), on_meta


def test_every_method_with_partial_steps_is_there_and_has_no_other_costs():
    assert {"toca", "duca"} <= methods_of("flux-dev", None).keys()
    assert "taylorseer" not in methods_of("flux-dev", None)
    assert "toca" not in methods_with_costs("flux-dev", None)


def test_a_course_tells_kinds_and_shares_by_step(debug):
    _, timesteps, on_meta = debug
    course = Course.of(make_cache("duca", recipe="duca_flux", interval=4), on_meta, timesteps)
    assert course.kinds == [*["full"] * 3, *["forecast", "partial", "forecast", "full"] * 2, "forecast"]
    full, partial, forecast = (course.of_kind(kind) for kind in ("full", "partial", "forecast"))
    assert min(full) > 1 > max(partial) > max(forecast) > 0, "a full step looks at attention, too"
    facts = course.facts()
    assert facts["kinds"]["partial"]["steps"] == 2
    assert facts["flops_ratio"] == pytest.approx(12 / sum(course.shares))


@pytest.mark.parametrize(("repeats", "taken"), [(1, {"full": 1, "partial": 1}), (3, {"full": 3, "partial": 3})])
def test_steps_are_taken_beside_uncached_ones_as_far_as_needed(debug, repeats, taken):
    case, timesteps, on_meta = debug
    cache = make_cache("toca", recipe="flux", interval=4)
    ticks: list[int] = []
    bench = Bench(case=case, timesteps=timesteps, device=CPU, repeats=repeats, dropped=0, tick=lambda: ticks.append(1))
    timings, before = Timings(bench, FullSteps(bench)), dict(OBSERVERS)
    with torch.inference_mode():
        timings.take(cache, Course.of(cache, on_meta, timesteps))
    assert {kind: len(pairs) for kind, pairs in timings.by_kind.items()} == taken
    assert len(ticks) == sum(taken.values()) == len(timings.plain.run.steps)
    assert all(pair.observing_s > 0 for pair in timings.by_kind["full"])
    assert all(pair.observing_s == 0 for pair in timings.by_kind["partial"])
    assert before == OBSERVERS


def test_shares_are_of_the_step_beside_and_first_timings_are_dropped(debug):
    case, timesteps, _ = debug
    bench = Bench(case=case, timesteps=timesteps, device=CPU, repeats=2, dropped=1, tick=int)
    pairs = [
        Pair((9.0, 1.0), (9.0, 1.0), 0.5, 9.0),
        Pair((1.0, 4.0), (1.0, 2.0), 0.2, 0.0),
        Pair((3.0, 4.0), (1.0, 1.0), 0.4, 1.0),
    ]
    summary = Timings(bench, FullSteps(bench), {"partial": pairs}).summary()["partial"]
    assert summary["timings"] == 2
    assert summary["time"] == {"median": 0.5, "min": 0.25, "max": 0.75}
    assert summary["processor_time"] == {"median": 0.75, "min": 0.5, "max": 1.0}
    assert summary["flops"]["median"] == pytest.approx(0.3)
    assert summary["observing"] == {"median": 0.125, "min": 0.0, "max": 0.25}
    run = {"steps": 6, "flops": {"median": 0.4, "min": 0.2, "max": 0.4}}
    row = {"label": "x", "num_steps": 9, "kinds": {"partial": run}, "steps": {"partial": summary}}
    (cells,) = partial_cells({"rows": [row, {"label": "y", "error": "no"}]})
    shown = dict(zip(PARTIAL_HEADER, cells, strict=True))
    assert (shown["steps of this kind"], shown["time %"], shown["range %"]) == ("6/9", "50.0", "25.0 – 75.0")
    assert (shown["FLOPs % of all of them"], shown["FLOPs % of the timed ones"]) == ("40.0", "30.0")
    assert shown["processor time / FLOPs"] == "2.50"
    assert shown["looking at attention, % of an uncached step"] == "12.5"


@pytest.mark.parametrize(("share", "shown"), [(0.01, "5.00"), (0.0099, "–")])
def test_a_step_of_hardly_any_flops_has_no_time_over_them(share, shown):
    middle = {"median": share, "min": share, "max": share}
    time = {"median": 0.05, "min": 0.05, "max": 0.05}
    step = {"time": time, "processor_time": time, "observing": middle, "flops": middle}
    row = {
        "label": "x",
        "num_steps": 9,
        "kinds": {"forecast": {"steps": 6, "flops": middle}},
        "steps": {"forecast": step},
    }
    (cells,) = partial_cells({"rows": [row]})
    assert dict(zip(PARTIAL_HEADER, cells, strict=True))["processor time / FLOPs"] == shown


def test_a_stopwatch_hears_of_attention_alone():
    watch, before = Stopwatch(CPU), dict(OBSERVERS)
    q = torch.randn(1, 2, 5, 4)
    with watch.watching():
        seen = OBSERVERS["attention"](q, q, q)
    assert torch.equal(seen, before["attention"](q, q, q))
    assert watch.read() > 0 == watch.read()


@pytest.mark.slow
def test_a_record_has_every_method_and_kind(capsys, tmp_path):
    out = tmp_path / "steps.json"
    flags = ["--model", "flux-debug", "--repeats", "1", "--dropped", "0", "--device", "cpu", "--threads", "1"]
    COMMAND["main"]([*flags, "--method", "toca", "duca", "--out", str(out), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text())
    toca, duca = record["rows"]
    assert (list(toca["steps"]), list(duca["steps"])) == (["full", "partial"], ["full", "partial", "forecast"])
    assert duca["steps"]["forecast"]["time"]["median"] < duca["steps"]["full"]["time"]["median"]
    assert "looking at attention, % of an uncached step" in text(record)


@pytest.mark.slow
def test_a_dry_run_counts_at_full_width(capsys, tmp_path):
    COMMAND["main"](
        ["--model", "flux-dev", "--depth", "1", "--methods", "toca", "--dry-run", "--out", str(tmp_path / "none.json")]
    )
    plan = json.loads(capsys.readouterr().out)
    (row,) = plan["rows"]
    assert plan["settings"]["tokens"] == 4096
    assert row["kinds"]["partial"]["flops"]["median"] < 0.2
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "tocca"], "method 'tocca' is unknown; choose from"),
        (["--methods", "fora"], "method 'fora' computes no part of a step; choose from"),
        (["--repeats", "99999"], "--repeats 99999 is too much; take at most 10000"),
    ],
)
def test_mistakes_are_one_line(capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        COMMAND["main"](flags)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
