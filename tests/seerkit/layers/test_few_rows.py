import math

import pytest
import torch
from torch import nn

from evaluation.operations import count_operations
from seerkit.layers.few_rows import LEAST_ROWS, among_rows
from seerkit.sampling.flops import count_flops


@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (1, 3, 64), (2, 1, 64), (2, 3, 64)], ids=str)
@torch.inference_mode()
def test_a_row_is_what_it_is_among_many(shape):
    torch.manual_seed(0)
    layer, many = nn.Linear(64, 96), torch.randn(2 * LEAST_ROWS, 64)
    rows = math.prod(shape[:-1])
    assert torch.equal(among_rows(layer, many[:rows].view(shape)), layer(many)[:rows].view(*shape[:-1], 96))


def test_gradients_are_those_of_the_rows_alone():
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    layer = nn.Linear(8, 4, dtype=torch.float64)
    (grad,) = torch.autograd.grad(among_rows(layer, x).square().sum(), x)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    torch.testing.assert_close(grad, expected)


def test_whoever_counts_sees_the_rows_that_there_are():
    layer, x = nn.Linear(8, 4), torch.randn(2, 8)
    assert count_flops(lambda: among_rows(layer, x)) == 2 * 2 * 8 * 4
    assert count_operations(lambda: among_rows(layer, x)) == count_operations(lambda: layer(x))
