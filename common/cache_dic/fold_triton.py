"""The fold as a Triton kernel: a group's features are read once, every live accumulator is read and written once."""

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

FEATURES_PER_LAUNCH = 16
"""A program keeps its tile of all features in registers: 16 features x 4 elements per thread leave room for the rest."""

_BLOCK_TOKENS = 16
_BLOCK_CHANNELS = 64
_NUM_WARPS = 8


@triton.jit
def _fold_kernel(
    accumulators,
    table,  # (num_slots, 2): slot, whether it has content
    coefficients,
    features,  # a tuple of pointers: no copy of addresses to the device, and each keeps its own alignment and dtype
    batch_strides,
    token_strides,
    num_slots,
    num_tokens,
    num_channels,
    slot_stride,
    slot_coefficient_stride,
    site_coefficient_stride,
    batch_coefficient_stride,
    BLOCK_TOKENS: tl.constexpr,  # noqa: N803
    BLOCK_CHANNELS: tl.constexpr,  # noqa: N803
):
    b = tl.program_id(2).to(tl.int64)
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)[:, None]
    channels = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    in_channels = channels < num_channels
    inside = (tokens < num_tokens) & in_channels[None, :]

    tiles: tuple = ()
    for g in tl.static_range(len(features)):
        offsets = b * batch_strides[g] + tokens * token_strides[g] + channels[None, :]
        tiles = tiles + (tl.load(features[g] + offsets, mask=inside, other=0.0).to(tl.float32),)  # noqa: RUF005

    of_tile = (b * num_tokens + tokens) * num_channels + channels[None, :]
    of_sample = b * batch_coefficient_stride + channels
    for j in range(num_slots):
        slot = tl.load(table + 2 * j).to(tl.int64)
        kept_tokens = num_tokens * tl.load(table + 2 * j + 1)
        total = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), tl.float32)
        for g in tl.static_range(len(features)):
            of_row = of_sample + j * slot_coefficient_stride + g * site_coefficient_stride
            weight = tl.load(coefficients + of_row, mask=in_channels, other=0.0).to(tl.float32)
            total = tl.fma(tiles[g], weight[None, :], total)
        row = accumulators + slot * slot_stride + of_tile
        total += tl.load(row, mask=(tokens < kept_tokens) & in_channels[None, :], other=0.0).to(tl.float32)
        tl.store(row, total.to(accumulators.dtype.element_ty), mask=inside)


def fold_(
    accumulators: Tensor, slots: Sequence[int], features: Sequence[Tensor], coefficients: Tensor, fresh: Sequence[bool]
) -> None:
    """As `cache_dic.fold.fold_`, which checks the arguments; accumulators of at most 32 bits."""
    assert accumulators.is_contiguous()
    assert accumulators.dtype.itemsize <= 4, accumulators.dtype
    assert coefficients.stride(3) == 1
    assert all(feature.stride(2) == 1 for feature in features)
    _, batch, tokens, channels = accumulators.shape
    grid = (triton.cdiv(tokens, _BLOCK_TOKENS), triton.cdiv(channels, _BLOCK_CHANNELS), batch)
    for start in range(0, len(features), FEATURES_PER_LAUNCH):
        group = tuple(features[start : start + FEATURES_PER_LAUNCH])
        new = tuple(fresh) if start == 0 else (False,) * len(slots)
        weights = coefficients[:, start : start + FEATURES_PER_LAUNCH]
        with torch.cuda.device_of(accumulators):  # Triton launches on the current device, whatever holds the tensors
            _fold_kernel[grid](
                accumulators,
                _table(tuple(slots), new, accumulators.device),
                weights,
                group,
                tuple(feature.stride(0) for feature in group),
                tuple(feature.stride(1) for feature in group),
                len(slots),
                tokens,
                channels,
                accumulators.stride(0),
                weights.stride(0),
                weights.stride(1),
                weights.stride(2) if weights.shape[2] > 1 else 0,
                BLOCK_TOKENS=_BLOCK_TOKENS,
                BLOCK_CHANNELS=_BLOCK_CHANNELS,
                num_warps=_NUM_WARPS,
            )


@lru_cache(maxsize=512)
def _table(slots: tuple[int, ...], fresh: tuple[bool, ...], device: torch.device) -> Tensor:
    """Kept on the device: a sampling run repeats the table of each full step for every group, and so does the next run."""
    rows = [(slot, not new) for slot, new in zip(slots, fresh, strict=True)]
    return torch.tensor(rows, dtype=torch.int32, device=device)
