"""Run several caches on the same inputs: samples, what was computed, latency, memory, each against the uncached run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from cache_dic import Cache, Run
from seerkit.distributed import World
from seerkit.timing import peak_memory, reset_peak_memory, spread, timed

Batch = TypeVar("Batch")
SampleBatch = Callable[[Cache, Batch, Callable[[int, Tensor], None]], tuple[Tensor, Run]]
"""`sample(cache, batch, callback)` -> final latents and the run; the callback is called after every step."""

UNCACHED = "uncached"


@dataclass
class Outcome:
    """What one cache did: latents of all batches on the CPU, the last run's record, seconds a batch."""

    latents: list[Tensor] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def run_caches(
    caches: dict[str, Cache],
    batches: Sequence[Batch],
    sample: SampleBatch,
    *,
    num_steps: int,
    device: torch.device,
    skip: Callable[[str, Batch], bool] = lambda label, batch: False,
    keep: Callable[[str, Batch, Tensor], None] | None = None,
    quiet: bool = False,
) -> dict[str, Outcome]:
    """Sample every batch with every cache, in turn batch by batch so that a drift of the machine's speed falls on all alike.

    The first call, which pays for kernels and memory, is dropped: the cheapest cache goes once before, every one where that
    changes what is compiled; where one call is all there is, it pays itself. skip(label, batch): what is there already.
    keep(label, batch, latents) takes latents as they come, untimed; without it the outcomes hold them. quiet: no progress
    bar.
    """
    outcomes = {label: Outcome() for label in caches}
    wanted = [(batch, label) for batch in batches for label in caches if not skip(label, batch)]
    if not wanted:
        return outcomes
    cheapest = min(caches.values(), key=lambda cache: len(cache.plan(num_steps).full_steps))
    dropped = list(caches.values()) if any(c.engine_settings.static_shapes for c in caches.values()) else [cheapest]
    for cache in dropped if len(wanted) > 1 else ():
        sample(cache, wanted[0][0], lambda *_: None)
    with tqdm(total=len(wanted) * num_steps, unit="step", mininterval=0.5, disable=quiet) as bar:
        for number, (batch, label) in enumerate(wanted, 1):
            bar.set_description(f"{label} {number}/{len(wanted)}")
            cache, outcome = caches[label], outcomes[label]
            reset_peak_memory(device)
            (latents, run), seconds = timed(lambda c=cache, b=batch: sample(c, b, lambda *_: bar.update()), device)
            if keep is None:
                outcome.latents.append(latents.cpu())
            outcome.seconds.append(seconds)
            outcome.peak_bytes = max(outcome.peak_bytes, peak_memory(device))
            outcome.record = run.record()
            if keep is not None:
                keep(label, batch, latents)
    return outcomes


def gather_outcomes(outcomes: dict[str, Outcome], world: World) -> dict[str, Outcome]:
    """Timings of all processes; the record of the first that has one."""
    shares = [outcomes]
    if world.size > 1:
        shares = [None] * world.size
        dist.all_gather_object(shares, outcomes)
    return {
        label: Outcome(
            record=next((share[label].record for share in shares if share[label].record), {}),
            seconds=[s for share in shares for s in share[label].seconds],
            peak_bytes=max(share[label].peak_bytes for share in shares),
        )
        for label in outcomes
    }


def latency(outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any] | None]:
    """Per label: seconds a batch (median, spread), and the ratio of the uncached median to it where there is one.

    None where nothing was timed.
    """
    base = outcomes.get(UNCACHED)
    baseline = spread(base.seconds)["median_s"] if base is not None and base.seconds else None
    table = {}
    for label, outcome in outcomes.items():
        timing = spread(outcome.seconds) if outcome.seconds else None
        table[label] = timing and {**timing, "ratio": baseline / timing["median_s"] if baseline else None}
    return table
