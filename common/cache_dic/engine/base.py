"""What the engines share: the shape of a token stream, the site of a full step, the interface, and the last features.

    site = engine.record(step)               a full step begins: hand `site` to the blocks
    x_final = engine.forecast(step)(x0)      the tokens after the last block, predicted from those before the first
    engine.finish(step, site)                the step has ended; forecast steps have no site

Tokens are (B, L, D). At a forecast step no site reads x, so a walk through the blocks is a walk over the sites. Where some
blocks are computed in every step, "the blocks" are the others.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cache_dic.errors import UserError
from cache_dic.plan import AnyPlan, OpenPlan, Weight
from cache_dic.settings import GROUP_BYTES
from cache_dic.site import Addition, Site

Gates = Callable[[Sequence[int]], Tensor]
"""`gates(steps)` -> (len(steps), sites, B or 1, D), the gate of every site at those steps."""


@dataclass(frozen=True)
class Tokens:
    """What the planner needs to know of a model's token stream."""

    batch: int  # rows of the model's batch, both guidance branches where they share it
    length: int  # tokens of the stream that reaches the output
    dim: int
    num_sites: int
    dtype: torch.dtype  # of the features
    stream_dtype: torch.dtype | None = None  # of the residual stream, None where it is that of the features
    gate_rank: int = 0  # terms of the model's `GateFactors`, 0 if it has none
    output_numel: int = 0  # elements of the model's output for the whole batch

    @property
    def numel(self) -> int:
        return self.batch * self.row_numel

    @property
    def stream_bytes(self) -> int:
        """Of the residual stream of the whole batch."""
        return self.numel * (self.stream_dtype or self.dtype).itemsize

    @property
    def row_numel(self) -> int:
        return self.length * self.dim


@dataclass(frozen=True)
class GateFactors:
    """Gates that are constants of the sites times vectors that all sites share: gate_l(s) = Σ_r constant_rl · shared_r(s).

    constant: (R, sites, D). shared(steps): (len(steps), R, B or 1, D).
    """

    constant: Tensor
    shared: Gates


Forecast = Callable[[Tensor], Tensor]
"""Tokens before the first block -> tokens after the last, both (B, L, D)."""


@dataclass(frozen=True)
class Increment:
    """Adds what the blocks would have added: Σ_l gate_l F_l (B, L, D), None where every weight is zero; rounds once."""

    total: Tensor | None

    def __call__(self, x0: Tensor) -> Tensor:
        return x0 if self.total is None else (x0 + self.total).to(x0.dtype)


class Recorder(Site):
    """The site of a full step: adds as usual, counts its calls and shows every feature to `keep`.

    ends: hold the stream before the first and after the last of `num_sites` calls, as `x0` and `x_final`. Streams that do not
    reach the output pass by. names, gates: of the sites, in the order in which they were called, gates None for 1.
    """

    def __init__(self, num_sites: int, *, ends: bool = False) -> None:
        self.num_sites, self.ends = num_sites, ends
        self.calls = 0
        self.names: list[str | None] = []
        self.gates: list[Tensor | None] = []
        self.x0: Tensor | None = None
        self.x_final: Tensor | None = None

    def add(self, addition: Addition) -> Tensor:
        value, part = addition.value(), addition.part
        after = addition.of(value)
        self.look_at(value, addition.reaches_output)
        if not addition.reaches_output:
            return after
        if self.ends and self.calls == 0:
            self.x0 = _cut(addition.x, part)
        self.calls += 1
        self.names.append(addition.name)
        self.gates.append(addition.gate)
        self.keep(_cut(value, part))
        if self.ends and self.calls == self.num_sites:
            self.x_final = _cut(after, part)
        return after

    def look_at(self, value: Tensor, reaches_output: bool) -> None:
        """A feature of any stream, with all its tokens, has been computed; nothing is done with it here."""

    def keep(self, feature: Tensor) -> None:
        """A feature (B, L, D) has been computed; nothing is done with it here."""

    def both_ends(self) -> tuple[Tensor, Tensor]:
        """x0 and x_final of a step that has ended."""
        assert self.x0 is not None, "recorded with ends=True, at the first site"
        assert self.x_final is not None, "and at the last"
        return self.x0, self.x_final


def _cut(x: Tensor, part: slice | None) -> Tensor:
    """The tokens that are kept, out of the graph of gradients."""
    return x.detach() if part is None else x.detach()[:, part]


class Engine:
    """The plan, the shape of the token stream, and the gates of any step, for one run and guidance branch.

    enters_model: whether a forecast step goes through the model's embedding and head. needs_gates: whether a forecast is made
    with the gates of its own step, so that the model's must be known. walks: whether the blocks may be walked at a forecast
    step, so that they need their modulation there.
    """

    name: str
    grid: Callable[[], tuple[int, ...]]
    """Frames (of videos), rows and columns of the tokens; set by the run."""
    enters_model = True
    needs_gates = True
    walks = False

    def __init__(self, plan: AnyPlan, tokens: Tokens, gates: Gates, settings: "EngineSettings") -> None:
        self.plan, self.tokens, self.gates, self.settings = plan, tokens, gates, settings

    @classmethod
    def start(
        cls, plan: AnyPlan, tokens: Tokens, gates: Gates, factors: GateFactors | None, settings: "EngineSettings"
    ) -> "Engine":
        """An engine for one run; factors: of the model's gates, where it has any."""
        return cls(plan, tokens, gates, settings)

    def gates_of(self, step: int) -> Tensor:
        """The gates that a forecast of this step would be made with, (sites, B or 1, D)."""
        return self.gates([step])[0]

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        """The site of a full step; `ends` as in `Recorder`."""
        raise NotImplementedError

    def forecast(self, step: int) -> Forecast:
        """What predicts a step, a function of the tokens before the blocks alone; or of the input of a model not entered."""
        raise NotImplementedError

    def finish(self, step: int, site: Recorder | None) -> None:
        """A step has ended, a full one with its site; what no later forecast reads is dropped here."""

    def see(self, step: int, latents: Tensor, output: Tensor) -> None:
        """Input and output of the model at a full step, for engines that do not enter it at a forecast step."""

    @staticmethod
    def kept_bytes(plan: AnyPlan, tokens: Tokens, settings: "EngineSettings") -> int:
        """The most bytes of features kept from one step to the next."""
        raise NotImplementedError

    def most_kept(self) -> int:
        """`kept_bytes`, where a run knows more than the shape of its tokens: of what it has kept so far."""
        return self.kept_bytes(self.plan, self.tokens, self.settings)

    @staticmethod
    def held_bytes(plan: AnyPlan, tokens: Tokens, settings: "EngineSettings") -> int:
        """The most bytes of features held within a full step, beside those kept."""
        return 0

    @staticmethod
    def full_step_flops(plan: AnyPlan, tokens: Tokens, settings: "EngineSettings", step: int) -> int:
        """Operations of the engine itself in a full step, 2 per multiply-add."""
        return 0

    @staticmethod
    def forecast_flops(plan: AnyPlan, tokens: Tokens, settings: "EngineSettings", step: int) -> int:
        """Operations of the engine itself in a forecast step, 2 per multiply-add."""
        return 0

    @classmethod
    def work_flops(
        cls, plan: AnyPlan, tokens: Tokens, settings: "EngineSettings", taken: Sequence[int] | None = None
    ) -> int:
        """Operations of the engine itself over a run, or the steps `taken` of one whose full steps the plan knows by now."""
        full, taken = set(plan.full_steps), range(plan.num_steps) if taken is None else taken
        return sum(
            cls.full_step_flops(plan, tokens, settings, step)
            if step in full
            else cls.forecast_flops(plan, tokens, settings, step)
            for step in taken
        )


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an engine stores.

    accumulator_dtype: of the folded accumulators; None is float32, or float64 for a float64 model.
    group_bytes: features of a row of the batch held, at most, before they are folded together.
    static_shapes: every full step does the same operations on the same shapes, so that a compiled full step is one graph;
        costs a few zero products at the ends of the schedule.
    factored: whether the folded engine keeps the sums of `FactoredEngine`; None where they are fewer.
    """

    accumulator_dtype: torch.dtype | None = None
    group_bytes: int = GROUP_BYTES
    static_shapes: bool = False
    factored: bool | None = None

    def accumulators(self, model_dtype: torch.dtype) -> torch.dtype:
        return self.accumulator_dtype or torch.promote_types(model_dtype, torch.float32)


def site_scale(weight: Weight, tokens: Tokens, like: Tensor) -> float | Tensor:
    """A weight as a factor of gates (sites, B, D): a number, or (sites, 1, 1 or D) where it differs by site.

    UserError for weights of another number of sites.
    """
    if isinstance(weight, float):
        return weight
    scale = torch.as_tensor(weight, dtype=torch.float64).to(like)
    if scale.shape[0] != tokens.num_sites or scale.shape[1] not in (1, tokens.dim):
        raise UserError(
            f"weights by site of shape {tuple(scale.shape)} must be ({tokens.num_sites}, 1) or ({tokens.num_sites}, "
            f"{tokens.dim}), for the model's sites and channels"
        )
    return scale.unsqueeze(1)


class Snapshots:
    """The values of the last full steps, as many as a forecast reaches back."""

    def __init__(self, plan: AnyPlan) -> None:
        self.plan = plan
        self.by_step: dict[int, Any] = {}

    def push(self, step: int, value: Any) -> None:
        self.by_step[step] = value
        self.drop_before(step + 1)

    def drop_before(self, step: int) -> list[Any]:
        """Drop what no forecast from `step` on reads, and return it."""
        return [self.by_step.pop(m) for m in list(self.by_step) if not self.plan.is_read_from(m, step)]

    @staticmethod
    def most(plan: AnyPlan) -> int:
        """The most values alive at once."""
        if isinstance(plan, OpenPlan):
            return plan.history
        snapshots, most = Snapshots(plan), 0
        for m in plan.full_steps:
            snapshots.push(m, None)
            most = max(most, len(snapshots.by_step))
        return most


def weighted_sum(tensors: Sequence[Tensor], weights: Collection[float | Tensor]) -> Tensor:
    """Σ weights[i] · tensors[i] in as many operations as there are terms, the first none where its weight is 1.

    Weights are numbers, or tensors that broadcast to the others.
    """
    (first, scale), *others = zip(tensors, weights, strict=True)
    total = first if isinstance(scale, float) and scale == 1 else first * scale
    for tensor, weight in others:
        by_channel = isinstance(weight, Tensor)
        total = torch.addcmul(total, tensor, weight) if by_channel else torch.add(total, tensor, alpha=weight)
    return total
