"""Costs of methods: scripted steps, honest clocks, errors as rows."""

import json
import runpy
from pathlib import Path

import pytest

from evaluation.method_costs import FULL_STEPS, Clock, Scripted, methods_of, text

ROOT = Path(__file__).parents[2]
COMMAND = runpy.run_path(str(ROOT / "eval" / "method_costs.py"))


def test_every_method_of_a_model_is_there_once():
    caches = methods_of("flux-dev", None)
    assert {"taylorseer", "teacache", "first_block_cache", "magcache", "spectrum"} <= caches.keys()
    assert "uncached" not in caches
    assert "easycache" not in methods_of("DiT-XL/2", None), "it is not defined there"


def test_a_scripted_decider_decides_and_is_overruled():
    class Decider:
        threshold, asked = 3, 0

        def decide(self, look) -> bool:
            self.asked += 1
            return True

        def learn(self, look, output) -> None: ...

    class Look:
        def __init__(self, step: int) -> None:
            self.step = step

    inner, clock = Decider(), Clock()
    scripted = Scripted(inner, clock)
    assert [step for step in range(10) if scripted.decide(Look(step))] == list(FULL_STEPS)
    assert (inner.asked, scripted.threshold) == (10, 3)
    assert clock.seconds > 0


@pytest.mark.slow
def test_a_record_has_times_and_counts(capsys, tmp_path):
    out = tmp_path / "costs.json"
    COMMAND["main"](
        ["--model", "flux-tiny", "--methods", "taylorseer", "first_block_cache", "--out", str(out), "--json"]
    )
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads(out.read_text())
    fixed, adaptive = record["rows"]
    assert (fixed["decided"], adaptive["decided"]) == ("beforehand", "while sampling")
    assert fixed["decide_s"] == 0 < adaptive["decide_s"] < record["full_step_s"]
    assert 0 < fixed["forecast_s"] < fixed["forecast_step_s"]
    assert fixed["kept_bytes"] > adaptive["kept_bytes"] > 0
    assert adaptive["flops_ratio"] is None
    assert "decision %" in text(record)


def test_an_unknown_method_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        COMMAND["main"](["--methods", "teecache"])
    assert stopped.value.code == 2
    assert "method 'teecache' is unknown; choose from" in capsys.readouterr().err
