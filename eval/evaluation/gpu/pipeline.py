"""Text encoders and autoencoders around a denoiser: published configurations, on random weights.

They are made of configurations by transformers and diffusers, which are imported where they are used; nothing is loaded.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.backbones import workload
from evaluation.gpu.subject import Subject, free, memory_of, need
from seerkit.devices.dtypes import made_in
from seerkit.weights.autoencoders import FLUX_CONFIG

DIT, HUNYUAN, WAN = (importlib.import_module(f"{package}.decode") for package in ("dit", "hunyuan_video", "wan"))
"""What backbones know of their autoencoders."""


@dataclass(frozen=True)
class TextEncoder:
    """model, config: of transformers. settings: of the configuration, as published. length: tokens of a prompt."""

    label: str
    model: str
    config: str
    settings: Mapping[str, Any]
    length: int

    @property
    def package(self) -> str:
        return "transformers"

    def make(self, *, tiny: bool) -> nn.Module:
        package = importlib.import_module("transformers")
        settings = {**self.settings, **(TINY_TEXT[self.config] if tiny else {})}
        return getattr(package, self.model)(getattr(package, self.config)(**settings))

    def call(self, model: nn.Module, rows: int) -> Callable[[], Any]:
        tokens = torch.randint(1, 100, (rows, self.length), device=next(model.parameters()).device)
        return lambda: model(input_ids=tokens)


@dataclass(frozen=True)
class Decoder:
    """model: of diffusers, which decodes latents (B, C, …, h, w). tiled: as the official sampler decodes, or not."""

    model: str
    settings: Mapping[str, Any]
    tiling: Mapping[str, Any] | None = None
    label: str = "autoencoder, decoding"

    @property
    def package(self) -> str:
        return "diffusers"

    def make(self, *, tiny: bool) -> nn.Module:
        kind = getattr(importlib.import_module("diffusers"), self.model)
        model = kind.from_config({**self.settings, **(TINY_DECODER[self.model] if tiny else {})})
        if self.tiling is not None:
            model.use_framewise_decoding = True
            model.enable_tiling(**self.tiling)
        return model

    def call(self, model: nn.Module, latents: Tensor) -> Callable[[], Any]:
        return lambda: model.decode(latents)


CLIP_L = TextEncoder(
    "CLIP-L", "CLIPTextModel", "CLIPTextConfig",
    {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}, 77,
)  # fmt: skip
CLIP_G = TextEncoder(
    "CLIP-G", "CLIPTextModelWithProjection", "CLIPTextConfig",
    {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "projection_dim": 1280, "hidden_act": "gelu",
    }, 77,
)  # fmt: skip
_XXL = {
    "d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64, "feed_forward_proj": "gated-gelu"
}  # fmt: skip
_LLAMA = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip


def t5(length: int) -> TextEncoder:
    return TextEncoder("T5-XXL", "T5EncoderModel", "T5Config", {**_XXL, "vocab_size": 32128}, length)


def llama(length: int) -> TextEncoder:
    return TextEncoder("Llama-3 8B", "LlamaModel", "LlamaConfig", _LLAMA, length)


UMT5 = TextEncoder("UMT5-XXL", "UMT5EncoderModel", "UMT5Config", {**_XXL, "vocab_size": 256384}, 512)
HUNYUAN_TEMPLATE = 95
"""Tokens of HunyuanVideo's template before a prompt of 256 (hyvideo constants.py), which its Llama reads, too."""

AROUND: dict[str, tuple[TextEncoder | Decoder, ...]] = {
    "dit": (Decoder("AutoencoderKL", DIT.CONFIG),),
    "flux": (t5(512), CLIP_L, Decoder("AutoencoderKL", FLUX_CONFIG)),
    "hunyuan_video": (
        llama(256 + HUNYUAN_TEMPLATE),
        CLIP_L,
        Decoder(
            "AutoencoderKLHunyuanVideo",
            HUNYUAN.CONFIG,
            {
                "tile_sample_min_num_frames": HUNYUAN.TILE_FRAMES,
                "tile_sample_stride_num_frames": HUNYUAN.TILE_STRIDE,
            },
        ),
    ),
    "wan": (UMT5, Decoder("AutoencoderKLWan", WAN.CONFIG)),
    "hidream": (t5(128), llama(128), CLIP_L, CLIP_G, Decoder("AutoencoderKL", FLUX_CONFIG)),
}
"""By a backbone's package, in the order of their work."""

_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TINY_TEXT: dict[str, dict[str, Any]] = {
    "CLIPTextConfig": {**_SMALL, "projection_dim": 32},
    "T5Config": {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16},
    "UMT5Config": {"d_model": 32, "d_ff": 64, "num_layers": 1, "num_heads": 2, "d_kv": 16, "vocab_size": 1000},
    "LlamaConfig": {**_SMALL, "num_key_value_heads": 1, "vocab_size": 1000},
}
_IMAGE = {"block_out_channels": (32,) * 4, "layers_per_block": 1}
TINY_DECODER: dict[str, dict[str, Any]] = {
    "AutoencoderKL": _IMAGE,
    "AutoencoderKLHunyuanVideo": _IMAGE,
    "AutoencoderKLWan": {"base_dim": 16, "num_res_blocks": 1},
}
"""What differs with --tiny."""


def published_latents(subject: Subject) -> Tensor:
    """Random latents of a sample of the published model; a few with --tiny."""
    package = importlib.import_module(f"{subject.package}.config")
    if subject.package == "dit":
        config = package.CONFIGS[subject.published]
        shape = (config.in_channels, config.input_size, config.input_size)
    else:
        whole = workload(subject.published)
        sizes = [whole.height, whole.width, *([whole.frames] if whole.frames else [])]
        shape = package.latent_shape(subject.published, *sizes)
    if subject.tiny:
        shape = (shape[0], *(3 for _ in shape[1:-2]), 4, 4)
    return torch.randn(1, *shape, device=subject.device, dtype=subject.dtype)


@torch.inference_mode()
def time_around(subject: Subject, piece: TextEncoder | Decoder) -> dict[str, Any]:
    """Seconds and memory of an encoder or decoder; of an encoder for all guidance branches of a sample."""
    need(piece.package)
    device = subject.device
    with torch.device("cpu"):  # modules of theirs make tensors when they are first imported
        importlib.import_module(piece.package)
    with torch.device(device), made_in(subject.dtype):
        model = piece.make(tiny=subject.tiny).to(subject.dtype).eval().requires_grad_(False)
    try:
        given = published_latents(subject) if isinstance(piece, Decoder) else subject.meta.branches
        call = piece.call(model, given)
        timing = subject.repeated(call)
        memory = memory_of(call, device)
        weights = sum(weight.nbytes for weight in model.parameters())
    finally:
        del model
        free(device)
    return {"label": piece.label, **timing, "weights_bytes": weights, "memory": memory}
