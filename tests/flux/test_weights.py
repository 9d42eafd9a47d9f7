import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import flux.weights
from flux import CONFIGS, Flux, FluxConfig
from flux.weights import DIFFUSERS, EMBEDDED, ENV, PUBLISHED, convert_diffusers, find_flux, load_flux
from seerkit.weights.checkpoints import StateMismatchError, export_safetensors
from seerkit.weights.layouts import swap_halves

MANIFESTS = Path(__file__).parents[1] / "checkpoints"
NAMES = ("flux-dev", "flux-schnell")
TINY = FluxConfig(
    in_channels=16, out_channels=16, vec_in_dim=10, context_in_dim=20, hidden_size=48, num_heads=3, depth=2,
    depth_single_blocks=3, axes_dim=(4, 6, 6),
)  # fmt: skip


def random_state(config: FluxConfig = TINY, seed: int = 0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=draw) for name, value in Flux(config).state_dict().items()}


def loaded_equals(model: Flux, state: dict) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints(*ENV.values())


class TestLayout:
    @pytest.fixture
    def theirs(self, need):
        """A tiny diffusers model with random weights."""
        torch.manual_seed(0)
        return need("diffusers").FluxTransformer2DModel(
            in_channels=TINY.in_channels,
            num_layers=TINY.depth,
            num_single_layers=TINY.depth_single_blocks,
            attention_head_dim=TINY.head_dim,
            num_attention_heads=TINY.num_heads,
            joint_attention_dim=TINY.context_in_dim,
            pooled_projection_dim=TINY.vec_in_dim,
            guidance_embeds=True,
            axes_dims_rope=TINY.axes_dim,
        )

    @pytest.mark.parametrize("size", ["10GB", "100KB"])
    def test_saved_model_is_read_whole_and_in_shards(self, theirs, tmp_path, size):
        """From its own folder and from that of a whole repository."""
        folder = tmp_path / "FLUX.1" / "transformer"
        theirs.save_pretrained(folder, max_shard_size=size)
        assert len(list(folder.glob("*.safetensors"))) == 1 or (folder / Path(PUBLISHED_INDEX).name).is_file()
        wanted = convert_diffusers(theirs.state_dict())
        assert loaded_equals(load_flux(TINY, folder), wanted)
        if size == "100KB":
            assert loaded_equals(load_flux(TINY, folder / Path(PUBLISHED_INDEX).name), wanted)

    def test_shard_that_is_missing_is_named(self, theirs, tmp_path):
        theirs.save_pretrained(tmp_path, max_shard_size="100KB")
        lost = sorted(tmp_path.glob("*.safetensors"))[1]
        lost.unlink()
        with pytest.raises(FileNotFoundError, match=rf"is incomplete: {lost.name}.* missing beside it"):
            load_flux(TINY, tmp_path)

    def test_rows_of_the_head_are_swapped(self, theirs):
        state = theirs.state_dict()
        scale, shift = state["norm_out.linear.weight"].chunk(2)
        ours = convert_diffusers(state)["final_layer.adaLN_modulation.1.weight"]
        assert torch.equal(ours, torch.cat([shift, scale]))
        assert torch.equal(swap_halves(ours), state["norm_out.linear.weight"])

    def test_fewer_blocks_are_named_by_their_official_names(self, theirs, tmp_path):
        export_safetensors(tmp_path / "m.safetensors", theirs.state_dict())
        with pytest.raises(StateMismatchError, match=r"the weights do not fit Flux: 24 missing \(double_blocks\.2\."):
            load_flux(replace(TINY, depth=3), tmp_path / "m.safetensors")

    def test_guidance_of_another_model_is_named(self, theirs, tmp_path):
        export_safetensors(tmp_path / "m.safetensors", theirs.state_dict())
        with pytest.raises(StateMismatchError, match=r"4 unexpected \(guidance_in\.in_layer\."):
            load_flux(replace(TINY, guidance_embed=False), tmp_path / "m.safetensors")

    def test_part_that_is_missing_is_named(self, theirs):
        state = dict(theirs.state_dict())
        del state["single_transformer_blocks.1.proj_mlp.bias"]
        with pytest.raises(ValueError, match=r"parts of single_blocks\.1\.linear1\.bias are missing"):
            convert_diffusers(state)

    def test_layout_covers_nothing_official(self):
        official = json.loads((MANIFESTS / "flux_dev.json").read_text())["parameters"]
        assert not any(DIFFUSERS.covers(name) for name in official)


PUBLISHED_INDEX = PUBLISHED[CONFIGS["flux-dev"]][1].name


class TestLoad:
    def test_official_layout(self, tmp_path):
        state = random_state()
        export_safetensors(tmp_path / "flux1-dev.safetensors", state)
        model = load_flux(TINY, tmp_path / "flux1-dev.safetensors")
        assert loaded_equals(model, state)
        assert not model.training
        assert model.config == TINY

    def test_weights_of_the_same_dtype_stay_mapped(self, tmp_path):
        """Nothing of the model's size is allocated: its tensors are parts of one mapped file."""
        export_safetensors(tmp_path / "m.safetensors", random_state(), torch.bfloat16)
        model = load_flux(TINY, tmp_path / "m.safetensors", dtype=torch.bfloat16)
        addresses = sorted(parameter.data_ptr() for parameter in model.parameters())
        assert addresses[-1] - addresses[0] < (tmp_path / "m.safetensors").stat().st_size
        maps = Path("/proc/self/maps")
        if maps.exists():
            mapped = [line.split()[0].split("-") for line in maps.read_text().splitlines() if "m.safetensors" in line]
            assert any(int(start, 16) <= addresses[0] < int(end, 16) for start, end in mapped)

    def test_own_training_folder(self, tmp_path):
        state = random_state()
        torch.save({"step": 5, "model": random_state(seed=1), "ema": state, "optimizer": {}}, tmp_path / "state.pt")
        assert loaded_equals(load_flux(TINY, tmp_path), state)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_half_file_is_cast(self, tmp_path, dtype):
        state = random_state()
        export_safetensors(tmp_path / "m.safetensors", state, torch.bfloat16, {"config": asdict(TINY)})
        model = load_flux(TINY, tmp_path / "m.safetensors", dtype=dtype, device="cpu")
        assert loaded_equals(model, {name: tensor.bfloat16().to(dtype) for name, tensor in state.items()})
        assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}

    def test_embedded_model_by_name(self, tmp_path, monkeypatch):
        assert EMBEDDED[CONFIGS["flux-tiny"]].parts[-3:] == ("TaylorSeer-FLUX", "weights", "flux-tiny.safetensors")
        config, path = CONFIGS["flux-debug"], tmp_path / "debug.safetensors"
        monkeypatch.setitem(flux.weights.EMBEDDED, config, path)
        with pytest.raises(
            FileNotFoundError,
            match=r"debug\.safetensors is not there; .*`python TaylorSeer-FLUX/train\.py --out FOLDER`",
        ):
            load_flux("flux-debug")
        state = random_state(config)
        export_safetensors(path, state, torch.float16, {"config": asdict(config)})
        assert loaded_equals(load_flux("flux-debug"), {name: tensor.half().float() for name, tensor in state.items()})

    @pytest.mark.parametrize(("name", "file"), [("flux-dev", "flux1-dev"), ("flux-schnell", "flux1-schnell")])
    def test_published_model_is_found(self, nowhere, monkeypatch, tmp_path, name, file):
        """In the folder for downloads, first the official file; else where the variable points."""
        folder = nowhere / f"FLUX.1-{name.removeprefix('flux-')}"
        (folder / "transformer").mkdir(parents=True)
        index = folder / PUBLISHED_INDEX
        index.write_text(json.dumps({"weight_map": {}}))
        assert find_flux(CONFIGS[name]) == index
        (folder / f"{file}.safetensors").touch()
        assert find_flux(CONFIGS[name]) == folder / f"{file}.safetensors"
        (tmp_path / f"{file}.safetensors").touch()
        for given in (tmp_path, tmp_path / f"{file}.safetensors"):
            monkeypatch.setenv({"flux-dev": "FLUX_DEV", "flux-schnell": "FLUX_SCHNELL"}[name], str(given))
            assert find_flux(CONFIGS[name]) == tmp_path / f"{file}.safetensors"


class TestErrors:
    @pytest.mark.parametrize("name", NAMES)
    def test_published_model_that_cannot_be_had(self, nowhere, name):
        with pytest.raises(FileNotFoundError) as caught:
            load_flux(name)
        message, short = str(caught.value), name.removeprefix("flux-")
        for part in (
            f"flux1-{short}.safetensors (black-forest-labs/FLUX.1-{short}) or {PUBLISHED_INDEX}",
            f"looked at {nowhere}/FLUX.1-{short}/flux1-{short}.safetensors",
            f"`hf download black-forest-labs/FLUX.1-{short} flux1-{short}.safetensors --local-dir {nowhere}/FLUX.1-",
            f"--include 'transformer/diffusion_pytorch_model*' --local-dir {nowhere}/FLUX.1-{short}`",
            f"accept the licence at https://huggingface.co/black-forest-labs/FLUX.1-{short} and log in with `hf auth login`",
            "HF_HUB_OFFLINE is set",
        ):
            assert part in message
        assert "\n" not in message

    def test_variable_that_points_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setenv("FLUX_DEV", str(tmp_path / "gone"))
        with pytest.raises(FileNotFoundError, match=r"gone \(does not exist, named by FLUX_DEV\).*hf auth login"):
            load_flux("flux-dev")

    def test_model_without_published_weights(self):
        with pytest.raises(FileNotFoundError, match=r"no weights are published for this model.*name a checkpoint"):
            load_flux(TINY)

    def test_unknown_model_and_missing_file(self, tmp_path):
        with pytest.raises(ValueError, match="model 'FLUX' is unknown"):
            load_flux("FLUX")
        with pytest.raises(FileNotFoundError, match=r"gone\.safetensors \(does not exist\)"):
            load_flux(TINY, tmp_path / "gone.safetensors")

    def test_wrong_shapes_and_names(self, tmp_path):
        state = random_state()
        state["img_in.weight"] = torch.zeros(48, 17)
        del state["txt_in.bias"]
        state["img_out.bias"] = torch.zeros(1)
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(StateMismatchError) as caught:
            load_flux(TINY, tmp_path / "m.pt")
        assert caught.value.missing == ["txt_in.bias"]
        assert caught.value.unexpected == ["img_out.bias"]
        assert caught.value.shapes == {"img_in.weight": ((48, 16), (48, 17))}
        assert "m.pt: the weights do not fit Flux" in str(caught.value)

    def test_another_model(self, tmp_path):
        torch.save({"net.0.weight": torch.zeros(2)}, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"unknown layout \(net\.0\.weight\); known are: official, diffusers"):
            load_flux(TINY, tmp_path / "m.pt")

    @pytest.mark.parametrize(("dtype", "value"), [(torch.float32, torch.nan), (torch.float16, 1e6)])
    def test_values_that_cannot_be(self, tmp_path, dtype, value):
        state = random_state()
        state["double_blocks.0.img_attn.qkv.bias"][3] = value
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"double_blocks\.0\.img_attn\.qkv\.bias"):
            load_flux(TINY, tmp_path / "m.pt", dtype=dtype)

    def test_file_of_another_configuration(self, tmp_path):
        """Heads and axes do not show in any shape here."""
        path = tmp_path / "m.safetensors"
        other = replace(TINY, axes_dim=(2, 8, 6))
        export_safetensors(path, random_state(), None, {"config": asdict(other)})
        with pytest.raises(ValueError, match=r"another configuration: axes_dim \[2, 8, 6\] \(model: \[4, 6, 6\]\)"):
            load_flux(TINY, path)
        export_safetensors(path, random_state(), None, {"config": "{"})
        with pytest.raises(ValueError, match=r"m\.safetensors: its config cannot be read"):
            load_flux(TINY, path)
        assert load_file(path).keys() == random_state().keys()
