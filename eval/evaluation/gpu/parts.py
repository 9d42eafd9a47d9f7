"""What a slice consists of: measurements by name, each made and stored by itself, with about how long it takes."""

import math
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from cache_dic import METHODS, Cache, UserError, make_cache
from cache_dic.plan import OpenPlan
from evaluation.backbones import ROOT, count_case
from evaluation.benchmark import (
    TIMED,
    composed,
    middle,
    time_engine,
    time_reference,
    time_table,
    time_whole_runs,
)
from evaluation.gpu.hooks import CACHE_DIT, HOOKS, STEPS, Rival, time_rival
from evaluation.gpu.pipeline import AROUND, time_around
from evaluation.gpu.roofline import BYTES_COUNTED, forecast_step_work, full_step_work, measure_ceilings
from evaluation.gpu.slices import NO_HOOKS, NO_REFERENCE, Slice
from evaluation.gpu.subject import Subject, memory_of
from evaluation.operations import count_forecast, count_kernels
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.timing import peak_memory, reset_peak_memory, spread
from seerkit.sampling.compare import UNCACHED, run_caches
from seerkit.sampling.flops import run_flops

COMPILING_S, LOADING_S, COUNTING_S = 180.0, 20.0, 20.0
"""About what compiling a model's steps takes, making a model of billions of weights, and counting on the host."""

RUNS = 3
"""Pairs of whole runs, uncached and cached."""


@dataclass(frozen=True)
class Part:
    """A measurement. It takes about as long as so many full steps, and so many seconds besides."""

    name: str
    measure: Callable[[], Any]
    full_steps: float = 0.0
    besides_s: float = 0.0


class Work:
    """The parts of a slice, and of what they make of a model."""

    def __init__(self, one: Slice, settings: dict[str, Any], device: str) -> None:
        self.slice, self.settings, self.device = one, settings, resolve_device(device)
        self.subject = Subject(one, settings, self.device) if one.folder else None
        self.tiny = settings["size"] == "tiny"
        self.parts = _PARTS[one.kind](self)

    @property
    def timings(self) -> int:
        return self.settings["repeats"] + self.settings["dropped"]

    def expected_s(self, part: Part, full_step_s: float) -> float:
        """About how long a part takes; what is tiny takes nothing besides its steps."""
        return part.full_steps * full_step_s + (0.0 if self.tiny else part.besides_s)

    @property
    def setup_s(self) -> float:
        """About how long it takes before the first part of a call."""
        return (LOADING_S if self.subject else 0.0) + (COMPILING_S if self.slice.kind == "compiled" else 0.0)

    @property
    def full_step_s(self) -> float:
        """Of a full step on this device; 0 as long as there is no model on it."""
        return self.subject.full_step_s if self.subject and "case" in vars(self.subject) else 0.0


# ---------------------------------------------------------------------------------------------------- of the device


def _tests(work: Work) -> list[Part]:
    return [Part("pytest", lambda: run_tests(work), besides_s=240)]


def run_tests(work: Work) -> dict[str, Any]:
    """How the tests that need a GPU ended, in a process of their own; with --tiny those of the cache alone."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        chosen = ["-m", "gpu"]
        if work.tiny:
            chosen.append("tests/cache_dic")
        # What the project's own options ask of plugins that may not be there is left out.
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "addopts=--import-mode=importlib",
            "--continue-on-collection-errors",
        ]
        command = [sys.executable, "-m", "pytest", *options, f"--junitxml={report}", *chosen]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True
        )
        if not report.exists():
            told = (done.stdout + done.stderr).strip().splitlines()
            raise UserError(f"pytest ended with code {done.returncode}: {told[-1] if told else 'no word'}")
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    ends = [
        (case, next((end.tag for end in case if end.tag in ("failure", "error", "skipped")), "passed"))
        for case in cases
    ]
    counts = Counter(end for _, end in ends)
    return {
        "passed": counts["passed"],
        "skipped": counts["skipped"],
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case, end in ends if end in ("failure", "error")],
    }


def _ceilings(work: Work) -> list[Part]:
    dtype, repeats = torch_dtype(work.settings["precision"]), work.settings["repeats"]
    return [Part("ceilings", lambda: measure_ceilings(work.device, dtype, repeats, tiny=work.tiny), besides_s=5)]


# -------------------------------------------------------------------------------------------------------- steps, runs


def _plan(subject: Subject) -> tuple[Cache, int]:
    """TaylorSeer as published for a model, and how many of its steps are full."""
    cache = subject.cache()
    return cache, len(cache.plan(subject.num_steps).full_steps)


def _steps(work: Work) -> list[Part]:
    subject = work.subject
    cache, num_full = _plan(subject)
    others = [name for name in TIMED if name != cache.engine]
    return [
        Part("counts", lambda: counts(subject, cache), besides_s=COUNTING_S),
        Part("steps", lambda: steps(subject, cache), 2 * work.timings + num_full),
        *(Part(f"forecast {name}", lambda name=name: forecasts(subject, cache, name), num_full) for name in others),
        Part("memory", lambda: step_memory(subject, cache), num_full),
    ]


def counts(subject: Subject, cache: Cache) -> dict[str, Any]:
    """Operations and bytes of both kinds of step, and of a run; nothing is timed."""
    case = subject.meta
    timesteps = subject.timesteps(case)
    return {
        "full": full_step_work(case, timesteps),
        "forecast": forecast_step_work(case, cache, timesteps),
        "run": count_case(subject.backbone, case, cache, subject.num_steps),
        "rows": case.rows,
        "tokens": case.model.tokens(case.latents).length,
        "sites": case.model.tokens(case.latents).num_sites,
        "parameters": sum(weight.numel() for weight in case.model.parameters()),
        "bytes_counted": BYTES_COUNTED,
    }


@torch.inference_mode()
def steps(subject: Subject, cache: Cache) -> dict[str, Any]:
    """Full steps with and without folding, forecast steps, and what a run is put together from."""
    bench = subject.bench
    pairs, forecast = time_engine(bench, cache, pairs=bench.num_timings)
    plain, folded = (bench.summary(list(seconds)) for seconds in zip(*pairs, strict=True))
    timings = {
        "full_step": {"plain": plain, "folded": folded},
        "folding_overhead": middle([after / before - 1 for before, after in pairs[bench.dropped :]]),
        "forecast_step": {cache.engine: bench.summary(forecast)},
        "modulation_table": {
            UNCACHED: bench.summary(time_table(bench, make_cache("uncached"))),
            "folded": bench.summary(time_table(bench, cache)),
        },
    }
    kernels = (
        count_forecast(bench.case, cache, bench.timesteps, count_kernels) if subject.device.type == "cuda" else None
    )
    return {
        "label": cache.label,
        "num_steps": subject.num_steps,
        **timings,
        "composed_run": composed(timings, cache, subject.num_steps),
        "kernels": kernels,
    }


@torch.inference_mode()
def forecasts(subject: Subject, cache: Cache, engine: str) -> dict[str, Any]:
    """Forecast steps in another form."""
    _, seconds = time_engine(subject.bench, replace(cache, engine=engine), pairs=0)
    return subject.bench.summary(seconds)


@torch.inference_mode()
def step_memory(subject: Subject, cache: Cache) -> dict[str, Any]:
    """Weights, and memory during a full step without a cache."""
    case, bench = subject.case, subject.bench
    run = bench.start(make_cache("uncached"))
    return {
        "weights_bytes": sum(weight.nbytes for weight in case.model.parameters()),
        "full_step": memory_of(lambda: bench.take(run), subject.device),
    }


def _runs(work: Work) -> list[Part]:
    subject = work.subject
    cache, num_full = _plan(subject)
    whole = subject.num_steps + 2 * (num_full + 1)
    pairs = 1 if subject.tiny else RUNS
    others = [name for name in TIMED if name != cache.engine]
    return [
        *(Part(f"pair {number}", lambda: run_pair(subject, cache), whole) for number in range(1, pairs + 1)),
        *(
            Part(
                f"run {name}",
                lambda name=name: run_alone(subject, replace(cache, engine=name)),
                num_full + 1,
            )
            for name in others
        ),
    ]


@torch.inference_mode()
def run_pair(subject: Subject, cache: Cache) -> dict[str, Any]:
    """An uncached run and a cached one, after one that is dropped: seconds, peak memory, and the ratio of the two."""
    runs = time_whole_runs(subject.backbone, subject.workload, subject.bench, cache, 1)
    peak = subject.device.type == "cuda"
    found = {
        name: {"seconds": row["median_s"], "peak_bytes": row["peak_bytes"] if peak else None}
        for name, row in ((UNCACHED, runs[UNCACHED]), ("cached", runs[cache.label]))
    }
    return {"label": cache.label, **found, "ratio": runs[cache.label]["ratio"]}


@torch.inference_mode()
def run_alone(subject: Subject, cache: Cache) -> dict[str, Any]:
    """A run for its memory, in another form; its time has what a first call pays for."""

    def sample(chosen: Cache, _: int, callback: Any) -> Any:
        return subject.backbone.sample(subject.case, subject.workload, subject.num_steps, chosen, callback)

    found = run_caches(
        {cache.label: cache}, [0], sample, num_steps=subject.num_steps, device=subject.device, quiet=True
    )
    (outcome,) = found.values()
    return {
        "label": cache.label,
        "seconds": outcome.seconds[0],
        "peak_bytes": outcome.peak_bytes if subject.device.type == "cuda" else None,
        "kept_bytes": outcome.record["kept_bytes"],
    }


def _compiled(work: Work) -> list[Part]:
    subject = work.subject
    cache, num_full = _plan(subject)
    cache = replace(cache, engine_settings=replace(cache.engine_settings, static_shapes=True))

    def compiled(measure: Callable[[], Any]) -> Callable[[], Any]:
        def call() -> Any:
            subject.compile()
            return measure()

        return call

    parts = [
        Part("steps", compiled(lambda: steps(subject, cache)), 2 * work.timings + num_full),
        Part(
            "pair 1", compiled(lambda: run_pair(subject, cache)), 2 * (subject.num_steps + num_full)
        ),
    ]  # fmt: skip
    if work.slice.folder not in NO_REFERENCE:
        against = compiled(lambda: against_reference(subject, compiled=True))
        parts.append(Part("diffusers' model", against, 2 * work.timings, LOADING_S + COMPILING_S))
    return parts


@torch.inference_mode()
def against_reference(subject: Subject, *, compiled: bool) -> dict[str, Any]:
    """Full steps of ours and of diffusers' model in turn, and what either takes of memory."""
    model, arguments = subject.reference
    if compiled and subject.tiny:
        compiled = False  # it takes minutes
    found = time_reference(subject.bench, (model, arguments), compiled=compiled)
    run = subject.bench.start(make_cache("uncached"))
    memory = {
        "ours": memory_of(lambda: subject.bench.take(run), subject.device),
        "theirs": memory_of(lambda: model(**arguments), subject.device),
    }
    return {**found, "memory": memory}


# ------------------------------------------------------------------------------------------------------------ methods


def _methods(work: Work) -> list[Part]:
    subject = work.subject
    plain = work.timings + 2
    return [
        Part(name, lambda name=name: run_method(subject, name), 0.4 * subject.num_steps + plain)
        for name in METHODS
        if name != "uncached"
    ]


@torch.inference_mode()
def run_method(subject: Subject, name: str) -> dict[str, Any]:
    """A run of a method by steps, beside uncached steps taken in the same process just before.

    total_s: of all steps, the first of each kind, which pays for kernels, counted as the median of its kind.
    """
    cache = subject.cache(name)
    uncached = subject.uncached_step_s()
    reset_peak_memory(subject.device)
    taken = subject.sample(cache)
    peak = peak_memory(subject.device) if subject.device.type == "cuda" else None
    kinds: dict[str, list[float]] = {}
    for entry, seconds in zip(taken.run.steps, taken.seconds, strict=True):
        kinds.setdefault(entry["kind"], []).append(seconds)
    warm = {kind: [median(seconds[1:] or seconds), *seconds[1:]] for kind, seconds in kinds.items()}
    total_s, uncached_s = math.fsum(s for seconds in warm.values() for s in seconds), median(uncached)
    flops, flops_uncached = run_flops(taken.run)
    record = taken.run.record()
    return {
        "label": cache.label,
        "engine": cache.engine,
        "decided": "while sampling" if isinstance(cache.plan(subject.num_steps), OpenPlan) else "beforehand",
        "num_steps": subject.num_steps,
        "kinds": {kind: {"steps": len(seconds), **spread(seconds[1:] or seconds)} for kind, seconds in kinds.items()},
        "uncached_step": spread(uncached),
        "total_s": total_s,
        "ratio": subject.num_steps * uncached_s / total_s,
        "flops_ratio": flops_uncached / flops,
        "kept_bytes": record["kept_bytes"],
        "peak_bytes": peak,
    }


# ------------------------------------------------------------------------------------------------------------- others


def _diffusers(work: Work) -> list[Part]:
    subject = work.subject
    return [
        Part("full step", lambda: against_reference(subject, compiled=False), 2 * work.timings + 3, LOADING_S),
        *_rivals(work, {} if work.slice.folder in NO_HOOKS else HOOKS),
    ]


def _cache_dit(work: Work) -> list[Part]:
    return _rivals(work, CACHE_DIT)


def _rivals(work: Work, rivals: dict[str, Rival]) -> list[Part]:
    return [
        Part(name, lambda rival=rival: time_rival(work.subject, rival), STEPS + 2 * work.timings)
        for name, rival in rivals.items()
    ]


def _pipeline(work: Work) -> list[Part]:
    subject = work.subject
    cache, num_full = _plan(subject)

    def around(piece: Any) -> Callable[[], Any]:
        return lambda: time_around(subject, piece)

    return [
        Part("denoising", lambda: steps(subject, cache), 2 * work.timings + num_full),
        *(Part(piece.label, around(piece), besides_s=LOADING_S) for piece in AROUND[subject.package]),
    ]


_PARTS: dict[str, Callable[[Work], list[Part]]] = {
    "tests": _tests,
    "ceilings": _ceilings,
    "steps": _steps,
    "runs": _runs,
    "compiled": _compiled,
    "methods": _methods,
    "diffusers": _diffusers,
    "cache-dit": _cache_dit,
    "pipeline": _pipeline,
}
