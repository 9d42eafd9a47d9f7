"""Where: how features are kept between full steps. Three engines with one interface, each for one run and guidance branch.

    site = engine.record(step, x0)      a full step begins: hand `site` to the blocks
    engine.finish(step, x0, x_final)    … and ends with the tokens after the last block
    engine.forecast(step, x0)           the tokens after the last block, predicted

Tokens are (B, L, D). At a forecast step no site reads x, so a walk through the blocks is a walk over the sites.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cache_dic.fold import GROUP_BYTES, fold_, group_size
from cache_dic.plan import Plan
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
    dtype: torch.dtype  # of the residual stream and of the features

    @property
    def numel(self) -> int:
        return self.batch * self.length * self.dim


class Recorder:
    """The site of a full step: adds as usual, counts its calls and shows every feature to `keep`."""

    def __init__(self, keep: Callable[[Tensor], None] | None) -> None:
        self.keep = keep
        self.calls = 0

    def __call__(self, x: Tensor, gate: Tensor | None, feature: Tensor) -> Tensor:
        self.calls += 1
        if self.keep is not None:
            self.keep(feature.detach())
        return residual(x, gate, feature)


class Engine:
    """What the engines share: the plan, the shape of the token stream, and the gates of any step."""

    name: str

    def __init__(self, plan: Plan, tokens: Tokens, gates: Gates, settings: "EngineSettings") -> None:
        self.plan, self.tokens, self.gates, self.settings = plan, tokens, gates, settings

    def record(self, step: int) -> Recorder:
        raise NotImplementedError

    def finish(self, step: int, x0: Tensor, x_final: Tensor) -> None:
        """A full step has ended; engines that keep features drop here what no later forecast reads."""

    def forecast(self, step: int, x0: Tensor) -> Tensor:
        raise NotImplementedError

    @staticmethod
    def kept_bytes(plan: Plan, tokens: Tokens, settings: "EngineSettings") -> int:
        """The most bytes of features kept from one step to the next."""
        raise NotImplementedError

    @staticmethod
    def work_flops(plan: Plan, tokens: Tokens) -> int:
        """Operations of the engine itself over a run, 2 a multiply-add."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How an engine stores.

    accumulator_dtype: of the folded accumulators; None is float32, or float64 for a float64 model.
    group_bytes: features held, at most, before they are folded together.
    static_shapes: every full step does the same operations on the same shapes, so that a compiled full step is one graph;
        costs a few zero products at the ends of the schedule.
    """

    accumulator_dtype: torch.dtype | None = None
    group_bytes: int = GROUP_BYTES
    static_shapes: bool = False

    def accumulators(self, model_dtype: torch.dtype) -> torch.dtype:
        return self.accumulator_dtype or torch.promote_types(model_dtype, torch.float32)


class Snapshots:
    """The values of the last full steps, as many as a forecast reaches back."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.by_step: dict[int, object] = {}

    def push(self, step: int, value: object) -> None:
        self.by_step[step] = value
        later = [row for s, row in self.plan.weights.items() if s > step]
        needed = {m for row in later for m in row}
        self.by_step = {m: v for m, v in self.by_step.items() if m in needed}

    @staticmethod
    def most(plan: Plan) -> int:
        """The most values alive at once."""
        snapshots, most = Snapshots(plan), 0
        for m in plan.full_steps:
            snapshots.push(m, None)
            most = max(most, len(snapshots.by_step))
        return most


class LayerwiseEngine(Engine):
    """The paper's literal form: the features of every site at the last order + 1 full steps, summed site by site."""

    name = "layerwise"

    def __init__(self, plan: Plan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.snapshots = Snapshots(plan)
        self.features: list[Tensor] = []

    def record(self, step: int) -> Recorder:
        self.features = []
        return Recorder(self.features.append if self.plan.targets[step] else None)

    def finish(self, step: int, x0: Tensor, x_final: Tensor) -> None:
        self.snapshots.push(step, self.features)
        self.features = []

    def forecast(self, step: int, x0: Tensor) -> Tensor:
        x, row = x0, self.plan.weights[step]
        for site, gate in enumerate(self.gates([step])[0].unsqueeze(-2)):  # gate (B, 1, D)
            feature = sum(weight * self.snapshots.by_step[m][site] for m, weight in row.items())
            x = residual(x, gate, feature)
        return x

    @staticmethod
    def kept_bytes(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.num_sites * tokens.numel * tokens.dtype.itemsize

    @staticmethod
    def work_flops(plan: Plan, tokens: Tokens) -> int:
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

    def record(self, step: int) -> Recorder:
        targets = self.plan.targets[step]
        if self.settings.static_shapes and self.plan.num_slots:
            return self._recorder([self._in_slot(slot, targets) for slot in range(self.plan.num_slots)], fresh=False)
        return self._recorder([(self.plan.slots[s], s, w) for s, w in targets.items()], fresh=True)

    def _in_slot(self, slot: int, targets: dict[int, float]) -> tuple[int, int, float]:
        """Slot, step and weight of whatever target uses a slot now; weight 0 where none does."""
        for s, weight in targets.items():
            if self.plan.slots[s] == slot:
                return slot, s, weight
        return slot, next(iter(targets), self.plan.predicted_steps[-1]), 0.0

    def _recorder(self, folds: list[tuple[int, int, float]], *, fresh: bool) -> Recorder:
        if not folds:
            return Recorder(None)
        slots, steps, weights = zip(*folds, strict=True)
        if self.accumulators is None:
            self.accumulators = self._allocate()
        empty = [fresh and slot not in self.filled for slot in slots]
        self.filled.update(slots)
        gates = self.gates(steps).detach().to(self.accumulators.dtype)  # (targets, sites, B, D)
        scale = torch.tensor(weights, dtype=torch.float64).to(gates)
        return FoldingRecorder(self.accumulators, slots, empty, gates * scale.reshape(-1, 1, 1, 1), self.group_size())

    def group_size(self) -> int:
        """Sites folded at once: as many features as `group_bytes` holds."""
        return group_size(
            self.tokens.num_sites, self.tokens.numel * self.tokens.dtype.itemsize, self.settings.group_bytes
        )

    def _allocate(self) -> Tensor:
        shape = (self.plan.num_slots, self.tokens.batch, self.tokens.length, self.tokens.dim)
        dtype = self.settings.accumulators(self.tokens.dtype)
        return torch.zeros(shape, dtype=dtype, device=self.gates([self.plan.predicted_steps[0]]).device)

    def finish(self, step: int, x0: Tensor, x_final: Tensor) -> None:
        self._release(step)

    def forecast(self, step: int, x0: Tensor) -> Tensor:
        slot = self.plan.slots.get(step)
        if slot is None:  # every weight is zero
            return x0
        x = x0 + self.accumulators[slot].to(x0.dtype)
        if not self.plan.is_full(step):
            self._release(step)
        return x

    def _release(self, step: int) -> None:
        slot = self.plan.slots.get(step)
        if slot is not None:
            self.filled.discard(slot)
            if self.settings.static_shapes:
                self.accumulators[slot].zero_()

    @staticmethod
    def kept_bytes(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        return plan.num_slots * tokens.numel * settings.accumulators(tokens.dtype).itemsize

    @staticmethod
    def work_flops(plan: Plan, tokens: Tokens) -> int:
        folds = sum(len(steps) for steps in plan.targets.values())
        return 2 * folds * tokens.num_sites * tokens.numel + len(plan.forecast_steps) * tokens.numel


class FoldingRecorder(Recorder):
    """Holds the features of a group of sites and folds them together; the last group may be smaller."""

    def __init__(
        self, accumulators: Tensor, slots: Sequence[int], fresh: list[bool], coefficients: Tensor, group_size: int
    ) -> None:
        super().__init__(None)
        self.accumulators, self.slots, self.fresh = accumulators, slots, fresh
        self.coefficients, self.group_size = coefficients, group_size  # (targets, sites, B or 1, D)
        self.group: list[Tensor] = []

    def __call__(self, x: Tensor, gate: Tensor | None, feature: Tensor) -> Tensor:
        self.calls += 1
        self.group.append(feature.detach())
        if len(self.group) == self.group_size or self.calls == self.coefficients.shape[1]:
            self.fold()
        return residual(x, gate, feature)

    def fold(self) -> None:
        sites = slice(self.calls - len(self.group), self.calls)
        fold_(self.accumulators, self.slots, self.group, self.coefficients[:, sites], self.fresh)
        self.group = []
        self.fresh = [False] * len(self.slots)


class StackEngine(Engine):
    """The whole residual x_final - x0 of the last order + 1 full steps ("Lite"): old gates stay inside it.

    Approximates the site form by the drift of the gates; needs no gates, so it suits adaptive schedules and foreign models.
    """

    name = "stack"

    def __init__(self, plan: Plan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.snapshots = Snapshots(plan)

    def record(self, step: int) -> Recorder:
        return Recorder(None)

    def finish(self, step: int, x0: Tensor, x_final: Tensor) -> None:
        self.snapshots.push(step, (x_final - x0).detach())

    def forecast(self, step: int, x0: Tensor) -> Tensor:
        x = x0
        for m, weight in self.plan.weights[step].items():
            x = torch.add(x, self.snapshots.by_step[m], alpha=weight)
        return x

    @staticmethod
    def kept_bytes(plan: Plan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.numel * tokens.dtype.itemsize

    @staticmethod
    def work_flops(plan: Plan, tokens: Tokens) -> int:
        sums = sum(2 * len(plan.weights[s]) for s in plan.forecast_steps)
        return (sums + len(plan.full_steps)) * tokens.numel


ENGINES: dict[str, type[Engine]] = {engine.name: engine for engine in (FoldedEngine, LayerwiseEngine, StackEngine)}
