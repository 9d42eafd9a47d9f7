"""Operations counted from outside a model, on the meta device, 2 per multiply-add, attention included.

Matrix products, convolutions and attention are counted by `torch.utils.flop_counter` from the operations that the model
performs; the element-wise work of a caching engine, which that counter does not see, is added by formula (`Cache.work_flops`).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cache_dic import Cache, make_cache


def grouped_mm_flops(rows: Any, weights: Any, *_: Any, **__: Any) -> int:
    """Of a grouped product by shapes: each of the rows (T, in) times one of the weights (E, in, out)."""
    return 2 * rows[0] * weights[-2] * weights[-1]


COUNTED = {torch.ops.aten._grouped_mm: grouped_mm_flops}  # what torch.utils.flop_counter does not know


def count_flops(function: Callable[[], Any]) -> int:
    """Operations of the matrix products, convolutions and attention calls that `function` performs."""
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def step_flops(model: nn.Module, latents: Tensor, conditions: dict[str, Tensor]) -> tuple[int, int]:
    """Operations of a full and of a forecast step of `model`, a backbone made by type(model)(model.config).

    latents, conditions: as the model gets them; only their shapes matter. The modulation table's share is included: shift,
    scale and gate at a full step, gates alone at a forecast step. Counted once a configuration and shape.
    """
    shapes = tuple(
        (name, tuple(value.shape), torch.float32 if value.is_floating_point() else value.dtype)
        for name, value in conditions.items()
    )  # counts do not depend on precision
    backbone: Any = type(model)
    return _step_flops(backbone, model.config, tuple(latents.shape), shapes)


@functools.lru_cache
def _step_flops(
    backbone: Callable[[Any], nn.Module], config: Any, shape: tuple[int, ...], conditions: tuple
) -> tuple[int, int]:
    with torch.device("meta"):
        twin = backbone(config).eval()
        latents = torch.empty(shape)
        made = {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in conditions}

    def run(num_steps: int) -> None:
        """A first full step, then forecasts."""
        timesteps = torch.zeros(num_steps, device="meta")
        state = make_cache("fora", full_steps=[0]).start(twin, latents, timesteps, **made)
        for step in range(num_steps):
            time = {twin.TIME: timesteps[step].expand(len(latents))}
            twin(latents, **time, **made, cache=state.at(step))

    full = count_flops(lambda: run(1))
    return full, count_flops(lambda: run(2)) - full


def sampling_flops(
    model: nn.Module, cache: Cache, num_steps: int, latents: Tensor, **conditions: Tensor
) -> dict[str, Any]:
    """A sampling run with and without `cache`: `flops_T`, `flops_T_uncached` (10^12), `flops_ratio`, `full_steps`.

    UserError where the cache has a memory limit that it would not keep to.
    """
    plan, tokens = cache.plan(num_steps), model.tokens(latents)
    full, forecast = step_flops(model, latents, conditions)
    if cache.memory_limit is not None:
        cache.check_memory(plan, tokens, latents.device)
    work = cache.work_flops(num_steps, tokens)
    cached = len(plan.full_steps) * full + len(plan.forecast_steps) * forecast + work
    uncached = num_steps * full
    return {
        "flops_T": cached / 1e12,
        "flops_T_uncached": uncached / 1e12,
        "flops_ratio": uncached / cached,
        "flops_T_full_step": full / 1e12,
        "flops_T_forecast_step": forecast / 1e12,
        "flops_T_engine": work / 1e12,
        "full_steps": list(plan.full_steps),
        "kept_bytes": cache.kept_bytes(num_steps, tokens),
        "stream_bytes": tokens.numel * (tokens.stream_dtype or tokens.dtype).itemsize,
    }
