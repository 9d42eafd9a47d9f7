"""A site: one residual addition of a block, the place where a feature is cached."""

from collections.abc import Callable

from torch import Tensor

Site = Callable[..., Tensor]
"""`site(x, gate, feature, part=None) -> x + gate * feature`; a caching engine looks at the feature on the way."""


def residual(x: Tensor, gate: Tensor | None, feature: Tensor, part: slice | None = None) -> Tensor:
    """The plain addition: x, feature (B, L, D); gate broadcasts to them, None stands for 1.

    part: which tokens of a joint stream are those that reach the model's output, None for all; the addition does not care,
    an engine keeps these alone.
    """
    return x + feature if gate is None else x + gate * feature
