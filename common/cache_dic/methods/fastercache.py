"""FasterCache (arXiv 2410.19355; Vchitect/FasterCache @ 02d05ef): attention is extrapolated from when it was last computed,
and the unconditional answer is made of the conditional one; `fastercache_diffusers` is diffusers' hook of that name (0.42.1).

The unconditional answer is the conditional one plus how the two differed when both were last computed, low and high
frequencies of each frame apart. The transform is linear: those differences are kept as images, and a step transforms nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cache_dic.errors import check_choice
from cache_dic.methods.pab import AttentionReuse, window
from cache_dic.partial import ATTENTION, EVERYTHING, FUSED, NOTHING, REST, Call
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.look import Look

LOW_SHARE = 5
"""Low are the frequencies within a circle whose radius is a fifth of the shorter side, rounded down."""
MOST = 1e6


def low_frequencies(image: "Tensor") -> "Tensor":
    """The low frequencies of every frame: (…, rows, columns) -> the same."""
    import torch

    height, width = image.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=image.device).round()
    columns = torch.fft.rfftfreq(width, 1 / width, device=image.device).round()
    is_low = rows[:, None] ** 2 + columns**2 <= (min(height, width) // LOW_SHARE) ** 2
    return torch.fft.irfft2(torch.fft.rfft2(image) * is_low, s=(height, width))


@dataclass(kw_only=True)
class Extrapolation(AttentionReuse):
    """What both forms have in common. low, high: how the unconditional output differs, as the run of that branch keeps it."""

    low: "Tensor | None" = field(init=False, default=None)
    high: "Tensor | None" = field(init=False, default=None)
    history = 2
    separate_branches = True

    def leaves_out(self, look: "Look") -> bool:
        """Whether the unconditional branch is left out of a step after the first."""
        raise NotImplementedError

    def weight_at(self, look: "Look") -> float:
        """Of the change between the last two attentions, which is added to the last."""
        raise NotImplementedError

    def gains(self, look: "Look") -> tuple[float, float]:
        """Factors of what is kept of low and of high frequencies, from this step on."""
        raise NotImplementedError

    def conditional_alone(self, look: "Look") -> bool:
        """Whether there is an unconditional branch, and it is left out of this step."""
        return look.branches > 1 and look.step > 0 and self.leaves_out(look)

    def work(self, call: Call) -> str:
        """Of steps that are not full."""
        return {ATTENTION: NOTHING, FUSED: REST}.get(call.kind, EVERYTHING)

    def forecast(self, call: Call, values: "Sequence[Tensor]") -> "Tensor":
        newer, older = values[-1], values[0]
        return newer + self.weight_at(call.look) * (newer - older)

    def learn(self, look: "Look", output: "Tensor") -> None:
        if look.leading is None or self.conditional_alone(look):
            return
        difference = exact(output) - exact(look.leading)
        self.low = look.as_call(low_frequencies(look.image(difference)))
        self.high = difference - self.low

    def from_leader(self, look: "Look") -> "Tensor | None":
        if not self.conditional_alone(look):
            return None
        assert look.leading is not None, "asked of the branch that follows"
        assert self.low is not None, "both are computed at the first step"
        assert self.high is not None, "with the low ones"
        of_low, of_high = self.gains(look)
        self.low, self.high = self.low * of_low, self.high * of_high
        return (exact(look.leading) + (self.low + self.high)).to(look.leading.dtype)


def exact(values: "Tensor") -> "Tensor":
    """In float32, or wider where they are."""
    import torch

    return values.to(torch.promote_types(values.dtype, torch.float32))


# --------------------------------------------------------------------------------------------------------------- as released


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the released code of a model fixes, for `num_steps` steps counted from 1.

    attention_from, attention_interval, attention_at: from then on attention is computed where the count has the remainder
    `attention_at` by the interval alone. weight, ramp: of the extrapolation, weight + ramp · (count - attention_from + 1).
    alone_from, both_interval: from then on the conditional branch is alone but for multiples. low_gain, low_before: factor of
    low frequencies up to a count; high_gain, high_from: of high ones from a count on.
    """

    num_steps: int
    attention_from: int
    attention_interval: int
    attention_at: int
    weight: float = 0.0
    ramp: float = 0.0
    alone_from: int
    both_interval: int = 5
    low_gain: float = 1.1
    low_before: int
    high_gain: float = 1.1
    high_from: int


RECIPES = {  # Mochi's has a weight that is not settled
    "open_sora": Recipe(
        num_steps=30, attention_from=8, attention_interval=2, attention_at=1, ramp=0.9 / 20, alone_from=12,
        low_gain=1.15, low_before=26, high_gain=1.15, high_from=20,
    ),
    "latte": Recipe(
        num_steps=50, attention_from=16, attention_interval=2, attention_at=1, weight=0.5, alone_from=18, low_before=45,
        high_from=45,
    ),
    "open_sora_plan": Recipe(
        num_steps=150, attention_from=45, attention_interval=3, attention_at=0, weight=0.3, alone_from=40,
        both_interval=6, low_before=131, high_gain=1.2, high_from=131,
    ),
    "cogvideox": Recipe(
        num_steps=50, attention_from=18, attention_interval=3, attention_at=0, weight=0.3, alone_from=18, low_before=41,
        high_from=30,
    ),
    "vchitect": Recipe(
        num_steps=100, attention_from=31, attention_interval=2, attention_at=1, alone_from=31, low_gain=1.05,
        low_before=80, high_from=61,
    ),
}  # fmt: skip

PRESETS: dict[str, tuple[dict[str, Any], ...]] = {  # none of these models was released with a recipe of its own
    "hunyuan_video": ({"recipe": "cogvideox"},),
    "wan": ({"recipe": "cogvideox"},),
    "*": ({"recipe": "latte"},),
}


@register("fastercache", presets=PRESETS, paper="arXiv 2410.19355")
@dataclass(kw_only=True)
class FasterCache(Extrapolation):
    """recipe: of RECIPES, whose counts are of its own number of steps and are scaled to a run's. attention_interval,
    both_interval, weight: in place of the recipe's; intervals of 1 compute attention and both branches always.

    Attention is extrapolated from the last two steps that computed it, of tokens to each other alone. In a step of both
    branches it is extrapolated where the last step that computed it was of both, too, else computed for both. The released code
    keeps the features of a batch that had one or both branches in turn, so that after a step of both an unconditional feature
    may stand for the conditional one; here a branch has its own.
    """

    recipe: str = "latte"
    attention_interval: int | None = None
    both_interval: int | None = None
    weight: float | None = None
    both_computed: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, RECIPES)
        for name in ("attention_interval", "both_interval"):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), at_least=1, at_most=MAX_STEPS)
        if self.weight is not None:
            number("weight", self.weight, at_least=-MOST, at_most=MOST)

    @property
    def released(self) -> Recipe:
        return RECIPES[self.recipe]

    def scaled(self, look: "Look") -> float:
        """The count of a step, in steps of the recipe."""
        return (look.step + 1) * self.released.num_steps / look.num_steps

    def decide(self, look: "Look") -> bool:
        recipe, alone = self.released, self.conditional_alone(look)
        interval = self.attention_interval or recipe.attention_interval
        due = (look.step + 1) % interval == recipe.attention_at % interval
        covered = alone or self.both_computed or look.branches == 1
        is_full = due or not covered or self.scaled(look) < recipe.attention_from
        if is_full:
            self.both_computed = not alone
        return is_full

    def leaves_out(self, look: "Look") -> bool:
        both = (look.step + 1) % (self.both_interval or self.released.both_interval) == 0
        return not both and self.scaled(look) >= self.released.alone_from

    def weight_at(self, look: "Look") -> float:
        recipe = self.released
        ramped = recipe.weight + recipe.ramp * (self.scaled(look) - recipe.attention_from + 1)
        return ramped if self.weight is None else self.weight

    def gains(self, look: "Look") -> tuple[float, float]:
        recipe, count = self.released, self.scaled(look)
        return (
            recipe.low_gain if count < recipe.low_before else 1.0,
            recipe.high_gain if count >= recipe.high_from else 1.0,
        )


# ------------------------------------------------------------------------------------------------------------- as diffusers'


@register("fastercache_diffusers", presets={"*": ({},)}, paper="arXiv 2410.19355")
@dataclass(kw_only=True)
class DiffusersFasterCache(Extrapolation):
    """attention_range, both_range: attention, and both branches, are computed at every so many steps, between the timesteps of
    training attention_above … attention_below and both_above … both_below. weight: of the extrapolation. low_gain, high_gain:
    factors between low_above … low_below and high_above … high_below.

    As there, attention is extrapolated from what the last two steps had, extrapolated or not, and always computed in steps of
    both branches; of tokens to each other alone. diffusers' hook needs both branches as one batch, unconditional first, which
    its pipelines of these models do not make, and on HiDream-I1 neither its names nor the batch of Llama's states fit; models
    of one branch are its is_guidance_distilled.
    """

    attention_range: int = 2
    attention_above: float = -1.0
    attention_below: float = 681.0
    weight: float = 0.5
    both_range: int = 5
    both_above: float = -1.0
    both_below: float = 641.0
    low_gain: float = 1.1
    low_above: float = 99.0
    low_below: float = 901.0
    high_gain: float = 1.1
    high_above: float = -1.0
    high_below: float = 301.0

    def __post_init__(self) -> None:
        for name in ("attention_range", "both_range"):
            integer(name, getattr(self, name), at_least=1, at_most=MAX_STEPS)
        for name in ("weight", "low_gain", "high_gain"):
            number(name, getattr(self, name), at_least=-MOST, at_most=MOST)
        for name in ("attention_", "both_", "low_", "high_"):
            window(name, getattr(self, f"{name}above"), getattr(self, f"{name}below"))

    def within(self, name: str, look: "Look") -> bool:
        return getattr(self, f"{name}_above") < look.training_time < getattr(self, f"{name}_below")

    def decide(self, look: "Look") -> bool:
        alone = look.branches == 1 or self.conditional_alone(look)
        return not (alone and self.within("attention", look) and look.step % self.attention_range)

    def leaves_out(self, look: "Look") -> bool:
        return self.within("both", look) and look.step % self.both_range != 0

    def weight_at(self, look: "Look") -> float:
        return self.weight

    def gains(self, look: "Look") -> tuple[float, float]:
        return (
            self.low_gain if self.within("low", look) else 1.0,
            self.high_gain if self.within("high", look) else 1.0,
        )

    def learn_feature(self, call: Call, value: "Tensor", attended: "Tensor | None") -> None:
        if call.look.leading is None:  # the branch that follows has its attention computed whenever it runs
            super().learn_feature(call, value, attended)

    def forecast(self, call: Call, values: "Sequence[Tensor]") -> "Tensor":
        made = super().forecast(call, values)
        self.learn_feature(call, made, made)
        return made
