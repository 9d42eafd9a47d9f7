"""TeaCache (arXiv 2411.19108; ali-vilab/TeaCache @ 7c10efc): reuse while a cheap signal of the input says that little moved.

    acc <- acc + polynomial(mean |s_t - s_{t-1}| / mean |s_{t-1}|)

A step where acc has reached the threshold is full, and acc 0 again.

The polynomials are the published ones, fitted to the change of the output; eval/calibrate.py fits others.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_dic.decide import Decider
from cache_dic.errors import UserError
from cache_dic.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.look import Look

OF_TIME = ("time_embedding", "time_projection")
"""Signals that follow from the timestep alone; the other, "modulated", are the tokens that block 0 works on."""

FLUX = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)
HUNYUAN_VIDEO = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)
HIDREAM = (-31360.5009, -712.425503, 49.1363285, 8.2651549, 0.108053901)


def _rows(thresholds: tuple[float, ...], **settings: object) -> list[dict[str, object]]:
    return [{"threshold": threshold, **settings} for threshold in thresholds]


PRESETS = {
    "flux-dev": _rows((0.25, 0.4, 0.6, 0.8), coefficients=FLUX),
    "hunyuan-video": _rows((0.1, 0.15), coefficients=HUNYUAN_VIDEO),
    "hidream-full": _rows(
        (0.17, 0.25, 0.3, 0.45), coefficients=HIDREAM, signal="time_embedding", forced_first=0.1, forced_last=0
    ),
}


@register("teacache", engine="stack", paper="arXiv 2411.19108", presets=PRESETS)
@dataclass(kw_only=True)
class TeaCache(Decider):
    """coefficients: of the polynomial, highest power first. signal: "modulated" or one of OF_TIME.

    forced_first, forced_last: steps at the ends that are full whatever the signal says; below 1, a share of all steps.
    max_consecutive: the most forecasts in a row, None for no bound.
    """

    threshold: float
    coefficients: tuple[float, ...]
    signal: str = "modulated"
    forced_first: float = 1
    forced_last: float = 1
    max_consecutive: int | None = None
    total: float = field(init=False, default=0.0)
    previous: "Tensor | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UserError(f"threshold = {self.threshold} must be at least 0; 0 computes every step")

    @property
    def of_time(self) -> bool:  # type: ignore[override]
        return self.signal in OF_TIME

    def decide(self, look: "Look") -> bool:
        signal = look.time_signal(self.signal) if self.of_time else look.modulated()
        change = 0.0 if self.previous is None else look.change(signal, self.previous)
        self.previous = signal
        for coefficient in self.coefficients[:1]:
            grown = coefficient
        for coefficient in self.coefficients[1:]:
            grown = grown * change + coefficient
        first, last = (n if n >= 1 else n * look.num_steps for n in (self.forced_first, self.forced_last))
        forced = look.step < first or look.step >= look.num_steps - last
        self.total += grown
        look.report(change=change, total=self.total)
        is_full = forced or self.exhausted(look) or self.total >= self.threshold
        if is_full:
            self.total = 0.0
        return is_full
