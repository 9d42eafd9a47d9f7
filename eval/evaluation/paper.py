"""Published figures, and the counters that they were made with, so that a difference to ours can be taken apart."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from dit import DiTConfig

FIGURES = Path(__file__).resolve().parents[2] / "results" / "paper"


class Term(TypedDict):
    """A part of the way from a published count to ours, in 10^12 operations of a run."""

    term: str
    flops_T: float


def published(name: str) -> dict[str, Any]:
    """The published figures of a backbone with their sources: results/paper/NAME.json."""
    return json.loads((FIGURES / f"{name}.json").read_text())


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
