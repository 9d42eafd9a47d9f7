"""The ComfyUI node on stand-ins of ComfyUI's patcher, sampler and transformers; ComfyUI itself is not run here."""

import importlib.util
import inspect
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_stand_ins import (
    MODELS,
    TEXT,
    Call,
    InterruptProcessingException,
    ModelPatcher,
    Sampler,
    VaceWanModel,
    patcher,
    shifted,
)
from torch import Tensor, nn

from cache_dic import UserError, make_cache

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui" / "taylorseers_comfyui"
FIXED = {"interval": 3, "order": 1, "warmup_steps": 2}
STEPS = 9
DECIDING = "threshold=2\nforced_first=1\nforced_last=0"
"""Of EasyCache: steps 0 1 3 5 8 or 0 1 4 6 8 of 9 are full, as the latents are."""


def loaded() -> Any:
    """The folder as ComfyUI loads it from custom_nodes: by its path, under a name of ComfyUI's making."""
    spec = importlib.util.spec_from_file_location("custom_nodes_taylorseers", FOLDER / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


NODES = loaded()


def node(model: ModelPatcher, method: str = "taylorseer", **inputs: Any) -> ModelPatcher:
    return NODES.NODE_CLASS_MAPPINGS["TaylorSeer"]().patch(model, method, **inputs)[0]


@pytest.fixture(params=MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


def full_calls(sampler: Sampler, sigmas: Tensor, **given: Any) -> list[int]:
    """Numbers of the calls of a sampling in which the last block is computed."""
    model, found = sampler.patcher.model.diffusion_model, []
    hook = blocks_of(model)[-1].register_forward_hook(lambda *_: found.append(len(sampler.calls)))
    sampler(sigmas, **given)
    hook.remove()
    return found


def blocks_of(model: nn.Module) -> list[nn.Module]:
    return [block for child in model.children() if isinstance(child, nn.ModuleList) for block in child]


# ------------------------------------------------------------------------------------------------------------- the node


def test_the_node_is_as_comfyui_expects_nodes() -> None:
    assert NODES.NODE_CLASS_MAPPINGS.keys() == NODES.NODE_DISPLAY_NAME_MAPPINGS.keys()
    kind = NODES.NODE_CLASS_MAPPINGS["TaylorSeer"]
    inputs = kind.INPUT_TYPES()
    named = {**inputs["required"], **inputs["optional"]}
    taken = list(inspect.signature(getattr(kind, kind.FUNCTION)).parameters)[1:]
    assert list(named) == taken
    assert kind.RETURN_TYPES == ("MODEL",)
    assert len(kind.OUTPUT_TOOLTIPS) == 1
    assert kind.CATEGORY
    assert kind.DESCRIPTION
    assert all(options["tooltip"] for _, options in named.values())
    methods = named["method"][0]
    assert {"taylorseer", "fora", "teacache", "first_block_cache", "easycache", "none"} <= set(methods)
    assert not {"toca", "pab", "speca", "uncached"} & set(methods), "a part of a block cannot be left out"
    for widget, (_, options) in named.items():
        if "min" in options:
            assert options["min"] <= options["default"] <= options["max"], widget


def test_none_passes_the_model_on() -> None:
    model = patcher("flux")
    assert node(model, "none") is model


def test_a_clone_is_patched_and_the_original_stays(family: str) -> None:
    model = patcher(family)
    before = Sampler(model)(shifted(STEPS))
    blocks, state = blocks_of(model.model.diffusion_model), {k: v.clone() for k, v in model.model.state_dict().items()}
    cached = node(model, **FIXED)
    assert cached is not model
    assert model.model_options == {"transformer_options": {}}
    assert model.wrappers == {}

    assert not torch.equal(Sampler(cached)(shifted(STEPS)), before), "nothing was forecast"
    assert torch.equal(Sampler(model)(shifted(STEPS)), before)
    assert all(a is b for a, b in zip(blocks_of(model.model.diffusion_model), blocks, strict=True))
    assert all(torch.equal(value, state[key]) for key, value in model.model.state_dict().items())
    assert not [name for name, module in model.model.named_modules() if "forward" in vars(module)]


def test_clones_of_the_patched_model_work_and_a_second_cache_replaces_the_first() -> None:
    cached = node(patcher("flux"), **FIXED)
    once = Sampler(cached)(shifted(STEPS))
    clone = cached.clone()
    assert torch.equal(Sampler(clone)(shifted(STEPS)), once)
    assert clone.model_options["model_function_wrapper"].sampling is None, "features are kept"
    again = node(node(patcher("flux"), "fora", interval=2), **FIXED)
    assert torch.equal(Sampler(again)(shifted(STEPS)), once)
    assert len(again.wrappers["outer_sample"]["taylorseer"]) == 1


def test_a_wrapper_that_was_there_is_still_called() -> None:
    model, seen = patcher("flux"), []

    def wrapper(apply_model: Callable[..., Tensor], call: Mapping[str, Any]) -> Tensor:
        seen.append(float(call["timestep"][0]))
        return 2 * apply_model(call["input"], call["timestep"], **call["c"])

    model.set_model_unet_function_wrapper(wrapper)
    expected = Sampler(model, batched=True)(shifted(3))
    assert torch.equal(Sampler(node(model, interval=1), batched=True)(shifted(3)), expected)
    assert seen == [*shifted(3)[:-1].tolist()] * 2


@pytest.mark.slow
def test_the_folder_is_loaded_without_diffusers_and_says_what_must_be_importable(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys\n"
        "sys.modules.update(dict.fromkeys({0!r}))\n"
        "spec = importlib.util.spec_from_file_location('custom_nodes_x', {1!r}, submodule_search_locations=[{2!r}])\n"
        "module = sys.modules['custom_nodes_x'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "import custom_nodes_x.sampling\n"
        "print(*module.NODE_CLASS_MAPPINGS)"
    )

    def load(*missing: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code.format(missing, str(folder / "__init__.py"), str(folder))]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = load("diffusers", "transformers", "seerkit", "einops")
    assert done.stdout.split() == ["TaylorSeer"], done.stderr
    done = load("cache_dic")
    assert f"pip install --no-deps -e {FOLDER.parents[2]}" in done.stderr.splitlines()[-1]
    copied = shutil.copytree(FOLDER, tmp_path / "ComfyUI" / "custom_nodes" / "taylorseers")
    done = load("cache_dic", folder=copied)
    assert done.stderr.splitlines()[-1].endswith("pip install --no-deps -e ROOT-OF-THE-REPOSITORY")


# -------------------------------------------------------------------------------------------------- steps and forecasts


def test_steps_are_full_by_the_schedule_and_published_settings_are_the_usual_ones(family: str) -> None:
    sampler = Sampler(node(patcher(family), **FIXED), batched=True)
    plan = make_cache("taylorseer", interval=3, max_order=1, warmup_steps=2).plan(STEPS)
    assert full_calls(sampler, shifted(STEPS)) == list(plan.full_steps)
    sampler = Sampler(node(patcher(family)), batched=True)
    assert full_calls(sampler, shifted(20)) == list(make_cache(preset=family).plan(20).full_steps)


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("engine", ["auto", "stack", "hidden"])
def test_computing_every_step_gives_what_the_model_gives(family: str, engine: str, batched: bool) -> None:
    model = patcher(family)
    expected = Sampler(model, batched=batched)(shifted(4))
    assert torch.equal(Sampler(node(model, interval=1, engine=engine), batched=batched)(shifted(4)), expected)


@dataclass
class Pass:
    """Of a pass through the plain model: tokens before block 0 and after the last, features and gates by site."""

    entered: Tensor
    left: Tensor
    features: list[Tensor]
    gates: list[Tensor]


Site = tuple[nn.Module, Callable[[Mapping[str, Any]], Tensor], Callable[[Any], Tensor]]


def sites_of(family: str, block: nn.Module, length: int) -> list[Site]:
    """Modules that give features, gates from the block's arguments, and the part that reaches the output."""
    if family in ("flux", "hunyuan_video"):
        first = family == "hunyuan_video"
        if hasattr(block, "img_mod"):
            return [
                (block.img_attn.proj, lambda a: block.img_mod(a["vec"])[0].gate, lambda f: f),
                (block.img_mlp, lambda a: block.img_mod(a["vec"])[1].gate, lambda f: f),
            ]
        cut = slice(0, length) if first else slice(TEXT, None)
        return [(block.linear2, lambda a: block.modulation(a["vec"])[0].gate, lambda f: f[:, cut])]
    if family == "wan":
        rows = lambda a: (block.modulation.unsqueeze(0) + a["e"]).unbind(2)  # noqa: E731
        return [
            (block.self_attn, lambda a: rows(a)[2], lambda f: f),
            (block.cross_attn, lambda _: torch.ones(1), lambda f: f),
            (block.ffn, lambda a: rows(a)[5], lambda f: f),
        ]
    block = block.block
    count = block.adaLN_modulation[1].out_features // 16
    row = lambda a, i: block.adaLN_modulation(a["adaln_input"])[:, None].chunk(count, dim=-1)[i]  # noqa: E731
    image = lambda f: (f[0] if isinstance(f, tuple) else f)[:, :length]  # noqa: E731
    return [(block.attn1, lambda a: row(a, 2), image), (block.ff_i, lambda a: row(a, 5), image)]


def image_of(family: str, given: Any, length: int) -> Tensor:
    """Tokens of the image in what a block takes or gives."""
    given = given[0] if isinstance(given, tuple) else given
    return given[:, -length:] if family == "flux" else given[:, :length]


def first_tokens(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else kwargs.get("img", kwargs.get("image_tokens"))


def computed(family: str, model: ModelPatcher, call: Call) -> Pass:
    """The plain model at the input of a call."""
    blocks, arguments = blocks_of(model.model.diffusion_model), {}
    found: dict[nn.Module, Any] = {}
    entered: list[Tensor] = []
    left: list[Tensor] = []
    with ExitStack() as hooks:

        def before(block: nn.Module, args: Any, kwargs: Any) -> None:
            arguments[block] = kwargs
            if not entered:
                entered.append(first_tokens(args, kwargs).clone())

        for block in blocks:
            hooks.enter_context(removed(block.register_forward_pre_hook(before, with_kwargs=True)))
            for module in block.modules():
                hooks.enter_context(removed(module.register_forward_hook(lambda m, _, out: found.update({m: out}))))
        last = blocks[-1].register_forward_hook(lambda _, __, out: left.append(out.clone()))
        hooks.enter_context(removed(last))
        model.model.apply_model(call.given, call.time, **call.c)
    length = entered[0].shape[1]
    sites = [(block, *site) for block in blocks for site in sites_of(family, block, length)]
    return Pass(
        entered[0],
        image_of(family, left[0], length),
        [part(found[module]) for _, module, _, part in sites],
        [gate(arguments[block]) for block, _, gate, _ in sites],
    )


class removed:  # noqa: N801 - a context
    def __init__(self, hook: Any) -> None:
        self.hook = hook

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        self.hook.remove()


def output_with(
    family: str, model: ModelPatcher, call: Call, tokens: Callable[[Tensor], Tensor], length: int
) -> Tensor:
    """What the plain model gives when blocks do nothing and the last one gives these tokens of those that came to it."""
    blocks = blocks_of(model.model.diffusion_model)
    for i, block in enumerate(blocks):

        def forward(*args: Any, last: bool = i == len(blocks) - 1, **kwargs: Any) -> Any:
            x = first_tokens(args, kwargs)
            if last:
                made, x = tokens(image_of(family, x, length)), x.clone()
                image_of(family, x, length).copy_(made)
            other = kwargs.get("txt", kwargs.get("text_tokens"))
            return x if other is None else (x, other)

        block.forward = forward
    try:
        return model.model.apply_model(call.given, call.time, **call.c)
    finally:
        for block in blocks:
            del block.forward


@pytest.mark.parametrize(
    ("family", "controlled"), [*((family, False) for family in MODELS), ("flux", True), ("hunyuan_video", True)]
)
@pytest.mark.parametrize("engine", ["auto", "stack"])
def test_forecasts_are_those_of_the_plan_for_the_features_of_full_steps(
    family: str, engine: str, controlled: bool
) -> None:
    model = patcher(family)
    sampler = Sampler(node(model, **FIXED, engine=engine), scale=1)
    if controlled:
        adds = torch.randn(5, 1, 1, 16, generator=torch.Generator().manual_seed(5)).unbind(0)
        sampler.control = {"input": adds[:2], "output": adds[2:]}
    sampler(shifted(STEPS))
    plan = make_cache("taylorseer", interval=3, max_order=1, warmup_steps=2).plan(STEPS)
    checked = 0
    with torch.inference_mode():
        for step in plan.forecast_steps:
            row, here = plan.row(step), sampler.calls[step]
            then = {m: computed(family, model, sampler.calls[m]) for m in row}
            now = computed(family, model, here)
            if engine == "stack":
                residual = sum(weight * (then[m].left - then[m].entered) for m, weight in row.items())
                tokens = lambda _, after=now.entered + residual: after  # noqa: E731
            else:
                forecasts = [
                    sum(weight * then[m].features[i] for m, weight in row.items()) for i in range(len(now.gates))
                ]
                added = sum(gate * f for gate, f in zip(now.gates, forecasts, strict=True))
                tokens = lambda x, added=added: x + added  # noqa: E731
            expected = output_with(family, model, here, tokens, now.entered.shape[1])
            plain = model.model.apply_model(here.given, here.time, **here.c)
            torch.testing.assert_close(here.output, expected, rtol=1e-4, atol=2e-5)
            assert (here.output - expected).norm() < 0.05 * (here.output - plain).norm(), "as near to the plain model"
            checked += 1
    assert checked == STEPS - len(plan.full_steps) > 0


def test_guidance_in_one_call_and_in_calls_of_their_own_agree(family: str) -> None:
    together = Sampler(node(patcher(family), **FIXED), batched=True)(shifted(STEPS))
    apart = Sampler(node(patcher(family), **FIXED), batched=False)
    full = full_calls(apart, shifted(STEPS))
    steps = make_cache("taylorseer", interval=3, warmup_steps=2).plan(STEPS).full_steps
    assert full == [2 * step + branch for step in steps for branch in (0, 1)]
    torch.testing.assert_close(apart(shifted(STEPS)), together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "cached"),
    [
        ({"start_at_step": 4}, range(4, 12)),
        ({"end_at_step": 7}, range(7)),
        ({"start_percent": 0.25}, range(6, 12)),
        ({"end_percent": 0.5}, range(9)),
        ({"start_percent": 0.25, "start_at_step": 7, "end_at_step": 11}, range(7, 11)),
    ],
)
def test_steps_outside_of_start_and_end_are_computed(window: dict[str, Any], cached: range) -> None:
    """With shift 3 noise level 0.75 is that of step 6 of 12, and 0.5 that of step 9."""
    settings = {"interval": 2, "order": 0, "warmup_steps": 1}
    sampler = Sampler(node(patcher("wan"), **settings, **window), scale=1)
    plan = make_cache("taylorseer", interval=2, max_order=0, warmup_steps=1).plan(len(cached))
    expected = [step for step in range(12) if step not in cached or plan.is_full(step - cached.start)]
    assert full_calls(sampler, shifted(12)) == expected
    assert len(expected) < 12


def test_a_window_without_steps_leaves_all_of_them_computed() -> None:
    sampler = Sampler(node(patcher("wan"), interval=2, start_at_step=50, end_at_step=60), scale=1)
    assert full_calls(sampler, shifted(6)) == list(range(6))


# ----------------------------------------------------------------------------------------------------------------- runs


def test_runs_begin_anew(family: str) -> None:
    cached = node(patcher(family), **FIXED)
    sampler, sigmas = Sampler(cached), shifted(STEPS)
    once = sampler(sigmas)
    assert torch.equal(sampler(sigmas), once)
    wide = sampler(sigmas, size=(4, 8))
    assert wide.shape[-2:] == (4, 8)
    assert torch.equal(wide, Sampler(node(patcher(family), **FIXED))(sigmas, size=(4, 8)))
    fewer = sampler(shifted(5))
    assert torch.equal(fewer, Sampler(node(patcher(family), **FIXED))(shifted(5)))
    assert torch.equal(sampler(sigmas), once)


@pytest.mark.parametrize("stop_at", [1, 4])
def test_an_interrupted_run_leaves_nothing_behind(family: str, stop_at: int) -> None:
    cached, sigmas = node(patcher(family), **FIXED), shifted(STEPS)
    fresh = Sampler(cached)(sigmas, seed=1)
    with pytest.raises(InterruptProcessingException):
        Sampler(cached, stop_at=stop_at)(sigmas, seed=2)
    assert cached.model_options["model_function_wrapper"].sampling is None, "features are kept"
    assert torch.equal(Sampler(cached)(sigmas, seed=1), fresh)


def test_a_call_that_fails_in_the_middle_leaves_the_model_as_it_was() -> None:
    model = patcher("flux")
    blocks = blocks_of(model.model.diffusion_model)
    hook = blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Sampler(node(model))(shifted(STEPS))
    hook.remove()
    assert all(a is b for a, b in zip(blocks_of(model.model.diffusion_model), blocks, strict=True))
    assert not [name for name, module in model.model.named_modules() if "forward" in vars(module)]


def test_the_second_part_of_a_sampling_is_a_run_of_its_own() -> None:
    sampler, sigmas = Sampler(node(patcher("wan"), **FIXED), scale=1), shifted(STEPS)
    plan = make_cache("taylorseer", interval=3, warmup_steps=2).plan(5)
    assert full_calls(sampler, sigmas[4:]) == list(plan.full_steps)


def called(
    cached: ModelPatcher, sigmas: Tensor, step: int, uuid: str = "prompt", rows: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A call of a patched Wan as the sampler makes it at a step, with latents and text of their own: output, and uncached."""
    x = torch.randn(1, 2, 2, rows, 4, generator=torch.Generator().manual_seed(100 * seed + step))
    text = torch.randn(1, TEXT, 5, generator=torch.Generator().manual_seed(len(uuid)))
    options = {"sample_sigmas": sigmas, "cond_or_uncond": [0], "uuids": [uuid]}
    c = {"c_crossattn": text, "transformer_options": options}
    call = {"input": x, "timestep": sigmas[step][None], "c": c}
    with torch.inference_mode():
        output = cached.model_options["model_function_wrapper"](cached.model.apply_model, call)
        return output, cached.model.apply_model(x, sigmas[step][None], **c)


def around(cached: ModelPatcher, sample: Callable[[], Any]) -> Any:
    (wrapper,) = cached.wrappers["outer_sample"]["taylorseer"]
    return wrapper(sample)


def test_conditions_of_a_part_of_the_steps_do_not_take_the_run_of_others() -> None:
    """Two prompts are combined; from step 5 on only the second one is left."""
    cached, sigmas = node(patcher("wan"), **FIXED), shifted(STEPS)

    def sample(alone: bool) -> list[Tensor]:
        found = []
        for step in range(STEPS):
            if step < 5 and not alone:
                called(cached, sigmas, step, "a prompt")
            found.append(called(cached, sigmas, step, "the second prompt")[0])
        return found

    both = around(cached, lambda: sample(False))
    alone = around(cached, lambda: sample(True))
    assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True))


def test_a_branch_decides_for_itself_once_the_one_that_decided_has_ended() -> None:
    cached, alone = (node(patcher("wan"), "easycache", settings=DECIDING) for _ in range(2))
    sigmas, after = shifted(STEPS), []
    for step in range(STEPS):
        if step < 4:
            called(cached, sigmas, step, "a prompt")
        output, _ = called(cached, sigmas, step, "the second prompt")
        if step >= 4:
            after.append(output)
    expected = [called(alone, sigmas, step, "the second prompt")[0] for step in range(4, STEPS)]
    assert all(torch.equal(a, b) for a, b in zip(after, expected, strict=True))


def test_a_sampling_within_another_has_runs_of_its_own() -> None:
    cached, sigmas = node(patcher("wan"), **FIXED), shifted(STEPS)

    def sample(within: bool) -> list[Tensor]:
        found = []
        for step in range(STEPS):
            found.append(called(cached, sigmas, step)[0])
            if within and step in (2, 5):
                around(cached, lambda step=step: [called(cached, sigmas, i) for i in range(step + 1, STEPS)])
        return found

    plain = around(cached, lambda: sample(False))
    disturbed = around(cached, lambda: sample(True))
    assert all(torch.equal(a, b) for a, b in zip(plain, disturbed, strict=True))


def test_going_back_to_an_earlier_step_begins_anew_also_where_no_sampling_was_announced() -> None:
    """Decisions while sampling are those of the branch that comes first, and not of one that was left from before."""

    def sample(cached: ModelPatcher, seed: int) -> list[Tensor]:
        prompts = ("a prompt", "the second prompt")
        return [called(cached, shifted(STEPS), i, p, seed=seed)[0] for i in range(STEPS - seed) for p in prompts]

    cached, fresh = (node(patcher("wan"), "easycache", settings=DECIDING) for _ in range(2))
    sample(cached, 1)
    assert all(torch.equal(a, b) for a, b in zip(sample(cached, 0), sample(fresh, 0), strict=True))


def test_a_sampler_that_calls_twice_at_each_noise_level_has_two_runs() -> None:
    cached, sigmas = node(patcher("wan"), **FIXED), shifted(STEPS)
    pairs = around(cached, lambda: [called(cached, sigmas, step) for step in range(STEPS) for _ in range(2)])
    full = [call for call, (output, plain) in enumerate(pairs) if torch.equal(output, plain)]
    plan = make_cache("taylorseer", interval=3, warmup_steps=2).plan(STEPS)
    assert full == [2 * step + i for step in plan.full_steps for i in range(2)]


def test_latents_of_another_size_begin_a_run_in_the_middle_of_a_sampling() -> None:
    cached, sigmas = node(patcher("wan"), **FIXED), shifted(STEPS)
    pairs = around(cached, lambda: [called(cached, sigmas, step, rows=4 if step < 3 else 8) for step in range(STEPS)])
    full = [step for step, (output, plain) in enumerate(pairs) if torch.equal(output, plain)]
    plan = make_cache("taylorseer", interval=3, warmup_steps=2).plan(STEPS - 3)
    assert full == [0, 1, *(3 + step for step in plan.full_steps)]


def test_calls_between_steps_are_computed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = patcher("wan")
    sampler = Sampler(node(model, **FIXED), scale=1, midpoint=True)
    full = full_calls(sampler, shifted(STEPS))
    plan = make_cache("taylorseer", interval=3, warmup_steps=2).plan(STEPS)
    assert full == sorted([2 * step for step in plan.full_steps] + [2 * step + 1 for step in range(STEPS - 1)])
    assert caplog.text.count("between two of its steps") == 1


def test_calls_with_blocks_replaced_are_computed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = patcher("flux")
    skipped = {"patches_replace": {"dit": {("double_block", 1): lambda args, _: args}}}
    expected = Sampler(model, extra=skipped)(shifted(STEPS))
    assert torch.equal(Sampler(node(model, **FIXED), extra=skipped)(shifted(STEPS)), expected)
    assert caplog.text.count("with blocks replaced") == 1


def test_calls_outside_of_a_sampling_are_computed(caplog: pytest.LogCaptureFixture) -> None:
    cached = node(patcher("flux"), **FIXED)
    c = {"c_crossattn": torch.ones(1, TEXT, 5), "y": torch.ones(1, 4), "transformer_options": {}}
    call = {"input": torch.ones(1, 2, 4, 4), "timestep": torch.ones(1), "c": c}
    with torch.inference_mode():
        output = cached.model_options["model_function_wrapper"](cached.model.apply_model, call)
        assert torch.equal(output, cached.model.apply_model(call["input"], call["timestep"], **c))
    assert "outside of a sampling" in caplog.text


def test_the_log_says_which_steps_were_full(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "taylorseers_comfyui"):
        Sampler(node(patcher("wan"), **FIXED, start_at_step=1))(shifted(STEPS))
    said = [record.getMessage() for record in caplog.records if record.name == "taylorseers_comfyui"]
    assert said == ["taylorseer-N3-W2-O1: 4 of 8 steps from step 1 on full (0 1 4 7), 0.0 MiB kept"] * 2


# -------------------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("fora", ""),
        ("hicache", ""),
        ("foca", ""),
        ("taylorseer_lite", ""),
        ("ab_cache", ""),
        ("freqca", ""),
        ("first_block_cache", "threshold=0.5"),
        ("dbcache", "residual_diff_threshold=0.5\nmax_warmup_steps=1\nFn_compute_blocks=1"),
        ("easycache", "threshold=5"),
        ("teacache", "model=flux-dev\nthreshold=2"),
    ],
)
def test_methods_leave_steps_out(method: str, settings: str) -> None:
    sampler = Sampler(node(patcher("flux"), method, settings=settings), scale=1)
    full = full_calls(sampler, shifted(16))
    assert 0 in full
    assert len(full) < 16


def test_the_second_branch_follows_the_decisions_of_the_first() -> None:
    sampler = Sampler(node(patcher("flux"), "easycache", settings="threshold=0.1"))
    full = full_calls(sampler, shifted(16))
    assert [call // 2 for call in full if call % 2 == 0] == [call // 2 for call in full if call % 2]
    assert 1 < len(full) // 2 < 16


# --------------------------------------------------------------------------------------------------------------- errors


def test_an_unknown_class_is_refused_by_name() -> None:
    class UNetModel(nn.Module):
        pass

    with pytest.raises(
        UserError, match="UNetModel is no model whose blocks are known here; what is supported is Flux, "
    ):
        node(patcher("flux", UNetModel))


def test_additions_between_blocks_that_follow_from_the_tokens_are_refused_in_the_site_form() -> None:
    extra = {"patches": {"double_block": [lambda args: args]}}
    with pytest.raises(UserError, match=r"adds to the tokens of Flux between its blocks.*take engine = stack"):
        Sampler(node(patcher("flux")), extra=extra)(shifted(STEPS))
    Sampler(node(patcher("flux"), engine="stack"), extra=extra)(shifted(STEPS))


def test_a_derived_class_has_the_stack_form_alone() -> None:
    model = patcher("wan", VaceWanModel)
    with pytest.raises(UserError, match="gates of all sites, which are not known of VaceWanModel; take stack"):
        node(model, engine="folded")
    cached = node(model, **FIXED)
    assert cached.model_options["model_function_wrapper"].cache.engine == "stack"
    assert torch.equal(
        Sampler(cached)(shifted(STEPS)), Sampler(node(patcher("wan"), **FIXED, engine="stack"))(shifted(STEPS))
    )


def test_blocks_without_modulation_of_their_own_have_the_stack_form_alone() -> None:
    model = patcher("flux")
    del model.model.diffusion_model.single_blocks[0].modulation
    assert node(model).model_options["model_function_wrapper"].cache.engine == "stack"


def test_a_model_that_is_compiled_as_a_whole_is_refused() -> None:
    class OptimizedModule(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self._orig_mod = model

    model = patcher("flux")
    model.model.diffusion_model = OptimizedModule(model.model.diffusion_model)
    with pytest.raises(UserError, match="Flux is compiled as a whole"):
        node(model)


def test_sites_that_miss_a_part_of_what_a_block_adds_are_refused() -> None:
    model = patcher("wan")
    block = model.model.diffusion_model.blocks[2]
    block.register_forward_hook(lambda _, __, out: out * 1.5)
    with pytest.raises(UserError, match="its site form is not exact; take engine='stack'"):
        Sampler(node(model))(shifted(STEPS))
    Sampler(node(model, engine="stack"))(shifted(STEPS))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"start_percent": 0.8, "end_percent": 0.2}, "start_percent = 0.8 and end_percent = 0.2 must be"),
        ({"start_at_step": 5, "end_at_step": 5}, "start_at_step = 5 and end_at_step = 5 must be"),
        ({"settings": "threshold"}, "settings: 'threshold' is no setting; write name=value"),
        ({"settings": "threshhold=1"}, "has no setting 'threshhold'"),
        ({"method": "first_block_cache", "interval": 4}, "has no setting 'interval'"),
        ({"method": "fora", "order": 2}, "has no setting 'max_order'"),
        ({"method": "toca"}, "take one that leaves out whole steps"),
        ({"method": "taylerseer"}, "did you mean 'taylorseer'"),
    ],
)
def test_wrong_inputs_are_refused_with_the_remedy(inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        node(patcher("flux"), **inputs)


def test_a_patcher_of_an_old_comfyui_is_refused() -> None:
    class OldPatcher(ModelPatcher):
        add_wrapper_with_key = None

        def __getattribute__(self, name: str) -> Any:
            if name == "add_wrapper_with_key":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(UserError, match="update ComfyUI"):
        node(OldPatcher(patcher("flux").model))
