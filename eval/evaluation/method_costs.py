"""Costs of methods: what deciding and forecasting take beside a full step, and what is kept, for every method of a model."""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cache_dic import METHODS, Cache, Run, UserError, make_cache
from cache_dic.engine import Forecast
from cache_dic.plan import OpenPlan
from evaluation.backbones import BACKBONES, PACKAGES, count_case, workload
from evaluation.cells import COSTS_HEADER, cost_cells, cost_errors
from evaluation.steps import take_step
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.records import conditions
from seerkit.io.tables import text_table
from seerkit.sampling.workload import Backbone, Case

FULL_STEPS = (0, 1, 2, 5, 8)
"""Steps that are full in what is timed; two forecasts lie between later ones."""

NUM_TAKEN = 11
"""Steps taken of each run; the first four, warm-up, are not timed."""

FIRST_TIMED = 4


class Clock:
    """Seconds of the calls that it is wrapped around."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **given: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **given)
            self.seconds += time.perf_counter() - start
            return result

        return call


class Scripted:
    """A decider whose decisions are made and timed, and then replaced by FULL_STEPS."""

    def __init__(self, decider: Any, clock: Clock) -> None:
        self._decider, self._decide = decider, clock.timed(decider.decide)
        self.learn = clock.timed(decider.learn)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decider, name)

    def decide(self, look: Any) -> bool:
        self._decide(look)
        return look.step in FULL_STEPS


def methods_of(model: str, asked: list[str] | None) -> dict[str, Cache]:
    """By method, the cache of its first published row for a model; without those that cannot be had there, and those that
    compute part of a step, whose forecasts are not one thing (`evaluation.partial_steps`)."""
    caches = {}
    for name in asked or METHODS:
        if name == "uncached" or (not asked and METHODS[name].engine == "partial"):
            continue
        if METHODS[name].engine == "partial":
            raise UserError(f"method {name!r} computes part of its steps; time them with eval/partial_steps.py")
        try:
            caches[name] = make_cache(name, preset=PACKAGES[model], model=model)
        except UserError:
            if asked:
                raise
    return caches


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record that the flags of method_costs.py ask for."""
    if args.threads:
        torch.set_num_threads(args.threads)
    backbone, dtype = BACKBONES[args.model], torch_dtype(args.precision)
    with torch.device("meta"):
        whole = backbone.build(workload(args.model), dtype)
    torch.manual_seed(0)
    timed = workload(args.model, depth=args.depth, height=args.height, width=args.width, frames=args.num_frames)
    case = backbone.build(timed, dtype)
    caches = methods_of(args.model, args.methods)
    full_s = median(_full_steps(case, backbone))
    rows = []
    for name, cache in tqdm(caches.items(), unit="method", disable=args.json):
        try:
            rows.append(
                {
                    "method": name,
                    "label": cache.label,
                    **_counts(cache, whole, backbone),
                    **_times(cache, case, backbone),
                }
            )
        except UserError as error:
            rows.append({"method": name, "label": cache.label, "error": str(error)})
    return {
        "command": "eval/method_costs.py",
        "settings": {
            "model": args.model,
            "precision": args.precision,
            "timed": {"depth": args.depth, "tokens": case.model.tokens(case.latents).length, "rows": case.rows},
            "counted": {"tokens": whole.model.tokens(whole.latents).length, "rows": whole.rows},
        },
        "units": "decide_s, forecast_s: seconds of one step's decision and of one forecast in place of the blocks, medians; "
        "kept_bytes, flops_ratio: by count at full size",
        "full_step_s": full_s,
        "rows": rows,
        "conditions": conditions(torch.device("cpu"), dtype),
    }


def _full_steps(case: Case, backbone: Backbone) -> list[float]:
    """Seconds of uncached steps, the first dropped."""
    timesteps = backbone.timesteps(case, backbone.num_steps)
    run = make_cache("uncached").start(case.model, case.latents, timesteps, **case.conditions)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        take_step(case, run, timesteps)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _counts(cache: Cache, whole: Case, backbone: Backbone) -> dict[str, Any]:
    """At full size: features kept, and operations of a forecast step of the model, the engine's own apart."""
    counted = count_case(backbone, whole, cache, backbone.num_steps)
    return {
        "engine": cache.engine,
        "decided": counted.get("decided", "beforehand"),
        "kept_bytes": counted["kept_bytes"][cache.engine],
        "flops_ratio": counted["flops_ratio"],
        "flops_ratio_bounds": counted.get("flops_ratio_bounds"),
        "flops_T_full_step": counted["flops_T_full_step"],
    }


def _times(cache: Cache, case: Case, backbone: Backbone) -> dict[str, Any]:
    """Medians over steps: seconds of a decision, and of what stands for the blocks in a forecast."""
    timesteps = backbone.timesteps(case, backbone.num_steps)
    run = cache.start(case.model, case.latents, timesteps, **case.conditions)
    deciding, forecasting = Clock(), Clock()
    if isinstance(run.plan, OpenPlan):
        run.decider = Scripted(run.decider, deciding)  # type: ignore[assignment]
    _watch_forecasts(run, forecasting)
    decisions, forecasts, whole = [], [], []
    for step in range(backbone.num_steps):
        deciding.seconds = forecasting.seconds = 0.0
        start = time.perf_counter()
        take_step(case, run, timesteps)
        seconds = time.perf_counter() - start
        if step >= FIRST_TIMED:
            decisions.append(deciding.seconds)
            if run.steps[-1]["kind"] == "forecast":
                forecasts.append(forecasting.seconds)
                whole.append(seconds)
        if step >= NUM_TAKEN and len(forecasts) > 1:
            break
    return {
        "decide_s": median(decisions),
        "forecast_s": median(forecasts) if forecasts else None,
        "forecast_step_s": median(whole) if whole else None,
    }


def _watch_forecasts(run: Run, clock: Clock) -> None:
    """Have the engine's forecasts timed, the weights and sums of one and its application."""
    forecast = clock.timed(run.engine.forecast)

    def watched(step: int) -> Forecast:
        advance = forecast(step)

        def timed(x: Tensor) -> Tensor:
            return clock.timed(advance)(x)

        return timed

    run.engine.forecast = watched  # type: ignore[method-assign]


def text(record: dict[str, Any]) -> str:
    """The rows as a table, and what could not be timed."""
    model, full = record["settings"]["model"], record["full_step_s"]
    return "\n".join(
        [
            f"{model}: shares of an uncached step of {full:.3f} s at reduced depth; kept at full size",
            text_table(COSTS_HEADER, cost_cells(record)),
            *cost_errors(record),
        ]
    )
