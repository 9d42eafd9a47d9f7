"""The modulation table: shift, scale and gate of every step, computed for many steps in one product.

They depend on the timestep and the pooled condition alone, so they are known before sampling. Rows are computed in slices of
steps, so that a table stays bounded when conditions differ per sample, and forgotten once their step has passed.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

SLICE_BYTES = 256 * 2**20  # held at most by each kind of row

Row = TypeVar("Row")


class Rows(Generic[Row]):
    """Values of a function of the step, computed `per_slice` steps at a time, in the order of `steps`."""

    def __init__(self, compute: Callable[[list[int]], Sequence[Row]], steps: Sequence[int], per_slice: int) -> None:
        self.compute, self.steps, self.per_slice = compute, list(steps), max(1, per_slice)
        self.position = {step: i for i, step in enumerate(self.steps)}
        self.known: dict[int, Row] = {}

    def __getitem__(self, step: int) -> Row:
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
    `assemble(blocks or None, head)` gives the backbone's own modulation type.
    """

    def __init__(self, blocks: Rows, gates: Rows[Tensor], head: Rows, assemble: Callable[..., Row]) -> None:
        self.blocks, self.gate_rows, self.head, self.assemble = blocks, gates, head, assemble

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
