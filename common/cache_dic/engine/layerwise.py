"""The paper's literal form: features of every site at the last full steps, summed site by site."""

from collections.abc import Sequence

import torch
from torch import Tensor

from cache_dic.engine.base import (
    Engine,
    EngineSettings,
    Forecast,
    Gates,
    Recorder,
    Snapshots,
    Tokens,
    site_scale,
    weighted_sum,
)
from cache_dic.plan import AnyPlan


class FeatureRecorder(Recorder):
    """Holds every feature."""

    def __init__(self, num_sites: int, *, ends: bool = False) -> None:
        super().__init__(num_sites, ends=ends)
        self.features: list[Tensor] = []

    def keep(self, feature: Tensor) -> None:
        self.features.append(feature)


class LayerwiseEngine(Engine):
    """Keeps the features of every site at as many full steps as a forecast reaches back: order + 1 of them."""

    name = "layerwise"

    def __init__(self, plan: AnyPlan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.snapshots = Snapshots(plan)

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        return (FeatureRecorder if self.plan.serves(step) else Recorder)(self.tokens.num_sites, ends=ends)

    def forecast(self, step: int) -> Forecast:
        def walk(x: Tensor) -> Tensor:
            row = self.plan.row(step)
            if not row:
                return x
            gates = self.gates([step])[0].unsqueeze(-2)  # (sites, B, 1, D)
            kept = [self.snapshots.by_step[m] for m in row]
            for site, gate in enumerate(gates):
                weights = [self._of_site(weight, site, gate) for weight in row.values()]
                x = torch.addcmul(x, gate, weighted_sum([features[site] for features in kept], weights))
            return x

        return walk

    def _of_site(self, weight: float | Sequence, site: int, gate: Tensor) -> float | Tensor:
        scale = site_scale(weight, self.tokens, gate)
        return scale if isinstance(scale, float) else scale[site]

    def finish(self, step: int, site: Recorder | None) -> None:
        if isinstance(site, FeatureRecorder):
            self.snapshots.push(step, site.features)

    @staticmethod
    def kept_bytes(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.num_sites * tokens.numel * tokens.dtype.itemsize

    @staticmethod
    def forecast_flops(plan: AnyPlan, tokens: Tokens, settings: EngineSettings, step: int) -> int:
        return (2 * len(plan.row(step)) + 2) * tokens.num_sites * tokens.numel
