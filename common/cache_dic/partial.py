"""Methods that compute part of a step: the blocks are walked, and each site asks what it is to compute.

    @register("brightest")
    @dataclass(kw_only=True)
    class Brightest(Partial):
        interval: int = 4
        ratio: float = 0.1

        def decide(self, look):
            return look.step % self.interval == 0

        def work(self, call):
            return call.top(call.x.norm(dim=-1), self.ratio) if call.kind == MLP else NOTHING

Fields that are set when it is made are its settings, the others the state of one run, which starts with a fresh copy.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from cache_dic.decide import Decider

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.look import Look

ATTENTION, TEMPORAL, CROSS, MLP, FUSED = "attention", "temporal", "cross", "mlp", "fused"
"""Kinds of sites: tokens attend to each other; to those of their place in other frames; to something else; go through an MLP
each; attention and an MLP in one."""

TOKENWISE = (CROSS, MLP)
"""Kinds in which a token's feature depends on that token alone; of a FUSED one, where its attention is given."""

EVERYTHING, NOTHING, REST = "everything", "nothing", "rest"
"""What a site may be asked to compute: all of it; nothing, so that `forecast` stands for it; of a fused site, all but its
attention, for which `forecast` stands. Else it is a tensor of the tokens to compute, (B, rows) indices."""

WALK, RESIDUAL, HIDDEN = "walk", "residual", "hidden"
"""What happens to a range of blocks: they are walked; what they added when they were last walked is added again; the tokens
after the last block are those of the step before."""


class Range(NamedTuple):
    """Blocks start … stop - 1, and what happens to them."""

    start: int
    stop: int
    how: str = WALK


@dataclass
class Kept:
    """What is kept of a site from step to step, of all its tokens.

    values: its last features, the newest last; attended: of a fused site, what its attention gave it then. age: how often the
    site was called since each token was last computed (B, L), where a method counts it and tokens can be computed apart.
    state: whatever else a method keeps.
    """

    values: "list[Tensor]" = field(default_factory=list)
    attended: "list[Tensor]" = field(default_factory=list)
    age: "Tensor | None" = None
    state: dict[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> "Tensor":
        return self.values[-1]


@dataclass(frozen=True)
class Call:
    """A site as it is called in a step.

    look: at the step. block: counted through all. layer, num_layers: counted through the blocks with the same sites. name:
    of the site in its block. kind: ATTENTION, CROSS, MLP or FUSED. x: tokens (B, L, D) that the feature is of. part: those
    that reach the output, None for all of them. reaches_output: False for a stream that nothing after the blocks reads.
    observed(): what was last seen in the block's attention of these tokens (B, L), see `Partial.observes`.
    """

    look: "Look"
    block: int
    layer: int
    num_layers: int
    name: str
    kind: str
    x: "Tensor"
    part: slice | None
    reaches_output: bool
    kept: Kept
    observed: "Callable[[], Tensor]"

    @property
    def place(self) -> tuple[int, str]:
        """Its block and name."""
        return self.block, self.name

    @property
    def is_double(self) -> bool:
        """Whether its block keeps the streams of image and text apart."""
        return self.name.startswith(("img_", "txt_"))

    @property
    def on_grid(self) -> bool:
        """Whether x is the tokens of the image or video alone, in their rows and columns."""
        return self.reaches_output and self.x.shape[1] == math.prod(self.look.grid)

    def top(self, scores: "Tensor", ratio: float) -> "Tensor":
        """The tokens of the highest scores (B, L), `ratio` of them, rounded down: (B, rows), best first."""
        count = count_of(ratio, scores.shape[1])
        return scores.argsort(dim=-1, descending=True)[:, :count]

    def random(self) -> "Tensor":
        """A number in [0, 1) for each token (B, L), another at each call; each sample has its own, in any batch."""
        return self.look.random(self.x.shape[1])


@functools.lru_cache(maxsize=4096)
def count_of(ratio: float, total: int) -> int:
    """How many of `total` a ratio between 0 and 1 is, rounded down in float32, as the methods' code does."""
    import torch

    return int(torch.tensor(float(ratio), dtype=torch.float32).clamp(0, 1) * total)


class Partial(Decider):
    """What a method that computes part of a step has. The first step is full, whatever is said here.

    observes: what it sees of the attention that tokens pay each other, by token, averaged over heads: "attention", how much
    of it a token gets, averaged over queries, which takes a second softmax beside the fused attention; "values", the norm of
    its values; None, nothing, so that attention stays as it is. selects_tokens: it may ask for some of the tokens of a site,
    which works where one process holds all of them. history: how many features of a site are kept. keeps_age: the
    steps since each token was computed are counted. separate_branches: guidance branches are model calls of their own, so
    that one may be left out. shares_kept: what is kept is kept once for all branches, each of which decides for itself.
    """

    observes: str | None = None
    selects_tokens: bool = False
    history: int = 1
    keeps_age: bool = False
    separate_branches: bool = False
    shares_kept: bool = False

    def decide(self, look: "Look") -> bool:
        """Whether everything is computed."""
        raise NotImplementedError

    def course(self, look: "Look", num_blocks: int) -> Sequence[Range]:
        """What happens to the blocks in a step that is not full, from the first to the last."""
        return [Range(0, num_blocks)]

    def boundaries(self, num_blocks: int) -> "Sequence[tuple[int, int]]":
        """Ranges of blocks whose residual is kept for `course`."""
        return []

    def hidden_after(self, num_blocks: int) -> int | None:
        """After how many blocks the tokens of each step are kept for `course`; None where it takes none."""
        return None

    def work(self, call: Call) -> "str | Tensor":
        """What a site computes in a step that is not full: EVERYTHING, NOTHING, REST, or the tokens (B, rows)."""
        return NOTHING

    def learn_feature(self, call: Call, value: "Tensor", attended: "Tensor | None") -> None:
        """A site has computed its feature, of all tokens; keeps it as the newest of `history`."""
        kept = call.kept
        kept.values = [*kept.values, value][-self.history :]
        if attended is not None:
            kept.attended = [*kept.attended, attended][-self.history :]

    def learn_tokens(self, call: Call, tokens: "Tensor") -> None:
        """A site has computed its feature of all tokens; these (B, L, D) are the tokens after it."""

    def forecast(self, call: Call, values: "Sequence[Tensor]") -> "Tensor":
        """What stands for a feature, or for the attention of a fused site, that is not computed: the last one."""
        return values[-1]

    def refresh(self, call: Call, rows: "Tensor", fresh: "Tensor") -> "Tensor":
        """The feature where some tokens (B, rows) are computed, fresh (B, rows, D): those written into the kept one."""
        return write_rows(call.kept.value, rows, fresh)

    def from_leader(self, look: "Look") -> "Tensor | None":
        """The output of a guidance branch, made of that of the leading one, `look.leading`; None to compute it."""
        return None


def take_rows(x: "Tensor", rows: "Tensor") -> "Tensor":
    """Some tokens (B, rows) of all: (B, L, D) -> (B, rows, D)."""
    return x[_samples(rows), rows]


def write_rows(x: "Tensor", rows: "Tensor", fresh: "Tensor") -> "Tensor":
    """Write tokens (B, rows) into all, in place: (B, rows, D) into (B, L, D)."""
    return x.index_put_((_samples(rows), rows), fresh)


def _samples(rows: "Tensor") -> "Tensor":
    """Numbers of the samples (B, 1): with these, whole tokens are copied, which on a CPU takes a third of gather's time."""
    import torch

    return torch.arange(len(rows), device=rows.device).unsqueeze(1)
