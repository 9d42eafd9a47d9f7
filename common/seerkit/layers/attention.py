"""Scaled dot-product attention with interchangeable backends.

`sdpa` (PyTorch's fused kernels) is the default and the only one that is always there. `flash` uses flash-attn when it is
installed, `flash4` puts FlashAttention-4 under PyTorch's own call, `reference` writes out the equation.
"""

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cache_dic import UserError
from seerkit.layers.names import ATTENTION_BACKENDS

AttentionFn = Callable[..., Tensor]
"""`attend(q, k, v, keys=None)`: q, k, v (B, H, L, d) -> (B, H, L, d); keys (B, L) tells which keys count, None for all."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
    """PyTorch's fused attention; q, k, v (B, H, L, d) -> (B, H, L, d)."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if keys is None else keys[:, None, None])


def reference(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v written out; shapes as `sdpa`."""
    scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, H, L, L)
    if keys is not None:
        scores = scores.masked_fill(~keys[:, None, None], -torch.inf)
    return scores.softmax(dim=-1) @ v


def flash(q: Tensor, k: Tensor, v: Tensor, keys: Tensor | None = None) -> Tensor:
    """flash-attn 2 (fp16 or bf16 on CUDA); shapes as `sdpa`. Where only some keys count, PyTorch's attention takes over."""
    if keys is not None:
        return sdpa(q, k, v, keys)
    from flash_attn import flash_attn_func

    return flash_attn_func(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)


_BACKENDS: dict[str, AttentionFn] = dict(zip(ATTENTION_BACKENDS, (sdpa, flash, sdpa, reference), strict=True))
_PACKAGES = {"flash": "flash_attn", "flash4": "flash_attn"}


def attention_backend(name: str) -> AttentionFn:
    """The attention function called `name`; UserError if it is unknown or its package is not installed."""
    if name not in _BACKENDS:
        raise UserError(f"attention backend {name!r} is unknown; choose from {', '.join(ATTENTION_BACKENDS)}")
    package = _PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        raise UserError(f"attention backend {name!r} needs the package {package}; install it or choose 'sdpa'")
    if name == "flash4":
        torch.nn.attention.activate_flash_attention_impl("FA4")
    return _BACKENDS[name]
