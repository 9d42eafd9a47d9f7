"""Schedules that decide while sampling: at each step, by a signal, whether it is full.

    @register("steady", engine="stack")
    @dataclass(kw_only=True)
    class Steady(Decider):
        threshold: float = 0.1
        previous: "Tensor | None" = field(init=False, default=None)

        def decide(self, look):
            signal, old = look.modulated(), self.previous
            self.previous = signal
            return old is None or look.change(signal, old) >= self.threshold

Fields that are set when it is made are its settings, the others the state of one run, which starts with a fresh copy.
"""

import inspect
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from cache_dic.errors import UserError, is_ours, run_of_user_code, shown, source_of
from cache_dic.settings import check_kind, integer, plain

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.engine import Tokens
    from cache_dic.look import BlockResult, Look


class Decider:
    """What a schedule that decides while sampling has.

    first_blocks: blocks that every step computes before it is decided, whose tokens `look.before` and `look.after` are.
    last_blocks: those that every step computes after the forecast. by_branch: guidance branches decide each for itself;
    otherwise the first one, the conditional, decides for all. of_time: it looks at nothing but steps and times, so that all
    full steps are known before the run. horizon: the most forecasts in a row, None for no bound. verifies: at forecasts for
    which `checks` says so, the last block is also computed from what is forecast before it, and `verify` sees both. sees_ends:
    `look.before` and `look.after` are, when it learns, the tokens before the first and after the last block.
    """

    first_blocks: int = 0
    last_blocks: int = 0
    by_branch: bool = False
    of_time: bool = False
    verifies: bool = False
    sees_ends: bool = False

    @property
    def horizon(self) -> int | None:
        return getattr(self, "max_consecutive", None)

    def exhausted(self, look: "Look") -> bool:
        """Whether as many forecasts in a row as there may be have passed."""
        return self.horizon is not None and look.since > self.horizon

    def decide(self, look: "Look") -> bool:
        """Whether the step is full; the first one is whatever is said here."""
        raise NotImplementedError

    def learn(self, look: "Look", output: "Tensor") -> None:
        """A full step has given the model's output."""

    def kept_bytes(self, tokens: "Tokens") -> int:
        """Bytes of tensors that it keeps itself from step to step, to decide by; tokens: of the model."""
        return 0

    def checks(self, look: "Look") -> bool:
        """Whether this forecast is verified."""
        return True

    def verify(self, look: "Look", forecast: "BlockResult", computed: "BlockResult") -> None:
        """What the last block would have given, by the forecast and computed; the forecast is what the step takes."""


def check_traits(decider: Decider, of: type[Decider]) -> None:
    """UserError unless whatever a schedule says of itself, as a class `of` its kind does, is of the type annotated there; an
    integer is at least what it is there."""
    for base in of.__mro__:
        for name, annotation in inspect.get_annotations(base).items():
            told, value = f"{name} of {type(decider).__name__}", getattr(decider, name)
            if annotation is int:
                integer(told, value, at_least=getattr(of, name))
            check_kind(told, value, annotation)


def _asked(decider: Any, method: str, what: str) -> AbstractContextManager[None]:
    """Around a call of a decider's method: what it raises says that the schedule failed, and at what."""
    return run_of_user_code(f"schedule {type(decider).__name__} failed {what}", *source_of(type(decider), method))


def decided(decider: Any, look: "Look", horizon: int) -> bool:
    """Whether a step is full; UserError for a decider that fails or lets more forecasts follow each other than it says."""
    name, (file, line) = type(decider).__name__, source_of(type(decider), "decide")
    with _asked(decider, "decide", f"at step {look.step}"):
        is_full = plain(decider.decide(look))
    if not isinstance(is_full, bool):
        place = f" ({file}:{line})" if file and not is_ours(file) else ""
        raise UserError(
            f"schedule {name} decided {shown(is_full)} at step {look.step}, where True, a full step, or False is wanted{place}"
        )
    if not look.full_steps:
        return True
    if not is_full and look.since > horizon:
        raise UserError(
            f"schedule {name} wants a forecast at step {look.step}, {look.since} steps after the last full one; its horizon is "
            f"{horizon}"
        )
    return is_full


def to_verify(decider: Any, look: "Look") -> bool:
    """Whether a forecast is to be verified; UserError for a decider that fails."""
    with _asked(decider, "checks", f"at step {look.step}"):
        return decider.verifies and bool(decider.checks(look))


def verified(decider: Any, look: "Look", forecast: "BlockResult", computed: "BlockResult") -> None:
    """Show a decider what the last block gave by the forecast and computed; UserError for one that fails."""
    with _asked(decider, "verify", f"to verify step {look.step}"):
        decider.verify(look, forecast, computed)


def kept_by(decider: Any, tokens: "Tokens") -> int:
    """Bytes that a decider keeps itself; UserError for one that fails or gives no number."""
    with _asked(decider, "kept_bytes", "to say what it keeps"):
        return integer("kept_bytes", decider.kept_bytes(tokens), at_least=0)


def learned(decider: Any, look: "Look", output: "Tensor") -> None:
    """Tell a decider of a full step; UserError for one that fails."""
    with _asked(decider, "learn", f"to learn from step {look.step}"):
        decider.learn(look, output)
