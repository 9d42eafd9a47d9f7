"""The site form folded: sums over all sites of gate times feature, so that what is kept does not depend on the depth.

What the sums are kept by follows from what is known when a feature is computed: the steps that will use it and their weights
(`FoldedEngine`), the gates as terms that sites share (`FactoredEngine`), or the gates of later steps alone (`PairEngine`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cache_dic.engine.base import (
    Engine,
    EngineSettings,
    Forecast,
    GateFactors,
    Gates,
    Increment,
    Recorder,
    Snapshots,
    Tokens,
    site_scale,
    weighted_sum,
)
from cache_dic.fold import fold_, group_size
from cache_dic.plan import AnyPlan, OpenPlan, Plan


class FoldedEngine(Engine):
    """One accumulator for each upcoming forecast step: Σ_m w_m(s) Σ_l gate_l(s) F_l(m), the fold identity.

    The weights and the gates of step s are known when F_l(m) is computed, so it is added at once, group by group, and
    dropped. Equal to `layerwise` to rounding; memory does not depend on depth.
    """

    name = "folded"

    def __init__(self, plan: AnyPlan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.accumulators: Tensor | None = None
        self.filled: set[int] = set()  # slots that hold something

    @property
    def known(self) -> Plan:
        """The plan of a schedule that is known beforehand, which accumulators by step need."""
        assert isinstance(self.plan, Plan), "others have sums by pair or by term"
        return self.plan

    @classmethod
    def start(
        cls, plan: AnyPlan, tokens: Tokens, gates: Gates, factors: GateFactors | None, settings: EngineSettings
    ) -> Engine:
        """By what is known and what is less: accumulators by step, `FactoredEngine` or `PairEngine`."""
        basis = cls.basis(plan, tokens, settings)
        if factors is not None and basis is FactoredEngine:
            return FactoredEngine(plan, tokens, factors, settings)
        return basis(plan, tokens, gates, settings)

    @staticmethod
    def basis(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> "type[FoldedEngine]":
        """What the sums are kept by: by step that will use them, by term of the gates, or by pair of steps."""
        if FactoredEngine.suits(plan, tokens, settings):
            return FactoredEngine
        return FoldedEngine if plan.foreseen else PairEngine

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        targets = self.known.targets[step]
        if self.settings.static_shapes and self.known.num_slots:
            folds = [self._in_slot(slot, targets) for slot in range(self.known.num_slots)]
            return self._recorder(folds, fresh=False, ends=ends)
        return self._recorder([(self.known.slots[s], s, w) for s, w in targets.items()], fresh=True, ends=ends)

    def _in_slot(self, slot: int, targets: dict[int, float]) -> tuple[int, int, float]:
        """Slot, step and weight of whatever target uses a slot now; weight 0 where none does."""
        for s, weight in targets.items():
            if self.known.slots[s] == slot:
                return slot, s, weight
        return slot, next(iter(targets), self.known.predicted_steps[-1]), 0.0

    def _recorder(self, folds: list[tuple[int, int, float]], *, fresh: bool, ends: bool) -> Recorder:
        if not folds:
            return Recorder(self.tokens.num_sites, ends=ends)
        slots, steps, weights = zip(*folds, strict=True)
        if self.accumulators is None:
            self.accumulators = self._allocate()
        empty = [fresh and slot not in self.filled for slot in slots]
        self.filled.update(slots)
        gates = self.gates(steps).detach().to(self.accumulators.dtype)  # (targets, sites, B, D)
        if self.plan.by_site:
            coefficients = torch.stack([g * site_scale(w, self.tokens, g) for g, w in zip(gates, weights, strict=True)])
        else:
            scale = torch.tensor(weights, dtype=torch.float64).to(gates)
            coefficients = gates * scale.reshape(-1, 1, 1, 1)
        return FoldingRecorder(self.accumulators, slots, empty, coefficients, self.group_size(), ends=ends)

    def group_size(self) -> int:
        """Sites folded at once."""
        return _group_size(self.tokens, self.settings)

    @staticmethod
    def held_bytes(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> int:
        if not FoldedEngine.basis(plan, tokens, settings).num_sums(plan, tokens):
            return 0
        return _group_size(tokens, settings) * tokens.numel * tokens.dtype.itemsize

    def _allocate(self) -> Tensor:
        shape = (self.known.num_slots, self.tokens.batch, self.tokens.length, self.tokens.dim)
        dtype = self.settings.accumulators(self.tokens.dtype)
        return torch.zeros(shape, dtype=dtype, device=self.gates([self.known.predicted_steps[0]]).device)

    def forecast(self, step: int) -> Forecast:
        slot = self.known.slots.get(step)
        if slot is None:
            return Increment(None)
        assert self.accumulators is not None, "a step with a slot comes after one that filled it"
        return Increment(self.accumulators[slot])

    def finish(self, step: int, site: Recorder | None) -> None:
        slot = self.known.slots.get(step)
        if slot is not None:
            self.filled.discard(slot)
            if self.settings.static_shapes and self.accumulators is not None:
                self.accumulators[slot].zero_()

    @staticmethod
    def kept_bytes(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> int:
        sums = FoldedEngine.basis(plan, tokens, settings).num_sums(plan, tokens)
        return sums * tokens.numel * settings.accumulators(tokens.dtype).itemsize

    @staticmethod
    def num_sums(plan: AnyPlan, tokens: Tokens) -> int:
        """Sums alive at once."""
        assert isinstance(plan, Plan), "accumulators by step need all steps beforehand"
        return plan.num_slots

    @classmethod
    def work_flops(
        cls, plan: AnyPlan, tokens: Tokens, settings: EngineSettings, taken: Sequence[int] | None = None
    ) -> int:
        basis, full = FoldedEngine.basis(plan, tokens, settings), set(plan.full_steps)
        work = 0
        for step in range(plan.num_steps) if taken is None else taken:
            if step in full:
                work += 2 * basis.num_folds(plan, tokens, step) * tokens.num_sites * tokens.numel
            else:
                work += basis.num_terms(plan, tokens, step) * tokens.numel
        return work

    @staticmethod
    def num_folds(plan: AnyPlan, tokens: Tokens, step: int) -> int:
        """Sums that a feature of this full step is added to."""
        assert isinstance(plan, Plan), "accumulators by step need all steps beforehand"
        return len(plan.targets[step])

    @staticmethod
    def num_terms(plan: AnyPlan, tokens: Tokens, step: int) -> int:
        """Operations of a forecast for each element of the stream."""
        return 1


def _group_size(tokens: Tokens, settings: EngineSettings) -> int:
    """Sites folded at once: as many features of a row as `group_bytes` holds."""
    return group_size(tokens.num_sites, tokens.row_numel * tokens.dtype.itemsize, settings.group_bytes)


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

    def __init__(self, plan: AnyPlan, tokens: Tokens, factors: GateFactors, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, factors.shared, settings)
        self.constant = factors.constant
        self.snapshots = Snapshots(plan)

    def gates_of(self, step: int) -> Tensor:
        return (self.constant.unsqueeze(2) * self.gates([step])[0].unsqueeze(1)).sum(0)

    @staticmethod
    def num_sums(plan: AnyPlan, tokens: Tokens) -> int:
        """Sums alive at once."""
        return tokens.gate_rank * Snapshots.most(plan)

    @staticmethod
    def suits(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> bool:
        """Whether these sums are kept rather than accumulators by step."""
        if not tokens.gate_rank or plan.by_site:
            return False
        if settings.factored is not None:
            return settings.factored
        others = plan.num_slots if isinstance(plan, Plan) else PairEngine.num_sums(plan, tokens)
        return FactoredEngine.num_sums(plan, tokens) < others

    @staticmethod
    def num_folds(plan: AnyPlan, tokens: Tokens, step: int) -> int:
        return tokens.gate_rank * plan.serves(step)

    @staticmethod
    def num_terms(plan: AnyPlan, tokens: Tokens, step: int) -> int:
        return 2 * tokens.gate_rank * len(plan.row(step))

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        spare = self.snapshots.drop_before(step)
        if not self.plan.serves(step) and not self.settings.static_shapes:
            return Recorder(self.tokens.num_sites, ends=ends)
        rank, dtype = self.tokens.gate_rank, self.settings.accumulators(self.tokens.dtype)
        shape = (rank, self.tokens.batch, self.tokens.length, self.tokens.dim)
        sums = spare[0] if spare else torch.empty(shape, dtype=dtype, device=self.constant.device)
        coefficients = self.constant.detach().to(dtype).unsqueeze(2)  # (R, sites, 1, D)
        return FoldingRecorder(sums, range(rank), [True] * rank, coefficients, self.group_size(), ends=ends)

    def forecast(self, step: int) -> Forecast:
        row = self.plan.row(step)
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


class PairEngine(FoldedEngine):
    """The fold for full steps that are decided while sampling: a sum Σ_l gate_l(s) F_l(m) for every full step m and every later
    step s that may be forecast from it, before it is known which of them will be, and with what weights.

    A forecast is Σ_m w_m(s) · sum(m, s): the site form exactly, whatever the depth of the model. Bounded by the most forecasts
    in a row, h: the latest of K full steps serves the next K (h + 1) - 1 steps, the one before it (K - 1) (h + 1) - 1 from then
    on, and so forth.
    """

    def __init__(self, plan: AnyPlan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.snapshots = Snapshots(plan)  # by full step: the first later step that it serves, and sums (steps, B, L, D)

    @staticmethod
    def num_sums(plan: AnyPlan, tokens: Tokens) -> int:
        assert isinstance(plan, OpenPlan), "a schedule that is known beforehand needs fewer"
        reaches = (PairEngine._reach(plan, age, 0) for age in range(plan.history))
        return sum(min(reach, plan.num_steps - 1) for reach in reaches)

    @staticmethod
    def num_folds(plan: AnyPlan, tokens: Tokens, step: int) -> int:
        assert isinstance(plan, OpenPlan), "a schedule that is known beforehand needs fewer"
        return PairEngine._reach(plan, 0, step) if plan.serves(step) else 0

    @staticmethod
    def num_terms(plan: AnyPlan, tokens: Tokens, step: int) -> int:
        return 2 * len(plan.row(step))

    @staticmethod
    def _reach(plan: OpenPlan, age: int, step: int) -> int:
        """Steps after full step `step` that the `age`-th full step up to it, 0 being itself, may still serve."""
        return min((plan.history - age) * (plan.horizon + 1) - 1, plan.num_steps - 1 - step)

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        plan = self.plan
        assert isinstance(plan, OpenPlan), "a schedule that is known beforehand needs fewer"
        self._trim(plan, step)
        if not plan.serves(step) and not self.settings.static_shapes:
            return Recorder(self.tokens.num_sites, ends=ends)
        reach = self._reach(plan, 0, 0 if self.settings.static_shapes else step)
        steps = [min(step + 1 + i, plan.num_steps - 1) for i in range(reach)]
        gates = self.gates(steps).detach().to(self.settings.accumulators(self.tokens.dtype))  # (reach, sites, B, D)
        shape = (reach, self.tokens.batch, self.tokens.length, self.tokens.dim)
        sums = torch.empty(shape, dtype=gates.dtype, device=gates.device)
        return FoldingRecorder(sums, range(reach), [True] * reach, gates, self.group_size(), ends=ends)

    def _trim(self, plan: OpenPlan, step: int) -> None:
        """Drop what a new full step makes unreachable: older full steps, and steps too far for those that stay."""
        self.snapshots.drop_before(step)
        kept = list(self.snapshots.by_step.items())
        for age, (m, (first, sums)) in enumerate(reversed(kept), 1):
            passed, reach = step + 1 - first, max(0, self._reach(plan, age, step))
            self.snapshots.by_step[m] = (step + 1, sums[passed : passed + reach].clone())

    def forecast(self, step: int) -> Forecast:
        row = self.plan.row(step)
        if not row:
            return Increment(None)
        sums = []
        for m in row:
            first, of_steps = self.snapshots.by_step[m]
            sums.append(of_steps[step - first])
        return Increment(weighted_sum(sums, row.values()))

    def finish(self, step: int, site: Recorder | None) -> None:
        if isinstance(site, FoldingRecorder):
            self.snapshots.push(step, (step + 1, site.accumulators))
