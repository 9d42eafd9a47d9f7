"""The engines against each other and against the plain loop; what they keep; what reaches them."""

import contextlib

import pytest
import torch

from cache_dic import ENGINES, make_cache
from cache_dic.engine import EngineSettings, Tokens

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
    if engine.name == "folded":
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


@pytest.mark.slow
@torch.no_grad()
def test_compiled_blocks_are_one_graph(make_toy, trajectory):
    """Sites do not break a graph, and with static shapes every full step is the same one."""
    model = make_toy(dtype=torch.float32)
    settings = {"interval": 4, "warmup_steps": 2, "max_order": 2, "static_shapes": True}
    reference, _ = trajectory(model, make_cache(**settings))
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model.blocks = torch.compile(model.blocks, fullgraph=True, dynamic=False, backend=count)
    compiled, _ = trajectory(model, make_cache(**settings))
    torch.testing.assert_close(compiled, reference, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
