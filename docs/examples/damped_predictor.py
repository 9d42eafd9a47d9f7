from dataclasses import dataclass

from cache_dic import register


@register("damped", schedule="taylorseer", interval=4, warmup_steps=2)
@dataclass(frozen=True, kw_only=True)
class Damped:
    """Linear extrapolation, shrunk."""

    damping: float = 0.5

    def weights(self, full_steps, step):
        """One weight for each of the last K full steps, oldest first; K is the method's choice."""
        if len(full_steps) < 2:
            return [1.0]
        before, last = full_steps[-2:]
        slope = self.damping * (step - last) / (last - before)
        return [-slope, 1 + slope]
