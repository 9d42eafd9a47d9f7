"""A small HiDream with random weights, inputs for it, and the diffusers model of the same shape."""

from collections.abc import Callable
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn

from hidream import HiDream, HiDreamConfig

# Odd on purpose: heads, depths, widths and an order of Llama's layers that a transposed or swapped tensor would not fit.
TINY = HiDreamConfig(
    patch_size=2, in_channels=5, out_channels=5, num_layers=2, num_single_layers=3, attention_head_dim=16,
    num_attention_heads=3, caption_channels=(20, 14), text_emb_dim=10, axes_dims_rope=(4, 6, 6), max_resolution=(8, 6),
    llama_layers=(0, 3, 1, 4, 4),
)  # fmt: skip
NUM_STATES = 6  # of Llama; the last is read by no block


def draw_weights(model: nn.Module, scale: float) -> None:
    """Random weights, those of a scale that make what the norms get; small ones show the eps of the norms.

    Experts are chosen by clear margins, and keys by their likeness to the queries.
    """
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        spread = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.2
        if "norm" in name:
            parameter.data = 1.5 + spread * noise
        elif ".gate." in name:
            parameter.data = 3 * spread * noise
        else:
            small = any(part in name for part in ("to_q", "to_k", "x_embedder", "caption_projection"))
            parameter.data = noise * spread * (scale if small else 1)


@pytest.fixture(scope="session")
def tiny() -> HiDreamConfig:
    return TINY


@pytest.fixture(scope="session")
def shallow() -> HiDreamConfig:
    """`tiny` with fewer blocks, for whole sampling runs."""
    return replace(TINY, num_layers=1, num_single_layers=2, llama_layers=(0, 3, 1))


@pytest.fixture(scope="session")
def random_model() -> Callable[..., HiDream]:
    """`random_model(dtype, config)`: a model with every weight random, so that no gate is zero."""

    def make(dtype: torch.dtype = torch.float64, config: HiDreamConfig = TINY, **options) -> HiDream:
        model = HiDream(config, **options)
        draw_weights(model, 1.0)
        return model.eval().requires_grad_(False).to(dtype)

    return make


@pytest.fixture(scope="session")
def arguments() -> Callable[..., dict[str, Tensor]]:
    """`arguments(dtype, grid)`: one call for two images of so many tokens, 5 tokens of T5 and 7 of Llama."""

    def make(
        dtype: torch.dtype = torch.float64, grid: tuple[int, int] = (3, 3), config: HiDreamConfig = TINY
    ) -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(3)
        of_t5, of_llama = config.caption_channels
        shapes = {
            "hidden_states": (2, config.in_channels, *(config.patch_size * side for side in grid)),
            "t5": (2, 5, of_t5),
            "llama": (NUM_STATES, 2, 7, of_llama),
            "pooled": (2, config.text_emb_dim),
        }
        made = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in shapes.items()}
        return {"timesteps": torch.tensor([830, 120])} | {name: tensor.to(dtype) for name, tensor in made.items()}

    return make


@pytest.fixture(scope="session")
def given(arguments) -> Callable[..., dict[str, Tensor | tuple[Tensor, ...]]]:
    """`given(dtype, grid)`: the arguments of `Sampler.run`, with a negative text."""

    def make(
        dtype: torch.dtype = torch.float64, grid: tuple[int, int] = (3, 3)
    ) -> dict[str, Tensor | tuple[Tensor, ...]]:
        call = arguments(dtype, grid)
        del call["timesteps"]
        draw = torch.Generator().manual_seed(2)
        texts = (call[name] for name in ("t5", "llama", "pooled"))
        negative = tuple(torch.randn(text.shape, generator=draw, dtype=torch.float64).to(dtype) for text in texts)
        return {"noise": call.pop("hidden_states"), **call, "negative": negative}

    return make


@pytest.fixture
def diffusers_model(need) -> Callable[..., nn.Module]:
    """`diffusers_model(config, scale)`: diffusers' class in that shape, with random weights of a scale."""
    diffusers = need("diffusers")

    def make(config: HiDreamConfig = TINY, scale: float = 1.0) -> nn.Module:
        model = diffusers.HiDreamImageTransformer2DModel(**asdict(config), force_inference_output=True)
        draw_weights(model, scale)
        return model.eval()

    return make
