"""Folding against the plain sum in float64, in every dtype, layout and backend."""

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from cache_dic import fold

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16


@dataclass
class Case:
    """Arguments of one fold; slots are out of order, and those that are fresh hold NaN."""

    accumulators: Tensor
    slots: list[int]
    features: list[Tensor]
    coefficients: Tensor
    fresh: list[bool]

    def fold(self, **options: str) -> Tensor:
        fold.fold_(self.accumulators, self.slots, self.features, self.coefficients, self.fresh, **options)
        return self.accumulators

    def expected(self) -> Tensor:
        result = self.accumulators.double()
        if self.slots:
            features = torch.stack([feature.double() for feature in self.features])
            coefficients = self.coefficients.double().expand(-1, -1, features.shape[1], -1)
            sums = torch.einsum("jgbd,gbld->jbld", coefficients, features)
            for slot, total, new in zip(self.slots, sums, self.fresh, strict=True):
                result[slot] = total if new else result[slot] + total
        return result


def make_case(
    batch=2,
    tokens=7,
    channels=5,
    num_features=3,
    slots=(4, 0, 3),
    num_slots=6,
    fresh=None,
    dtype=F32,
    feature_dtype=F32,
    coefficient_batch=None,
    sliced=False,
    device="cpu",
):
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=F64).to(device)

    accumulators = draw(num_slots, batch, tokens, channels).to(dtype)
    fresh = [False] * len(slots) if fresh is None else fresh
    for slot, new in zip(slots, fresh, strict=True):
        if new:
            accumulators[slot] = torch.nan
    extra = 3 if sliced else 0
    features = [draw(batch, tokens + extra, channels).to(feature_dtype)[:, extra:] for _ in range(num_features)]
    coefficients = draw(len(slots), num_features, coefficient_batch or batch, channels)
    return Case(accumulators, list(slots), features, coefficients.to(F64 if dtype == F64 else F32), fresh)


def assert_matches(actual: Tensor, expected: Tensor, *, ulps: float = 0.51) -> None:
    """One rounding to the result's dtype, half a unit in the last place, beside that of the sums in at least float32."""
    sums = {F64: 1e-13, F32: 2e-5}[torch.promote_types(actual.dtype, F32)]
    rtol = ulps * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=rtol, atol=sums)


@pytest.mark.parametrize("feature_dtype", [F64, F32, BF16, F16])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16])
def test_dtypes(dtype, feature_dtype):
    case = make_case(dtype=dtype, feature_dtype=feature_dtype, fresh=[False, True, False])
    expected = case.expected()
    assert_matches(case.fold(), expected)


@pytest.mark.parametrize("chunk_bytes", [1, 300, 2000, 2**20])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"coefficient_batch": 1},
        {"sliced": True},
        {"batch": 1, "tokens": 1, "channels": 1},
        {"batch": 5, "tokens": 13, "channels": 17, "num_features": 1},
        {"batch": 3, "tokens": 33, "sliced": True, "coefficient_batch": 1, "num_features": 2 * fold.LARGEST_GROUP + 1},
        {"slots": (2,)},
        {"slots": (0,), "num_slots": 1, "num_features": 6, "fresh": [True], "coefficient_batch": 1},
        {"slots": tuple(range(6)), "fresh": [True, False] * 3},
    ],
    ids=str,
)
def test_shapes(monkeypatch, chunk_bytes, options):
    monkeypatch.setattr(fold, "_CPU_CHUNK_BYTES", chunk_bytes)
    case = make_case(**options)
    expected = case.expected()
    assert_matches(case.fold(), expected)


def test_fresh_slots_are_overwritten_and_others_left_alone():
    case = make_case(slots=(1, 5), fresh=[True, True])
    before = case.accumulators.clone()
    after = case.fold()
    assert after[[1, 5]].isfinite().all()
    assert torch.equal(after[[0, 2, 3, 4]], before[[0, 2, 3, 4]])


def test_no_slots_is_no_work():
    case = make_case(slots=())
    before = case.accumulators.clone()
    assert torch.equal(case.fold(), before)


def test_groups_add_up():
    whole, parts = make_case(num_features=7, dtype=F64), make_case(num_features=7, dtype=F64)
    for start in range(0, 7, 3):
        group = slice(start, start + 3)
        features, coefficients = parts.features[group], parts.coefficients[:, group]
        Case(parts.accumulators, parts.slots, features, coefficients, parts.fresh).fold()
    torch.testing.assert_close(parts.accumulators, whole.fold(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("feature_dtype", [F32, BF16])
def test_autocast_does_not_change_the_arithmetic(feature_dtype):
    plain = make_case(feature_dtype=feature_dtype).fold()
    case = make_case(feature_dtype=feature_dtype)
    with torch.autocast("cpu", dtype=BF16):
        assert torch.equal(case.fold(), plain)


def test_inference_mode_and_gradients():
    plain = make_case().fold()
    with torch.inference_mode():
        assert torch.equal(make_case().fold(), plain)
    case = make_case()
    case.features = [feature.requires_grad_() for feature in case.features]
    assert not case.fold().requires_grad


@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiles_within_a_larger_graph(compiler, num_graphs):
    def step(x: Tensor, case: Case) -> Tensor:
        for group in (slice(0, 2), slice(2, 3)):
            features = []
            for feature in case.features[group]:
                features.append(torch.tanh(x) * feature)
                x = x + features[-1]
            fresh = case.fresh if group.start == 0 else [False] * len(case.fresh)
            fold.fold_(case.accumulators, case.slots, features, case.coefficients[:, group], fresh)
        return x

    eager, compiled = (make_case(fresh=[False, True, False]) for _ in range(2))
    x = eager.accumulators[1].clone()
    y = torch.compile(step, fullgraph=True, backend=compiler)(x, compiled)
    torch.testing.assert_close(y, step(x, eager))
    torch.testing.assert_close(compiled.accumulators, eager.accumulators, rtol=1e-5, atol=1e-5)
    assert num_graphs() == 1


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend is 'cuda'; accepted are auto, torch, triton"):
        make_case().fold(backend="cuda")


def test_group_size():
    assert fold.group_size(56, 100, 10**9) == fold.LARGEST_GROUP
    assert fold.group_size(5, 100, 10**9) == 5
    assert fold.group_size(56, 100, 1050) == 10
    assert fold.group_size(56, 100, 99) == 1


def check_triton(device: str) -> None:
    """The kernel against float64; run as a program under Triton's interpreter, or on a GPU."""
    for dtype, feature_dtype in ((F32, F32), (F32, BF16), (F32, F16), (BF16, BF16)):
        for options in (
            {"fresh": [False, True, False]},
            {"coefficient_batch": 1, "sliced": True, "tokens": 37, "channels": 135, "fresh": [True, False, True]},
            {"batch": 1, "tokens": 1, "channels": 1, "slots": (2,), "num_features": 1},
            {"num_features": 19, "channels": 64, "tokens": 16, "fresh": [True, False, False]},
            {"slots": (0,), "num_slots": 1, "num_features": 6, "fresh": [True], "coefficient_batch": 1},
        ):
            case = make_case(**options, dtype=dtype, feature_dtype=feature_dtype, device=device)
            expected = case.expected()
            # 16 features a launch, which rounds to the accumulator's dtype (the interpreter truncates to bfloat16)
            ulps = 2 * (len(case.features) // 16 + 1)
            # a value may shrink after it was rounded, so the error is measured against the largest
            scale = expected.abs().max().item()
            error = (case.fold(backend="triton").double() - expected).abs().nan_to_num(nan=torch.inf).max().item()
            assert error <= ulps * torch.finfo(dtype).eps * scale, (dtype, feature_dtype, options, error)


@pytest.mark.slow
def test_triton_kernel_in_the_interpreter():
    if find_spec("triton") is None:
        pytest.skip("triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1"}  # read when triton is imported
    result = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_triton_kernel_on_the_device():
    check_triton("cuda")
    shape = {"batch": 2, "tokens": 300, "channels": 1152, "num_features": 14, "fresh": [True, False, True]}
    kernel, plain = (make_case(**shape, feature_dtype=BF16, device="cuda") for _ in range(2))
    assert fold._suits_triton(kernel.accumulators)
    result, expected = kernel.fold(), plain.fold(backend="torch")
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    check_triton("cpu")
