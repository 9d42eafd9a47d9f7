"""The same steps and outputs as diffusers' own hooks (0.42.1) for the same configurations, on tiny pipelines in float32.

| diffusers | here | settings that make them equal |
|---|---|---|
| `TaylorSeerCacheConfig(cache_interval, max_order, disable_cache_before_step)`, every attention and MLP among `cache_identifiers` | `taylorseer` | `schedule="diffusers"`, `interval`, `max_order`, `warmup_steps` |
| the same of order 2 and above after a warm-up of 3 steps and more, or with `disable_cache_after_step` | `taylorseer` | `full_steps=[…]`, `warmup_steps=1`: differences from the second full step on, any full steps |
| `use_lite_mode=True` | `taylorseer` | as above, `engine="output"`: the transformer's output is forecast |
| its default identifiers: attention alone, on Wan nothing | none | a method of ten lines (`AttentionTaylor` below) |
| `taylor_factors_dtype`, bfloat16 where nothing is said | none | float32: sums here are float32, and differences of features are never rounded to less |
| `FirstBlockCacheConfig(threshold)` | `first_block_cache` | `threshold` |
| `MagCacheConfig(mag_ratios, threshold, max_skip_steps, retention_ratio)` | `magcache` | `table`, `threshold`, `max_consecutive`, `retention_ratio`; `forced=False` with a table of a model whose script forces a step |
| `PyramidAttentionBroadcastConfig` | `pab` | `spatial_range`, `cross_range`, `above`, `below`; `shared_branches=True` where guidance has calls of its own |
| `FasterCacheConfig(is_guidance_distilled=True)` | `fastercache_diffusers` | `attention_range`, `attention_above`, `attention_below`, `weight`; with guidance its pipelines would have to make one batch |
| `SeaCacheConfig` | `seacache` | `signal="latents"`, `residual_order=1`, `max_consecutive=2`, `power=3.0`, `threshold` |

Where nothing is said the methods here are those of their papers: Taylor's schedule without the short first gap, MagCache's
forced step, attention and features of every branch for itself, SeaCache's signal after block 0.
"""  # noqa: E501 - documents take the table as it stands

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    SeaCacheConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from tiny_pipelines import Tiny, tiny
from torch import Tensor, nn

from cache_dic.forecast import Taylor
from cache_dic.methods.pab import AttentionReuse
from cache_dic.partial import ATTENTION, EVERYTHING, NOTHING
from cache_dic.registry import METHODS, register
from cache_dic.schedule import SCHEDULES, diffusers
from taylorseers_diffusers import disable, enable

STEPS = 12
WITHIN = 1e-4
ALL = {
    "flux": [r"transformer_blocks\.\d+\.(attn|ff|ff_context)", r"single_transformer_blocks\.\d+\.proj_out"],
    "hunyuan_video": [r"transformer_blocks\.\d+\.(attn|ff|ff_context)", r"single_transformer_blocks\.\d+\.proj_out"],
    "wan": [r"blocks\.\d+\.(attn1|attn2|ffn)"],
}
"""What diffusers is to forecast so that it is every site."""


@contextmanager
def calls(model: Tiny, block: int = -1) -> Iterator[list[bool]]:
    """By call of the transformer, whether the attention of a block was computed, as a layer in it sees it."""
    found: list[bool] = []
    blocks = [block for child in model.transformer.children() if isinstance(child, nn.ModuleList) for block in child]
    attention = getattr(blocks[block], "attn1", None) or blocks[block].attn

    def computed(*_: Any) -> None:
        found[-1] = True

    begun = model.transformer.register_forward_pre_hook(lambda *_: found.append(False))
    seen = attention.to_q.register_forward_pre_hook(computed)
    try:
        yield found
    finally:
        begun.remove()
        seen.remove()


def compared(
    model: Tiny, config: Any, method: str, num_steps: int = STEPS, block: int = -1, **settings: Any
) -> tuple[float, list[bool]]:
    """How far our output is from diffusers', and by call what was computed in a block, which is the same; fails where not."""
    plain = model(num_steps)
    with calls(model, block) as theirs:
        model.transformer.enable_cache(config)
        expected = model(num_steps)
        model.transformer.disable_cache()
    enable(model.pipe, method, **settings)
    with calls(model, block) as ours:
        found = model(num_steps)
    disable(model.pipe)
    assert ours == theirs
    assert not all(theirs), "nothing was left out"
    assert (expected - plain).norm() > 10 * WITHIN * plain.norm(), "nothing to compare"
    return float((found - expected).norm() / expected.norm()), theirs


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Diffusers warns of every FasterCache."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("model", ALL)
@pytest.mark.parametrize(("interval", "max_order", "warmup_steps"), [(5, 1, 3), (4, 2, 2)])
def test_taylorseer(model: str, interval: int, max_order: int, warmup_steps: int) -> None:
    config = TaylorSeerCacheConfig(
        cache_interval=interval, max_order=max_order, disable_cache_before_step=warmup_steps,
        cache_identifiers=ALL[model], taylor_factors_dtype=torch.float32,
    )  # fmt: skip
    settings = {"interval": interval, "max_order": max_order, "warmup_steps": warmup_steps}
    distance, computed = compared(tiny(model), config, "taylorseer", block=0, schedule="diffusers", **settings)
    assert distance < WITHIN
    branches = 2 if model == "wan" else 1
    full = {(5, 1, 3): [0, 1, 2, 4, 9], (4, 2, 2): [0, 1, 3, 7, 11]}[interval, max_order, warmup_steps]
    assert [step for step, was in enumerate(computed[::branches]) if was] == full


def test_taylorseer_of_order_two_after_a_longer_warm_up_and_with_full_steps_at_the_end() -> None:
    config = TaylorSeerCacheConfig(
        cache_interval=4, max_order=2, disable_cache_before_step=4, disable_cache_after_step=10,
        cache_identifiers=ALL["flux"], taylor_factors_dtype=torch.float32,
    )  # fmt: skip
    given = {"full_steps": [0, 1, 2, 3, 5, 9, 10, 11], "warmup_steps": 1, "max_order": 2}
    distance, _ = compared(tiny("flux"), config, "taylorseer", block=0, **given)
    assert distance < WITHIN


@pytest.mark.parametrize("model", ALL)
def test_taylorseer_lite(model: str) -> None:
    """The probe is within a block, which diffusers passes by at the same steps."""
    config = TaylorSeerCacheConfig(
        cache_interval=5,
        max_order=1,
        disable_cache_before_step=3,
        use_lite_mode=True,
        taylor_factors_dtype=torch.float32,
    )
    settings = {"interval": 5, "max_order": 1, "warmup_steps": 3, "schedule": "diffusers", "engine": "output"}
    distance, _ = compared(tiny(model), config, "taylorseer", **settings)
    assert distance < WITHIN


def test_factors_in_bfloat16_are_what_makes_the_difference() -> None:
    config = TaylorSeerCacheConfig(cache_interval=5, cache_identifiers=ALL["flux"])
    settings = {"interval": 5, "max_order": 1, "warmup_steps": 3, "schedule": "diffusers"}
    distance, _ = compared(tiny("flux"), config, "taylorseer", block=0, **settings)
    assert WITHIN < distance < 0.01


def test_attention_alone_is_forecast_by_a_method_of_ones_own() -> None:
    @register("attention_taylor")
    @dataclass(kw_only=True)
    class AttentionTaylor(AttentionReuse):
        interval: int = 5
        history = 2

        def decide(self, look: Any) -> bool:
            return look.step in diffusers(look.num_steps, interval=self.interval, warmup_steps=3)

        def work(self, call: Any) -> str:
            return NOTHING if call.kind == ATTENTION else EVERYTHING

        def forecast(self, call: Any, values: list[Tensor]) -> Tensor:
            weights = Taylor(max_order=1, warmup_steps=1).weights(call.look.full_steps, call.look.step)
            return sum(weight * value for weight, value in zip(weights, values, strict=True))

    try:
        config = TaylorSeerCacheConfig(cache_interval=5, taylor_factors_dtype=torch.float32)
        distance, _ = compared(tiny("flux"), config, "attention_taylor")
    finally:
        del METHODS["attention_taylor"], SCHEDULES["attention_taylor"]
    assert distance < WITHIN


@pytest.mark.parametrize(("model", "threshold"), [("flux", 0.6), ("hunyuan_video", 0.6), ("wan", 0.2)])
def test_first_block_cache(model: str, threshold: float) -> None:
    distance, computed = compared(
        tiny(model), FirstBlockCacheConfig(threshold=threshold), "first_block_cache", threshold=threshold
    )
    assert distance < WITHIN
    assert 1 < sum(computed) < len(computed), "decided, not always or never"


@pytest.mark.parametrize("model", ALL)
def test_magcache(model: str) -> None:
    ratios = [1.0, *(1 - 0.02 * (step % 3) for step in range(STEPS - 1))]
    settings = {"threshold": 0.06, "retention_ratio": 0.2}
    config = MagCacheConfig(mag_ratios=ratios, num_inference_steps=STEPS, max_skip_steps=3, **settings)
    distance, computed = compared(tiny(model), config, "magcache", table=ratios, max_consecutive=3, **settings)
    assert distance < WITHIN
    assert [step for step, was in enumerate(computed[:: 2 if model == "wan" else 1]) if was] == [0, 1, 3, 6, 9]


def test_magcache_with_the_table_of_flux_at_another_number_of_steps() -> None:
    config = MagCacheConfig(mag_ratios=FLUX_MAG_RATIOS, num_inference_steps=STEPS, threshold=0.2)
    settings = {"table": "flux_1_dev", "threshold": 0.2, "max_consecutive": 3, "retention_ratio": 0.2}
    distance, _ = compared(tiny("flux"), config, "magcache", forced=False, **settings)
    assert distance < WITHIN


@pytest.mark.parametrize(
    ("model", "theirs", "ours"),
    [
        ("flux", {"spatial": 2}, {"spatial_range": 2}),
        ("hunyuan_video", {"spatial": 3}, {"spatial_range": 3}),
        ("wan", {"spatial": 2, "cross": 3}, {"spatial_range": 2, "cross_range": 3, "shared_branches": True}),
    ],
)
def test_pyramid_attention_broadcast(model: str, theirs: dict[str, int], ours: dict[str, Any]) -> None:
    made, window = tiny(model), (100, 950)
    ranges = {f"{kind}_attention_block_skip_range": count for kind, count in theirs.items()}
    windows = {f"{kind}_attention_timestep_skip_range": window for kind in theirs}
    config = PyramidAttentionBroadcastConfig(
        **ranges, **windows, current_timestep_callback=lambda: made.pipe.current_timestep
    )
    distance, _ = compared(made, config, "pab", above=100.0, below=950.0, **{"cross_range": None, **ours})
    assert distance < WITHIN


def test_attention_of_each_branch_for_itself_is_another_method_than_diffusers() -> None:
    """Its count and store are of the module, so that on Wan, cond computes and uncond reuses what cond attended to."""
    made = tiny("wan")
    made.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, spatial_attention_timestep_skip_range=(100, 950),
            current_timestep_callback=lambda: made.pipe.current_timestep,
        )
    )  # fmt: skip
    with calls(made) as theirs:
        made(STEPS)
    made.transformer.disable_cache()
    enable(made.pipe, "pab", spatial_range=2, cross_range=None, above=100.0, below=950.0)
    with calls(made) as ours:
        made(STEPS)
    assert theirs[8:12] == [True, False, True, False]
    assert ours[8:12] == [True, True, False, False]


@pytest.mark.parametrize("model", ["flux", "hunyuan_video"])
def test_fastercache(model: str) -> None:
    made = tiny(model)
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=3, spatial_attention_timestep_skip_range=(-1, 900), is_guidance_distilled=True,
        attention_weight_callback=lambda _: 0.3, tensor_format="BFCHW",
        current_timestep_callback=lambda: made.pipe.current_timestep,
    )  # fmt: skip
    settings = {"attention_range": 3, "attention_above": -1.0, "attention_below": 900.0, "weight": 0.3}
    distance, _ = compared(made, config, "fastercache_diffusers", **settings)
    assert distance < WITHIN


@pytest.mark.parametrize("threshold", [0.25, 1.0])
def test_seacache(threshold: float) -> None:
    settings = {"signal": "latents", "residual_order": 1, "max_consecutive": 2, "power": 3.0}
    distance, computed = compared(
        tiny("wan"), SeaCacheConfig(threshold=threshold), "seacache", 16, threshold=threshold, **settings
    )
    assert distance < WITHIN
    full = {0.25: [0, 3, 5, 6, 8, 10, 12, 14, 15], 1.0: [0, 3, 6, 9, 12, 15]}[threshold]
    assert [step for step, was in enumerate(computed[::2]) if was] == full
