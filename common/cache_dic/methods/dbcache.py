"""DBCache (vipshop/cache-dit 1.5.3): the first and the last blocks run in every step; where what the first ones add has hardly
changed since the last full step, what the others added then, or its forecast, stands for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_dic.decide import Decider
from cache_dic.errors import UserError, check_choice
from cache_dic.forecast import Taylor, check_order
from cache_dic.methods.published_schedules import MASKS, step_mask
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.engine import Tokens
    from cache_dic.look import Look

FIRST_DIFFERENCE = 3
"""The first step whose full step forms a difference: the calibrator's clock starts at its first update, one step late, and it
forms none up to its step 1."""

LIBRARY = {"Fn_compute_blocks": 8, "max_order": 0}
SERVING = {
    "Fn_compute_blocks": 1, "residual_diff_threshold": 0.24, "max_warmup_steps": 4, "max_continuous_cached_steps": 3,
    "max_order": 1,
}  # fmt: skip
"""Of sglang's servers."""
SHALLOW = {"Fn_compute_blocks": 1, "max_order": 0}
"""The library's, for models that have hardly eight blocks."""

PRESETS = {
    "*": (LIBRARY, SERVING),
    **dict.fromkeys(
        (
            "fashion-mnist", "flux-tiny", "hidream-tiny", "hunyuan-tiny", "wan-tiny",
            "debug", "flux-debug", "hidream-debug", "hunyuan-debug", "wan-debug",
        ),
        (SHALLOW, SERVING),
    ),
}  # fmt: skip


@register("dbcache", engine="stack", presets=PRESETS)
@dataclass(kw_only=True)
class DBCache(Decider):
    """A step is full in the warm-up, then where a limit says so, and else where mean |r - r_full| / mean |r_full| reaches
    `residual_diff_threshold`, r being what the first blocks add.

    Fn_compute_blocks, Bn_compute_blocks: first and last blocks that run in every step. residual_diff_threshold: at 0 every
    step is full, from 1 on none is for its change. max_warmup_steps: of those the first and every `warmup_interval`-th after
    it are full. max_cached_steps, max_continuous_cached_steps: the most forecasts of a run and in a row, below 0 for no bound.
    max_accumulated_residual_diff_threshold: once the changes of all steps that were compared add up to it, all are full; 0 for
    no bound. mask: of `step_mask`, steps that are full in any case; the others are decided as usual if mask_policy is
    "dynamic", forecast whatever is seen if it is "static". max_order: of the Taylor forecast (a "calibrator") of what is left
    out, 0 to reuse it. by_branch: guidance branches decide each for itself; else the first for all.
    """

    Fn_compute_blocks: int = 8
    Bn_compute_blocks: int = 0
    residual_diff_threshold: float = 0.08
    max_warmup_steps: int = 8
    warmup_interval: int = 1
    max_cached_steps: int = -1
    max_continuous_cached_steps: int = -1
    max_accumulated_residual_diff_threshold: float = 0.0
    mask: str | None = None
    mask_policy: str = "dynamic"
    max_order: int = 0
    by_branch: bool = True
    residual: "Tensor | None" = field(init=False, default=None)
    total: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        integer("Fn_compute_blocks", self.Fn_compute_blocks, at_least=1)
        integer("Bn_compute_blocks", self.Bn_compute_blocks, at_least=0)
        if not self.residual_diff_threshold >= 0:
            raise UserError(
                f"residual_diff_threshold = {self.residual_diff_threshold} must be at least 0; 0 computes every step"
            )
        integer("max_warmup_steps", self.max_warmup_steps, at_least=0, at_most=MAX_STEPS)
        integer("warmup_interval", self.warmup_interval, at_least=1, at_most=MAX_STEPS)
        if self.mask is not None:
            check_choice("mask", self.mask, MASKS)
        check_choice("mask_policy", self.mask_policy, ("dynamic", "static"))
        check_order(self.max_order)

    @property
    def first_blocks(self) -> int:  # type: ignore[override]
        return self.Fn_compute_blocks

    @property
    def last_blocks(self) -> int:  # type: ignore[override]
        return self.Bn_compute_blocks

    @property
    def horizon(self) -> int | None:
        bounded = self.max_continuous_cached_steps >= 0 and (self.mask is None or self.mask_policy == "dynamic")
        return self.max_continuous_cached_steps if bounded else None

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        return Taylor(max_order=self.max_order, warmup_steps=FIRST_DIFFERENCE + 1).weights(full_steps, step)

    def kept_bytes(self, tokens: "Tokens") -> int:
        return tokens.stream_bytes

    def decide(self, look: "Look") -> bool:
        residual = look.added()
        is_full = self._is_full(look, residual)
        if is_full:
            self.residual = residual
        return is_full

    def _is_full(self, look: "Look", residual: "Tensor") -> bool:
        step, warmup = look.step, self.max_warmup_steps
        masked = () if self.mask is None else step_mask(look.num_steps, mask=self.mask)
        if masked:
            warmup = min(warmup, next(i for i in range(look.num_steps + 1) if i not in masked))
        if step in masked or (step < warmup and step % self.warmup_interval == 0):
            return True
        if masked and self.mask_policy == "static":
            return False
        if 0 <= self.max_cached_steps <= step - len(look.full_steps) or self.exhausted(look):
            return True
        if 0 < self.max_accumulated_residual_diff_threshold <= self.total:
            return True
        if self.residual_diff_threshold <= 0 or self.residual is None:
            return True
        if self.residual_diff_threshold >= 1:
            return False
        change = look.change(residual, self.residual)
        look.report(change=change)
        self.total += change
        return change >= self.residual_diff_threshold
