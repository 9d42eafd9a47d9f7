"""A run's life: clean starts, order of steps, failures, records, telemetry, memory; and the registry."""

import logging
from dataclasses import dataclass

import pytest
import torch

from cache_dic import METHODS, Plan, accepted_settings, make_cache, register
from cache_dic.forecast import Taylor

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


def test_a_run_announces_itself(make_toy, trajectory, caplog):
    with caplog.at_level(logging.INFO, logger="cache_dic"):
        trajectory(make_toy(), make_cache(**SETTINGS), num_steps=11)
    message = caplog.messages[0]
    for part in ("4 of 11 steps full (0 1 5 9)", "5 sites of 2x3x6", "folded engine keeps", "x fewer FLOPs expected"):
        assert part in message


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
    model.blocks(x[0], first, lambda h, gate, f: features.append(f) or h + gate * f)
    predicted = x[1] + sum(gate.unsqueeze(1) * f for gate, f in zip(second.gates, features, strict=True))
    true = model.blocks(x[1], second)
    assert run.steps[1]["forecast_error"] == pytest.approx(((predicted - true).norm() / true.norm()).item(), rel=1e-5)


def test_a_plan_that_does_not_fit_is_refused_with_what_would(make_toy, trajectory):
    cache = make_cache(interval=6, max_order=3, warmup_steps=2, memory_limit=4000)
    with pytest.raises(ValueError, match="would keep") as error:
        trajectory(make_toy(), cache)
    message = str(error.value)
    assert "folded engine" in message
    assert "engine=stack" in message
    assert "max_order=1" in message
    assert "batch of 1 rows instead of 2" in message
    trajectory(make_toy(), make_cache(interval=6, max_order=1, warmup_steps=2, memory_limit=4000))


def test_runs_under_way_together_share_the_memory(make_toy, trajectory):
    cache = make_cache(interval=6, max_order=1, warmup_steps=2, memory_limit=4000)
    assert cache.shared_by(1, torch.device("cpu")) is cache
    assert cache.shared_by(2, torch.device("cpu")).memory_limit == 2000
    trajectory(make_toy(), cache)
    with pytest.raises(ValueError, match="would keep"):
        trajectory(make_toy(), cache.shared_by(2, torch.device("cpu")))


def test_groups_shrink_to_the_memory_that_is_left(make_toy, trajectory):
    """2·3·6 float64 tokens are 288 bytes: beside 9 accumulators there is room for one feature, then for three."""
    settings = {"interval": 4, "warmup_steps": 2, "max_order": 2}
    for room, sites in ((300, 1), (900, 3)):
        _, run = trajectory(make_toy(), make_cache(**settings, memory_limit=9 * 288 + room))
        assert run.engine.group_size() == sites


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "taylor"}, "method 'taylor' is unknown; choose from taylorseer"),
        ({"engine": "fast"}, "engine 'fast' is unknown; choose from folded, layerwise, stack"),
        ({"schedule": "daily"}, "schedule 'daily' is unknown; choose from taylorseer, diffusers"),
        ({"interval": 0}, "interval = 0 must be an integer of at least 1"),
        ({"interval": 2.5}, "interval = 2.5"),
        ({"max_order": -1}, "max_order = -1"),
        ({"intervall": 3}, "has no setting 'intervall'; it accepts: interval, max_order, warmup_steps"),
        ({"method": "fora", "max_order": 2}, "'fora' with schedule 'taylorseer' has no setting 'max_order'"),
        ({"schedule": "explicit"}, "needs full_steps"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        make_cache(**settings)


def test_more_warmup_than_steps_is_named():
    with pytest.raises(ValueError, match="warmup_steps = 5 must lie between 1 and the number of steps, 3"):
        make_cache(warmup_steps=5).plan(3)


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
