"""A site: one residual addition of a block, the place where a feature is cached."""

from collections.abc import Callable

from torch import Tensor

Site = Callable[[Tensor, Tensor | None, Tensor], Tensor]
"""`site(x, gate, feature) -> x + gate * feature`; a caching engine looks at the feature on the way."""


def residual(x: Tensor, gate: Tensor | None, feature: Tensor) -> Tensor:
    """The plain addition: x, feature (B, L, D); gate broadcasts to them, None stands for 1."""
    return x + feature if gate is None else x + gate * feature
