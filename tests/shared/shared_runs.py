"""Runs of tiny pipelines whose tokens are shared by two processes, beside those of one: errors, decisions, exchanges."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from tiny_pipelines import Tiny, tiny
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from taylorseers_diffusers import disable, enable

NUM_STEPS = 10
TOLERANCE = 1e-5  # of the largest value
CACHES: dict[str, dict[str, Any]] = {
    "taylorseer": {"interval": 3, "max_order": 1, "warmup_steps": 2},  # folded, by sites
    "first_block_cache": {"threshold": 0.5},
    "magcache": {"table": [1.0] + [0.97] * (NUM_STEPS - 1), "threshold": 0.06},
    "seacache": {"signal": "latents", "threshold": 0.2},
    "teacache": {"threshold": 0.1, "coefficients": (1.0, 0.0)},
    "easycache": {"threshold": 0.3, "forced_first": 1},
    "speca": {},
    "pab": {},
}
WORK = {"_wrap_tensor_autograd", "wait_tensor"}  # of the functional collectives, which exchange nothing


class Collectives(TorchDispatchMode):
    """Counts collectives."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = func.namespace in ("c10d", "_c10d_functional") and func._opname not in WORK
        self.count += named
        return func(*args, **(kwargs or {}))


def run(model: Tiny, method: str | None, settings: Mapping[str, Any]) -> tuple[Tensor, dict[str, list[dict[str, Any]]]]:
    """Latents, and by guidance branch the steps of the record, with the collectives of each."""
    if method is None:
        return model(NUM_STEPS), {}
    enable(model.pipe, method, **settings)
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
    found = {name: list(runs[0]["steps"]) for name, runs in records.items()}
    for place, steps in enumerate(found.values()):
        for entry, count in zip(steps, counts[place :: len(found)], strict=True):
            entry["collectives"] = count
    return latents, found


def measure(name: str, methods: Sequence[str], ways: Mapping[str, Callable[[Tiny], None]]) -> dict[str, Any]:
    """By way and method, what two processes gave beside one. ways: each lets a pipeline's tokens be shared."""
    model, found = tiny(name), {}
    alone = {method: run(model, method, CACHES.get(method or "", {})) for method in (None, *methods)}
    plain = alone[None][0]
    for way, share in ways.items():
        model = tiny(name)
        share(model)
        for method, (wanted, expected) in alone.items():
            latents, steps = run(model, method, CACHES.get(method or "", {}))
            together: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(together, steps)
            found[f"{way} {method}"] = {
                "error": float((latents - wanted).abs().max() / wanted.abs().max()),
                "spread": float((wanted - plain).abs().max() / wanted.abs().max()),
                "alone": expected,
                "together": together,
            }
    return found


def check_agreement(found: Mapping[str, Any], way: str) -> None:
    """Latents of one and of two processes are the same within rounding, and the caches do something."""
    cases = {key.removeprefix(f"{way} "): case for key, case in found.items() if key.startswith(way)}
    assert {"None", "taylorseer", "first_block_cache"} <= {*cases}
    for method, case in cases.items():
        assert case["error"] <= TOLERANCE, method
        assert method == "None" or case["spread"] > 20 * TOLERANCE, f"{method} changes nothing"


def check_decisions(found: Mapping[str, Any], way: str) -> None:
    """All processes decide the same, what one alone decides, by signals that are the same to the bit."""
    for key, case in found.items():
        if not key.startswith(way) or not case["alone"]:
            continue
        first, second = case["together"]
        assert first == second, key
        for branch, expected in case["alone"].items():
            kinds = [entry["kind"] for entry in expected]
            assert {"full"} < {*kinds}, f"{key}: {kinds}"
            assert [entry["kind"] for entry in first[branch]] == kinds, key


def collectives(found: Mapping[str, Any], way: str, kind: str) -> set[int]:
    """Of the steps of a kind of TaylorSeer's run."""
    branches = found[f"{way} taylorseer"]["together"][0].values()
    return {entry["collectives"] for steps in branches for entry in steps if entry["kind"] == kind}
