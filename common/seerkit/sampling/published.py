"""Counters that published figures were made with, so that a difference to ours can be taken apart.

What the backbones share; the counter of each is in its counts.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict


class Term(TypedDict):
    """A part of the way from a published count to ours, in 10^12 operations of a run."""

    term: str
    flops_T: float


class Counter(Protocol):
    """Operations of the steps of a batch as a published counter has them."""

    @property
    def steps(self) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""

    def difference(self, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        """From this counter's figure for a run to ours: terms that add up to the difference exactly.

        counts: what `seerkit.sampling.flops.sampling_flops` returned for that run.
        """


def terms(values: Mapping[str, float]) -> list[Term]:
    """Terms by their names."""
    return [Term(term=name, flops_T=value) for name, value in values.items()]


@dataclass(frozen=True)
class CalflopsCounter:
    """A `Counter`, that behind the published FLUX and HunyuanVideo figures: calflops, in the released code
    (Shenyi-Z/TaylorSeer 288776d) with the attention of the blocks written out, by operations that calflops sees.

    Products count 2 per multiply-add; LayerNorm 4 an element, 5 with weights; GELU and SiLU 1; RMSNorm, softmax, rotation,
    residual additions and the Taylor sums nothing. A forecast step of the released code still embeds latents, text and
    conditions, and computes every modulation and the output layer.
    """

    projections: int  # of the blocks: q, k, v, output, and the two layers of the MLP
    attention: int  # of the blocks: QKᵀ and the weighted sum of v
    conditioning: int  # embeddings of latents, text and conditions, modulation, output layer
    elements: int  # LayerNorm and GELU of the blocks
    conditioning_elements: int  # LayerNorm of the output layer; LayerNorm and SiLU of a token refiner
    unseen: int = 0  # products of fused attention outside of the blocks, which are in none of the sums

    @property
    def products(self) -> tuple[int, int]:
        """Products of a full and of a forecast step."""
        return self.projections + self.attention + self.conditioning, self.conditioning

    @property
    def unprinted(self) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""
        full, forecast = self.products
        return full + self.elements + self.conditioning_elements, forecast + self.conditioning_elements

    @property
    def steps(self) -> tuple[int, int]:
        """Operations of a full and of a forecast step, as printed: published totals are multiples of these."""
        full, forecast = self.unprinted
        return printed(full), printed(forecast)

    def difference(self, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        full_steps = len(counts["full_steps"])
        forecasts = num_steps - full_steps
        full, forecast = self.unprinted
        full_printed, forecast_printed = self.steps
        unprinted = full_steps * (full - full_printed) + forecasts * (forecast - forecast_printed)
        values = {
            "a step's count before it was printed with two decimals": unprinted / 1e12,
            "the token refiner's attention, a fused call": full_steps * self.unseen / 1e12,
            "element-wise work left out: LayerNorm and activations": full_steps
            * (counts["flops_T_full_step"] - (full + self.unseen) / 1e12),
            "forecast steps: latent embedding, output layer and gates alone, without text, shifts and scales": forecasts
            * (counts["flops_T_forecast_step"] - forecast / 1e12),
            "the forecaster's own sums": counts["flops_T_engine"],
        }
        if not self.unseen:
            del values["the token refiner's attention, a fused call"]
        return terms(values)


def printed(flops: int) -> int:
    """A count as calflops prints it: two decimals of the largest unit, T, G, M or K, that it fills."""
    unit = next((unit for unit in (10**12, 10**9, 10**6, 10**3) if flops >= unit), 1)
    return round(round(flops / unit, 2) * unit)


def joint_blocks(rows: int, length: int, dim: int, width: int, double: int, single: int) -> dict[str, int]:
    """What calflops counts in double- and single-stream blocks over `length` tokens of both streams."""
    blocks, tokens = double + single, rows * length
    norms = 2 * double + single  # of a token
    return {
        "projections": blocks * 2 * tokens * (4 * dim**2 + 2 * dim * width),
        "attention": blocks * 4 * rows * length**2 * dim,
        "elements": tokens * (4 * norms * dim + blocks * width),
    }
