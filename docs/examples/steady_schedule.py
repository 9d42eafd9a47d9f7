from dataclasses import dataclass, field

from cache_dic import Decider, register


@register("steady")
@dataclass(kw_only=True)
class Steady(Decider):
    """Full where the tokens that block 0 works on have changed by `threshold` since the last full step.

    max_consecutive: the most forecasts in a row, which bounds what is kept.
    """

    threshold: float = 0.3
    max_consecutive: int | None = 5
    kept: object = field(init=False, default=None)  # with init=False: the state of one run

    def decide(self, look):
        """Whether the step is full; the first step is always full."""
        tokens = look.modulated()
        change = 0.0 if self.kept is None else look.change(tokens, self.kept)
        look.report(change=change)  # into the record of the step
        is_full = change >= self.threshold or self.exhausted(look)
        if is_full or self.kept is None:
            self.kept = tokens
        return is_full

    def kept_bytes(self, tokens):
        """Of what it keeps from step to step to decide by."""
        return tokens.stream_bytes
