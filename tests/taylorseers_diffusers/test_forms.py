"""The site form of every class that has one: its streams, features, gates and first modulation are those of the block."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipelines import MAKERS, MORE, Tiny, tiny
from torch import Tensor, nn

from cache_dic import METHODS, UserError, make_cache
from taylorseers_diffusers import calibrate, enable, front
from taylorseers_diffusers.forms import proper
from taylorseers_diffusers.model import CachedTransformer, as_rows
from taylorseers_diffusers.passes import Walk
from taylorseers_diffusers.transformers import KNOWN, published_name

SETTINGS = {"interval": 3, "max_order": 1, "warmup_steps": 2}
STEPS = 6


def passes_of(model: Tiny):
    return model.transformer._diffusers_hook.get_hook("taylorseers_cache").passes


@pytest.mark.parametrize("name", MORE)
def test_folded_forecasts_are_those_of_each_site_and_full_steps_the_model(name: str) -> None:
    model = tiny(name)
    before = model(STEPS)
    enable(model.pipe, "uncached")
    assert torch.equal(model(STEPS), before)
    enable(model.pipe, "taylorseer", **SETTINGS)
    folded, report = model(STEPS), model.pipe.cache_report()
    assert (report.engine, report.form) == ("folded", "site")
    assert all(record["full_steps"] == [0, 1, 4] for records in report.branches.values() for record in records)
    enable(model.pipe, "taylorseer", engine="layerwise", **SETTINGS)
    assert (folded - before).norm() > 1e-4 * before.norm(), "nothing was forecast"
    torch.testing.assert_close(folded, model(STEPS), rtol=1e-5, atol=2e-6 * float(before.abs().max()))


@pytest.mark.parametrize("name", [*MAKERS, *MORE])
def test_what_is_told_of_a_step_is_what_the_model_computes_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modulated tokens, the time's embedding, and gates, those foretold at the first step for the others, too."""
    model = tiny(name)
    enable(model.pipe, "uncached")
    passes, signals = passes_of(model), KNOWN[type(model.transformer).__name__].signals
    form = passes.forms[id(passes.blocks[0])]
    given: list[Tensor] = []
    embedded: list[Tensor] = []
    foretold: dict[int, list[Tensor]] = {}
    full_step, steps = CachedTransformer.full_step, []

    def seen(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        given.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    def compared(self: CachedTransformer, *args: object) -> Tensor:
        step = self.moment.step
        predicted = foretold.setdefault(id(self), [self.gates_at(later) for later in range(3)])
        gates: list[Tensor | None] = []
        self.walked(Walk(stop=0, skipped=lambda block, form, now: gates.extend(form.gates(block, *now))))
        torch.testing.assert_close(predicted[step], as_rows(gates, name), rtol=1e-4, atol=1e-5)
        modulated = self.modulated()
        time = None if signals is None else signals(self.passes.transformer, self.arguments)["time_embedding"]
        given.clear()
        embedded.clear()
        output = full_step(self, *args)
        torch.testing.assert_close(modulated, given[0])
        assert time is None or any(time.shape == one.shape and torch.allclose(time, one) for one in embedded)
        steps.append(step)
        return output

    monkeypatch.setattr(CachedTransformer, "full_step", compared)
    proper(passes.blocks[0]).get_submodule(form.partial_features[0].module).register_forward_pre_hook(
        seen, with_kwargs=True
    )
    for module in model.transformer.modules():
        if type(module).__name__ in ("TimestepEmbedding", "TimestepEmbedder"):
            module.register_forward_hook(lambda _, args, output: embedded.append(output))
    model(3)
    assert set(steps) == {0, 1, 2}


@pytest.mark.parametrize("name", [*MAKERS, *MORE])
def test_a_wrong_gate_is_found_by_what_the_block_added(name: str) -> None:
    model = tiny(name)
    enable(model.pipe, "taylorseer", **SETTINGS)
    passes = passes_of(model)
    model(3)
    last = id(passes.blocks[-1])
    right = passes.forms[last]

    def wrong(block: nn.Module, *conditions: Tensor) -> list[Tensor]:
        *others, gate = right.gates(block, *conditions)
        return [*others, 1.2 * gate]

    passes.forms[last] = replace(right, gates=wrong)
    with pytest.raises(UserError, match="added something else than its gates times its features"):
        model(3)


@pytest.mark.parametrize("name", MORE)
def test_methods_that_reuse_attention_leave_it_out(name: str) -> None:
    model, calls = tiny(name), []
    before = model(STEPS)
    enable(model.pipe, "pab")
    passes = passes_of(model)
    block = proper(passes.blocks[0])
    attention = block.get_submodule(passes.forms[id(passes.blocks[0])].partial_features[0].module)
    inner = next(child for child in attention.modules() if isinstance(child, nn.Linear))
    with inner.register_forward_hook(lambda *_: calls.append(1)):
        reused = model(STEPS)
    branches = len(model.pipe.cache_report().branches)
    assert 0 < len(calls) < STEPS * branches
    assert (reused - before).norm() > 1e-6 * before.norm()


# ----------------------------------------------------------------------------------------------------- of transformers


def named(kind: str, where: str = "", pipeline: str = "Pipeline", **config: object) -> str | None:
    transformer = type(kind, (), {"config": {**config, "_name_or_path": where}})()
    return published_name(transformer, type(pipeline, (), {})())


FLUX = {"num_layers": 19, "num_single_layers": 38, "in_channels": 64, "guidance_embeds": True}
WAN = {"num_layers": 40, "num_attention_heads": 40, "in_channels": 16}
COG = {"num_layers": 42, "num_attention_heads": 48, "in_channels": 16, "patch_size_t": None}


def test_published_models_are_known_by_their_configuration() -> None:
    flux, wan, cog = "FluxTransformer2DModel", "WanTransformer3DModel", "CogVideoXTransformer3DModel"
    assert named(flux, **FLUX) == "flux-dev"
    assert named(flux, **{**FLUX, "guidance_embeds": False}) == "flux-schnell"
    assert named(flux, pipeline="FluxKontextPipeline", **FLUX) == "flux-kontext-dev"
    assert named(flux, **{**FLUX, "in_channels": 384}) is None, "Fill has no published polynomial"
    assert named(flux, **{**FLUX, "num_layers": 2}) is None
    assert named(wan, **WAN) == "wan-t2v-14B"
    i2v = {**WAN, "in_channels": 36, "image_dim": 1280}
    assert named(wan, **i2v) is None, "two models have this configuration"
    assert named(wan, where="/models/Wan2.1-I2V-14B-480P-Diffusers", **i2v) == "wan-i2v-14B-480P"
    assert (
        named("HiDreamImageTransformer2DModel", "x/HiDream-I1-Dev", num_layers=16, num_single_layers=32)
        == "hidream-dev"
    )
    assert named(cog, **COG) == "cogvideox-5b"
    assert named(cog, **{**COG, "patch_size_t": 2}) == "cogvideox-1.5-5b"
    assert named(cog, **{**COG, "patch_size_t": 2, "in_channels": 32}) == "cogvideox-1.5-5b-i2v"
    assert named("UnheardTransformer") is None


def test_published_names_are_of_methods_that_have_settings_for_them() -> None:
    names = {model.name for known in KNOWN.values() for model in known.models}
    with_settings = {name for method in METHODS.values() for name in method.presets}
    assert names <= with_settings


def test_a_published_model_has_its_coefficients_and_its_table_without_being_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny("flux")
    with pytest.raises(UserError, match=r"teacache has no polynomial for this model.*calibrate\(pipe, call"):
        enable(model.pipe, "teacache")
    enable(model.pipe, "teacache", model="flux-dev")
    by_hand = model.pipe.cache_report().label
    monkeypatch.setattr(front, "published_name", lambda *_: "flux-dev")
    enable(model.pipe, "teacache")
    assert model.pipe.cache_report().label == by_hand == make_cache("teacache", model="flux-dev").label
    enable(model.pipe, "magcache")
    assert "flux_1_dev" in model.pipe.cache_report().label


@pytest.mark.parametrize(
    ("method", "given", "name"),
    [("teacache", "calibration", "qwen_image"), ("magcache", "table", "mochi"), ("teacache", "calibration", "z_image")],
)
def test_a_calibration_of_uncached_samples_is_one_for_the_method(
    method: str, given: str, name: str, tmp_path: Path
) -> None:
    model, file = tiny(name), tmp_path / "own.json"
    before = model(8)
    made = calibrate(model.pipe, lambda: model(8), lambda: model(8, seed=1), method=method, out=file)
    assert json.loads(file.read_text()) == made
    measured = made["calibration"]["measured"]
    assert len(measured) == 2
    assert made["calibration"]["made_with"]["num_steps"] == 8
    if method == "teacache":
        pairs = [pair for sample in measured for branch in sample for pair in zip(*branch.values(), strict=True)]
        assert len(pairs) == made["num_pairs"] == 2 * 7 * len(measured[0])
        fit = np.polyfit(*zip(*pairs, strict=True), 4)
        np.testing.assert_allclose(made["coefficients"], fit)
    else:
        assert len(made["ratio"]) == 8
    assert torch.equal(model(8), before), "the cache is off again"
    enable(model.pipe, method, **{given: str(file)}, threshold=0.5)
    model(8)


def test_a_calibration_puts_back_the_cache_and_names_what_is_missing() -> None:
    model = tiny("ltx")
    enable(model.pipe, "fora", interval=2)
    with pytest.raises(UserError, match="took no second step"):
        calibrate(model.pipe, lambda: model(1))
    assert model.pipe.cache_report().label.startswith("fora")
    with pytest.raises(UserError, match="needs what to measure"):
        calibrate(model.pipe)
    with pytest.raises(UserError, match="changes are too few for a polynomial"):
        calibrate(model.pipe, lambda: model(3))
