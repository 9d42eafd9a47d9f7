"""torch.compile for a cached backbone: one graph for full steps, one for forecast steps, the decision between them outside."""

from typing import Any

import torch
from torch import nn


def compile_steps(model: nn.Module, **options: Any) -> None:
    """Compile `model.full_step` and `model.forecast_step` in place, each as a whole and for fixed shapes.

    Use with caches made with `static_shapes=True`, whose full steps all do the same. options: of torch.compile.
    """
    for name in ("full_step", "forecast_step"):
        setattr(model, name, torch.compile(getattr(model, name), fullgraph=True, dynamic=False, **options))
