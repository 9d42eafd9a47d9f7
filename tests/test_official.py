"""Every method beside the code that was published with it: the same decisions, the same outputs.

Stored runs are of code that is not installed; diffusers' hooks and cache-dit run here, on the same networks and inputs.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import reference
import torch

from cache_dic import make_cache
from cache_dic.methods.clusca import ClusCa
from cache_dic.methods.magcache import read_table
from cache_dic.methods.toca import ToCa

TOLERANCE = 1e-4  # of outputs and latents, which are about 1
METHODS_STORED = sorted({reference.stored(path.stem)["method"] for path in reference.FOLDER.glob("*.json")})


@pytest.mark.parametrize(("file", "number"), [run for method in METHODS_STORED for run in reference.files(method)])
def test_stored_run(file, number):
    stored = reference.stored(file)
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored["runs"][number]["settings"].items()
    }
    cache = make_cache(stored["method"], preset=stored["network"], **settings)
    compared = reference.compare(file, number, cache)
    assert compared.ours == compared.theirs
    assert compared.difference <= TOLERANCE * max([1, *map(abs, stored["runs"][number].get("latents") or ())])


@dataclass
class Watched:
    """What ToCa's rule decided: kinds of every step, in block 0 and the others, and tokens by step, then by block and site."""

    kinds: list[str] = field(default_factory=list)
    chosen: dict[str, dict[str, str]] = field(default_factory=dict)


@pytest.fixture
def watched(monkeypatch) -> Watched:
    seen, decide, work = Watched(), ToCa.decide, ToCa.work

    def watch_kinds(method, look):
        is_full = decide(method, look)
        seen.kinds.append("+".join(dict.fromkeys(method.kinds)))
        return is_full

    def watch_tokens(method, call):
        rows = work(method, call)
        if isinstance(rows, torch.Tensor):
            seen.chosen.setdefault(str(call.look.step), {})[f"{call.block}.{call.name}"] = reference.chosen(rows)
        return rows

    monkeypatch.setattr(ToCa, "decide", watch_kinds)
    monkeypatch.setattr(ToCa, "work", watch_tokens)
    return seen


@pytest.mark.parametrize(("file", "number"), [run for method in ("toca", "duca") for run in reference.files(method)])
def test_tokens_and_kinds_of_steps_are_those_of_the_official_code(watched, file, number):
    """DiT's interval drifts, block 0 learns of it a step later, ratios follow ramps; FLUX chooses of text and image apart."""
    stored = reference.stored(file)
    run = stored["runs"][number]
    reference.compare(file, number, make_cache(stored["method"], preset=stored["network"], **run["settings"]))
    (branch,) = run["branches"]
    assert watched.kinds == branch["kinds"]
    assert watched.chosen == branch["chosen"]


@pytest.mark.parametrize(("file", "number"), reference.files("clusca"))
def test_clusca_computes_the_tokens_that_the_official_code_does(monkeypatch, file, number):
    """Its random numbers were those of our runs; clusters, and so tokens, follow from the features of all blocks."""
    ours: dict[str, dict[str, str]] = {}
    work = ClusCa.work

    def watch(method, call):
        rows = work(method, call)
        if isinstance(rows, torch.Tensor):
            ours.setdefault(str(call.look.step), {})[f"{call.block}.{call.name}"] = reference.chosen(rows)
        return rows

    monkeypatch.setattr(ClusCa, "work", watch)
    stored = reference.stored(file)
    run = stored["runs"][number]
    reference.compare(file, number, make_cache("clusca", preset=stored["network"], **run["settings"]))
    (branch,) = run["branches"]
    assert ours == branch["chosen"]


def assert_agrees(name: str, method: str, played: Any, **settings: object) -> None:
    """played: what `reference.side_by_side` tells of a run over the open loop of this network."""
    loop = reference.open_loop(name, len(played.outputs[0]))
    runs, outputs = reference.play(name, loop, make_cache(method, **settings))
    assert [run.record()["full_steps"] for run in runs] == played.full_steps
    for ours, theirs in zip(outputs, played.outputs, strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("threshold", [0.06, 0.1, 0.12, 0.16, 0.3])
@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "wan"])
def test_first_block_cache_of_diffusers(need, name, threshold):
    config = need("diffusers").FirstBlockCacheConfig(threshold=threshold)
    from reference import side_by_side

    played = side_by_side.play_hook(name, reference.open_loop(name, 20), config)
    assert_agrees(name, "first_block_cache", played, threshold=threshold)


@pytest.mark.parametrize(("threshold", "max_consecutive", "retention_ratio"), [(0.06, 3, 0.2), (0.24, 5, 0.1)])
@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "wan"])
def test_magcache_of_diffusers(need, name, threshold, max_consecutive, retention_ratio):
    """Its table of 28 ratios in float32, over 20 steps; all branches by the same one."""
    need("diffusers")
    from diffusers.hooks.mag_cache import MagCacheConfig
    from reference import side_by_side

    ratios = torch.tensor(read_table("flux_1_dev").ratios["cond"])

    config = MagCacheConfig(
        threshold=threshold, max_skip_steps=max_consecutive, retention_ratio=retention_ratio, num_inference_steps=20,
        mag_ratios=ratios,
    )  # fmt: skip
    played = side_by_side.play_hook(name, reference.open_loop(name, 20), config)
    assert_agrees(
        name, "magcache", played, table=ratios.double().tolist(), threshold=threshold,
        max_consecutive=max_consecutive, retention_ratio=retention_ratio,
    )  # fmt: skip


@pytest.mark.parametrize("max_order", [1, 2])
@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "wan"])
def test_lite_taylorseer_of_diffusers(need, name, max_order):
    """Its lite mode forecasts the output of the network's last layer."""
    config = need("diffusers").TaylorSeerCacheConfig(
        cache_interval=4, disable_cache_before_step=3, max_order=max_order, taylor_factors_dtype=torch.float32,
        use_lite_mode=True,
    )  # fmt: skip
    from reference import side_by_side

    played = side_by_side.play_hook(name, reference.open_loop(name, 14), config)
    assert_agrees(
        name, "taylorseer", played, engine="output", full_steps=(0, 1, 2, 4, 8, 12), max_order=max_order,
        warmup_steps=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("taylor_order", "settings"),
    [
        (None, {"Fn_compute_blocks": 2, "residual_diff_threshold": 0.12, "max_warmup_steps": 4}),
        (1, {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.2, "max_warmup_steps": 2}),
        (2, {"Fn_compute_blocks": 1, "Bn_compute_blocks": 2, "residual_diff_threshold": 0.2, "max_warmup_steps": 4,
             "max_continuous_cached_steps": 2}),
        (1, {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.3, "max_warmup_steps": 5, "warmup_interval": 2,
             "max_cached_steps": 9}),
        (None, {"Fn_compute_blocks": 1, "residual_diff_threshold": 1.0, "max_warmup_steps": 3,
                "max_continuous_cached_steps": 3}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_dbcache_of_cache_dit(need, name, taylor_order, settings):
    need("cache_dit")
    from reference import side_by_side

    played = side_by_side.play_cache_dit(name, reference.open_loop(name, 20), taylor_order, **settings)
    assert_agrees(name, "dbcache", played, max_order=taylor_order or 0, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 0.25, "residual_order": 1, "retention_steps": 1, "cache_end_steps": 1},
        {"threshold": 0.5, "residual_order": 0, "retention_steps": 3, "cache_end_steps": 2},
        {"threshold": 0.8, "residual_order": 1, "retention_steps": 2, "cache_end_steps": 0},
    ],
)
@pytest.mark.parametrize(("max_consecutive", "power"), [(2, 3.0), (4, 2.0)])
def test_seacache_of_diffusers(need, settings, max_consecutive, power):
    """Its signal is the latents, and it knows Wan alone of our backbones."""
    need("diffusers")
    from diffusers.hooks import SeaCacheConfig
    from reference import side_by_side

    config = SeaCacheConfig(max_consecutive_cached=max_consecutive, power_exp=power, **settings)
    played = side_by_side.play_hook("wan", reference.open_loop("wan", 20), config)
    assert_agrees("wan", "seacache", played, signal="latents", max_consecutive=max_consecutive, power=power, **settings)
