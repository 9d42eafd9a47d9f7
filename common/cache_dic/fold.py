"""Folding: what a full step adds to the accumulators of the steps that will be forecast from it.

The folded engine keeps no features. With a fixed schedule the weights and gates of every coming forecast step are known
when a feature is computed, so the feature is added, weighted, to one accumulator for each of those steps and dropped.
Sites are folded a group at a time: each group passes once over the accumulators, which is what folding costs.
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")

LARGEST_GROUP = 32
"""Sites folded at once, at most. A group of G sites reads and writes every live accumulator once, so a site costs the
traffic of its own feature and of 2 J / G accumulators; past 32 little is left to save."""

_CPU_CHUNK_BYTES = 2**20
"""Sums that a CPU thread works on: half of a second-level cache of 2 MiB."""

_CHUNK_BYTES = 2**26
"""Sums that the torch backend works on elsewhere: a bound on the memory it takes beside the accumulators."""


def group_size(num_sites: int, row_bytes: int, budget_bytes: int) -> int:
    """How many of `num_sites` sites to hold and fold at once; at most LARGEST_GROUP.

    row_bytes: one feature of one row of the batch, (L, D) in the model's dtype. Those of a group, which are held until they
    are folded, stay within budget_bytes; a single site may be larger than that. A group is summed before it is accumulated,
    so its size, which is part of the order of sums, follows neither the batch nor the memory that is free.
    """
    return max(1, min(num_sites, LARGEST_GROUP, budget_bytes // row_bytes))


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

    Computes in the accumulators' dtype, at least float32, whatever autocast says, and rounds once per call (the Triton
    backend once per launch, which takes 16 features). No gradient is recorded. backend: "auto" takes Triton for CUDA
    tensors where it is installed, except for float64 and under torch.compile, which fuses the torch form by itself.
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

        fold_triton.fold_(accumulators, slots, features, coefficients, fresh)
    else:
        whole = torch.compiler.is_compiling() or accumulators.is_meta  # chunks have no cache to stay in there
        fold_torch = _fold_traced if whole else _fold_chunked
        dtype = torch.promote_types(accumulators.dtype, torch.float32)
        coefficients = coefficients.to(dtype).expand(-1, -1, batch, -1)[:, :, :, None]  # (J, G, B, 1, D)
        fold_torch(accumulators, slots, features, coefficients, fresh)


def _suits_triton(accumulators: Tensor) -> bool:
    if not accumulators.is_cuda or accumulators.dtype == torch.float64 or torch.compiler.is_compiling():
        return False
    return _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _fold_chunked(
    accumulators: Tensor, slots: Sequence[int], features: Sequence[Tensor], coefficients: Tensor, fresh: Sequence[bool]
) -> None:
    """Take the sums of all slots over one chunk of samples and tokens at a time, so that they stay in cache."""
    _, batch, tokens, _ = accumulators.shape
    samples_at_once, tokens_at_once = _chunk(accumulators, coefficients)
    for b in range(0, batch, samples_at_once):
        samples = slice(b, b + samples_at_once)
        weights = coefficients[:, :, samples].unbind(1)  # each (J, b, 1, D)
        for t in range(0, tokens, tokens_at_once):
            part = (samples, slice(t, t + tokens_at_once))
            terms = [feature[part].to(coefficients.dtype) for feature in features]  # each (b, l, D)
            totals = terms[0] * weights[0]  # (J, b, l, D)
            for term, weight in zip(terms[1:], weights[1:], strict=True):
                totals.addcmul_(term, weight)
            rows = accumulators[:, *part].unbind(0)
            for slot, total, new in zip(slots, totals.unbind(0), fresh, strict=True):
                if new:
                    rows[slot].copy_(total)
                else:
                    rows[slot].add_(total)


def _chunk(accumulators: Tensor, coefficients: Tensor) -> tuple[int, int]:
    """(samples, tokens) of a chunk. Whole samples first: a chunk reads the coefficients of its samples in full."""
    _, batch, tokens, channels = accumulators.shape
    num_bytes = _CPU_CHUNK_BYTES * torch.get_num_threads() if accumulators.device.type == "cpu" else _CHUNK_BYTES
    num_tokens = num_bytes // (len(coefficients) * channels * coefficients.dtype.itemsize)
    return max(1, min(batch, num_tokens // tokens)), max(1, min(tokens, num_tokens))


def _fold_traced(
    accumulators: Tensor, slots: Sequence[int], features: Sequence[Tensor], coefficients: Tensor, fresh: Sequence[bool]
) -> None:
    """The same in the form that torch.compile fuses best: a sum for each slot, and all reads before all writes."""
    values = []
    for slot, weights, new in zip(slots, coefficients.unbind(0), fresh, strict=True):
        terms = zip(features, weights.unbind(0), strict=True)
        total = sum(feature.to(coefficients.dtype) * weight for feature, weight in terms)
        values.append(total if new else accumulators[slot] + total)
    for slot, value in zip(slots, values, strict=True):
        accumulators[slot].copy_(value)
