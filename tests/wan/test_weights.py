"""Finding and loading Wan2.1's weights, in the official and in diffusers' layout."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import wan.weights
from seerkit.weights.checkpoints import StateMismatchError, export_safetensors
from wan import Wan, WanConfig, wan_config
from wan.config import REPOS
from wan.weights import DIFFUSERS, EMBEDDED, ENV, convert_diffusers, find_wan, load_wan, published

MANIFESTS = Path(__file__).parents[1] / "checkpoints"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(scope="module")
def random_state(t2v):
    """`random_state(config)`: values for every official name."""

    def make(config: WanConfig = t2v, seed: int = 0) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return {name: torch.randn(value.shape, generator=draw) for name, value in Wan(config).state_dict().items()}

    return make


def loaded_equals(model: Wan, state: dict) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def write_shards(folder: Path, state: dict[str, torch.Tensor]) -> list[Path]:
    """The official layout of the larger models: shards and the index that names them."""
    folder.mkdir(exist_ok=True)
    names = list(state)
    parts = [names[::3], names[1::3], names[2::3]]
    files = [f"diffusion_pytorch_model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    for file, part in zip(files, parts, strict=True):
        export_safetensors(folder / file, {name: state[name] for name in part})
    shard_of = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))
    (folder / "config.json").write_text("{}")
    return [folder / file for file in files]


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints(*ENV.values())


class TestLayout:
    @pytest.mark.parametrize("size", ["10GB", "50KB"])
    @pytest.mark.parametrize("kind", ["t2v", "i2v"])
    def test_saved_model_is_read_whole_and_in_shards(self, diffusers_model, t2v, i2v, tmp_path, kind, size):
        config, folder = {"t2v": t2v, "i2v": i2v}[kind], tmp_path / "Wan2.1" / "transformer"
        theirs = diffusers_model(config)
        theirs.save_pretrained(folder, max_shard_size=size)
        assert (len(list(folder.glob("*.safetensors"))) == 1) == (size == "10GB")
        wanted = convert_diffusers(theirs.state_dict())
        assert loaded_equals(load_wan(config, folder), wanted)
        if size == "50KB":
            assert loaded_equals(load_wan(config, folder / INDEX), wanted)

    def test_fewer_blocks_are_named_by_their_official_names(self, diffusers_model, t2v, tmp_path):
        export_safetensors(tmp_path / "m.safetensors", diffusers_model().state_dict())
        with pytest.raises(StateMismatchError, match=r"the weights do not fit Wan: 27 missing \(blocks\.3\."):
            load_wan(replace(t2v, num_layers=4), tmp_path / "m.safetensors")

    def test_image_branch_of_another_model_is_named(self, diffusers_model, t2v, i2v, tmp_path):
        export_safetensors(tmp_path / "m.safetensors", diffusers_model(i2v).state_dict())
        with pytest.raises(
            StateMismatchError, match=r"23 unexpected \(img_emb\.proj\.0\.bias.*1 of another shape \(patch_emb"
        ):
            load_wan(t2v, tmp_path / "m.safetensors")

    @pytest.mark.parametrize("name", ["wan2_1_t2v_1_3b", "wan2_1_i2v_14b"])
    def test_layout_covers_of_the_official_names_the_patch_embedding_alone(self, name):
        """Which both layouts call the same, so that a checkpoint is told by all others."""
        official = json.loads((MANIFESTS / f"{name}.json").read_text())["parameters"]
        covered = {key for key in official if DIFFUSERS.covers(key)}
        assert covered == {"patch_embedding.weight", "patch_embedding.bias"}


class TestLoad:
    def test_official_file(self, random_state, t2v, tmp_path):
        state = random_state()
        export_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", state)
        model = load_wan(t2v, tmp_path)
        assert loaded_equals(model, state)
        assert not model.training
        assert model.config == t2v

    def test_official_shards(self, random_state, i2v, tmp_path):
        state = random_state(i2v)
        shards = write_shards(tmp_path / "Wan", state)
        for place in (tmp_path / "Wan", tmp_path / "Wan" / INDEX):
            assert loaded_equals(load_wan(i2v, place), state)
        shards[1].unlink()
        with pytest.raises(FileNotFoundError, match=rf"is incomplete: {shards[1].name} missing beside it"):
            load_wan(i2v, tmp_path / "Wan")

    def test_own_training_folder(self, random_state, t2v, tmp_path):
        state = random_state()
        torch.save({"step": 5, "model": random_state(seed=1), "ema": state, "optimizer": {}}, tmp_path / "state.pt")
        assert loaded_equals(load_wan(t2v, tmp_path), state)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
    def test_dtype_is_that_of_the_blocks_and_others_keep_their_precision(self, random_state, t2v, tmp_path, dtype):
        """Modulation, head and affine norms of a float32 file are never rounded."""
        state = random_state()
        export_safetensors(tmp_path / "m.safetensors", state)
        model = load_wan(t2v, tmp_path / "m.safetensors", dtype=dtype)
        cast = Wan(t2v)
        cast.load_state_dict(state)
        wanted = cast.cast(dtype).state_dict()
        assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == {
            name: tensor.dtype for name, tensor in wanted.items()
        }
        assert loaded_equals(model, wanted)
        assert torch.equal(model.head.modulation.float(), state["head.modulation"])
        assert model.blocks[0].ffn[0].weight.dtype == dtype

    def test_half_file_is_widened(self, random_state, t2v, tmp_path):
        state = random_state()
        export_safetensors(tmp_path / "m.safetensors", state, torch.bfloat16, {"config": asdict(t2v)})
        model = load_wan(t2v, tmp_path / "m.safetensors", dtype=torch.bfloat16)
        assert model.head.modulation.dtype == torch.float32
        assert torch.equal(model.head.modulation, state["head.modulation"].bfloat16().float())

    def test_embedded_model_by_name(self, random_state, tmp_path, monkeypatch):
        assert EMBEDDED["wan-tiny"].parts[-3:] == ("TaylorSeer-Wan2.1", "weights", "wan-tiny.safetensors")
        config, path = wan_config("wan-debug"), tmp_path / "debug.safetensors"
        monkeypatch.setitem(wan.weights.EMBEDDED, "wan-debug", path)
        with pytest.raises(
            FileNotFoundError,
            match=r"debug\.safetensors is not there; .*`python TaylorSeer-Wan2\.1/train\.py --out FOLDER`",
        ):
            load_wan("wan-debug")
        state = random_state(config)
        export_safetensors(path, state, torch.float16, {"config": asdict(config)})
        assert loaded_equals(load_wan("wan-debug"), {name: tensor.half().float() for name, tensor in state.items()})

    @pytest.mark.parametrize("name", REPOS)
    def test_published_model_is_found(self, nowhere, monkeypatch, tmp_path, name):
        """In the folder for downloads, first the official files; else where the variable points."""
        official, theirs = published(name)
        places = [nowhere / REPOS[name].split("/")[1] / official.name, theirs.place]
        for place in reversed(places):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(json.dumps({"weight_map": {}}))
            assert find_wan(name) == place
        own = tmp_path / official.name
        own.write_text(json.dumps({"weight_map": {}}))
        for given in (tmp_path, own):
            monkeypatch.setenv(ENV[name], str(given))
            assert find_wan(name) == own


class TestErrors:
    def test_variables_have_names_that_a_shell_takes(self):
        assert ENV["wan-t2v-1.3B"] == "WAN_T2V_1_3B"
        assert ENV["wan-i2v-14B-480P"] == "WAN_I2V_14B_480P"

    @pytest.mark.parametrize(
        ("name", "command"),
        [
            ("wan-t2v-1.3B", "hf download Wan-AI/Wan2.1-T2V-1.3B diffusion_pytorch_model.safetensors --local-dir"),
            ("wan-t2v-14B", "hf download Wan-AI/Wan2.1-T2V-14B --include 'diffusion_pytorch_model*' --local-dir"),
            ("wan-i2v-14B-720P", "hf download Wan-AI/Wan2.1-I2V-14B-720P --include 'diffusion_pytorch_model*' --local"),
        ],
    )
    def test_published_model_that_cannot_be_had(self, nowhere, name, command):
        with pytest.raises(FileNotFoundError) as caught:
            load_wan(name)
        message, repo, official = str(caught.value), REPOS[name], published(name)[0]
        for part in (
            f"{official.name} ({repo}) or transformer/{INDEX} ({repo}-Diffusers) was not found",
            f"looked at {nowhere}/{repo.split('/')[1]}/{official.name}",
            command,
            f"`hf download {repo}-Diffusers --include 'transformer/diffusion_pytorch_model*' --local-dir {nowhere}/",
            "HF_HUB_OFFLINE is set",
        ):
            assert part in message
        assert "\n" not in message

    @pytest.mark.parametrize("name", REPOS)
    def test_variable_that_points_nowhere(self, monkeypatch, tmp_path, name):
        monkeypatch.setenv(ENV[name], str(tmp_path / "gone"))
        with pytest.raises(FileNotFoundError, match=rf"gone \(does not exist, named by {ENV[name]}\).*hf download"):
            load_wan(name)

    def test_model_without_published_weights(self, t2v):
        with pytest.raises(
            FileNotFoundError, match=r"no weights are published for this model.*wan-t2v-1\.3B.*wan-tiny"
        ):
            load_wan(t2v)

    def test_unknown_model_and_missing_file(self, t2v, tmp_path):
        with pytest.raises(ValueError, match="model 'Wan' is unknown"):
            load_wan("Wan")
        with pytest.raises(FileNotFoundError, match=r"gone\.safetensors \(does not exist\)"):
            load_wan(t2v, tmp_path / "gone.safetensors")

    def test_wrong_shapes_and_names(self, random_state, t2v, tmp_path):
        state = random_state()
        state["patch_embedding.weight"] = torch.zeros(48, 5, 2, 1, 3)
        del state["blocks.1.norm3.bias"]
        state["head.extra"] = torch.zeros(1)
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(StateMismatchError, match=r"m\.pt: the weights do not fit Wan") as caught:
            load_wan(t2v, tmp_path / "m.pt")
        assert caught.value.missing == ["blocks.1.norm3.bias"]
        assert caught.value.unexpected == ["head.extra"]
        assert caught.value.shapes == {"patch_embedding.weight": ((48, 4, 2, 1, 3), (48, 5, 2, 1, 3))}

    def test_another_model(self, t2v, tmp_path):
        torch.save({"net.0.weight": torch.zeros(2)}, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"unknown layout \(net\.0\.weight\); known are: official, diffusers"):
            load_wan(t2v, tmp_path / "m.pt")

    def test_truncated_file(self, random_state, t2v, tmp_path):
        path = tmp_path / "m.safetensors"
        export_safetensors(path, random_state())
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=r"m\.safetensors"):
            load_wan(t2v, path)

    @pytest.mark.parametrize(("dtype", "value"), [(torch.float32, torch.nan), (torch.float16, 1e6)])
    def test_values_that_cannot_be(self, random_state, t2v, tmp_path, dtype, value):
        state = random_state()
        state["blocks.0.self_attn.q.bias"][3] = value
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"m\.pt: .*blocks\.0\.self_attn\.q\.bias"):
            load_wan(t2v, tmp_path / "m.pt", dtype=dtype)

    def test_file_of_another_configuration(self, random_state, t2v, tmp_path):
        """The number of heads does not show in any shape."""
        path = tmp_path / "m.safetensors"
        export_safetensors(path, random_state(), None, {"config": asdict(replace(t2v, num_heads=4))})
        with pytest.raises(ValueError, match=r"another configuration: num_heads 4 \(model: 3\)"):
            load_wan(t2v, path)
