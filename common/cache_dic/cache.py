"""A cache is a recipe; a run is its state for one sampling run and guidance branch; a step of it goes to the model.

    cache = make_cache(method="taylorseer", interval=4, max_order=4, warmup_steps=2)
    run = cache.start(model, latents, timesteps, y=labels)
    for step, t in enumerate(timesteps):
        output = model(latents, t, labels, cache=run.at(step))

Nothing is kept in the model: an interrupted run is thrown away, the next one starts clean.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, Protocol, cast

import torch
from torch import Tensor

from cache_dic.engine import ENGINES, Engine, EngineSettings, Forecast, GateFactors, Recorder, Tokens
from cache_dic.errors import UserError, check_choice, shown, shown_bytes
from cache_dic.forecast import Forecaster
from cache_dic.plan import Plan, describe_steps
from cache_dic.schedule import SCHEDULES, check_num_steps
from cache_dic.settings import check_name, integer, json_value, label_part, values_of
from cache_dic.site import Site

log = logging.getLogger("cache_dic")

LABEL_BYTES = 120
"""The most bytes of a label; a file system's limit for a name is 255, and commands add to it."""


class Table(Protocol):
    """The modulation of every step of a run (`seerkit.layers.modulation.ModulationTable`)."""

    factors: GateFactors | None

    def at(self, step: int) -> Any: ...
    def gates(self, steps: Sequence[int]) -> Tensor: ...
    def forget_before(self, step: int) -> None: ...


class Backbone(Protocol):
    """What a model offers to be cached: it is written as embed, blocks, head, and its blocks call sites.

    TIME: name of the argument of its call that takes the timesteps (B,); the first argument takes the latents.
    """

    TIME: str

    def tokens(self, latents: Tensor) -> Tokens:
        """Shape of the token stream and number of sites for latents of this shape."""

    def modulation_table(
        self, timesteps: Tensor, full_steps: Sequence[int], gated_steps: Sequence[int], **conditions: Any
    ) -> Table:
        """Modulation of full steps, gates of `gated_steps`, for timesteps (S,) in sampling order."""

    def step_flops(self, latents: Tensor, **conditions: Any) -> tuple[int, int]:
        """Operations of the model in a full and in a forecast step."""


class NotAStepError(UserError, AttributeError):
    """Something else was handed to a model call; also what a missing attribute raises, so that `hasattr` answers."""


class NoStep:
    """Not what a model takes as `cache=`: whatever it would ask of a step is refused with the right use."""

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        kind = type(self).__name__
        raise NotAStepError(
            f"a model call takes a step, and this is a {kind}: run = cache.start(model, latents, timesteps, ...); "
            "model(..., cache=run.at(step)), with a run for each sampling run; samplers do it for you, sample(..., cache=cache)"
        )

    __call__ = _refuse
    modulation = static_shapes = property(_refuse)


@dataclass(frozen=True, kw_only=True)
class Cache(NoStep):
    """Schedule, forecaster and engine: everything about caching that is known before a model is.

    schedule: a name in SCHEDULES; schedule_settings its arguments. engine: a name in ENGINES. telemetry: compare a forecast
    with every full step after the first. memory_limit: bytes that runs under way together may keep; None lets them keep and
    hold what the device has free. branches: how many those are, such as the branches of guidance.
    own_schedule: the method's usual one, which its label need not name. default_warmup: nobody asked for this number of
    warm-up steps, so that a run of fewer steps has as many as it has steps.
    """

    method: str
    schedule: str
    schedule_settings: dict[str, Any] = field(default_factory=dict)
    forecaster: Forecaster
    engine: str = "folded"
    engine_settings: EngineSettings = field(default_factory=EngineSettings)
    telemetry: bool = False
    memory_limit: int | None = None
    branches: int = 1
    own_schedule: str | None = None
    default_warmup: bool = False

    def __post_init__(self) -> None:
        check_name(self.method)
        check_choice("engine", self.engine, ENGINES)
        check_choice("schedule", self.schedule, SCHEDULES)
        if self.memory_limit is not None:
            integer("memory_limit", self.memory_limit, at_least=0)
        integer("group_bytes", self.engine_settings.group_bytes, at_least=1)
        dtype = self.engine_settings.accumulator_dtype
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise UserError(
                f"accumulator_dtype = {shown(dtype)} must be a floating dtype of torch, such as torch.float32"
            )
        for name, value in (("telemetry", self.telemetry), ("static_shapes", self.engine_settings.static_shapes)):
            if not isinstance(value, bool):
                raise UserError(f"{name} = {shown(value)} must be True or False")

    @property
    def label(self) -> str:
        """A short string for file names and row labels: `taylorseer-N4-W2-O4`; other settings, other labels.

        The schedule is named only where it is not the method's own, the engine only if it is not folded. How the engine
        stores (`EngineSettings`), what is watched and the memory limit are no part of it.
        """
        of_forecaster = values_of(self.forecaster)
        settings = [*self.schedule_settings.items()]
        settings += [(k, v) for k, v in of_forecaster.items() if (k, v) not in settings]
        parts = [
            self.method,
            *([] if self.schedule in (self.own_schedule, "explicit") else [self.schedule]),
            *(label_part(name, value) for name, value in settings),
            *([] if self.engine == "folded" else [self.engine]),
        ]
        label = "-".join(parts)
        if len(label) <= LABEL_BYTES:
            return label
        digest = hashlib.sha256(label.encode()).hexdigest()[:16]
        return f"{label[: LABEL_BYTES - 17]}-{digest}"

    def plan(self, num_steps: int) -> Plan:
        """Full steps and forecast weights of a run of `num_steps`; UserError where the settings do not fit it."""
        check_num_steps(num_steps)
        settings = self.schedule_settings
        if self.default_warmup and "warmup_steps" in settings:
            settings = {**settings, "warmup_steps": min(settings["warmup_steps"], num_steps)}
        full_steps = SCHEDULES[self.schedule](num_steps, **settings)
        return Plan(num_steps, full_steps, self.forecaster, observed=self.telemetry, method=self.method)

    def kept_bytes(self, num_steps: int, tokens: Tokens) -> dict[str, int]:
        """Bytes of features that each engine would keep, this cache's own among them."""
        return self._kept(self.plan(num_steps), tokens)

    def _kept(self, plan: Plan, tokens: Tokens) -> dict[str, int]:
        return {name: engine.kept_bytes(plan, tokens, self.engine_settings) for name, engine in ENGINES.items()}

    def work_flops(self, num_steps: int, tokens: Tokens) -> int:
        """Operations of the engine over a run: folding and forecasting, 2 per multiply-add."""
        return ENGINES[self.engine].work_flops(self.plan(num_steps), tokens, self.engine_settings)

    def start(self, model: Backbone, latents: Tensor, timesteps: Tensor, **conditions: Any) -> "Run":
        """A fresh run over `timesteps` (S,), in sampling order, for latents and conditions as the model will get them.

        Raises UserError if the model has no sites, the settings do not fit the number of steps, or what the run would keep
        does not fit the device.
        """
        plan, tokens = self.plan(len(timesteps)), model.tokens(latents)
        if tokens.num_sites < 1:
            raise UserError(f"{type(model).__name__} has no sites: there is nothing to cache")
        if tokens.numel < 1:
            raise UserError(f"latents of shape {tuple(latents.shape)} hold no sample; give at least one")
        self.check_memory(plan, tokens, latents.device)
        # A stack engine asks for no gates; the others need those of every step that they predict.
        gated = plan.predicted_steps if self.engine != "stack" else ()
        table = model.modulation_table(timesteps, plan.full_steps, gated, **conditions)
        run = Run(self, plan, tokens, table)
        if latents.is_meta:  # there a run is only counted
            return run
        if not plan.forecast_steps and self.method != "uncached":
            log.warning(
                f"{self.label}: nothing is cached: all {plan.num_steps} steps are full; fewer warm-up steps or a larger "
                "interval leave some to forecast"
            )
        if self.method != "uncached" and log.isEnabledFor(logging.INFO):
            log.info(run.describe(model.step_flops(latents, **conditions)))
        return run

    def _needed(self, plan: Plan, tokens: Tokens) -> dict[str, int]:
        """Bytes that each engine needs of what the limit is for.

        Every branch keeps its features. Where the limit is all that is free, it also covers what one of them holds in a step.
        """
        needed = {name: self.branches * size for name, size in self._kept(plan, tokens).items()}
        if self.memory_limit is None:
            for name, engine in ENGINES.items():
                needed[name] += engine.held_bytes(plan, tokens, self.engine_settings)
        return needed

    def check_memory(self, plan: Plan, tokens: Tokens, device: torch.device) -> None:
        """UserError with the sizes, and the settings that would fit, if the runs need more than the limit.

        Nothing shrinks by itself to fit: the order of sums must not depend on what else is in memory.
        """
        limit = self.memory_limit if self.memory_limit is not None else free_bytes(device)
        needed = self._needed(plan, tokens)
        if limit is None or needed[self.engine] <= limit:
            return
        fitting = [f"engine={name} ({shown_bytes(size)})" for name, size in needed.items() if size <= limit]
        for order in range(getattr(self.forecaster, "max_order", 0) - 1, -1, -1):
            lower = replace(self, forecaster=replace(cast(Any, self.forecaster), max_order=order))
            size = lower._needed(lower.plan(plan.num_steps), tokens)[self.engine]
            if size <= limit:
                fitting.append(f"max_order={order} ({shown_bytes(size)})")
                break
        if tokens.batch > 1 and (rows := int(limit * tokens.batch / needed[self.engine])):
            fitting.append(f"a batch of {rows} rows instead of {tokens.batch}")
        kept = self.branches * self._kept(plan, tokens)[self.engine]
        demand = f"the {self.engine} engine would keep {shown_bytes(kept)}"
        if self.memory_limit is None:
            held = ENGINES[self.engine].held_bytes(plan, tokens, self.engine_settings)
            demand += f" and hold {shown_bytes(held)} within a step, but {shown_bytes(limit)} are free on {device}"
        else:
            demand += f", but the limit is {shown_bytes(limit)}"
        raise UserError(f"{demand}; what would fit: {', '.join(fitting) or 'nothing: a smaller resolution is needed'}")


class Run(NoStep):
    """State of one sampling run of one guidance branch; made by `Cache.start`."""

    def __init__(self, cache: Cache, plan: Plan, tokens: Tokens, table: Table) -> None:
        self.cache, self.plan, self.tokens, self.table = cache, plan, tokens, table
        engine = ENGINES[cache.engine]
        self.engine: Engine = engine.start(plan, tokens, table.gates, table.factors, cache.engine_settings)
        self.steps: list[dict[str, Any]] = []  # what was computed, one dictionary per step
        self.broken = False

    def at(self, step: int) -> "Step":
        """The handle of `step` (0-based, in sampling order) to call the model with; steps are taken once and in order."""
        self._check_next(step)
        if step >= self.plan.num_steps:
            raise ValueError(f"step {step} is past the {self.plan.num_steps} steps that this run was started for")
        return Step(self, step)

    def _check_next(self, step: int) -> None:
        """ValueError unless `step` is the one to be computed now."""
        if self.broken:
            raise ValueError(f"step {step} cannot be taken: a step of this run failed; start a new run")
        if step != len(self.steps):
            again = " for each guidance branch, or compute the branches as one batch" if step < len(self.steps) else ""
            raise ValueError(f"step {step} cannot be taken: step {len(self.steps)} is next; start a new run{again}")

    @property
    def kept_bytes(self) -> int:
        """The most bytes of features kept from one step to the next."""
        return type(self.engine).kept_bytes(self.plan, self.tokens, self.cache.engine_settings)

    def describe(self, step_flops: tuple[int, int]) -> str:
        """What the run will do, in one line; `step_flops` are the model's for a full and a forecast step.

        What is kept is that of all branches together.
        """
        plan, t = self.plan, self.tokens
        ratio = flops_ratio(plan, step_flops, type(self.engine).work_flops(plan, t, self.cache.engine_settings))
        kept = self.cache.branches * self.kept_bytes
        return (
            f"{self.cache.label}: {len(plan.full_steps)} of {plan.num_steps} steps full "
            f"({describe_steps(plan.full_steps)}), weights up to {plan.max_weight:.3g}, "
            f"{t.num_sites} sites of {t.batch}x{t.length}x{t.dim} {t.dtype}, "
            f"{self.cache.engine} engine keeps {kept / 2**20:.1f} MiB, {ratio:.2f}x fewer FLOPs expected"
        )

    def record(self) -> dict[str, Any]:
        """What was done, for a JSON record: settings, plan, and every step as it was really computed; no NaN or infinity."""
        return {
            "method": self.cache.method,
            "engine": self.cache.engine,
            "schedule": {"name": self.cache.schedule, **json_value(self.cache.schedule_settings)},
            "forecaster": {
                "name": type(self.cache.forecaster).__name__,
                **json_value(values_of(self.cache.forecaster)),
            },
            "num_steps": self.plan.num_steps,
            "full_steps": [entry["step"] for entry in self.steps if entry["kind"] == "full"],
            "max_weight": self.plan.max_weight,
            "sites": self.tokens.num_sites,
            "kept_bytes": self.kept_bytes,
            "steps": self.steps,
        }


class Step:
    """One step of a run, handed to the model as `cache=`."""

    def __init__(self, run: Run, step: int) -> None:
        self.run, self.step = run, step
        self.is_full = run.plan.is_full(step)

    @property
    def modulation(self) -> Any:
        """The backbone's modulation for this step, from the run's table."""
        return self.run.table.at(self.step)

    @property
    def static_shapes(self) -> bool:
        """Whether every full step is to do the same operations on the same shapes."""
        return self.run.cache.engine_settings.static_shapes

    def __call__(
        self, tokens: Tokens, full: Callable[[Site], Tensor], forecast: Callable[[Forecast], Tensor]
    ) -> Tensor:
        """The model's output at this step, by one of its two ways there; the choice is made here, outside of both.

        tokens: shape of the model's token stream for the latents at hand. `full(site)` runs the whole model, its blocks with
        the given site; `forecast(advance)` its embedding and head, with `advance` in place of the blocks.
        """
        run = self.run
        run._check_next(self.step)
        if tokens != run.tokens:
            raise ValueError(f"{tokens} reached a run started for {run.tokens}; start a new run")
        run.broken = True  # until this step has ended well
        if self.is_full:
            site = run.engine.record(self.step, ends=run.plan.observed)
            output = full(site)
            entry = self._entry(site)
        else:
            site = None
            output = forecast(run.engine.forecast(self.step))
            entry = {"kind": "forecast", "sites": 0}
        run.engine.finish(self.step, site)
        run.steps.append({"step": self.step, **entry})
        run.table.forget_before(self.step + 1)
        run.broken = False
        return output

    def _entry(self, site: Recorder) -> dict[str, Any]:
        """What a full step did, with the error of the forecast that would have stood for it where the plan wants that."""
        run = self.run
        if site.calls != run.tokens.num_sites:
            raise RuntimeError(f"the blocks called {site.calls} sites, the model declares {run.tokens.num_sites}")
        entry: dict[str, Any] = {"kind": "full", "sites": site.calls}
        if run.plan.observed and self.step in run.plan.weights:
            x0, x_final = site.both_ends()
            difference = (run.engine.forecast(self.step)(x0) - x_final).float()
            error = (difference.norm() / x_final.float().norm()).item()
            entry["forecast_error"] = error if math.isfinite(error) else None
            if not math.isfinite(error):
                entry["note"] = f"the forecast error is {error}"
        return entry


def flops_ratio(plan: Plan, step_flops: tuple[int, int], work_flops: int) -> float:
    """Operations of the uncached run over those of this one, the engine's own work included."""
    full, forecast = step_flops
    cached = len(plan.full_steps) * full + len(plan.forecast_steps) * forecast + work_flops
    return plan.num_steps * full / cached


def free_bytes(device: torch.device) -> int | None:
    """Memory that new tensors on `device` can take, in bytes; None where it cannot be told."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu" and os.path.exists("/proc/meminfo"):
        with open("/proc/meminfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    return None
