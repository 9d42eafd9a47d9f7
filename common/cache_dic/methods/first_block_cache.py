"""FirstBlockCache (chengzeyi/ParaAttention; diffusers' FirstBlockCacheConfig): the first block runs in every step, and where
what it adds has hardly changed since the last full step, what the others added then stands for them."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_dic.decide import Decider
from cache_dic.errors import UserError
from cache_dic.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.engine import Tokens
    from cache_dic.look import Look

PRESETS = {
    "flux-dev": [{"threshold": threshold} for threshold in (0.08, 0.06, 0.10, 0.12)],
    "hunyuan_video": [{"threshold": 0.06}],
    "wan": [{"threshold": 0.02}],
    "*": [{"threshold": threshold} for threshold in (0.05, 0.08, 0.12)],
}


@register("first_block_cache", engine="stack", presets=PRESETS)
@dataclass(kw_only=True)
class FirstBlockCache(Decider):
    """A step is full where mean |r - r_full| / mean |r_full| > threshold, r being what block 0 adds.

    max_consecutive: the most forecasts in a row, None for no bound. by_branch: guidance branches decide each for itself, as in
    diffusers; else the first for all.
    """

    threshold: float
    max_consecutive: int | None = None
    by_branch: bool = True
    residual: "Tensor | None" = field(init=False, default=None)
    first_blocks = 1

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UserError(
                f"threshold = {self.threshold} must be at least 0; 0 computes every step that changes anything"
            )

    def kept_bytes(self, tokens: "Tokens") -> int:
        return tokens.stream_bytes

    def decide(self, look: "Look") -> bool:
        residual = look.added()
        change = float("inf") if self.residual is None else look.change(residual, self.residual)
        look.report(change=change)
        is_full = change > self.threshold or self.exhausted(look)
        if is_full:
            self.residual = residual
        return is_full
