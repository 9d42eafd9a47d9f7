import pytest
import torch
import torch.nn.functional as F

from seerkit.layers.activations import SiLU, TanhGELU, gelu, silu

ALL = pytest.mark.parametrize("activation", [silu, gelu])


@pytest.fixture(params=[1, 2, 3, 5, 8, 13])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@ALL
@pytest.mark.parametrize("shape", [(7, 80, 256), (1, 80, 1024), (3, 17, 352), (560, 128), (11, 13, 96), (2, 300, 4096)])
def test_a_value_does_not_depend_on_where_it_stands(threads, activation, shape):
    """Rows together are rows alone, which no threads share; also where they are part of wider ones."""
    x = torch.randn(*shape[:-1], shape[-1] + 32, generator=torch.Generator().manual_seed(0))
    for rows in (x[..., 32:].contiguous(), x[..., 32:]):
        alone = torch.stack([activation(row) for row in rows.reshape(-1, 1, shape[-1])]).view(shape)
        assert torch.equal(activation(rows), alone)


@ALL
def test_values_and_gradients_are_those_of_torch(threads, activation):
    known = F.silu if activation is silu else lambda x: F.gelu(x, approximate="tanh")
    results = []
    for function in (activation, known):
        x = torch.linspace(-9, 9, 7 * 80 * 256, dtype=torch.float64).view(7, 80, 256).requires_grad_()
        y = function(x)
        y.square().sum().backward()
        results.append((y, x.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-14)


@ALL
@pytest.mark.parametrize("shape", [(0, 64), (2, 0, 64), (64,)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_without_rows(activation, shape, device):
    assert activation(torch.zeros(shape, device=device)).shape == shape


def test_layers_are_the_functions():
    x = torch.linspace(-5, 5, 64).view(2, 32)
    assert torch.equal(SiLU()(x), silu(x))
    assert torch.equal(TanhGELU()(x), gelu(x))
