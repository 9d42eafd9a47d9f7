"""Experts: one of several linear layers for each row, all in one matrix product, rows grouped by their expert."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seerkit.layers.activations import silu


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows x (T, in), in runs of consecutive rows that belong together, each run times its weight (out, in) -> (T, out).

    weight (E, out, in). ends (E,) int32: where each run ends, the last at T; runs may be empty. In bf16 this is PyTorch's
    grouped matrix product. In other precisions that one is slow on CPUs, or missing: there each run has a product of its
    own, unless a compiler needs one graph or only shapes are wanted. Under autocast it is in autocast's dtype.
    """
    device = x.device.type
    if not x.is_meta and torch.is_autocast_enabled(device):  # which does not know grouped products
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
    if x.dtype == torch.bfloat16 or x.is_meta or torch.compiler.is_compiling():
        return F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    return torch.cat([F.linear(run, expert) for run, expert in zip(x.split(sizes), weight, strict=True)])


class _Rows(torch.autograd.Function):
    """`rows_in_order` with its gradient, a permutation again: nothing has to be added into scattered places."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor, copies: int) -> Tensor:
        ctx.save_for_backward(inverse)
        ctx.copies = copies
        return x[order // copies]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (inverse,) = ctx.saved_tensors
        return grad[inverse].unflatten(0, (-1, ctx.copies)).sum(1), None, None, None


def rows_in_order(x: Tensor, order: Tensor, inverse: Tensor, copies: int = 1) -> Tensor:
    """Rows x (T, D), each `copies` times, in the order of a permutation (T · copies,) with its inverse."""
    return _Rows.apply(x, order, inverse, copies)


class GroupedLinear(nn.Module):
    """`count` linear layers without bias of one shape, their weights one tensor (count, out, in)."""

    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, out_features, in_features))
        for expert in self.weight:
            nn.init.kaiming_uniform_(expert, a=5**0.5)  # as nn.Linear

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Rows x (T, in), grouped by layer, as `grouped_linear`."""
        return grouped_linear(x, self.weight, ends)

    def extra_repr(self) -> str:
        count, out_features, in_features = self.weight.shape
        return f"count={count}, in_features={in_features}, out_features={out_features}"


class Experts(nn.Module):
    """SwiGLU layers w2(silu(w1 x) · w3 x), one for each expert.

    In state dicts every expert has tensors of its own, `0.w1.weight` and so on, as in a list of layers.
    """

    def __init__(self, count: int, dim: int, width: int) -> None:
        super().__init__()
        self.count = count
        self.w1 = GroupedLinear(count, dim, width)
        self.w2 = GroupedLinear(count, width, dim)
        self.w3 = GroupedLinear(count, dim, width)
        self.register_state_dict_post_hook(_unstack)
        self.register_load_state_dict_pre_hook(_stack)

    def forward(self, x: Tensor, ends: Tensor) -> Tensor:
        """Rows x (T, D) grouped by expert, ends as in `grouped_linear` -> (T, D)."""
        return self.w2(silu(self.w1(x, ends)) * self.w3(x, ends), ends)


NAMES = ("w1.weight", "w2.weight", "w3.weight")


def _unstack(module: Experts, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    stacked = {name: state.pop(prefix + name) for name in NAMES if prefix + name in state}
    for expert in range(module.count):
        state.update({f"{prefix}{expert}.{name}": weight[expert] for name, weight in stacked.items()})


def _stack(module: Experts, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name in NAMES:
        parts = [f"{prefix}{expert}.{name}" for expert in range(module.count)]
        if all(part in state for part in parts):
            state[prefix + name] = torch.stack([state.pop(part) for part in parts])
