"""Our backbones in tiny sizes with random weights, all of them, so that no gate is zero."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dit import DiT, dit_config
from flux import Flux, flux_config
from hidream import HiDream, hidream_config
from hunyuan_video import HunyuanVideo, hunyuan_video_config
from wan import Wan, wan_config

CONFIGS = {
    # 1000 classes, as diffusers' pipeline of DiT takes for granted.
    "dit": replace(dit_config("debug"), num_classes=1000, in_channels=4),
    "flux": flux_config("flux-debug"),
    "hunyuan_video": hunyuan_video_config("hunyuan-debug"),
    "wan": wan_config("wan-debug"),
    "hidream": hidream_config("hidream-debug"),
}
MODELS = {"dit": DiT, "flux": Flux, "hunyuan_video": HunyuanVideo, "wan": Wan, "hidream": HiDream}


def random_backbone(family: str, **changes: Any) -> nn.Module:
    """Of its configuration in CONFIGS, with changes."""
    config = replace(CONFIGS[family], **changes)
    model = MODELS[family](config)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        parameter.data = torch.randn(parameter.shape, generator=draw) * spread
    return model.eval().requires_grad_(False)
