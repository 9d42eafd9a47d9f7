"""ChebBooster (arXiv 2608.23429): barycentric rational interpolation through the last features.

Its repository (Kiramei/ChebBooster) could not be read; the formula is the paper's as far as it is quoted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cache_dic.errors import UserError
from cache_dic.registry import register
from cache_dic.settings import integer


@dataclass(frozen=True, kw_only=True)
class ChebBooster:
    """a_j ∝ w_j / (step - s_j) over the last `num_snapshots` full steps s_j; w alternates in sign and is halved at both ends.

    Exact for features linear in the step, whatever the gaps, and for three at equal gaps quadratic ones. Otherwise a rational
    function, which has no poles between the full steps but may have one beyond the last: of three, where the latest gap h is
    shorter than the one before it, g, at h (g + h) / (g - h) steps. UserError there; weights are large around it.
    """

    num_snapshots: int = 3

    def __post_init__(self) -> None:
        integer("num_snapshots", self.num_snapshots, at_least=1, at_most=20)

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        nodes = full_steps[-self.num_snapshots :]
        ends = (0, len(nodes) - 1)
        terms = [(-1) ** j * (0.5 if j in ends else 1.0) / (step - node) for j, node in enumerate(nodes)]
        total = sum(terms)
        if total == 0:
            raise UserError(
                f"chebbooster has no value at step {step} after full steps {', '.join(map(str, nodes))}: a pole of its "
                f"interpolant; take num_snapshots=2, which has none, or other full steps"
            )
        return [term / total for term in terms]


PRESETS = {
    "dit": (
        {"num_snapshots": 3, "interval": 4},
        {"num_snapshots": 3, "interval": 3},
        {"num_snapshots": 3, "interval": 5},
    ),
    "flux": ({"num_snapshots": 2, "interval": 5}, {"num_snapshots": 2, "interval": 6}),
    "*": ({"num_snapshots": 2, "interval": 5}, {"num_snapshots": 2, "interval": 4}),  # ours
}
register(
    "chebbooster",
    schedule="with_tail",
    presets=PRESETS,
    paper="arXiv 2608.23429",
    interval=5,
    warmup_steps=2,
    tail_steps=1,
)(ChebBooster)
