"""ToCa (arXiv 2410.05317; Shenyi-Z/ToCa @ e84096f) and DuCa (arXiv 2412.18911; Shenyi-Z/DuCa @ 0a7151b): between full steps
attention is reused, and the tokens that matter most go through the MLPs; DuCa leaves out every other of those steps.

Oddities of the released code that are kept:
- DiT: block 0 learns of a new interval one step after the others, so that a step may be full in it alone; an interval of 1
  becomes 2 in a stretch of the run; in its first quarter the share of tokens is below 0, none is computed.
- Ramps over layers end at layer 27 whatever the depth, where that is how a model was released.
- FLUX: steps without blocks leave out what the last block adds; "values" chooses the largest, elsewhere the smallest.
- Age counts calls of a site, so that steps without blocks make no token older; without tokens (ratio 0) other steps are full.
Against it, random tokens of two guidance branches differ, and a grid need not be a square of whole cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cache_dic.errors import check_choice
from cache_dic.partial import ATTENTION, CROSS, EVERYTHING, HIDDEN, NOTHING, Call, Partial, Range, count_of
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.look import Look

DRIFT = 0.4
"""Of the interval of the rule that counts down: it is the interval over 1 + drift - 2 · drift · (what is left of the run)."""
SHORT_FROM, SHORT_TO, SHORT_INTERVAL = 0.2, 0.4, 2
"""There, and between these shares of the run left, it is this."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the released code of a model fixes.

    rule: "periodic", full in the warm-up and then every `interval` steps; "counted_down", DiT's: steps are counted down, a
    step is full where what is left is a multiple of an interval that drifts, and block 0 learns of a new interval one step
    after the other blocks, so that a step may be full in block 0 alone. factor: of the ratio of tokens in MLPs, double_factor
    where streams are apart, cross_factor for attention to a text. step_weight, layer_weight: of two ramps of that ratio,
    1 + w - 2 w u, over the run, u what is left of it, and over the layers, u = layer / ramp_layers (None: the last layer).
    cell, bonus: the best token in each square of so many gets so much of its score on top, 0 for none. hidden: whether steps
    that enter no block take the tokens after the last block, or those before it. largest_values: whether "values" chooses
    the tokens of the largest values, against the papers.
    """

    rule: str = "periodic"
    warmup_steps: int = 3
    factor: float = 1.6
    double_factor: float = 1.0
    cross_factor: float = 0.0
    step_weight: float = 0.0
    layer_weight: float = 0.0
    ramp_layers: int | None = None
    cell: int = 0
    bonus: float = 0.0
    hidden: str = "after"
    largest_values: bool = False


CODE_LAYERS = 27
"""The released ramps over layers end at this one whatever the depth: DiT-XL/2's last, below FLUX.1's last of 38."""

DIT = Recipe(
    rule="counted_down", factor=2.5, step_weight=2.0, layer_weight=-0.2, ramp_layers=CODE_LAYERS, cell=2, bonus=0.6
)
FLUX = Recipe(double_factor=0.4, layer_weight=0.5, ramp_layers=CODE_LAYERS, largest_values=True)
RECIPES = {
    "dit_50": DIT,
    "dit_250": replace(DIT, step_weight=0.4, layer_weight=0.8),
    "duca_dit": replace(DIT, bonus=0.8),
    "flux": FLUX,
    "duca_flux": replace(FLUX, hidden="before"),  # as the code keeps them, without what the last block adds
    "joint": replace(FLUX, ramp_layers=None, largest_values=False),  # FLUX's for other models of two streams
    "hunyuan": replace(FLUX, warmup_steps=1, largest_values=False),  # gives the published FLOPs of both methods
    "video": Recipe(factor=1.495),  # Open-Sora's, the released model with attention to a text, which is reused
}

TOCA: dict[str, tuple[dict[str, Any], ...]] = {
    "dit": ({"recipe": "dit_50", "interval": 3, "ratio": 0.07}, {"recipe": "dit_250", "interval": 4, "ratio": 0.07}),
    "flux": tuple({"recipe": "flux", "interval": n, "ratio": 0.1} for n in (4, 5, 6)),
    "hunyuan_video": ({"recipe": "hunyuan", "interval": 5, "ratio": 0.1},),
    "hidream": ({"recipe": "joint", "interval": 4, "ratio": 0.1},),
    "wan": ({"recipe": "video", "interval": 5, "ratio": 0.1},),
    "*": ({"interval": 4},),
}
DUCA: dict[str, tuple[dict[str, Any], ...]] = {
    "dit": tuple({"recipe": "duca_dit", "interval": n, "ratio": 0.05} for n in (3, 5)),
    "flux": tuple({"recipe": "duca_flux", "interval": n, "ratio": 0.1} for n in (5, 6)),
    "hunyuan_video": ({"recipe": "hunyuan", "interval": 5, "ratio": 0.1, "by": "random"},),
    "hidream": ({"recipe": "joint", "interval": 4, "ratio": 0.1, "by": "values"},),
    "wan": ({"recipe": "video", "interval": 5, "ratio": 0.1, "by": "values"},),
    "*": ({"interval": 4},),
}


@register("toca", presets=TOCA, paper="arXiv 2410.05317")
@dataclass(kw_only=True)
class ToCa(Partial):
    """interval: of full steps. ratio: of the tokens of an MLP that are computed between them; 0 is FORA as the released code
    has it, with an interval that does not drift and one full step to begin with. recipe: of RECIPES. by: what tokens are
    chosen by: "attention", how much they get; "values", how small theirs are; "random". age_weight: of the steps since a
    token was computed, in intervals.
    """

    recipe: str = "joint"
    interval: int
    ratio: float = 0.1
    by: str = "attention"
    age_weight: float = 0.25
    effective_interval: int = field(init=False, default=1)
    kinds: tuple[str, str] = field(init=False, default=("full", "full"))
    selects_tokens = True
    keeps_age = True

    def __post_init__(self) -> None:
        check_choice("recipe", self.recipe, RECIPES)
        check_choice("by", self.by, ("attention", "values", "random"))
        integer("interval", self.interval, at_least=1, at_most=MAX_STEPS)
        number("ratio", self.ratio, at_least=0, at_most=1)
        number("age_weight", self.age_weight, at_least=0, at_most=1e6)

    @property
    def observes(self) -> str | None:  # type: ignore[override]
        return None if self.by == "random" else self.by

    @property
    def released(self) -> Recipe:
        return RECIPES[self.recipe]

    # ------------------------------------------------------------------------------------------------------------- when

    def decide(self, look: "Look") -> bool:
        self.kinds = self._kinds(look)
        return set(self.kinds) == {"full"}

    def _kinds(self, look: "Look") -> tuple[str, str]:
        """What the step is in block 0, and in the others."""
        if not look.full_steps:
            self._renew(look)
            return "full", "full"
        if self.released.rule == "periodic":
            warmup_steps = self.released.warmup_steps if self.ratio else 1
            is_full = look.step < warmup_steps or look.since >= self.interval
            kind = "full" if is_full else self.kind_between(self.interval - look.since)
            return kind, kind
        first = self._counted_down(look)
        if first == "full":
            self._renew(look)
        return first, self._counted_down(look)

    def _counted_down(self, look: "Look") -> str:
        left = (look.num_steps - 1 - look.step) % self.effective_interval
        return self.kind_between(left) if left else "full"

    def _renew(self, look: "Look") -> None:
        """The interval of the rule that counts down, from this step on; in float32 and rounded half to even, as there."""
        import torch

        left = look.num_steps - 1 - look.step
        factor = torch.tensor(ramp(DRIFT if self.ratio else 0.0, left, look.num_steps), dtype=torch.float32)
        self.effective_interval = int(torch.round(self.interval / factor))
        if self.ratio and int(look.num_steps * SHORT_FROM) <= left < int(look.num_steps * SHORT_TO):
            self.effective_interval = SHORT_INTERVAL

    def kind_between(self, left: int) -> str:
        """What a step is, `left` steps before the next full one."""
        return "partial"

    # ------------------------------------------------------------------------------------------------------------- what

    def work(self, call: Call) -> "str | Tensor":
        if call.block == 0 and self.kinds[0] == "full":
            return EVERYTHING
        if call.kind == ATTENTION:
            return NOTHING
        ratio = self.ratio_of(call)
        return call.top(self.scores(call), ratio) if count_of(ratio, call.x.shape[1]) else NOTHING

    def ratio_of(self, call: Call) -> float:
        """The share of a site's tokens that a partial step computes."""
        look, recipe = call.look, self.released
        by_layer = ramp(recipe.layer_weight, call.layer, recipe.ramp_layers or max(1, call.num_layers - 1))
        by_step = ramp(recipe.step_weight, look.num_steps - 1 - look.step, look.num_steps)
        of_site = (
            recipe.cross_factor if call.kind == CROSS else recipe.double_factor if call.is_double else recipe.factor
        )
        return self.ratio * by_layer * by_step * of_site

    def scores(self, call: Call) -> "Tensor":
        """By what tokens are chosen (B, L): importance, age, and the bonus of the best in their neighbourhood."""
        from torch.nn.functional import normalize

        recipe = self.released
        if self.by == "random":
            score = call.random()
        else:
            seen = call.observed()
            takes_largest = self.by == "attention" or recipe.largest_values
            score = normalize(seen if takes_largest else 1 - seen, dim=-1)
        if self.age_weight:
            assert call.kept.age is not None, "since the site was computed"
            score = score + self.age_weight * (call.kept.age.float() / self.interval)
        return with_bonus(score, call.look.grid, recipe.cell, recipe.bonus) if recipe.cell and call.on_grid else score


@register("duca", presets=DUCA, paper="arXiv 2412.18911")
@dataclass(kw_only=True)
class DuCa(ToCa):
    """ToCa whose partial steps take turns with steps in which no block is entered: the tokens after the last block are those of
    the step before.

    A recipe that counts down computes tokens where an odd number of steps is left to the next full one; a periodic one at
    every second step after a full one.
    """

    def kind_between(self, left: int) -> str:
        number = left if self.released.rule == "counted_down" else self.interval - left + 1
        return "partial" if number % 2 else "hidden"

    def hidden_after(self, num_blocks: int) -> int:
        return num_blocks - (self.released.hidden == "before")

    def course(self, look: "Look", num_blocks: int) -> Sequence[Range]:
        first, others = self.kinds
        if others != "hidden":
            return [Range(0, num_blocks)]
        return [Range(0, 1), Range(1, num_blocks, HIDDEN)] if first == "full" else [Range(0, num_blocks, HIDDEN)]


def ramp(weight: float, position: int, length: int) -> float:
    """1 + w - 2 w u: from 1 + w at u = 0 to 1 - w at u = 1, u = position / length."""
    return 1 + weight - 2 * weight * position / length


def with_bonus(scores: "Tensor", grid: Sequence[int], cell: int, bonus: float) -> "Tensor":
    """Scores (B, L) of tokens on a grid (…, rows, columns), where the best token of every square of `cell` by `cell` gets
    `bonus` of its score on top; squares that the grid's edge cuts off have fewer tokens."""
    import torch
    from torch.nn.functional import pad

    rows, columns = grid[-2:]
    fill = (-columns % cell, -rows % cell)
    image = pad(scores.unflatten(1, (-1, rows, columns)), (0, fill[0], 0, fill[1]), value=-torch.inf)
    squares = (
        image.unflatten(2, (-1, cell)).unflatten(4, (-1, cell)).transpose(3, 4).flatten(4)
    )  # (B, frames, R, C, cell²)
    best, place = squares.max(dim=-1, keepdim=True)
    squares = squares.scatter_add(-1, place, best * bonus)
    image = squares.unflatten(-1, (cell, cell)).transpose(3, 4).flatten(4).flatten(2, 3)
    return image[:, :, :rows, :columns].flatten(1)
