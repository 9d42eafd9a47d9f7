"""Large models on small devices: modulation weights on the host, weights in 8 bits, and the bytes that this takes.

`seerkit.staging` does the rest.
"""

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max  # 448

Conversion = Callable[[Tensor], Tensor]
"""What nn.Module.to and its kin do to each tensor of a module."""

Model = TypeVar("Model", bound=nn.Module)
"""A backbone: it has `modulation_layers()`, and its blocks in ModuleLists that are its direct children."""


def _target(convert: Conversion, tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where, and as what, a conversion would put a tensor."""
    probe = convert(tensor.detach().new_empty(0))
    return probe.device, probe.dtype


# -------------------------------------------------------------------------------------------------------------- weights


class HostLinear(nn.Linear):
    """A linear layer whose weights stay on the host wherever its model is moved; its dtype follows the model's.

    It is not called: `seerkit.modulation.project` brings its weights to where they are needed.
    """

    def _apply(self, fn: Conversion, recurse: bool = True) -> "HostLinear":
        for name, parameter in self._parameters.items():
            if parameter is not None:
                dtype = _target(fn, parameter)[1]
                if dtype != parameter.dtype:
                    self._parameters[name] = _on_host(parameter, dtype)
        return self


def _on_host(parameter: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    """A copy in host memory, pinned where there is a CUDA device to copy it to; what is on the meta device stays there."""
    data = parameter.detach()
    if not data.is_meta:
        data = data.to("cpu", dtype)
        data = data.pin_memory() if torch.cuda.is_available() else data
    return nn.Parameter(data.to(dtype), requires_grad=parameter.requires_grad)


def offload_modulation(model: Model) -> Model:
    """Move the weights of the modulation layers to host memory for good; returns the model.

    They are 27 % of FLUX.1 and of HunyuanVideo (6.5 and 6.8 GB in bf16), read only when a run's modulation table is made.
    Outputs do not change.
    """
    for layer in model.modulation_layers():
        if not isinstance(layer, HostLinear):
            for name, parameter in layer._parameters.items():
                if parameter is not None:
                    layer._parameters[name] = _on_host(parameter, parameter.dtype)
            layer.__class__ = HostLinear
    return model


class Fp8Linear(nn.Module):
    """A linear layer that stores its weights as float8_e4m3fn with a scale for each output row: 1 byte a weight.

    The scale, in float32, brings a row's largest weight to 448. Products are computed in the dtype of the input with
    weights restored to it. A weight w of a row with largest magnitude m is restored to within max(|w| / 16, m / 458752),
    half a step of 3 bits of mantissa or of the smallest step there is; about 2.6 % of the weights' deviation for normal ones.
    Conversions of a model's dtype leave codes and scales as they are.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True) / FP8_MAX  # (out, 1)
        scale = torch.where(scale > 0, scale, 1.0)  # a row of zeros
        self.register_buffer("codes", (weight / scale).to(FP8))  # (out, in)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def _apply(self, fn: Conversion, recurse: bool = True) -> "Fp8Linear":
        device = _target(fn, self.scale)[0]
        self._buffers.update({name: buffer.to(device) for name, buffer in self._buffers.items()})
        kept, self._buffers = self._buffers, {}
        try:
            super()._apply(fn, recurse)  # the bias
        finally:
            self._buffers = kept
        return self

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weights (out, in)."""
        return self.codes.to(dtype).mul_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.restored(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def store_fp8(model: Model) -> Model:
    """Store the linear layers of the blocks as `Fp8Linear`; returns the model.

    Modulation layers, embedders and head keep their dtype: the table reads the first once a run, the others are small.
    """
    modulation = set(map(id, model.modulation_layers()))
    for blocks in (child for child in model.children() if isinstance(child, nn.ModuleList)):
        for parent in list(blocks.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear) and id(child) not in modulation:
                    setattr(parent, name, Fp8Linear(child))
    return model


# --------------------------------------------------------------------------------------------------------------- memory


def resident_bytes(module: nn.Module) -> int:
    """Bytes of weights that a module has on its device; those that stay on the host are left out."""
    parts = [part for part in module.modules() if not isinstance(part, HostLinear)]
    tensors = [t for part in parts for t in (*part._parameters.values(), *part._buffers.values()) if t is not None]
    return sum({id(t): t.numel() * t.element_size() for t in tensors}.values())


class _Live(TorchDispatchMode):
    """Bytes of the storages made within that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.seen.update(_storages((args, kwargs)))  # weights and inputs, made outside, whose views may come back
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage not in self.seen:
                self.seen.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return result

    def _add(self, size: int) -> None:
        self.live += size
        self.peak = max(self.peak, self.live)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that the tensors made by `function` take at once; meant for modules on the meta device.

    Workspaces of kernels and what an allocator wastes come on top.
    """
    with _Live() as counter, torch.inference_mode():
        function()
    return counter.peak
