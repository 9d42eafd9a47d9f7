from dataclasses import dataclass

from cache_dic import FUSED, MLP, NOTHING, Partial, register


@register("brightest")
@dataclass(kw_only=True)
class Brightest(Partial):
    """Between full steps attention is reused, and the tokens of the largest norm go through the MLPs."""

    interval: int = 4
    ratio: float = 0.25
    selects_tokens = True

    def decide(self, look):
        """Whether the step is full; the first step is always full."""
        return look.since >= self.interval

    def work(self, call):
        """What a site computes in a step that is not full: everything, nothing, or some tokens (B, rows)."""
        if call.kind not in (MLP, FUSED):
            return NOTHING
        return call.top(call.x.norm(dim=-1), self.ratio)
