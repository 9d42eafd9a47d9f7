"""CG-Taylor (arXiv 2508.02240; liuxiao-guan/CG-Taylor-DiT @ c60a715): block 0 runs in every step, and where its own Taylor
forecast was right, the tokens after the last block are forecast, too."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_dic.decide import Decider
from cache_dic.errors import UserError
from cache_dic.forecast import Taylor, check_order
from cache_dic.registry import register

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.engine import Tokens
    from cache_dic.look import Look

PRESETS = {
    "dit": (
        {"threshold": 0.008, "first_block_order": 3, "warmup_steps": 3},
        {"threshold": 0.01, "first_block_order": 3, "warmup_steps": 3},
    ),
    "flux": ({"threshold": 0.13, "warmup_steps": 5}, {"threshold": 0.05, "warmup_steps": 5}),
    "wan": ({"threshold": 0.36, "first_block_order": 3, "warmup_steps": 6},),
    # The paper has neither HiDream nor HunyuanVideo: FLUX's.
    "*": ({"threshold": 0.13, "warmup_steps": 5}, {"threshold": 0.05, "warmup_steps": 5}),
}


@register("cg_taylor", engine="hidden", presets=PRESETS, paper="arXiv 2508.02240")
@dataclass(kw_only=True)
class CGTaylor(Decider):
    """From step `warmup_steps` on, all but the last, a step is a forecast where mean |forecast - x| / mean |x| < threshold, x
    being the tokens after block 0.

    first_block_order, last_block_order: of the Taylor forecasts after block 0 and after the last. The first guidance branch
    decides for all.
    """

    threshold: float
    first_block_order: int = 1
    last_block_order: int = 1
    warmup_steps: int = 5
    kept: "list[Tensor]" = field(init=False, default_factory=list)
    first_blocks = 1

    def __post_init__(self) -> None:
        if not self.threshold >= 0:
            raise UserError(f"threshold = {self.threshold} must be at least 0; 0 computes every step")
        check_order(self.first_block_order)
        check_order(self.last_block_order)

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        return _weights(self.last_block_order, full_steps, step)

    def kept_bytes(self, tokens: "Tokens") -> int:
        return (self.first_block_order + 1) * tokens.stream_bytes

    def decide(self, look: "Look") -> bool:
        x = look.after
        assert x is not None, "the tokens after the first block"
        is_full = look.step < self.warmup_steps or look.is_last or self._error(look, x) >= self.threshold
        if is_full:
            self.kept = [*self.kept, x][-(self.first_block_order + 1) :]
        return is_full

    def _error(self, look: "Look", x: "Tensor") -> float:
        weights = _weights(self.first_block_order, look.full_steps, look.step)
        forecast = sum(w * tokens for w, tokens in zip(weights, self.kept, strict=True))
        error = look.change(forecast, x)
        look.report(error=error)
        return error


def _weights(order: int, full_steps: Sequence[int], step: int) -> Sequence[float]:
    """Of Taylor forecasts whose differences are formed from the second full step on."""
    return Taylor(max_order=order, warmup_steps=1).weights(full_steps, step)
