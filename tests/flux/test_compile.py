"""Compiled steps: one graph for full steps, one for forecast steps, whatever the step; and few operations in a forecast."""

import pytest
import torch

from cache_dic import make_cache
from flux import Flux, flux_config, sample
from seerkit.devices.compile import compile_steps


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return tuple(torch.randn(*shape, generator=draw) for shape in ((2, 3, 16, 16), (2, 16, 384), (2, 768)))


def model() -> Flux:
    made, draw = Flux(flux_config("flux-debug")).eval().requires_grad_(False), torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_a_run_compiles_two_graphs_and_never_again(backend, inputs, num_graphs):
    num_steps = 14 if backend == "inductor" else 50
    cache = make_cache(interval=6, max_order=2, warmup_steps=3, static_shapes=True)
    plain = model()
    expected = sample(plain, *inputs, num_steps, cache=make_cache(interval=6, max_order=2, warmup_steps=3))
    compiled = model()
    compile_steps(compiled, backend=backend)
    for _ in range(2):
        torch.testing.assert_close(sample(compiled, *inputs, num_steps, cache=cache), expected, rtol=1e-4, atol=1e-5)
        assert num_graphs() == 2


@pytest.mark.slow
def test_uncached_runs_have_one_graph(inputs, num_graphs):
    compiled = model()
    compile_steps(compiled, backend="eager")
    sample(compiled, *inputs, 9)
    assert num_graphs() == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_run_announces_itself_in_every_precision(dtype, inputs, caplog):
    """The operations it tells are counted on a model of its own, whose precision is not this one's."""
    caplog.set_level("INFO", logger="cache_dic")
    sample(model().to(dtype), *inputs, 12, cache=make_cache(interval=4, max_order=1, warmup_steps=2))
    assert "4 of 12 steps full" in caplog.text
    assert "fewer FLOPs expected" in caplog.text
