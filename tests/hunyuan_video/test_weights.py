"""Finding and loading HunyuanVideo's weights, in the official and in diffusers' layout."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import hunyuan_video.weights
from hunyuan_video import CONFIGS, HunyuanVideo, HunyuanVideoConfig
from hunyuan_video.weights import (
    DIFFUSERS,
    EMBEDDED,
    ENV,
    PUBLISHED,
    convert_diffusers,
    find_hunyuan_video,
    load_hunyuan_video,
)
from seerkit.weights.checkpoints import StateMismatchError, export_safetensors
from seerkit.weights.layouts import swap_halves

OFFICIAL = Path(__file__).parents[1] / "checkpoints" / "hunyuan_video_t2v.json"
VIDEO = CONFIGS["hunyuan-video"]
CHECKPOINT, INDEX = (file.name for file in PUBLISHED[VIDEO])


@pytest.fixture(scope="module")
def random_state(tiny):
    """`random_state(config)`: values for every official name."""

    def make(config: HunyuanVideoConfig = tiny, seed: int = 0) -> dict[str, torch.Tensor]:
        draw = torch.Generator().manual_seed(seed)
        state = HunyuanVideo(config).state_dict()
        return {name: torch.randn(value.shape, generator=draw) for name, value in state.items()}

    return make


def loaded_equals(model: HunyuanVideo, state: dict) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.fixture(autouse=True)
def nowhere(without_checkpoints) -> Path:
    return without_checkpoints(*ENV.values())


class TestLayout:
    @pytest.mark.parametrize("size", ["10GB", "100KB"])
    def test_saved_model_is_read_whole_and_in_shards(self, diffusers_model, tiny, tmp_path, size):
        theirs, folder = diffusers_model(), tmp_path / "HunyuanVideo" / "transformer"
        theirs.save_pretrained(folder, max_shard_size=size)
        assert len(list(folder.glob("*.safetensors"))) == 1 or (folder / Path(INDEX).name).is_file()
        wanted = convert_diffusers(theirs.state_dict())
        assert loaded_equals(load_hunyuan_video(tiny, folder), wanted)
        if size == "100KB":
            assert loaded_equals(load_hunyuan_video(tiny, folder / Path(INDEX).name), wanted)

    def test_rows_of_the_head_are_swapped(self, diffusers_model):
        state = diffusers_model().state_dict()
        scale, shift = state["norm_out.linear.weight"].chunk(2)
        ours = convert_diffusers(state)["final_layer.adaLN_modulation.1.weight"]
        assert torch.equal(ours, torch.cat([shift, scale]))
        assert torch.equal(swap_halves(ours), state["norm_out.linear.weight"])

    def test_fewer_blocks_are_named_by_their_official_names(self, diffusers_model, tiny, tmp_path):
        export_safetensors(tmp_path / "m.safetensors", diffusers_model().state_dict())
        deeper = replace(tiny, mm_double_blocks_depth=3)
        with pytest.raises(StateMismatchError, match=r"do not fit HunyuanVideo: 24 missing \(double_blocks\.2\."):
            load_hunyuan_video(deeper, tmp_path / "m.safetensors")

    def test_part_that_is_missing_is_named(self, diffusers_model):
        state = dict(diffusers_model().state_dict())
        del state["context_embedder.token_refiner.refiner_blocks.1.attn.to_k.bias"]
        with pytest.raises(
            ValueError, match=r"parts of txt_in\.individual_token_refiner\.blocks\.1\.self_attn_qkv\.bias are missing"
        ):
            convert_diffusers(state)

    def test_layout_covers_nothing_official(self):
        official = json.loads(OFFICIAL.read_text())["parameters"]
        assert not any(DIFFUSERS.covers(name) for name in official)


class TestLoad:
    def test_published_file_keeps_the_weights_under_module(self, random_state, tiny, tmp_path):
        state, path = random_state(), tmp_path / Path(CHECKPOINT).name
        torch.save({"module": state}, path)
        model = load_hunyuan_video(tiny, path)
        assert loaded_equals(model, state)
        assert not model.training
        assert model.config == tiny

    def test_code_in_the_published_file_is_not_run(self, tiny, tmp_path):
        class Touch:
            def __reduce__(self):
                return Path.touch, (tmp_path / "ran",)

        torch.save({"module": {"img_in.proj.bias": Touch()}}, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"m\.pt is refused: it contains code"):
            load_hunyuan_video(tiny, tmp_path / "m.pt")
        assert not (tmp_path / "ran").exists()

    def test_own_training_folder(self, random_state, tiny, tmp_path):
        state = random_state()
        torch.save({"step": 5, "model": random_state(seed=1), "ema": state, "optimizer": {}}, tmp_path / "state.pt")
        assert loaded_equals(load_hunyuan_video(tiny, tmp_path), state)

    def test_half_file_is_cast(self, random_state, tiny, tmp_path):
        state = random_state()
        export_safetensors(tmp_path / "m.safetensors", state, torch.bfloat16, {"config": asdict(tiny)})
        model = load_hunyuan_video(tiny, tmp_path / "m.safetensors", dtype=torch.float32)
        assert loaded_equals(model, {name: tensor.bfloat16().float() for name, tensor in state.items()})

    def test_embedded_model_by_name(self, random_state, tmp_path, monkeypatch):
        place = EMBEDDED[CONFIGS["hunyuan-tiny"]].parts[-3:]
        assert place == ("TaylorSeer-HunyuanVideo", "weights", "hunyuan-tiny.safetensors")
        config, path = CONFIGS["hunyuan-debug"], tmp_path / "debug.safetensors"
        monkeypatch.setitem(hunyuan_video.weights.EMBEDDED, config, path)
        with pytest.raises(
            FileNotFoundError,
            match=r"debug\.safetensors is not there; .*`python TaylorSeer-HunyuanVideo/train\.py --out FOLDER`",
        ):
            load_hunyuan_video("hunyuan-debug")
        state = random_state(config)
        export_safetensors(path, state, torch.float16, {"config": asdict(config)})
        wanted = {name: tensor.half().float() for name, tensor in state.items()}
        assert loaded_equals(load_hunyuan_video("hunyuan-debug"), wanted)

    def test_published_model_is_found(self, nowhere, monkeypatch, tmp_path):
        """In the folder for downloads, first the official file; else where the variable points."""
        places = [nowhere / "HunyuanVideo" / name for name in (CHECKPOINT, INDEX)]
        for place in places:
            place.parent.mkdir(parents=True)
        places[1].write_text(json.dumps({"weight_map": {}}))
        assert find_hunyuan_video(VIDEO) == places[1]
        places[0].touch()
        assert find_hunyuan_video(VIDEO) == places[0]
        own = tmp_path / Path(CHECKPOINT).name
        own.touch()
        for given in (tmp_path, own):
            monkeypatch.setenv("HUNYUAN_VIDEO", str(given))
            assert find_hunyuan_video(VIDEO) == own


class TestErrors:
    def test_published_model_that_cannot_be_had(self, nowhere):
        with pytest.raises(FileNotFoundError) as caught:
            load_hunyuan_video("hunyuan-video")
        for part in (
            f"{CHECKPOINT} (tencent/HunyuanVideo) or {INDEX} (hunyuanvideo-community/HunyuanVideo)",
            f"looked at {nowhere}/HunyuanVideo/{CHECKPOINT}",
            f"`hf download tencent/HunyuanVideo {CHECKPOINT} --local-dir {nowhere}/HunyuanVideo`",
            f"--include 'transformer/diffusion_pytorch_model*' --local-dir {nowhere}/HunyuanVideo`",
            "HF_HUB_OFFLINE is set",
        ):
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_variable_that_points_nowhere(self, monkeypatch, tmp_path):
        monkeypatch.setenv("HUNYUAN_VIDEO", str(tmp_path / "gone"))
        with pytest.raises(FileNotFoundError, match=r"gone \(does not exist, named by HUNYUAN_VIDEO\)"):
            load_hunyuan_video("hunyuan-video")

    def test_model_without_published_weights(self, tiny):
        with pytest.raises(FileNotFoundError, match=r"no weights are published for this model, only for hunyuan-video"):
            load_hunyuan_video(tiny)

    def test_unknown_model_and_missing_file(self, tiny, tmp_path):
        with pytest.raises(ValueError, match="model 'HYVideo-T/2' is unknown"):
            load_hunyuan_video("HYVideo-T/2")
        with pytest.raises(FileNotFoundError, match=r"gone\.safetensors \(does not exist\)"):
            load_hunyuan_video(tiny, tmp_path / "gone.safetensors")

    def test_wrong_shapes_and_names(self, random_state, tiny, tmp_path):
        state = random_state()
        state["img_in.proj.weight"] = torch.zeros(48, 4, 2, 3, 4)
        del state["txt_in.input_embedder.bias"]
        state["img_out.bias"] = torch.zeros(1)
        torch.save(state, tmp_path / "m.pt")
        with pytest.raises(StateMismatchError, match=r"m\.pt: the weights do not fit HunyuanVideo") as caught:
            load_hunyuan_video(tiny, tmp_path / "m.pt")
        assert caught.value.missing == ["txt_in.input_embedder.bias"]
        assert caught.value.unexpected == ["img_out.bias"]
        assert caught.value.shapes == {"img_in.proj.weight": ((48, 4, 2, 3, 3), (48, 4, 2, 3, 4))}

    def test_another_model(self, tiny, tmp_path):
        torch.save({"net.0.weight": torch.zeros(2)}, tmp_path / "m.pt")
        with pytest.raises(ValueError, match=r"unknown layout \(net\.0\.weight\); known are: official, diffusers"):
            load_hunyuan_video(tiny, tmp_path / "m.pt")

    def test_file_of_another_configuration(self, random_state, tiny, tmp_path):
        """Axes do not show in any shape."""
        other = replace(tiny, rope_dim_list=(2, 8, 6))
        export_safetensors(tmp_path / "m.safetensors", random_state(), None, {"config": asdict(other)})
        with pytest.raises(
            ValueError, match=r"another configuration: rope_dim_list \[2, 8, 6\] \(model: \[4, 6, 6\]\)"
        ):
            load_hunyuan_video(tiny, tmp_path / "m.safetensors")
