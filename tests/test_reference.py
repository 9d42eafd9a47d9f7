"""The stored vectors belong to these networks and inputs, and the classes of diffusers are the same networks."""

import functools
from typing import Any

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


def first_quick(settings: list) -> list:
    """Parameters of which all but the first are for the slow tests."""
    return [settings[0], *(pytest.param(other, marks=pytest.mark.slow) for other in settings[1:])]


# Settings of PAB by our names and by diffusers' configuration: a window of training timesteps, and ranges.
PAB = [
    {"spatial_range": 2, "above": 100, "below": 800},
    {"spatial_range": 3, "above": 50, "below": 950},
    {"spatial_range": 5, "above": 300, "below": 2000},
]
OF_CROSS = [
    {"spatial_range": 2, "cross_range": 6, "above": 100, "below": 900},
    {"spatial_range": 3, "cross_range": 2, "above": 0, "below": 2000},
]


def play_pab(name: str, loop: reference.OpenLoop, above: float, below: float, **ranges: int) -> Any:
    from reference import side_by_side

    given: dict[str, object] = {}
    for kind in ("spatial", "cross"):
        given[f"{kind}_attention_timestep_skip_range"] = (above, below)
        if f"{kind}_range" in ranges:
            given[f"{kind}_attention_block_skip_range"] = ranges[f"{kind}_range"]
    return side_by_side.play_pab(name, loop, **given)


@pytest.mark.parametrize("settings", first_quick(PAB))
@pytest.mark.parametrize("name", ["flux", "hidream", "hunyuan_video"])
def test_pab_is_that_of_diffusers(need, name, settings):
    need("diffusers")
    loop = reference.open_loop(name, 24)
    played = play_pab(name, loop, **settings)
    runs, ours = reference.play(name, loop, make_cache("pab", **settings))
    assert [run.full_steps for run in runs] == played.full_steps
    assert 1 < len(runs[0].full_steps) < 24
    assert (ours[0] - played.outputs[0]).abs().max() <= 1e-4
    assert (ours[0] - outputs(name, 24)[0]).abs().max() > 0.05, "what is reused shows"


@pytest.mark.parametrize("settings", first_quick([*OF_CROSS, *PAB]))
def test_pab_on_wan_is_that_of_diffusers_branch_by_branch_and_as_its_calls_share_it(need, settings):
    """Each branch alone under the hook is our reading; under one hook for both calls is `shared_branches`."""
    need("diffusers")
    loop = reference.open_loop("wan", 24)
    runs, ours = reference.play("wan", loop, make_cache("pab", **settings))
    for branch, run, found in zip(loop.branches, runs, ours, strict=True):
        alone = reference.OpenLoop(loop.timesteps, loop.sigmas, loop.latents, (branch,))
        played = play_pab("wan", alone, **settings)
        attended = [
            entry["step"]
            for entry in run.steps
            if entry.get("computed", {}).get("self_attn", "everything") == "everything"
        ]
        assert attended == played.full_steps[0]
        assert (found - played.outputs[0]).abs().max() <= 1e-4
    played = play_pab("wan", loop, **settings)
    runs, shared = reference.play("wan", loop, make_cache("pab", **settings, shared_branches=True))
    assert (torch.stack(shared) - torch.stack(played.outputs)).abs().max() <= 1e-4
    assert (torch.stack(shared) - torch.stack(ours)).abs().max() > 0.05, "the two readings differ"
    if "cross_range" not in settings:
        assert [run.full_steps for run in runs] == played.full_steps


# FasterCache by our names; diffusers' follow from them.
FASTER = [
    {},
    {"weight": 0.3, "attention_range": 3, "attention_below": 900, "both_range": 4, "both_above": 100, "both_below": 950,
     "low_gain": 1.2, "high_gain": 0.9, "high_above": 300, "high_below": 700},
    {"weight": 1.0, "attention_range": 4, "attention_above": 200, "attention_below": 990, "both_range": 2, "both_below": 2000,
     "low_gain": 0.8, "low_above": -1, "low_below": 2000},
]  # fmt: skip


def play_faster_cache(name: str, loop: reference.OpenLoop, settings: dict[str, float]) -> Any:
    from reference import side_by_side

    from cache_dic.settings import values_of

    of = values_of(make_cache("fastercache_diffusers", **settings).decider())

    def window(kind: str) -> tuple[float, float]:
        return of[f"{kind}_above"], of[f"{kind}_below"]

    return side_by_side.play_faster_cache(
        name, loop, is_guidance_distilled=len(loop.branches) == 1, attention_weight_callback=lambda _: of["weight"],
        spatial_attention_block_skip_range=of["attention_range"], spatial_attention_timestep_skip_range=window("attention"),
        unconditional_batch_skip_range=of["both_range"], unconditional_batch_timestep_skip_range=window("both"),
        alpha_low_frequency=of["low_gain"], low_frequency_weight_update_timestep_range=window("low"),
        alpha_high_frequency=of["high_gain"], high_frequency_weight_update_timestep_range=window("high"),
    )  # fmt: skip


@pytest.mark.parametrize("settings", first_quick(FASTER))
@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "wan"])
def test_faster_cache_is_that_of_diffusers(need, name, settings):
    """Of FLUX and HunyuanVideo the attention part; of Wan both, where the hook is handed the branches as one batch."""
    need("diffusers")
    loop = reference.open_loop(name, 30)
    played = play_faster_cache(name, loop, settings)
    runs, ours = reference.play(name, loop, make_cache("fastercache_diffusers", **settings))
    assert runs[0].full_steps == played.full_steps[0]
    assert 1 < len(runs[0].full_steps) < 30
    for found, theirs, plain in zip(ours, played.outputs, outputs(name, 30), strict=True):
        assert (found - theirs).abs().max() <= 1e-4
        assert (found - plain).abs().max() > 0.05, "what is made of other steps shows"


def test_faster_cache_of_diffusers_finds_nothing_in_hidream(need):
    """Why it is not compared there: its names of blocks match none."""
    need("diffusers")
    import re

    from diffusers.hooks import faster_cache
    from diffusers.hooks._common import _ATTENTION_CLASSES
    from reference import side_by_side

    def found(name: str) -> list[str]:
        modules = side_by_side.diffusers_network(name).named_modules()
        attention = [key for key, module in modules if isinstance(module, _ATTENTION_CLASSES)]
        assert attention
        names = faster_cache._TRANSFORMER_BLOCK_IDENTIFIERS
        return [key for key in attention if any(re.search(name, key) for name in names)]

    assert found("hidream") == []
    assert len(found("wan")) == 2 * reference.CONFIGS["wan"].num_layers, (
        "self- and cross-attention; the hook leaves the latter"
    )
