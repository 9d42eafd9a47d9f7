"""Pyramid Attention Broadcast (arXiv 2408.12588; NUS-HPC-AI-Lab/VideoSys @ 4cce477): what attention gave is broadcast to the
steps that follow, the further the less it changes from step to step; all else is computed."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cache_dic.errors import UserError, shown
from cache_dic.partial import ATTENTION, CROSS, EVERYTHING, FUSED, MLP, NOTHING, REST, TEMPORAL, Call, Partial
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.look import Look

log = logging.getLogger("cache_dic")

LAST_TIME = 1e4
"""Timesteps of training reach 1000; ends of windows may lie beyond."""
RANGES = {ATTENTION: "spatial_range", FUSED: "spatial_range", TEMPORAL: "temporal_range", CROSS: "cross_range"}
"""By kind of site, the setting that says how often it is computed."""


class AttentionReuse(Partial):
    """Of the sites whose kind is in `reused` nothing but what attention gave is kept."""

    reused: tuple[str, ...] = (ATTENTION, FUSED)

    def learn_feature(self, call: Call, value: "Tensor", attended: "Tensor | None") -> None:
        if call.kind in self.reused:
            kept, made = call.kept, attended if call.kind == FUSED else value
            into = kept.attended if call.kind == FUSED else kept.values
            into += [] if made is None else [made]
            del into[: -self.history]


def window(name: str, above: float, below: float) -> None:
    """UserError unless the ends of a window of training timesteps are numbers in order."""
    for end, value in (("above", above), ("below", below)):
        number(f"{name}{end}", value, at_least=-LAST_TIME, at_most=LAST_TIME)
    if above >= below:
        raise UserError(
            f"{name}above = {above:g} must be less than {name}below = {below:g}: timesteps lie between them"
        )


PRESETS: dict[str, tuple[dict[str, Any], ...]] = {
    # VideoSys has none of these models: its window and ranges for Vchitect, the window being diffusers' for any model; then
    # the same with a longer range.
    "wan": ({"spatial_range": 2, "cross_range": 6}, {"spatial_range": 4, "cross_range": 6}),
    "*": ({"spatial_range": 2}, {"spatial_range": 4}),
}


@register("pab", presets=PRESETS, paper="arXiv 2408.12588")
@dataclass(kw_only=True)
class PAB(AttentionReuse):
    """spatial_range, temporal_range, cross_range: attention of tokens to each other, to their place in other frames, to a text,
    is computed at every so many calls, None for all of them. above, below: only between these timesteps of training, 1000 for
    noise, is it reused. mlp_blocks, mlp_timesteps, mlp_skips: the MLPs of so many first blocks are computed at the first steps
    that reach those timesteps and reused for so many steps after each; VideoSys lists timesteps of its own schedules.
    shared_branches: of guidance branches with calls of their own, count and features are one, as in diffusers' hook
    (0.42.1), where an unconditional call so reuses what the conditional one of the same step attended to.

    What is reused enters as attention gave it, before the gate. A call counts whether attention is computed in it or not.
    """

    spatial_range: int | None = 2
    temporal_range: int | None = None
    cross_range: int | None = None
    above: float = 100.0
    below: float = 800.0
    mlp_blocks: int = 0
    mlp_timesteps: tuple[float, ...] = ()
    mlp_skips: int = 2
    shared_branches: bool = False
    last_time: float = field(init=False, default=float("inf"))
    mlp_left: int = field(init=False, default=0)
    mlp_listed: bool = field(init=False, default=False)
    mlp_reused: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        for name in dict.fromkeys(RANGES.values()):
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), at_least=1, at_most=MAX_STEPS)
        window("", self.above, self.below)
        integer("mlp_blocks", self.mlp_blocks, at_least=0)
        integer("mlp_skips", self.mlp_skips, at_least=1, at_most=MAX_STEPS)
        self.mlp_timesteps = timesteps("mlp_timesteps", self.mlp_timesteps)
        if bool(self.mlp_blocks) != bool(self.mlp_timesteps):
            raise UserError(
                f"mlp_blocks = {self.mlp_blocks} and mlp_timesteps = {shown(self.mlp_timesteps)} need each other: how many "
                "first blocks, and after which timesteps their MLPs are reused"
            )

    @property
    def shares_kept(self) -> bool:  # type: ignore[override]
        return self.shared_branches

    @property
    def separate_branches(self) -> bool:  # type: ignore[override]
        return self.shared_branches

    @property
    def reused(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(kind for kind, name in RANGES.items() if getattr(self, name) is not None)

    def decide(self, look: "Look") -> bool:
        if not look.calls:
            self._check(look.kinds, look.model_name)
        time, before = look.training_time, self.last_time
        self.mlp_listed = any(time <= listed < before for listed in self.mlp_timesteps)
        self.mlp_reused = not self.mlp_listed and self.mlp_left > 0
        self.mlp_left = self.mlp_skips if self.mlp_listed else max(0, self.mlp_left - 1)
        self.last_time = time
        return not self.mlp_reused and all(self.computes(kind, look) for kind in look.kinds)

    def _check(self, kinds: set[str], model: str) -> None:
        """Warn of ranges that nothing in the model has."""
        of_sites = {RANGES[kind] for kind in kinds if kind in RANGES}
        for name in ("temporal_range", "cross_range"):
            if getattr(self, name) is not None and name not in of_sites:
                log.warning(f"{name} = {getattr(self, name)} has no effect: {model} has no such attention apart")

    def computes(self, kind: str, look: "Look") -> bool:
        """Whether sites of a kind compute attention at a step."""
        count = getattr(self, RANGES[kind]) if kind in RANGES else None
        return count is None or not self.above < look.training_time < self.below or look.calls % count == 0

    def work(self, call: Call) -> str:
        if call.kind == MLP:
            return NOTHING if self.mlp_reused and call.block < self.mlp_blocks else EVERYTHING
        if self.computes(call.kind, call.look):
            return EVERYTHING
        return REST if call.kind == FUSED else NOTHING

    def learn_feature(self, call: Call, value: "Tensor", attended: "Tensor | None") -> None:
        super().learn_feature(call, value, attended)
        if call.kind == MLP and self.mlp_listed and call.block < self.mlp_blocks:
            call.kept.values = [value]


def timesteps(name: str, value: Any) -> tuple[float, ...]:
    """Timesteps of training given as a list, a single one, or text with commas between; UserError for anything else."""
    given = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int | float) else value
    try:
        found = tuple(float(part) for part in given)
    except (TypeError, ValueError):
        found = (-1.0,)
    if any(not 0 <= part <= LAST_TIME for part in found):
        raise UserError(f"{name} = {shown(value)} must be timesteps of training, such as 720,640,560")
    return found
