"""Products with part of a layer's weights, however these are stored."""

import pytest
import torch
from torch import Tensor, nn

from seerkit.devices.offload import Fp8, Packed
from seerkit.layers.modulation import last_outputs


class Doubled(nn.Linear):
    """Stands for a layer with an adapter around it."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("form", [nn.Linear, Doubled, Fp8])
def test_last_outputs_are_those_of_the_layer(form, bias):
    draw = torch.Generator().manual_seed(0)
    layer: nn.Module = (nn.Linear if form is Fp8 else form)(6, 10, bias=bias)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw)
    if form is Fp8:
        layer = Packed(layer, Fp8(layer.weight.detach()))
    x = torch.randn(2, 3, 6, generator=draw)
    with torch.no_grad():
        assert torch.allclose(last_outputs(layer, x, 4), layer(x)[..., -4:], atol=1e-6)
