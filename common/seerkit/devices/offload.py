"""Large models on small devices: modulation weights on the host, weights in 8 or 4 bits, and the bytes that this takes.

`seerkit.devices.staging` does the rest.
"""

import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cache_dic import UserError
from seerkit.layers.experts import GroupedLinear, grouped_linear

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max  # 448
NF4_BLOCK = 64  # weights that share a scale

Conversion = Callable[[Tensor], Tensor]
"""What nn.Module.to and its kin do to each tensor of a module."""

Model = TypeVar("Model", bound=nn.Module)
"""A transformer with its blocks in ModuleLists that are its direct children; a backbone has `modulation_layers()`, too."""


def _target(convert: Conversion, tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    """Where, and as what, a conversion would put a tensor."""
    probe = convert(tensor.detach().new_empty(0))
    return probe.device, probe.dtype


# -------------------------------------------------------------------------------------------------------------- weights


class HostLinear(nn.Linear):
    """A linear layer whose weights stay on the host wherever its model is moved; its dtype follows the model's.

    It is not called: `seerkit.layers.modulation.project` brings its weights to where they are needed.
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


class PackedWeight(nn.Module):
    """Weights (..., out, in) in fewer bits, restored where they are used; a subclass packs and restores.

    Conversions of a model's dtype leave what is stored as it is.
    """

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The weights (..., out, in)."""
        raise NotImplementedError

    def _apply(self, fn: Conversion, recurse: bool = True) -> "PackedWeight":
        device = _target(fn, next(self.buffers()))[0]
        self._buffers.update({name: buffer.to(device) for name, buffer in self._buffers.items()})
        return self


class Fp8(PackedWeight):
    """float8_e4m3fn with a scale for each output row: 1 byte per weight.

    The scale, in float32, brings a row's largest weight to 448. A weight w of a row with largest magnitude m is restored to
    within max(|w| / 16, m / 458752), half a step of 3 bits of mantissa or of the smallest step there is; about 2.6 % of the
    weights' deviation for normal ones.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        weight = weight.float()
        scale = weight.abs().amax(dim=-1, keepdim=True) / FP8_MAX  # (..., out, 1)
        scale = torch.where(scale > 0, scale, 1.0)  # a row of zeros
        self.register_buffer("codes", (weight / scale).to(FP8))  # (..., out, in)
        self.register_buffer("scale", scale)

    def restored(self, dtype: torch.dtype) -> Tensor:
        return self.codes.to(dtype).mul_(self.scale)


class Nf4(PackedWeight):
    """4-bit normal floats of bitsandbytes with a scale for each 64 weights: 4.5 bits per weight (QLoRA, arXiv 2305.14314).

    The scale, in float32, is a block's largest magnitude m. A weight is restored to within 0.152 m, half the widest gap
    between two codes; about 9 % of the weights' deviation for normal ones.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = weight.shape
        codes, state = nf4_kernels(weight.device).quantize_4bit(weight.float(), blocksize=NF4_BLOCK, quant_type="nf4")
        self.register_buffer("codes", codes)  # (weights / 2, 1) uint8
        self.register_buffer("scale", state.absmax)  # (blocks,)

    def restored(self, dtype: torch.dtype) -> Tensor:
        # As one row, since on CPUs every row of a shape would have to begin with a block; by the operator behind
        # bitsandbytes.functional, which compilers take.
        restore, row = torch.ops.bitsandbytes.dequantize_4bit, [self.shape.numel()]
        known = dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32
        return restore(self.codes, self.scale, NF4_BLOCK, "nf4", row, known).view(self.shape).to(dtype)


def nf4_kernels(device: str | torch.device) -> ModuleType:
    """bitsandbytes.functional, found able to pack on a device; UserError with the remedy where it is not."""
    try:
        import bitsandbytes
        from bitsandbytes import functional
    except ImportError as error:
        raise UserError(
            "weights in 4 bits need bitsandbytes, which is not installed; install it with `pip install bitsandbytes`"
        ) from error
    try:
        functional.quantize_4bit(torch.zeros(NF4_BLOCK, device=device), blocksize=NF4_BLOCK, quant_type="nf4")
    except (RuntimeError, AttributeError) as error:  # AttributeError where its library for the device did not load
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"bitsandbytes {bitsandbytes.__version__} cannot store weights in 4 bits on {device} ({reason[0][:160]})"
        ) from error
    return functional


class Packed(nn.Module):
    """A layer, linear or of several grouped ones, that stores its weights packed.

    Products are computed in the dtype of the input with weights restored to it.
    """

    def __init__(self, layer: nn.Linear | GroupedLinear, weight: PackedWeight) -> None:
        super().__init__()
        self.weight = weight
        self.bias = getattr(layer, "bias", None)
        self.description = layer.extra_repr()

    def forward(self, x: Tensor, ends: Tensor | None = None) -> Tensor:
        """x (..., in) -> (..., out); with `ends` as `seerkit.layers.experts.grouped_linear`."""
        weight = self.weight.restored(x.dtype)
        if ends is not None:
            return grouped_linear(x, weight, ends)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))

    def extra_repr(self) -> str:
        return self.description


def store_fp8(model: Model, device: str | torch.device | None = None) -> Model:
    """Store the linear and grouped layers of the blocks with `Fp8` weights; returns the model.

    device: where they are packed, None for where they are. One after the other they go there and, packed, back, so that the
    device never holds the model as it was. Layers of all ModuleLists that are the model's children are packed, of HiDream
    the projections of captions, too. Modulation layers, embedders and head keep their dtype: the table reads the first once
    a run, the others are small.
    """
    return _store(model, Fp8, device)


def store_nf4(model: Model, device: str | torch.device | None = None) -> Model:
    """Store the same layers as `store_fp8`, in the same way, with `Nf4` weights; returns the model.

    Raises UserError where bitsandbytes is missing, or cannot pack on the device.
    """
    return _store(model, Nf4, device)


def _store(model: Model, form: type[PackedWeight], device: str | torch.device | None) -> Model:
    modulation = set(map(id, getattr(model, "modulation_layers", tuple)()))
    for blocks in (child for child in model.children() if isinstance(child, nn.ModuleList)):
        for parent in list(blocks.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear | GroupedLinear) and id(child) not in modulation:
                    weight = child.weight.detach()
                    setattr(parent, name, Packed(child, form(weight.to(device)).to(weight.device)))
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
