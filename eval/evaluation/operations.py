"""How many operations a piece of work dispatches, which is what a forecast step costs once products no longer dominate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cache_dic import Cache
from evaluation.steps import most_sources, take_step, touch_table
from seerkit.layers.few_rows import unfilled
from seerkit.sampling.workload import Case

# Besides views, which their schema tells: memory that is taken and not written, and views that are not marked as such.
_MOVES_NOTHING = {
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
}


def _activations_product(*operands: Tensor, **_: Any) -> int:
    """Of a batched product; nothing where an operand is one matrix for all of the batch, as a layer's weight is."""
    left, right = operands[-2:]
    return 0 if 0 in (left.stride(0), right.stride(0)) else 2 * left.numel() * right.shape[-1]


_activations_product._get_raw = True  # tells FlopCounterMode to hand over tensors, not shapes
_BATCHED = dict.fromkeys((torch.ops.aten.bmm, torch.ops.aten.baddbmm), _activations_product)


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # there composite operations arrive here whole
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        self.count += not (function.is_view or function._schema.name in _MOVES_NOTHING)
        return function(*args, **kwargs)


def count_operations(function: Callable[[], Any]) -> int:
    """Tensor operations that `function` dispatches: ATen operations that read or write elements, composite ones taken apart.

    Views and other changes of metadata alone are not counted, nor is memory that is taken and not written; a copy, a change
    of dtype and a value brought to the host are. The count is the same on every device, the meta device too, wherever they
    take composite operations apart alike; each is at least one kernel on an accelerator that runs eagerly.
    """
    with unfilled(), Operations() as operations:
        function()
    return operations.count


def attention_flops(function: Callable[[], Any]) -> int:
    """Operations of the products of activations with each other that `function` performs, 2 per multiply-add.

    Those of attention, whatever its backend: QKᵀ and the weighted sum of v. Products with weights are not among them.
    """
    with FlopCounterMode(display=False, custom_mapping=_BATCHED) as counter, torch.no_grad():
        function()
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for op, flops in counts.items() if op in _BATCHED or "attention" in str(op))


def count_kernels(function: Callable[[], Any]) -> int:
    """Kernels, copies and fills that `function` launches on a CUDA device."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        function()
        torch.cuda.synchronize()
    on_device = (event for event in profiler.events() if event.device_type == DeviceType.CUDA)
    return sum(not event.is_user_annotation for event in on_device)


def count_forecast(
    case: Case, cache: Cache, timesteps: Tensor, count: Callable[[Callable[[], Any]], int] = count_operations
) -> int:
    """The count of a forecast step in its steady state, its rows of the modulation table being there already.

    timesteps (S,), in sampling order.
    """
    plan = cache.plan(len(timesteps))
    most = most_sources(plan)
    counted = next(step for step in plan.forecast_steps if len(plan.weights[step]) == most)
    run = cache.start(case.model, case.latents, timesteps, **case.conditions)
    for _ in range(counted):
        take_step(case, run, timesteps)
    touch_table(run, counted)
    return count(lambda: take_step(case, run, timesteps))
