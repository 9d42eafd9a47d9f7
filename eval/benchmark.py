"""Time full steps, forecast steps and whole runs, cached and not, with the same kernels in one process, on random weights."""

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cache_dic import ENGINES, Cache, Run, make_cache
from evaluation.backbones import (
    BACKBONES,
    Backbone,
    Case,
    Workload,
    add_workload_flags,
    cache_of,
    describe,
    workload_of,
)  # fmt: skip
from seerkit.cli import PRECISIONS, Parser, non_negative_int, positive_int, run_command
from seerkit.compare import UNCACHED, latency, run_caches
from seerkit.distributed import resolve_device
from seerkit.files import write_json
from seerkit.flops import sampling_flops
from seerkit.records import conditions
from seerkit.tables import number, text_table
from seerkit.timing import peak_memory, reset_peak_memory, spread, timed

EXAMPLES = """
python eval/benchmark.py --model debug --device cpu
python eval/benchmark.py --model DiT-XL/2 --device cpu --whole-run --out results/dit/benchmark-cpu.json
python eval/benchmark.py --model DiT-XL/2 --precision bf16 --repeats 50 --whole-run --compile
"""
GOALS = {
    "latency_over_flops": ("latency speed-up / FLOPs speed-up", ">=", 0.95),
    "forecast_over_full": ("forecast step / full step", "<=", 0.02),
    "folding_overhead": ("folding / full step", "<=", 0.05),
    "kept_ratio_order_2": ("kept bytes at order 2, layerwise / folded", ">=", 8.0),
}
NOTE = (
    "random weights; full and forecast steps are timed with their modulation already in the table, whose whole cost stands "
    "apart as modulation_table and is part of both composed runs; the composed cached run takes folding at its dearest"
)


def parse_args(argv: list[str] | None):
    parser = Parser(__doc__, EXAMPLES)
    add_workload_flags(parser, argv)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--threads", type=positive_int, help="of the CPU (default: torch's choice)")
    parser.add_argument("--repeats", type=positive_int, default=10, help="timings kept of every kind of step")
    parser.add_argument("--dropped", type=non_negative_int, default=1, help="timings dropped before them")
    parser.add_argument("--whole-run", action="store_true", help="time whole sampling runs in turn, too (much longer)")
    parser.add_argument("--whole-repeats", type=positive_int, default=3, help="whole runs of either kind")
    parser.add_argument("--compile", action="store_true", help="torch.compile the blocks, each full step one graph")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="of weights and inputs")
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")
    parser.add_argument("--out", type=Path, help="JSON file for the record")
    args = parser.parse_args(argv)
    if args.engine != "folded":
        parser.error(f"--engine {args.engine} has no effect here: all engines are timed, and whole runs are folded")
    if args.telemetry:
        parser.error("--telemetry adds work to full steps; time without it")
    return args


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is timed, and on what."""

    case: Case
    timesteps: Tensor  # (S,), in sampling order
    device: torch.device
    repeats: int
    dropped: int
    tick: Callable[[], object]  # called once a timing

    @property
    def num_timings(self) -> int:
        return self.repeats + self.dropped

    def start(self, cache: Cache) -> Run:
        return cache.start(self.case.model, self.case.latents, self.timesteps, **self.case.conditions)

    def take(self, run: Run) -> float:
        """Seconds of the next step of a run, its rows of the modulation table being there already."""
        step = len(run.steps)
        touch_table(run, step)
        t = self.timesteps[step].expand(self.case.rows)

        def call() -> Tensor:
            return self.case.model(self.case.latents, t, **self.case.conditions, cache=run.at(step))

        return timed(call, self.device)[1]

    def summary(self, seconds: list[float]) -> dict[str, Any]:
        return spread(seconds[self.dropped :])


def touch_table(run: Run, step: int) -> None:
    """Have the rows of the modulation table computed that this step of a run reads."""
    run.table.at(step)
    if run.cache.engine == "folded" and run.plan.is_full(step):
        gated = list(run.plan.targets[step])
    elif run.cache.engine == "layerwise" and not run.plan.is_full(step):
        gated = [step]
    else:
        gated = []
    if gated:
        run.table.gates(gated)


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
    most_sources = max(len(row) for row in plan.weights.values())
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
            steady = not plan.is_full(step) and len(plan.weights[step]) == most_sources
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


def time_steps(bench: Bench, cache: Cache) -> dict[str, Any]:
    """Timings of the record: full steps with and without folding, forecast steps by engine, tables; peak memory."""
    engines = ["folded", *(name for name in ENGINES if name != "folded")]  # folded first: a CPU's peak only ever grows
    forecast, peak = {}, {}
    for name in engines:
        reset_peak_memory(bench.device)
        pairs, forecasts = time_engine(
            bench, replace(cache, engine=name), pairs=bench.num_timings if name == "folded" else 0
        )
        forecast[name], peak[name] = bench.summary(forecasts), peak_memory(bench.device)
        if name == "folded":
            plain, folded = (bench.summary(list(seconds)) for seconds in zip(*pairs, strict=True))
            ratios = [with_folding / without - 1 for without, with_folding in pairs[bench.dropped :]]
    return {
        "full_step": {"plain": plain, "folded": folded},
        "folding_overhead": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "forecast_step": forecast,
        "modulation_table": {
            UNCACHED: bench.summary(time_table(bench, make_cache("uncached"))),
            "folded": bench.summary(time_table(bench, cache)),
        },
        "peak_bytes": peak,
        "peak_bytes_of": "allocated on the device"
        if bench.device.type == "cuda"
        else "the process so far, in this order",
    }


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


def judge(values: dict[str, float | None]) -> dict[str, dict[str, Any]]:
    """Every goal with the value reached; `met` is None where there is no value."""
    rows = {}
    for key, (name, relation, bound) in GOALS.items():
        value = values[key]
        met = None if value is None else (value >= bound if relation == ">=" else value <= bound)
        rows[key] = {"name": name, "goal": f"{relation} {bound:g}", "value": value, "met": met}
    return rows


@torch.inference_mode()
def measure(args) -> dict[str, Any]:
    """The record of a benchmark."""
    device, dtype = resolve_device(args.device), PRECISIONS[args.precision]
    if args.threads:
        torch.set_num_threads(args.threads)
    backbone, workload, cache = BACKBONES[args.model], workload_of(args), cache_of(args)
    if not cache.plan(args.num_steps).forecast_steps:
        raise ValueError(
            f"{cache.label} forecasts none of {args.num_steps} steps; choose a larger interval or more steps"
        )
    torch.manual_seed(args.seed)
    with torch.device(device):
        case = backbone.build(workload).to(dtype)
    if args.compile:
        case.model.blocks.compile(fullgraph=True, dynamic=False)
        cache = replace(cache, engine_settings=replace(cache.engine_settings, static_shapes=True))
    counts = sampling_flops(case.model, cache, args.num_steps, case.latents, **case.conditions)

    # Pairs, forecasts of every engine, two tables.
    kinds = 1 + len(ENGINES) + 2
    with tqdm(total=kinds * (args.repeats + args.dropped), unit="timing", desc="steps", mininterval=0.5) as bar:
        bench = Bench(
            case=case,
            timesteps=backbone.timesteps(args.num_steps).to(device),
            device=device,
            repeats=args.repeats,
            dropped=args.dropped,
            tick=bar.update,
        )
        timings = time_steps(bench, cache)
    together = composed(timings, cache, args.num_steps)
    whole = time_whole_runs(backbone, workload, bench, cache, args.whole_repeats) if args.whole_run else None
    measured = whole[cache.label]["ratio"] if whole else None
    speedup = measured or together["speedup"]
    plain = timings["full_step"]["plain"]["median_s"]
    return {
        "command": "eval/benchmark.py",
        "weights": "random",
        "label": cache.label,
        "settings": {**describe(args, case), "compile": args.compile, "seed": args.seed, "dropped": args.dropped},
        "note": NOTE,
        "flops": counts,
        **timings,
        "composed_run": together,
        "whole_run": whole,
        "speedup": {"measured": measured, "composed": together["speedup"], "flops": counts["flops_ratio"]},
        "goals": judge(
            {
                "latency_over_flops": speedup / counts["flops_ratio"],
                "forecast_over_full": timings["forecast_step"]["folded"]["median_s"] / plain,
                "folding_overhead": timings["folding_overhead"]["median"],
                "kept_ratio_order_2": kept_ratio(cache, args.num_steps, case, 2),
            }
        ),
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
    full_steps, made = len(record["flops"]["full_steps"]), record["conditions"]
    return "\n".join(
        [
            f"{s['model']} on random weights, {s['rows']} rows of {s['tokens']} tokens, {made['dtype']}, {made['device']}",
            f"{record['label']}, {full_steps} of {s['num_steps']} steps full",
            text_table(["", "median ms", "min ms", "max ms", "timings", "in full steps"], shown),
            "",
            f"speed-up: measured {number(speedup['measured'], 2, 'x')}, composed {number(speedup['composed'], 2, 'x')}, "
            f"FLOPs {number(speedup['flops'], 2, 'x')}",
            text_table(["goal", "value", "wanted", "met"], goals),
        ]
    )


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    record = measure(args)
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


if __name__ == "__main__":
    run_command(main)
