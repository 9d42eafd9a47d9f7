"""Other implementations of FLUX to compare with on the same shapes: diffusers' TaylorSeer hook, cache-dit, and a forecaster
for every module, as the authors released it. diffusers and cache-dit are imported where they are used.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import PRESETS
from cache_dic.engine import weighted_sum
from cache_dic.presets import Preset
from evaluation.operations import count_operations
from seerkit.layers.modulation import TwoStreamModulation
from seerkit.sampling.workload import Backbone, Case

Advance = Callable[[], Any]
"""The next step of a sampling run, on the same inputs."""

Make = Callable[[Backbone, Case, int], Advance]
"""Makes a rival of a FLUX case and the highest order."""

COUNTED = 7
"""The step, 0-based, that is a forecast from a full history in all of them: with three warm-up steps and an interval of 6
full steps are 0 to 2 and, in diffusers' hook, 4."""


def taylorseer_hook(
    preset: Preset, max_order: int, dtype: torch.dtype, *, lite: bool = False, modules: list[str] | None = None
) -> Any:
    """Settings of diffusers' TaylorSeer hook on the attention modules, its default; `lite`: on the output layer, all blocks
    skipped. modules: patterns of the names of others."""
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(
        cache_interval=preset.interval,
        disable_cache_before_step=preset.warmup_steps,
        max_order=max_order,
        taylor_factors_dtype=dtype,
        use_lite_mode=lite,
        cache_identifiers=modules,
    )


def diffusers_hook(backbone: Backbone, case: Case, max_order: int, *, lite: bool = False) -> Advance:
    """diffusers' model with its TaylorSeer hook."""
    model, arguments = backbone.reference(case)
    model.enable_cache(taylorseer_hook(PRESETS["flux"], max_order, case.latents.dtype, lite=lite))

    def advance() -> Any:
        with model.cache_context("step"):
            return model(**arguments)

    return advance


def diffusers_hook_lite(backbone: Backbone, case: Case, max_order: int) -> Advance:
    return diffusers_hook(backbone, case, max_order, lite=True)


def enable_dbcache(model: nn.Module, preset: Preset, max_order: int, *, blocks: int = 1, num_steps: int = 50) -> None:
    """cache-dit's DBCache with its TaylorSeer calibrator on diffusers' model: the first `blocks` blocks computed, the others
    forecast in every step after the warm-up."""
    import cache_dit

    for handler in logging.getLogger("CACHE_DIT").handlers:
        handler.setLevel(logging.WARNING)  # it would tell what it does on stdout
    cache_dit.enable_cache(
        model,
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=blocks,
            Bn_compute_blocks=0,
            max_warmup_steps=preset.warmup_steps,
            residual_diff_threshold=float("inf"),
            num_inference_steps=num_steps,
        ),
        calibrator_config=cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=max_order),
    )


def cache_dit_dbcache(backbone: Backbone, case: Case, max_order: int) -> Advance:
    model, arguments = backbone.reference(case)
    enable_dbcache(model, PRESETS["flux"], max_order)
    return lambda: model(**arguments)


def per_module(_: Backbone, case: Case, max_order: int) -> Advance:
    """Forecast steps of the authors' form: factors of every module of both streams, every modulation computed anew.

    Their sums are in the best form that we know: one operation for each term, one for gate and addition. The factors are made
    up: what is dispatched depends on their shapes alone.
    """
    model, inputs = case.model, case.conditions
    t = torch.full((case.rows,), 0.5, device=case.latents.device)
    streams = model.embed(case.latents), model.txt_in(inputs["txt"])

    terms = [1 / math.factorial(order) for order in range(max_order + 1)]  # of the Taylor sum one step after a full one

    def factors(like: Tensor) -> list[Tensor]:
        return [torch.randn_like(like) for _ in terms]

    def advanced(x: Tensor, gate: Tensor, module: list[Tensor]) -> Tensor:
        return torch.addcmul(x, gate, weighted_sum(module, terms))

    double = [[[factors(stream), factors(stream)] for stream in streams] for _ in model.double_blocks]
    single = [factors(torch.cat(streams[::-1], dim=1)) for _ in model.single_blocks]

    def advance() -> Tensor:
        c = model.condition(t, inputs["y"], inputs.get("guidance"))
        model.rope(torch.cat([inputs["txt_ids"], inputs["img_ids"]], dim=1))  # computed, though nothing rotates
        tokens = [model.embed(case.latents), model.txt_in(inputs["txt"])]
        for block, modules in zip(model.double_blocks, double, strict=True):
            for i, (modulation, (attention, mlp)) in enumerate(zip(block.modulation(c), modules, strict=True)):
                rows = modulation.unsqueeze(2).unbind(1)
                tokens[i] = advanced(tokens[i], rows[2], attention)
                tokens[i] = advanced(tokens[i], rows[5], mlp)
        img, txt = tokens
        x = torch.cat([txt, img], dim=1)
        for block, module in zip(model.single_blocks, single, strict=True):
            x = advanced(x, block.modulation(c).unsqueeze(2).unbind(1)[2], module)
        return model.head(x[:, txt.shape[1] :], TwoStreamModulation(None, model.final_layer.modulation(c)))

    return advance


RIVALS: dict[str, tuple[str | None, Make]] = {
    "a forecast for every module": (None, per_module),
    "TaylorSeer hook": ("diffusers", diffusers_hook),
    "TaylorSeer hook, lite": ("diffusers", diffusers_hook_lite),
    "DBCache, first block computed, TaylorSeer": ("cache-dit", cache_dit_dbcache),
}
"""By name: the package that it needs, and what makes it."""


def count_rival(make: Make, backbone: Backbone, case: Case, max_order: int) -> int:
    """Operations of a forecast step of one of RIVALS."""
    advance = make(backbone, case, max_order)
    for _ in range(COUNTED):
        advance()
    return count_operations(advance)
