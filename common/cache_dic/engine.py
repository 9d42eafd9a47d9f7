"""Where: how features are kept between full steps. Three engines with one interface, each for one run and guidance branch.

    site = engine.record(step)          a full step begins: hand `site` to the blocks
    x_final = engine.forecast(step)(x0) the tokens after the last block, predicted from those before the first
    engine.finish(step, site)           the step has ended; forecast steps have no site

Tokens are (B, L, D). At a forecast step no site reads x, so a walk through the blocks is a walk over the sites.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cache_dic.fold import fold_, group_size
from cache_dic.plan import Plan
from cache_dic.settings import ENGINE_NAMES, GROUP_BYTES
from cache_dic.site import residual

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

    @property
    def numel(self) -> int:
        return self.batch * self.row_numel

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


class Recorder:
    """The site of a full step: adds as usual, counts its calls and shows every feature to `keep`.

    ends: hold the stream before the first and after the last of `num_sites` calls, as `x0` and `x_final`.
    """

    def __init__(self, num_sites: int, *, ends: bool = False) -> None:
        self.num_sites, self.ends = num_sites, ends
        self.calls = 0
        self.x0: Tensor | None = None
        self.x_final: Tensor | None = None

    def __call__(self, x: Tensor, gate: Tensor | None, feature: Tensor, part: slice | None = None) -> Tensor:
        if self.ends and self.calls == 0:
            self.x0 = _cut(x, part)
        self.calls += 1
        self.keep(_cut(feature, part))
        x = residual(x, gate, feature)
        if self.ends and self.calls == self.num_sites:
            self.x_final = _cut(x, part)
        return x

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
    """What the engines share: the plan, the shape of the token stream, and the gates of any step."""

    name: str

    def __init__(self, plan: Plan, tokens: Tokens, gates: Gates, settings: "EngineSettings") -> None:
        self.plan, self.tokens, self.gates, self.settings = plan, tokens, gates, settings

    @classmethod
    def start(
        cls, plan: Plan, tokens: Tokens, gates: Gates, factors: GateFactors | None, settings: "EngineSettings"
    ) -> "Engine":
        """An engine for one run; factors: of the model's gates, where it has any."""
        return cls(plan, tokens, gates, settings)

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        """The site of a full step; `ends` as in `Recorder`."""
        raise NotImplementedError

    def forecast(self, step: int) -> Forecast:
        """What predicts a step: a function of the tokens before the blocks alone."""
        raise NotImplementedError

    def finish(self, step: int, site: Recorder | None) -> None:
        """A step has ended, a full one with its site; what no later forecast reads is dropped here."""

    @staticmethod
    def kept_bytes(plan: Plan, tokens: Tokens, settings: "EngineSettings") -> int:
        """The most bytes of features kept from one step to the next."""
        raise NotImplementedError

    @staticmethod
    def held_bytes(plan: Plan, tokens: Tokens, settings: "EngineSettings") -> int:
        """The most bytes of features held within a full step, beside those kept."""
        return 0

    @staticmethod
    def work_flops(plan: Plan, tokens: Tokens, settings: "EngineSettings") -> int:
        """Operations of the engine itself over a run, 2 per multiply-add."""
        raise NotImplementedError


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


class Snapshots:
    """The values of the last full steps, as many as a forecast reaches back."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.by_step: dict[int, Any] = {}

    def push(self, step: int, value: Any) -> None:
        self.by_step[step] = value
        self.drop_before(step + 1)

    def drop_before(self, step: int) -> list[Any]:
        """Drop what no forecast from `step` on reads, and return it."""
        return [self.by_step.pop(m) for m in list(self.by_step) if next(reversed(self.plan.targets[m]), -1) < step]

    @staticmethod
    def most(plan: Plan) -> int:
        """The most values alive at once."""
        snapshots, most = Snapshots(plan), 0
        for m in plan.full_steps:
            snapshots.push(m, None)
            most = max(most, len(snapshots.by_step))
        return most


class FeatureRecorder(Recorder):
    """Holds every feature."""

    def __init__(self, num_sites: int, *, ends: bool = False) -> None:
        super().__init__(num_sites, ends=ends)
        self.features: list[Tensor] = []

    def keep(self, feature: Tensor) -> None:
        self.features.append(feature)


def weighted_sum(tensors: Sequence[Tensor], weights: Collection[float]) -> Tensor:
    """Σ weights[i] · tensors[i] in as many operations as there are terms, the first none where its weight is 1."""
    (first, scale), *others = zip(tensors, weights, strict=True)
    total = first if scale == 1 else first * scale
    for tensor, weight in others:
        total = torch.add(total, tensor, alpha=weight)
    return total


class LayerwiseEngine(Engine):
    """The paper's literal form: the features of every site at the last order + 1 full steps, summed site by site."""

    name = "layerwise"

    def __init__(self, plan: Plan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.snapshots = Snapshots(plan)

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        return (FeatureRecorder if self.plan.targets[step] else Recorder)(self.tokens.num_sites, ends=ends)

    def forecast(self, step: int) -> Forecast:
        def walk(x: Tensor) -> Tensor:
            row = self.plan.weights[step]
            if not row:
                return x
            gates = self.gates([step])[0].unsqueeze(-2)  # (sites, B, 1, D)
            for gate, *features in zip(gates, *(self.snapshots.by_step[m] for m in row), strict=True):
                x = torch.addcmul(x, gate, weighted_sum(features, row.values()))
            return x

        return walk

    def finish(self, step: int, site: Recorder | None) -> None:
        if isinstance(site, FeatureRecorder):
            self.snapshots.push(step, site.features)

    @staticmethod
    def kept_bytes(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.num_sites * tokens.numel * tokens.dtype.itemsize

    @staticmethod
    def work_flops(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        sums = sum(2 * len(plan.weights[s]) + 2 for s in plan.forecast_steps)
        return sums * tokens.num_sites * tokens.numel


class FoldedEngine(Engine):
    """One accumulator for each upcoming forecast step: Σ_m w_m(s) Σ_l gate_l(s) F_l(m), the fold identity.

    The weights and the gates of step s are known when F_l(m) is computed, so it is added at once, group by group, and
    dropped. Equal to `layerwise` to rounding; memory does not depend on depth.
    """

    name = "folded"

    def __init__(self, plan: Plan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.accumulators: Tensor | None = None
        self.filled: set[int] = set()  # slots that hold something

    @classmethod
    def start(
        cls, plan: Plan, tokens: Tokens, gates: Gates, factors: GateFactors | None, settings: EngineSettings
    ) -> Engine:
        """Accumulators by step, or `FactoredEngine`, by what the settings say or is less."""
        if factors is not None and FactoredEngine.suits(plan, tokens, settings):
            return FactoredEngine(plan, tokens, factors, settings)
        return cls(plan, tokens, gates, settings)

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        targets = self.plan.targets[step]
        if self.settings.static_shapes and self.plan.num_slots:
            folds = [self._in_slot(slot, targets) for slot in range(self.plan.num_slots)]
            return self._recorder(folds, fresh=False, ends=ends)
        return self._recorder([(self.plan.slots[s], s, w) for s, w in targets.items()], fresh=True, ends=ends)

    def _in_slot(self, slot: int, targets: dict[int, float]) -> tuple[int, int, float]:
        """Slot, step and weight of whatever target uses a slot now; weight 0 where none does."""
        for s, weight in targets.items():
            if self.plan.slots[s] == slot:
                return slot, s, weight
        return slot, next(iter(targets), self.plan.predicted_steps[-1]), 0.0

    def _recorder(self, folds: list[tuple[int, int, float]], *, fresh: bool, ends: bool) -> Recorder:
        if not folds:
            return Recorder(self.tokens.num_sites, ends=ends)
        slots, steps, weights = zip(*folds, strict=True)
        if self.accumulators is None:
            self.accumulators = self._allocate()
        empty = [fresh and slot not in self.filled for slot in slots]
        self.filled.update(slots)
        gates = self.gates(steps).detach().to(self.accumulators.dtype)  # (targets, sites, B, D)
        scale = torch.tensor(weights, dtype=torch.float64).to(gates)
        coefficients = gates * scale.reshape(-1, 1, 1, 1)
        return FoldingRecorder(self.accumulators, slots, empty, coefficients, self.group_size(), ends=ends)

    def group_size(self) -> int:
        """Sites folded at once."""
        return _group_size(self.tokens, self.settings)

    @staticmethod
    def held_bytes(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        if not plan.num_slots:
            return 0
        return _group_size(tokens, settings) * tokens.numel * tokens.dtype.itemsize

    def _allocate(self) -> Tensor:
        shape = (self.plan.num_slots, self.tokens.batch, self.tokens.length, self.tokens.dim)
        dtype = self.settings.accumulators(self.tokens.dtype)
        return torch.zeros(shape, dtype=dtype, device=self.gates([self.plan.predicted_steps[0]]).device)

    def forecast(self, step: int) -> Forecast:
        slot = self.plan.slots.get(step)
        if slot is None:
            return Increment(None)
        assert self.accumulators is not None, "a step with a slot comes after one that filled it"
        return Increment(self.accumulators[slot])

    def finish(self, step: int, site: Recorder | None) -> None:
        slot = self.plan.slots.get(step)
        if slot is not None:
            self.filled.discard(slot)
            if self.settings.static_shapes and self.accumulators is not None:
                self.accumulators[slot].zero_()

    @staticmethod
    def kept_bytes(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        factored = FactoredEngine.suits(plan, tokens, settings)
        sums = FactoredEngine.num_sums(plan, tokens) if factored else plan.num_slots
        return sums * tokens.numel * settings.accumulators(tokens.dtype).itemsize

    @staticmethod
    def work_flops(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        if FactoredEngine.suits(plan, tokens, settings):
            folds = sum(1 for steps in plan.targets.values() if steps) * tokens.num_sites
            sums = sum(len(plan.weights[s]) for s in plan.forecast_steps)
            return 2 * tokens.gate_rank * (folds + sums) * tokens.numel
        folds = sum(len(steps) for steps in plan.targets.values())
        return 2 * folds * tokens.num_sites * tokens.numel + len(plan.forecast_steps) * tokens.numel


def _group_size(tokens: Tokens, settings: EngineSettings) -> int:
    """Sites folded at once: as many features of a row as `group_bytes` holds."""
    return group_size(tokens.num_sites, tokens.row_numel * tokens.dtype.itemsize, settings.group_bytes)


@dataclass(frozen=True)
class Increment:
    """Adds what the blocks would have added: Σ_l gate_l F_l (B, L, D), None where every weight is zero; rounds once."""

    total: Tensor | None

    def __call__(self, x0: Tensor) -> Tensor:
        return x0 if self.total is None else (x0 + self.total).to(x0.dtype)


class FoldingRecorder(Recorder):
    """Holds the features of a group of sites and folds them together; the last group may be smaller."""

    def __init__(
        self,
        accumulators: Tensor,
        slots: Sequence[int],
        fresh: list[bool],
        coefficients: Tensor,
        group_size: int,
        *,
        ends: bool = False,
    ) -> None:
        super().__init__(coefficients.shape[1], ends=ends)
        self.accumulators, self.slots, self.fresh = accumulators, slots, fresh
        self.coefficients, self.group_size = coefficients, group_size  # (targets, sites, B or 1, D)
        self.group: list[Tensor] = []

    def keep(self, feature: Tensor) -> None:
        self.group.append(feature)
        if len(self.group) == self.group_size or self.calls == self.num_sites:
            self.fold()

    def fold(self) -> None:
        sites = slice(self.calls - len(self.group), self.calls)
        fold_(self.accumulators, self.slots, self.group, self.coefficients[:, sites], self.fresh)
        self.group = []
        self.fresh = [False] * len(self.slots)


class FactoredEngine(FoldedEngine):
    """The fold for gates that factor (`GateFactors`): the R sums Σ_l constant_rl F_l(m) of every full step m.

    A forecast is Σ_m w_m(s) Σ_r shared_r(s) · sum_r(m). What is kept depends on the order alone, not on the interval, and
    nothing of a full step need be known when its features are folded: neither the steps that will use them nor their gates.
    """

    def __init__(self, plan: Plan, tokens: Tokens, factors: GateFactors, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, factors.shared, settings)
        self.constant = factors.constant
        self.snapshots = Snapshots(plan)

    @staticmethod
    def num_sums(plan: Plan, tokens: Tokens) -> int:
        """Sums alive at once."""
        return tokens.gate_rank * Snapshots.most(plan)

    @staticmethod
    def suits(plan: Plan, tokens: Tokens, settings: EngineSettings) -> bool:
        """Whether these sums are kept rather than accumulators by step."""
        if not tokens.gate_rank or settings.factored is not None:
            return bool(tokens.gate_rank and settings.factored)
        return FactoredEngine.num_sums(plan, tokens) < plan.num_slots

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        spare = self.snapshots.drop_before(step)
        if not self.plan.targets[step] and not self.settings.static_shapes:
            return Recorder(self.tokens.num_sites, ends=ends)
        rank, dtype = self.tokens.gate_rank, self.settings.accumulators(self.tokens.dtype)
        shape = (rank, self.tokens.batch, self.tokens.length, self.tokens.dim)
        sums = spare[0] if spare else torch.empty(shape, dtype=dtype, device=self.constant.device)
        coefficients = self.constant.detach().to(dtype).unsqueeze(2)  # (R, sites, 1, D)
        return FoldingRecorder(sums, range(rank), [True] * rank, coefficients, self.group_size(), ends=ends)

    def forecast(self, step: int) -> Forecast:
        row = self.plan.weights[step]
        if not row:
            return Increment(None)
        sums = [part for m in row for part in self.snapshots.by_step[m].unbind(0)]
        shared = self.gates([step])[0].detach().to(sums[0].dtype)  # (R, B or 1, D)
        vectors = torch.cat([weight * shared for weight in row.values()])
        total = torch.empty_like(sums[0]).unsqueeze(0)
        fold_(total, [0], sums, vectors.unsqueeze(0), [True])
        # The folded engine's form, so that one compiled forecast step serves any number of sums.
        return Increment(total[0])

    def finish(self, step: int, site: Recorder | None) -> None:
        if isinstance(site, FoldingRecorder):
            self.snapshots.push(step, site.accumulators)


class StackEngine(Engine):
    """The whole residual x_final - x0 of the last order + 1 full steps ("Lite"): old gates stay inside it.

    Approximates the site form by the drift of the gates; needs no gates, so it suits adaptive schedules and foreign models.
    """

    name = "stack"

    def __init__(self, plan: Plan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.snapshots = Snapshots(plan)

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        return Recorder(self.tokens.num_sites, ends=True)

    def forecast(self, step: int) -> Forecast:
        def advance(x: Tensor) -> Tensor:
            for m, weight in self.plan.weights[step].items():
                x = torch.add(x, self.snapshots.by_step[m], alpha=weight)
            return x

        return advance

    def finish(self, step: int, site: Recorder | None) -> None:
        if site is not None:
            x0, x_final = site.both_ends()
            self.snapshots.push(step, x_final - x0)

    @staticmethod
    def kept_bytes(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.numel * (tokens.stream_dtype or tokens.dtype).itemsize

    @staticmethod
    def work_flops(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        sums = sum(2 * len(plan.weights[s]) for s in plan.forecast_steps)
        return (sums + len(plan.full_steps)) * tokens.numel


ENGINES: dict[str, type[Engine]] = dict(zip(ENGINE_NAMES, (FoldedEngine, LayerwiseEngine, StackEngine), strict=True))
