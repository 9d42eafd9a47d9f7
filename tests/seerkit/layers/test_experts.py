"""Grouped products and experts against one product per row, their gradients, and the names of their weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seerkit.layers.experts import Experts, GroupedLinear, grouped_linear, rows_in_order

COUNT, DIM, WIDTH = 4, 16, 24  # widths that PyTorch's grouped product takes in bf16: multiples of 16 bytes
RUNS = {  # rows of each expert
    "all": (3, 1, 5, 2),
    "first and last empty": (0, 4, 7, 0),
    "one alone": (0, 0, 11, 0),
}


def ends_of(sizes: tuple[int, ...]) -> Tensor:
    return torch.tensor(sizes).cumsum(0, dtype=torch.int32)


def rows(count: int, dim: int = DIM, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.fixture(scope="module")
def experts() -> Experts:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Experts(COUNT, DIM, WIDTH).double().requires_grad_(False)


@pytest.fixture(params=list(RUNS))
def sizes(request) -> tuple[int, ...]:
    return RUNS[request.param]


class TestGroupedLinear:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_is_a_product_for_each_row(self, experts, sizes, dtype):
        """Sums of 16 products, rounded in another order."""
        weight, x = experts.w1.weight.to(dtype), rows(sum(sizes), dtype=dtype)
        result = grouped_linear(x, weight, ends_of(sizes))
        assert result.dtype == dtype
        owners = [expert for expert, size in enumerate(sizes) for _ in range(size)]
        exact = torch.stack([weight[e].double() @ row.double() for e, row in zip(owners, x, strict=True)])
        assert (result.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_shapes_alone(self, experts, dtype):
        weight, x = experts.w1.weight.to("meta", dtype), rows(11).to("meta", dtype)
        result = grouped_linear(x, weight, torch.empty(COUNT, dtype=torch.int32, device="meta"))
        assert (result.shape, result.dtype, result.is_meta) == ((11, WIDTH), dtype, True)

    def test_gradients_are_those_of_each_row(self, experts, sizes):
        weight, x = experts.w1.weight.clone().requires_grad_(), rows(sum(sizes)).requires_grad_()
        assert torch.autograd.gradcheck(lambda x, weight: grouped_linear(x, weight, ends_of(sizes)), (x, weight))

    def test_autocast_takes_its_dtype(self, experts, sizes):
        """PyTorch's own does not know grouped products: it would refuse inputs of two dtypes."""
        layer, x = GroupedLinear(COUNT, DIM, WIDTH), rows(sum(sizes), dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            result = layer(x, ends_of(sizes))
            result.float().sum().backward()
        assert result.dtype == torch.bfloat16
        assert torch.equal(result, grouped_linear(x.bfloat16(), layer.weight.detach().bfloat16(), ends_of(sizes)))
        assert layer.weight.grad.dtype == torch.float32
        assert layer.weight.grad.any()
        assert torch.isfinite(layer.weight.grad).all()

    def test_begins_as_linear_layers_do(self):
        """Uniform within 1 / sqrt(in), as nn.Linear draws its weights."""
        weight = GroupedLinear(COUNT, 64, 256).weight.detach()
        assert weight.abs().max() <= 64**-0.5
        assert weight.std() == pytest.approx((64 * 3) ** -0.5, rel=0.02)


class TestRowsInOrder:
    order = torch.randperm(14, generator=torch.Generator().manual_seed(2))
    inverse = order.argsort()

    def test_every_row_is_there_as_often_as_asked(self):
        x = rows(7)
        assert torch.equal(rows_in_order(x, self.order, self.inverse, 2), x.repeat_interleave(2, 0)[self.order])

    def test_order_is_undone(self):
        x = rows(14)
        assert torch.equal(rows_in_order(rows_in_order(x, self.order, self.inverse), self.inverse, self.order), x)

    @pytest.mark.parametrize("copies", [1, 2])
    def test_gradients(self, copies):
        x = rows(14 // copies, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda x: rows_in_order(x, self.order, self.inverse, copies), (x,))


class TestExperts:
    def test_is_swiglu_of_its_own_for_each_row(self, experts, sizes):
        x, state = rows(sum(sizes)), experts.state_dict()
        owners = [expert for expert, size in enumerate(sizes) for _ in range(size)]
        expected = []
        for expert, row in zip(owners, x, strict=True):
            w1, w2, w3 = (state[f"{expert}.w{i}.weight"] for i in (1, 2, 3))
            expected.append(w2 @ (F.silu(w1 @ row) * (w3 @ row)))
        torch.testing.assert_close(experts(x, ends_of(sizes)), torch.stack(expected), rtol=0, atol=1e-12)

    def test_state_has_the_names_of_a_list_of_layers(self, experts):
        nested = nn.ModuleDict({"experts": experts})
        shapes = {name: tuple(tensor.shape) for name, tensor in nested.state_dict().items()}
        sides = {"w1": (WIDTH, DIM), "w2": (DIM, WIDTH), "w3": (WIDTH, DIM)}
        assert shapes == {
            f"experts.{expert}.{name}.weight": shape for expert in range(COUNT) for name, shape in sides.items()
        }

    @pytest.mark.parametrize("assign", [False, True])
    @pytest.mark.parametrize("prefix", ["", "experts."])
    def test_state_is_loaded_again(self, experts, prefix, assign):
        with torch.device("meta" if assign else "cpu"):
            twin = Experts(COUNT, DIM, WIDTH).double()
        module, source = (nn.ModuleDict({"experts": m}) if prefix else m for m in (twin, experts))
        state = source.state_dict()
        module.load_state_dict(state, assign=assign)
        assert len(state) == 3 * COUNT, "what was given is as it was"
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(twin.parameters(), experts.parameters(), strict=True)
        )
        x, ends = rows(11), ends_of(RUNS["all"])
        assert torch.equal(twin(x, ends), experts(x, ends))
