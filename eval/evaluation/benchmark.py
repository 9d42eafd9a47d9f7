"""Times of steps and whole runs, and what they come to beside the goals of a backbone."""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from cache_dic import ENGINES, Cache, Run, UserError, make_cache
from cache_dic.cache import free_bytes
from cache_dic.errors import shown_bytes
from evaluation.backbones import BACKBONES, count_case
from evaluation.flags import cache_of, describe, workload_of
from evaluation.operations import count_forecast, count_kernels
from evaluation.steps import most_sources, take_step, touch_table
from seerkit.devices.compile import compile_steps
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.timing import peak_memory, reset_peak_memory, spread, timed
from seerkit.io.records import conditions
from seerkit.io.tables import number, text_table
from seerkit.sampling.compare import UNCACHED, latency, run_caches
from seerkit.sampling.workload import Backbone, Case, Workload

GOALS = {
    "latency_over_flops": ("latency speed-up / FLOPs speed-up", ">="),
    "forecast_over_full": ("forecast step / full step", "<="),
    "folding_overhead": ("folding / full step", "<="),
    "kept_ratio_order_2": ("kept bytes at order 2, layerwise / folded", ">="),
    "forecast_operations": ("operations of a forecast step, at any depth", "<="),
    "peak_memory": ("peak memory over that of an uncached run", "<="),
}
"""What is wanted of every backbone that names a bound for it."""
NOTE = (
    "random weights; full and forecast steps are timed with their modulation already in the table, whose whole cost stands "
    "apart as modulation_table and is part of both composed runs; the composed cached run takes folding at its dearest"
)

ACTIVATIONS = 20
"""Features of a row and token that a full step holds at once, about: the widened ones of a feed-forward layer, attention's."""

TIMED = tuple(name for name, engine in ENGINES.items() if engine.enters_model and not engine.walks)
"""Forms of which a forecast goes through the model's embedding and head, and not through its blocks."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is timed, and on what."""

    case: Case
    timesteps: Tensor  # (S,), in sampling order
    device: torch.device
    repeats: int
    dropped: int
    tick: Callable[[], object]  # called once per timing

    @property
    def num_timings(self) -> int:
        return self.repeats + self.dropped

    def start(self, cache: Cache) -> Run:
        return cache.start(self.case.model, self.case.latents, self.timesteps, **self.case.conditions)

    def take(self, run: Run) -> float:
        """Seconds of the next step of a run, its rows of the modulation table being there already."""
        touch_table(run, len(run.steps))
        return timed(lambda: take_step(self.case, run, self.timesteps), self.device)[1]

    def summary(self, seconds: list[float]) -> dict[str, Any]:
        return spread(seconds[self.dropped :])


class FullSteps:
    """Plain full steps without end: steps of uncached runs, one after the other."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.run = bench.start(make_cache("uncached"))

    def take(self) -> float:
        if len(self.run.steps) == len(self.bench.timesteps):
            self.run = self.bench.start(make_cache("uncached"))
        return self.bench.take(self.run)


def time_engine(bench: Bench, cache: Cache, *, pairs: int) -> tuple[list[tuple[float, float]], list[float]]:
    """Seconds of (plain, cached) full steps taken in turn, `pairs` of them, and of forecast steps, `bench.num_timings`.

    Only steps in the steady state count: full steps that serve the most forecasts, forecasts from the most full steps. Runs
    follow each other until there are enough.
    """
    plan = cache.plan(len(bench.timesteps))
    most_targets = max(len(row) for row in plan.targets.values())
    sources = most_sources(plan)
    plain = FullSteps(bench) if pairs else None
    paired: list[tuple[float, float]] = []
    forecasts: list[float] = []
    while len(paired) < pairs or len(forecasts) < bench.num_timings:
        run = bench.start(cache)
        for step in range(plan.num_steps):
            if len(paired) >= pairs and len(forecasts) >= bench.num_timings:
                break
            if plan.is_full(step) and len(plan.targets[step]) == most_targets and len(paired) < pairs:
                if len(paired) % 2:  # in turn, so that neither is always the one to find warm caches
                    cached = bench.take(run)
                    paired.append((plain.take(), cached))
                else:
                    paired.append((plain.take(), bench.take(run)))
                bench.tick()
                continue
            seconds = bench.take(run)
            steady = not plan.is_full(step) and len(plan.weights[step]) == sources
            if steady and len(forecasts) < bench.num_timings:
                forecasts.append(seconds)
                bench.tick()
    return paired, forecasts


def time_table(bench: Bench, cache: Cache) -> list[float]:
    """Seconds that the modulation table of a whole run costs: the conditions' embedding and all slices of rows."""

    def whole() -> None:
        run = bench.start(cache)
        for step in range(len(bench.timesteps)):
            touch_table(run, step)
            run.table.forget_before(step + 1)

    seconds = []
    for _ in range(bench.num_timings):
        seconds.append(timed(whole, bench.device)[1])
        bench.tick()
    return seconds


def time_steps(bench: Bench, cache: Cache, engines: Sequence[str]) -> dict[str, Any]:
    """Timings of the record: full steps with and without folding, forecast steps by engine, tables."""
    pairs, forecasts = time_engine(bench, cache, pairs=bench.num_timings)
    forecast = {cache.engine: bench.summary(forecasts)}
    for name in engines:
        if name != cache.engine:
            forecast[name] = bench.summary(time_engine(bench, replace(cache, engine=name), pairs=0)[1])
    plain, folded = (bench.summary(list(seconds)) for seconds in zip(*pairs, strict=True))
    return {
        "full_step": {"plain": plain, "folded": folded},
        "folding_overhead": middle([with_folding / without - 1 for without, with_folding in pairs[bench.dropped :]]),
        "forecast_step": forecast,
        "modulation_table": {
            UNCACHED: bench.summary(time_table(bench, make_cache("uncached"))),
            "folded": bench.summary(time_table(bench, cache)),
        },
    }


def middle(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_bytes(bench: Bench, cache: Cache, engines: Sequence[str]) -> dict[str, int] | None:
    """Peak of the memory allocated over a run, weights included: uncached and by engine; None where no device tells."""
    if bench.device.type != "cuda":
        return None
    caches = {UNCACHED: make_cache("uncached"), **{name: replace(cache, engine=name) for name in engines}}
    peaks = {}
    for name, chosen in caches.items():
        reset_peak_memory(bench.device)
        run = bench.start(chosen)
        for _ in bench.timesteps:
            bench.take(run)
        peaks[name] = peak_memory(bench.device)
        del run  # before the next one is measured
    return peaks


def time_reference(bench: Bench, reference: tuple[nn.Module, dict[str, Any]], *, compiled: bool) -> dict[str, Any]:
    """Full steps of the public implementation and of ours, uncached, taken in turn, and ours over theirs."""
    model, arguments = reference
    if compiled:
        model.compile(dynamic=False)  # its graph may break: diffusers counts the tokens of experts on the host
    plain = FullSteps(bench)
    pairs = []
    for _ in range(bench.num_timings):
        pairs.append((plain.take(), timed(lambda: model(**arguments), bench.device)[1]))
        bench.tick()
    ours, theirs = (bench.summary(list(seconds)) for seconds in zip(*pairs, strict=True))
    ratios = [mine / other for mine, other in pairs[bench.dropped :]]
    return {"ours": ours, "theirs": theirs, "ours_over_theirs": middle(ratios)}


def count_by_depth(
    backbone: Backbone, workload: Workload, dtype: torch.dtype, cache: Cache, num_steps: int
) -> list[dict[str, Any]]:
    """Operations of a forecast step by engine, counted on the meta device: at the depth timed, and at the family's deepest."""
    rows = []
    for depth in (workload.depth, backbone.deepest):
        with torch.device("meta"):
            case = backbone.build(replace(workload, depth=depth), dtype)
        timesteps = backbone.timesteps(case, num_steps).to("meta")
        engines = {name: replace(cache, engine=name, memory_limit=None) for name in TIMED}
        operations = {name: count_forecast(case, chosen, timesteps) for name, chosen in engines.items()}
        rows.append({"sites": case.model.tokens(case.latents).num_sites, **operations})
    return rows


def composed(timings: dict[str, Any], cache: Cache, num_steps: int) -> dict[str, float]:
    """Seconds of an uncached and of a cached run put together from the medians of their parts, and their ratio."""
    plan = cache.plan(num_steps)
    folding = sum(1 for step in plan.full_steps if plan.targets[step])
    plain = timings["full_step"]["plain"]["median_s"]
    table = {name: timing["median_s"] for name, timing in timings["modulation_table"].items()}
    uncached_s = num_steps * plain + table[UNCACHED]
    cached_s = (
        folding * plain * (1 + timings["folding_overhead"]["median"])
        + (len(plan.full_steps) - folding) * plain
        + len(plan.forecast_steps) * timings["forecast_step"]["folded"]["median_s"]
        + table["folded"]
    )
    return {"uncached_s": uncached_s, "cached_s": cached_s, "speedup": uncached_s / cached_s}


def time_whole_runs(
    backbone: Backbone, workload: Workload, bench: Bench, cache: Cache, repeats: int
) -> dict[str, dict[str, Any]]:
    """Latency of uncached and cached sampling runs, taken in turn after one that is dropped."""
    num_steps = len(bench.timesteps)

    def sample(chosen: Cache, _: int, callback: Callable[[int, Tensor], None]) -> tuple[Tensor, Run]:
        return backbone.sample(bench.case, workload, num_steps, chosen, callback)

    caches = {UNCACHED: make_cache("uncached"), cache.label: cache}
    outcomes = run_caches(caches, range(repeats), sample, num_steps=num_steps, device=bench.device)
    return {label: {**row, "peak_bytes": outcomes[label].peak_bytes} for label, row in latency(outcomes).items()}


def kept_ratio(cache: Cache, num_steps: int, case: Case, max_order: int) -> float | None:
    """How many times more the layerwise engine keeps at an order; None for a forecaster without orders."""
    if not hasattr(cache.forecaster, "max_order"):
        return None
    kept = replace(cache, forecaster=replace(cache.forecaster, max_order=max_order)).kept_bytes(
        num_steps, case.model.tokens(case.latents)
    )
    return kept["layerwise"] / kept["folded"]


def judge(values: Mapping[str, float | None], bounds: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Every goal of the backbone with the value reached; `met` is None where there is no value."""
    rows = {}
    for key, bound in bounds.items():
        (name, relation), value = GOALS[key], values[key]
        met = None if value is None else (value >= bound if relation == ">=" else value <= bound)
        rows[key] = {"name": name, "goal": f"{relation} {bound:g}", "value": value, "met": met}
    return rows


def check_memory(
    backbone: Backbone, workload: Workload, dtype: torch.dtype, device: torch.device, *, with_reference: bool
) -> None:
    """UserError for what a device cannot hold, before anything is allocated, and for a reference that there is not."""
    with torch.device("meta"):
        case = backbone.build(workload, dtype)
        if with_reference and backbone.reference(case) is None:
            raise UserError(
                f"--against-diffusers has no effect on {backbone.name}, of which there is no model to compare with"
            )
    tokens = case.model.tokens(case.latents)
    weights = sum(weight.nbytes for weight in case.model.parameters())
    inputs = sum(tensor.nbytes for tensor in (case.latents, *case.conditions.values()))
    activations = ACTIVATIONS * tokens.batch * tokens.length * tokens.dim * dtype.itemsize
    needed, free = (1 + with_reference) * weights + inputs + activations, free_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"weights, inputs and activations of {backbone.name} take about {shown_bytes(needed)}, and "
            f"{shown_bytes(free)} are free on {device}; take a smaller --depth, size or number of samples"
        )


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record of a benchmark."""
    device, dtype = resolve_device(args.device), torch_dtype(args.precision)
    if args.threads:
        torch.set_num_threads(args.threads)
    backbone, workload, cache = BACKBONES[args.model], workload_of(args), cache_of(args)
    if not cache.plan(args.num_steps).forecast_steps:
        raise UserError(
            f"{cache.label} forecasts none of {args.num_steps} steps; choose a larger interval or more steps"
        )
    check_memory(backbone, workload, dtype, device, with_reference=args.against_diffusers)
    torch.manual_seed(args.seed)
    with torch.device(device):
        case = backbone.build(workload, dtype)
        reference = backbone.reference(case) if args.against_diffusers else None
    counts = count_case(backbone, case, cache, args.num_steps)
    operations = count_by_depth(backbone, workload, dtype, cache, args.num_steps)
    engines = TIMED
    if args.compile:
        compile_steps(case.model)
        engines = (cache.engine,)  # the others' forecast steps differ from step to step and would each be compiled

    # Pairs, forecasts of every engine, two tables, pairs against the reference.
    kinds = 1 + len(engines) + 2 + (reference is not None)
    with tqdm(total=kinds * (args.repeats + args.dropped), unit="timing", desc="steps", mininterval=0.5) as bar:
        bench = Bench(
            case=case,
            timesteps=backbone.timesteps(case, args.num_steps).to(device),
            device=device,
            repeats=args.repeats,
            dropped=args.dropped,
            tick=bar.update,
        )
        timings = time_steps(bench, cache, engines)
        against = time_reference(bench, reference, compiled=args.compile) if reference else None
    peaks = peak_bytes(bench, cache, engines)
    kernels = count_forecast(case, cache, bench.timesteps, count_kernels) if device.type == "cuda" else None
    together = composed(timings, cache, args.num_steps)
    whole = time_whole_runs(backbone, workload, bench, cache, args.whole_repeats) if args.whole_run else None
    measured = whole[cache.label]["ratio"] if whole else None
    speedup = measured or together["speedup"]
    plain = timings["full_step"]["plain"]["median_s"]
    reached = {
        "latency_over_flops": speedup / counts["flops_ratio"],
        "forecast_over_full": timings["forecast_step"]["folded"]["median_s"] / plain,
        "folding_overhead": timings["folding_overhead"]["median"],
        "kept_ratio_order_2": kept_ratio(cache, args.num_steps, case, 2),
        "forecast_operations": max(row["folded"] for row in operations),
        "peak_memory": peaks["folded"] / peaks[UNCACHED] - 1 if peaks else None,
    }
    return {
        "command": "eval/benchmark.py",
        "weights": "random",
        "label": cache.label,
        "settings": {**describe(args, case), "compile": args.compile, "seed": args.seed, "dropped": args.dropped},
        "note": NOTE,
        "flops": counts,
        **timings,
        "operations": operations,
        "kernels": kernels,
        "peak_bytes": peaks,
        "diffusers": against,
        "composed_run": together,
        "whole_run": whole,
        "speedup": {"measured": measured, "composed": together["speedup"], "flops": counts["flops_ratio"]},
        "goals": judge(reached, backbone.goals),
        "latency_speedup_used": "measured" if measured else "composed",
        "conditions": conditions(device, dtype),
    }


def text(record: dict[str, Any]) -> str:
    """Timings and goals as tables."""
    s, plain = record["settings"], record["full_step"]["plain"]["median_s"]
    rows = [("full step", record["full_step"]["plain"]), ("full step with folding", record["full_step"]["folded"])]
    rows += [(f"forecast step, {name}", timing) for name, timing in record["forecast_step"].items()]
    rows += [(f"modulation table of a run, {name}", timing) for name, timing in record["modulation_table"].items()]
    rows += [(f"whole run, {label}", timing) for label, timing in (record["whole_run"] or {}).items()]
    if record["diffusers"]:
        rows.append(("full step of diffusers' model", record["diffusers"]["theirs"]))
    shown = [
        [
            name,
            *(number(1e3 * t[key], 2) for key in ("median_s", "min_s", "max_s")),
            str(t["repeats"]),
            number(t["median_s"] / plain, 4),
        ]
        for name, t in rows
    ]
    speedup = record["speedup"]
    goals = [
        [goal["name"], number(goal["value"], 4), goal["goal"], {True: "yes", False: "no", None: "–"}[goal["met"]]]
        for goal in record["goals"].values()
    ]
    operations = [[f"{row['sites']} sites", *(str(row[name]) for name in TIMED)] for row in record["operations"]]
    full_steps, made = len(record["flops"]["full_steps"]), record["conditions"]
    return "\n".join(
        [
            f"{s['model']} on random weights, {s['rows']} rows of {s['tokens']} tokens, {made['dtype']}, {made['device']}",
            f"{record['label']}, {full_steps} of {s['num_steps']} steps full",
            text_table(["", "median ms", "min ms", "max ms", "timings", "in full steps"], shown),
            "",
            f"speed-up: measured {number(speedup['measured'], 2, 'x')}, composed {number(speedup['composed'], 2, 'x')}, "
            f"FLOPs {number(speedup['flops'], 2, 'x')}",
            text_table(["operations of a forecast step", *TIMED], operations),
            *(f"peak memory, {name}: {size / 2**30:.2f} GiB" for name, size in (record["peak_bytes"] or {}).items()),
            "",
            text_table(["goal", "value", "wanted", "met"], goals),
        ]
    )
