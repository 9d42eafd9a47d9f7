"""Comparison, timing, records and tables: what the sampling commands are made of."""

import json
import re

import pytest
import torch

from cache_dic import make_cache
from seerkit.command.cache_flags import for_compiling
from seerkit.devices import distributed
from seerkit.devices.distributed import World
from seerkit.devices.timing import peak_memory, spread, timed
from seerkit.io import records
from seerkit.io.tables import markdown_table, number, text_table
from seerkit.sampling.compare import Outcome, gather_outcomes, latency, run_caches


class FakeRun:
    def record(self):
        return {"made": True}


def test_caches_take_turns_batch_by_batch_after_a_dropped_warm_up(caplog):
    caplog.set_level("INFO", logger="cache_dic")
    caches = {"uncached": make_cache("uncached"), "cached": make_cache(interval=2, warmup_steps=1)}
    names, calls = {id(cache): label for label, cache in caches.items()}, []

    def sample(cache, batch, callback):
        calls.append((names[id(cache)], batch))
        for step in range(3):
            callback(step, torch.zeros(1))
        return torch.full((1,), float(batch)), FakeRun()

    outcomes = run_caches(caches, [0, 1], sample, num_steps=3, device=torch.device("cpu"))
    assert calls == [("cached", 0), ("uncached", 0), ("cached", 0), ("uncached", 1), ("cached", 1)]
    assert caplog.messages == [f"rehearsal of {caches['cached'].label}, which is not timed"]
    for outcome in outcomes.values():
        assert len(outcome.seconds) == 2
        assert not outcome.cold
        assert outcome.record == {"made": True}


def test_what_is_there_is_skipped_and_what_comes_is_handed_on():
    caches = {"uncached": make_cache("uncached"), "cached": make_cache(interval=2, warmup_steps=1)}
    kept = []

    def sample(cache, batch, callback):
        return torch.full((1,), float(batch)), FakeRun()

    def run(skip):
        return run_caches(
            caches, [0, 1], sample, num_steps=3, device=torch.device("cpu"), skip=skip,
            keep=lambda label, batch, latents: kept.append((label, batch, latents.item())) or [],
        )  # fmt: skip

    outcomes = run(lambda label, batch: (label, batch) == ("cached", 0))
    assert kept == [("uncached", 0, 0.0), ("uncached", 1, 1.0), ("cached", 1, 1.0)]
    assert len(outcomes["cached"].seconds) == 1
    nothing = run(lambda label, batch: True)
    assert len(kept) == 3
    assert latency(nothing) == {"uncached": None, "cached": None}


def test_bytes_are_the_most_of_all_batches_and_processes(monkeypatch):
    """The last batch may have fewer rows than the others."""

    class Run:
        def __init__(self, kept):
            self.kept = kept

        def record(self):
            return {"kept_bytes": self.kept, "steps": [self.kept]}

    def sample(cache, batch, callback):
        return torch.zeros(1), Run(batch)

    caches = {"cached": make_cache(interval=2, warmup_steps=1)}
    outcomes = run_caches(caches, [4, 8, 2], sample, num_steps=3, device=torch.device("cpu"))
    assert outcomes["cached"].record == {"kept_bytes": 8, "steps": [2]}
    theirs = {"cached": Outcome(record={"kept_bytes": 9, "steps": [9]})}
    monkeypatch.setattr(
        distributed.dist, "all_gather_object", lambda shares, own: shares.__setitem__(slice(None), [own, theirs])
    )
    both = gather_outcomes(outcomes, World(0, 2, torch.device("cpu")))
    assert both["cached"].record == {"kept_bytes": 9, "steps": [2]}


def test_every_cache_goes_once_before_where_steps_are_compiled():
    caches = {"uncached": make_cache("uncached"), "cached": make_cache(interval=2, warmup_steps=1, static_shapes=True)}
    calls = []

    def sample(cache, batch, callback):
        calls.append(cache.label)
        return torch.zeros(1), FakeRun()

    run_caches(caches, [0], sample, num_steps=3, device=torch.device("cpu"))
    assert calls == [cache.label for cache in caches.values()] * 2


def test_a_single_call_is_not_made_twice():
    calls = []

    def sample(cache, batch, callback):
        calls.append(batch)
        return torch.zeros(1), FakeRun()

    alone = {"uncached": make_cache("uncached")}
    once = run_caches(alone, [7], sample, num_steps=3, device=torch.device("cpu"))
    assert calls == [7]
    assert latency(once)["uncached"]["first_call"] is True, "and its timing says that kernels were paid in it"
    twice = run_caches(alone, [7, 8], sample, num_steps=3, device=torch.device("cpu"))
    assert calls == [7, 7, 8], "nothing is thrown away where nothing is compared"
    assert latency(twice)["uncached"]["repeats"] == 1
    assert "first_call" not in latency(twice)["uncached"]


def test_a_cache_that_failed_is_not_sampled_further():
    calls = []

    def sample(cache, batch, callback):
        calls.append((cache.label, batch))
        return torch.zeros(1), FakeRun()

    caches = {"a": make_cache("uncached"), "b": make_cache(interval=2, warmup_steps=1)}
    outcomes = run_caches(
        caches, [0, 1], sample, num_steps=3, device=torch.device("cpu"),
        keep=lambda label, batch, latents: [batch] if label == "b" else [],
    )  # fmt: skip
    assert [batch for label, batch in calls[1:] if label == caches["b"].label] == [0]
    assert (outcomes["a"].failed, outcomes["b"].failed) == ([], [0])


def test_caches_for_compiling_have_full_steps_that_are_all_alike():
    caches = {"a": make_cache(interval=2, warmup_steps=1), "uncached": make_cache("uncached")}
    alike = for_compiling(caches)
    assert list(alike) == list(caches)
    for label, cache in alike.items():
        assert cache.engine_settings.static_shapes
        assert not caches[label].engine_settings.static_shapes, "the one given stays"
        assert cache.plan(8).full_steps == caches[label].plan(8).full_steps
    with pytest.raises(
        ValueError, match=r"--compile works with engines whose steps are all alike, .* not with layerwise"
    ):
        for_compiling({**caches, "b": make_cache(interval=2, warmup_steps=1, engine="layerwise")})


def test_outcomes_of_all_processes_are_put_together(monkeypatch):
    mine = {"a": Outcome(seconds=[1.0], peak_bytes=5), "b": Outcome(record={"made": 1}, seconds=[2.0], peak_bytes=9)}
    theirs = {"a": Outcome(record={"made": 2}, seconds=[3.0, 4.0], peak_bytes=7), "b": Outcome(record={"made": 3})}
    alone = gather_outcomes(mine, World(0, 1, torch.device("cpu")))
    assert (alone["a"].seconds, alone["a"].record, alone["a"].peak_bytes) == ([1.0], {}, 5)

    def all_gather(shares, own):
        assert own is mine
        shares[:] = [mine, theirs]

    monkeypatch.setattr(distributed.dist, "all_gather_object", all_gather)
    both = gather_outcomes(mine, World(0, 2, torch.device("cpu")))
    assert (both["a"].seconds, both["a"].record, both["a"].peak_bytes) == ([1.0, 3.0, 4.0], {"made": 2}, 7)
    assert (both["b"].seconds, both["b"].record, both["b"].peak_bytes) == ([2.0], {"made": 1}, 9), "the first record"


def test_latency_is_the_ratio_of_medians():
    outcomes = {"uncached": Outcome(seconds=[4.0, 6.0, 100.0]), "cached": Outcome(seconds=[3.0, 2.0, 2.0])}
    table = latency(outcomes)
    assert table["cached"] == {"median_s": 2.0, "min_s": 2.0, "max_s": 3.0, "repeats": 3, "ratio": 3.0}
    assert latency({"cached": outcomes["cached"]})["cached"]["ratio"] is None


def test_timing():
    result, seconds = timed(lambda: sum(range(1000)), torch.device("cpu"))
    assert result == 499500
    assert seconds > 0
    assert spread([3.0, 1.0, 2.0])["median_s"] == 2.0
    assert peak_memory(torch.device("cpu")) > 2**20


def test_records_tell_the_conditions():
    made = records.conditions(torch.device("cpu"), torch.bfloat16)
    assert json.loads(json.dumps(made)) == made
    assert made["dtype"] == "bfloat16"
    assert made["threads"] == torch.get_num_threads()
    assert made["versions"]["torch"] == torch.__version__.split("+")[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made["date"])
    assert made["commit"] is None or re.fullmatch(r"[0-9a-f]{7,40}(\+changes)?", made["commit"])


def test_tables_align_and_show_missing_values():
    text = text_table(["method", "dB"], [["a", number(12.345)], ["longer", number(None)]])
    assert text.splitlines() == ["method     dB", "------  -----", "a       12.35", "longer      –"]
    assert markdown_table(["m", "n"], [["a", "1"]]) == "| m | n |\n| --- | ---: |\n| a | 1 |"
    rule = markdown_table(["m", "n", "o"], [], left=(0, 2)).splitlines()[1]
    assert rule == "| --- | ---: | --- |"
    assert number(3.14159, 1, "x") == pytest.approx("3.1x")
