"""Finding and loading HiDream-I1's weights, whose experts are stacked on the way."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import hidream.weights
from hidream import CONFIGS, HiDream, HiDreamConfig
from hidream.config import REPOS
from hidream.weights import EMBEDDED, ENV, PUBLISHED, find_hidream, load_hidream
from seerkit.weights.checkpoints import StateMismatchError, export_safetensors

NAMES = ("hidream-full", "hidream-dev", "hidream-fast")
INDEX = PUBLISHED["hidream-full"].name
EXPERT = "double_stream_blocks.1.block.ff_i.experts.3.w2.weight"


@pytest.fixture
def state(tiny) -> dict[str, Tensor]:
    """Values for every official name of a tiny model."""
    return random_state(tiny)


def random_state(config: HiDreamConfig) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=draw) for name, value in HiDream(config).state_dict().items()}


def loaded_equals(model: HiDream, state: dict[str, Tensor]) -> bool:
    ours = model.state_dict()
    return ours.keys() == state.keys() and all(torch.equal(ours[name], tensor) for name, tensor in state.items())


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints(*ENV.values())


class TestLoad:
    @pytest.mark.parametrize("size", ["10GB", "200KB"])
    def test_what_diffusers_saves_is_read_whole_and_in_shards(self, diffusers_model, tiny, tmp_path, size):
        """From its own folder and from that of a whole repository."""
        theirs, folder = diffusers_model(), tmp_path / "HiDream-I1" / "transformer"
        theirs.save_pretrained(folder, max_shard_size=size)
        index = folder / Path(INDEX).name
        assert index.is_file() == (size == "200KB")
        assert loaded_equals(load_hidream(tiny, folder), theirs.state_dict())
        if index.is_file():
            experts = {
                shard for name, shard in json.loads(index.read_text())["weight_map"].items() if "experts" in name
            }
            assert len(experts) > 1, "those of a layer are stacked from several files"
            assert find_hidream("hidream-dev", folder.parent) == index
            assert loaded_equals(load_hidream(tiny, index), theirs.state_dict())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
    def test_half_file_is_cast(self, state, tiny, tmp_path, dtype):
        export_safetensors(tmp_path / "m.safetensors", state, torch.bfloat16, {"config": asdict(tiny)})
        model = load_hidream(tiny, tmp_path / "m.safetensors", dtype=dtype)
        assert loaded_equals(model, {name: tensor.bfloat16().to(dtype) for name, tensor in state.items()})
        assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}
        assert not model.training

    def test_written_again_the_file_is_the_same(self, state, tiny, tmp_path):
        """Through the stacked experts and back."""
        first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
        export_safetensors(first, state, torch.bfloat16)
        export_safetensors(second, load_hidream(tiny, first, dtype=torch.bfloat16).state_dict(), torch.bfloat16)
        assert first.read_bytes() == second.read_bytes()

    def test_weights_but_for_experts_stay_mapped(self, state, tiny, tmp_path):
        path = tmp_path / "m.safetensors"
        export_safetensors(path, state, torch.bfloat16)
        model = load_hidream(tiny, path, dtype=torch.bfloat16)
        places = {name: parameter.data_ptr() for name, parameter in model.named_parameters() if "experts.w" not in name}
        assert len(places) < len(list(model.parameters()))
        assert max(places.values()) - min(places.values()) < path.stat().st_size

    def test_experts_are_stacked_on_the_host(self, state, tiny, tmp_path, monkeypatch):
        """The meta device stands for an accelerator: what is loaded on the host goes there as it is used."""
        export_safetensors(tmp_path / "m.safetensors", state)
        stacked, stack = [], torch.stack
        monkeypatch.setattr(
            torch, "stack", lambda parts, *rest: stacked.append(parts[0].device.type) or stack(parts, *rest)
        )
        model = load_hidream(tiny, tmp_path / "m.safetensors", device="meta")
        assert stacked.count("cpu") >= 3 * tiny.num_blocks
        assert set(stacked) == {"cpu"}
        assert all(parameter.is_meta for parameter in model.parameters())

    def test_own_training_folder(self, state, tiny, tmp_path):
        other = {name: tensor + 1 for name, tensor in state.items()}
        torch.save({"step": 5, "model": other, "ema": state, "optimizer": {}}, tmp_path / "state.pt")
        assert loaded_equals(load_hidream(tiny, tmp_path), state)

    def test_embedded_model_by_name(self, tmp_path, monkeypatch):
        assert EMBEDDED["hidream-tiny"].parts[-3:] == ("TaylorSeer-HiDream", "weights", "hidream-tiny.safetensors")
        path = tmp_path / "debug.safetensors"
        monkeypatch.setitem(hidream.weights.EMBEDDED, "hidream-debug", path)
        with pytest.raises(
            FileNotFoundError,
            match=r"debug\.safetensors is not there; .*`python TaylorSeer-HiDream/train\.py --out FOLDER`",
        ):
            load_hidream("hidream-debug")
        state = random_state(CONFIGS["hidream-debug"])
        export_safetensors(path, state, torch.float16, {"config": asdict(CONFIGS["hidream-debug"])})
        assert loaded_equals(
            load_hidream("hidream-debug"), {name: tensor.half().float() for name, tensor in state.items()}
        )

    @pytest.mark.parametrize("name", NAMES)
    def test_published_model_is_found(self, nowhere, monkeypatch, tmp_path, name):
        """In the folder for downloads, a folder a model although they have one configuration; else by the variable."""
        places = {}
        for other in NAMES:
            places[other] = nowhere / REPOS[other].split("/")[1] / INDEX
            places[other].parent.mkdir(parents=True)
            places[other].write_text(json.dumps({"weight_map": {}}))
        assert find_hidream(name) == places[name]
        own = tmp_path / "own" / INDEX
        own.parent.mkdir(parents=True)
        own.write_text(json.dumps({"weight_map": {}}))
        for given in (tmp_path / "own", own.parent, own):
            monkeypatch.setenv(name.upper().replace("-", "_"), str(given))
            assert find_hidream(name) == own


class TestErrors:
    @pytest.mark.parametrize("name", NAMES)
    def test_published_model_that_cannot_be_had(self, nowhere, name):
        with pytest.raises(FileNotFoundError) as caught:
            load_hidream(name)
        message, repo = str(caught.value), f"HiDream-ai/HiDream-I1-{name.removeprefix('hidream-').capitalize()}"
        for part in (
            f"{INDEX} ({repo}) was not found; looked at {nowhere}/{repo.split('/')[1]}/{INDEX}",
            f"`hf download {repo} --include 'transformer/diffusion_pytorch_model*' --local-dir {nowhere}/HiDream-I1-",
            "HF_HUB_OFFLINE is set",
        ):
            assert part in message
        assert "\n" not in message

    def test_variable_that_points_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HIDREAM_FULL", str(tmp_path / "gone"))
        with pytest.raises(FileNotFoundError, match=r"gone \(does not exist, named by HIDREAM_FULL\).*hf download"):
            load_hidream("hidream-full")

    def test_model_without_published_weights(self, tiny):
        known = "hidream-full, hidream-dev, hidream-fast, hidream-tiny"
        for model in (tiny, "hidream-debug"):
            with pytest.raises(FileNotFoundError, match=rf"no weights are published for this model, only for {known}"):
                load_hidream(model)

    def test_unknown_model_and_missing_file(self, tiny, tmp_path):
        with pytest.raises(ValueError, match="model 'HiDream' is unknown"):
            load_hidream("HiDream")
        with pytest.raises(FileNotFoundError, match=r"gone\.safetensors \(does not exist\)"):
            load_hidream(tiny, tmp_path / "gone.safetensors")

    def test_experts_are_named_as_in_the_file(self, state, tiny, tmp_path):
        """One that is missing, one of another shape, one too many."""
        gone, wrong, more = (EXPERT.replace("experts.3", f"experts.{number}") for number in (3, 1, 4))
        del state[gone]
        state[wrong] = state[wrong].T.contiguous()
        state[more] = torch.zeros(2)
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(StateMismatchError, match=r"m\.pt: the weights do not fit HiDream") as caught:
            load_hidream(tiny, tmp_path / "m.pt")
        assert caught.value.missing == [gone]
        assert caught.value.unexpected == [more]
        assert list(caught.value.shapes) == [wrong]

    def test_fewer_experts_than_in_the_file(self, state, tiny, tmp_path):
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(StateMismatchError) as caught:
            load_hidream(replace(tiny, num_routed_experts=3), tmp_path / "m.pt")
        assert caught.value.missing == []
        assert EXPERT in caught.value.unexpected

    def test_shard_that_is_missing_is_named(self, diffusers_model, tiny, tmp_path):
        diffusers_model().save_pretrained(tmp_path, max_shard_size="200KB")
        lost = sorted(tmp_path.glob("*.safetensors"))[1]
        lost.unlink()
        with pytest.raises(FileNotFoundError, match=rf"is incomplete: {lost.name}.* missing beside it"):
            load_hidream(tiny, tmp_path)

    def test_another_model(self, tiny, tmp_path):
        torch.save({"net.0.weight": torch.zeros(2)}, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"unknown layout \(net\.0\.weight\); known are: official"):
            load_hidream(tiny, tmp_path / "m.pt")

    @pytest.mark.parametrize(("dtype", "value"), [(torch.float32, torch.nan), (torch.float16, 1e6)])
    def test_values_that_cannot_be(self, state, tiny, tmp_path, dtype, value):
        state[EXPERT][0, 3] = value
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=EXPERT.replace(".", r"\.")):
            load_hidream(tiny, tmp_path / "m.pt", dtype=dtype)

    def test_file_of_another_configuration(self, state, tiny, tmp_path):
        """Which hidden state a block gets shows in no shape."""
        other = replace(tiny, llama_layers=(0, 3, 1, 4, 2))
        export_safetensors(tmp_path / "m.safetensors", state, None, {"config": asdict(other)})
        with pytest.raises(ValueError, match=r"another configuration: llama_layers \[0, 3, 1, 4, 2\] \(model: \["):
            load_hidream(tiny, tmp_path / "m.safetensors")
