"""Pipelines of diffusers under its ContextParallelConfig, two processes on CPU. Under torchrun, this file prints what its tests
look at.

diffusers asks torch's accelerator for a device, which a CPU is not, and ring attention for the log-sum-exp of attention, which
its native backend does not give: both are put in here, all else is diffusers' own.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from shared_runs import check_agreement, check_decisions, collectives, measure
from tiny_pipelines import Tiny, tiny

from cache_dic import UserError
from seerkit.devices.distributed import start_world, stop_world
from seerkit.devices.parallel import attend_with_lse

pytestmark = pytest.mark.slow

PROCESSES = 2
LAYOUTS = {"ulysses": {"ulysses_degree": 2}, "ring": {"ring_degree": 2}}
METHODS = {
    "flux": ("taylorseer", "first_block_cache", "magcache", "seacache", "teacache", "speca"),
    "wan": ("taylorseer", "first_block_cache", "easycache", "pab"),
}
REFUSED = {
    "seacache": (
        {"threshold": 0.2},
        "this method looks at tokens in rows and columns, and of the 64 tokens 32 are here",
    ),
    "freqca": ({}, "a grid of 8 x 8 has 64 tokens, not the 32 there are"),
}


@contextmanager
def on_cpu() -> Iterator[None]:
    from diffusers.models import attention_dispatch

    own = attention_dispatch._native_attention_forward_op

    def with_lse(ctx: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        """Attention (B, L, H, d); the sixth of the others asks for the log-sum-exp."""
        if not args[5]:
            return own(ctx, q, k, v, *args, **kwargs)
        out, lse = attend_with_lse(*(x.transpose(1, 2) for x in (q, k, v)))
        return out.transpose(1, 2), lse.transpose(1, 2)

    with (
        mock.patch.object(torch.accelerator, "device_count", return_value=1),
        mock.patch.object(torch._C, "_get_accelerator", return_value=torch.device("cpu")),
        mock.patch.object(attention_dispatch, "_native_attention_forward_op", with_lse),
    ):
        yield


def shared_by(degrees: dict[str, int]) -> Callable[[Tiny], None]:
    from diffusers import ContextParallelConfig

    return lambda model: model.transformer.enable_parallelism(config=ContextParallelConfig(**degrees))


def refusals() -> dict[str, str]:
    """What a pipeline says whose tokens are shared, by method; and where they were shared after the cache was enabled."""
    from taylorseers_diffusers import enable

    model, said = tiny("flux"), {}
    enable(model.pipe)
    shared_by(LAYOUTS["ulysses"])(model)
    cases = {"late": None, **REFUSED}
    for method, case in cases.items():
        if case is not None:
            enable(model.pipe, method, **case[0])
        try:
            model(4)
        except UserError as error:
            said[method] = str(error)
    return said


def main() -> None:
    world = start_world("cpu")
    with on_cpu():
        ways = {layout: shared_by(degrees) for layout, degrees in LAYOUTS.items()}
        found = {name: measure(name, methods, ways) for name, methods in METHODS.items()}
        found["refused"] = refusals()
    if world.is_main:
        print(json.dumps(found))
    stop_world()


@pytest.fixture(scope="session")
def found(run_script, need) -> dict:
    need("diffusers")
    done = run_script(__file__, processes=PROCESSES)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", METHODS)
def test_two_processes_give_what_one_gives(found, model, layout):
    check_agreement(found[model], layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", METHODS)
def test_processes_decide_together_what_one_decides(found, model, layout):
    check_decisions(found[model], layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", METHODS)
def test_a_forecast_step_puts_its_output_together_and_exchanges_nothing_else(found, model, layout):
    assert collectives(found[model], layout, "forecast") == {1}
    assert min(collectives(found[model], layout, "full")) >= 1 + 3, "attention of every block"


@pytest.mark.parametrize("method", REFUSED)
def test_methods_that_look_at_all_tokens_are_refused(found, method):
    assert REFUSED[method][1] in found["refused"][method]


def test_the_cache_is_enabled_after_the_tokens_are_shared(found):
    assert "was called after the cache was enabled" in found["refused"]["late"]


if __name__ == "__main__":
    main()
