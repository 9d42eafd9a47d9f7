"""Delta-DiT (arXiv 2406.01125): between full steps some blocks are left out, and what they added to the tokens of all streams
when they were last computed is added again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cache_dic.errors import UserError, shown
from cache_dic.partial import RESIDUAL, Call, Partial, Range
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.look import Look

PRESETS: dict[str, tuple[dict[str, Any], ...]] = {
    "dit": ({"interval": 3}, {"interval": 2}),
    # The single blocks of FLUX.1 are two thirds of all.
    "flux": tuple({"interval": n, "blocks": 0.667, "switch": 1.0} for n in (2, 3)),
    "*": ({"interval": 2}, {"interval": 3}),
}


@register("delta_dit", presets=PRESETS, paper="arXiv 2406.01125")
@dataclass(kw_only=True)
class DeltaDiT(Partial):
    """interval: of full steps after the first `warmup_steps`. blocks: how many are left out between them, an integer, or a
    share of all, rounded. switch: up to this share of the steps they are the last ones, which draw details, and from there
    on the first ones, which draw outlines; 1.0 for never.

    The paper has no code, and its numbers of blocks and its switch are not known: halves stand for them. FLUX's settings are
    those of the comparison in Shenyi-Z/Cache4Diffusion @ 91a1949 (mode "Delta"), as they are meant: there every second step
    after a full one reuses the feature of each site instead, with no block computed, and what the single blocks add by that
    replaces what is kept of them. At interval 2 there is no such step.
    """

    interval: int
    warmup_steps: int = 1
    blocks: int | float = 0.5
    switch: float = 0.5

    def __post_init__(self) -> None:
        integer("interval", self.interval, at_least=1, at_most=MAX_STEPS)
        integer("warmup_steps", self.warmup_steps, at_least=1, at_most=MAX_STEPS)
        if isinstance(self.blocks, float):
            number("blocks", self.blocks, above=0, at_most=1)
        else:
            integer("blocks", self.blocks, at_least=1, at_most=10_000)
        number("switch", self.switch, at_least=0, at_most=1)

    def decide(self, look: "Look") -> bool:
        return look.step < self.warmup_steps or look.since >= self.interval

    def course(self, look: "Look", num_blocks: int) -> Sequence[Range]:
        count = self.count(num_blocks)
        if look.step < self.switch * look.num_steps:
            return [Range(0, num_blocks - count), Range(num_blocks - count, num_blocks, RESIDUAL)]
        return [Range(0, count, RESIDUAL), Range(count, num_blocks)]

    def boundaries(self, num_blocks: int) -> "Sequence[tuple[int, int]]":
        count = self.count(num_blocks)
        last = [(num_blocks - count, num_blocks)] if self.switch > 0 else []
        return [*last, *([(0, count)] if self.switch < 1 else [])]

    def count(self, num_blocks: int) -> int:
        """How many of so many blocks are left out; UserError where that is none or all of them."""
        count = round(self.blocks * num_blocks) if isinstance(self.blocks, float) else self.blocks
        if 0 < count < num_blocks:
            return count
        raise UserError(
            f"blocks = {shown(self.blocks)} leaves out {count} of this model's {num_blocks} blocks; between full steps at "
            f"least one is left out and one computed: give 1 … {num_blocks - 1}, or a share"
        )

    def learn_feature(self, call: Call, value: "Tensor", attended: "Tensor | None") -> None:
        """Keeps nothing of a site, so that each one of a block that is walked is computed."""
