"""Our backbones as diffusers' transformers, and back: configuration and weights, each from the family's one table."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import UserError
from seerkit.weights.checkpoints import load_weights
from seerkit.weights.counterparts import Counterpart

BACKBONES = ("dit", "flux", "hidream", "hunyuan_video", "wan")
"""Packages of the backbones, which have a `COUNTERPART` in their module of weights."""


def counterparts() -> dict[str, Counterpart]:
    """By the package of our backbone."""
    return {package: importlib.import_module(f"{package}.weights").COUNTERPART for package in BACKBONES}


def to_diffusers(model: nn.Module) -> nn.Module:
    """diffusers' transformer with the configuration and a copy of the weights of one of our backbones, in eval mode.

    It computes what the model does, to rounding. A DiT's takes the official frequencies of the timestep, which diffusers'
    configuration has no setting for: saved and loaded again it has diffusers' own.
    Raises UserError for another model, and for a configuration that diffusers' class cannot have.
    """
    counterpart = next((c for c in counterparts().values() if type(model) is c.model), None)
    if counterpart is None:
        raise UserError(f"{type(model).__name__} is no backbone of this repository; those are {', '.join(BACKBONES)}")
    counterpart.check(model.config)
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        transformer = counterpart.make(model.config)
    state = dict(model.state_dict())
    for ours, theirs in (counterpart.buffers or {}).items():
        _set_buffer(transformer, theirs, state.pop(ours))
    if counterpart.layout is not None:
        state = counterpart.layout.revert(state, transformer.state_dict())
    wide = getattr(transformer, "_keep_in_fp32_modules", None) or ()
    transformer.load_state_dict({name: _kept(name, value, model, wide) for name, value in state.items()}, assign=True)
    return transformer.eval().requires_grad_(False)


def from_diffusers(transformer: nn.Module, **untold: Any) -> nn.Module:
    """Our backbone with the configuration and a copy of the weights of a transformer of diffusers, in eval mode.

    untold: fields of our configuration that theirs has no setting for: `text_len` of Wan, which is 512 unless given. Ours
    computes what the official code does, a DiT other frequencies of the timestep than diffusers'.
    Raises UserError for a class or a setting that has no counterpart, and for weights with names of their own, as adapters
    and quantised layers have.
    """
    name = type(transformer).__name__
    counterpart = next((c for c in counterparts().values() if c.kind == name), None)
    if counterpart is None:
        kinds = ", ".join(c.kind for c in counterparts().values())
        raise UserError(f"{name} has no counterpart among the backbones of this repository; those are of {kinds}")
    config = counterpart.read(transformer.config, **untold)
    state: dict[str, Tensor] = dict(transformer.state_dict())
    buffers = {ours: transformer.get_buffer(theirs) for ours, theirs in (counterpart.buffers or {}).items()}
    state = state | buffers if counterpart.layout is None else counterpart.layout.convert(state, buffers)
    dtype = transformer.dtype
    with torch.device("meta"):
        model = counterpart.model(config)
    model = model.cast(dtype) if hasattr(model, "cast") else model.to(dtype)
    state = {name: tensor.clone() for name, tensor in state.items()}
    return load_weights(model, state, device=transformer.device, finite=False).eval().requires_grad_(False)


def _kept(name: str, value: Tensor, model: nn.Module, wide: tuple[str, ...]) -> Tensor:
    """A copy in the model's dtype, or float32 at least for what a class keeps in that; as it is where it keeps nothing."""
    if not wide:
        return value.clone()
    is_wide = any(part in name.split(".") for part in wide)
    dtype = torch.promote_types(model.dtype, torch.float32) if is_wide else model.dtype
    return value.to(dtype, copy=True)


def _set_buffer(model: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of one that is computed. UserError where it is another one than that."""
    parent, _, last = name.rpartition(".")
    module = model.get_submodule(parent)
    computed = getattr(module, last)
    if computed.shape != value.shape or not torch.allclose(computed.to(value), value, rtol=0, atol=2e-3):
        raise UserError(f"{name} of {type(model).__name__} is computed, and the model's own is another one")
    setattr(module, last, value.clone())
