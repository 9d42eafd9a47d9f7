"""Uses at the edges of what a cache on a pipeline is for: each is right, or refused by name."""

from collections.abc import Callable, Iterable
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import Tiny, tiny
from torch import Tensor

from cache_dic import UserError
from taylorseers_diffusers import disable, enable

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
    gates = form.gates
    object.__setattr__(form, "gates", lambda *given: [None if g is None else 1.2 * g for g in gates(*given)])
    for other in hook.passes.forms:
        hook.passes.forms[other] = form
    with pytest.raises(UserError, match="added something else than its gates times its features"):
        model(8)
