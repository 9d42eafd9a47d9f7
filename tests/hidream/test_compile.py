"""Compiled steps: one graph for full steps, one for forecast steps, whatever the step and its choices of experts."""

import pytest
import torch

from cache_dic import make_cache
from hidream import HiDream, hidream_config, sample
from seerkit.devices.compile import compile_steps

N4 = {"interval": 4, "max_order": 1, "warmup_steps": 1}


def model(dtype: torch.dtype) -> HiDream:
    made, draw = HiDream(hidream_config("hidream-debug")).eval().requires_grad_(False), torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return made.to(dtype)


def inputs() -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
    draw = torch.Generator().manual_seed(0)
    shapes = (2, 3, 16, 24), *((2, 16, 384), (1, 2, 16, 384), (2, 768)) * 2  # not square, so that there is padding
    noise, t5, llama, pooled, *negative = (torch.randn(shape, generator=draw) for shape in shapes)
    return {"noise": noise, "t5": t5, "llama": llama, "pooled": pooled, "negative": tuple(negative)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "dtype", "tolerance"),
    [("eager", torch.float32, 1e-4), ("aot_eager", torch.bfloat16, 0.1)],  # FLUX's test has the whole compiler
    ids=["eager-float32", "aot-bfloat16"],
)
def test_a_run_compiles_two_graphs_and_never_again(backend, dtype, tolerance, num_graphs):
    """compile_steps refuses graph breaks. Compiled bf16 rounds elsewhere, which moves some tokens to other experts."""
    call = inputs()
    expected = sample(model(dtype), **call, num_steps=9, cache=make_cache(**N4))
    compiled = model(dtype)
    compile_steps(compiled, backend=backend)
    for _ in range(2):
        result = sample(compiled, **call, num_steps=9, cache=make_cache(**N4, static_shapes=True))
        assert (result - expected).abs().max() <= tolerance * expected.abs().max()
        assert num_graphs() == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_run_announces_itself_in_every_precision(dtype, caplog):
    """The operations it tells are counted on a model of its own, whose precision is not this one's."""
    caplog.set_level("INFO", logger="cache_dic")
    sample(model(dtype), **inputs(), num_steps=12, cache=make_cache(**N4))
    assert "3 of 12 steps full" in caplog.text
    assert "fewer FLOPs expected" in caplog.text
