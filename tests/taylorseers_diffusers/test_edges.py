"""Uses at the edges of what a cache on a pipeline is for: each is right, or refused by name."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import Tiny, tiny
from torch import Tensor

from cache_dic import Run, UserError
from taylorseers_diffusers import calibrate, disable, enable
from taylorseers_diffusers.model import CachedTransformer, as_rows
from taylorseers_diffusers.passes import Walk

SETTINGS = {"interval": 3, "max_order": 1, "warmup_steps": 2}


def runs(model: Tiny) -> dict[str, list[tuple[int, list[int]]]]:
    """By branch, of its runs: the step of the scheduler that each began at, and its full steps, counted from there."""
    branches = model.pipe.cache_report().branches
    return {name: [(r["first_step"], r["full_steps"]) for r in records] for name, records in branches.items()}


def looped(model: Tiny, calls: Callable[[int], Iterable[str]], num_steps: int = 8) -> list[dict[str, Tensor]]:
    """What Wan gives in a loop of one's own, at each step for the named branches in their order."""
    torch.manual_seed(0)
    texts, x, given = {"cond": "prompt_embeds", "uncond": "negative_prompt_embeds"}, torch.randn(1, 16, 2, 4, 4), []
    scheduler = model.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(num_steps)
    for step, t in enumerate(scheduler.timesteps):
        outputs = {}
        for name in calls(step):
            with torch.no_grad(), model.transformer.cache_context(name):
                (outputs[name],) = model.transformer(
                    x, t.expand(1), encoder_hidden_states=model.inputs[texts[name]], return_dict=False
                )
        x = scheduler.step(next(iter(outputs.values())), t, x, return_dict=False)[0]
        given.append(outputs)
    return given


# ---------------------------------------------------------------------------------------------------------------- branches


@pytest.mark.parametrize("method", ["easycache", "pab", "fastercache"])
def test_a_branch_decides_for_itself_once_the_one_that_decided_has_ended(method: str) -> None:
    model = tiny("wan")
    enable(model.pipe, method)
    looped(model, lambda step: ["cond", "uncond"] if step < 3 else ["uncond"])
    found = runs(model)
    assert [first for first, _ in found["uncond"]] == [0, 3]
    assert found["uncond"][1][1][0] == 0


@pytest.mark.parametrize("engine", ["folded", "layerwise", "walked"])
@pytest.mark.parametrize("method", ["first_block_cache", "cg_taylor"])
def test_blocks_that_are_always_computed_go_with_every_engine(method: str, engine: str) -> None:
    """The rest is forecast by sites, whose gates are checked in their own places."""
    model = tiny("wan")
    before = model(8)
    enable(model.pipe, method, engine=engine)
    found = model(8)
    assert (found - before).norm() < 0.05 * before.norm()
    hook = model.transformer._diffusers_hook.get_hook("taylorseers_cache")
    form = next(iter(hook.passes.forms.values()))
    wrong = replace(form, gates=lambda *given: [None if g is None else 1.2 * g for g in form.gates(*given)])
    for other in hook.passes.forms:  # the forms themselves are shared by all models
        hook.passes.forms[other] = wrong
    with pytest.raises(UserError, match="added something else than its gates times its features"):
        model(8)


@pytest.mark.parametrize("method", ["taylorseer", "fora"])
def test_a_branch_that_comes_back_late_has_a_shorter_warmup(method: str) -> None:
    model = tiny("wan")
    enable(model.pipe, method, interval=3, warmup_steps=3)

    def guide(pipe: Any, step: int, _: Any, given: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if 2 <= step < 6 else 3.0
        return given

    model(8, callback_on_step_end=guide)
    assert runs(model)["uncond"] == [(0, [0, 1, 2]), (7, [0])]
    with pytest.raises(UserError, match="warmup_steps = 3 must lie between 1 and the number of steps, 2"):
        model(2)


# ------------------------------------------------------------------------------------------------------------- timesteps


@pytest.mark.parametrize("name", ["lumina2", "z_image", "qwen_image"])
def test_a_run_that_begins_in_the_middle_of_the_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There t and 1000 - t are alike; the next step tells which of them the pipeline gives, and gates are those of it."""
    model, foretold, given = tiny(name), {}, {}
    gates_at, step_of = CachedTransformer.gates_at, CachedTransformer.step

    def watched_gates(self: CachedTransformer, step: int) -> Tensor:
        foretold[self.first.step + step] = gates = gates_at(self, step)
        return gates

    def watched_step(self: CachedTransformer, run: Run, step: int) -> Tensor:
        gates: list[Tensor | None] = []
        self.walked(Walk(stop=0, skipped=lambda block, form, now: gates.extend(form.gates(block, *now))))
        given[self.moment.step] = as_rows(gates, name)
        return step_of(self, run, step)

    monkeypatch.setattr(CachedTransformer, "gates_at", watched_gates)
    monkeypatch.setattr(CachedTransformer, "step", watched_step)
    enable(model.pipe, interval=4, max_order=1, warmup_steps=1)
    model(5, sigmas=[0.5, 0.42, 0.3, 0.2, 0.1])
    for step in (2, 3):
        torch.testing.assert_close(foretold[step], given[step], rtol=1e-4, atol=1e-5)


def over_time(model: Tiny, time_of: Callable[[list[Tensor], int], Tensor], batch: int = 1) -> None:
    """Have a loop over a transformer give it another form of the timesteps."""
    loop = type(model.pipe)

    class Other(loop):  # type: ignore[valid-type, misc]
        def __call__(
            self, num_inference_steps: int, generator: torch.Generator, output_type: str, **inputs: Any
        ) -> tuple[Tensor]:
            self.scheduler.set_timesteps(num_inference_steps)
            x = torch.randn(self.shape, generator=generator).expand(batch, -1, -1)
            inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].expand(batch, -1, -1)
            for step, t in enumerate(self.scheduler.timesteps):
                time = time_of(list(self.scheduler.timesteps), step)
                (output,) = self.transformer(hidden_states=x, timestep=time, **inputs, return_dict=False)
                x = self.scheduler.step(output, t, x, return_dict=False)[0]
            return (x,)

    model.pipe.__class__ = Other


def test_a_timestep_that_could_be_the_last_one_in_another_form_is_the_first() -> None:
    """1000 of 1000 is 1, which the scheduler's list ends with."""
    model = tiny("longcat")
    over_time(model, lambda times, step: times[step].reshape(1) / 1000)
    enable(model.pipe, **SETTINGS)
    folded = model(8)
    assert model.pipe.scheduler.timesteps[-1] == 1
    assert runs(model) == {"call 1": [(0, [0, 1, 4, 7])]}
    enable(model.pipe, engine="layerwise", **SETTINGS)
    torch.testing.assert_close(model(8), folded, rtol=1e-5, atol=1e-5)


def test_samples_at_times_of_their_own_are_refused_where_their_gates_are_wanted() -> None:
    model = tiny("longcat")
    over_time(model, lambda times, step: torch.stack([times[step], times[step] / 2]), batch=2)
    enable(model.pipe, **SETTINGS)
    with pytest.raises(UserError, match=r"called with several timesteps at once, .* take engine='stack'"):
        model(8)
    enable(model.pipe, engine="stack", **SETTINGS)
    model(8)
    assert runs(model) == {"call 1": [(0, [0, 1, 4, 7])]}


def test_timesteps_that_mirror_each_other_without_an_index() -> None:
    """DDIM's of three steps: 666 is nearly 1000 - 333, and the other way round."""
    model = tiny("dit")
    enable(model.pipe, **SETTINGS)
    model(3)
    assert model.pipe.scheduler.timesteps.tolist() == [666, 333, 0]
    assert runs(model) == {"call 1": [(0, [0, 1])]}


# ------------------------------------------------------------------------------------------------------------ the model


def test_gradient_checkpointing_is_refused_where_gradients_are_wanted() -> None:
    model = tiny("flux")
    enable(model.pipe, **SETTINGS)
    without = model(4)
    model.transformer.enable_gradient_checkpointing()
    assert torch.equal(model(4), without), "no gradients, nothing is computed once more"
    call = type(model.pipe).__call__.__wrapped__
    with torch.enable_grad(), pytest.raises(UserError, match=r"transformer\.disable_gradient_checkpointing\(\)"):
        call(model.pipe, num_inference_steps=4, output_type="latent", **model.inputs)


def test_a_model_is_not_pickled_with_a_cache_on_it(tmp_path: Path) -> None:
    for name in ("flux", "dit"):
        model = tiny(name)
        enable(model.pipe, **SETTINGS)
        with pytest.raises(UserError, match="cannot be copied or pickled with a cache on it; disable"):
            torch.save(model.transformer, tmp_path / "model.pt")
        disable(model.pipe)
        torch.save(model.transformer, tmp_path / "model.pt")


def test_models_that_share_their_blocks_have_hooks_of_their_own() -> None:
    model = tiny("wan22")
    first, second = model.pipe.transformer, model.pipe.transformer_2
    second.blocks = first.blocks
    plain = model(16)
    enable(model.pipe, **SETTINGS)
    folded = model(16)
    enable(model.pipe, engine="layerwise", **SETTINGS)
    torch.testing.assert_close(model(16), folded, rtol=1e-5, atol=1e-5)
    disable(model.pipe)
    assert torch.equal(model(16), plain)
    assert not any(hasattr(module, "_diffusers_hook") for module in first.blocks.modules())


def test_one_transformer_in_both_places_has_one_cache() -> None:
    model = tiny("wan22")
    model.pipe.register_modules(transformer_2=model.pipe.transformer)
    enable(model.pipe, **SETTINGS)
    model(8)
    assert model.pipe.cache_report().second is None
    assert runs(model)["cond"] == [(0, [0, 1, 4, 7])]


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_call_that_asks_for_more_than_the_output_is_refused(return_dict: bool) -> None:
    model = tiny("flux2")
    enable(model.pipe, **SETTINGS)
    forward = model.transformer.forward

    def extracting(**given: Any) -> Any:
        return forward(**{**given, "kv_cache_mode": "extract", "num_ref_tokens": 1, "return_dict": return_dict})

    model.transformer.forward = extracting
    with pytest.raises(UserError, match="Flux2Transformer2DModel gave 2 values in this call"):
        model(4)


def test_a_timestep_may_be_a_number() -> None:
    model = tiny("hunyuan_dit")
    plain = model(4)
    enable(model.pipe, "uncached")
    forward = model.transformer.forward
    model.transformer.forward = lambda **given: forward(**{**given, "timestep": float(given["timestep"][0])})
    assert torch.equal(model(4), plain)
    assert runs(model) == {"call 1": [(0, [0, 1, 2, 3])]}


# ---------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("method", ["teacache", "magcache"])
def test_samples_that_cannot_be_measured_together_are_refused(method: str) -> None:
    model = tiny("flux")
    with pytest.raises(UserError, match="samples of 6 and 8 steps cannot be measured together"):
        calibrate(model.pipe, lambda: model(6), lambda: model(8), method=method)
    with pytest.raises(UserError, match="takes calls of the pipeline"):
        calibrate(model.pipe, "a fox", method=method)
