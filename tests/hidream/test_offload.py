"""HiDream with modulation on the host and weights in 8 or 4 bits, experts among them; 24 GB are enough for HiDream-I1."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cache_dic import Cache, make_cache
from cache_dic.settings import GROUP_BYTES
from hidream import HiDream, Sampler, hidream_config
from seerkit.devices.offload import (
    HostLinear,
    Packed,
    offload_modulation,
    peak_bytes,
    resident_bytes,
    store_fp8,
    store_nf4,
)
from seerkit.devices.staging import staged_on
from seerkit.layers.experts import GroupedLinear

GB = 1e9


@pytest.fixture(params=["fp8", "nf4"])
def store(request, need) -> Callable[[HiDream], HiDream]:
    if request.param == "nf4":
        need("bitsandbytes")
    return {"fp8": store_fp8, "nf4": store_nf4}[request.param]


@pytest.fixture
def sample(given) -> Callable[[HiDream], Tensor]:
    """`sample(model)`: latents under a cache, with guidance."""

    def run(model: HiDream) -> Tensor:
        inputs = given(model.dtype)
        noise = inputs.pop("noise")
        return Sampler(model, 8).run(noise, cache=make_cache(interval=3, warmup_steps=1, max_order=1), **inputs)[0]

    return run


def paths(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


def blocks(model: HiDream) -> list[str]:
    return [name.removesuffix(".attn1") for name, _ in model.named_modules() if name.endswith(".attn1")]


class TestModulation:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_output_is_the_same_to_the_bit(self, random_model, sample, dtype):
        expected = sample(random_model(dtype))
        assert torch.equal(sample(offload_modulation(random_model(dtype))), expected)

    def test_every_modulation_layer_stays_on_the_host(self, random_model):
        model = offload_modulation(random_model(torch.float32)).to("meta")
        on_host = {f"{block}.adaLN_modulation.1" for block in blocks(model)} | {"final_layer.adaLN_modulation.1"}
        assert paths(model, HostLinear) == on_host
        assert {layer.weight.device.type for layer in model.modulation_layers()} == {"cpu"}
        c = torch.zeros(2, model.config.hidden_size, device="meta")
        modulation = model.modulation(c)
        double, single = modulation.blocks
        gates = [block.gates(c.unsqueeze(0)) for block in (*model.double_blocks, *model.single_blocks)]
        assert all(rows.is_meta for rows in (modulation.head, *double[0], single[0], *gates))


class TestStore:
    def test_layers_of_the_blocks_and_captions_are_packed(self, random_model, store):
        """Experts and all; of the others modulation and gates, which choose the experts, are exact."""
        model = random_model(torch.float32)
        linear, grouped = paths(model, nn.Linear), paths(model, GroupedLinear)
        store(model)
        kept = {
            name for name in linear if "adaLN" in name or name.startswith(("t_embedder", "p_embedder", "x_embedder"))
        }
        kept.add("final_layer.linear")
        assert paths(model, nn.Linear) == kept
        assert paths(model, Packed) == (linear - kept) | grouped
        assert grouped == {f"{block}.ff_i.experts.w{i}" for block in blocks(model) for i in (1, 2, 3)}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_call_is_that_of_a_model_with_restored_weights(self, random_model, arguments, store, dtype):
        """Linear and grouped layers alike, to the bit."""
        stored, restored = store(random_model(dtype)), random_model(dtype)
        for name, module in stored.named_modules():
            if isinstance(module, Packed):
                restored.get_submodule(name).weight.data = module.weight.restored(dtype)
        inputs = arguments(dtype)
        assert torch.equal(stored(**inputs), restored(**inputs))
        assert not torch.equal(stored(**inputs), random_model(dtype)(**inputs))

    def test_state_is_loaded_again(self, random_model, arguments, store):
        stored, twin = store(random_model(torch.float32)), store(random_model(torch.float32))
        for module in twin.modules():
            if isinstance(module, Packed):
                module.weight.scale.mul_(2)
        twin.load_state_dict(stored.state_dict())
        assert torch.equal(twin(**arguments(torch.float32)), stored(**arguments(torch.float32)))

    def test_staged_it_comes_back(self, random_model, sample, store):
        """The meta device stands for an accelerator: what went there could not be read back."""
        model = store(offload_modulation(random_model(torch.bfloat16)))
        pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        with staged_on("meta", model, True):
            assert model.double_blocks[0].ff_i.experts.w1.weight.codes.is_meta
        assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == pointers
        assert torch.isfinite(sample(model)).all()


def meta_hidream(depth: int | None = None) -> HiDream:
    with torch.device("meta"):
        model = HiDream(hidream_config("hidream-full", depth=depth))
    return model.eval().requires_grad_(False).to(torch.bfloat16)


def sampling_bytes(model: HiDream, cache: Cache, num_steps: int) -> int:
    """Activations, restored weights, modulation table and kept features of one image of 1024 x 1024 pixels, guided."""
    config = model.config
    with torch.device("meta"):
        noise = torch.empty(1, config.in_channels, 128, 128)
        states = torch.empty(32, 1, 128, config.caption_channels[1])
        texts = torch.empty(1, 128, config.caption_channels[0]), states, torch.empty(1, config.text_emb_dim)
    return peak_bytes(lambda: Sampler(model, num_steps).run(noise, *texts, negative=texts, cache=cache))


@pytest.mark.slow
def test_hidream_fits_24_gb(need):
    """Full with guidance and interval 4, of 34.2 GB in bf16, in either form and with modulation on the device or not.

    The work is counted, for time, on as many blocks as fill a group of features and as many steps as fill the
    accumulators: the rest would add rows of modulation and captions alone, less than 0.2 GB.
    """
    need("bitsandbytes")
    weights = {}
    for store in (store_fp8, store_nf4):
        model = meta_hidream()
        assert resident_bytes(model) / GB == pytest.approx(34.2, abs=0.05)
        weights[store] = [resident_bytes(change(model)) / GB for change in (store, offload_modulation)]
    assert weights[store_fp8] == pytest.approx([19.7, 14.6], abs=0.05)
    assert weights[store_nf4] == pytest.approx([13.3, 8.2], abs=0.05)
    cache = make_cache(interval=4, warmup_steps=1, max_order=1)
    few = store_nf4(meta_hidream(depth=2))
    tokens = few.tokens(torch.empty(2, 16, 128, 128))
    assert tokens.row_numel * tokens.dtype.itemsize * (tokens.num_sites + 1) > GROUP_BYTES
    assert cache.kept_bytes(10, tokens)["folded"] == cache.kept_bytes(50, tokens)["folded"]
    work = sampling_bytes(few, cache, 10) / GB
    assert 1 < work < 2.6
    assert weights[store_fp8][0] + work + 0.2 < 23
