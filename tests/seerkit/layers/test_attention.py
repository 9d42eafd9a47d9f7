"""Attention backends against the written-out equation."""

import importlib.util

import pytest
import torch

from seerkit.layers.attention import attention_backend
from seerkit.layers.names import ATTENTION_BACKENDS


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sdpa_is_the_equation(dtype):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4, generator=g, dtype=torch.float64).to(dtype) for _ in range(3))
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / 2
    expected = torch.einsum("bhij,bhjd->bhid", scores.exp() / scores.exp().sum(-1, keepdim=True), v)
    for name in ("sdpa", "reference"):
        torch.testing.assert_close(attention_backend(name)(q, k, v), expected)


def test_unknown_and_missing_backends_are_named():
    with pytest.raises(ValueError, match="attention backend 'xformers' is unknown; choose from sdpa, flash"):
        attention_backend("xformers")
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(ValueError, match="needs the package flash_attn; install it or choose 'sdpa'"):
            attention_backend("flash")


@pytest.mark.gpu
@pytest.mark.parametrize("name", ATTENTION_BACKENDS)
def test_backends_agree_on_a_gpu(name, need):
    if name.startswith("flash"):
        need("flash_attn")
    q, k, v = (torch.randn(2, 4, 128, 64, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    expected = attention_backend("reference")(*(t.float() for t in (q, k, v)))
    torch.testing.assert_close(attention_backend(name)(q, k, v).float(), expected, rtol=0.02, atol=0.02)
