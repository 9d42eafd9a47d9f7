"""Where: how features are kept between full steps, each form an engine with one interface (`cache_dic.engine.base`)."""

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
    weighted_sum,
)
from cache_dic.engine.folded import FactoredEngine, FoldedEngine, PairEngine
from cache_dic.engine.layerwise import LayerwiseEngine, WalkedEngine
from cache_dic.engine.partial import PartialEngine
from cache_dic.engine.whole import HiddenEngine, LatentEngine, OutputEngine, StackEngine, WholeEngine
from cache_dic.settings import ENGINE_NAMES

__all__ = [
    "ENGINES", "Engine", "EngineSettings", "FactoredEngine", "FoldedEngine", "Forecast", "GateFactors", "Gates", "HiddenEngine",
    "Increment", "LatentEngine", "LayerwiseEngine", "OutputEngine", "PairEngine", "PartialEngine", "Recorder", "Snapshots",
    "StackEngine", "Tokens", "WalkedEngine", "WholeEngine", "engine_class", "weighted_sum",
]  # fmt: skip

_FORMS: tuple[type[Engine], ...] = (
    FoldedEngine,
    LayerwiseEngine,
    WalkedEngine,
    StackEngine,
    HiddenEngine,
    OutputEngine,
    LatentEngine,
)
ENGINES: dict[str, type[Engine]] = dict(zip(ENGINE_NAMES, _FORMS, strict=True))


def engine_class(name: str) -> type[Engine]:
    """Of those that forecasts may be kept by, or of methods that compute part of a step, which have a place of their own."""
    return PartialEngine if name == PartialEngine.name else ENGINES[name]
