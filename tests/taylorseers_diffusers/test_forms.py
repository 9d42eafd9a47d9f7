"""The site form of every class that has one: its streams, features, gates and first modulation are those of the block."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import ALL, MAKERS, MORE, RARER, VARIANTS, WHOLE, Tiny, qwen_image_edit, tiny
from torch import Tensor, nn

from cache_dic import METHODS, UserError, make_cache
from cache_dic.engine import Recorder
from taylorseers_diffusers import calibrate, disable, enable, front
from taylorseers_diffusers.classes import listed
from taylorseers_diffusers.forms import form_of, proper
from taylorseers_diffusers.model import CachedTransformer, as_rows
from taylorseers_diffusers.passes import Passes, Walk
from taylorseers_diffusers.transformers import KNOWN, known, published_name

SETTINGS = {"interval": 3, "max_order": 1, "warmup_steps": 2}
STEPS = 6
OTHERS = [*MORE, *(pytest.param(name, marks=pytest.mark.slow) for name in RARER)]
"""Besides this repository's families."""
PIPELINES = [pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


def passes_of(model: Tiny):
    return model.transformer._diffusers_hook.get_hook("taylorseers_cache").passes


@pytest.mark.parametrize("name", [*OTHERS, *PIPELINES])
def test_folded_forecasts_are_those_of_each_site_and_full_steps_the_model(name: str) -> None:
    model = tiny(name)
    before = model(STEPS)
    enable(model.pipe, "uncached")
    assert torch.equal(model(STEPS), before)
    enable(model.pipe, "taylorseer", **SETTINGS)
    folded, report = model(STEPS), model.pipe.cache_report()
    assert (report.engine, report.form) == ("folded", "site")
    if name != "wan22":  # whose transformers have steps of their own
        assert all(record["full_steps"] == [0, 1, 4] for records in report.branches.values() for record in records)
    enable(model.pipe, "taylorseer", engine="layerwise", **SETTINGS)
    assert (folded - before).norm() > 1e-4 * before.norm(), "nothing was forecast"
    torch.testing.assert_close(folded, model(STEPS), rtol=1e-5, atol=2e-6 * float(before.abs().max()))


@pytest.mark.parametrize("name", [*MAKERS, *OTHERS])
def test_what_is_told_of_a_step_is_what_the_model_computes_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modulated tokens, the time's embedding, the grid, and gates, those foretold at the first step for the others, too."""
    model = tiny(name)
    enable(model.pipe, "uncached")
    passes, signals, grid = passes_of(model), known(model.transformer).signals, known(model.transformer).grid
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
        assert grid is None or math.prod(grid(model.transformer, self.arguments)) == modulated.shape[1]
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


@pytest.mark.parametrize("name", [*MAKERS, *OTHERS])
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


def halved(value: Any) -> Any:
    """Numbers in bfloat16, in lists, too."""
    if isinstance(value, list):
        return [halved(one) for one in value]
    return value.bfloat16() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MAKERS, *MORE, *RARER, *VARIANTS])
def test_the_site_form_holds_in_bfloat16(name: str) -> None:
    """What a block adds is its gates times its features but for rounding, and a forecast is of the stream's precision."""
    model = tiny(name)
    for part in ("transformer", "transformer_2", "vae", "controlnet"):
        if getattr(model.pipe, part, None) is not None:
            getattr(model.pipe, part).to(torch.bfloat16)
    model.inputs = {key: halved(value) for key, value in model.inputs.items()}
    before = model(STEPS)
    enable(model.pipe, "uncached")
    assert torch.equal(model(STEPS), before)
    enable(model.pipe, "taylorseer", **SETTINGS)
    moved = (model(STEPS) - before).float().norm()
    assert 0 < moved < 0.7 * before.float().norm()


@pytest.mark.parametrize("name", OTHERS)
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


def test_tokens_that_come_out_in_another_shape_are_refused_by_name() -> None:
    model = tiny("flux")
    enable(model.pipe, "fora", interval=2, engine="stack")
    model.transformer.single_transformer_blocks[-1].register_forward_hook(
        lambda *call: (call[2][0], call[2][1][:, :-1])
    )
    with pytest.raises(
        UserError, match=r"FluxTransformer2DModel have the shape \(1, 64, 32\) before its blocks and \(1, 63"
    ):
        model(2)


@pytest.mark.slow
def test_the_form_that_a_class_is_listed_with_is_that_of_its_models() -> None:
    by_name = {one.name: one for one in listed()}
    for name in ALL:
        passes = Passes(tiny(name).transformer)
        one = by_name[type(passes.transformer).__name__]
        assert {type(proper(block)).__name__ for block in passes.blocks} <= set(one.blocks), name
        assert passes.site_form == (one.form == "site" and name not in WHOLE), name
    assert by_name["LatteTransformer3DModel"].form == by_name["LTX2VideoTransformer3DModel"].form == "refused"
    assert by_name["WanAnimateTransformer3DModel"].form == "stack"
    assert by_name["T5FilmDecoder"].note == "no list of blocks"


@pytest.mark.slow
def test_the_table_of_classes_is_that_of_the_sources_and_the_tests(load_command: Any) -> None:
    tables = load_command("eval/tables.py")
    assert tables.stale_tables(tables.ROOT / "docs" / "diffusers.md", tables.ROOT / "results") == []


def test_streams_are_read_from_what_a_forward_gives() -> None:
    class Block(nn.Module):
        def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor, Tensor]:
            return encoder_hidden_states, hidden_states

    class Sound(nn.Module):
        def forward(self, hidden_states: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
            return hidden_states, audio

    form = form_of(Block())
    assert (form.x, form.other, form.x_out, form.other_out) == ("hidden_states", "encoder_hidden_states", 1, 0)
    assert form_of(Sound()).x_out is None, "sound would have to be forecast, too"


def ltx_of_given_frames() -> Tiny:
    """A video whose first tokens are given."""
    model = tiny("ltx")
    embed = model.transformer.time_embed.forward

    def by_token(timestep: Tensor, batch_size: int, hidden_dtype: torch.dtype) -> tuple[Tensor, ...]:
        each = timestep.view(batch_size, 1).expand(batch_size, 8).clone()
        each[:, :2] = 0
        return embed(each.flatten(), batch_size=batch_size, hidden_dtype=hidden_dtype)

    model.transformer.time_embed.forward = by_token
    return model


@pytest.mark.parametrize("make", [ltx_of_given_frames, qwen_image_edit])
def test_tokens_with_times_of_their_own_are_refused_by_name(make: Callable[[], Tiny]) -> None:
    model = make()
    before = model(STEPS)
    enable(model.pipe, "taylorseer", **SETTINGS)
    kind = type(model.transformer).__name__
    with pytest.raises(UserError, match=rf"each token of {kind} has a time of its own.*engine='stack'"):
        model(STEPS)
    enable(model.pipe, "taylorseer", engine="stack", **SETTINGS)
    assert 0 < (model(STEPS) - before).norm() < 0.3 * before.norm()


class Kept:
    """What went through a FLUX transformer in one call: inputs, features, gates, and what control nets added."""

    def __init__(self, transformer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        doubles, singles = transformer.transformer_blocks, transformer.single_transformer_blocks
        self.seen: dict[Any, Any] = {}

        def keep(key: Any, value: Any) -> None:
            self.seen.setdefault(key, value)

        hooks = [
            doubles[0].register_forward_pre_hook(lambda _, a, k: keep("x", k["hidden_states"]), with_kwargs=True),
            transformer.norm_out.register_forward_pre_hook(lambda _, a: keep("end", a)),
        ]
        for number, block in enumerate((*doubles, *singles)):
            for part, module in block.named_children():
                hooks.append(module.register_forward_hook(lambda _, a, out, key=(number, part): keep(key, out)))
        with torch.no_grad():
            self.output = transformer(*args, **kwargs)[0]
        for hook in hooks:
            hook.remove()
        self.doubles, self.singles, self.length = len(doubles), len(singles), self.seen["x"].shape[1]

    @property
    def features(self) -> list[Tensor]:
        double = [f for n in range(self.doubles) for f in (self.seen[n, "attn"][0], self.seen[n, "ff"])]
        places = range(self.doubles, self.doubles + self.singles)
        return [*double, *(self.seen[n, "proj_out"][:, -self.length :] for n in places)]

    @property
    def gates(self) -> list[Tensor]:
        double = [self.seen[n, "norm1"][part] for n in range(self.doubles) for part in (1, 4)]
        places = range(self.doubles, self.doubles + self.singles)
        return [gate.unsqueeze(1) for gate in (*double, *(self.seen[n, "norm"][1] for n in places))]


@pytest.mark.parametrize("engine", ["folded", "stack"])
def test_what_a_control_net_adds_is_that_of_the_present_step_in_the_site_form(engine: str) -> None:
    """In the stack form it is part of what is kept, but for what is added after the last block."""
    model = tiny("flux_controlnet")
    transformer = model.transformer
    enable(model.pipe, "fora", interval=2, warmup_steps=1, engine=engine)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    outputs: list[Tensor] = []
    hooks = [
        transformer.register_forward_pre_hook(lambda _, args, kwargs: calls.append((args, kwargs)), with_kwargs=True),
        transformer.register_forward_hook(lambda _, args, output: outputs.append(output[0])),
    ]
    model(4)
    for hook in hooks:
        hook.remove()
    disable(model.pipe)
    full, forecast = (Kept(transformer, *call) for call in calls[:2])
    torch.testing.assert_close(outputs[0], full.output, rtol=0, atol=0)

    def added(call: tuple[tuple[Any, ...], dict[str, Any]]) -> list[Tensor]:
        """After every block."""
        double, single = (call[1][f"controlnet_{name}"] for name in ("block_samples", "single_block_samples"))
        assert len(double) == len(single) == 1
        return [*double * full.doubles, *single * full.singles]

    before, now = added(calls[0]), added(calls[1])
    assert not torch.allclose(sum(before), sum(now), rtol=1e-3), "the net adds the same in both"
    if engine == "folded":
        moved = sum(now) + sum(g * f for g, f in zip(forecast.gates, full.features, strict=True))
    else:
        moved = full.seen["end"][0] - before[-1] - full.seen["x"] + now[-1]
    with torch.no_grad():
        x = transformer.norm_out(forecast.seen["x"] + moved, forecast.seen["end"][1])
        torch.testing.assert_close(outputs[1], transformer.proj_out(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WHOLE)
def test_models_whose_gates_are_not_known_are_kept_as_a_stack(name: str) -> None:
    model = tiny(name)
    before = model(STEPS)
    enable(model.pipe, "uncached")
    assert torch.equal(model(STEPS), before)
    enable(model.pipe, "fora", interval=2, warmup_steps=1)
    passes, stacks = passes_of(model), []
    run = passes.run

    def watched(forward: object, arguments: object, walk: Walk) -> object:
        output = run(forward, arguments, walk)
        if isinstance(walk.site, Recorder):
            stacks.append(walk.left.x - walk.entered.x)
        elif walk.last is not None:
            torch.testing.assert_close(walk.last(walk.entered.x, walk.entered.x), walk.entered.x + stacks[-1])
        return output

    passes.run = watched
    assert not torch.equal(model(STEPS), before)
    assert len(stacks) == STEPS // 2
    report = model.pipe.cache_report()
    assert (report.engine, report.form) == ("stack", "stack")
    with pytest.raises(UserError, match="needs the gates of all sites, which are not known"):
        enable(model.pipe, "taylorseer", engine="folded", **SETTINGS)


def test_tokens_of_several_images_have_no_grid() -> None:
    model = tiny("flux_kontext")
    enable(model.pipe, "seacache", threshold=0.1)
    with pytest.raises(UserError, match="128 tokens are those of several images"):
        model(3)


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
    names = {model.name for of_class in KNOWN.values() for model in of_class.models}
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
