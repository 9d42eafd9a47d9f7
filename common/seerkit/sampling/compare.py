"""Run several caches on the same inputs: samples, what was computed, latency, memory, each against the uncached run."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from cache_dic import Cache, Run
from seerkit.devices.distributed import World, gather
from seerkit.devices.timing import peak_memory, reset_peak_memory, spread, timed
from seerkit.sampling.flops import run_flops, tells_flops

Batch = TypeVar("Batch")
SampleBatch = Callable[[Cache, Batch, Callable[[int, Tensor], None]], tuple[Tensor, Run]]
"""`sample(cache, batch, callback)` -> final latents and the run; the callback is called after every step."""

UNCACHED = "uncached"
log = logging.getLogger("cache_dic")  # which commands show


@dataclass
class Outcome:
    """What one cache did: the last run's record with the most bytes that any has kept, seconds per batch, numbers of samples
    that did not come out finite.

    decided: of full steps that are decided while sampling, by batch, the full steps, operations, and those of the same steps
    uncached, None where the model cannot tell. cold: whether a timing has the first call's work in it, which pays for kernels
    and memory.
    """

    record: dict[str, Any] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    failed: list[int] = field(default_factory=list)
    decided: list[dict[str, Any]] = field(default_factory=list)
    cold: bool = False


def run_caches(
    caches: dict[str, Cache],
    batches: Sequence[Batch],
    sample: SampleBatch,
    *,
    num_steps: int,
    device: torch.device,
    keep: Callable[[str, Batch, Tensor], list[int]] = lambda label, batch, latents: [],
    skip: Callable[[str, Batch], bool] = lambda label, batch: False,
    quiet: bool = False,
) -> dict[str, Outcome]:
    """Sample every batch with every cache, in turn batch by batch so that a drift of the machine's speed falls on all alike.

    keep(label, batch, latents) takes latents as they come, untimed, and tells which samples could not be kept; a cache that
    has any is not sampled further. skip(label, batch): what is there already. quiet: no progress bar.
    The first call pays for kernels and memory. Where caches are compared, it is dropped: the cheapest cache makes a call before
    all timings, or every cache does where that changes what is compiled. A cache alone is not made to wait for timings that
    nobody asked for: its first timing is dropped, unless it is the only one.
    """
    outcomes = {label: Outcome() for label in caches}
    wanted = [(batch, label) for batch in batches for label in caches if not skip(label, batch)]
    if not wanted:
        return outcomes
    compared = len({label for _, label in wanted}) > 1
    for cache in _rehearsed(caches, num_steps) if compared else ():
        log.info(f"rehearsal of {cache.label}, which is not timed")
        sample(cache, wanted[0][0], lambda *_: None)
    with tqdm(total=len(wanted) * num_steps, unit="step", mininterval=0.5, disable=quiet) as bar:
        for number, (batch, label) in enumerate(wanted, 1):
            cache, outcome = caches[label], outcomes[label]
            if outcome.failed:
                bar.update(num_steps)
                continue
            bar.set_description(f"{label} {number}/{len(wanted)}")
            reset_peak_memory(device)
            one = functools.partial(sample, cache, batch, lambda *_: bar.update())
            (latents, run), seconds = timed(one, device)
            outcome.seconds.append(seconds)
            outcome.peak_bytes = max(outcome.peak_bytes, peak_memory(device))
            outcome.record = _with_most_kept(run.record(), [outcome.record])
            if cache.decides:
                flops, uncached = run_flops(run) if tells_flops(run) else (None, None)
                full_steps = outcome.record["full_steps"]
                outcome.decided.append({"full_steps": full_steps, "flops": flops, "flops_uncached": uncached})
            outcome.failed = keep(label, batch, latents)
    for outcome in () if compared else outcomes.values():
        outcome.cold = len(outcome.seconds) == 1
        outcome.seconds = outcome.seconds[1:] or outcome.seconds
    return outcomes


def _rehearsed(caches: dict[str, Cache], num_steps: int) -> list[Cache]:
    """The caches that go once before the others are timed."""
    if any(cache.engine_settings.static_shapes for cache in caches.values()):
        return list(caches.values())
    return [min(caches.values(), key=lambda cache: cache.plan(num_steps).least_full)]


def _with_most_kept(record: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A run's record, with the most bytes that any of the runs has kept: a last batch may have fewer rows."""
    if "kept_bytes" not in record:
        return record
    return {**record, "kept_bytes": max(of["kept_bytes"] for of in (record, *others) if "kept_bytes" in of)}


def of_the_first(outcomes: dict[str, Outcome], world: World) -> dict[str, Outcome]:
    """Outcomes of processes that have all timed the same runs, to be gathered: of others than the first, peaks alone."""
    if world.is_main:
        return outcomes
    return {label: Outcome(peak_bytes=outcome.peak_bytes) for label, outcome in outcomes.items()}


def gather_outcomes(outcomes: dict[str, Outcome], world: World) -> dict[str, Outcome]:
    """Failures and timings of all processes, cold ones where there are no others; the record of the first that has one."""
    shares = gather(outcomes, world)
    together = {}
    for label in outcomes:
        mine = [share[label] for share in shares]
        warm = [outcome for outcome in mine if outcome.seconds and not outcome.cold]
        together[label] = Outcome(
            record=_with_most_kept(
                next((outcome.record for outcome in mine if outcome.record), {}), [o.record for o in mine]
            ),
            seconds=[s for outcome in warm or mine for s in outcome.seconds],
            peak_bytes=max(outcome.peak_bytes for outcome in mine),
            failed=[index for outcome in mine for index in outcome.failed],
            decided=[batch for outcome in mine for batch in outcome.decided],
            cold=not warm and any(outcome.cold for outcome in mine),
        )
    return together


def latency(outcomes: dict[str, Outcome]) -> dict[str, dict[str, Any] | None]:
    """Per label: seconds per batch (median, spread), and the ratio of the uncached median to it where there is one.

    `first_call` says that the only timing has the first call's work in it. None where nothing was timed.
    """
    base = outcomes.get(UNCACHED)
    baseline = spread(base.seconds)["median_s"] if base is not None and base.seconds else None
    table = {}
    for label, outcome in outcomes.items():
        timing = spread(outcome.seconds) if outcome.seconds else None
        table[label] = timing and {
            **timing,
            "ratio": baseline / timing["median_s"] if baseline else None,
            **({"first_call": True} if outcome.cold else {}),
        }
    return table
