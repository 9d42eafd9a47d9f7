"""The published settings of TaylorSeer, by backbone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What the authors take for a backbone. orders: the paper's order for an interval, where it is not max_order.

    compare_intervals: those that a comparison shows where none is asked for.
    """

    interval: int
    max_order: int
    warmup_steps: int
    orders: Mapping[int, int] = field(default_factory=dict)
    compare_intervals: tuple[int, ...]

    def settings(self, interval: int | None = None) -> dict[str, Any]:
        """Settings of a method, for the usual interval or another one."""
        interval = self.interval if interval is None else interval
        order = self.orders.get(interval, self.max_order)
        return {"interval": interval, "max_order": order, "warmup_steps": self.warmup_steps}


PRESETS: dict[str, Preset] = {
    # The authors' recommendation, and the order by interval in the paper's table.
    "dit": Preset(interval=4, max_order=4, warmup_steps=2, orders={3: 3, 5: 3}, compare_intervals=(3, 4, 5)),
    # The paper's rows; the released script takes order 1.
    "flux": Preset(interval=6, max_order=2, warmup_steps=3, compare_intervals=(4, 6)),
    # The authors' releases.
    "hidream": Preset(interval=4, max_order=2, warmup_steps=1, compare_intervals=(4, 6)),
    "hunyuan_video": Preset(interval=5, max_order=1, warmup_steps=1, compare_intervals=(3, 5)),
    "wan": Preset(interval=5, max_order=1, warmup_steps=1, compare_intervals=(3, 5)),
}
