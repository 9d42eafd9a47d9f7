"""Weights on the host and weights in 8 or 4 bits, alone, on the two-stream backbones, and with staging."""

import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import flux
import hunyuan_video
from cache_dic import Run, make_cache
from flux import Flux, FluxConfig
from hunyuan_video import HunyuanVideo, HunyuanVideoConfig
from seerkit.devices import offload
from seerkit.devices.offload import (
    NF4_BLOCK,
    Fp8,
    HostLinear,
    Nf4,
    Packed,
    PackedWeight,
    nf4_kernels,
    offload_modulation,
    peak_bytes,
    resident_bytes,
    store_fp8,
    store_nf4,
)
from seerkit.devices.staging import staged_on
from seerkit.layers.experts import GroupedLinear, grouped_linear
from seerkit.layers.modulation import last_outputs

FLUX = FluxConfig(
    in_channels=16, out_channels=16, vec_in_dim=10, context_in_dim=20, hidden_size=48, num_heads=3, depth=2,
    depth_single_blocks=3, axes_dim=(4, 6, 6),
)  # fmt: skip
HUNYUAN_VIDEO = HunyuanVideoConfig(
    in_channels=4, out_channels=4, text_states_dim=20, text_states_dim_2=10, hidden_size=48, heads_num=3,
    mm_double_blocks_depth=2, mm_single_blocks_depth=3, rope_dim_list=(4, 6, 6),
)  # fmt: skip


class Backbone(NamedTuple):
    """make(): a model. sampler: its `Sampler`. shapes: of noise, text tokens and pooled text. layer: of a ModulationLayer."""

    make: Callable[[], nn.Module]
    sampler: type
    shapes: tuple[tuple[int, ...], ...]
    layer: str


BACKBONES = {
    "flux": Backbone(lambda: Flux(FLUX), flux.Sampler, ((2, 4, 6, 8), (2, 5, 20), (2, 10)), "lin"),
    "hunyuan_video": Backbone(
        lambda: HunyuanVideo(HUNYUAN_VIDEO), hunyuan_video.Sampler, ((2, 4, 2, 6, 8), (2, 5, 20), (2, 10)), "linear"
    ),
}
DOUBLE, SINGLE = range(2), range(3)  # blocks of both


@pytest.fixture(params=list(BACKBONES))
def backbone(request) -> Backbone:
    return BACKBONES[request.param]


def random_model(backbone: Backbone, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A tiny model with every weight random."""
    model, draw = backbone.make(), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = torch.randn(parameter.shape, generator=draw) * spread
    return model.eval().requires_grad_(False).to(dtype)


def run(backbone: Backbone, model: nn.Module, num_steps: int = 20, device: str = "cpu") -> tuple[Tensor, Run]:
    """Latents and the run, under a cache."""
    draw = torch.Generator().manual_seed(1)
    noise, text, pooled = (torch.randn(s, generator=draw).to(device, model.dtype) for s in backbone.shapes)
    texts = (text, pooled) if isinstance(model, Flux) else (text, None, pooled)
    cache = make_cache(interval=6, warmup_steps=3, max_order=2)
    return backbone.sampler(model, num_steps).run(noise, *texts, cache=cache)


def sample(backbone: Backbone, model: nn.Module, num_steps: int = 20, device: str = "cpu") -> Tensor:
    return run(backbone, model, num_steps, device)[0]


class Form(NamedTuple):
    """A form of packed weights. spread: the error of normal weights, relative."""

    weight: type[PackedWeight]
    store: Callable[..., nn.Module]
    spread: float

    def within_bound(self, restored: Tensor, weight: Tensor) -> bool:
        """The error that the form states, up to rounding in float32."""
        if self.weight is Fp8:
            largest = weight.abs().amax(-1, keepdim=True)
            bound = torch.maximum(weight.abs() / 16, largest / 458752)
        else:
            blocks = F.pad(weight.flatten(), (0, -weight.numel() % NF4_BLOCK)).view(-1, NF4_BLOCK)
            bound = 0.152 * blocks.abs().amax(1, keepdim=True).expand_as(blocks)
            bound = bound.flatten()[: weight.numel()].view_as(weight)
        return bool(((restored - weight).abs() <= bound * (1 + 1e-5)).all())


@pytest.fixture(params=["fp8", "nf4"])
def form(request, need) -> Form:
    if request.param == "nf4":
        need("bitsandbytes")
        return Form(Nf4, store_nf4, 0.092)
    return Form(Fp8, store_fp8, 0.026)


LAYERS = {
    "linear": lambda: nn.Linear(48, 30),
    "without bias": lambda: nn.Linear(48, 30, bias=False),
    "grouped": lambda: GroupedLinear(3, 48, 30),
}
ENDS = torch.tensor([2, 2, 5], dtype=torch.int32)


@pytest.fixture(params=list(LAYERS))
def layer(request) -> nn.Linear | GroupedLinear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LAYERS[request.param]().requires_grad_(False)


class TestModulation:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_output_is_the_same_to_the_bit(self, backbone, dtype):
        expected = sample(backbone, random_model(backbone, dtype))
        model = offload_modulation(random_model(backbone, dtype))
        assert torch.equal(sample(backbone, model), expected)

    def test_weights_stay_on_the_host_wherever_the_model_goes(self, backbone):
        model = offload_modulation(random_model(backbone))
        layers = model.modulation_layers()
        before = [layer.weight.data_ptr() for layer in layers]
        model.to("meta")
        assert all(isinstance(layer, HostLinear) for layer in layers)
        assert [layer.weight.data_ptr() for layer in layers] == before
        assert {layer.bias.device.type for layer in layers} == {"cpu"}
        held = {id(parameter) for layer in layers for parameter in layer.parameters()}
        assert {p.device.type for p in model.parameters() if id(p) not in held} == {"meta"}
        c = torch.zeros(2, 48, device="meta")
        modulation = model.modulation(c)
        double, single = modulation.blocks
        for rows in (modulation.head, *double[0], single[0], *(b.gates(c.unsqueeze(0)) for b in model.single_blocks)):
            assert rows.is_meta, "brought to the device of the conditions"

    def test_every_modulation_layer_is_moved(self, backbone):
        model = offload_modulation(random_model(backbone))
        assert {name for name, module in model.named_modules() if isinstance(module, HostLinear)} == {
            *(f"double_blocks.{i}.{stream}_mod.{backbone.layer}" for i in DOUBLE for stream in ("img", "txt")),
            *(f"single_blocks.{i}.modulation.{backbone.layer}" for i in SINGLE),
            "final_layer.adaLN_modulation.1",
        }

    def test_names_and_values_are_kept(self, backbone):
        expected = random_model(backbone).state_dict()
        state = offload_modulation(offload_modulation(random_model(backbone))).state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], expected[name]) for name in state)

    def test_dtype_follows_the_model(self, backbone):
        model = offload_modulation(random_model(backbone)).to(torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    def test_resident_bytes_leave_the_host_out(self, backbone):
        model = random_model(backbone, torch.bfloat16)
        total = 2 * sum(parameter.numel() for parameter in model.parameters())
        modulation = 2 * sum(p.numel() for layer in model.modulation_layers() for p in layer.parameters())
        assert resident_bytes(model) == total
        assert resident_bytes(offload_modulation(model)) == total - modulation

    @pytest.mark.gpu
    def test_output_on_a_device_is_the_same_to_the_bit(self, backbone):
        expected = sample(backbone, random_model(backbone, torch.bfloat16).cuda(), device="cuda")
        model = offload_modulation(random_model(backbone, torch.bfloat16)).cuda()
        assert model.modulation_layers()[0].weight.is_pinned()
        assert torch.equal(sample(backbone, model, device="cuda"), expected)


class TestWeights:
    @pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
    @pytest.mark.parametrize("shape", [(300, 400), (3, 100, 400)])
    def test_are_restored_within_the_stated_error(self, form, scale, shape):
        """Rows of 400 weights, which blocks of 64 do not divide."""
        draw = torch.Generator().manual_seed(0)
        sizes = torch.logspace(-3, 3, 300).view(*shape[:-1], 1)
        weight = torch.randn(shape, generator=draw) * scale * sizes
        restored = form.weight(weight).restored(torch.float32)
        assert form.within_bound(restored, weight)
        plain = weight / sizes
        packed = form.weight(plain).restored(torch.float32)
        assert (packed - plain).norm() / plain.norm() == pytest.approx(form.spread, abs=0.002)

    def test_largest_of_a_row_is_kept(self):
        weight = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
        restored, at_largest = Fp8(weight).restored(torch.float32), weight.abs() == weight.abs().amax(1, keepdim=True)
        torch.testing.assert_close(restored[at_largest], weight[at_largest], rtol=1e-6, atol=0)

    def test_zeros_are_kept(self, form):
        weight = torch.randn(4, NF4_BLOCK, generator=torch.Generator().manual_seed(0))
        weight[2] = 0
        restored = form.weight(weight).restored(torch.float32)
        assert restored[2].abs().max() == 0
        assert torch.isfinite(restored).all()

    def test_bytes(self, form):
        """Codes, and four bytes for each scale: of a row, or of a block."""
        weights = 3 * 30 * 2 * NF4_BLOCK
        expected = {Fp8: weights + 3 * 30 * 4, Nf4: weights // 2 + 3 * 30 * 2 * 4}
        for device in ("cpu", "meta"):
            stored = form.weight(torch.zeros(3, 30, 2 * NF4_BLOCK, device=device))
            assert resident_bytes(stored) == expected[form.weight]


class TestLayers:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_product_is_in_the_dtype_of_the_input(self, form, layer, dtype):
        stored, ends = Packed(layer, form.weight(layer.weight)), [ENDS] * isinstance(layer, GroupedLinear)
        x = torch.randn(5, 48, generator=torch.Generator().manual_seed(1))
        result = stored(x.to(dtype), *ends)
        assert result.dtype == dtype
        assert result.shape == (5, 30)
        weight = stored.weight.restored(dtype)
        assert form.within_bound(stored.weight.restored(torch.float32), layer.weight)
        if ends:
            assert torch.equal(result, grouped_linear(x.to(dtype), weight, ENDS))
        else:
            bias = None if layer.bias is None else layer.bias.to(dtype)
            assert torch.equal(result, F.linear(x.to(dtype), weight, bias))
        assert layer.extra_repr() in repr(stored)


class TestStore:
    def test_blocks_alone_are_stored(self, backbone, form):
        model, before = form.store(random_model(backbone)), random_model(backbone).state_dict()
        stored = {name: module for name, module in model.named_modules() if isinstance(module, Packed)}
        assert len(stored) == 8 * len(DOUBLE) + 2 * len(SINGLE)
        for name, module in stored.items():
            assert form.within_bound(module.weight.restored(torch.float32), before[f"{name}.weight"])
        linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        assert {name for name in linears if name.startswith(("double_blocks", "single_blocks"))} == {
            *(f"double_blocks.{i}.{stream}_mod.{backbone.layer}" for i in DOUBLE for stream in ("img", "txt")),
            *(f"single_blocks.{i}.modulation.{backbone.layer}" for i in SINGLE),
        }

    def test_samples_stay_close(self, backbone, form):
        expected = sample(backbone, random_model(backbone))
        result = sample(backbone, form.store(random_model(backbone)))
        assert 0 < (result - expected).norm() <= 4 * form.spread * expected.norm()

    def test_conversions_leave_the_codes(self, backbone, form):
        model = form.store(random_model(backbone))
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.to(torch.bfloat16)
        after = dict(model.named_buffers())
        assert all(torch.equal(after[name].float(), before[name].float()) for name in before)
        assert {buffer.dtype for buffer in after.values()} == {buffer.dtype for buffer in before.values()}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert all(buffer.is_meta for buffer in model.to("meta").buffers())

    def test_state_is_loaded_again(self, backbone, form):
        stored, twin = (form.store(random_model(backbone, seed=seed)) for seed in (0, 3))
        twin.load_state_dict(stored.state_dict())
        assert torch.equal(sample(backbone, twin, 4), sample(backbone, stored, 4))

    def test_packed_elsewhere_they_come_back(self, backbone, form, monkeypatch):
        """The device has one layer at a time; every one is packed there."""
        places = []

        def packed(weight: Tensor) -> PackedWeight:
            places.append(weight.device.type)
            return form.weight(torch.zeros(weight.shape))

        monkeypatch.setattr(offload, form.weight.__name__, packed)
        model = form.store(random_model(backbone), "meta")
        assert places == ["meta"] * (8 * len(DOUBLE) + 2 * len(SINGLE))
        assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}

    @pytest.mark.gpu
    def test_a_device_packs_for_the_host_and_restores(self, backbone, form):
        model, before = form.store(random_model(backbone), "cuda"), random_model(backbone).state_dict()
        for place in ("cpu", "cuda"):
            for name, module in model.to(place).named_modules():
                if isinstance(module, Packed):
                    assert form.within_bound(module.weight.restored(torch.float32).cpu(), before[f"{name}.weight"])


class TestBitsandbytes:
    def test_missing_package_says_how_to_get_it(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(ValueError, match=r"need bitsandbytes, .* `pip install bitsandbytes`"):
            store_nf4(random_model(BACKBONES["flux"]))

    def test_device_that_it_cannot_use_is_named(self, need, monkeypatch):
        functional = need("bitsandbytes.functional")

        def fail(*args: object, **options: object) -> None:
            raise RuntimeError("no library for CUDA 99\nand more")

        monkeypatch.setattr(functional, "quantize_4bit", fail)
        with pytest.raises(ValueError, match=r"cannot store weights in 4 bits on cpu \(no library for CUDA 99\)"):
            nf4_kernels("cpu")


def test_staged_model_is_back_where_it_was(backbone, form):
    """The meta device stands for an accelerator: what went there could not be read back."""
    model = form.store(offload_modulation(random_model(backbone)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    with staged_on("meta", model, True) as staged:
        assert staged is model
        assert next(model.img_in.parameters()).is_meta
        assert model.single_blocks[0].linear1.weight.codes.is_meta
        assert not any(layer.weight.is_meta for layer in model.modulation_layers())
    state = model.state_dict()
    assert all(torch.equal(state[name].float(), before[name].float()) for name in before)
    assert {name: tensor.data_ptr() for name, tensor in state.items()} == pointers, "nothing was copied"
    assert torch.isfinite(sample(backbone, model, 4)).all()


def test_sampler_runs_with_all_of_it(backbone, form):
    """Staged, modulation on the host, few bits: the run is recorded as any other."""
    model = form.store(offload_modulation(random_model(backbone, torch.bfloat16)))
    with staged_on("cpu", model, True):
        result, recorded = run(backbone, model)
    assert torch.isfinite(result).all()
    assert recorded.record()["full_steps"] == [0, 1, 2, 8, 14]


def test_peak_is_the_sum_of_what_lives_together():
    weight = torch.empty(1000, 100, device="meta")

    def work() -> torch.Tensor:
        a = torch.empty(100, 100, device="meta")  # 40 kB
        b = a @ weight.T  # 400 kB beside it
        view = b.view(-1)[:10]
        del a, b  # the view keeps all of b
        c = view.expand(5, 10).contiguous()  # 200 bytes
        weight.T.reshape(-1)  # 400 kB, a copy
        return c

    assert peak_bytes(work) == 800_200
    assert peak_bytes(lambda: weight[:5].to("meta").detach()) == 0, "views of what was there before"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_some_outputs_are_those_of_all(bias, packed):
    """What a fused block computes of its MLP alone, where its attention is reused."""
    layer, x = nn.Linear(8, 12, bias=bias), torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    if packed:
        layer = store_fp8(nn.ModuleDict({"blocks": nn.ModuleList([layer])}))["blocks"][0]
        assert hasattr(layer.weight, "restored")
    assert torch.allclose(last_outputs(layer, x, 5), layer(x)[..., -5:], atol=1e-6)
