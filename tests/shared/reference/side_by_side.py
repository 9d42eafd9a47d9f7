"""The same networks as classes of diffusers, and what its hooks and cache-dit decide and compute on an open loop.

played = side_by_side.play_hook("flux", reference.open_loop("flux", 20), FirstBlockCacheConfig(threshold=0.1))
played.full_steps, played.outputs
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

import flux.weights
import hunyuan_video.weights
import wan.weights

from . import CONFIGS, OpenLoop, network

CONVERT = {
    "flux": flux.weights.convert_diffusers,
    "hidream": dict,  # the official names
    "hunyuan_video": hunyuan_video.weights.convert_diffusers,
    "wan": wan.weights.convert_diffusers,
}

_SINGLE = r"single_transformer_blocks\.\d+\.(attn|proj_out)"
SITES = {
    "flux": [r"transformer_blocks\.\d+\.(attn|ff|ff_context)", _SINGLE],
    "hunyuan_video": [r"transformer_blocks\.\d+\.(attn|ff|ff_context)", _SINGLE],
    "wan": [r"blocks\.\d+\.(attn1|attn2|ffn)"],
}
"""`cache_identifiers` with which the TaylorSeer hook forecasts what our sites keep; by default it keeps attention alone."""
BLOCKS = dict.fromkeys(("flux", "hunyuan_video"), ("transformer_blocks",)) | {
    "wan": ("blocks",),
    "hidream": ("_blocks",),
}
"""Block identifiers by which hooks find the attention of our blocks; "blocks" alone would take that of HunyuanVideo's token
refiner, too."""


def _empty(name: str) -> nn.Module:
    c = CONFIGS[name]
    if name == "flux":
        return diffusers.FluxTransformer2DModel(
            in_channels=c.in_channels, num_layers=c.depth, num_single_layers=c.depth_single_blocks,
            attention_head_dim=c.head_dim, num_attention_heads=c.num_heads, joint_attention_dim=c.context_in_dim,
            pooled_projection_dim=c.vec_in_dim, guidance_embeds=c.guidance_embed, axes_dims_rope=c.axes_dim,
        )  # fmt: skip
    if name == "wan":
        return diffusers.WanTransformer3DModel(
            patch_size=c.patch_size, num_attention_heads=c.num_heads, attention_head_dim=c.head_dim,
            in_channels=c.in_dim, out_channels=c.out_dim, text_dim=c.text_dim, freq_dim=c.freq_dim, ffn_dim=c.ffn_dim,
            num_layers=c.num_layers, eps=c.eps, rope_max_seq_len=32,
        )  # fmt: skip
    if name == "hunyuan_video":
        return diffusers.HunyuanVideoTransformer3DModel(
            in_channels=c.in_channels, out_channels=c.out_channels, num_attention_heads=c.heads_num,
            attention_head_dim=c.head_dim, num_layers=c.mm_double_blocks_depth,
            num_single_layers=c.mm_single_blocks_depth, num_refiner_layers=c.refiner_depth,
            mlp_ratio=c.mlp_width_ratio, patch_size=c.patch_size[1], patch_size_t=c.patch_size[0],
            guidance_embeds=c.guidance_embed, text_embed_dim=c.text_states_dim,
            pooled_projection_dim=c.text_states_dim_2, rope_theta=c.rope_theta, rope_axes_dim=c.rope_dim_list,
        )  # fmt: skip
    return diffusers.HiDreamImageTransformer2DModel(**asdict(c), force_inference_output=True)


def diffusers_network(name: str) -> nn.Module:
    """diffusers' class in the shape of `network(name)`, with its weights."""
    model = _empty(name).eval().requires_grad_(False)
    parameters, start = dict(model.named_parameters()), 0
    places = {}
    for key, value in parameters.items():  # numbered, and converted, they tell where each of ours comes from
        places[key] = torch.arange(start, start + value.numel(), dtype=torch.float64).view(value.shape)
        start += value.numel()
    flat = torch.zeros(start)
    ours = network(name).state_dict()
    for key, place in CONVERT[name](places).items():
        flat[place.long().flatten()] = ours[key].flatten()
    for key, value in parameters.items():
        value.data = flat[places[key].long()]
    return model


def call(theirs: nn.Module, name: str, latents: Tensor, timestep: Tensor, conditions: dict[str, Any]) -> Tensor:
    """One call of diffusers' class with the arguments of ours; the output is that of ours."""
    t = timestep.expand(len(latents))
    if name == "flux":
        return theirs(
            hidden_states=latents, encoder_hidden_states=conditions["txt"], pooled_projections=conditions["y"],
            timestep=t, img_ids=conditions["img_ids"][0], txt_ids=conditions["txt_ids"][0],
            guidance=conditions["guidance"],
        ).sample  # fmt: skip
    if name == "wan":
        return theirs(hidden_states=latents, timestep=t, encoder_hidden_states=conditions["context"]).sample
    if name == "hunyuan_video":
        return theirs(
            hidden_states=latents, timestep=t, encoder_hidden_states=conditions["text_states"],
            encoder_attention_mask=conditions["text_mask"], pooled_projections=conditions["text_states_2"],
            guidance=conditions["guidance"],
        ).sample  # fmt: skip
    return theirs(
        hidden_states=latents, timesteps=t, encoder_hidden_states_t5=conditions["t5"],
        encoder_hidden_states_llama3=conditions["llama"], pooled_embeds=conditions["pooled"],
    ).sample  # fmt: skip


class _Counter:
    """How often the attention of the last block, which runs at computed steps alone, has run."""

    def __init__(self, theirs: nn.Module) -> None:
        self.calls = 0
        lists = ("single_transformer_blocks", "single_stream_blocks", "blocks")
        block = next(getattr(theirs, name)[-1] for name in lists if hasattr(theirs, name))
        query = next(module for name, module in block.named_modules() if name.endswith("to_q"))
        query.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1


@dataclass(frozen=True)
class Played:
    """What was decided and computed over an open loop, each by branch.

    full_steps: steps whose blocks were computed. outputs: (S, B, …) in the layout of our models. signals: by step, of cache-dit
    alone.
    """

    full_steps: list[list[int]]
    outputs: list[Tensor]
    signals: list[dict[int, float]] | None = None


@torch.no_grad()
def play(
    theirs: nn.Module,
    name: str,
    loop: OpenLoop,
    around: Callable[[int, int], AbstractContextManager] = lambda step, branch: nullcontext(),
    clock: list[float] | None = None,
) -> Played:
    """All calls in the order of sampling, each within `around(step, branch)`; clock: is told the timestep of each, of 1000."""
    counter = _Counter(theirs)
    full_steps: list[list[int]] = [[] for _ in loop.branches]
    outputs: list[list[Tensor]] = [[] for _ in loop.branches]
    for step, latents in enumerate(loop.latents):
        if clock is not None:
            clock[:] = [loop.timesteps[step].item() * (1000 if name == "flux" else 1)]
        for branch, conditions in enumerate(loop.branches):
            before = counter.calls
            with around(step, branch):
                outputs[branch].append(call(theirs, name, latents, loop.timesteps[step], conditions))
            if counter.calls > before:
                full_steps[branch].append(step)
    return Played(full_steps, [torch.stack(rows) for rows in outputs])


def play_hook(name: str, loop: OpenLoop, config: Any) -> Played:
    """Under a cache of diffusers, such as FirstBlockCacheConfig; each branch has a state of its own, as in its pipelines."""
    theirs = diffusers_network(name)
    theirs.enable_cache(config)

    def around(step: int, branch: int) -> AbstractContextManager:
        return theirs.cache_context(
            ("cond", "uncond")[branch], step_index=step, sigma=loop.sigmas[step].item(),
            num_inference_steps=len(loop.timesteps),
        )  # fmt: skip

    return play(theirs, name, loop, around)


def play_pab(name: str, loop: OpenLoop, **settings: Any) -> Played:
    """Under Pyramid Attention Broadcast on the attention of our blocks; settings: of its configuration. full_steps: those whose
    last block computed its attention to itself."""
    theirs, clock = diffusers_network(name), [0.0]
    names = {f"{kind}_attention_block_identifiers": BLOCKS[name] for kind in ("spatial", "cross")}
    config = diffusers.PyramidAttentionBroadcastConfig(current_timestep_callback=lambda: clock[0], **names, **settings)
    diffusers.hooks.apply_pyramid_attention_broadcast(theirs, config)
    return play(theirs, name, loop, clock=clock)


def play_faster_cache(name: str, loop: OpenLoop, **settings: Any) -> Played:
    """Under FasterCache; settings: of its configuration. Branches that are two go as one batch, as it needs them; full_steps as
    `play_pab`."""
    theirs, clock = diffusers_network(name), [0.0]
    config = diffusers.FasterCacheConfig(current_timestep_callback=lambda: clock[0], **settings)
    diffusers.hooks.apply_faster_cache(theirs, config)
    if len(loop.branches) == 1:
        return play(theirs, name, loop, clock=clock)
    joined = {key: torch.cat([branch[key] for branch in loop.branches[::-1]]) for key in loop.branches[0]}
    batch = OpenLoop(loop.timesteps, loop.sigmas, torch.cat([loop.latents] * 2, dim=1), (joined,))
    played = play(theirs, name, batch, clock=clock)
    uncond, cond = played.outputs[0].chunk(2, dim=1)
    return Played(played.full_steps, [cond, uncond])


def play_cache_dit(name: str, loop: OpenLoop, taylor_order: int | None = None, **config: Any) -> Played:
    """Under cache-dit's DBCache, for FLUX and Wan; of HunyuanVideo its two lists of blocks decide each for itself.

    config: of its DBCacheConfig. taylor_order: of its calibrator, None for none.
    """
    import cache_dit

    theirs = diffusers_network(name)
    calibrator = None if taylor_order is None else cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=taylor_order)
    config = {"num_inference_steps": len(loop.timesteps), **config}
    cache_dit.enable_cache(theirs, cache_config=cache_dit.DBCacheConfig(**config), calibrator_config=calibrator)
    played = play(theirs, name, loop)
    (context,) = theirs._context_manager._cached_context_manager.values()
    skipped = context.cached_steps, context.cfg_cached_steps
    signals = context.residual_diffs, context.cfg_residual_diffs
    steps = range(len(loop.timesteps))
    return Played(
        [[step for step in steps if step not in skipped[branch]] for branch in range(len(loop.branches))],
        played.outputs,
        [{int(step): value for step, value in signals[branch].items()} for branch in range(len(loop.branches))],
    )
