"""EasyCache (arXiv 2507.02860; H-EmbodVis/EasyCache @ 5127804) and NaviCache (arXiv 2606.26795): the network is left out
while, at the rate at which its output followed its input between full steps, the output can have changed little.

    k = mean |out_m - out_m'| / mean |in_m - in_m'|          at the last two full steps m' < m
    acc <- acc + k · mean |in_t - in_{t-1}| / mean |out_m|

A step where acc has reached the threshold is full, and acc 0 again. A forecast is in_t + (out_m - in_m): nothing of the model
is entered.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_dic.decide import Decider
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.engine import Tokens
    from cache_dic.look import Look

UNDEFINED = {
    "dit": "it adds the model's output to its input, and DiT's output has twice the channels, noise and its variance",
}


@dataclass(kw_only=True)
class EasyCache(Decider):
    """threshold: 0 computes every step. forced_first, forced_last: steps at the ends that are full whatever acc says."""

    threshold: float
    forced_first: int = 5
    forced_last: int = 1
    total: float = field(init=False, default=0.0)  # acc
    rate: float = field(init=False, default=0.0)  # k
    previous: "Tensor | None" = field(init=False, default=None)  # input of the step before
    seen: "list[tuple[Tensor, Tensor]]" = field(
        init=False, default_factory=list
    )  # in and out of the last two full steps

    def __post_init__(self) -> None:
        number("threshold", self.threshold, at_least=0, at_most=1e6)
        integer("forced_first", self.forced_first, at_least=0, at_most=MAX_STEPS)
        integer("forced_last", self.forced_last, at_least=0, at_most=MAX_STEPS)

    def kept_bytes(self, tokens: "Tokens") -> int:
        return 5 * tokens.output_numel * (tokens.stream_dtype or tokens.dtype).itemsize

    def decide(self, look: "Look") -> bool:
        before, self.previous = self.previous, look.latents
        if before is None or len(self.seen) < 2:  # no rate yet
            return True
        (x0, y0), (x1, y1) = self.seen
        differences = [(a.float() - b.float()).abs() for a, b in ((look.latents, before), (x1, x0), (y1, y0))]
        moved, change_in, change_out, size = look.sums(*differences, y1.float().abs())
        if look.since == 1:
            self.rate = self.estimated(change_out / change_in if change_in else float("inf"), look.step - 1)
        forced = look.step < self.forced_first or look.step >= look.num_steps - self.forced_last
        self.total += self.rate * (moved / size if size else float("inf"))
        look.report(rate=self.rate, total=self.total)
        is_full = forced or not self.total < self.threshold  # neither what is no number
        if is_full:
            self.total = 0.0
        return is_full

    def estimated(self, rate: float, step: int) -> float:
        """The rate that is taken after full step `step`, whose measured one is `rate`."""
        return rate

    def learn(self, look: "Look", output: "Tensor") -> None:
        self.seen = [*self.seen[-1:], (look.latents, output.detach())]


@dataclass(kw_only=True)
class NaviCache(EasyCache):
    """EasyCache with the rate through a scalar Kalman filter, from the end of the first `align_steps` steps on.

    process_noise, measurement_noise: the variances Q and R of the filter; its own begins at 1.
    """

    align_steps: int = 5
    process_noise: float = 0.05
    measurement_noise: float = 0.05
    variance: float = field(init=False, default=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("align_steps", self.align_steps, at_least=0, at_most=MAX_STEPS)
        number("process_noise", self.process_noise, at_least=0, at_most=1e6)
        number("measurement_noise", self.measurement_noise, at_least=0, at_most=1e6)

    def estimated(self, rate: float, step: int) -> float:
        if step < self.align_steps:
            return rate
        predicted = self.variance + self.process_noise
        gain = predicted / (predicted + self.measurement_noise + 1e-8)
        self.variance = (1 - gain) * predicted
        return self.rate + gain * (rate - self.rate)


def _rows(*thresholds: float, **settings: int) -> tuple[dict[str, float], ...]:
    return tuple({"threshold": threshold, **settings} for threshold in thresholds)


PRESETS = {
    "easycache": {
        "hunyuan_video": _rows(0.025, forced_first=5),
        "wan": _rows(0.05, forced_first=10),
        "*": _rows(0.05, 0.025, 0.1, forced_first=5),  # ours
    },
    "navicache": {
        "hunyuan_video": _rows(0.035, 0.04, 0.025, forced_first=5, align_steps=5),
        "wan": _rows(0.05, 0.07, 0.04, forced_first=10, align_steps=10),
        "*": _rows(0.05, 0.025, 0.1, forced_first=5, align_steps=5),  # ours
    },
}  # fmt: skip
register("easycache", engine="latent", presets=PRESETS["easycache"], undefined=UNDEFINED, paper="arXiv 2507.02860")(
    EasyCache
)
register("navicache", engine="latent", presets=PRESETS["navicache"], undefined=UNDEFINED, paper="arXiv 2606.26795")(
    NaviCache
)
