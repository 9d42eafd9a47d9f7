"""The engines against each other and against the plain loop; what they keep; what reaches them."""

import contextlib
from dataclasses import replace

import pytest
import torch

from cache_dic import ENGINES, Cache, make_cache
from cache_dic.engine import EngineSettings, FactoredEngine, FoldedEngine, Tokens, weighted_sum

RUNS = {
    "authors N4 W2": {"interval": 4, "warmup_steps": 2},
    "authors N6 W3": {"interval": 6, "warmup_steps": 3},
    "authors N5 W1": {"interval": 5, "warmup_steps": 1},
    "diffusers N5 W3": {"interval": 5, "warmup_steps": 3, "schedule": "diffusers"},
    "irregular": {"full_steps": [0, 1, 4, 5, 11, 13]},
    "only the first": {"full_steps": [0]},
    "interval 1": {"interval": 1, "warmup_steps": 1},
}


@pytest.mark.parametrize("method", ["taylorseer", "newton"])
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_folded_is_layerwise(make_toy, trajectory, settings, order, method):
    """The fold identity: one tensor a forecast step gives the site-by-site sum, to rounding in float64."""
    model = make_toy()
    states = {
        engine: trajectory(model, make_cache(method, engine=engine, max_order=order, **settings))[0]
        for engine in ("folded", "layerwise")
    }
    scale = states["layerwise"].abs().max()
    assert (states["folded"] - states["layerwise"]).abs().max() <= 1e-12 * scale


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4])
def test_runs_shorter_than_the_interval(make_toy, trajectory, num_steps):
    model = make_toy()
    folded, layerwise = (
        trajectory(model, make_cache(interval=7, warmup_steps=1, max_order=2, engine=engine), num_steps)[0]
        for engine in ("folded", "layerwise")
    )
    assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()


@pytest.mark.parametrize("engine", ENGINES)
def test_interval_one_is_the_uncached_model_to_the_bit(make_toy, trajectory, engine):
    model = make_toy()
    cached, _ = trajectory(model, make_cache(interval=1, warmup_steps=1, max_order=3, engine=engine))
    uncached, _ = trajectory(model, make_cache("uncached"))
    assert torch.equal(cached, uncached)


@pytest.mark.parametrize("group_bytes", [1, 300, 10**6])
@pytest.mark.parametrize("static_shapes", [False, True])
def test_grouping_and_static_shapes_change_nothing(make_toy, trajectory, group_bytes, static_shapes):
    model, settings = make_toy(), {"interval": 4, "warmup_steps": 2, "max_order": 3}
    reference, _ = trajectory(model, make_cache(engine="layerwise", **settings))
    states, _ = trajectory(model, make_cache(group_bytes=group_bytes, static_shapes=static_shapes, **settings))
    assert (states - reference).abs().max() <= 1e-12 * reference.abs().max()


def test_stack_differs_by_the_drift_of_the_gates_alone(make_toy, trajectory):
    """With gates that do not move, the whole residual and the sites forecast the same."""
    model, settings = make_toy(), {"interval": 4, "warmup_steps": 2, "max_order": 2}
    moving = [trajectory(model, make_cache(engine=e, **settings))[0] for e in ("stack", "layerwise")]
    assert (moving[0] - moving[1]).abs().max() > 1e-3 * moving[1].abs().max()
    with torch.no_grad():
        model.rates.zero_()
    still = [trajectory(model, make_cache(engine=e, **settings))[0] for e in ("stack", "layerwise")]
    assert (still[0] - still[1]).abs().max() <= 1e-12 * still[1].abs().max()


def test_order_zero_is_reuse(make_toy, trajectory):
    model, settings = make_toy(), {"interval": 3, "warmup_steps": 2}
    taylor, _ = trajectory(model, make_cache("taylorseer", max_order=0, **settings))
    fora, _ = trajectory(model, make_cache("fora", **settings))
    assert torch.equal(taylor, fora)


def test_samples_do_not_meet_in_a_batch(make_toy, trajectory):
    """Rows of a batch, among them both guidance branches, are forecast each from itself."""
    model, cache = make_toy(), make_cache(interval=4, warmup_steps=2, max_order=2)
    together, _ = trajectory(model, cache, batch=3)
    for row in range(3):
        x = torch.randn(3, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[row : row + 1]
        y, timesteps = torch.tensor([row]), torch.linspace(1, 0.1, 20, dtype=torch.float64)
        run = cache.start(model, x, timesteps, y=y)
        for step in range(20):
            x = x - model(x, timesteps[step], y, cache=run.at(step)) / 20
        torch.testing.assert_close(x[0], together[-1, row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("engine", ENGINES)
def test_half_precision_stays_close_to_float64(make_toy, trajectory, engine, dtype):
    settings = {"interval": 4, "warmup_steps": 2, "max_order": 1, "engine": engine}
    exact, _ = trajectory(make_toy(), make_cache(**settings))
    rounded, run = trajectory(make_toy(dtype=dtype), make_cache(**settings))
    assert rounded.dtype == dtype
    assert (rounded.double() - exact).abs().max() <= 40 * torch.finfo(dtype).eps * exact.abs().max()
    if engine == "folded":
        assert run.engine.accumulators.dtype == torch.float32


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
def test_gradient_modes(make_toy, trajectory, mode):
    """Kept features carry no graph, whatever the mode."""
    with mode():
        states, run = trajectory(make_toy(), make_cache(interval=4, warmup_steps=2, max_order=2))
    assert not run.engine.accumulators.requires_grad
    reference, _ = trajectory(make_toy(), make_cache(interval=4, warmup_steps=2, max_order=2))
    assert torch.equal(states, reference)


def test_autocast_keeps_float32_accumulators(make_toy, trajectory):
    model = make_toy(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        folded, run = trajectory(model, make_cache(interval=4, warmup_steps=2, max_order=1))
        layerwise, _ = trajectory(model, make_cache(interval=4, warmup_steps=2, max_order=1, engine="layerwise"))
    assert run.engine.accumulators.dtype == torch.float32
    assert (folded - layerwise).abs().max() <= 0.02 * layerwise.abs().max()


def test_accumulator_dtype_is_a_setting(make_toy, trajectory):
    _, run = trajectory(make_toy(), make_cache(interval=4, warmup_steps=2, accumulator_dtype=torch.bfloat16))
    assert run.engine.accumulators.dtype == torch.bfloat16
    _, run = trajectory(make_toy(), make_cache(interval=4, warmup_steps=2))
    assert run.engine.accumulators.dtype == torch.float64, "a float64 model is not rounded to float32"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
def test_kept_bytes_are_what_is_kept(make_toy, trajectory, engine, settings):
    """The planner's figure is the most that lives between two steps, counted from the tensors."""
    model, most = make_toy(), 0
    cache = make_cache(engine=engine, max_order=2, **settings)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    y, timesteps = torch.tensor([0, 1]), torch.linspace(1, 0.1, 20, dtype=torch.float64)
    run = cache.start(model, x, timesteps, y=y)
    for step in range(20):
        model(x, timesteps[step], y, cache=run.at(step))
        most = max(most, held_bytes(run.engine))
    assert most == run.kept_bytes


def held_bytes(engine) -> int:
    if type(engine) is FoldedEngine:
        return 0 if engine.accumulators is None else engine.accumulators.nbytes
    kept = engine.snapshots.by_step.values()
    return sum(t.nbytes for value in kept for t in (value if isinstance(value, list) else [value]))


def test_folded_memory_does_not_depend_on_depth():
    plan = make_cache(interval=6, max_order=2, warmup_steps=3).plan(50)
    sizes = {}
    for sites in (10, 100):
        tokens = Tokens(batch=1, length=4096, dim=3072, num_sites=sites, dtype=torch.bfloat16)
        sizes[sites] = {name: engine.kept_bytes(plan, tokens, EngineSettings()) for name, engine in ENGINES.items()}
    assert sizes[10]["folded"] == sizes[100]["folded"] == 15 * 4096 * 3072 * 4, (
        "(order + 1) · (interval - 1) in float32"
    )
    assert sizes[100]["layerwise"] == 10 * sizes[10]["layerwise"] == 100 * 3 * 4096 * 3072 * 2


class TestFactored:
    """The folded engine with sums by full step, for gates that factor."""

    RANK = 2

    @pytest.fixture
    def model(self, make_toy):
        return make_toy(gate_rank=self.RANK)

    @staticmethod
    def cache(factored: bool | None = True, **settings) -> Cache:
        cache = make_cache(**settings)
        return replace(cache, engine_settings=replace(cache.engine_settings, factored=factored))

    @pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
    @pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
    def test_is_layerwise(self, model, trajectory, settings, order):
        states, run = trajectory(model, self.cache(max_order=order, **settings))
        assert type(run.engine) is FactoredEngine
        reference, _ = trajectory(model, make_cache(engine="layerwise", max_order=order, **settings))
        assert (states - reference).abs().max() <= 1e-12 * reference.abs().max()
        by_step, run = trajectory(model, self.cache(False, max_order=order, **settings))
        assert type(run.engine) is FoldedEngine
        assert (states - by_step).abs().max() <= 1e-12 * reference.abs().max()

    @pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8])
    def test_runs_shorter_than_the_interval(self, model, trajectory, num_steps):
        settings = {"interval": 7, "warmup_steps": 1, "max_order": 2}
        states, _ = trajectory(model, self.cache(**settings), num_steps)
        reference, _ = trajectory(model, make_cache(engine="layerwise", **settings), num_steps)
        assert (states - reference).abs().max() <= 1e-12 * reference.abs().max()

    @pytest.mark.parametrize("group_bytes", [1, 300, 10**6])
    @pytest.mark.parametrize("static_shapes", [False, True])
    def test_grouping_and_static_shapes_change_nothing(self, model, trajectory, group_bytes, static_shapes):
        settings = {"interval": 4, "warmup_steps": 2, "max_order": 3}
        reference, _ = trajectory(model, make_cache(engine="layerwise", **settings))
        states, _ = trajectory(model, self.cache(group_bytes=group_bytes, static_shapes=static_shapes, **settings))
        assert (states - reference).abs().max() <= 1e-12 * reference.abs().max()

    def test_interval_one_is_the_uncached_model_to_the_bit(self, model, trajectory):
        cached, run = trajectory(model, self.cache(interval=1, warmup_steps=1, max_order=3))
        assert torch.equal(cached, trajectory(model, make_cache("uncached"))[0])
        assert run.kept_bytes == 0

    @pytest.mark.parametrize("factored", [False, True])
    def test_telemetry_tells_the_errors_of_the_layerwise_form(self, model, trajectory, factored):
        settings = {"interval": 4, "warmup_steps": 2, "max_order": 2, "telemetry": True}
        states, run = trajectory(model, self.cache(factored, **settings))
        reference, other = trajectory(model, make_cache(engine="layerwise", **settings))
        assert (states - reference).abs().max() <= 1e-12 * reference.abs().max()
        errors, expected = (
            [entry["forecast_error"] for entry in r.record()["steps"] if "forecast_error" in entry]
            for r in (run, other)
        )
        assert len(errors) == len(run.plan.full_steps) - 1
        assert errors == pytest.approx(expected, rel=1e-9)
        plain, _ = trajectory(model, self.cache(factored, **settings | {"telemetry": False}))
        assert torch.equal(states, plain)

    @pytest.mark.parametrize("telemetry", [False, True])
    @pytest.mark.parametrize("static_shapes", [False, True])
    @pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS)
    def test_kept_bytes_are_what_is_kept(self, model, settings, static_shapes, telemetry):
        cache = self.cache(max_order=2, static_shapes=static_shapes, telemetry=telemetry, **settings)
        x, y = torch.randn(2, 3, 6, dtype=torch.float64), torch.tensor([0, 1])
        timesteps, most = torch.linspace(1, 0.1, 20, dtype=torch.float64), 0
        run = cache.start(model, x, timesteps, y=y)
        for step in range(20):
            model(x, timesteps[step], y, cache=run.at(step))
            most = max(most, held_bytes(run.engine))
        assert most == run.kept_bytes == cache.kept_bytes(20, run.tokens)["folded"]

    def test_operations_by_hand(self):
        """Of 2 terms: full steps 0, 4 and 8 fold 5 sites into 2 sums each; 2 + 2 forecasts weigh the sums of two of them."""
        cache = self.cache(interval=4, warmup_steps=1, max_order=1)
        tokens = Tokens(batch=1, length=3, dim=2, num_sites=5, dtype=torch.float32, gate_rank=2)
        assert cache.plan(10).full_steps == (0, 4, 8)
        folds, sums = 3 * 5 * 2, (3 * 1 + 3 * 2 + 1 * 2) * 2
        assert cache.work_flops(10, tokens) == 2 * (folds + sums) * tokens.numel
        assert cache.kept_bytes(10, tokens)["folded"] == 2 * 2 * tokens.numel * 4

    @pytest.mark.parametrize(("interval", "factored"), [(2, False), (3, False), (4, True), (9, True)])
    def test_the_form_with_fewer_sums_is_the_default(self, model, trajectory, interval, factored):
        """Of order 1 and 2 terms: 4 sums by full step, 2 (interval - 1) by step."""
        _, run = trajectory(model, make_cache(interval=interval, warmup_steps=1, max_order=1), 40)
        assert (type(run.engine) is FactoredEngine) == factored
        size = run.tokens.numel * 8
        assert run.kept_bytes == (4 if factored else 2 * (interval - 1)) * size
        assert f"folded engine keeps {run.kept_bytes / 2**20:.1f} MiB" in run.describe((10, 1))

    def test_models_without_factors_are_folded_by_step_whatever_is_asked(self, make_toy, trajectory):
        settings = {"interval": 9, "warmup_steps": 1, "max_order": 1}
        states, run = trajectory(make_toy(), self.cache(**settings))
        assert type(run.engine) is FoldedEngine
        assert torch.equal(states, trajectory(make_toy(), make_cache(**settings))[0])

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_features_have_float32_sums(self, make_toy, trajectory, dtype):
        settings = {"interval": 4, "warmup_steps": 2, "max_order": 1}
        exact, _ = trajectory(make_toy(gate_rank=2), self.cache(**settings))
        seen = []

        class Watched(FactoredEngine):
            def finish(self, step, site):
                super().finish(step, site)
                seen.extend(sums.dtype for sums in self.snapshots.by_step.values())

        model = make_toy(dtype=dtype, gate_rank=2)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cache_dic.engine.folded.FactoredEngine", Watched)
            rounded, _ = trajectory(model, self.cache(**settings))
        assert set(seen) == {torch.float32}
        assert rounded.dtype == dtype
        assert (rounded.double() - exact).abs().max() <= 40 * torch.finfo(dtype).eps * exact.abs().max()

    def test_sums_in_half_precision_leave_the_stream_alone(self, model):
        """What is rounded to the sums' dtype is what the blocks add, not what it is added to."""
        cache = self.cache(interval=3, warmup_steps=1, max_order=1, accumulator_dtype=torch.bfloat16)
        with torch.no_grad():
            model.constant.zero_()
        x, y, timesteps = torch.randn(2, 3, 6, dtype=torch.float64), torch.tensor([0, 1]), torch.zeros(3)
        run = cache.start(model, x, timesteps, y=y)
        for step in range(3):
            assert torch.equal(model(x, timesteps[step], y, cache=run.at(step)), x), step

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
    def test_gradient_modes(self, model, trajectory, mode):
        settings = {"interval": 4, "warmup_steps": 2, "max_order": 2}
        with mode():
            states, run = trajectory(model, self.cache(**settings), 12)
        assert not any(sums.requires_grad for sums in run.engine.snapshots.by_step.values())
        assert torch.equal(states, trajectory(model, self.cache(**settings), 12)[0])


@pytest.mark.slow
@pytest.mark.parametrize("gate_rank", [0, 1])
@torch.no_grad()
def test_compiled_blocks_are_one_graph(make_toy, trajectory, gate_rank, num_graphs):
    """Sites do not break a graph, and with static shapes every full step is the same one; by step or by full step."""
    model = make_toy(dtype=torch.float32, gate_rank=gate_rank)
    settings = {"interval": 4, "warmup_steps": 2, "max_order": 2, "static_shapes": True}
    reference, _ = trajectory(model, make_cache(**settings))
    model.blocks = torch.compile(model.blocks, fullgraph=True, dynamic=False, backend="eager")
    compiled, run = trajectory(model, make_cache(**settings))
    assert (type(run.engine) is FactoredEngine) == (gate_rank > 0)
    torch.testing.assert_close(compiled, reference, rtol=1e-5, atol=1e-6)
    assert num_graphs() == 1


def test_a_weighted_sum_by_hand():
    tensors = [torch.full((2, 3), value, dtype=torch.float64) for value in (1.0, 2.0, 3.0)]
    assert torch.equal(
        weighted_sum(tensors, (0.5, -2.0, 4.0)), torch.full((2, 3), 0.5 - 4.0 + 12.0, dtype=torch.float64)
    )
    assert weighted_sum(tensors[:1], (1.0,)) is tensors[0], "nothing to do"
