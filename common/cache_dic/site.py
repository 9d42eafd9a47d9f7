"""A site: one residual addition of a block, the place where a feature is cached."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

from torch import Tensor

Feature: TypeAlias = "Tensor | Callable[..., Tensor]"
"""What a module gives, or the computation of it from the tokens of the site, which a site may leave out.

`feature(x)`; that of a site which is handed `attended`, too, is `feature(x, attended)`. Where tokens do not meet in it, as in
an MLP, it may be called with some of the tokens (B, rows, D) alone.
"""

T = TypeVar("T")


class Addition(NamedTuple):
    """What a block hands to a site: to add gate * feature to x.

    x and feature (B, L, D); gate broadcasts to them, None stands for 1. part: which tokens of a joint stream are those that
    reach the model's output, None for all. name: of the site in its block. reaches_output: False for a stream, such as the
    text's, that nothing of a forecast step reads. attended: of a fused site, what its attention gives the feature (B, L, D).
    """

    x: Tensor
    gate: Tensor | None
    feature: Feature
    part: slice | None = None
    name: str | None = None
    reaches_output: bool = True
    attended: Callable[[], Tensor] | None = None

    def value(self) -> Tensor:
        """The feature: the tensor that was handed over, or the result of the computation."""
        if not callable(self.feature):
            return self.feature
        return self.feature(self.x) if self.attended is None else self.feature(self.x, self.attended())

    def of(self, value: Tensor) -> Tensor:
        """x after a value in place of the feature has been added."""
        return self.x + value if self.gate is None else self.x + self.gate * value


class Site:
    """What a block adds a feature with: `x = site(x, gate, feature, name="attn")`.

    compiles: whether a walk with it may be one graph, which serves every walk.
    """

    compiles = True

    def __call__(
        self,
        x: Tensor,
        gate: Tensor | None,
        feature: Feature,
        part: slice | None = None,
        *,
        name: str | None = None,
        reaches_output: bool = True,
        attended: Callable[[], Tensor] | None = None,
    ) -> Tensor:
        """x + gate * feature, as `Addition` says."""
        return self.add(Addition(x, gate, feature, part, name, reaches_output, attended))

    def add(self, addition: Addition) -> Tensor:
        """The tokens after it (B, L, D)."""
        return addition.of(addition.value())

    def attend(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *mask: Any, **streams: int
    ) -> Tensor:
        """attention(q, k, v, *mask), of tokens to each other, for sites that look at it; q, k, v (B, H, L, d).

        streams: where several are joined, how many keys are of which, in their order; their sites' names begin so.
        """
        return attention(q, k, v, *mask)


residual = Site()
"""The plain addition."""


class once(Generic[T]):  # noqa: N801 - used as a decorator
    """A computation that several sites share, such as joint attention: made when the first of them asks, and kept."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self.compute = compute
        self.made: list[T] = []

    def __call__(self) -> T:
        if not self.made:
            self.made.append(self.compute())
        return self.made[0]
