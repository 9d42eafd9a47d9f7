"""Wall-clock time of steps that compute part of a model against their share of the FLOPs, for every method that has such."""

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cache_dic import METHODS, Cache, UserError, make_cache
from cache_dic.partial_run import OBSERVERS, PartialRun
from evaluation.backbones import BACKBONES, PACKAGES, workload
from evaluation.benchmark import Bench, FullSteps, check_memory, middle
from evaluation.cells import PARTIAL_HEADER, PARTIAL_MEANING, cost_errors, partial_cells
from evaluation.steps import take_step
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.timing import timed
from seerkit.io.records import conditions
from seerkit.io.tables import text_table
from seerkit.sampling.flops import partial_steps
from seerkit.sampling.workload import Backbone, Case, Workload

KINDS = ("full", "partial", "forecast")
"""Of steps, by what a record calls them."""


def methods_of(model: str, asked: Sequence[str] | None) -> dict[str, Cache]:
    """By method, the cache of its first published row for a model; without those that cannot be had there."""
    caches = {}
    for name in asked or [name for name, method in METHODS.items() if method.engine == "partial"]:
        try:
            caches[name] = make_cache(name, preset=PACKAGES[model], model=model)
        except UserError:
            if asked:
                raise
    return caches


@dataclass(frozen=True)
class Course:
    """What the steps of a run of a method will be: kind and share of a full step's FLOPs, by step."""

    kinds: Sequence[str]
    shares: Sequence[float]

    @classmethod
    def of(cls, cache: Cache, case: Case, timesteps: Tensor) -> "Course":
        """Of a model on the meta device."""
        run, _, flops = partial_steps(case.model, cache, len(timesteps), case.latents, case.conditions, timesteps)
        full, _ = case.model.step_flops(case.latents, **case.conditions)
        return cls([entry["kind"] for entry in run.steps], [step / full for step in flops])

    def facts(self) -> dict[str, Any]:
        """By kind, how many steps and their shares of the FLOPs; and the ratio of a whole run."""
        counts = Counter(self.kinds)
        return {
            "num_steps": len(self.kinds),
            "flops_ratio": len(self.kinds) / sum(self.shares),
            "kinds": {
                kind: {"steps": counts[kind], "flops": middle(self.of_kind(kind))} for kind in KINDS if counts[kind]
            },
        }

    def of_kind(self, kind: str) -> list[float]:
        return [share for share, other in zip(self.shares, self.kinds, strict=True) if other == kind]


@dataclass
class Pair:
    """A step beside an uncached one, (cached, uncached) each: wall-clock and processor seconds.

    share: of a full step's FLOPs. observing_s: seconds that looking at attention took.
    """

    seconds: tuple[float, float]
    processor: tuple[float, float]
    share: float
    observing_s: float = 0.0


@dataclass
class Stopwatch:
    """Seconds of looking at attention since it was last read."""

    device: torch.device
    seconds: float = 0.0

    def read(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While it lasts, whatever looks at attention is timed."""

        def watched(observe: Any) -> Any:
            def call(*args: Any) -> Tensor:
                seen, seconds = timed(lambda: observe(*args), self.device)
                self.seconds += seconds
                return seen

            return call

        plain = dict(OBSERVERS)
        OBSERVERS.update({name: watched(observe) for name, observe in plain.items()})
        try:
            yield
        finally:
            OBSERVERS.update(plain)


@dataclass
class Timings:
    """Pairs by kind of step, until there are enough of each."""

    bench: Bench
    plain: FullSteps
    by_kind: dict[str, list[Pair]] = field(default_factory=dict)

    def take(self, cache: Cache, course: Course) -> None:
        """Take the steps of a run, each kind's in turn with uncached ones, as far as they are needed.

        What a first step pays for, kernels and memory, is in the first timings of a kind, which are dropped.
        """
        run, watch = self.bench.start(cache), Stopwatch(self.bench.device)
        assert isinstance(run, PartialRun), "of a method that computes part of a step"
        wanted = {kind: min(self.bench.num_timings, count) for kind, count in Counter(course.kinds).items()}
        with watch.watching():
            for kind, share in zip(course.kinds, course.shares, strict=True):
                if all(len(self.by_kind.get(kind, ())) >= count for kind, count in wanted.items()):
                    return
                pairs = self.by_kind.setdefault(kind, [])
                if len(pairs) >= wanted[kind]:
                    run.table.at(len(run.steps))
                    take_step(self.bench.case, run, self.bench.timesteps)
                    continue
                watch.read()
                # In turn, so that neither is always the one to find warm caches.
                order = [self._plain, lambda: self._of(run)][:: -1 if len(pairs) % 2 else 1]
                taken = [one() for one in order][:: -1 if len(pairs) % 2 else 1]
                (plain, plain_processor), (own, processor) = taken
                assert run.steps[-1]["kind"] == kind, "a run is as it was counted"
                pairs.append(Pair((own, plain), (processor, plain_processor), share, watch.read()))
                self.bench.tick()

    def _plain(self) -> tuple[float, float]:
        return with_processor(self.plain.take)

    def _of(self, run: PartialRun) -> tuple[float, float]:
        return with_processor(lambda: self.bench.take(run))

    def summary(self) -> dict[str, dict[str, Any]]:
        """By kind of step, its shares of the uncached step taken beside it."""
        kept = {kind: pairs[self.bench.dropped :] or pairs for kind, pairs in self.by_kind.items()}
        return {
            kind: {
                "timings": len(kept[kind]),
                "time": middle([pair.seconds[0] / pair.seconds[1] for pair in kept[kind]]),
                "processor_time": middle([pair.processor[0] / pair.processor[1] for pair in kept[kind]]),
                "observing": middle([pair.observing_s / pair.seconds[1] for pair in kept[kind]]),
                "flops": middle([pair.share for pair in kept[kind]]),
            }
            for kind in KINDS
            if kind in kept
        }


def with_processor(take: Any) -> tuple[float, float]:
    """The seconds that a step says it took, and those of processors of this process meanwhile."""
    begun = time.process_time()
    seconds = take()
    return seconds, time.process_time() - begun


def _setup(args: argparse.Namespace) -> tuple[Backbone, Workload, Case]:
    """The backbone, what is asked of it, and its model on the meta device."""
    backbone = BACKBONES[args.model]
    asked = workload(args.model, depth=args.depth, height=args.height, width=args.width, frames=args.num_frames)
    with torch.device("meta"):
        return backbone, asked, backbone.build(asked, torch_dtype(args.precision))


def describe(args: argparse.Namespace, case: Case) -> dict[str, Any]:
    """Settings of a record."""
    return {
        "model": args.model,
        "precision": args.precision,
        "depth": args.depth,
        "tokens": case.model.tokens(case.latents).length,
        "rows": case.rows,
        "dropped": args.dropped,
        "repeats": args.repeats,
    }


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """What --dry-run prints."""
    backbone, _, case = _setup(args)
    caches, timesteps = methods_of(args.model, args.methods), backbone.timesteps(case, backbone.num_steps)
    rows = [
        {"method": name, "label": cache.label, **Course.of(cache, case, timesteps).facts()}
        for name, cache in caches.items()
    ]
    return {"settings": describe(args, case), "rows": rows}


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record that the flags of partial_steps.py ask for."""
    device, dtype = resolve_device(args.device), torch_dtype(args.precision)
    if args.threads:
        torch.set_num_threads(args.threads)
    backbone, asked, on_meta = _setup(args)
    check_memory(backbone, asked, dtype, device, with_reference=False)
    caches, load = methods_of(args.model, args.methods), os.getloadavg()[0]
    torch.manual_seed(0)
    with torch.device(device):
        case = backbone.build(asked, dtype)
    timesteps, rows = backbone.timesteps(case, backbone.num_steps).to(device), []
    with tqdm(unit=" timing", disable=args.json) as bar:
        bench = Bench(
            case=case, timesteps=timesteps, device=device, repeats=args.repeats, dropped=args.dropped, tick=bar.update
        )
        plain = FullSteps(bench)
        for name, cache in caches.items():
            bar.set_description_str(name)  # without a colon, which tqdm adds
            row = {"method": name, "label": cache.label}
            try:
                course, timings = Course.of(cache, on_meta, timesteps), Timings(bench, plain)
                timings.take(cache, course)
                rows.append({**row, **course.facts(), "steps": timings.summary()})
            except UserError as error:
                rows.append({**row, "error": str(error)})
        full_s = statistics.median(plain.take() for _ in range(3))
    return {
        "command": "eval/partial_steps.py",
        "settings": describe(args, case),
        "units": "time, processor_time, observing, flops: shares of an uncached full step, timings of the one taken beside it; "
        "kinds: of a whole run, by count",
        "full_step_s": full_s,
        "machine": {"processors": os.cpu_count(), "load_before": load},
        "rows": rows,
        "conditions": conditions(device, dtype),
    }


def text(record: Mapping[str, Any]) -> str:
    """The rows as a table, and what could not be timed."""
    s = record["settings"]
    return "\n".join(
        [
            f"{s['model']} on random weights, {s['rows']} rows of {s['tokens']} tokens: shares of an uncached step of "
            f"{record['full_step_s']:.3f} s",
            text_table(PARTIAL_HEADER, partial_cells(record)),
            PARTIAL_MEANING,
            *cost_errors(record),
        ]
    )
