"""A site: one residual addition of a block, the place where a feature is cached."""

from collections.abc import Callable
from typing import Any, Generic, TypeAlias, TypeVar

from torch import Tensor

Feature: TypeAlias = "Tensor | Callable[..., Tensor]"
"""What a module gives, or the computation of it from the tokens of the site, which a site may leave out.

`feature(x)`; that of a site which is handed `attended`, too, is `feature(x, attended)`. Where tokens do not meet in it, as in
an MLP, it may be called with some of the tokens (B, rows, D) alone.
"""

T = TypeVar("T")


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
        """x + gate * feature: x and feature (B, L, D); gate broadcasts to them, None stands for 1.

        part: which tokens of a joint stream are those that reach the model's output, None for all. name: of the site in its
        block. reaches_output: False for a stream, such as the text's, that nothing of a forecast step reads. attended: of a
        fused site, what its attention gives the feature (B, L, D).
        """
        raise NotImplementedError

    def attend(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *mask: Any, **streams: int
    ) -> Tensor:
        """attention(q, k, v, *mask), of tokens to each other, for sites that look at it; q, k, v (B, H, L, d).

        streams: where several are joined, how many keys are of which, in their order; their sites' names begin so.
        """
        return attention(q, k, v, *mask)


class Residual(Site):
    """The plain addition."""

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
        value = computed(feature, x, attended)
        return x + value if gate is None else x + gate * value


residual = Residual()


def computed(feature: Feature, x: Tensor, attended: Callable[[], Tensor] | None = None) -> Tensor:
    """The tensor that a site was handed, or the result of the computation."""
    if not callable(feature):
        return feature
    return feature(x) if attended is None else feature(x, attended())


class once(Generic[T]):  # noqa: N801 - used as a decorator
    """A computation that several sites share, such as joint attention: made when the first of them asks, and kept."""

    def __init__(self, compute: Callable[[], T]) -> None:
        self.compute = compute
        self.made: list[T] = []

    def __call__(self) -> T:
        if not self.made:
            self.made.append(self.compute())
        return self.made[0]
