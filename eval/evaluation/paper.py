"""Published figures, and the counters that they were made with, so that a difference to ours can be taken apart."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from dit import DiTConfig
from flux import FluxConfig
from flux.model import FREQUENCY_DIM
from hunyuan_video import HunyuanVideoConfig
from hunyuan_video.model import REFINER_MLP_RATIO
from seerkit.io.files import read_json
from wan import WanConfig

FIGURES = Path(__file__).resolve().parents[2] / "results" / "paper"


class Term(TypedDict):
    """A part of the way from a published count to ours, in 10^12 operations of a run."""

    term: str
    flops_T: float


def published(name: str) -> dict[str, Any]:
    """The published figures of a backbone with their sources: results/paper/NAME.json."""
    return read_json(FIGURES / f"{name}.json", "record")


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

    It sees the blocks alone: products at 2 per multiply-add, but adaLN's linear layer at 1, and element-wise work at 1 for
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

    counts: what `seerkit.sampling.flops.sampling_flops` returned for that run.
    """
    counter = dit_counter(config, rows)
    full_steps = len(counts["full_steps"])
    forecast_steps = num_steps - full_steps
    seen = counter.projections + counter.attention + 2 * counter.adaln
    terms = {
        "adaLN at 2 per multiply-add instead of 1": full_steps * counter.adaln / 1e12,
        "patch and timestep embedding, output layer": full_steps * (counts["flops_T_full_step"] - seen / 1e12),
        "softmax, GELU, LayerNorm and other element-wise work left out": -full_steps
        * (counter.elements + counter.silu)
        / 1e12,
        "forecast steps: embedding, output layer and gates at 2 per multiply-add instead of all of adaLN at 1": forecast_steps
        * (counts["flops_T_forecast_step"] - counter.steps[1] / 1e12),
        "the forecaster's own sums": counts["flops_T_engine"],
    }
    return [Term(term=term, flops_T=value) for term, value in terms.items()]


@dataclass(frozen=True)
class CalflopsCounter:
    """Operations of a step by the counter behind the published FLUX and HunyuanVideo figures: calflops, in the released code
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


def printed(flops: int) -> int:
    """A count as calflops prints it: two decimals of the largest unit, T, G, M or K, that it fills."""
    unit = next((unit for unit in (10**12, 10**9, 10**6, 10**3) if flops >= unit), 1)
    return round(round(flops / unit, 2) * unit)


def calflops_difference(counter: CalflopsCounter, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
    """From the published counter's figure for a run to ours, as `dit_difference`."""
    full_steps = len(counts["full_steps"])
    forecast_steps = num_steps - full_steps
    full, forecast = counter.unprinted
    full_printed, forecast_printed = counter.steps
    unprinted = full_steps * (full - full_printed) + forecast_steps * (forecast - forecast_printed)
    terms = {
        "a step's count before it was printed with two decimals": unprinted / 1e12,
        "the token refiner's attention, a fused call": full_steps * counter.unseen / 1e12,
        "element-wise work left out: LayerNorm and activations": full_steps
        * (counts["flops_T_full_step"] - (full + counter.unseen) / 1e12),
        "forecast steps: latent embedding, output layer and gates alone, without text, shifts and scales": forecast_steps
        * (counts["flops_T_forecast_step"] - forecast / 1e12),
        "the forecaster's own sums": counts["flops_T_engine"],
    }
    if not counter.unseen:
        del terms["the token refiner's attention, a fused call"]
    return [Term(term=term, flops_T=value) for term, value in terms.items()]


def flux_counter(config: FluxConfig, rows: int, image_tokens: int, text_tokens: int) -> CalflopsCounter:
    """The published counter for a batch of `rows`; the timestep is embedded once for all of them."""
    dim, width, double, single = config.hidden_size, config.mlp_width, config.depth, config.depth_single_blocks
    image, text = rows * image_tokens, rows * text_tokens
    embedders = FREQUENCY_DIM * dim + dim**2 + rows * (config.vec_in_dim * dim + dim**2)
    if config.guidance_embed:
        embedders += rows * (FREQUENCY_DIM * dim + dim**2)
    modulation = rows * dim**2 * (12 * double + 3 * single + 2)
    ends = image * dim * (config.in_channels + config.out_channels) + text * dim * config.context_in_dim
    return CalflopsCounter(
        **_joint_blocks(rows, image_tokens + text_tokens, dim, width, double, single),
        conditioning=2 * (embedders + modulation + ends),
        conditioning_elements=4 * image * dim,
    )


def hunyuan_counter(config: HunyuanVideoConfig, rows: int, video_tokens: int, text_tokens: int) -> CalflopsCounter:
    """The published counter for a batch of `rows`; the timestep is embedded once for all of them, in the refiner in each.

    The attention of the token refiner is fused in the released code, which leaves it uncounted.
    """
    dim, refiners = config.hidden_size, config.refiner_depth
    double, single = config.mm_double_blocks_depth, config.mm_single_blocks_depth
    video, text = rows * video_tokens, rows * text_tokens
    timestep = FREQUENCY_DIM * dim + dim**2
    embedders = (1 + rows) * timestep + rows * (config.text_states_dim_2 * dim + dim**2)
    if config.guidance_embed:
        embedders += rows * timestep
    modulation = rows * dim**2 * (12 * double + 3 * single + 2)
    patch = math.prod(config.patch_size)
    ends = video * dim * patch * (config.in_channels + config.out_channels)
    refiner = text * dim * config.text_states_dim + rows * (config.text_states_dim * dim + dim**2)
    refiner += refiners * dim**2 * (text * (4 + 2 * REFINER_MLP_RATIO) + rows * 2)
    return CalflopsCounter(
        **_joint_blocks(rows, video_tokens + text_tokens, dim, config.mlp_width, double, single),
        conditioning=2 * (embedders + modulation + ends + refiner),
        conditioning_elements=4 * video * dim + refiners * text * dim * (2 * 5 + REFINER_MLP_RATIO),
        unseen=refiners * 4 * rows * text_tokens**2 * dim,
    )


def _joint_blocks(rows: int, length: int, dim: int, width: int, double: int, single: int) -> dict[str, int]:
    """What calflops counts in double- and single-stream blocks over `length` tokens of both streams."""
    blocks, tokens = double + single, rows * length
    norms = 2 * double + single  # of a token
    return {
        "projections": blocks * 2 * tokens * (4 * dim**2 + 2 * dim * width),
        "attention": blocks * 4 * rows * length**2 * dim,
        "elements": tokens * (4 * norms * dim + blocks * width),
    }


@dataclass(frozen=True)
class WanCounter:
    """Operations of a step by the convention of the published Wan2.1 figures, read off from them: the products of layers.

    TeaCache and MagCache (arXiv 2506.09045, Table 1) print 8.21 P for 50 steps with guidance at 480p, 81 frames. That is what
    all linear layers of both branches take at 2 per multiply-add; attention, a fused call in the official code, is not in it.
    No count of TaylorSeer is published. A forecast step of its released code still embeds latents, time and text, and
    computes the output layer.
    """

    projections: (
        int  # of the blocks: q, k, v, output, of the text and the first frame, too, and the two layers of the MLP
    )
    embedding: int  # of latents, time, text and first frame, and the output layer
    unseen: int  # QKᵀ and the weighted sum of v, of self- and cross-attention, which are in none of the sums

    @property
    def steps(self) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""
        return self.projections + self.embedding, self.embedding


def wan_counter(config: WanConfig, rows: int, tokens: int, image_tokens: int = 0) -> WanCounter:
    """The published counter for a batch of `rows` with `tokens` each, both guidance branches together.

    image_tokens: CLIP tokens of a first frame.
    """
    dim, depth, text, video = config.dim, config.num_layers, rows * config.text_len, rows * tokens
    image, context = rows * image_tokens, config.text_len + image_tokens
    patch = math.prod(config.patch_size)
    time = config.freq_dim * dim + dim**2 + 6 * dim**2
    ends = video * dim * patch * (config.in_dim + config.out_dim)
    texts = text * (config.text_dim * dim + dim**2)
    images = image * (config.image_dim**2 + config.image_dim * dim)
    return WanCounter(
        projections=depth * 2 * (video * (6 * dim**2 + 2 * dim * config.ffn_dim) + (text + image) * 2 * dim**2),
        embedding=2 * (ends + rows * time + texts + images),
        unseen=depth * 4 * video * dim * (tokens + context),
    )


def wan_difference(
    config: WanConfig, rows: int, tokens: int, image_tokens: int, counts: Mapping[str, Any], num_steps: int
) -> list[Term]:
    """From the published counter's figure for a run to ours, as `dit_difference`."""
    counter = wan_counter(config, rows, tokens, image_tokens)
    full_steps = len(counts["full_steps"])
    forecast_steps = num_steps - full_steps
    full, forecast = counter.steps
    terms = {
        "attention, self and cross": full_steps * counter.unseen / 1e12,
        "time embedded once, not in every row": full_steps
        * (counts["flops_T_full_step"] - (full + counter.unseen) / 1e12),
        "forecast steps: latent embedding, time and output layer alone, without text": forecast_steps
        * (counts["flops_T_forecast_step"] - forecast / 1e12),
        "the forecaster's own sums": counts["flops_T_engine"],
    }
    return [Term(term=term, flops_T=value) for term, value in terms.items()]
