"""Number formats by the names that flags have for them; needs torch only where one is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Of weights and features; what torch calls them."""

DTYPES = ("float32", "float64", "bfloat16", "float16")


def torch_dtype(name: str) -> "torch.dtype":
    """The format that a flag names, as in PRECISIONS or DTYPES."""
    import torch

    return getattr(torch, PRECISIONS.get(name, name))


@contextmanager
def made_in(dtype: "torch.dtype") -> Iterator[None]:
    """While it lasts, parameters are made in a floating dtype: a model of 13 billion in bf16 is not first there in float32."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """While it lasts, a GPU computes products and convolutions of float32 as "ieee", or as "tf32", with 10 bits of mantissa."""
    import torch

    kernels = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [kernel.fp32_precision for kernel in kernels]
    try:
        for kernel in kernels:
            kernel.fp32_precision = precision
        yield
    finally:
        for kernel, its_own in zip(kernels, before, strict=True):
            kernel.fp32_precision = its_own
