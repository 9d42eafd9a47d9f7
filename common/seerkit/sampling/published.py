"""Counters that published figures were made with, so that a difference to ours can be taken apart.

What the backbones share; the counter of each is in its counts.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

from cache_dic.partial import EVERYTHING

if TYPE_CHECKING:
    from cache_dic.partial_run import Work


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


class PartialCounter(Counter, Protocol):
    """A counter that also knows steps of `PARTIAL` methods."""

    def partial_step(self, work: "tuple[Work, ...]", method: str) -> int:
        """Operations of a step that is not full, by what its sites computed."""

    def partial_difference(self, run: "PartialCounts", method: str) -> list[Term]:
        """From this counter's figure for such a run to ours: terms that add up to the difference exactly."""


@dataclass(frozen=True)
class PartialCounts:
    """A run of a method that computes part of a step, counted by us.

    works: what the sites of every step computed; full: which steps are; flops_T: 10^12 operations of the run, observed_T of
    them to see the attention that tokens pay each other.
    """

    works: "tuple[tuple[Work, ...], ...]"
    full: tuple[bool, ...]
    flops_T: float  # noqa: N815
    observed_T: float  # noqa: N815

    def total(self, counter: "PartialCounter", method: str) -> int:
        """Operations of the run by a published counter."""
        full_step, _ = counter.steps
        return sum(
            full_step if is_full else counter.partial_step(work, method)
            for work, is_full in zip(self.works, self.full, strict=True)
        )


PARTIAL = ("toca", "duca", "delta_dit")
"""Methods that compute part of a step, of which totals are published."""

OBSERVED = "products of queries and keys once more, beside fused attention, to see how much of it tokens get"


def with_rest(values: dict[str, float], rest: str, difference: float) -> list[Term]:
    """Terms by their names, and what is left of a difference under the name `rest`."""
    return terms({**values, rest: difference - sum(values.values())})


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

    blocks: "JointBlocks"
    conditioning: int  # embeddings of latents, text and conditions, modulation, output layer
    conditioning_elements: int  # LayerNorm of the output layer; LayerNorm and SiLU of a token refiner
    unseen: int = 0  # products of fused attention outside of the blocks, which are in none of the sums
    projecting: frozenset[str] = frozenset()  # methods whose double-stream blocks project reused attention anew
    splits_first_layer: bool = True  # whether partial steps of single-stream blocks do without queries, keys and values

    @property
    def projections(self) -> int:
        return self.blocks.projections

    @property
    def attention(self) -> int:
        return self.blocks.attention

    @property
    def elements(self) -> int:
        return self.blocks.elements

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

    def _partial(self, work: "tuple[Work, ...]", method: str) -> tuple[int, dict[str, int]]:
        """Operations of a partial step, and those of them that are not in ours."""
        if not work:
            return self.unprinted[1] - self.blocks.double_modulation, {}
        products, first_layer, elements = self.blocks.of_work(work)
        left_out = {"LayerNorm and GELU of what partial steps compute": elements}
        if method in self.projecting:
            name = "the output projection of reused attention in double-stream blocks, kept projected here"
            left_out[name] = self.blocks.reprojection
        if not self.splits_first_layer:
            left_out["queries, keys and values of computed tokens in single-stream blocks"] = first_layer
        return self.unprinted[1] + products + sum(left_out.values()), left_out

    def partial_step(self, work: "tuple[Work, ...]", method: str) -> int:
        """As printed; a step without blocks leaves out the modulation of double-stream ones."""
        return printed(self._partial(work, method)[0])

    def partial_difference(self, run: PartialCounts, method: str) -> list[Term]:
        values: dict[str, float] = {OBSERVED: run.observed_T}
        for work, is_full in zip(run.works, run.full, strict=True):
            if not is_full:
                for name, flops in self._partial(work, method)[1].items():
                    values[name] = values.get(name, 0.0) - flops / 1e12
        rest = "LayerNorm and activations of full steps, modulation and embeddings of the others, and two decimals"
        kept = {name: value for name, value in values.items() if value}
        return with_rest(kept, rest, run.flops_T - run.total(self, method) / 1e12)


def printed(flops: int) -> int:
    """A count as calflops prints it: two decimals of the largest unit, T, G, M or K, that it fills."""
    unit = next((unit for unit in (10**12, 10**9, 10**6, 10**3) if flops >= unit), 1)
    return round(round(flops / unit, 2) * unit)


@dataclass(frozen=True)
class JointBlocks:
    """Double- and single-stream blocks over `length` tokens of both streams, as calflops counts them."""

    rows: int
    length: int
    dim: int
    width: int  # of the MLP
    double: int
    single: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def projections(self) -> int:
        """Of q, k, v, output, and the two layers of the MLP."""
        return (self.double + self.single) * 2 * self.tokens * (4 * self.dim**2 + 2 * self.dim * self.width)

    @property
    def attention(self) -> int:
        """QKᵀ and the weighted sum of v."""
        return (self.double + self.single) * 4 * self.rows * self.length**2 * self.dim

    @property
    def elements(self) -> int:
        """LayerNorm and GELU."""
        norms = 2 * self.double + self.single  # of a token
        return self.tokens * (4 * norms * self.dim + (self.double + self.single) * self.width)

    @property
    def double_modulation(self) -> int:
        """The modulation of double-stream blocks."""
        return self.double * self.rows * 2 * 12 * self.dim**2

    @property
    def reprojection(self) -> int:
        """The output projection of attention in all double-stream blocks."""
        return self.double * 2 * self.tokens * self.dim**2

    def of_work(self, work: "tuple[Work, ...]") -> tuple[int, int, int]:
        """What a step takes that computes whole blocks, and some tokens of others: products, those of queries, keys and values
        of single-stream blocks' tokens, which are not among them, and LayerNorm and GELU."""
        double = single = 0
        whole: dict[int, bool] = {}
        for block, name, done in work:
            whole[block] = whole.get(block, True) and done == EVERYTHING
            if isinstance(done, int):
                double += done * (name != "single")
                single += done * (name == "single")
        double, single, blocks = self.rows * double, self.rows * single, sum(whole.values())
        products = (double + single) * 4 * self.dim * self.width + single * 2 * self.dim**2
        products += blocks * (self.projections + self.attention) // (self.double + self.single)
        norms = sum(1 + (block < self.double) for block, is_whole in whole.items() if is_whole)
        elements = (double + single) * (4 * self.dim + self.width)
        elements += self.tokens * (4 * norms * self.dim + blocks * self.width)
        return products, single * 6 * self.dim**2, elements
