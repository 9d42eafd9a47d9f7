"""Products of few rows, as those with a timestep or a pooled text for each sample of a batch.

Where MKL keeps no one order of sums (`seerkit.environment`), as on processors of AMD, it adds up products of one row, of two or
three, and of more, each in an order of its own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_ROWS = 4  # from which on a row has the same value whatever their number


_filled = ContextVar("filled", default=True)


@contextmanager
def unfilled() -> Iterator[None]:
    """Products of as few rows as there are, which is what they are on other devices: around whatever counts operations."""
    before = _filled.set(False)
    try:
        yield
    finally:
        _filled.reset(before)


def among_rows(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """layer(x), x (..., D), each row as it is among LEAST_ROWS or more of them; on CPUs, where zeros fill them up."""
    rows = x.shape[:-1].numel()
    if rows >= LEAST_ROWS or x.device.type != "cpu" or torch.compiler.is_compiling() or not _filled.get():
        return layer(x)
    filled = F.pad(x.flatten(0, -2), (0, 0, 0, LEAST_ROWS - rows))
    return layer(filled)[:rows].unflatten(0, x.shape[:-1])
