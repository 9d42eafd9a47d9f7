"""SpeCa (arXiv 2509.11628; Shenyi-Z/Cache4Diffusion @ 91a1949): forecast as TaylorSeer, compute the last block from the
forecast now and then, and let the next step be full where it differs too much from its forecast."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_dic.decide import Decider
from cache_dic.errors import check_choice
from cache_dic.forecast import Taylor, check_order
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number

if TYPE_CHECKING:
    from cache_dic.look import BlockResult, Look

DIT = {
    "max_order": 4, "warmup_steps": 3, "base": 0.3, "decay": 0.05, "floor": 0.01, "min_interval": 3, "max_interval": 8,
    "error_of": "output", "ahead": 1,
}  # fmt: skip
FLUX = {
    "max_order": 2, "warmup_steps": 3, "base": 7.0, "decay": 0.3, "floor": 0.1, "min_interval": 2, "max_interval": 8,
    "error_of": "feature", "ahead": 0,
}  # fmt: skip
HUNYUAN_VIDEO = {
    "max_order": 1, "warmup_steps": 1, "base": 1.0, "decay": 0.1, "floor": 0.1, "min_interval": 4, "max_interval": 12,
    "error_of": "feature", "ahead": 0, "check_all": True,
}  # fmt: skip

PRESETS = {
    "dit": (DIT, DIT | {"base": 0.1, "decay": 0.01, "min_interval": 2, "max_interval": 5}),
    "flux": (FLUX,),
    "hunyuan_video": (HUNYUAN_VIDEO,),
    # The paper has neither: the image model's settings for the one, the video model's for the other, of the published orders.
    "hidream": (FLUX,),
    "wan": (HUNYUAN_VIDEO,),
}


@register("speca", engine="walked", presets=PRESETS, paper="arXiv 2509.11628")
@dataclass(kw_only=True)
class SpeCa(Decider):
    """A forecast always follows a full step. After it a step is full in the warm-up, after `max_interval` forecasts, and after
    `min_interval` where the error of the step before is above max(base · decay^((step + ahead) / num_steps), floor).

    The error is the mean over elements of |forecast - computed| / (|computed| + 1e-10), so small elements weigh most. error_of:
    "output", the tokens after the last block, or "feature", what its last site adds before the gate, of all tokens that it
    works on. check_all: the error is measured at every forecast, not only after `min_interval` others. The first guidance
    branch decides for all.
    """

    max_order: int = 4
    warmup_steps: int = 3
    base: float = 0.3
    decay: float = 0.05
    floor: float = 0.01
    min_interval: int = 3
    max_interval: int = 8
    error_of: str = "output"
    ahead: int = 1
    check_all: bool = False
    error: float | None = field(init=False, default=None)
    verifies = True

    def __post_init__(self) -> None:
        check_order(self.max_order)
        number("base", self.base, at_least=0, at_most=1e6)
        number("decay", self.decay, above=0, at_most=1)
        number("floor", self.floor, at_least=0, at_most=1e6)
        integer("min_interval", self.min_interval, at_least=0, at_most=MAX_STEPS)
        integer("max_interval", self.max_interval, at_least=1, at_most=MAX_STEPS)
        check_choice("error_of", self.error_of, ("output", "feature"))
        integer("ahead", self.ahead, at_least=0, at_most=1)

    @property
    def horizon(self) -> int:
        return self.max_interval

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        return Taylor(max_order=self.max_order, warmup_steps=self.warmup_steps).weights(full_steps, step)

    def decide(self, look: "Look") -> bool:
        forecasts, error = look.since - 1, self.error
        self.error = None
        if not look.full_steps:
            return True
        if forecasts == 0:
            return False
        if look.step < self.warmup_steps or forecasts >= self.max_interval:
            return True
        threshold = max(self.base * self.decay ** ((look.step + self.ahead) / look.num_steps), self.floor)
        look.report(threshold=threshold)
        return error is not None and error > threshold and forecasts >= self.min_interval

    def checks(self, look: "Look") -> bool:
        return self.check_all or look.since > self.min_interval

    def verify(self, look: "Look", forecast: "BlockResult", computed: "BlockResult") -> None:
        a, b = (getattr(result, self.error_of).float() for result in (forecast, computed))
        ratios = (a - b).abs() / (b.abs() + 1e-10)
        total, count = look.sums(ratios, ratios.new_ones(ratios.shape[:-1]))
        self.error = total / (count * ratios.shape[-1])
        look.report(error=self.error)
