"""ClusCa (arXiv 2509.10312; Shenyi-Z/Cache4Diffusion @ 91a1949): between TaylorSeer's full steps one token of each cluster goes
through the MLPs, and what it gives is written into the factors of the forecast."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from cache_dic.forecast import check_order
from cache_dic.partial import MLP, NOTHING, Call, Partial, take_rows, write_rows
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.look import Look

log = logging.getLogger("cache_dic")

TOLERANCE = 1e-4
"""Relative, by which centroids may differ from the means of their clusters when k-means stops."""

DIT = {"max_order": 4, "warmup_steps": 2, "rho": 0.0, "iterations": 100}
PRESETS: dict[str, tuple[dict[str, Any], ...]] = {
    "dit": tuple({"interval": n, **DIT} for n in (4, 5)),
    "flux": tuple({"interval": n, "max_order": o} for n, o in ((5, 1), (4, 2), (6, 1))),
    "hunyuan_video": ({"interval": 5, "warmup_steps": 1, "num_clusters": 32, "rho": 0.01},),
    "hidream": ({"interval": 4, "max_order": 2, "warmup_steps": 1},),
    "wan": ({"interval": 5, "warmup_steps": 1},),
    "*": ({"interval": 4},),
}


class Clusters(NamedTuple):
    """Of the tokens of a stream: labels (B, L), centroids (B, K, D)."""

    labels: "Tensor"
    centroids: "Tensor"


@register("clusca", presets=PRESETS, paper="arXiv 2509.10312")
@dataclass(kw_only=True)
class ClusCa(Partial):
    """interval, max_order, warmup_steps: TaylorSeer's. num_clusters: of the tokens of a stream, by k-means on those after its
    last MLP at full steps, of at most so many iterations. rho: how far, of 1, a feature of the stream that reaches the output
    is moved towards the fresh one of its cluster.

    As released: what is written belongs to its step, the slope that is added to it to the last full one; the next full step
    takes its differences from it. Each MLP draws tokens anew. A cluster without tokens computes token 0, whose feature then
    counts once more in token 0's own cluster, and its centroid moves to 0. The text's MLPs are computed, though nothing reads
    the text in such a step. Fused blocks are forecast whole. Not as released: the k-means of a sample stops for itself, not
    when those of the whole batch do, and centroids are in float32 at least.

    Released for DiT, FLUX and HunyuanVideo; elsewhere it carries over: every kind of MLP has clusters of its own. Their
    distances take 3 · tokens · clusters · width operations an iteration, which are not counted.
    """

    interval: int
    max_order: int = 1
    warmup_steps: int = 3
    num_clusters: int = 16
    rho: float = 0.005
    iterations: int = 10
    clusters: dict[str, Clusters] = field(init=False, default_factory=dict)
    selects_tokens = True

    def __post_init__(self) -> None:
        integer("interval", self.interval, at_least=1, at_most=MAX_STEPS)
        check_order(self.max_order)
        integer("warmup_steps", self.warmup_steps, at_least=1, at_most=MAX_STEPS)
        integer("num_clusters", self.num_clusters, at_least=1, at_most=2**16)
        number("rho", self.rho, at_least=0, at_most=1)
        integer("iterations", self.iterations, at_least=1, at_most=10_000)

    def decide(self, look: "Look") -> bool:
        return look.step < self.warmup_steps or look.since >= self.interval

    def work(self, call: Call) -> "str | Tensor":
        if call.kind != MLP:
            return NOTHING
        return one_of_each(self.clusters[call.name].labels, call.random(), self.num_clusters)

    # ----------------------------------------------------------------------------------------------------- Taylor factors

    def learn_feature(self, call: Call, value: "Tensor", attended: "Tensor | None") -> None:
        """Keeps the factors of the Taylor sum, order 0 first."""
        new = [value]
        if call.look.step > self.warmup_steps - 2:
            new += call.kept.values[: self.max_order]
            for order in range(1, len(new)):
                new[order] = (new[order - 1] - new[order]) / call.look.since
        call.kept.values = new

    def forecast(self, call: Call, values: "list[Tensor]") -> "Tensor":  # type: ignore[override]
        """Σ_i values[i] · x^i / i!, x steps after the last full one."""
        total, weight = values[0], 1.0
        for order, factor in enumerate(values[1:], 1):
            weight *= call.look.since / order
            total = total.add(factor, alpha=weight)
        return total

    def refresh(self, call: Call, rows: "Tensor", fresh: "Tensor") -> "Tensor":
        newest = write_rows(call.kept.values[0], rows, fresh)
        if self.rho and call.reaches_output:
            newest.lerp_(of_clusters(self.clusters[call.name].labels, rows, fresh), self.rho)
        return self.forecast(call, call.kept.values)

    # ----------------------------------------------------------------------------------------------------------- clusters

    def learn_tokens(self, call: Call, tokens: "Tensor") -> None:
        """Clusters those after the last MLP of a kind, from the centroids of before or else from tokens that are drawn."""
        if call.kind != MLP or call.layer < call.num_layers - 1:
            return
        if call.name not in self.clusters and self.num_clusters > tokens.shape[1] and call.reaches_output:
            log.warning(
                f"num_clusters = {self.num_clusters} is more than the {tokens.shape[1]} tokens of {call.name}: between full "
                "steps more is computed than at full ones; give fewer"
            )
        if call.name in self.clusters:
            centroids = self.clusters[call.name].centroids
        else:
            drawn = (call.look.random(self.num_clusters) * tokens.shape[1]).long()
            centroids = take_rows(tokens, drawn)
        self.clusters[call.name] = k_means(tokens, centroids, self.iterations)


def k_means(tokens: "Tensor", centroids: "Tensor", iterations: int) -> Clusters:
    """Clusters by L1 distance of tokens (B, L, D), from the centroids (B, K, D) to begin with.

    A row is done, with its centroids as they are, when they are near the means of their clusters. On the meta device all labels
    are 0.
    """
    import torch
    from torch.nn.functional import one_hot

    dtype = torch.promote_types(tokens.dtype, torch.float32)
    tokens, centroids = tokens.to(dtype), centroids.to(dtype)
    labels = torch.zeros(tokens.shape[:2], dtype=torch.int64, device=tokens.device)
    if tokens.is_meta:
        return Clusters(labels, centroids)
    for _ in range(iterations):
        labels = torch.cdist(tokens, centroids, p=1).argmin(dim=-1)
        member = one_hot(labels, centroids.shape[1]).to(dtype)  # (B, L, K)
        means = member.transpose(1, 2) @ tokens / member.sum(dim=1).clamp_min(1).unsqueeze(-1)
        moves = ~torch.isclose(centroids, means, rtol=TOLERANCE).flatten(1).all(dim=1)
        if not moves.any():
            break
        centroids = torch.where(moves[:, None, None], means, centroids)
    return Clusters(labels, centroids)


def one_of_each(labels: "Tensor", scores: "Tensor", num_clusters: int) -> "Tensor":
    """The first token of the highest score in each cluster, token 0 of an empty one: labels and scores (B, L) -> (B, K)."""
    import torch

    batch, length = labels.shape
    best = scores.new_full((batch, num_clusters), -torch.inf).scatter_reduce(1, labels, scores, "amax")
    places = torch.arange(length, device=labels.device).expand_as(labels)
    places = places.masked_fill(scores < best.gather(1, labels), length)
    rows = labels.new_full((batch, num_clusters), length).scatter_reduce(1, labels, places, "amin")
    return rows.masked_fill(rows == length, 0)


def of_clusters(labels: "Tensor", rows: "Tensor", fresh: "Tensor") -> "Tensor":
    """For each token the sum of the fresh features in its cluster: labels (B, L), rows (B, K), fresh (B, K, D) -> (B, L, D)."""
    own = labels.gather(1, rows).unsqueeze(-1).expand_as(fresh)
    return take_rows(fresh.new_zeros(fresh.shape).scatter_add_(1, own, fresh), labels)
