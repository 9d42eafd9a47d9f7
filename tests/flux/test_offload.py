"""Weights on the host, weights in 8 bits, staging, and what FLUX.1 needs of a device."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from cache_dic import make_cache
from cache_dic.fold import GROUP_BYTES
from flux import Flux, FluxConfig, Sampler, flux_config, sample
from flux.offload import (
    Fp8Linear,
    HostLinear,
    offload_modulation,
    peak_bytes,
    resident_bytes,
    sampling_bytes,
    staged_on,
    store_fp8,
)

TINY = FluxConfig(
    in_channels=16, out_channels=16, vec_in_dim=10, context_in_dim=20, hidden_size=48, num_heads=3, depth=2,
    depth_single_blocks=3, axes_dim=(4, 6, 6),
)  # fmt: skip
GB = 1e9
NAMES = ("flux-dev", "flux-schnell")


def random_flux(dtype: torch.dtype = torch.float32, config: FluxConfig = TINY) -> Flux:
    """A tiny model with every weight random."""
    model, draw = Flux(config), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = torch.randn(parameter.shape, generator=draw) * spread
    return model.eval().requires_grad_(False).to(dtype)


def meta_flux(config: FluxConfig, dtype: torch.dtype = torch.bfloat16) -> Flux:
    with torch.device("meta"):
        return Flux(config).eval().requires_grad_(False).to(dtype)


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    shapes = (2, 4, 6, 8), (2, 5, TINY.context_in_dim), (2, TINY.vec_in_dim)
    return tuple(torch.randn(shape, generator=draw).to(dtype) for shape in shapes)


def cache():
    return make_cache(interval=6, warmup_steps=3, max_order=2)


class TestModulation:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_output_is_the_same_to_the_bit(self, dtype):
        expected = sample(random_flux(dtype), *inputs(), 20, cache=cache())
        model = offload_modulation(random_flux(dtype))
        assert torch.equal(sample(model, *inputs(), 20, cache=cache()), expected)

    def test_weights_stay_on_the_host_wherever_the_model_goes(self):
        model = offload_modulation(random_flux())
        layers = model.modulation_layers()
        before = [layer.weight.data_ptr() for layer in layers]
        model.to("meta")
        assert all(isinstance(layer, HostLinear) for layer in layers)
        assert [layer.weight.data_ptr() for layer in layers] == before
        assert {layer.bias.device.type for layer in layers} == {"cpu"}
        others = [p for name, p in model.named_parameters() if "mod" not in name]
        assert {parameter.device.type for parameter in others} == {"meta"}
        c = torch.zeros(2, TINY.hidden_size, device="meta")
        assert model.modulation(c).head.is_meta, "brought to the device of the conditions"

    def test_names_and_values_are_kept(self):
        expected = random_flux().state_dict()
        state = offload_modulation(offload_modulation(random_flux())).state_dict()
        assert list(state) == list(expected)
        assert all(torch.equal(state[name], expected[name]) for name in state)

    def test_dtype_follows_the_model(self):
        model = offload_modulation(random_flux()).to(torch.bfloat16)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}

    @pytest.mark.gpu
    def test_output_on_a_device_is_the_same_to_the_bit(self):
        given = [tensor.cuda() for tensor in inputs()]
        expected = sample(random_flux(torch.bfloat16).cuda(), *given, 20, cache=cache())
        model = offload_modulation(random_flux(torch.bfloat16)).cuda()
        assert model.modulation_layers()[0].weight.is_pinned()
        assert torch.equal(sample(model, *given, 20, cache=cache()), expected)


class TestFp8:
    @pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
    def test_weights_are_restored_within_the_stated_error(self, scale):
        linear = nn.Linear(400, 300)
        draw = torch.Generator().manual_seed(0)
        linear.weight.data = torch.randn(300, 400, generator=draw) * scale * torch.logspace(-3, 3, 300).unsqueeze(1)
        weight, restored = linear.weight.detach(), Fp8Linear(linear).restored(torch.float32)
        largest = weight.abs().amax(1, keepdim=True)
        bound = torch.maximum(weight.abs() / 16, largest / 458752)
        assert ((restored - weight).abs() <= bound * (1 + 1e-5)).all()
        spread = ((restored - weight).norm(dim=1) / weight.norm(dim=1)).mean()
        assert spread == pytest.approx(0.026, abs=0.002)
        at_largest = weight.abs() == largest
        torch.testing.assert_close(restored[at_largest], weight[at_largest], rtol=1e-6, atol=0)

    def test_rows_of_zeros_and_layers_without_bias(self):
        linear = nn.Linear(6, 4, bias=False)
        linear.weight.data[2] = 0
        stored = Fp8Linear(linear)
        assert stored.restored(torch.float32)[2].abs().max() == 0
        assert torch.isfinite(stored(torch.ones(1, 6))).all()
        assert "bias=False" in repr(stored)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_product_is_in_the_dtype_of_the_input(self, dtype):
        linear, x = nn.Linear(48, 30), torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
        stored = Fp8Linear(linear)
        result = stored(x.to(dtype))
        assert result.dtype == dtype
        exact = x.double() @ stored.restored(torch.float64).T + linear.bias.double()
        assert (result.double() - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()

    def test_blocks_alone_are_stored_so(self):
        model = store_fp8(random_flux(torch.bfloat16))
        stored = {name for name, module in model.named_modules() if isinstance(module, Fp8Linear)}
        blocks = 2 * [*range(TINY.depth)], [*range(TINY.depth_single_blocks)]
        assert len(stored) == 4 * len(blocks[0]) + 2 * len(blocks[1])
        linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        assert {name for name in linears if "blocks" in name} == {
            *(f"double_blocks.{i}.{stream}_mod.lin" for i in range(TINY.depth) for stream in ("img", "txt")),
            *(f"single_blocks.{i}.modulation.lin" for i in range(TINY.depth_single_blocks)),
        }

    def test_samples_stay_close(self):
        expected = sample(random_flux(), *inputs(), 20, cache=cache())
        result = sample(store_fp8(random_flux()), *inputs(), 20, cache=cache())
        assert 0 < (result - expected).norm() <= 0.1 * expected.norm()

    def test_conversions_leave_the_codes(self):
        model = store_fp8(random_flux())
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.to(torch.bfloat16)
        after = dict(model.named_buffers())
        assert all(torch.equal(after[name].float(), before[name].float()) for name in before)
        assert {buffer.dtype for buffer in after.values()} == {torch.float8_e4m3fn, torch.float32}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
        assert all(buffer.is_meta for buffer in model.to("meta").buffers())

    def test_state_is_loaded_again(self):
        stored = store_fp8(random_flux())
        twin = store_fp8(random_flux(config=TINY).initialize(3))
        twin.load_state_dict(stored.state_dict())
        assert torch.equal(sample(twin, *inputs(), 4), sample(stored, *inputs(), 4))

    def test_bytes_halve(self):
        """A byte a weight and four a row for FLUX.1's blocks; all else stays."""
        config = replace(flux_config("flux-dev"), depth=1, depth_single_blocks=1)
        model = meta_flux(config)
        before = resident_bytes(model)
        after = resident_bytes(store_fp8(model))
        stored = [module for module in model.modules() if isinstance(module, Fp8Linear)]
        assert before - after == sum(m.in_features * m.out_features - 4 * m.out_features for m in stored)
        codes = sum(buffer.nbytes for module in stored for buffer in module.buffers())
        assert codes <= 0.501 * sum(2 * m.in_features * m.out_features for m in stored)


class TestStaging:
    def test_back_where_it_was(self):
        """The meta device stands for an accelerator: what went there could not be read back."""
        model = store_fp8(offload_modulation(random_flux()))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        pointers = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
        with staged_on("meta", model, True) as staged:
            assert staged is model
            assert model.img_in.weight.is_meta
            assert model.single_blocks[0].linear1.codes.is_meta
            assert not model.single_blocks[0].modulation.lin.weight.is_meta
        state = model.state_dict()
        assert all(torch.equal(state[name].float(), before[name].float()) for name in before)
        assert {name: tensor.data_ptr() for name, tensor in state.items()} == pointers, "nothing was copied"
        assert torch.isfinite(sample(model, *inputs(), 2)).all()

    def test_after_an_error(self):
        model = random_flux()
        with pytest.raises(RuntimeError, match="out of memory"), staged_on("meta", model, True):
            raise RuntimeError("out of memory")
        assert not any(tensor.is_meta for tensor in model.state_dict().values())

    def test_without_offloading_it_stays(self):
        model = random_flux()
        with staged_on("meta", model, False):
            pass
        assert model.img_in.weight.is_meta


class TestMemory:
    def test_peak_is_the_sum_of_what_lives_together(self):
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

    def test_resident_bytes_leave_the_host_out(self):
        model = random_flux(torch.bfloat16)
        total = 2 * sum(parameter.numel() for parameter in model.parameters())
        modulation = 2 * sum(p.numel() for layer in model.modulation_layers() for p in layer.parameters())
        assert resident_bytes(model) == total
        assert resident_bytes(offload_modulation(model)) == total - modulation

    def test_work_holds_the_accumulators(self):
        model = meta_flux(replace(TINY, depth=1, depth_single_blocks=1), torch.float32)
        few = make_cache(interval=5, warmup_steps=1, max_order=1)
        cached = sampling_bytes(model, few, 11, tokens=1024, text_tokens=8)
        uncached = sampling_bytes(model, None, 1, tokens=1024, text_tokens=8)
        kept = few.kept_bytes(11, model.tokens(torch.empty(1, 1024, 16)))["folded"]
        assert kept == 8 * 1024 * 48 * 4, "two periods of four forecast steps"
        assert cached["work"] > uncached["work"] + kept
        assert cached["weights"] == uncached["weights"] == resident_bytes(model)
        assert cached["total"] == cached["weights"] + cached["work"]

    def test_flux_fits_24_gb(self):
        """In bf16 at 1024 x 1024 pixels, interval 6, order 2, 512 text tokens, modulation on the host, 1 GB to spare.

        The work is counted, for time, on as many blocks as fill a group of features and as many steps as fill the
        accumulators: the rest would add rows of modulation alone, less than 0.1 GB.
        """
        weights = {name: resident_bytes(offload_modulation(meta_flux(flux_config(name)))) for name in NAMES}
        assert weights["flux-dev"] / GB == pytest.approx(17.3, abs=0.05)
        few = offload_modulation(meta_flux(replace(flux_config("flux-dev"), depth=1, depth_single_blocks=20)))
        tokens = few.tokens(torch.empty(1, 4096, 64))
        assert tokens.numel * tokens.dtype.itemsize * tokens.num_sites > GROUP_BYTES
        assert cache().kept_bytes(26, tokens)["folded"] == cache().kept_bytes(50, tokens)["folded"]
        work = sampling_bytes(few, cache(), 26, tokens=4096, text_tokens=512)["work"]
        assert 1.5 * GB < work < 3 * GB
        assert max(weights.values()) + work + 0.1 * GB < 23 * GB
        whole = resident_bytes(meta_flux(flux_config("flux-dev")))
        assert whole / GB == pytest.approx(23.8, abs=0.05)
        assert whole + work > 24 * GB, "with modulation on the device it does not fit"

    def test_text_encoders_fit_24_gb(self, need):
        """T5-v1.1-XXL and CLIP-L together, on a prompt of 512 tokens."""
        tf = need("transformers")
        with torch.device("meta"):
            t5 = tf.T5EncoderModel(
                tf.T5Config(
                    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
                    feed_forward_proj="gated-gelu",
                )
            ).to(torch.bfloat16).eval()  # fmt: skip
            t5_of_two = tf.T5EncoderModel(tf.T5Config.from_dict(t5.config.to_dict() | {"num_layers": 2}))
            clip = tf.CLIPTextModel(
                tf.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
            ).to(torch.bfloat16)
            ids = torch.zeros(1, 512, dtype=torch.int64)
        assert resident_bytes(t5) / GB == pytest.approx(9.5, abs=0.05)
        assert resident_bytes(clip) / GB == pytest.approx(0.25, abs=0.01)
        two_layers = t5_of_two.to(torch.bfloat16).eval()  # activations do not grow with depth
        assert peak_bytes(lambda: two_layers(input_ids=ids)) < 1 * GB

    def test_autoencoder_fits_24_gb(self, need):
        """Decoding 1024 x 1024 pixels in bf16."""
        from flux.decode import OFFICIAL_CONFIG, Autoencoder

        with torch.device("meta"):
            model = need("diffusers").AutoencoderKL.from_config(OFFICIAL_CONFIG).to(torch.bfloat16).eval()
            latents = torch.empty(1, 16, 128, 128)
        autoencoder = Autoencoder(model)
        assert resident_bytes(autoencoder) < 0.2 * GB
        work = peak_bytes(lambda: autoencoder.decode(latents))
        assert 1 * GB < work < 8 * GB


def test_sampler_runs_with_all_of_it():
    """Staged, modulation on the host, 8 bits: the run is recorded as any other."""
    model = store_fp8(offload_modulation(random_flux(torch.bfloat16)))
    with staged_on("cpu", model, True):
        result, run = Sampler(model, 20).run(*inputs(), cache=cache())
    assert torch.isfinite(result).all()
    assert run.record()["full_steps"] == [0, 1, 2, 8, 14]
