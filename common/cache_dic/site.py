"""A site: one residual addition of a block, the place where a feature is cached."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Feature: TypeAlias = "Tensor | Callable[[], Tensor]"
"""What a module gives, or the computation of it, which a site may leave out."""

Site = Callable[..., Tensor]
"""`site(x, gate, feature, part=None, *, name=None, reaches_output=True) -> x + gate * feature`, as `residual`."""


def residual(
    x: Tensor,
    gate: Tensor | None,
    feature: Feature,
    part: slice | None = None,
    *,
    name: str | None = None,
    reaches_output: bool = True,
) -> Tensor:
    """The plain addition: x, feature (B, L, D); gate broadcasts to them, None stands for 1.

    part: which tokens of a joint stream are those that reach the model's output, None for all. name: of the site in its
    block. reaches_output: False for a stream, such as the text's, that nothing of a forecast step reads. The addition does
    not care for any of them; an engine keeps what reaches the output.
    """
    value = computed(feature)
    return x + value if gate is None else x + gate * value


def computed(feature: Feature) -> Tensor:
    """The tensor that a site was handed, or the result of the computation."""
    return feature() if callable(feature) else feature


def once(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A computation that several sites share, such as joint attention: made when the first of them asks, and kept."""
    made: list[Tensor] = []

    def value() -> Tensor:
        if not made:
            made.append(compute())
        return made[0]

    return value
