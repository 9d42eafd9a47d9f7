"""A small Wan2.1 with random weights, inputs for it, and the diffusers model of the same shape."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from wan import Wan, WanConfig

# Odd on purpose: heads, depths, widths and patches that a transposed or swapped tensor would not fit.
T2V = WanConfig(
    patch_size=(2, 1, 3), text_len=9, in_dim=4, dim=48, ffn_dim=56, freq_dim=20, text_dim=10, out_dim=4, num_heads=3,
    num_layers=3,
)  # fmt: skip
I2V = replace(T2V, model_type="i2v", in_dim=9, image_dim=14)
IMAGE_TOKENS = 5


@pytest.fixture(scope="session")
def t2v() -> WanConfig:
    return T2V


@pytest.fixture(scope="session")
def i2v() -> WanConfig:
    return I2V


@pytest.fixture(scope="session")
def random_model() -> Callable[..., Wan]:
    """`random_model(dtype, config)`: a model with every weight random, so that no gate is zero."""

    def make(dtype: torch.dtype = torch.float64, config: WanConfig = T2V, **options) -> Wan:
        model = Wan(config, **options)
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.08
        return model.eval().requires_grad_(False).cast(dtype)

    return make


@pytest.fixture(scope="session")
def arguments() -> Callable[..., dict[str, Tensor | list[Tensor]]]:
    """`arguments(dtype, config, grid)`: one call for two videos of so many tokens and texts of 7 and 4 tokens."""

    def make(
        dtype: torch.dtype = torch.float64, config: WanConfig = T2V, grid: tuple[int, int, int] = (2, 3, 5)
    ) -> dict[str, Tensor | list[Tensor]]:
        draw = torch.Generator().manual_seed(1)

        def random(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

        sides = [n * p for n, p in zip(grid, config.patch_size, strict=True)]
        call = {
            "x": random(2, config.out_dim, *sides),
            "t": torch.tensor([831, 120]),
            "context": [random(length, config.text_dim) for length in (7, 4)],
        }
        if config.model_type == "i2v":
            call["clip_fea"] = random(2, IMAGE_TOKENS, config.image_dim)
            call["y"] = random(2, config.in_dim - config.out_dim, *sides)
        return call

    return make


@pytest.fixture(scope="session")
def given(arguments) -> Callable[..., dict[str, Tensor | list[Tensor]]]:
    """`given(dtype, config)`: the arguments of `Sampler.run`, a longer and a shorter negative text than asked for."""

    def make(dtype: torch.dtype = torch.float64, config: WanConfig = T2V) -> dict[str, Tensor | list[Tensor]]:
        call = arguments(dtype, config)
        del call["t"]
        draw = torch.Generator().manual_seed(2)
        negative = [torch.randn(n, config.text_dim, generator=draw, dtype=torch.float64).to(dtype) for n in (9, 1)]
        return {"noise": call.pop("x"), "negative": negative, **call}

    return make


@pytest.fixture
def diffusers_model(need) -> Callable[..., nn.Module]:
    """`diffusers_model(config, scale)`: diffusers' class in that shape, with random weights of a scale."""
    diffusers = need("diffusers")

    def make(config: WanConfig = T2V, scale: float = 1.0) -> nn.Module:
        has_image = config.model_type == "i2v"
        model = diffusers.WanTransformer3DModel(
            patch_size=config.patch_size,
            num_attention_heads=config.num_heads,
            attention_head_dim=config.head_dim,
            in_channels=config.in_dim,
            out_channels=config.out_dim,
            text_dim=config.text_dim,
            freq_dim=config.freq_dim,
            ffn_dim=config.ffn_dim,
            num_layers=config.num_layers,
            eps=config.eps,
            image_dim=config.image_dim if has_image else None,
            added_kv_proj_dim=config.dim if has_image else None,
            rope_max_seq_len=32,
        ).eval()
        draw = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread * scale)
        return model

    return make
