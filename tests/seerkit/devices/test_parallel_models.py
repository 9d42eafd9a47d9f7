"""The video models on two processes. Under torchrun, this file prints what its tests look at."""

import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cache_dic import Cache, make_cache
from hunyuan_video import HunyuanVideo, hunyuan_video_config
from hunyuan_video import sample as sample_hunyuan
from seerkit.devices.distributed import World, start_world, stop_world
from seerkit.devices.parallel import parallelize, shard_weights, start_sequence
from seerkit.layers.patches import patchify, token_grid, unpatchify
from wan import Wan, wan_config
from wan import sample as sample_wan

PROCESSES = 2
SHAPE = (2, 3, 4, 12, 20)  # 15 tokens of 4 x 4 x 4 pixels
TOLERANCE = 1e-5  # of the largest value
NUM_STEPS = 5
CACHE = {"method": "taylorseer", "interval": 3, "max_order": 1, "warmup_steps": 1}  # full steps 0 and 3
LAYOUTS = {"ulysses": (2, 1), "ring": (1, 2)}
MODELS = ("wan", "hunyuan_video")


class Collectives(TorchDispatchMode):
    """Counts collectives."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.namespace in ("c10d", "_c10d_functional")
        return func(*args, **(kwargs or {}))


def make(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model of random weights and its conditions: texts of 7 and 4 tokens."""
    draw = torch.Generator().manual_seed(0)
    if name == "wan":
        model = Wan(wan_config("wan-debug"))
        conditions = {"context": torch.randn(2, model.config.text_len, model.config.text_dim, generator=draw)}
    else:
        model = HunyuanVideo(hunyuan_video_config("hunyuan-debug"))
        config = model.config
        conditions = {
            "text_states": torch.randn(2, 7, config.text_states_dim, generator=draw),
            "text_mask": torch.arange(7) < torch.tensor([[7], [4]]),
            "text_states_2": torch.randn(2, config.text_states_dim_2, generator=draw),
        }
        if config.guidance_embed:
            conditions["guidance"] = torch.full((2,), 6000.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model.eval().requires_grad_(False), conditions


def sample(
    model: nn.Module, noise: Tensor, conditions: dict[str, Tensor], cache: Cache | None = None
) -> tuple[Tensor, dict[str, int]]:
    """Euler steps on this process's patches; and the collectives of full and of forecast steps."""
    grid, patch = token_grid(noise.shape, model.config.patch_size), model.config.patch_size
    x = model.shard.split(patchify(noise, patch))
    timesteps = torch.linspace(1000, 200, NUM_STEPS)
    run = cache and cache.start(model, x, timesteps, **conditions)
    collectives = {"full": 0, "forecast": 0}
    for step in range(NUM_STEPS):
        at = run and run.at(step)
        with Collectives() as counter:
            v = model(x, timesteps[step].expand(len(x)), **conditions, grid=grid, cache=at)
        collectives["full" if at is None or at.is_full else "forecast"] += counter.count
        x = x - 0.2 * v
    return unpatchify(model.shard.gather(x, math.prod(grid)), grid, patch), collectives


def outputs(model: nn.Module, conditions: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """A call of the model, latents without and with a cache, the sampler's, and the collectives of the cached run."""
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    called = model(noise, torch.full((2,), 500.0), **conditions)
    uncached, _ = sample(model, noise, conditions)
    cached, collectives = sample(model, noise, conditions, make_cache(**CACHE))
    texts = {key: value for key, value in conditions.items() if key != "guidance"}
    if isinstance(model, Wan):
        texts["negative"] = -texts["context"]
    sampler = sample_wan if isinstance(model, Wan) else sample_hunyuan
    sampled = sampler(model, noise, **texts, num_steps=NUM_STEPS, cache=make_cache(**CACHE))
    return {"called": called, "uncached": uncached, "cached": cached, "sampled": sampled}, collectives


def measure(name: str, world: World) -> dict:
    """Largest differences to one process by way of sharing, collectives, and the part of the weights that FSDP2 leaves."""
    model, conditions = make(name)
    wanted, _ = outputs(model, conditions)
    found = {"spread": (wanted["cached"] - wanted["uncached"]).abs().max().item(), "errors": {}, "collectives": {}}

    def compare(way: str) -> None:
        got, found["collectives"][way] = outputs(model, conditions)
        for what, value in got.items():
            error = (value - wanted[what]).abs().max() / wanted[what].abs().max()
            found["errors"][f"{way} {what}"] = error.item()

    for way, (ulysses, ring) in LAYOUTS.items():
        shard = start_sequence(world, heads=2, ulysses=ulysses, ring=ring)
        parallelize(model, shard)
        compare(way)
    weights = sum(parameter.numel() for parameter in model.parameters())
    shard_weights(model, world)
    compare("fsdp")
    model.reshard()
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in model.parameters())
    found["held"] = held / weights
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


@pytest.mark.parametrize("way", [*LAYOUTS, "fsdp"])
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_give_what_one_gives(found, model, way):
    errors = {what: error for what, error in found[model]["errors"].items() if what.startswith(way)}
    assert len(errors) == 4
    assert max(errors.values()) <= TOLERANCE, errors
    assert found[model]["spread"] > 100 * TOLERANCE  # the cache changes the latents


@pytest.mark.parametrize("way", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_forecast_steps_communicate_nothing(found, model, way):
    collectives = found[model]["collectives"][way]
    assert collectives["full"] > 0
    assert collectives["forecast"] == 0


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_shared(found, model):
    assert found[model]["held"] < 0.6


if __name__ == "__main__":
    main()
