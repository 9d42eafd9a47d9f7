"""What a step must do at least, and how fast a device can do it: operations, bytes, and the ceilings of both, measured.

Samuel Williams et al., Roofline: an insightful visual performance model, 2009.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cache_dic import Cache, make_cache
from evaluation.operations import count_forecast
from evaluation.steps import take_step, touch_table
from seerkit.devices.timing import spread, timed
from seerkit.sampling.flops import count_flops
from seerkit.sampling.workload import Case

BYTES_COUNTED = (
    "bytes: every weight, input and kept feature that the step reads, once, and its output; of a full step the tokens into and "
    "out of every block, too; what lies within a block is taken to stay on the chip"
)


class _Traffic(TorchDispatchMode):
    """Bytes of what operations read that was there before them, by where it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.read: dict[int, int] = {}
        self._storages: dict[int, Any] = {}  # held, so that no address is used twice

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if not function.is_view:
            for tensor in _tensors((args, tuple(kwargs.values()))):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._storages:
                    self._storages[storage._cdata] = storage
                    self.read[storage._cdata] = 0
                if storage._cdata in self.read:
                    seen = min(storage.nbytes(), tensor.numel() * tensor.element_size())
                    self.read[storage._cdata] = max(self.read[storage._cdata], seen)
        result = function(*args, **kwargs)
        for tensor in _tensors((result,)):
            storage = tensor.untyped_storage()
            if not function.is_view:
                self._storages.setdefault(storage._cdata, storage)  # made here, and so not read from before
        return result


def _tensors(values: Any) -> list[Tensor]:
    """Those in nested lists and tuples."""
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, list | tuple) else []


def step_work(function: Callable[[], Tensor], model: nn.Module, blocks_bytes: int = 0) -> dict[str, int]:
    """Operations and least bytes of a step, taken on the meta device.

    blocks_bytes: that go into and out of its blocks.
    """
    made: list[Tensor] = []
    with _Traffic() as traffic:
        flops = count_flops(lambda: made.append(function()))
    weights = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers())}
    read = sum(size for place, size in traffic.read.items() if place in weights)
    others = sum(traffic.read.values()) - read + made[0].nbytes
    return {
        "flops": flops,
        "bytes": read + others + blocks_bytes,
        "weights_bytes": read,
        "inputs_and_output_bytes": others,
        "blocks_bytes": blocks_bytes,
    }


@torch.no_grad()
def full_step_work(case: Case, timesteps: Tensor) -> dict[str, int]:
    """Of a step without a cache, its modulation being in the table, as it is timed. The case is on the meta device."""
    run = make_cache("uncached").start(case.model, case.latents, timesteps, **case.conditions)
    touch_table(run, 0)
    tokens, num_blocks = case.model.tokens(case.latents), len(case.model.block_sites())
    return step_work(lambda: take_step(case, run, timesteps), case.model, 2 * num_blocks * tokens.stream_bytes)


@torch.no_grad()
def forecast_step_work(case: Case, cache: Cache, timesteps: Tensor) -> dict[str, int]:
    """Of a forecast in its steady state."""
    return count_forecast(case, cache, timesteps, lambda function: step_work(function, case.model))


# ------------------------------------------------------------------------------------------------------------ ceilings


def measure_ceilings(device: torch.device, dtype: torch.dtype, repeats: int, *, tiny: bool) -> dict[str, Any]:
    """Operations a second of a product of square matrices of random numbers, bytes a second of a copy, read and written."""
    side, size = (256, 2**22) if tiny else (8192, 2**32)
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.randn(size // 4, device=device)
    target = torch.empty_like(source)

    def rate(function: Callable[[], Any], amount: int) -> dict[str, Any]:
        for _ in range(3):
            function()
        seconds = [timed(function, device)[1] for _ in range(2 * repeats)]
        timing = spread(seconds)
        return {**timing, "per_s": amount / timing["median_s"], "most_per_s": amount / timing["min_s"]}

    return {
        "flops": {**rate(lambda: torch.mm(left, right, out=product), 2 * side**3), "side": side},
        "bytes": {**rate(lambda: target.copy_(source), 2 * source.nbytes), "size_bytes": source.nbytes},
    }
