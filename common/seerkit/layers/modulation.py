"""The modulation table: shift, scale and gate of every step, computed for many steps in one product.

They depend on the timestep and the pooled condition alone, so they are known before sampling. Rows are computed in slices of
steps, so that a table stays bounded when conditions differ per sample, and forgotten once their step has passed.

The layers are those of adaLN (arXiv 2212.09748, Section 3.2) as DiT, FLUX and HunyuanVideo have them; conditions come
after SiLU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cache_dic import GateFactors
from seerkit.layers.activations import SiLU
from seerkit.layers.few_rows import among_rows

SLICE_BYTES = 256 * 2**20  # held at most by each kind of row

Row = TypeVar("Row")


# --------------------------------------------------------------------------------------------------------------- layers


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """x (B, L, D) after LayerNorm, scaled and shifted by (B, 1, D) each."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


def project(linear: nn.Linear, c: Tensor, count: int, rows: slice = slice(None)) -> Tensor:
    """Some of the `count` vectors that a layer makes of every condition: c (..., D) -> (..., vectors, D'), where c is.

    The weights may lie elsewhere (`seerkit.devices.offload`): those of `rows` are brought here for this product alone. A layer
    that is more than its weights, as one with hooks or an adapter around it, is called.
    """
    if not _is_plain(linear):
        return among_rows(linear, c).unflatten(-1, (count, -1))[..., rows, :]
    weight, bias = (
        part.unflatten(0, (count, -1))[rows].flatten(0, 1).to(c.device, non_blocking=True)
        for part in (linear.weight, linear.bias)
    )
    product = among_rows(lambda c: F.linear(c, weight, bias), c)
    return product.unflatten(-1, (len(range(count)[rows]), -1))


def last_outputs(layer: nn.Module, x: Tensor, width: int) -> Tensor:
    """The last `width` of what a linear layer makes of x (..., in), computed alone; of weights that are stored in fewer bits
    (`seerkit.devices.offload.Packed`), too. Of a layer that is more than its weights all is computed."""
    packed: Any = getattr(layer.weight, "restored", None)
    if packed is None and not _is_plain(layer):
        return layer(x)[..., -width:]
    weight: Any = layer.weight if packed is None else packed(x.dtype)
    bias: Any = None if layer.bias is None else layer.bias[-width:].to(x.dtype)
    return F.linear(x, weight[-width:], bias)


def _is_plain(linear: nn.Module) -> bool:
    """Whether calling a layer is the product with its weights and nothing else."""
    hooks = linear._forward_hooks or linear._forward_pre_hooks
    return type(linear).forward is nn.Linear.forward and "forward" not in vars(linear) and not hooks


class ModulationLayer(nn.Module):
    """`count` vectors of every condition: shift, scale, gate, once or twice.

    name: of the linear layer that makes them, in the state dict.
    """

    def __init__(self, dim: int, count: int, name: str) -> None:
        super().__init__()
        self.count, self.name = count, name
        self.add_module(name, nn.Linear(dim, count * dim))

    @property
    def product(self) -> nn.Linear:
        return self.get_submodule(self.name)

    def forward(self, c: Tensor) -> Tensor:
        """Conditions (..., B, D) -> (..., B, count, D)."""
        return project(self.product, c, self.count)

    def gates(self, c: Tensor) -> Tensor:
        """The gates alone, every third vector: conditions (S, B, D) -> (S, count / 3, B, D)."""
        return project(self.product, c, self.count, slice(2, None, 3)).transpose(1, 2)


class FinalLayer(nn.Module):
    """The head: shift and scale of the normalised tokens, and the output."""

    def __init__(self, dim: int, out_dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.linear = nn.Linear(dim, out_dim)
        self.adaLN_modulation = nn.Sequential(SiLU(), nn.Linear(dim, 2 * dim))

    def modulation(self, c: Tensor) -> Tensor:
        """Conditions (..., B, D) -> shift and scale (..., B, 2, D)."""
        return project(self.adaLN_modulation[1], c, 2)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x (B, L, D), modulation (B, 2, D) -> (B, L, out_dim)."""
        shift, scale = modulation.unsqueeze(2).unbind(1)
        return self.linear(modulate(x, shift, scale, self.eps))


# ---------------------------------------------------------------------------------------------------------------- table


class Rows(Generic[Row]):
    """Values of a function of the step, computed `per_slice` steps at a time, in the order of `steps`; others when asked."""

    def __init__(self, compute: Callable[[list[int]], Sequence[Row]], steps: Sequence[int], per_slice: int) -> None:
        self.compute, self.steps, self.per_slice = compute, list(steps), max(1, per_slice)
        self.position = {step: i for i, step in enumerate(self.steps)}
        self.known: dict[int, Row] = {}

    def __getitem__(self, step: int) -> Row:
        if step not in self.position:
            return self.compute([step])[0]
        if step not in self.known:
            first = self.position[step]
            missing = [s for s in self.steps[first : first + self.per_slice] if s not in self.known]
            self.known.update(zip(missing, self.compute(missing), strict=True))
        return self.known[step]

    def forget_before(self, step: int) -> None:
        self.known = {s: row for s, row in self.known.items() if s >= step}


class ModulationTable(Generic[Row]):
    """What one sampling run needs of a backbone's modulation.

    blocks: rows for full steps; gates: (sites, B, D) for steps that are forecast; head: rows for every step.
    `assemble(blocks or None, head)` gives the backbone's own modulation type. factors: of the gates, where they factor.
    """

    def __init__(
        self,
        blocks: Rows,
        gates: Rows[Tensor],
        head: Rows,
        assemble: Callable[..., Row],
        factors: GateFactors | None = None,
    ) -> None:
        self.blocks, self.gate_rows, self.head, self.assemble = blocks, gates, head, assemble
        self.factors = factors

    def at(self, step: int) -> Row:
        """The modulation of a step; without blocks where the step is forecast."""
        blocks = self.blocks[step] if step in self.blocks.position else None
        return self.assemble(blocks, self.head[step])

    def gates(self, steps: Sequence[int]) -> Tensor:
        """Gates of every site at those steps, (len(steps), sites, B, D)."""
        return torch.stack([self.gate_rows[step] for step in steps])

    def forget_before(self, step: int) -> None:
        """Drop rows of steps that have passed."""
        for rows in (self.blocks, self.gate_rows, self.head):
            rows.forget_before(step)


def condition_table(
    c: Tensor,
    full_steps: Sequence[int],
    gated_steps: Sequence[int],
    *,
    blocks: Sequence[nn.Module],
    block_rows: Callable[[Tensor], Sequence[Any]],
    vectors: int,
    final_layer: FinalLayer,
    assemble: Callable[..., Row],
) -> ModulationTable[Row]:
    """Table of a run whose modulation is linear in conditions c (S, B, D): full rows, gates alone, head rows.

    blocks: in order, with `SITES` and `gates(c)`. block_rows(c): by step, for the conditions of some, what `assemble` takes.
    vectors: of a full step, for each condition.
    """

    def gate_rows(steps: list[int]) -> Tensor:
        return torch.cat([block.gates(c[steps]) for block in blocks], dim=1)  # (steps, sites, B, D)

    def rows_in_a_slice(vectors: int) -> int:
        return SLICE_BYTES // (vectors * c[0].numel() * c.element_size())

    sites = sum(len(block.SITES) for block in blocks)
    return ModulationTable(
        blocks=Rows(lambda steps: block_rows(c[steps]), full_steps, rows_in_a_slice(vectors)),
        gates=Rows(gate_rows, gated_steps, rows_in_a_slice(sites)),
        head=Rows(lambda steps: final_layer.modulation(c[steps]), range(len(c)), rows_in_a_slice(2)),
        assemble=assemble,
    )


# ---------------------------------------------------------------------------------------------------------- two streams


class TwoStreams(Protocol):
    """A backbone of double-stream blocks, single-stream blocks and a head, its modulation linear in one condition.

    Blocks have `SITES`, `gates(c)`, and as `modulation(c)` the rows of both streams, or of the one.
    """

    double_blocks: Sequence[nn.Module]
    single_blocks: Sequence[nn.Module]
    final_layer: FinalLayer

    def modulation_layers(self) -> list[nn.Linear]: ...


@dataclass(frozen=True)
class TwoStreamModulation:
    """Shift, scale and gate of a step: by double block of both streams, by single block; `head` is (B, 2, D).

    At a forecast step `blocks` is None.
    """

    blocks: tuple[Sequence[tuple[Tensor, Tensor]], Sequence[Tensor]] | None
    head: Tensor


Numbered = list[tuple[int, Any]]
"""Blocks by their number, with their rows."""


def split_blocks(rows: tuple[Sequence[Any], Sequence[Any]], start: int, stop: int | None) -> tuple[Numbered, Numbered]:
    """Numbers and rows of the double and of the single blocks among blocks start … stop - 1, counted through."""
    double, single = (list(enumerate(of_kind)) for of_kind in rows)
    count = len(double)
    last = count + len(single) if stop is None else stop
    return double[start:last], single[max(0, start - count) : max(0, last - count)]


def _block_rows(model: TwoStreams, c: Tensor) -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    return [b.modulation(c) for b in model.double_blocks], [b.modulation(c) for b in model.single_blocks]


def two_stream_modulation(model: TwoStreams, c: Tensor) -> TwoStreamModulation:
    """Modulation of one step for conditions c (B, D)."""
    return TwoStreamModulation(_block_rows(model, c), model.final_layer.modulation(c))


def two_stream_table(
    model: TwoStreams, c: Tensor, full_steps: Sequence[int], gated_steps: Sequence[int]
) -> ModulationTable[TwoStreamModulation]:
    """Modulation of a run whose conditions are c (S, B, D): full rows, gates alone, head rows."""

    def block_rows(c: Tensor) -> Sequence[tuple]:
        double, single = _block_rows(model, c)
        return [([(a[i], b[i]) for a, b in double], [rows[i] for rows in single]) for i in range(len(c))]

    return condition_table(
        c, full_steps, gated_steps, blocks=(*model.double_blocks, *model.single_blocks), block_rows=block_rows,
        vectors=sum(layer.out_features for layer in model.modulation_layers()) // c.shape[-1],
        final_layer=model.final_layer, assemble=TwoStreamModulation,
    )  # fmt: skip
