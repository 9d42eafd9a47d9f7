"""Folding: what a full step adds to the accumulators of the steps that will be forecast from it.

The folded engine keeps no features. With a fixed schedule the weights and gates of every coming forecast step are known
when a feature is computed, so the feature is added, weighted, to one accumulator for each of those steps and dropped.
Sites are folded a group at a time: each group passes once over the accumulators, which is what folding costs.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from math import ceil

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")

LARGEST_GROUP = 16
"""Sites folded at once, at most. A group of G sites reads and writes every live accumulator once, so a site costs the
traffic of its own feature and of 2 J / G accumulators; past 16 little is left to save, and a GPU's registers are full."""

GROUP_BYTES = 2**29  # features held for one fold, at most, where nothing else is asked for

_CHUNK_ELEMENTS = 2**15
"""Elements of one feature that a CPU thread takes at a time: the least that torch gives a thread of its own, and with 8 to
16 features still near the size of a second-level cache (2 MiB)."""


def group_size(num_sites: int, site_bytes: int, budget_bytes: int) -> int:
    """How many of `num_sites` sites to hold and fold at once; groups come out as even as can be.

    site_bytes: one feature, (B, L, D) in the model's dtype; a group's features stay within budget_bytes (but one site
    is always folded) and within LARGEST_GROUP.
    """
    largest = max(1, min(LARGEST_GROUP, budget_bytes // site_bytes))
    return ceil(num_sites / ceil(num_sites / largest))


@torch.no_grad()
def fold_(
    accumulators: Tensor,
    slots: Sequence[int],
    features: Sequence[Tensor],
    coefficients: Tensor,
    fresh: Sequence[bool],
    *,
    backend: str = "auto",
) -> None:
    """Add a group of features, weighted, to some accumulators in place (the inner sum of the fold identity).

        accumulators[slots[j]] += sum_g coefficients[j, g] * features[g]        (= where fresh[j])

    accumulators: (J, B, L, D), contiguous. slots: different indices below J, maybe none. features: each (B, L, D), of
    any floating dtype, contiguous in D. coefficients: (len(slots), G, B or 1, D), weight times gate. fresh: whether a
    slot is still without content; what it holds is then overwritten unread.

    Computes in the accumulators' dtype, at least float32, whatever autocast says, and rounds once per call (in the
    Triton backend, per LARGEST_GROUP features). No gradient is recorded. backend: "auto" takes Triton for CUDA tensors
    where it is installed, except under torch.compile, which fuses the torch form by itself, and for float64.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; accepted are {', '.join(BACKENDS)}")
    num_slots, num_features = len(slots), len(features)
    _, batch, tokens, channels = accumulators.shape
    assert len(fresh) == len(set(slots)) == num_slots
    assert all(0 <= slot < len(accumulators) for slot in slots)
    assert all(feature.shape == (batch, tokens, channels) for feature in features)
    assert coefficients.shape[:2] == (num_slots, num_features), coefficients.shape
    assert coefficients.shape[2] in (1, batch), coefficients.shape
    assert coefficients.shape[3] == channels, coefficients.shape
    if num_slots == 0 or num_features == 0:
        assert not any(fresh), "a fresh slot needs content"
        return
    if backend == "triton" or (backend == "auto" and _suits_triton(accumulators)):
        from cache_dic import fold_triton

        for start in range(0, num_features, LARGEST_GROUP):
            group = slice(start, start + LARGEST_GROUP)
            new = fresh if start == 0 else [False] * num_slots
            fold_triton.fold_(accumulators, slots, features[group], coefficients[:, group], new)
    else:
        _fold_torch(accumulators, slots, features, coefficients, fresh)


def _suits_triton(accumulators: Tensor) -> bool:
    if not accumulators.is_cuda or accumulators.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    return _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _fold_torch(
    accumulators: Tensor, slots: Sequence[int], features: Sequence[Tensor], coefficients: Tensor, fresh: Sequence[bool]
) -> None:
    """Take a chunk of samples and tokens at a time, small enough to stay in cache while all slots take their sums of it."""
    _, batch, tokens, _ = accumulators.shape
    dtype = torch.promote_types(accumulators.dtype, torch.float32)
    coefficients = coefficients.to(dtype).expand(-1, -1, batch, -1)[:, :, :, None]  # (J, G, B, 1, D)
    samples_at_once, tokens_at_once = _chunk(accumulators)
    for b in range(0, batch, samples_at_once):
        samples = slice(b, b + samples_at_once)
        weights = [of_slot.unbind(0) for of_slot in coefficients[:, :, samples].unbind(0)]
        for t in range(0, tokens, tokens_at_once):
            part = (samples, slice(t, t + tokens_at_once))
            rows = accumulators[:, *part].unbind(0)
            terms = [feature[part].to(dtype) for feature in features]  # each (b, l, D)
            for slot, new, of_slot in zip(slots, fresh, weights, strict=True):
                row = rows[slot]
                if new:
                    row.zero_()
                total = row.to(dtype)  # the row itself where it has this dtype
                for term, weight in zip(terms, of_slot, strict=True):
                    total.addcmul_(term, weight)
                if row.dtype != dtype:
                    row.copy_(total)


def _chunk(accumulators: Tensor) -> tuple[int, int]:
    """(samples, tokens) of a chunk. Whole samples first: a chunk reads the coefficients of its samples in full."""
    _, batch, tokens, channels = accumulators.shape
    if (
        accumulators.device.type != "cpu" or torch.compiler.is_compiling()
    ):  # no such cache; a compiler makes its own loops
        return batch, tokens
    num_tokens = _CHUNK_ELEMENTS * torch.get_num_threads() // channels
    return max(1, min(batch, num_tokens // tokens)), max(1, min(tokens, num_tokens))
