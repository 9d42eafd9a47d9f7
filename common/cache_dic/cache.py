"""A cache is a recipe; a run is its state for one sampling run and guidance branch; a step of it goes to the model.

    cache = make_cache(method="taylorseer", interval=4, max_order=4, warmup_steps=2)
    run = cache.start(model, latents, timesteps, y=labels)
    for step, t in enumerate(timesteps):
        output = model(latents, t, labels, cache=run.at(step))

Nothing is kept in the model: an interrupted run is thrown away, the next one starts clean.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from cache_dic.decide import Decider, decided, kept_by
from cache_dic.engine import ENGINES, EngineSettings, GateFactors, PartialEngine, Tokens, engine_class
from cache_dic.errors import UserError, check_choice, run_of_user_code, shown, shown_bytes, source_of
from cache_dic.forecast import Forecaster
from cache_dic.look import Inputs, Look
from cache_dic.partial import Partial
from cache_dic.partial_run import PartialRun
from cache_dic.plan import AnyPlan, OpenPlan, Plan
from cache_dic.run import Leader, NoStep, Run
from cache_dic.schedule import SCHEDULES, check_num_steps, foreseen_steps, schedule_defaults
from cache_dic.settings import SHORT, check_name, init_fields, integer, json_value, label_part, values_of

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
        """Operations of the model in a full and in a forecast step; a model that cannot tell has no such method."""


@dataclass(frozen=True, kw_only=True)
class Cache(NoStep):
    """Schedule, forecaster and engine: everything about caching that is known before a model is.

    schedule: a name in SCHEDULES; schedule_settings its arguments. engine: a name in ENGINES. telemetry: compare a forecast
    with every full step after the first. memory_limit: bytes that runs under way together may keep; None lets them keep and
    hold what the device has free. branches: how many those are, such as the branches of guidance.
    own_schedule, own_engine: the method's usual ones, which its label need not name. default_warmup: nobody asked for this
    number of warm-up steps, so that a run of fewer steps has as many as it has steps.
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
    own_engine: str = "folded"
    default_warmup: bool = False

    def __post_init__(self) -> None:
        check_name(self.method)
        if self.engine != PartialEngine.name:
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
        if hasattr(self.forecaster, "bands") and self.engine != "hidden":
            raise UserError(
                f"method {self.method!r} weights frequencies of the tokens after the last block, which the {self.engine} "
                "engine does not keep; take the hidden one"
            )
        for name, value in (("telemetry", self.telemetry), ("static_shapes", self.engine_settings.static_shapes)):
            if not isinstance(value, bool):
                raise UserError(f"{name} = {shown(value)} must be True or False")

        decider = self._decider
        if isinstance(decider, Partial) != (self.engine == PartialEngine.name):
            raise UserError(
                f"{self.schedule!r} computes part of a step: it is no schedule of another method and has no other engine; "
                "take it as the method"
                if isinstance(decider, Partial)
                else f"{self.method!r} computes part of a step and cannot follow schedule {self.schedule!r}; leave out schedule"
            )
        if isinstance(decider, Partial) and self.own_schedule not in (None, self.schedule):
            raise UserError(
                f"{self.method!r} computes part of a step and cannot follow {self.schedule!r}, which does so, too; take one of "
                "them, as the method"
            )
        if (
            decider is not None
            and decider.verifies
            and (not engine_class(self.engine).walks or any(self.always_computed))
        ):
            raise UserError(
                f"schedule {self.schedule!r} verifies forecasts by the last block, from a forecast of the state before it, "
                f"which the walked engine has, of all blocks; leave out engine={self.engine}"
            )

    def told(self, name: str, value: Any) -> Any:
        """A setting as labels and records say it: a forecaster's `labels` stand for values such as the path of a file."""
        return getattr(self.forecaster, "labels", {}).get(name, value)

    @property
    def label(self) -> str:
        """A short string for file names and row labels: `taylorseer-N4-W2-O4`; other settings, other labels.

        What a schedule or a method of the package has by default is left out. The schedule is named only where it is not the
        method's own, the engine only if it is not the method's. How the engine stores (`EngineSettings`), what is watched and
        the memory limit are no part of it.
        """
        of_forecaster = values_of(self.forecaster)
        usual = schedule_defaults(self.schedule)
        if type(self.forecaster).__module__.startswith(f"{__package__}.methods."):
            usual |= {f.name: f.default for f in init_fields(self.forecaster) if f.name not in SHORT}
        settings = [(k, v) for k, v in self.schedule_settings.items() if k not in usual or usual[k] != v]
        settings += [
            (k, v) for k, v in of_forecaster.items() if (k, v) not in settings and (k not in usual or usual[k] != v)
        ]
        parts = [
            self.method,
            *([] if self.schedule in (self.own_schedule, "explicit") else [self.schedule]),
            *(label_part(name, self.told(name, value)) for name, value in settings),
            *([] if self.engine == self.own_engine else [self.engine]),
        ]
        label = "-".join(parts)
        if len(label) <= LABEL_BYTES:
            return label
        digest = hashlib.sha256(label.encode()).hexdigest()[:16]
        return f"{label[: LABEL_BYTES - 17]}-{digest}"

    def decider(self) -> Decider | None:
        """The schedule in the state before a run, where it decides by what it sees; None where it is a list of full steps."""
        rule = SCHEDULES[self.schedule]
        return rule(**self.schedule_settings) if isinstance(rule, type) else None

    @cached_property
    def _decider(self) -> Decider | None:
        """One that no run is given, to ask for what does not change in a run."""
        return self.decider()

    @property
    def decides(self) -> bool:
        """Whether full steps are decided by what is seen, be it times alone, so that no plan has them without a model."""
        return self._decider is not None

    @property
    def schedule_values(self) -> dict[str, Any]:
        """The settings of the schedule, as one that decides while sampling has read them: of a file, what it says."""
        return self.schedule_settings if self._decider is None else values_of(self._decider)

    @property
    def always_computed(self) -> tuple[int, int]:
        """First and last blocks that every step computes."""
        return (0, 0) if self._decider is None else (self._decider.first_blocks, self._decider.last_blocks)

    @property
    def separate_branches(self) -> bool:
        """Whether branches of guidance are to be model calls of their own, so that one may be left out."""
        return isinstance(self._decider, Partial) and self._decider.separate_branches

    @property
    def joins_branches(self) -> bool:
        """Whether branches of guidance share what they keep, or one is made of another, so that one process has to run both."""
        decider = self._decider
        return isinstance(decider, Partial) and (decider.separate_branches or decider.shares_kept)

    def plan(self, num_steps: int, branch: str = "cond", full_steps: tuple[int, ...] | None = None) -> AnyPlan:
        """Full steps and forecast weights of a run of `num_steps`, or what is known of them where they are decided later.

        branch: of guidance, "cond" or "uncond". full_steps: what has been decided by the times of a run.
        UserError where the settings do not fit the number of steps.
        """
        check_num_steps(num_steps)
        forecaster = self._forecaster_for(num_steps)
        if self._decider is not None and full_steps is None:
            rule, horizon = {"name": self.schedule, **json_value(self.schedule_values)}, self._decider.horizon
            return OpenPlan(
                num_steps, forecaster,
                horizon=horizon, observed=self.telemetry, method=self.method, rule=rule, decider=type(self._decider),
            )  # fmt: skip
        if full_steps is None:
            settings = self.schedule_settings
            if self.default_warmup and "warmup_steps" in settings:
                settings = {**settings, "warmup_steps": min(settings["warmup_steps"], num_steps)}
            full_steps = foreseen_steps(self.schedule, num_steps, branch, settings)
        return Plan(num_steps, full_steps, forecaster, observed=self.telemetry, method=self.method)

    def _forecaster_for(self, num_steps: int) -> Forecaster:
        """The forecaster as a run of so many steps has it; UserError for one that cannot tell."""
        made: Any = self.forecaster
        if not hasattr(made, "for_run"):
            return made
        what = f"method {self.method!r} failed for a run of {num_steps} steps"
        with run_of_user_code(what, *source_of(type(made), "for_run")):
            for_run = made.for_run(num_steps)
            if not callable(getattr(for_run, "weights", None)):
                raise UserError(
                    f"for_run gave {shown(for_run)}, where a class with weights(self, full_steps, step) is wanted"
                )
        return for_run

    def kept_bytes(self, num_steps: int, tokens: Tokens) -> dict[str, int]:
        """Bytes of features that would be kept with each engine, this cache's own among them."""
        return self._kept(self.plan(num_steps), tokens)

    def _kept(self, plan: AnyPlan, tokens: Tokens) -> dict[str, int]:
        own = self.decider_bytes(tokens)
        forms = {self.engine: engine_class(self.engine)} if self.engine == PartialEngine.name else ENGINES
        return {name: engine.kept_bytes(plan, tokens, self.engine_settings) + own for name, engine in forms.items()}

    def decider_bytes(self, tokens: Tokens) -> int:
        """Bytes that a schedule keeps itself, to decide by."""
        return 0 if self._decider is None else kept_by(self._decider, tokens)

    def work_flops(self, num_steps: int, tokens: Tokens) -> int:
        """Operations of the engine over a run whose full steps are known: folding and forecasting, 2 per multiply-add."""
        plan = self.plan(num_steps)
        return engine_class(self.engine).work_flops(plan, tokens, self.engine_settings, range(num_steps))

    def start(
        self,
        model: Backbone,
        latents: Tensor,
        timesteps: Tensor,
        *,
        leader: Leader | None = None,
        announce: Callable[[bool], None] | None = None,
        shard: Any = None,
        sigmas: Tensor | None = None,
        **conditions: Any,
    ) -> Run:
        """A fresh run over `timesteps` (S,), in sampling order, for latents and conditions as the model will get them.

        leader: the run of the conditional branch, for a further branch of guidance; what is decided while sampling is then
        decided there, unless the schedule says that every branch decides for itself. announce: is told step by step what this
        run decides for others, where they are in another process. shard: where processes share the rows of a batch, how many
        they are (`size`), the `place` of this one's rows among those of the same latents, and `total(sums)` over all.
        sigmas: noise levels (S,) of a flow, where the timesteps are rounded; otherwise the model tells them.
        Raises UserError if the model has no sites, the settings do not fit the number of steps, or what the run would keep
        does not fit the device.
        """
        branch, num_steps = "cond" if leader is None else "uncond", len(timesteps)
        inputs = Inputs(model, latents, timesteps, conditions, sigmas, branch, self.branches, shard)
        decider = self.decider()
        by_time: tuple[int, ...] | None = None
        reports: list[dict[str, Any]] = []
        if decider is not None and decider.of_time:
            by_time, reports = self._decided_by_time(decider, inputs)
        plan, tokens = self.plan(num_steps, branch, by_time), model.tokens(latents)
        if tokens.num_sites < 1:
            raise UserError(f"{type(model).__name__} has no sites: there is nothing to cache")
        if tokens.numel < 1:
            raise UserError(f"latents of shape {tuple(latents.shape)} hold no sample; give at least one")
        self.check_memory(plan, tokens, latents.device)
        engine, every, gated = engine_class(self.engine), tuple(range(num_steps)), tuple(range(1, num_steps))
        if isinstance(plan, Plan):
            decider, gated = None, plan.predicted_steps
        foreseen = isinstance(plan, Plan) and not engine.walks and not any(self.always_computed)
        table = model.modulation_table(
            timesteps, plan.full_steps if foreseen else every, gated if engine.needs_gates else (), **conditions
        )
        if decider is not None and decider.by_branch:
            leader = announce = None
        made: Any = PartialRun if isinstance(decider, Partial) else Run
        run = made(
            self, plan, tokens, table, inputs,
            decider=decider, leader=leader if decider is not None else None, reports=reports, announce=announce,
        )  # fmt: skip
        if latents.is_meta:  # there a run is only counted
            return run
        if isinstance(plan, Plan) and not plan.forecast_steps and self.method != "uncached":
            log.warning(
                f"{self.label}: nothing is cached: all {plan.num_steps} steps are full; fewer warm-up steps or a larger "
                "interval leave some to forecast"
            )
        if self.method != "uncached" and log.isEnabledFor(logging.INFO):
            counted = model.step_flops(latents, **conditions) if hasattr(model, "step_flops") else None
            log.info(run.describe(counted))
        return run

    def _decided_by_time(self, decider: Decider, inputs: Inputs) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
        """All full steps of a schedule that looks at steps and times alone, and by step what it reports."""
        full_steps: list[int] = []
        reports: list[dict[str, Any]] = []
        num_steps = len(inputs.timesteps)
        horizon = num_steps if decider.horizon is None else decider.horizon
        for step in range(num_steps):
            look = Look(inputs, step, num_steps, full_steps)
            if decided(decider, look, horizon):
                full_steps.append(step)
            reports.append(look.reported)
        return tuple(full_steps), reports

    def _needed(self, plan: AnyPlan, tokens: Tokens) -> dict[str, int]:
        """Bytes that each engine needs of what the limit is for.

        Every branch keeps its features. Where the limit is all that is free, it also covers what one of them holds in a step.
        """
        needed = {name: self.branches * size for name, size in self._kept(plan, tokens).items()}
        if self.memory_limit is None:
            for name in needed:
                needed[name] += engine_class(name).held_bytes(plan, tokens, self.engine_settings)
        return needed

    def check_memory(self, plan: AnyPlan, tokens: Tokens, device: torch.device) -> None:
        """UserError with the sizes, and the settings that would fit, if the runs need more than the limit.

        Nothing shrinks by itself to fit: the order of sums must not depend on what else is in memory.
        """
        if self.engine == PartialEngine.name and self.memory_limit is not None:
            return  # `check_kept`, since shapes of tokens do not tell what it keeps
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
            held = engine_class(self.engine).held_bytes(plan, tokens, self.engine_settings)
            demand += f" and hold {shown_bytes(held)} within a step, but {shown_bytes(limit)} are free on {device}"
        else:
            demand += f", but the limit is {shown_bytes(limit)}"
        raise UserError(f"{demand}; what would fit: {', '.join(fitting) or 'nothing: a smaller resolution is needed'}")

    def check_kept(self, kept: int, rows: int) -> None:
        """UserError if what a method that computes part of a step keeps, counted or measured, is more than the limit."""
        limit = self.memory_limit
        if limit is not None and kept > limit:
            fitting = int(limit * rows / kept)
            raise UserError(
                f"{self.label} keeps {shown_bytes(kept)}, but the limit is {shown_bytes(limit)}; what would fit: "
                + (
                    f"a batch of {fitting} rows instead of {rows}"
                    if fitting
                    else "a smaller resolution, or another method"
                )
            )


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
