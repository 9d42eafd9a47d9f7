"""Other implementations to compare with on the same shapes: diffusers' models and its TaylorSeer hook, cache-dit, and a
forecaster for every module, as the authors released it. diffusers and cache-dit are imported where they are used.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import PRESETS
from cache_dic.engine import weighted_sum
from evaluation.operations import count_operations
from flux import Flux, FluxConfig
from hidream import HiDreamConfig
from hunyuan_video import HunyuanVideoConfig
from seerkit.layers.modulation import TwoStreamModulation
from wan import WanConfig

Advance = Callable[[], Any]
"""The next step of a sampling run, on the same inputs."""

COUNTED = 7
"""The step, 0-based, that is a forecast from a full history in all of them: with three warm-up steps and an interval of 6
full steps are 0 to 2 and, in diffusers' hook, 4."""


def diffusers_flux(config: FluxConfig) -> nn.Module:
    """diffusers' FluxTransformer2DModel of a configuration, random weights, on the default device."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=config.depth,
        num_single_layers=config.depth_single_blocks,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.context_in_dim,
        pooled_projection_dim=config.vec_in_dim,
        guidance_embeds=config.guidance_embed,
        axes_dims_rope=config.axes_dim,
    )


def diffusers_arguments(img: Tensor, conditions: Mapping[str, Tensor], *, t: float = 0.5) -> dict[str, Any]:
    """Arguments of its call for the inputs of a call of `Flux` at time t."""
    arguments = {
        "hidden_states": img,
        "encoder_hidden_states": conditions["txt"],
        "pooled_projections": conditions["y"],
        "timestep": torch.full((len(img),), t, device=img.device, dtype=img.dtype),
        "img_ids": conditions["img_ids"][0],
        "txt_ids": conditions["txt_ids"][0],
        "return_dict": False,
    }
    if "guidance" in conditions:
        arguments["guidance"] = conditions["guidance"].to(img.dtype)
    return arguments


def diffusers_hunyuan_video(config: HunyuanVideoConfig) -> nn.Module:
    """diffusers' HunyuanVideoTransformer3DModel of a configuration, random weights, on the default device."""
    from diffusers import HunyuanVideoTransformer3DModel

    patch_t, patch, _ = config.patch_size
    return HunyuanVideoTransformer3DModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_attention_heads=config.heads_num,
        attention_head_dim=config.head_dim,
        num_layers=config.mm_double_blocks_depth,
        num_single_layers=config.mm_single_blocks_depth,
        num_refiner_layers=config.refiner_depth,
        mlp_ratio=config.mlp_width_ratio,
        patch_size=patch,
        patch_size_t=patch_t,
        guidance_embeds=config.guidance_embed,
        text_embed_dim=config.text_states_dim,
        pooled_projection_dim=config.text_states_dim_2,
        rope_theta=config.rope_theta,
        rope_axes_dim=config.rope_dim_list,
    )


def diffusers_hunyuan_video_arguments(
    latents: Tensor, conditions: Mapping[str, Tensor], *, t: float = 500.0
) -> dict[str, Any]:
    """Arguments of its call for the inputs of a call of `HunyuanVideo` at time t, every text token valid."""
    text = conditions["text_states"]
    guidance = conditions.get("guidance")
    return {
        "hidden_states": latents,
        "timestep": torch.full((len(latents),), t, device=latents.device),
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(text.shape[:2], device=text.device, dtype=torch.int64),
        "pooled_projections": conditions["text_states_2"],
        "guidance": None if guidance is None else guidance.to(latents.dtype),
        "return_dict": False,
    }


def diffusers_wan(config: WanConfig) -> nn.Module:
    """diffusers' WanTransformer3DModel of a configuration, random weights, on the default device."""
    from diffusers import WanTransformer3DModel

    has_image = config.model_type == "i2v"
    return WanTransformer3DModel(
        patch_size=config.patch_size,
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_dim,
        out_channels=config.out_dim,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=config.num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        eps=config.eps,
        image_dim=config.image_dim if has_image else None,
        added_kv_proj_dim=config.dim if has_image else None,
    )


def diffusers_wan_arguments(latents: Tensor, conditions: Mapping[str, Tensor], *, t: int = 500) -> dict[str, Any]:
    """Arguments of its call for the inputs of a call of `Wan` at time t."""
    first_frame = [conditions["y"]] if "y" in conditions else []
    return {
        "hidden_states": torch.cat([latents, *first_frame], dim=1),
        "timestep": torch.full((len(latents),), t, device=latents.device),
        "encoder_hidden_states": conditions["context"],
        "encoder_hidden_states_image": conditions.get("clip_fea"),
        "return_dict": False,
    }


def diffusers_hidream(config: HiDreamConfig) -> nn.Module:
    """diffusers' HiDreamImageTransformer2DModel of a configuration, random weights, on the default device."""
    from diffusers import HiDreamImageTransformer2DModel

    return HiDreamImageTransformer2DModel(**asdict(config), force_inference_output=True)


def diffusers_hidream_arguments(
    latents: Tensor, conditions: Mapping[str, Tensor], *, t: float = 500.0
) -> dict[str, Any]:
    """Arguments of its call for the inputs of a call of `HiDream` at time t; images that are not square it pads itself."""
    return {
        "hidden_states": latents,
        "timesteps": torch.full((len(latents),), t, device=latents.device),
        "encoder_hidden_states_t5": conditions["t5"],
        "encoder_hidden_states_llama3": conditions["llama"],
        "pooled_embeds": conditions["pooled"],
        "return_dict": False,
    }


def diffusers_hook(case: Any, max_order: int, *, lite: bool = False) -> Advance:
    """diffusers' TaylorSeer hook on the attention modules, its default; `lite`: on the output layer, all blocks skipped."""
    from diffusers import TaylorSeerCacheConfig

    settings = TaylorSeerCacheConfig(
        cache_interval=PRESETS["flux"].interval,
        disable_cache_before_step=PRESETS["flux"].warmup_steps,
        max_order=max_order,
        taylor_factors_dtype=case.latents.dtype,
        use_lite_mode=lite,
    )
    model, arguments = _diffusers_case(case)
    model.enable_cache(settings)

    def advance() -> Any:
        with model.cache_context("step"):
            return model(**arguments)

    return advance


def diffusers_hook_lite(case: Any, max_order: int) -> Advance:
    return diffusers_hook(case, max_order, lite=True)


def cache_dit_dbcache(case: Any, max_order: int, *, blocks: int = 1) -> Advance:
    """cache-dit's DBCache with its TaylorSeer calibrator: the first `blocks` blocks computed, the others forecast."""
    import cache_dit

    for handler in logging.getLogger("CACHE_DIT").handlers:
        handler.setLevel(logging.WARNING)  # it would tell what it does on stdout
    model, arguments = _diffusers_case(case)
    cache_dit.enable_cache(
        model,
        cache_config=cache_dit.DBCacheConfig(
            Fn_compute_blocks=blocks,
            Bn_compute_blocks=0,
            max_warmup_steps=PRESETS["flux"].warmup_steps,
            residual_diff_threshold=float("inf"),  # every step after the warm-up is forecast
            num_inference_steps=50,
        ),
        calibrator_config=cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=max_order),
    )
    return lambda: model(**arguments)


def _diffusers_case(case: Any) -> tuple[nn.Module, dict[str, Any]]:
    model = diffusers_flux(case.model.config).to(case.latents).eval()
    return model, diffusers_arguments(case.latents, case.conditions)


def per_module(case: Any, max_order: int) -> Advance:
    """Forecast steps of the authors' form: factors of every module of both streams, every modulation computed anew.

    Their sums are in the best form that we know: one operation for each term, one for gate and addition. The factors are made
    up: what is dispatched depends on their shapes alone.
    """
    model: Flux = case.model
    inputs = case.conditions
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


RIVALS: dict[str, tuple[str | None, Callable[[Any, int], Advance]]] = {
    "a forecast for every module": (None, per_module),
    "TaylorSeer hook": ("diffusers", diffusers_hook),
    "TaylorSeer hook, lite": ("diffusers", diffusers_hook_lite),
    "DBCache, first block computed, TaylorSeer": ("cache-dit", cache_dit_dbcache),
}
"""By name: the package that it needs, and what makes it of a case and the highest order."""


def count_rival(make: Callable[[Any, int], Advance], case: Any, max_order: int) -> int:
    """Operations of a forecast step of one of RIVALS."""
    advance = make(case, max_order)
    for _ in range(COUNTED):
        advance()
    return count_operations(advance)
