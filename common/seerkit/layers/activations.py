"""The activations of the backbones, whose values do not depend on where in a batch, or in whose share of it, an element stands.

On CPUs PyTorch divides the elements evenly among threads. Each takes its share in steps of 32 or fewer, with vector
instructions, and what is left at the end of it one by one, with functions of the C library that round otherwise. So that
nothing is left, work is given here in runs whose shares are whole rows; what is promised holds for widths that are
multiples of 32, as those of all models are. Of the operations of the backbones these two and products of few rows
(`seerkit.layers.few_rows`) alone need such care.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def silu_threads(numel: int, most: int) -> int:
    """Threads, of `most`, that PyTorch's SiLU takes for so many elements (at::internal::GRAIN_SIZE for each)."""
    return min(most, -(-numel // 32768))


def gelu_threads(numel: int, most: int) -> int:
    """Threads, of `most`, that PyTorch's GELU takes (GELU_MIN_ELEMENTS_FOR_MULTI_THREADING)."""
    return most if numel > 16384 else 1


@cache
def even_runs(rows: int, width: int, threads: Callable[[int, int], int], most: int) -> tuple[int, ...]:
    """The longest consecutive runs of rows, of `width` elements each, that threads, at most `most`, share by whole rows."""
    runs = []
    while rows:
        run = rows
        while run % threads(run * width, most):
            run -= 1
        runs.append(run)
        rows -= run
    return tuple(runs)


def silu(x: Tensor) -> Tensor:
    """x · sigmoid(x) of (..., D)."""
    return _by_whole_rows(F.silu, silu_threads, x)


def gelu(x: Tensor) -> Tensor:
    """GELU in its approximation by tanh, of (..., D)."""
    return _by_whole_rows(partial(F.gelu, approximate="tanh"), gelu_threads, x)


def _by_whole_rows(activation: Callable[[Tensor], Tensor], threads: Callable[[int, int], int], x: Tensor) -> Tensor:
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return activation(x)
    runs = even_runs(x.shape[:-1].numel(), x.shape[-1], threads, torch.get_num_threads())
    if len(runs) <= 1:
        return activation(x)
    return torch.cat([activation(run) for run in x.flatten(0, -2).split(runs)]).view(x.shape)


class SiLU(nn.Module):
    """`silu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


class TanhGELU(nn.Module):
    """`gelu` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return gelu(x)
