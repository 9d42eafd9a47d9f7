import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import dit.weights
from dit import CONFIGS, DiT, DiTConfig, dit_config
from dit.weights import DIFFUSERS, EMBEDDED, ENV, PUBLISHED, convert_diffusers, find_dit, load_dit
from seerkit.weights import checkpoints as weights
from seerkit.weights.checkpoints import StateMismatchError, check_state, export_safetensors, load_weights

MANIFESTS = Path(__file__).parents[1] / "checkpoints"
SIZES = (256, 512)
# Odd on purpose: heads, depth and channels that a transposed or swapped tensor would not fit.
TINY = DiTConfig(input_size=8, patch_size=2, in_channels=4, hidden_size=48, depth=3, num_heads=4, num_classes=7)


def manifest(name: str) -> dict:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def meta_state(parameters: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in parameters.items()}


def meta_model(config: DiTConfig) -> DiT:
    with torch.device("meta"):
        return DiT(config)


def random_state(config: DiTConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights that leave nothing at zero, with the fixed position embedding kept."""
    draw = torch.Generator().manual_seed(seed)
    state = DiT(config).state_dict()
    return {
        name: value if name == "pos_embed" else torch.randn(value.shape, generator=draw) * 0.1
        for name, value in state.items()
    }


def inputs(config: DiTConfig, batch: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, config.input_size, config.input_size, generator=draw)
    return x, torch.tensor([0, 481, 999]), torch.tensor([0, 5, config.num_classes])


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch) -> Path:
    """Empty caches and an empty checkpoints folder (returned); downloads fail at once."""
    monkeypatch.setattr(weights, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv(ENV, raising=False)
    return tmp_path / "checkpoints"


class TestManifests:
    @pytest.mark.parametrize("size", SIZES)
    def test_model_has_the_official_names_and_shapes(self, size):
        wanted = manifest(f"dit_xl_2_{size}")
        config = dit_config("DiT-XL/2", image_size=size)
        assert asdict(config) == wanted["config"]
        state = meta_model(config).state_dict()
        assert {name: list(tensor.shape) for name, tensor in state.items()} == wanted["parameters"]
        assert sum(tensor.numel() for tensor in state.values()) == wanted["total_parameters"]
        assert len(state) == wanted["tensors"] == 292

    @pytest.mark.parametrize("size", SIZES)
    def test_diffusers_names_become_the_official_ones(self, size):
        theirs = manifest(f"dit_xl_2_{size}.diffusers")
        state = convert_diffusers(meta_state(theirs["parameters"]), dit_config("DiT-XL/2", image_size=size))
        assert {name: list(t.shape) for name, t in state.items()} == manifest(f"dit_xl_2_{size}")["parameters"]

    @pytest.mark.parametrize("size", SIZES)
    def test_published_files_are_those_of_the_manifests(self, size):
        official, *theirs = PUBLISHED[dit_config("DiT-XL/2", image_size=size)]
        wanted = manifest(f"dit_xl_2_{size}")
        assert [official.name] == wanted["official_files"]
        assert official.url == wanted["official_repo"] + official.name
        assert {file.repo for file in theirs} == {manifest(f"dit_xl_2_{size}.diffusers")["official_repo"]}

    def test_sizes_do_not_mix(self):
        state = meta_state(manifest("dit_xl_2_512")["parameters"])
        with pytest.raises(StateMismatchError, match=r"pos_embed: model \(1, 256, 1152\), weights \(1, 1024, 1152\)"):
            check_state(meta_model(dit_config("DiT-XL/2", image_size=256)), state)


OFFICIAL_EPS, OFFICIAL_SHIFT = 1e-6, 0  # of norm3 and the timestep frequencies, where diffusers has 1e-5 and 1


def set_constants(model, eps: float, shift: int) -> None:
    for block in model.transformer_blocks:
        block.norm3.eps = eps
        block.norm1.emb.time_proj.downscale_freq_shift = shift


@pytest.fixture
def diffusers_model(need):
    """A tiny diffusers DiT with the constants of the official code."""
    model = (
        need("diffusers")
        .DiTTransformer2DModel(
            num_attention_heads=TINY.num_heads,
            attention_head_dim=TINY.hidden_size // TINY.num_heads,
            in_channels=TINY.in_channels,
            out_channels=TINY.out_channels,
            num_layers=TINY.depth,
            sample_size=TINY.input_size,
            patch_size=TINY.patch_size,
            num_embeds_ada_norm=TINY.num_classes,
        )
        .eval()
    )
    set_constants(model, OFFICIAL_EPS, OFFICIAL_SHIFT)
    fill(model)
    return model


def fill(model, scale: float = 1.0, stream: float = 1.0) -> None:
    """Random weights of a given scale everywhere, one set of embedders for all blocks.

    stream: of what the first MLP reads (patches, positions, attention output), for its norm's eps to show.
    """
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread * scale)
            if name.startswith("pos_embed.") or ".to_out." in name:
                parameter *= stream
        first, *others = (block.norm1.emb for block in model.transformer_blocks)
        for other in others:
            other.load_state_dict(first.state_dict())


def relative_difference(model, stream: float = 1.0) -> float:
    """max|ours - diffusers| / max|diffusers| of one forward pass with the same weights, positions times `stream`."""
    state = convert_diffusers(model.state_dict(), TINY)
    assert torch.allclose(state["pos_embed"], model.pos_embed.pos_embed, rtol=0, atol=1e-6)
    state["pos_embed"] = state["pos_embed"] * stream
    model.pos_embed.pos_embed *= stream
    ours = load_weights(meta_model(TINY), state).eval()
    x, t, y = inputs(TINY)
    with torch.no_grad():
        output, theirs = ours(x, t, y), model(x, timestep=t, class_labels=y).sample
    assert theirs.abs().max() > 0.1
    return ((output - theirs).abs().max() / theirs.abs().max()).item()


class TestDiffusers:
    @pytest.mark.parametrize(("scale", "stream"), [(1.0, 1.0), (0.1, 1.0), (1.0, 0.01)])
    def test_forward_agrees(self, diffusers_model, scale, stream):
        """Row orders, patch order and constants."""
        fill(diffusers_model, scale, stream)
        assert relative_difference(diffusers_model, stream) <= 2e-5

    @pytest.mark.parametrize(("eps", "shift", "stream"), [(1e-5, OFFICIAL_SHIFT, 0.01), (OFFICIAL_EPS, 1, 1.0)])
    def test_each_constant_shows(self, diffusers_model, eps, shift, stream):
        """The test above would see either constant of diffusers."""
        fill(diffusers_model, 1.0, stream)
        set_constants(diffusers_model, eps, shift)
        assert relative_difference(diffusers_model, stream) > 1e-3

    @pytest.mark.parametrize("safe", [True, False])
    def test_saved_model_is_read(self, diffusers_model, tmp_path, safe):
        diffusers_model.save_pretrained(tmp_path / "repository" / "transformer", safe_serialization=safe)
        model = load_dit(TINY, tmp_path / "repository" / "transformer")
        wanted = convert_diffusers(diffusers_model.state_dict(), TINY)
        assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in wanted)

    def test_sharded_model_is_read(self, diffusers_model, tmp_path):
        diffusers_model.save_pretrained(tmp_path, max_shard_size="200KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        model = load_dit(TINY, tmp_path)
        wanted = convert_diffusers(diffusers_model.state_dict(), TINY)
        assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in wanted)

    def test_copies_that_differ_are_refused(self, diffusers_model, tmp_path):
        state = dict(diffusers_model.state_dict())
        name = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
        state[name] = state[name] + 1e-3
        with pytest.raises(ValueError, match=rf"embedding_table\.weight and {name}, copies for y_embedder"):
            convert_diffusers(state, TINY)

    def test_fewer_blocks_are_named_by_their_official_names(self, diffusers_model, tmp_path):
        export_safetensors(tmp_path / "m.safetensors", diffusers_model.state_dict())
        with pytest.raises(
            StateMismatchError, match=r"m\.safetensors: the weights do not fit DiT: 10 missing \(blocks\.3\."
        ):
            load_dit(replace(TINY, depth=4), tmp_path / "m.safetensors")


class TestLoad:
    @pytest.fixture
    def state(self):
        return random_state(TINY)

    def loaded_equals(self, model: DiT, state: dict) -> bool:
        return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    def test_official_layout(self, state, tmp_path):
        torch.save(state, tmp_path / "m.pt")
        model = load_dit(TINY, tmp_path / "m.pt")
        assert self.loaded_equals(model, state)
        assert not model.training
        assert model.config == TINY
        x, t, y = inputs(TINY)
        assert torch.isfinite(model(x, t, y)).all()

    def test_official_training_file(self, state, tmp_path):
        """facebookresearch/DiT train.py: model, ema, opt and args, an argparse.Namespace."""
        other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
        saved = {
            "model": other,
            "ema": state,
            "opt": {"state": {}, "param_groups": []},
            "args": argparse.Namespace(epochs=1),
        }
        torch.save(saved, tmp_path / "0400000.pt")
        assert self.loaded_equals(load_dit(TINY, tmp_path / "0400000.pt"), state)

    def test_own_training_folder(self, state, tmp_path):
        saved = {"step": 5, "model": random_state(TINY, 1), "ema": state, "optimizer": {}, "settings": {"lr": "0.001"}}
        torch.save(saved, tmp_path / "state.pt")
        assert self.loaded_equals(load_dit(TINY, tmp_path), state)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_half_file_is_cast(self, state, tmp_path, dtype):
        export_safetensors(tmp_path / "m.safetensors", state, torch.float16, {"config": asdict(TINY)})
        model = load_dit(TINY, tmp_path / "m.safetensors", dtype=dtype, device="cpu")
        wanted = {name: tensor.half().to(dtype) for name, tensor in state.items()}
        assert self.loaded_equals(model, wanted)
        assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}

    def test_options_reach_the_model(self, state, tmp_path):
        torch.save(state, tmp_path / "m.pt")
        x, t, y = inputs(TINY)
        plain, written_out = (load_dit(TINY, tmp_path / "m.pt", attention=name) for name in ("sdpa", "reference"))
        assert torch.allclose(plain(x, t, y), written_out(x, t, y), atol=1e-4)
        with pytest.raises(ValueError, match="attention backend 'fast' is unknown"):
            load_dit(TINY, tmp_path / "m.pt", attention="fast")

    def test_embedded_model_by_name(self, tmp_path, monkeypatch):
        assert EMBEDDED[CONFIGS["fashion-mnist"]].parts[-3:] == (
            "TaylorSeer-DiT",
            "weights",
            "fashion-mnist.safetensors",
        )
        config, path = CONFIGS["debug"], tmp_path / "debug.safetensors"
        monkeypatch.setitem(dit.weights.EMBEDDED, config, path)
        with pytest.raises(
            FileNotFoundError, match=r"debug\.safetensors is not there; .*`python TaylorSeer-DiT/train\.py"
        ):
            load_dit("debug")
        state = random_state(config)
        export_safetensors(path, state, torch.float16, {"config": asdict(config)})
        model = load_dit("debug")
        assert self.loaded_equals(model, {name: tensor.half().float() for name, tensor in state.items()})

    def test_published_model_is_found(self, nowhere, monkeypatch, tmp_path):
        config = dit_config("DiT-XL/2", image_size=512)
        nowhere.mkdir()
        (nowhere / "DiT-XL-2-512x512.pt").touch()
        assert find_dit(config) == nowhere / "DiT-XL-2-512x512.pt"
        (tmp_path / "DiT-XL-2-512x512.pt").touch()
        monkeypatch.setenv(ENV, str(tmp_path))
        assert find_dit(config) == tmp_path / "DiT-XL-2-512x512.pt"


class TestErrors:
    @pytest.mark.parametrize("size", SIZES)
    def test_published_model_that_cannot_be_had(self, nowhere, size):
        with pytest.raises(FileNotFoundError) as caught:
            load_dit("DiT-XL/2", image_size=size)
        message = str(caught.value)
        for part in (
            f"DiT-XL-2-{size}x{size}.pt or transformer/diffusion_pytorch_model.safetensors (facebook/DiT-XL-2-{size})",
            f"curl -L --fail --create-dirs -o {nowhere}/DiT-XL-2-{size}x{size}.pt "
            f"https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-{size}x{size}.pt",
            f"hf download facebook/DiT-XL-2-{size} transformer/diffusion_pytorch_model.safetensors --local-dir",
            "HF_HUB_OFFLINE is set",
        ):
            assert part in message
        assert "\n" not in message

    def test_model_without_published_weights(self):
        with pytest.raises(
            FileNotFoundError, match=r"no weights are published for this model.*name a checkpoint of your own"
        ):
            load_dit("DiT-B/4")
        with pytest.raises(FileNotFoundError, match="256 and 512 pixels"):
            load_dit("DiT-XL/2", image_size=128)

    def test_unknown_model_and_idle_image_size(self):
        with pytest.raises(ValueError, match="model 'DiT-XL' is unknown"):
            load_dit("DiT-XL")
        with pytest.raises(ValueError, match="image_size belongs to a model's name"):
            load_dit(TINY, image_size=64)

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"gone\.pt \(does not exist\)"):
            load_dit(TINY, tmp_path / "gone.pt")

    def test_truncated_file(self, tmp_path):
        torch.save(random_state(TINY), tmp_path / "m.pt")
        (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:5000])
        with pytest.raises(ValueError, match=r"m\.pt is truncated, damaged"):
            load_dit(TINY, tmp_path / "m.pt")

    def test_wrong_shape_and_names(self, tmp_path):
        state = random_state(TINY)
        state["blocks.1.attn.qkv.weight"] = torch.zeros(48, 48)
        del state["blocks.2.mlp.fc1.bias"]
        state["blocks.3.mlp.fc1.bias"] = torch.zeros(1)
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(StateMismatchError) as caught:
            load_dit(TINY, tmp_path / "m.pt")
        assert str(caught.value) == (
            f"{tmp_path / 'm.pt'}: the weights do not fit DiT: 1 missing (blocks.2.mlp.fc1.bias), "
            "1 unexpected (blocks.3.mlp.fc1.bias), "
            "1 of another shape (blocks.1.attn.qkv.weight: model (144, 48), weights (48, 48))"
        )
        assert caught.value.shapes == {"blocks.1.attn.qkv.weight": ((144, 48), (48, 48))}

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_damaged_values(self, tmp_path, value):
        state = random_state(TINY)
        state["blocks.1.mlp.fc2.bias"][4] = value
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(
            ValueError, match=r"m\.pt: the checkpoint is damaged: NaN or infinity in 1 tensors \(blocks\.1"
        ):
            load_dit(TINY, tmp_path / "m.pt")

    def test_pickled_model(self, tmp_path):
        torch.save(DiT(TINY), tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"m\.pt is refused: it contains code \(dit\.model\.DiT\)"):
            load_dit(TINY, tmp_path / "m.pt")

    def test_unknown_layout(self, tmp_path):
        torch.save({f"layer{i}.weight": torch.zeros(2) for i in range(9)}, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"m\.pt: the weights are of an unknown layout .* official, diffusers"):
            load_dit(TINY, tmp_path / "m.pt")

    def test_another_configuration(self, tmp_path):
        """Heads do not show in any shape, so the file's own configuration decides."""
        path = tmp_path / "m.safetensors"
        export_safetensors(path, random_state(TINY), None, {"config": asdict(replace(TINY, num_heads=2))})
        with pytest.raises(ValueError, match=r"m\.safetensors is of another configuration: num_heads 2 \(model: 4\)"):
            load_dit(TINY, path)
        export_safetensors(path, random_state(TINY), None, {"config": asdict(replace(TINY, class_dropout_prob=0.2))})
        load_dit(TINY, path)
        export_safetensors(path, random_state(TINY), None, {"config": "{"})
        with pytest.raises(ValueError, match=r"m\.safetensors: its config cannot be read"):
            load_dit(TINY, path)

    def test_layout_covers_nothing_official(self):
        assert not any(DIFFUSERS.covers(name) for name in manifest("dit_xl_2_256")["parameters"])
