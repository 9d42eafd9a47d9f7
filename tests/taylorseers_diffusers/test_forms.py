"""The site form of every class that has one: its streams, features, gates and first modulation are those of the block."""

from dataclasses import replace

import pytest
import torch
from tiny_pipelines import MAKERS, MORE, Tiny, tiny
from torch import Tensor, nn

from cache_dic import UserError
from taylorseers_diffusers import enable
from taylorseers_diffusers.forms import proper
from taylorseers_diffusers.model import CachedTransformer

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
def test_modulated_is_what_the_first_attention_is_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given, told = tiny(name), [], []
    enable(model.pipe, "uncached")
    passes = passes_of(model)
    form = passes.forms[id(passes.blocks[0])]
    attention = proper(passes.blocks[0]).get_submodule(form.partial_features[0].module)

    def seen(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        given.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    full_step = CachedTransformer.full_step

    def looked_at(self: CachedTransformer, *args: object) -> Tensor:
        told.append(self.modulated())
        return full_step(self, *args)

    monkeypatch.setattr(CachedTransformer, "full_step", looked_at)
    with attention.register_forward_pre_hook(seen, with_kwargs=True):
        model(2)
    assert len(given) == len(told) >= 2
    for one, other in zip(told, given, strict=True):
        torch.testing.assert_close(one, other)


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
