"""Pipelines of diffusers under its ContextParallelConfig, two processes on CPU. Under torchrun, this file prints what its tests
look at.

diffusers asks torch's accelerator for a device, which a CPU is not, and ring attention for the log-sum-exp of attention, which
its native backend does not give: both are put in here, all else is diffusers' own.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PROCESSES, NUM_STEPS = 2, 10
TOLERANCE = 1e-5  # of the largest value
CACHES: dict[str, dict[str, Any]] = {
    "taylorseer": {"interval": 3, "max_order": 1, "warmup_steps": 2},  # folded, by sites
    "first_block_cache": {"threshold": 0.2},
    "magcache": {"table": [1.0] + [0.97] * (NUM_STEPS - 1), "threshold": 0.06},
    "seacache": {"signal": "latents", "threshold": 0.2},
    "teacache": {"threshold": 0.1, "coefficients": (1.0, 0.0)},
}
LAYOUTS = {"ulysses": {"ulysses_degree": 2}, "ring": {"ring_degree": 2}}
MODELS = ("flux", "wan")


class Collectives(TorchDispatchMode):
    """Counts collectives, by the number of the pass that they are of."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += (
            func.namespace in ("c10d", "_c10d_functional") and "_wrap" not in str(func) and "wait" not in str(func)
        )
        return func(*args, **(kwargs or {}))


def with_lse(ctx: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **_: Any) -> Any:
    """Attention (B, L, H, d) as diffusers' backends have it, with the log-sum-exp where it is asked for."""
    from diffusers.models import attention_dispatch

    from seerkit.devices.parallel import attend_with_lse

    if not args[5]:
        return attention_dispatch._own(ctx, query, key, value, *args, **_)
    out, lse = attend_with_lse(*(x.transpose(1, 2) for x in (query, key, value)))
    return out.transpose(1, 2), lse.transpose(1, 2)


@contextmanager
def accelerator() -> Iterator[None]:
    from diffusers.models import attention_dispatch

    attention_dispatch._own = attention_dispatch._native_attention_forward_op
    with (
        mock.patch.object(torch.accelerator, "device_count", return_value=1),
        mock.patch.object(torch._C, "_get_accelerator", return_value=torch.device("cpu")),
        mock.patch.object(attention_dispatch, "_native_attention_forward_op", with_lse),
    ):
        yield


def run(model: Any, method: str | None) -> tuple[Tensor, dict[str, Any]]:
    """Latents, and by guidance branch the steps of the record, with the collectives of each."""
    from taylorseers_diffusers import disable, enable

    if method is None:
        return model(NUM_STEPS), {}
    enable(model.pipe, method, **CACHES[method])
    hook = model.transformer._diffusers_hook.get_hook("taylorseers_cache")
    counts: list[int] = []
    forward = hook.fn_ref.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        with Collectives() as counter:
            output = forward(*args, **kwargs)
        counts.append(counter.count)
        return output

    hook.fn_ref.forward = counted
    latents = model(NUM_STEPS)
    records = model.pipe.cache_report().branches
    disable(model.pipe)
    found = {name: runs[0]["steps"] for name, runs in records.items()}
    for place, steps in enumerate(found.values()):
        for entry, count in zip(steps, counts[place :: len(found)], strict=True):
            entry["collectives"] = count
    return latents, found


def measure(name: str, world: Any) -> dict[str, Any]:
    from diffusers import ContextParallelConfig
    from tiny_pipelines import tiny

    methods = (None, *CACHES) if name == "flux" else (None, *list(CACHES)[:3])
    model, alone, found = tiny(name), {}, {}
    for method in methods:
        alone[method] = run(model, method)
    for layout, degrees in LAYOUTS.items():
        model = tiny(name)
        model.transformer.enable_parallelism(config=ContextParallelConfig(**degrees))
        for method in methods:
            latents, steps = run(model, method)
            wanted, expected = alone[method]
            together: list[Any] = [None] * world.size
            torch.distributed.all_gather_object(together, steps)
            found[f"{layout} {method}"] = {
                "error": float((latents - wanted).abs().max() / wanted.abs().max()),
                "spread": float((wanted - alone[None][0]).abs().max() / wanted.abs().max()),
                "alone": expected,
                "together": together,
            }
    return found


def main() -> None:
    from seerkit.devices.distributed import start_world, stop_world

    world = start_world("cpu")
    with accelerator():
        found = {name: measure(name, world) for name in MODELS}
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
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_give_what_one_gives(found, model, layout):
    cases = {key: case for key, case in found[model].items() if key.startswith(layout)}
    assert f"{layout} taylorseer" in cases
    for key, case in cases.items():
        assert case["error"] <= TOLERANCE, key
        if not key.endswith("None"):
            assert case["spread"] > 100 * TOLERANCE, f"{key}: the cache changes nothing"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_processes_decide_together_what_one_decides(found, model, layout):
    for key, case in found[model].items():
        if not key.startswith(layout) or key.endswith("None"):
            continue
        assert case["together"][0] == case["together"][1], "signals too, to the bit"
        for branch, expected in case["alone"].items():
            kinds = [entry["kind"] for entry in expected]
            assert {"full", "forecast"} == set(kinds), f"{key} {kinds}"
            assert [entry["kind"] for entry in case["together"][0][branch]] == kinds


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_a_forecast_step_exchanges_its_output_and_nothing_else(found, model, layout):
    steps = [entry for of in found[model][f"{layout} taylorseer"]["together"][0].values() for entry in of]
    assert {entry["collectives"] for entry in steps if entry["kind"] == "forecast"} == {1}
    assert min(entry["collectives"] for entry in steps if entry["kind"] == "full") > 4


if __name__ == "__main__":
    main()
