"""A small HunyuanVideo with random weights, inputs for it, and the diffusers model of the same shape."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cache_dic import Cache, Run, make_cache
from hunyuan_video import HunyuanVideo, HunyuanVideoConfig

# Odd on purpose: heads, depths, widths and patches that a transposed or swapped tensor would not fit.
TINY = HunyuanVideoConfig(
    in_channels=4, out_channels=5, patch_size=(2, 3, 3), text_states_dim=20, text_states_dim_2=10, hidden_size=48,
    heads_num=3, mm_double_blocks_depth=2, mm_single_blocks_depth=3, refiner_depth=2, rope_dim_list=(4, 6, 6),
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny() -> HunyuanVideoConfig:
    return TINY


@pytest.fixture(scope="session")
def square() -> HunyuanVideoConfig:
    """`tiny`, but with a velocity of the latents' shape, to take steps with."""
    return replace(TINY, out_channels=TINY.in_channels)


@pytest.fixture(scope="session")
def random_model() -> Callable[..., HunyuanVideo]:
    """`random_model(dtype, config)`: a model with every weight random, so that no gate is zero."""

    def make(dtype: torch.dtype = torch.float64, config: HunyuanVideoConfig = TINY, **options) -> HunyuanVideo:
        model = HunyuanVideo(config, **options)
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.08
        return model.eval().requires_grad_(False).to(dtype)

    return make


@pytest.fixture(scope="session")
def arguments() -> Callable[..., dict[str, Tensor | None]]:
    """`arguments(dtype, lengths)`: one call for two videos of 2 x 3 x 5 tokens and texts of so many of 7 tokens."""

    def make(
        dtype: torch.dtype = torch.float64,
        lengths: tuple[int, int] | None = (7, 4),
        grid: tuple[int, int, int] = (2, 3, 5),
        config: HunyuanVideoConfig = TINY,
    ) -> dict[str, Tensor | None]:
        draw = torch.Generator().manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.randn(2, *shape, generator=draw, dtype=torch.float64).to(dtype)

        sides = [n * p for n, p in zip(grid, config.patch_size, strict=True)]
        return {
            "x": random(config.in_channels, *sides),
            "t": torch.tensor([830.0, 120.0]),
            "text_states": random(7, config.text_states_dim),
            "text_mask": None if lengths is None else torch.arange(7) < torch.tensor(lengths).unsqueeze(1),
            "text_states_2": random(config.text_states_dim_2),
            "guidance": torch.tensor([6000.0, 1500.0]) if config.guidance_embed else None,
        }

    return make


@pytest.fixture(scope="session")
def euler() -> Callable[..., tuple[Tensor, Run]]:
    """`euler(model, call, num_steps, cache)`: the video after Euler steps from the noise `call["x"]`, and the run."""

    def sample(
        model: HunyuanVideo, call: dict[str, Tensor | None], num_steps: int = 50, cache: Cache | None = None
    ) -> tuple[Tensor, Run]:
        conditions = {name: value for name, value in call.items() if name not in ("x", "t")}
        times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64)
        times = 7 * times / (1 + 6 * times)
        x, timesteps = call["x"], 1000 * times[:-1].float()
        run = (cache or make_cache("uncached")).start(model, x, timesteps, **conditions)
        for step, (time, following) in enumerate(itertools.pairwise(times.tolist())):
            velocity = model(x, timesteps[step].expand(len(x)), **conditions, cache=run.at(step))
            x = x + (following - time) * velocity
        return x, run

    return sample


@pytest.fixture
def diffusers_model(need) -> Callable[..., nn.Module]:
    """`diffusers_model(config, scale)`: diffusers' class in that shape, with random weights of a scale."""
    diffusers = need("diffusers")

    def make(config: HunyuanVideoConfig = TINY, scale: float = 1.0) -> nn.Module:
        model = diffusers.HunyuanVideoTransformer3DModel(
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            num_attention_heads=config.heads_num,
            attention_head_dim=config.head_dim,
            num_layers=config.mm_double_blocks_depth,
            num_single_layers=config.mm_single_blocks_depth,
            num_refiner_layers=config.refiner_depth,
            mlp_ratio=config.mlp_width_ratio,
            patch_size=config.patch_size[1],
            patch_size_t=config.patch_size[0],
            guidance_embeds=config.guidance_embed,
            text_embed_dim=config.text_states_dim,
            pooled_projection_dim=config.text_states_dim_2,
            rope_theta=config.rope_theta,
            rope_axes_dim=config.rope_dim_list,
        ).eval()
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread * scale)
        return model

    return make
