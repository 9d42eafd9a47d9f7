"""Operations of DiT by the counter that the published figures were made with."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache_dic.partial import EVERYTHING
from dit.config import DiTConfig
from seerkit.sampling.published import OBSERVED, PartialCounts, Term, terms, with_rest

if TYPE_CHECKING:
    from cache_dic.partial_run import Work


@dataclass(frozen=True)
class DiTCounter:
    """Operations of a step by the counter in the DiT code of Shenyi-Z/TaylorSeer (288776d, models.py and attention.py).

    It sees the blocks alone: products at 2 per multiply-add, but adaLN's linear layer at 1, and element-wise work at 1 for
    LayerNorm, SiLU and the scaling of q, 5 per softmax score, 6 per GELU. A forecast step is adaLN alone: the Taylor sums are
    not counted. The values are sums over all blocks for a batch, but those of a token and a block.
    """

    projections: int  # q, k, v, output, and the two layers of the MLP
    attention: int  # QKᵀ and the weighted sum of v
    adaln: int
    elements: int  # LayerNorm, q scaling, softmax, GELU
    silu: int
    depth: int
    rows: int
    mlp: tuple[int, int]  # of a token in one block: products, and GELU
    norms: int  # LayerNorm of a block

    @property
    def steps(self) -> tuple[int, int]:
        """Operations of a full and of a forecast step."""
        forecast = self.adaln + self.silu
        return self.projections + self.attention + self.elements + forecast, forecast

    def difference(self, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        full_steps = len(counts["full_steps"])
        forecasts = num_steps - full_steps
        seen = self.projections + self.attention + 2 * self.adaln
        values = {
            "adaLN at 2 per multiply-add instead of 1": full_steps * self.adaln / 1e12,
            "patch and timestep embedding, output layer": full_steps * (counts["flops_T_full_step"] - seen / 1e12),
            "softmax, GELU, LayerNorm and other element-wise work left out": -full_steps
            * (self.elements + self.silu)
            / 1e12,
            "forecast steps: embedding, output layer and gates at 2 per multiply-add instead of all of adaLN at 1": forecasts
            * (counts["flops_T_forecast_step"] - self.steps[1] / 1e12),
            "the forecaster's own sums": counts["flops_T_engine"],
        }
        return terms(values)

    def _partial(self, work: "tuple[Work, ...]") -> tuple[int, int, int]:
        """Of a partial step of ToCa and DuCa: products, adaLN's and SiLU's, and what is done element by element; blocks that it
        does not enter take nothing."""
        entered = len({block for block, *_ in work})
        tokens = sum(done for *_, done in work if isinstance(done, int))
        whole = sum(done == EVERYTHING and name == "attn" for _, name, done in work)  # both sites, of block 0
        products = whole * (self.projections + self.attention) // self.depth + self.rows * tokens * self.mlp[0]
        elements = whole * self.elements // self.depth + (entered - whole) * self.norms
        elements += self.rows * tokens * self.mlp[1]
        return products, entered * (self.adaln + self.silu) // self.depth, elements

    def partial_step(self, work: "tuple[Work, ...]", method: str) -> int:
        """Operations of a step that is not full."""
        return sum(self._partial(work))

    def partial_difference(self, run: PartialCounts, method: str) -> list[Term]:
        full_steps, elements, entered = sum(run.full), 0, 0
        for work, is_full in zip(run.works, run.full, strict=True):
            entered += bool(work)
            elements += 0 if is_full else self._partial(work)[2]
        values = {
            OBSERVED: run.observed_T,
            "adaLN at 2 per multiply-add instead of 1": entered * self.adaln / 1e12,
            "softmax, GELU, LayerNorm and other element-wise work left out": -(full_steps * self.elements + elements)
            / 1e12,
        }
        rest = "patch and timestep embedding, output layer, and SiLU left out"
        return with_rest(values, rest, run.flops_T - run.total(self, method) / 1e12)


def published_counter(config: DiTConfig, rows: int) -> DiTCounter:
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
        depth=depth,
        rows=rows,
        mlp=(4 * dim * width, 6 * width),
        norms=2 * tokens * dim,
    )
