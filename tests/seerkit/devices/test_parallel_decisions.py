"""Schedules that decide while sampling, on processes that share the tokens. Under torchrun, this file prints what its tests
look at."""

import json
import math

import pytest
import reference
import torch
from torch import Tensor, nn

from cache_dic import Cache, make_cache
from seerkit.devices.distributed import World, start_world, stop_world
from seerkit.devices.parallel import parallelize, start_sequence
from seerkit.layers.patches import patchify, token_grid

PROCESSES, NUM_STEPS = 2, 12
CACHES = {  # thresholds that some steps reach and others do not
    "first_block_cache": {"threshold": 0.2},
    "teacache": {"threshold": 0.2, "coefficients": (1.0, 0.0)},
    "easycache": {"threshold": 0.3, "forced_first": 1},
    "pab": {"below": 950},
}
MODELS = ("wan", "hunyuan_video")


def run(name: str, model: nn.Module, cache: Cache) -> list[list[dict]]:
    """By guidance branch, the steps of the record over an open loop of this process's part of the tokens.

    Only the upper half of the video moves in the second half of the steps: the two processes see different changes.
    """
    loop, patch = reference.open_loop(name, NUM_STEPS), model.config.patch_size
    latents, runs = loop.latents.clone(), []
    rows = latents.shape[-2] // 2
    latents[NUM_STEPS // 2 :, ..., rows:, :] = latents[NUM_STEPS // 2, ..., rows:, :]
    grid = token_grid(latents[0].shape, patch)
    parts: list[Tensor] = [model.shard.split(patchify(x, patch)) for x in latents]
    for conditions in loop.branches:
        follows = {"leader": runs[0]} if runs else {}
        runs.append(cache.start(model, parts[0], loop.timesteps, **follows, **conditions))
    for step, x in enumerate(parts):
        for one, conditions in zip(runs, loop.branches, strict=True):
            model(x, loop.timesteps[step].expand(len(x)), **conditions, grid=grid, cache=one.at(step))
    return [one.record()["steps"] for one in runs]


def measure(name: str, world: World) -> dict:
    """By method, the records of one process, and those of every process of two."""
    model, found = reference.network(name), {}
    alone = {method: run(name, model, make_cache(method, **settings)) for method, settings in CACHES.items()}
    parallelize(model, start_sequence(world, heads=3, ulysses=1))
    for method, settings in CACHES.items():
        together: list = [None] * world.size
        torch.distributed.all_gather_object(together, run(name, model, make_cache(method, **settings)))
        found[method] = {"alone": alone[method], "together": together}
    return found


def main() -> None:
    world = start_world("cpu")
    with torch.inference_mode():
        found = {name: measure(name, world) for name in MODELS}
    if world.is_main:
        print(json.dumps(found))
    stop_world()


@pytest.fixture(scope="session")
def found(run_script) -> dict:
    done = run_script(__file__, processes=PROCESSES)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("method", CACHES)
@pytest.mark.parametrize("model", MODELS)
def test_processes_decide_together_what_one_decides(found, model, method):
    alone, together = found[model][method]["alone"], found[model][method]["together"]
    assert together[0] == together[1], "signals too, to the bit"
    for branch, expected in zip(together[0], alone, strict=True):
        kinds = [entry["kind"] for entry in expected]
        assert {"full", "partial" if method == "pab" else "forecast"} == set(kinds)
        assert [entry["kind"] for entry in branch] == kinds
        assert [entry.get("computed") for entry in branch] == [entry.get("computed") for entry in expected]
        for entry, other in zip(branch, expected, strict=True):
            for name in ("change", "total", "rate"):
                if other.get(name) is not None:
                    assert math.isclose(entry[name], other[name], rel_tol=1e-4, abs_tol=1e-6)


if __name__ == "__main__":
    main()
