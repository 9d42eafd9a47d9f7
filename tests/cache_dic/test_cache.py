"""A run's life: clean starts, order of steps, failures, records, telemetry, memory; and the registry."""

import itertools
import json
import logging
import math
import re
import time
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache_dic import METHODS, Plan, UserError, accepted_settings, make_cache, register
from cache_dic.cache import LABEL_BYTES
from cache_dic.engine import ENGINES
from cache_dic.forecast import MAX_ORDER, Taylor

SETTINGS = {"interval": 4, "warmup_steps": 2, "max_order": 2}


@pytest.fixture
def started(make_toy):
    """A model, its inputs and a started run of 8 steps."""
    model, x, y = make_toy(), torch.ones(2, 3, 6, dtype=torch.float64), torch.tensor([0, 1])
    timesteps = torch.linspace(1, 0.1, 8, dtype=torch.float64)
    return model, x, timesteps, y, make_cache(**SETTINGS).start(model, x, timesteps, y=y)


def test_runs_of_one_cache_start_clean(make_toy, trajectory):
    """Again, at another length, with another number of steps, and after an interrupted run."""
    model, cache = make_toy(), make_cache(**SETTINGS)
    first, _ = trajectory(model, cache)
    trajectory(model, cache, num_steps=11, length=5)
    x, timesteps, y = torch.ones(2, 3, 6, dtype=torch.float64), torch.linspace(1, 0.1, 20), torch.tensor([0, 1])
    interrupted = cache.start(model, x, timesteps, y=y)
    for step in range(3):
        model(x, timesteps[step], y, cache=interrupted.at(step))
    again, _ = trajectory(model, cache)
    assert torch.equal(first, again)


def test_two_branches_do_not_mix(make_toy):
    """Runs of one cache advance side by side, as conditional and unconditional branches do."""
    model, cache, timesteps = make_toy(), make_cache(**SETTINGS), torch.linspace(1, 0.1, 12, dtype=torch.float64)
    inputs = {label: torch.full((1, 3, 6), 0.1 * (label + 1), dtype=torch.float64) for label in (0, 1)}

    def outputs(labels):
        runs = {i: cache.start(model, inputs[i], timesteps, y=torch.tensor([i])) for i in labels}
        return [
            {i: model(inputs[i], timesteps[s], torch.tensor([i]), cache=runs[i].at(s)) for i in labels}
            for s in range(12)
        ]

    together, alone = outputs([0, 1]), {i: outputs([i]) for i in (0, 1)}
    for step, branches in enumerate(together):
        for i in (0, 1):
            assert torch.equal(branches[i], alone[i][step][i])


def test_steps_are_taken_once_and_in_order(started):
    model, x, timesteps, y, run = started
    model(x, timesteps[0], y, cache=run.at(0))
    for wrong in (0, 2, 7):
        with pytest.raises(ValueError, match="step 1 is next; start a new run"):
            run.at(wrong)
    for step in range(1, 8):
        model(x, timesteps[step], y, cache=run.at(step))
    with pytest.raises(ValueError, match="past the 8 steps"):
        run.at(8)


@pytest.mark.parametrize("taken", ["one handle", "two handles"])
def test_a_step_is_computed_once(started, taken):
    """Two guidance branches through one step would each fold their features, and skip the next full step."""
    model, x, timesteps, y, run = started
    first, second = (run.at(0),) * 2 if taken == "one handle" else (run.at(0), run.at(0))
    model(x, timesteps[0], y, cache=first)
    with pytest.raises(ValueError, match="step 1 is next; start a new run for each guidance branch"):
        model(x, timesteps[0], y, cache=second)
    model(x, timesteps[1], y, cache=run.at(1))
    with pytest.raises(ValueError, match="step 2 is next"):
        model(x, timesteps[0], y, cache=first)
    for step in range(2, 8):
        model(x, timesteps[step], y, cache=run.at(step))
    assert run.record()["full_steps"] == [0, 1, 5]


def test_a_failed_step_is_not_tried_again(started):
    model, x, timesteps, y, run = started
    handle = run.at(0)
    blocks, model.blocks = model.blocks, None
    with pytest.raises(TypeError):
        model(x, timesteps[0], y, cache=handle)
    model.blocks = blocks
    with pytest.raises(ValueError, match="a step of this run failed; start a new run"):
        model(x, timesteps[0], y, cache=handle)


def test_a_failed_step_ends_the_run_and_not_the_model(started):
    model, x, timesteps, y, run = started
    weight = model.weights[3]
    model.weights[3] = torch.nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))  # breaks half-way through the sites
    with pytest.raises(RuntimeError):
        model(x, timesteps[0], y, cache=run.at(0))
    model.weights[3] = weight
    with pytest.raises(ValueError, match="a step of this run failed; start a new run"):
        run.at(0)
    fresh = make_cache(**SETTINGS).start(model, x, timesteps, y=y)
    torch.testing.assert_close(model(x, timesteps[0], y, cache=fresh.at(0)), model(x, timesteps[0], y))


def test_a_cache_and_a_run_are_no_steps(started):
    """Whatever a model asks of them first, of a step's interface."""
    *_, run = started
    for wrong, kind in ((run.cache, "Cache"), (run, "Run")):
        for ask in (lambda c: c.modulation, lambda c: c.static_shapes, lambda c: c(run.tokens, None, None)):
            with pytest.raises(
                UserError, match=rf"this is a {kind}: run = cache\.start\(.*; model\(.*cache=run\.at\(step\)"
            ):
                ask(wrong)
    assert not hasattr(run.cache, "tokens")
    assert run.at(0).static_shapes is False


def test_other_token_shapes_are_refused(started):
    model, _x, timesteps, y, run = started
    with pytest.raises(ValueError, match=r"length=4, .* reached a run started for .*length=3, "):
        model(torch.ones(2, 4, 6, dtype=torch.float64), timesteps[0], y, cache=run.at(0))


def test_a_model_without_sites_is_an_error(make_toy, trajectory):
    with pytest.raises(ValueError, match="Toy has no sites: there is nothing to cache"):
        trajectory(make_toy(num_sites=0), make_cache(**SETTINGS))


def test_sites_that_were_declared_but_not_called_are_noticed(started):
    model, x, timesteps, y, run = started
    model.blocks = lambda x, modulation, site: x
    with pytest.raises(RuntimeError, match="called 0 sites, the model declares 5"):
        model(x, timesteps[0], y, cache=run.at(0))


def test_record_tells_what_was_computed(make_toy, trajectory):
    _, run = trajectory(make_toy(), make_cache(**SETTINGS), num_steps=11)
    record = run.record()
    assert record["full_steps"] == [0, 1, 5, 9]
    assert [(s["step"], s["kind"], s["sites"]) for s in record["steps"]] == [
        (s, "full", 5) if s in (0, 1, 5, 9) else (s, "forecast", 0) for s in range(11)
    ]
    assert record["kept_bytes"] == run.kept_bytes > 0
    assert record["forecaster"] == {"name": "Taylor", "max_order": 2, "warmup_steps": 2}
    assert record["max_weight"] == run.plan.max_weight == 4


def test_a_record_is_valid_json(make_toy, trajectory):
    """Errors of forecasts that are no numbers, and settings that JSON has no form for."""

    @register("odd", interval=2, warmup_steps=1)
    @dataclass(frozen=True)
    class Odd:
        path: Any = Path("a/b")
        scale: Any = field(default_factory=lambda: np.float32(0.5))
        table: Any = field(default_factory=lambda: [torch.tensor(2), torch.ones(2), {1: math.inf}])
        limit: Any = math.nan

        def weights(self, full_steps, step):
            return [1.0]

    class Blind(type(make_toy())):
        def blocks(self, x, modulation, site):
            return super().blocks(x, modulation, site) * torch.nan

    try:
        for model, error in ((make_toy(), None), (Blind(), "the forecast error is nan")):
            _, run = trajectory(model, make_cache("odd", telemetry=True), num_steps=3)
            record = json.loads(json.dumps(run.record(), allow_nan=False))
            assert record["steps"][2].get("note") == error
            assert (record["steps"][2]["forecast_error"] is None) == (error is not None)
        assert record["forecaster"] == {
            "name": "Odd", "path": "a/b", "scale": 0.5, "table": [2, "tensor([1., 1.])", {"1": "inf"}], "limit": "nan",
        }  # fmt: skip
        explicit = make_cache(full_steps=np.array([0, 2]))
        assert trajectory(make_toy(), explicit)[1].record()["schedule"] == {"name": "explicit", "full_steps": [0, 2]}
    finally:
        del METHODS["odd"]


def test_a_run_announces_itself(make_toy, trajectory, caplog):
    with caplog.at_level(logging.INFO, logger="cache_dic"):
        trajectory(make_toy(), make_cache(**SETTINGS), num_steps=11)
    message = caplog.messages[0]
    assert message.startswith("taylorseer-N4-W2-O2: ")
    for part in (
        "4 of 11 steps full (0 1 5 9)",
        "5 sites of 2x3x6",
        "folded engine keeps",
        "x fewer FLOPs expected",
        "weights up to 4,",
    ):
        assert part in message


def test_an_uncached_run_announces_nothing(make_toy, trajectory, caplog):
    with caplog.at_level(logging.INFO, logger="cache_dic"):
        trajectory(make_toy(), make_cache("uncached"))
    assert caplog.messages == []


@pytest.mark.parametrize("engine", ["folded", "layerwise", "stack"])
def test_telemetry_is_the_forecast_error_of_full_steps(make_toy, trajectory, engine):
    model = make_toy()
    states, run = trajectory(model, make_cache(**SETTINGS, engine=engine, telemetry=True))
    plain, _ = trajectory(model, make_cache(**SETTINGS, engine=engine))
    assert torch.equal(states, plain), "observing changes nothing"
    errors = {s["step"]: s["forecast_error"] for s in run.steps if "forecast_error" in s}
    assert list(errors) == [1, 5, 9, 13, 17]
    assert all(0 < e < 1 for e in errors.values())


def test_telemetry_error_against_a_hand_made_forecast(make_toy):
    """At the second full step, reuse forecasts x0 + Σ gate(t1) · F(t0)."""
    model, y = make_toy(), torch.tensor([0, 1])
    timesteps = torch.tensor([0.9, 0.6], dtype=torch.float64)
    x = [torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(2)]
    run = make_cache("fora", full_steps=[0, 1], telemetry=True).start(model, x[0], timesteps, y=y)
    for step in range(2):
        model(x[step], timesteps[step], y, cache=run.at(step))
    features = []
    first, second = (model.modulation(t, y) for t in timesteps)
    model.blocks(x[0], first, lambda h, gate, f, **_: features.append(f(h)) or h + gate * features[-1])
    predicted = x[1] + sum(gate.unsqueeze(1) * f for gate, f in zip(second.gates, features, strict=True))
    true = model.blocks(x[1], second)
    assert run.steps[1]["forecast_error"] == pytest.approx(((predicted - true).norm() / true.norm()).item(), rel=1e-5)


def test_a_plan_that_does_not_fit_is_refused_with_what_would(make_toy, trajectory):
    cache = make_cache(interval=6, max_order=3, warmup_steps=2, memory_limit=4000)
    with pytest.raises(ValueError, match="would keep") as error:
        trajectory(make_toy(), cache)
    message = str(error.value)
    assert message.startswith("the folded engine would keep 4.22 KiB, but the limit is 3.91 KiB; what would fit: ")
    assert "engine=stack" in message
    assert "max_order=1" in message
    assert "batch of 1 rows instead of 2" in message
    trajectory(make_toy(), make_cache(interval=6, max_order=1, warmup_steps=2, memory_limit=4000))


def test_runs_under_way_together_share_the_memory(make_toy, trajectory):
    cache = make_cache(interval=6, max_order=1, warmup_steps=2, memory_limit=4000)
    trajectory(make_toy(), cache)
    with pytest.raises(UserError, match="would keep"):
        trajectory(make_toy(), replace(cache, branches=2))


def test_the_order_of_sums_follows_neither_memory_nor_batch(make_toy, trajectory, monkeypatch):
    """A row of a feature, 3·6 tokens in float32, is 72 bytes; two fit in a group. Nine accumulators of two rows are kept."""
    settings = {"interval": 4, "warmup_steps": 2, "max_order": 2, "group_bytes": 2 * 72}
    model, states = make_toy(dtype=torch.float32), []
    for batch, limit, free in ((2, None, None), (2, 9 * 144, 1), (2, 10**9, 1), (2, None, 10**6), (1, None, None)):
        monkeypatch.setattr("cache_dic.cache.free_bytes", lambda device, free=free: free)
        latents, run = trajectory(model, make_cache(**settings, memory_limit=limit), batch=batch)
        assert run.engine.group_size() == 2
        states.append(latents)
    *states, _ = states  # the toy's own products may round otherwise in a smaller batch
    assert all(torch.equal(state, states[0]) for state in states)


def test_no_sample_is_refused(make_toy, trajectory):
    with pytest.raises(UserError, match="hold no sample; give at least one"):
        trajectory(make_toy(), make_cache(**SETTINGS), batch=0)


def test_what_is_held_within_a_step_must_be_free_but_is_not_kept(make_toy, trajectory, monkeypatch):
    """Nine accumulators of 288 bytes and groups of five features: 14 in all have to be free, nine may be kept."""
    settings = {"interval": 4, "warmup_steps": 2, "max_order": 2}
    for free, fits in ((14 * 288, True), (14 * 288 - 1, False)):
        monkeypatch.setattr("cache_dic.cache.free_bytes", lambda device, free=free: free)
        with nullcontext() if fits else pytest.raises(UserError, match=r"hold .* within a step, .* are free on cpu"):
            trajectory(make_toy(), make_cache(**settings))
    monkeypatch.setattr("cache_dic.cache.free_bytes", lambda device: 5 * 288)
    trajectory(make_toy(), make_cache("uncached"))  # folds nothing, so it holds nothing
    for limit, fits in ((9 * 288, True), (9 * 288 - 1, False)):
        with nullcontext() if fits else pytest.raises(UserError, match=r"would keep .* but the limit is"):
            trajectory(make_toy(), make_cache(**settings, memory_limit=limit))


@pytest.mark.parametrize("interval", [2, 2000])
def test_a_run_of_ten_thousand_steps_is_planned_in_no_time(make_toy, interval):
    """What is kept and done, once the plan's weights and slots are known."""
    cache = make_cache(interval=interval, max_order=2, warmup_steps=3)
    plan, tokens = cache.plan(10_000), make_toy(gate_rank=3).tokens(torch.zeros(1, 3, 6))
    assert plan.targets
    assert plan.num_slots
    start = time.process_time()
    for engine in ENGINES.values():
        engine.kept_bytes(plan, tokens, cache.engine_settings)
        engine.work_flops(plan, tokens, cache.engine_settings)
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "taylorser"}, "method 'taylorser' is unknown; choose from .*; did you mean 'taylorseer'"),
        ({"method": None}, "method None is unknown"),
        ({"method": ["fora"]}, r"method \['fora'\] is unknown"),
        ({"engine": "fast"}, "engine 'fast' is unknown; choose from folded, layerwise, walked, stack"),
        ({"engine": 3}, "engine 3 is unknown"),
        ({"engine": "foldde"}, "did you mean 'folded'"),
        ({"schedule": "daily"}, "schedule 'daily' is unknown; choose from taylorseer, diffusers"),
        ({"schedule": ""}, "schedule '' is unknown"),
        ({"interval": 0}, "interval = 0 must be an integer of at least 1"),
        ({"interval": 2.5}, "interval = 2.5"),
        ({"interval": 2.0}, "interval = 2.0 must be an integer"),
        ({"interval": "4"}, "interval = '4' must be an integer"),
        ({"interval": True}, "interval = True must be an integer"),
        ({"interval": None}, "interval = None must be an integer"),
        ({"interval": [4]}, r"interval = \[4\] must be an integer"),
        ({"interval": 10**30}, f"interval = {10**30} must be at most 10000"),
        ({"interval": 10**5000}, "interval = .* must be at most 10000"),
        ({"warmup_steps": math.nan}, "warmup_steps = nan must be an integer"),
        ({"warmup_steps": -1}, "warmup_steps = -1 must be an integer of at least 1"),
        ({"warmup_steps": 10**9}, "warmup_steps = 1000000000 must be at most 10000"),
        ({"warmup_steps": 10**9, "full_steps": [0]}, "warmup_steps = 1000000000 must be at most 10000"),
        ({"max_order": -1}, "max_order = -1"),
        ({"max_order": 1.5}, "max_order = 1.5 must be an integer"),
        ({"max_order": "abc"}, "max_order = 'abc' must be an integer"),
        ({"max_order": math.nan}, "max_order = nan must be an integer"),
        ({"max_order": True}, "max_order = True must be an integer"),
        ({"max_order": None}, "max_order = None must be an integer"),
        ({"max_order": MAX_ORDER + 1}, f"max_order = {MAX_ORDER + 1} must be at most {MAX_ORDER}"),
        ({"full_steps": 5}, "full_steps = 5 must be a list of integers"),
        ({"full_steps": "012"}, "full_steps = '012' must be a list of integers"),
        ({"full_steps": {0: 1}}, "must be a list of integers"),
        ({"full_steps": iter([0, 1])}, "must be a list of integers"),
        ({"full_steps": [0, True]}, "must be integers"),
        ({"full_steps": [0, "1"]}, "must be integers"),
        ({"full_steps": []}, "begin with 0"),
        ({"full_steps": [0, 2, 2]}, "without repeats"),
        ({"full_steps": [0, 2], "schedule": "taylorseer"}, "has no setting 'full_steps'"),
        ({"intervall": 3}, "'intervall'; it accepts: interval, max_order, warmup_steps; did you mean 'interval'"),
        ({"method": "fora", "max_order": 2}, "'fora' with schedule 'taylorseer' has no setting 'max_order'"),
        ({"schedule": "explicit"}, "needs full_steps"),
        ({"memory_limit": -1}, "memory_limit = -1 must be an integer of at least 0"),
        ({"memory_limit": "1"}, "memory_limit = '1' must be an integer"),
        ({"memory_limit": 1e9}, "memory_limit = 1000000000.0 must be an integer"),
        ({"group_bytes": 0}, "group_bytes = 0 must be an integer of at least 1"),
        ({"group_bytes": None}, "group_bytes = None"),
        ({"accumulator_dtype": "float32"}, "accumulator_dtype = 'float32' must be a floating dtype"),
        ({"accumulator_dtype": torch.int8}, "accumulator_dtype = torch.int8 must be a floating dtype"),
        ({"telemetry": "no"}, "telemetry = 'no' must be True or False"),
        ({"static_shapes": None}, "static_shapes = None must be True or False"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(UserError, match=message):
        make_cache(**settings)


def test_numbers_of_other_libraries_will_do():
    cache = make_cache(interval=np.int64(4), max_order=torch.tensor(2), warmup_steps=np.int32(2))
    assert cache.label == "taylorseer-N4-W2-O2"
    assert make_cache(full_steps=range(0, 9, 4)).plan(12).full_steps == (0, 4, 8)
    steps = [0, 4]
    cache = make_cache(full_steps=steps)
    steps.append(5)
    assert cache.plan(8).full_steps == (0, 4), "a cache does not change with the list that it was made from"


@pytest.fixture
def typed():
    """A method with a field of every type that is checked, annotated by text as a __future__ import does it."""

    @register("typed", interval=3, warmup_steps=1)
    @dataclass(frozen=True, kw_only=True)
    class Typed:
        count: "int" = 1
        rate: "float" = 0.5
        exact: "bool" = False
        mode: "str" = "a"
        limit: "int | None" = None
        other: "list[int]" = ()

        def __post_init__(self) -> None:
            if self.rate == 13:
                raise ValueError("13 brings bad luck")

        def weights(self, full_steps, step):
            return [1.0]

    yield
    del METHODS["typed"]


@pytest.mark.usefixtures("typed")
class TestFields:
    @pytest.mark.parametrize(
        "settings",
        [
            {"count": 3}, {"count": np.int64(3)}, {"rate": 1}, {"rate": np.float32(0.5)}, {"exact": True}, {"mode": "b"},
            {"limit": 3}, {"limit": None}, {"other": "anything"}, {"other": 3},
        ],
        ids=str,
    )  # fmt: skip
    def test_accepted(self, settings):
        assert make_cache("typed", **settings).plan(8)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"count": 1.0}, "count = 1.0 must be an integer"),
            ({"count": True}, "count = True must be an integer"),
            ({"count": "1"}, "count = '1' must be an integer"),
            ({"rate": "fast"}, "rate = 'fast' must be a finite number"),
            ({"rate": True}, "rate = True must be a finite number"),
            ({"rate": math.nan}, "rate = nan must be a finite number"),
            ({"rate": math.inf}, "rate = inf must be a finite number"),
            ({"exact": 1}, "exact = 1 must be true or false"),
            ({"mode": 1}, "mode = 1 must be text"),
            ({"limit": 1.5}, "limit = 1.5 must be an integer or none"),
            ({"counts": 1}, "did you mean 'count'"),
            ({"rate": 13}, r"method 'typed' cannot be made: .*test_cache\.py:\d+: ValueError: 13 brings bad luck"),
        ],
    )
    def test_refused(self, settings, message):
        with pytest.raises(UserError, match=message):
            make_cache("typed", **settings)

    def test_labels_are_names_of_files_and_tell_settings_apart(self):
        texts = [
            "a",
            "a/b",
            "a_b",
            "a+2Fb",
            "../x",
            ".",
            "",
            " ",
            "5",
            "True",
            "None",
            "nan",
            "a,b",
            "a-b=1",
            "+20",
            "é",
            "a" * 300,
        ]
        texts += ["a" * 301, "\udcff", "a\nb", "\0", "A"]
        others = [5, 5.0, -0.5, 1e-9, True, None, [5], [5, 5], ["a", "b"], Path("a"), {"a": 1}, "5", "[5]", ""]
        caches = [make_cache("typed", mode=text) for text in texts]
        caches += [make_cache("typed", other=value) for value in others]
        caches += [make_cache("typed", interval=n, engine=engine) for n in (1, 2) for engine in ("folded", "stack")]
        labels = [cache.label for cache in caches]
        assert len(set(labels)) == len(labels)
        for label in labels:
            assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._,=+-]*", label)
            assert len(label) <= LABEL_BYTES
        assert make_cache("typed", mode="a/b").label.startswith("typed-N3-W1-count=1-rate=0.5-exact=False-mode=a+2Fb-")


def test_more_warmup_than_steps_is_named():
    with pytest.raises(ValueError, match="warmup_steps = 5 must lie between 1 and the number of steps, 3"):
        make_cache(warmup_steps=5).plan(3)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_default_warm_up_is_capped_and_said(make_toy, trajectory, caplog, num_steps):
    """Nobody asked for 3 warm-up steps; models of one or two steps have fewer."""
    with caplog.at_level(logging.WARNING, logger="cache_dic"):
        _, run = trajectory(make_toy(), make_cache(), num_steps=num_steps)
    assert run.record()["full_steps"] == list(range(num_steps))
    assert len(caplog.messages) == 1
    assert f"nothing is cached: all {num_steps} steps are full" in caplog.messages[0]
    for given in (make_cache(warmup_steps=num_steps + 1), replace(make_cache(), default_warmup=False)):
        if num_steps < 3:
            with pytest.raises(UserError, match=r"warmup_steps = \d must lie between 1 and the number of steps"):
                given.plan(num_steps)


def test_counting_says_nothing(make_toy, caplog):
    model = make_toy().to("meta")
    with caplog.at_level(logging.INFO, logger="cache_dic"), torch.device("meta"):
        make_cache().start(model, torch.ones(2, 3, 6), torch.ones(2), y=torch.zeros(2, dtype=torch.int))
    assert caplog.messages == []


@pytest.mark.parametrize("cache", [make_cache(), make_cache("uncached")], ids=["caches", "uncached"])
def test_only_a_cache_without_effect_says_so(make_toy, trajectory, caplog, cache):
    with caplog.at_level(logging.WARNING, logger="cache_dic"):
        trajectory(make_toy(), cache, num_steps=4)
    assert caplog.messages == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "-x", "a/b", "../x", "a b", "é", "a\n", "a=b", "a" * 65, None, 5, "a\\b", "a\0"]
)
def test_names_of_methods_are_checked(name):
    with pytest.raises(UserError, match="a method's name is of at most 64 letters"):
        register(name)


class NoDataclass:
    def weights(self, full_steps, step):
        return [1.0]


@dataclass(frozen=True)
class NoWeights:
    damping: float = 0.5


@dataclass(frozen=True)
class WeightsOfNone(NoWeights):
    weights: float = 0.5


@dataclass(frozen=True)
class Reserved(NoDataclass):
    engine: str = "fast"


@pytest.mark.parametrize(
    ("forecaster", "message"),
    [
        (NoDataclass, "method 'mine' is no dataclass"),
        (NoDataclass(), "method 'mine' is no dataclass"),
        (Taylor(), "method 'mine' is no dataclass"),
        (NoWeights, r"class NoWeights has no weights\(self, full_steps, step\)"),
        (WeightsOfNone, "class WeightsOfNone has no weights"),
        (Reserved, "engine cannot be a field"),
    ],
)
def test_classes_that_are_no_method_are_refused(forecaster, message):
    with pytest.raises(UserError, match=message):
        register("mine")(forecaster)
    assert "mine" not in METHODS


def test_defaults_of_a_method_are_settings_of_its_schedule():
    with pytest.raises(UserError, match="schedule 'fora' of method 'mine' has no setting warmup_steps"):
        register("mine", schedule="fora", interval=4, warmup_steps=3)
    with pytest.raises(UserError, match="a method called 'taylorseer' is registered already"):
        register("taylorseer")


def test_a_field_without_a_value_is_asked_for():
    @register("needy", interval=4, warmup_steps=2)
    @dataclass(frozen=True)
    class Needy(NoDataclass):
        damping: float
        derived: float = field(init=False, default=1.0)

    try:
        assert accepted_settings("needy") == {"interval", "warmup_steps", "damping"}
        with pytest.raises(UserError, match="method 'needy' needs damping"):
            make_cache("needy")
        assert make_cache("needy", damping=2).label == "needy-N4-W2-damping=2"
    finally:
        del METHODS["needy"]


def test_a_forecaster_of_ones_own(make_toy, trajectory):
    """The README's example: a dataclass with `weights` becomes a method with its own setting."""

    @register("damped", interval=4, warmup_steps=2)
    @dataclass(frozen=True, kw_only=True)
    class Damped:
        damping: float = 0.5

        def weights(self, full_steps, step):
            if len(full_steps) < 2:
                return [1.0]
            before, last = full_steps[-2:]
            slope = self.damping * (step - last) / (last - before)
            return [-slope, 1 + slope]

    try:
        assert accepted_settings("damped") == {"interval", "warmup_steps", "damping"}
        model = make_toy()
        full, _ = trajectory(model, make_cache("damped", damping=1.0))
        linear, _ = trajectory(model, make_cache("taylorseer", interval=4, warmup_steps=2, max_order=1))
        torch.testing.assert_close(full, linear, rtol=1e-12, atol=1e-12)
        none, _ = trajectory(model, make_cache("damped", damping=0.0))
        fora, _ = trajectory(model, make_cache("fora", interval=4, warmup_steps=2))
        torch.testing.assert_close(none, fora, rtol=1e-12, atol=1e-12)
        with pytest.raises(ValueError, match="registered already"):
            register("damped")
    finally:
        del METHODS["damped"]


def test_a_forecaster_that_gives_wrong_weights_is_named():
    class Wrong:
        def weights(self, full_steps, step):
            return [0.5, 0.5, 0.5]

    with pytest.raises(ValueError, match=r"Wrong gave 3 weights for step 2 after full steps \(0, 1\)"):
        Plan(5, (0, 1, 4), Wrong())


def test_plan_slots_are_shared_without_overlap():
    """No two steps that are waiting share an accumulator, and no more are used than are live at once."""
    for interval, order, warmup in [(4, 4, 2), (6, 2, 3), (5, 1, 1), (3, 0, 1)]:
        cache = make_cache(interval=interval, max_order=order, warmup_steps=warmup)
        plan = cache.plan(50)
        begun = {s: min(m for m in plan.full_steps if s in plan.targets[m]) for s in plan.slots}
        for a in plan.slots:
            for b in plan.slots:
                if a < b and begun[b] < a:
                    assert plan.slots[a] != plan.slots[b], (a, b)
        live = [sum(begun[s] <= m < s for s in plan.slots) for m in range(50)]
        assert plan.num_slots == max(live) <= (order + 1) * (interval - 1)
        assert plan.history == order + 1
        assert isinstance(cache.forecaster, Taylor)


def test_labels_are_short_and_tell_the_settings():
    assert make_cache(interval=4, max_order=4, warmup_steps=2).label == "taylorseer-N4-W2-O4"
    assert make_cache("fora", interval=3, warmup_steps=2, engine="stack").label == "fora-N3-W2-stack"
    assert make_cache("fora", full_steps=[0, 3]).label == "fora-full_steps=0,3"
    assert make_cache("uncached").label == "uncached-N1-W1"


def test_labels_name_a_rule_that_is_not_the_method_s_own():
    """Two rules of one interval compute other steps: samples of one must not pass for those of the other."""
    rules = {rule: make_cache(schedule=rule, interval=5, max_order=1) for rule in ("taylorseer", "diffusers", "fora")}
    assert {rule: cache.label for rule, cache in rules.items()} == {
        "taylorseer": "taylorseer-N5-W3-O1",
        "diffusers": "taylorseer-diffusers-N5-W3-O1",
        "fora": "taylorseer-fora-N5-O1-W3",
    }
    assert make_cache("fora", schedule="fora").label == "fora-fora-N4"
    labels = [
        make_cache(method, schedule=rule).label
        for method, rule in itertools.product(["taylorseer", "newton", "fora"], ["taylorseer", "diffusers", "fora"])
    ]
    assert len(set(labels)) == 9


def test_long_labels_are_cut_and_still_differ():
    lists = [[*range(last), last + extra] for last in (60, 300) for extra in (0, 1)]
    labels = [make_cache(full_steps=steps).label for steps in lists]
    assert len(set(labels)) == 4
    assert all(len(label) == LABEL_BYTES and label.startswith("taylorseer-full_steps=0,1,2") for label in labels)


@pytest.mark.parametrize("name", ["taylorseer-diffusers", "fora-fora", "x-N4", "x-W3-y", "x-O1"])
def test_names_that_read_as_the_label_of_another_method_are_refused(name):
    with pytest.raises(UserError, match="reads as part of a label"):
        register(name)
