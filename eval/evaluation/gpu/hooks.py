"""What others put on diffusers' model, timed by step: its own hooks, and cache-dit. Their packages are imported where they are
used.

Settings are the published ones of TaylorSeer for a backbone where a hook has such; thresholds are set so that a hook skips
whenever its own rules of warm-up and interval let it: what is timed is a step of either kind, not how often random weights
have it skip.
"""

import statistics
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cache_dic import UserError
from cache_dic.presets import PRESETS, Preset
from evaluation.gpu.subject import Subject, free, memory_of
from evaluation.rivals import enable_dbcache, taylorseer_hook
from seerkit.devices.timing import spread, timed

STEPS = 20
"""Calls of diffusers' model that are watched: three intervals and more."""

WITHIN, OUTSIDE = 500, 1000
"""Timesteps that hooks are told: in the range in which they skip, and before it."""

RANGE = (0, 1000)
"""Between these, both excluded, hooks that go by timesteps skip."""

ATTENTION_MODULES = [r"(single_)?(transformer_)?blocks\.\d+\.attn\d?"]
"""Those of the models here; diffusers' own pattern finds none in Wan2.1, which calls them attn1 and attn2."""

Time = Callable[[], int]
"""The timestep of the call under way, as hooks ask for it."""

ATTENTION = ("attn.to_q", "attn1.to_q")
"""Layers that run when a block's attention over the tokens is computed, by the end of their names."""


@dataclass(frozen=True)
class Rival:
    """A way to cache diffusers' model. enable, disable: put it on a model and take it off."""

    label: str
    enable: Callable[[nn.Module, Preset, torch.dtype, Time], None]
    disable: Callable[[nn.Module], None]


def _hook(make: Callable[[Preset, torch.dtype, Time], Any]) -> Callable[[nn.Module, Preset, torch.dtype, Time], None]:
    def enable(model: nn.Module, preset: Preset, dtype: torch.dtype, time: Time) -> None:
        model.enable_cache(make(preset, dtype, time))

    return enable


def _disable(model: nn.Module) -> None:
    if getattr(model, "is_cache_enabled", False):
        model.disable_cache()


def _taylorseer(preset: Preset, dtype: torch.dtype, _: Time) -> Any:
    return taylorseer_hook(preset, preset.max_order, dtype, modules=ATTENTION_MODULES)


def _taylorseer_lite(preset: Preset, dtype: torch.dtype, _: Time) -> Any:
    return taylorseer_hook(preset, preset.max_order, dtype, lite=True)


def _first_block(*_: Any) -> Any:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig(threshold=1e9)


def _magcache(preset: Preset, *_: Any) -> Any:
    from diffusers import MagCacheConfig

    return MagCacheConfig(
        threshold=1e9,
        max_skip_steps=preset.interval - 1,
        retention_ratio=preset.warmup_steps / STEPS,
        num_inference_steps=STEPS,
        mag_ratios=[1.0] * STEPS,
    )


def _pab(preset: Preset, _: torch.dtype, time: Time) -> Any:
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=preset.interval,
        spatial_attention_timestep_skip_range=RANGE,
        current_timestep_callback=time,
    )


def _fastercache(preset: Preset, _: torch.dtype, time: Time) -> Any:
    from diffusers import FasterCacheConfig

    return FasterCacheConfig(
        spatial_attention_block_skip_range=preset.interval,
        spatial_attention_timestep_skip_range=RANGE,
        attention_weight_callback=lambda _: 0.3,
        is_guidance_distilled=True,  # attention alone: calls here have no second branch to leave out
        current_timestep_callback=time,
    )


def _enable_dbcache(model: nn.Module, preset: Preset, *_: Any) -> None:
    enable_dbcache(model, preset, preset.max_order)


def _disable_dbcache(model: nn.Module) -> None:
    import cache_dit

    cache_dit.disable_cache(model)


HOOKS = {
    "taylorseer": Rival("TaylorSeer hook", _hook(_taylorseer), _disable),
    "taylorseer-lite": Rival("TaylorSeer hook, lite", _hook(_taylorseer_lite), _disable),
    "first-block-cache": Rival("FirstBlockCache hook", _hook(_first_block), _disable),
    "magcache": Rival("MagCache hook", _hook(_magcache), _disable),
    "pab": Rival("PAB hook", _hook(_pab), _disable),
    "fastercache": Rival("FasterCache hook, attention alone", _hook(_fastercache), _disable),
}
"""Of diffusers, by the names of parts."""

CACHE_DIT = {
    "dbcache-f1": Rival("cache-dit, DBCache F1, TaylorSeer", _enable_dbcache, _disable_dbcache),
}
"""Of cache-dit."""


@contextmanager
def _watched(model: nn.Module):
    """Tells, step by step, whether the last block's attention was computed: a function that answers and forgets."""
    layer = [module for name, module in model.named_modules() if name.endswith(ATTENTION)]
    if not layer:
        raise UserError(f"diffusers' {type(model).__name__} has no attention called {' or '.join(ATTENTION)} to watch")
    calls: list[None] = []
    handle = layer[-1].register_forward_pre_hook(lambda *_: calls.append(None))

    def was_computed() -> bool:
        computed = bool(calls)
        calls.clear()
        return computed

    try:
        yield was_computed
    finally:
        handle.remove()


@torch.inference_mode()
def time_rival(subject: Subject, rival: Rival) -> dict[str, Any]:
    """Steps of diffusers' model with a rival on it, by what they compute, beside steps without it and beside ours."""
    model, arguments = subject.reference
    device, bench = subject.device, subject.bench

    def call() -> Any:
        with model.cache_context("step") if hasattr(model, "cache_context") else nullcontext():
            return model(**arguments)

    plain = [timed(call, device)[1] for _ in range(bench.num_timings)]
    try:
        preset = PRESETS[subject.package]
        kinds: dict[str, list[float]] = {"computed": [], "cached": []}

        def step_time() -> int:
            return OUTSIDE if sum(map(len, kinds.values())) < preset.warmup_steps else WITHIN

        rival.enable(model, preset, subject.dtype, step_time)
        with _watched(model) as was_computed:

            def steps() -> None:
                for _ in range(STEPS):
                    seconds = timed(call, device)[1]
                    kinds["computed" if was_computed() else "cached"].append(seconds)

            memory = memory_of(steps, device)
    finally:
        rival.disable(model)
        free(device)
    if not kinds["cached"]:
        raise UserError(f"{rival.label} computed the attention of the last block in all of {STEPS} steps")
    full = bench.summary(plain)
    return {
        "label": rival.label,
        "full_step": full,
        # The first of a kind pays for kernels and memory, the others follow it.
        "steps": {kind: spread(seconds[1:] or seconds) for kind, seconds in kinds.items() if seconds},
        "cached_over_full": statistics.median(kinds["cached"]) / full["median_s"],
        "memory": memory,
        "ours": subject.own_steps,
    }
