"""The paper's literal form: features of every site at the last full steps, summed by site or walked through the blocks."""

from collections.abc import Iterator

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
from cache_dic.site import Addition, Site


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
            scales = [site_scale(weight, self.tokens, gates) for weight in row.values()]
            by_site = zip(*(self.snapshots.by_step[m] for m in row), strict=True)
            for site, (gate, features) in enumerate(zip(gates, by_site, strict=True)):
                weights = [scale if isinstance(scale, float) else scale[site] for scale in scales]
                x = torch.addcmul(x, gate, weighted_sum(features, weights))
            return x

        return walk

    def finish(self, step: int, site: Recorder | None) -> None:
        if isinstance(site, FeatureRecorder):
            self.snapshots.push(step, site.features)

    @staticmethod
    def kept_bytes(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.num_sites * tokens.numel * tokens.dtype.itemsize

    @staticmethod
    def forecast_flops(plan: AnyPlan, tokens: Tokens, settings: EngineSettings, step: int) -> int:
        return (2 * len(plan.row(step)) + 2) * tokens.num_sites * tokens.numel


class WalkRecorder(FeatureRecorder):
    """Holds every feature, and as `whole` those of all tokens and streams; `last` is the last one on the way to the output."""

    last: Tensor

    def __init__(self, num_sites: int, *, ends: bool = False) -> None:
        super().__init__(num_sites, ends=ends)
        self.whole: list[Tensor] = []

    def look_at(self, value: Tensor, reaches_output: bool) -> None:
        self.whole.append(value.detach())
        if reaches_output:
            self.last = self.whole[-1]


class ForecastSite(Site):
    """The site of a walk through the blocks at a forecast step: adds forecasts in place of features, which are not computed.

    last: the forecast added last on the way to the output.
    """

    last: Tensor

    def __init__(self, forecasts: Iterator[Tensor]) -> None:
        self.forecasts = forecasts

    def add(self, addition: Addition) -> Tensor:
        value = next(self.forecasts)
        if addition.reaches_output:
            self.last = value
        return addition.of(value)


class WalkedEngine(LayerwiseEngine):
    """`layerwise`, keeping the features of the other streams, too, so that the state before any block can be forecast.

    Those are not among `kept_bytes`, which knows the shape of the tokens that reach the output alone; `most_kept` has them.
    """

    name = "walked"
    walks = True

    def __init__(self, plan: AnyPlan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        self.whole = Snapshots(plan)
        self.bytes_seen = 0

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        return (WalkRecorder if self.plan.serves(step) else Recorder)(self.tokens.num_sites, ends=ends)

    def walk_site(self, step: int) -> ForecastSite:
        """The site of a walk through the blocks, from the first on, that forecasts `step`."""
        row = self.plan.row(step)
        kept = [self.whole.by_step[m] for m in row]
        return ForecastSite(weighted_sum(features, row.values()) for features in zip(*kept, strict=True))

    def finish(self, step: int, site: Recorder | None) -> None:
        super().finish(step, site)
        if isinstance(site, WalkRecorder):
            self.whole.push(step, site.whole)
            sizes = (f.numel() * f.element_size() for features in self.whole.by_step.values() for f in features)
            self.bytes_seen = max(self.bytes_seen, sum(sizes))

    def most_kept(self) -> int:
        return max(self.bytes_seen, super().most_kept())
