"""Operations of Wan2.1 by the convention of the published figures."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seerkit.sampling.published import Term, terms
from wan.config import WanConfig


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

    def difference(self, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        full_steps = len(counts["full_steps"])
        forecasts = num_steps - full_steps
        full, forecast = self.steps
        values = {
            "attention, self and cross": full_steps * self.unseen / 1e12,
            "time embedded once, not in every row": full_steps
            * (counts["flops_T_full_step"] - (full + self.unseen) / 1e12),
            "forecast steps: latent embedding, time and output layer alone, without text": forecasts
            * (counts["flops_T_forecast_step"] - forecast / 1e12),
            "the forecaster's own sums": counts["flops_T_engine"],
        }
        return terms(values)


def published_counter(config: WanConfig, rows: int, tokens: int, image_tokens: int = 0) -> WanCounter:
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
