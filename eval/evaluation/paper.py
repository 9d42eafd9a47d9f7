"""Published figures, and the counters that they were made with, so that a difference to ours can be taken apart."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from dit import DiTConfig
from flux import FluxConfig
from flux.model import FREQUENCY_DIM

FIGURES = Path(__file__).resolve().parents[2] / "results" / "paper"


class Term(TypedDict):
    """A part of the way from a published count to ours, in 10^12 operations of a run."""

    term: str
    flops_T: float


def published(name: str) -> dict[str, Any]:
    """The published figures of a backbone with their sources: results/paper/NAME.json."""
    return json.loads((FIGURES / f"{name}.json").read_text())


def published_flops(facts: Mapping[str, Any], method: str, interval: int | None = None) -> dict[str, Any] | None:
    """The first published row of a method and interval that has a count or a ratio; None if there is none."""
    for row in facts["flops"]:
        if (row["method"], row.get("interval")) == (method, interval) and (row["flops_T"] or row["speedup"]):
            return row
    return None


def published_latency(facts: Mapping[str, Any], method: str) -> list[dict[str, Any]]:
    """Published latency and FLOPs speed-ups of a method, whether they stand apart or in a row with a count."""
    beside = [{**row, "flops_speedup": row["speedup"]} for row in facts["flops"] if row.get("latency_speedup")]
    return [row for row in (*facts["latency"], *beside) if row["method"] == method]


@dataclass(frozen=True)
class DiTCounter:
    """Operations of a step by the counter in the DiT code of Shenyi-Z/TaylorSeer (288776d, models.py and attention.py).

    It sees the blocks alone: products at 2 a multiply-add, but adaLN's linear layer at 1, and element-wise work at 1 for
    LayerNorm, SiLU and the scaling of q, 5 a softmax score, 6 a GELU. A forecast step is adaLN alone: the Taylor sums are not
    counted. The values are sums over all blocks for a batch of `rows`.
    """

    projections: int  # q, k, v, output, and the two layers of the MLP
    attention: int  # QKᵀ and the weighted sum of v
    adaln: int
    elements: int  # LayerNorm, q scaling, softmax, GELU
    silu: int

    @property
    def steps(self) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""
        return sum(vars(self).values()), self.adaln + self.silu


def dit_counter(config: DiTConfig, rows: int) -> DiTCounter:
    """The published counter for a batch of `rows`, both guidance branches together."""
    dim, length, depth = config.hidden_size, config.num_tokens, config.depth
    tokens, scores = rows * length, rows * config.num_heads * length**2
    width = int(dim * config.mlp_ratio)
    return DiTCounter(
        projections=depth * 2 * tokens * (4 * dim**2 + 2 * dim * width),
        attention=depth * 4 * rows * length**2 * dim,
        adaln=depth * rows * 6 * dim**2,
        elements=depth * (tokens * (2 * dim + dim + 6 * width) + 5 * scores),
        silu=depth * rows * dim,
    )


def dit_difference(config: DiTConfig, rows: int, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
    """From the published counter's figure for a run to ours: terms that add up to the difference exactly.

    counts: what `seerkit.flops.sampling_flops` returned for that run.
    """
    counter = dit_counter(config, rows)
    full_steps = len(counts["full_steps"])
    forecast_steps = num_steps - full_steps
    seen = counter.projections + counter.attention + 2 * counter.adaln
    terms = {
        "adaLN at 2 a multiply-add instead of 1": full_steps * counter.adaln / 1e12,
        "patch and timestep embedding, output layer": full_steps * (counts["flops_T_full_step"] - seen / 1e12),
        "softmax, GELU, LayerNorm and other element-wise work left out": -full_steps
        * (counter.elements + counter.silu)
        / 1e12,
        "forecast steps: embedding, output layer and gates at 2 a multiply-add instead of all of adaLN at 1": forecast_steps
        * (counts["flops_T_forecast_step"] - counter.steps[1] / 1e12),
        "the forecaster's own sums": counts["flops_T_engine"],
    }
    return [Term(term=term, flops_T=value) for term, value in terms.items()]


@dataclass(frozen=True)
class FluxCounter:
    """Operations of a step by the counter behind the published FLUX figures: calflops, with dense attention switched in.

    Products count 2 a multiply-add, attention too; LayerNorm 4 and GELU 1 an element; RMSNorm, softmax, rotation, residual
    additions and the Taylor sums nothing. A forecast step of the released code still embeds image, text, timestep and
    pooled text, and computes every modulation and the output layer.
    """

    projections: int  # of the blocks: q, k, v, output, and the two layers of the MLP
    attention: int  # QKᵀ and the weighted sum of v
    conditioning: int  # embeddings of image, text, timestep, guidance and pooled text, modulation, output layer
    elements: int  # LayerNorm and GELU of the blocks
    head_elements: int  # LayerNorm of the output layer

    @property
    def products(self) -> tuple[int, int]:
        """Products of a full and of a forecast step."""
        return self.projections + self.attention + self.conditioning, self.conditioning

    @property
    def steps(self) -> tuple[int, int]:
        """Operations of a full and of a forecast step, as printed: published totals are multiples of these."""
        full, forecast = self.products
        return printed(full + self.elements + self.head_elements), printed(forecast + self.head_elements)


def printed(flops: int) -> int:
    """A count as calflops prints it: two decimals of the largest unit, T, G, M or K, that it fills."""
    unit = next((unit for unit in (10**12, 10**9, 10**6, 10**3) if flops >= unit), 1)
    return round(round(flops / unit, 2) * unit)


def flux_counter(config: FluxConfig, rows: int, image_tokens: int, text_tokens: int) -> FluxCounter:
    """The published counter for a batch of `rows`; the timestep is embedded once for all of them."""
    dim, width, double, single = config.hidden_size, config.mlp_width, config.depth, config.depth_single_blocks
    image, text, blocks = rows * image_tokens, rows * text_tokens, double + single
    tokens, length = image + text, image_tokens + text_tokens
    embedders = FREQUENCY_DIM * dim + dim**2 + rows * (config.vec_in_dim * dim + dim**2)
    if config.guidance_embed:
        embedders += rows * (FREQUENCY_DIM * dim + dim**2)
    modulation = rows * dim**2 * (12 * double + 3 * single + 2)
    ends = image * dim * (config.in_channels + config.out_channels) + text * dim * config.context_in_dim
    norms = 2 * double + single  # of a token
    return FluxCounter(
        projections=blocks * 2 * tokens * (4 * dim**2 + 2 * dim * width),
        attention=blocks * 4 * rows * length**2 * dim,
        conditioning=2 * (embedders + modulation + ends),
        elements=tokens * (4 * norms * dim + blocks * width),
        head_elements=4 * image * dim,
    )


def flux_difference(
    config: FluxConfig,
    rows: int,
    image_tokens: int,
    text_tokens: int,
    counts: Mapping[str, Any],
    num_steps: int,
) -> list[Term]:
    """From the published counter's figure for a run to ours, as `dit_difference`."""
    counter = flux_counter(config, rows, image_tokens, text_tokens)
    full_steps = len(counts["full_steps"])
    forecast_steps = num_steps - full_steps
    full, forecast = counter.products
    full_printed, forecast_printed = counter.steps
    head = counter.head_elements
    unprinted = full_steps * (full + counter.elements + head - full_printed)
    unprinted += forecast_steps * (forecast + head - forecast_printed)
    terms = {
        "a step's count before it was printed with two decimals": unprinted / 1e12,
        "LayerNorm and GELU left out": full_steps
        * (counts["flops_T_full_step"] - (full + counter.elements + head) / 1e12),
        "forecast steps: image embedding, output layer and gates alone, without text, shifts and scales": forecast_steps
        * (counts["flops_T_forecast_step"] - (forecast + head) / 1e12),
        "the forecaster's own sums": counts["flops_T_engine"],
    }
    return [Term(term=term, flops_T=value) for term, value in terms.items()]
