"""Spectrum (arXiv 2603.01623, hanjq17/Spectrum): ridge regression of all features on Chebyshev polynomials of the step."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache_dic.errors import check_choice
from cache_dic.forecast import Newton, check_order, weighted_sum
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """w · Chebyshev + (1 - w) · local.

    Chebyshev: φ(τ)ᵀ (XᵀX + ridge · I)⁻¹ Xᵀ, where φ holds T_0 … T_degree, a row of X is φ at a full step, and
    τ = 2 step / tau_steps - 1. Its weights sum to less than 1 (0.65 … 0.92 at the defaults): harmless for the tokens before the
    last LayerNorm, for which it was published; anything else wants `centred`, which fits what features differ from the latest
    one, so that weights sum to 1.
    local: of order `local_order`. "newton" is the polynomial through the last features, at equal gaps h the backward
    differences times k (k + 1) … / i!, k = x / h. "published" takes the released code's k (k - 1) … / i! and the latest gap for
    all: the same at order 1, the only one that the release uses, and not a polynomial's value above it.
    tau_steps: None stands for the number of steps of the run, which `for_run` fills in; the released code takes 50 for any run.
    precision: "bfloat16" rounds τ, the polynomials and the published k as the released code does, which moves the weights by
    parts in a thousand; that it rounds the regression's coefficients too depends on the features and is left out. "exact"
    rounds nothing.
    """

    degree: int = 4
    ridge: float = 0.1
    w: float = 0.5
    local: str = "newton"
    local_order: int = 1
    centred: bool = False
    tau_steps: int | None = None
    precision: str = "exact"

    def __post_init__(self) -> None:
        integer("degree", self.degree, at_least=0, at_most=20)
        number("ridge", self.ridge, at_least=1e-6, at_most=1e6)
        number("w", self.w, at_least=0, at_most=1)
        check_choice("local", self.local, ("newton", "published"))
        check_order(self.local_order)
        if self.tau_steps is not None:
            integer("tau_steps", self.tau_steps, at_least=1, at_most=MAX_STEPS)
        check_choice("precision", self.precision, ("exact", "bfloat16"))

    def for_run(self, num_steps: int) -> "Spectrum":
        """The forecaster of a run of `num_steps` steps."""
        return self if self.tau_steps is not None else replace(self, tau_steps=num_steps)

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        spectral, local = self._chebyshev(full_steps, step), self._local(full_steps, step)
        padding = [0.0] * (len(spectral) - len(local))
        return weighted_sum((self.w, 1 - self.w), (spectral, [*padding, *local]))

    def _chebyshev(self, full_steps: Sequence[int], step: int) -> list[float]:
        rows, target = [self._basis(s) for s in full_steps], self._basis(step)
        columns, size = list(zip(*rows, strict=True)), range(len(target))
        gram = [[dot(columns[i], columns[j]) + self.ridge * (i == j) for j in size] for i in size]
        solution = solve(gram, target)
        weights = [dot(row, solution) for row in rows]
        if self.centred:
            weights[-1] += 1 - sum(weights)
        return weights

    def _basis(self, step: int) -> list[float]:
        """T_0(τ) … T_degree(τ): T_{i+1} = 2 τ T_i - T_{i-1}."""
        assert self.tau_steps is not None, "for_run is called first"
        tau = self._round((2 * step - self.tau_steps) / self.tau_steps)
        values = [1.0, tau]
        while len(values) <= self.degree:
            values.append(self._round(self._round(2 * tau * values[-1]) - values[-2]))
        return values[: self.degree + 1]

    def _local(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        nodes = full_steps[-(self.local_order + 1) :]
        if self.local == "newton":
            return Newton(max_order=self.local_order).weights(full_steps, step)
        if len(nodes) == 1:
            return [1.0]
        k = self._round((step - nodes[-1]) / (nodes[-1] - nodes[-2]))
        factor, weights = 1.0, [0.0] * len(nodes)
        for order in range(len(nodes)):
            for back in range(order + 1):  # the order-th backward difference
                weights[-1 - back] += factor * (-1) ** back * math.comb(order, back)
            factor *= (k - order) / (order + 1)
        return weights

    def _round(self, value: float) -> float:
        return bfloat16(value) if self.precision == "bfloat16" else value


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def bfloat16(value: float) -> float:
    """The nearest number of 8 significant bits, of two equally near ones the even one; by way of float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    bits += 0x7FFF + (bits >> 16 & 1)
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """x of matrix · x = right, for a symmetric positive definite matrix (elimination, which needs no pivots then)."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i, row in enumerate(rows):
        for lower in rows[i + 1 :]:
            ratio = lower[i] / row[i]
            lower[i:] = [a - ratio * b for a, b in zip(lower[i:], row[i:], strict=True)]
    x: list[float] = []
    for i, row in reversed(list(enumerate(rows))):
        x.insert(0, (row[-1] - dot(row[i + 1 : -1], x)) / row[i])
    return x


PRESETS = {
    "flux": (
        {"alpha": 0.75, "w": 0.5},
        {"alpha": 3.0, "w": 0.5},
        {"alpha": 0.75, "w": 1.0},
    ),
    "hunyuan_video": ({"alpha": 0.75, "w": 0.5}, {"alpha": 3.0, "w": 0.5}),
    "wan": ({"alpha": 0.75, "w": 0.5}, {"alpha": 3.0, "w": 0.5}),
    "*": ({"alpha": 0.75, "w": 0.5}, {"alpha": 3.0, "w": 0.5}),  # ours
}
register(
    "spectrum", schedule="growing_window", engine="hidden", presets=PRESETS, paper="arXiv 2603.01623",
    warmup_steps=5, window=2, alpha=0.75,
)(Spectrum)  # fmt: skip
