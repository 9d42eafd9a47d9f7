"""Layouts of names, and checkpoints as people have them: prefixes, several models in a file, scales, LoRAs, packed weights."""

import json
import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from seerkit.weights.checkpoints import load_checkpoint
from seerkit.weights.layouts import Layout, Rule, recognise_layout, swap_halves

FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)


class TestLayout:
    layout = Layout(
        "theirs",
        (
            Rule("embed.{p}", "patch.{p}"),
            Rule("time.{p}", "layers.{i}.time.{p}"),
            Rule("blocks.{i}.qkv.{p}", "layers.{i}.to_q.{p}", "layers.{i}.to_k.{p}", "layers.{i}.to_v.{p}"),
            Rule("head.{p}", "norm_out.{p}", transform=swap_halves),
        ),
    )

    @staticmethod
    def state() -> dict[str, torch.Tensor]:
        state = {"patch.weight": torch.ones(2, 2), "norm_out.weight": torch.tensor([1.0, 2.0])}
        for i in range(2):
            state[f"layers.{i}.time.weight"] = torch.tensor([5.0])
            for j, part in enumerate("vkq"):  # order in the file does not matter
                state[f"layers.{i}.to_{part}.weight"] = torch.full((1, 2), 10.0 * i + 2 - j)
        return state

    def test_rename_fuse_copies_transform_computed(self):
        result = self.layout.convert(self.state(), {"table": torch.zeros(3)})
        assert set(result) == {
            "embed.weight",
            "time.weight",
            "blocks.0.qkv.weight",
            "blocks.1.qkv.weight",
            "head.weight",
            "table",
        }
        assert result["blocks.1.qkv.weight"].tolist() == [[10, 10], [11, 11], [12, 12]]
        assert result["time.weight"].tolist() == [5]
        assert result["head.weight"].tolist() == [2, 1]

    def test_on_meta(self):
        result = self.layout.convert({name: tensor.to("meta") for name, tensor in self.state().items()})
        assert result["blocks.0.qkv.weight"].shape == (3, 2)

    def test_a_dot_is_a_dot(self):
        assert not self.layout.covers("layersx0xtimexweight")
        assert not self.layout.covers("layers.0.1.time.weight")

    def test_copies_that_differ(self):
        state = self.state()
        state["layers.1.time.weight"] = torch.tensor([6.0])
        with pytest.raises(
            ValueError, match=r"layers\.0\.time\.weight and layers\.1\.time\.weight, copies for time\.weight, differ"
        ):
            self.layout.convert(state)

    def test_missing_part(self):
        state = self.state()
        del state["layers.1.to_k.weight"]
        with pytest.raises(
            ValueError, match=r"parts of blocks\.1\.qkv\.weight are missing; it is made of layers\.\{i\}\.to_q"
        ):
            self.layout.convert(state)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match=r"2 names are not of the theirs layout \(foo, layers\.0\.bar\)"):
            self.layout.convert(self.state() | {"foo": torch.zeros(1), "layers.0.bar": torch.zeros(1)})

    def test_recognise(self):
        ours = ["embed.weight", "time.weight", "patch.weight"]
        assert recognise_layout(self.state(), ours, [self.layout]) is self.layout
        assert recognise_layout(ours, ours, [self.layout]) is None
        with pytest.raises(ValueError, match=r"unknown layout \(a, b\); known are: official, theirs"):
            recognise_layout(["a", "b", "patch.weight"][:2], ours, [self.layout])
        with pytest.raises(ValueError, match="unknown layout"):
            recognise_layout([], ours, [self.layout])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 4) for _ in range(3))
        self.head = nn.Linear(4, 2)


THEIRS = Layout("theirs", (Rule("blocks.{i}.{p}", "layers.{i}.{p}"), Rule("head.{p}", "out.{p}")))


@pytest.fixture
def state() -> dict[str, Tensor]:
    """Weights that every floating dtype holds exactly."""
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randint(-3, 4, x.shape, generator=draw).float() for name, x in Net().state_dict().items()}


@pytest.fixture
def load(tmp_path):
    """`load(state)`: the state of a `Net` with the weights of a file of such tensors."""

    def through_file(state: dict[str, Tensor], dtype: torch.dtype | None = torch.float32, name: str = "m.safetensors"):
        if name.endswith("safetensors"):
            save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / name)
        else:
            torch.save(state, tmp_path / name)
        with torch.device("meta"):
            model = Net()
        load_checkpoint(model, tmp_path / name, layouts={THEIRS: THEIRS.convert}, dtype=dtype, device="cpu")
        return dict(model.state_dict())

    return through_file


def same(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def theirs(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("blocks", "layers").replace("head", "out"): x for name, x in state.items()}


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


class TestDtypes:
    @pytest.mark.parametrize("dtype", [*FLOAT8, torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
    def test_every_floating_one_loads(self, load, state, dtype, name):
        assert same(load({name: x.to(dtype) for name, x in state.items()}, name=name), state)
        assert same(load(theirs({name: x.to(dtype) for name, x in state.items()}), name=name), state)

    @pytest.mark.parametrize("dtype", FLOAT8)
    def test_not_a_number_in_eight_bits_is_found(self, load, state, dtype):
        state["blocks.1.weight"][2, 3] = torch.nan
        with pytest.raises(ValueError, match=r"NaN or infinity in 1 tensors \(blocks\.1\.weight\)"):
            load({name: x.to(dtype) for name, x in state.items()})

    @pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
    def test_integers_are_no_weights(self, load, state, dtype):
        state["head.weight"] = state["head.weight"].to(dtype)
        with pytest.raises(
            ValueError, match=rf"weights are of {dtype} \(head\.weight\); floating-point ones can be read"
        ):
            load(state)

    def test_copies_in_eight_bits_are_compared(self):
        layout = Layout("theirs", (Rule("time.weight", "layers.{i}.time.weight"),))
        copies = {f"layers.{i}.time.weight": torch.ones(3).to(torch.float8_e4m3fn) for i in range(2)}
        assert layout.convert(copies)["time.weight"].float().tolist() == [1, 1, 1]
        copies["layers.1.time.weight"] = torch.zeros(3).to(torch.float8_e4m3fn)
        with pytest.raises(ValueError, match="differ"):
            layout.convert(copies)


class TestScales:
    @pytest.mark.parametrize("kind", ["scale_weight", "weight_scale"])
    @pytest.mark.parametrize("shape", [(), (1,), (4,), (4, 1), (1, 1)])
    @pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
    def test_weights_are_multiplied(self, load, state, kind, shape, prefix):
        scaled = {name: x.to(torch.float8_e4m3fn) if name.endswith("weight") else x for name, x in state.items()}
        scale = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape) / 8
        for i in range(3):
            scaled[f"blocks.{i}.{kind}"] = scale
            scaled[f"blocks.{i}.input_scale"] = torch.tensor(9.0)
            scaled[f"blocks.{i}.scale_input"] = torch.tensor(9.0)
        scaled |= {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
        rows = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(())
        expected = {name: x * rows if name.startswith("blocks") and x.ndim == 2 else x for name, x in state.items()}
        assert same(load(under(prefix, scaled)), expected)
        assert same(load(under(prefix, theirs(scaled))), expected)
        wanted = {name: x.bfloat16() for name, x in expected.items()}
        assert same(load(under(prefix, scaled), torch.bfloat16), wanted)

    def test_description_of_comfyui(self, load, state):
        def described(text: str) -> dict[str, Tensor]:
            return state | {"head.comfy_quant": torch.tensor(list(text.encode()), dtype=torch.uint8)}

        scale = {"head.weight_scale": torch.tensor(0.5)}
        found = load(described(json.dumps({"format": "float8_e4m3fn"})) | scale)
        assert torch.equal(found["head.weight"], state["head.weight"] / 2)
        for other in (json.dumps({"format": "nvfp4"}), "[]", "{", "[" * 100_000):
            with pytest.raises(ValueError, match=r"packed .*head\.comfy_quant"):
                load(described(other) | scale)

    @pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2), (1, 1, 1, 4)])
    def test_other_shapes_are_refused_by_name(self, load, state, shape):
        with pytest.raises(ValueError, match=r"blocks\.0\.weight_scale of shape .* is not read"):
            load(state | {"blocks.0.weight_scale": torch.ones(shape)})

    def test_a_scale_alone_is_refused_by_name(self, load, state):
        with pytest.raises(ValueError, match=r"blocks\.9\.scale_weight is a scale without its weight"):
            load(state | {"blocks.9.scale_weight": torch.ones(())})

    def test_a_product_that_does_not_fit_is_no_damage(self, load, state):
        state |= {"head.weight": torch.full((2, 4), 3.0), "head.scale_weight": torch.tensor(1e5)}
        with pytest.raises(ValueError, match=r"values of head\.weight do not fit torch\.float16; choose another dtype"):
            load(state, torch.float16)
        assert load(state)["head.weight"].eq(3e5).all()

    def test_scales_in_a_file_beside(self, load, state, tmp_path):
        """As HunyuanVideo's official fp8 weights have them."""
        scaled = {name: x.to(torch.float8_e4m3fn) for name, x in state.items()}
        with pytest.raises(ValueError, match=r"m_fp8\.pt has no scales beside it; fetch m_fp8_map\.pt, too"):
            load(scaled, name="m_fp8.pt")
        torch.save({f"blocks.{i}": torch.tensor(0.25) for i in range(3)}, tmp_path / "m_fp8_map.pt")
        found = load({"module": scaled}, name="m_fp8.pt")
        assert torch.equal(found["blocks.1.weight"], state["blocks.1.weight"] / 4)
        assert torch.equal(found["head.weight"], state["head.weight"])


class TestParts:
    @pytest.mark.parametrize(
        "prefix",
        [
            *("model.diffusion_model.", "module.", "_orig_mod.", "model.", "transformer.", "ema_model.", "net."),
            *("module._orig_mod.", "_orig_mod.module.", "a.b.c.d.e.f.", "model/", "x_", "dit:", "Ünï.", "."),
        ],
    )
    def test_a_common_prefix_is_dropped_and_said(self, load, state, prefix, caplog):
        for names in (state, theirs(state)):
            caplog.clear()
            assert same(load(under(prefix, names)), state)
            (said,) = caplog.records
            assert "m.safetensors: names are read without" in said.getMessage()
            assert said.levelno == logging.WARNING, "shown without a set-up"

    def test_names_as_they_should_be_are_not_mentioned(self, load, state, caplog):
        for names in (state, theirs(state)):
            load(names)
        assert not caplog.records

    def test_wrappers_within_names(self, load, state):
        wrapped = {name.replace("blocks.1.", "blocks.1._orig_mod."): x for name, x in state.items()}
        assert same(load(under("_fsdp_wrapped_module.", wrapped)), state)

    def test_the_part_of_a_file_with_several_models(self, load, state, caplog):
        others = {
            "first_stage_model.decoder.conv_in.weight": torch.zeros(2),
            "cond_stage_model.x.weight": torch.zeros(2),
        }
        assert same(load(under("model.diffusion_model.", state) | others), state)
        assert "2 tensors of other models are left out (cond_stage_model., first_stage_model.)" in caplog.text

    def test_averaged_weights_are_preferred(self, load, state):
        plain = {name: 0 * x for name, x in state.items()}
        for averaged in ("ema.", "ema_model.", "model_ema.", "ema.module."):
            assert same(load(under("model.", plain) | under(averaged, state)), state)

    def test_two_models_of_which_nothing_chooses(self, load, state):
        with pytest.raises(ValueError, match=r"several such models, under 'a\.' and 'b\.'; save one of them alone"):
            load(under("a.", state) | under("b.", state))
        assert same(load(under("a.", state)), state)

    def test_other_models_alone(self, load):
        with pytest.raises(ValueError, match=r"m\.safetensors: the weights are of an unknown layout"):
            load({"vae.decoder.conv_in.weight": torch.zeros(2), "vae.decoder.conv_in.bias": torch.zeros(2)})

    def test_part_of_the_model_is_a_mismatch_of_its_own_names(self, load, state):
        del state["blocks.1.weight"]
        with pytest.raises(ValueError, match=r"1 missing \(blocks\.1\.weight\)"):
            load(under("model.", state))

    @pytest.mark.parametrize(
        "keys",
        [
            ("ema_model",),
            ("state_dict",),
            ("checkpoint", "model"),
            ("ema", "module"),
            ("model_state_dict",),
            ("model", "ema"),
        ],
    )
    def test_keys_of_pickles(self, load, state, keys):
        value: dict = under("module.", state)
        for key in reversed(keys):
            value = {key: value, "step": 3, "optimizer": {"state": {}}}
        if keys[0] == "checkpoint":
            with pytest.raises(ValueError, match=r"it has 'checkpoint': dict"):
                load(value, name="m.pt")
        else:
            assert same(load(value, name="m.pt"), state)


class TestRefused:
    @pytest.mark.parametrize(
        "name",
        [
            *(
                "transformer.blocks.0.lora_A.weight",
                "blocks.0.lora_B.default.weight",
                "lora_unet_blocks_0.lora_down.weight",
            ),
            *("lora_unet_blocks_0.alpha", "blocks.0.processor.proj_lora1.up.weight", "blocks.0.lora.down.weight"),
            *(
                "blocks.0.hada_w1_a",
                "blocks.0.lokr_w1",
                "base_model.model.blocks.0.lora_embedding_A",
                "blocks.0.dora_scale",
            ),
        ],
    )
    def test_loras_are_named(self, load, state, name):
        for others in ({}, state, under("model.", state)):
            prefix = "model." if "model.head.weight" in others else ""
            with pytest.raises(ValueError, match="this is a LoRA, 1 tensors that change a model's weights"):
                load(others | {prefix + name: torch.zeros(2, 2)})

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "qweight",
                "qzeros",
                "g_idx",
                "weight.absmax",
                "weight.quant_map",
                "weight.quant_state.bitsandbytes__nf4",
            ),
            *("SCB", "wscales", "weight_packed", "weight_scale_2", "weight_scale_inv", "weight._data", "weight._scale"),
        ],
    )
    def test_packed_weights_are_named(self, load, state, name):
        with pytest.raises(ValueError, match=rf"packed in a way that is not read.*blocks\.0\.{name}"):
            load(state | {f"blocks.0.{name}": torch.zeros(2, dtype=torch.uint8)})

    def test_four_bit_floats(self, load, state):
        packed = torch.zeros(4, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
        with pytest.raises(ValueError, match=r"packed .*blocks\.0\.weight"):
            load(state | {"blocks.0.weight": packed})
