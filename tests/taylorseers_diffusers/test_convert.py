"""Our backbones as diffusers' classes and back: the same configuration, names, shapes, bits and answers."""

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from random_backbones import CONFIGS, random_backbone
from torch import nn

from cache_dic import UserError
from seerkit.weights.layouts import Layout, Rule, swap_halves
from taylorseers_diffusers.convert import counterparts, from_diffusers, to_diffusers

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
UNTOLD = {"wan": {"text_len": 8}}


@pytest.mark.parametrize("family", CONFIGS)
def test_there_and_back_is_the_same_to_the_bit(family: str) -> None:
    model = random_backbone(family)
    transformer = to_diffusers(model)
    assert type(transformer).__name__ == counterparts()[family].kind
    back = from_diffusers(transformer, **UNTOLD.get(family, {}))
    assert (type(back), back.config) == (type(model), model.config)
    state, other = model.state_dict(), back.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(other[name], value) for name, value in state.items())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in transformer.parameters()}
    assert not shared, "a change of one must not be one of the other"


@pytest.mark.parametrize("family", CONFIGS)
def test_a_saved_transformer_is_read_back(family: str, tmp_path: Path) -> None:
    model = random_backbone(family)
    to_diffusers(model).save_pretrained(tmp_path)
    loaded = getattr(diffusers, counterparts()[family].kind).from_pretrained(tmp_path)
    back = from_diffusers(loaded, **UNTOLD.get(family, {}))
    assert back.config == model.config
    for name, value in back.state_dict().items():
        if name != "pos_embed":  # which is computed anew
            assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("family", ["flux", "wan", "hidream"])
def test_half_precision_is_kept(family: str) -> None:
    model = random_backbone(family)
    model = model.cast(torch.bfloat16) if family == "wan" else model.to(torch.bfloat16)
    for value in model.parameters():  # as a checkpoint in bf16 has them, where a model keeps more than that
        value.data = value.data.bfloat16().to(value.dtype)
    transformer = to_diffusers(model)
    assert transformer.dtype == torch.bfloat16
    if family == "wan":  # our head stays in float32, theirs does not
        assert transformer.proj_out.weight.dtype == torch.bfloat16
        assert transformer.scale_shift_table.dtype == torch.float32
    back = from_diffusers(transformer, **UNTOLD.get(family, {}))
    for name, value in model.state_dict().items():
        assert back.state_dict()[name].dtype == value.dtype
        assert torch.equal(back.state_dict()[name], value), name


MANIFESTS = {
    "dit_xl_2_256": "dit",
    "dit_xl_2_512": "dit",
    "flux_dev": "flux",
    "flux_schnell": "flux",
    "hidream_i1": "hidream",
    "hunyuan_video_t2v": "hunyuan_video",
    "wan2_1_t2v_1_3b": "wan",
    "wan2_1_t2v_14b": "wan",
    "wan2_1_i2v_14b": "wan",
}


FEW = {"flux_dev", "wan2_1_t2v_1_3b"}


@pytest.mark.parametrize("name", [pytest.param(m, marks=[] if m in FEW else pytest.mark.slow) for m in MANIFESTS])
def test_published_models_have_the_names_shapes_and_settings_of_their_manifests(name: str) -> None:
    """In both directions: of weights from the official layout to diffusers', of configurations from theirs to ours."""
    theirs = json.loads((CHECKPOINTS / f"{name}.diffusers.json").read_text())
    ours = json.loads((CHECKPOINTS / f"{name}.json").read_text())
    counterpart = counterparts()[MANIFESTS[name]]
    assert counterpart.kind == theirs["class"]
    config = counterpart.read(theirs["config"])
    assert config == counterpart.config(**ours["config"])
    with torch.device("meta"):
        model, transformer = counterpart.model(config), counterpart.make(config)
    assert {key: list(value.shape) for key, value in transformer.state_dict().items()} == theirs["parameters"]
    state = {key: value for key, value in model.state_dict().items() if key not in (counterpart.buffers or {})}
    if counterpart.layout is not None:
        state = counterpart.layout.revert(state, transformer.state_dict())
    assert {key: list(value.shape) for key, value in state.items()} == theirs["parameters"]


class TestRevert:
    layout = Layout(
        "theirs",
        (
            Rule("time.{p}", "layers.{i}.time.{p}"),
            Rule("blocks.{i}.linear1.{p}", "layers.{i}.to_q.{p}", "layers.{i}.mlp.{p}"),
            Rule("head.{p}", "norm_out.{p}", transform=swap_halves),
        ),
    )
    theirs = {  # noqa: RUF012
        "layers.0.time.w": torch.tensor([7.0]),
        "layers.1.time.w": torch.tensor([7.0]),
        **{f"layers.{i}.to_q.w": torch.tensor([1.0, 2.0]) + i for i in (0, 1)},
        **{f"layers.{i}.mlp.w": torch.tensor([3.0, 4.0, 5.0]) + i for i in (0, 1)},
        "norm_out.w": torch.tensor([8.0, 9.0]),
    }

    def test_undoes_concatenations_of_unlike_parts_copies_and_swapped_halves(self) -> None:
        ours = self.layout.convert(self.theirs)
        assert ours["blocks.1.linear1.w"].tolist() == [2, 3, 4, 5, 6]
        back = self.layout.revert(ours, self.theirs)
        assert back.keys() == self.theirs.keys()
        assert all(torch.equal(back[name], value) for name, value in self.theirs.items())

    def test_parts_that_do_not_fill_ours_are_refused(self) -> None:
        ours = self.layout.convert(self.theirs)
        wanted = {name: value for name, value in self.theirs.items() if name != "layers.1.mlp.w"}
        with pytest.raises(
            UserError, match=r"layers\.1\.to_q\.w is a part of blocks\.1\.linear1\.w, which is missing or"
        ):
            self.layout.revert(ours, wanted)
        with pytest.raises(UserError, match=r"1 names are not of the theirs layout \(lora\.w\)"):
            self.layout.revert(ours, {"lora.w": torch.zeros(1)})


class TestErrors:
    def test_what_has_no_counterpart(self) -> None:
        with pytest.raises(UserError, match="Linear is no backbone of this repository; those are dit, flux, hidream"):
            to_diffusers(nn.Linear(1, 1))
        with pytest.raises(
            UserError, match=r"Linear has no counterpart among .*; those are of DiTTransformer2DModel, Flux"
        ):
            from_diffusers(nn.Linear(1, 1))

    def test_fields_that_nobody_leaves_unsaid(self) -> None:
        flux, wan = (to_diffusers(random_backbone(name)) for name in ("flux", "wan"))
        with pytest.raises(
            UserError, match="nope cannot be said of FluxTransformer2DModel, whose configuration has the rest"
        ):
            from_diffusers(flux, nope=3)
        with pytest.raises(UserError, match=r"depth cannot be said of WanTransformer3DModel, .*; that is text_len"):
            from_diffusers(wan, depth=3)

    def test_settings_of_ours_that_diffusers_lacks(self) -> None:
        model = random_backbone("flux", mlp_ratio=2.0)
        with pytest.raises(
            UserError, match=r"FluxTransformer2DModel has no setting for mlp_ratio = 2\.0; it is 4\.0 there"
        ):
            to_diffusers(model)

    def test_settings_of_diffusers_that_ours_lacks(self) -> None:
        config = counterparts()["hunyuan_video"].arguments(CONFIGS["hunyuan_video"])
        transformer = diffusers.HunyuanVideoTransformer3DModel(**config | {"image_condition_type": "latent_concat"})
        with pytest.raises(UserError, match="with image_condition_type = 'latent_concat' has no counterpart here"):
            from_diffusers(transformer)

    def test_positions_of_its_own(self) -> None:
        model = random_backbone("dit")
        model.pos_embed.data += 0.1
        with pytest.raises(
            UserError, match=r"pos_embed\.pos_embed of DiTTransformer2DModel is computed, and the model's"
        ):
            to_diffusers(model)

    def test_an_adapter_is_named(self) -> None:
        peft = pytest.importorskip("peft")
        transformer = to_diffusers(random_backbone("flux"))
        transformer.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"]))
        with pytest.raises(UserError, match=r"names are not of the diffusers layout \(.*(lora|base_layer)"):
            from_diffusers(transformer)


def test_classes_without_a_null_class_are_refused() -> None:
    """diffusers' table of classes always has a row for guidance."""
    model = random_backbone("dit")
    other = type(model)(replace(model.config, class_dropout_prob=0.0))
    other.load_state_dict(model.state_dict() | {"y_embedder.embedding_table.weight": torch.zeros(1000, 32)})
    with pytest.raises((UserError, RuntimeError), match="embedding_table"):
        to_diffusers(other)
