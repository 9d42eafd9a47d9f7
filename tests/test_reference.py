"""The stored vectors belong to these networks and inputs, and the classes of diffusers are the same networks."""

import functools

import pytest
import reference
import torch

from cache_dic import make_cache

TOLERANCE = 1e-5  # of outputs, which are about 1
FILES = sorted(path.stem for path in reference.FOLDER.glob("*.json"))


@functools.cache
def outputs(name: str, num_steps: int) -> list[torch.Tensor]:
    """Of our network without a cache over the open loop, (S, B, …) by branch."""
    model, loop = reference.network(name), reference.open_loop(name, num_steps)
    return [
        torch.stack(
            [
                model(x, **{model.TIME: t.expand(len(x))}, **given)
                for x, t in zip(loop.latents, loop.timesteps, strict=True)
            ]
        )
        for given in loop.branches
    ]


@pytest.mark.parametrize("file", FILES)
def test_full_steps_of_the_official_code_are_ours(file):
    """At a full step every method has the plain model's output; a skipped step has another."""
    stored = reference.stored(file)
    for run in stored["runs"]:
        if run["loop"] == "closed":
            continue
        plain = outputs(stored["network"], run["num_steps"])
        for ours, branch in zip(plain, run["branches"], strict=True):
            expected = torch.tensor([reference.sampled(output) for output in ours])
            difference = (expected - torch.tensor(branch["outputs"])).abs().amax(1)
            full = torch.zeros(run["num_steps"], dtype=torch.bool)
            full[branch["full_steps"]] = True
            assert difference[full].max() <= TOLERANCE
            assert (difference[~full] > TOLERANCE).all()


@pytest.mark.parametrize("file", FILES)
def test_files_decide_both_ways(file):
    runs = reference.stored(file)["runs"]
    assert {run["loop"] for run in runs} == {"open", "closed"}
    for run in runs:
        for branch in run["branches"]:
            assert 0 < len(branch["full_steps"]) < run["num_steps"]
            assert len(branch["signal"]) == len(branch["accumulated"]) == run["num_steps"]


@pytest.mark.parametrize("name", ["flux", "hidream", "hunyuan_video", "wan"])
def test_diffusers_class_is_the_same_network(need, name):
    need("diffusers")
    from reference import side_by_side

    loop = reference.open_loop(name, 3)
    played = side_by_side.play(side_by_side.diffusers_network(name), name, loop)
    assert played.full_steps == [[0, 1, 2]] * len(loop.branches)
    for ours, theirs in zip(outputs(name, 3), played.outputs, strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE


def test_hooks_of_diffusers_and_cache_dit_play(need):
    """Both ways are taken, branches decide for themselves, and what is computed is the plain model's."""
    diffusers, _ = need("diffusers"), need("cache_dit")
    from reference import side_by_side

    loop = reference.open_loop("wan", 20)
    plain = outputs("wan", 20)
    hook = side_by_side.play_hook("wan", loop, diffusers.FirstBlockCacheConfig(threshold=0.12))
    dual = side_by_side.play_cache_dit(
        "wan", loop, 1, Fn_compute_blocks=2, Bn_compute_blocks=1, residual_diff_threshold=0.12, max_warmup_steps=4
    )
    assert dual.signals[0].keys() == dual.signals[1].keys() == set(range(4, 20))
    for played in (hook, dual):
        assert played.full_steps[0] != played.full_steps[1]
        for ours, theirs, full_steps in zip(plain, played.outputs, played.full_steps, strict=True):
            difference = (ours - theirs).flatten(1).abs().amax(1)
            assert [step for step in range(20) if difference[step] <= TOLERANCE] == full_steps


@pytest.mark.parametrize("max_order", [1, 2])
@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "wan"])
def test_taylorseer_is_that_of_diffusers(need, name, max_order):
    """Its full steps, and its differences from the second full step on."""
    diffusers = need("diffusers")
    from reference import side_by_side

    loop, full_steps = reference.open_loop(name, 14), (0, 1, 2, 4, 8, 12)
    config = diffusers.TaylorSeerCacheConfig(
        cache_interval=4, disable_cache_before_step=3, max_order=max_order, taylor_factors_dtype=torch.float32,
        cache_identifiers=side_by_side.SITES[name],
    )  # fmt: skip
    played = side_by_side.play_hook(name, loop, config)
    assert played.full_steps == [list(full_steps)] * len(loop.branches)
    assert make_cache(schedule="diffusers", interval=4, warmup_steps=3).plan(14).full_steps == full_steps
    cache = make_cache(full_steps=full_steps, max_order=max_order, warmup_steps=1)
    _, outputs = reference.play(name, loop, cache)
    for ours, theirs in zip(outputs, played.outputs, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4
