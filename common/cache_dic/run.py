"""The state of one sampling run of one guidance branch, and the step of it that a model call takes."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import torch
from torch import Tensor

from cache_dic.decide import Decider, decided, learned, to_verify, verified
from cache_dic.engine import Engine, Forecast, Recorder, Snapshots, Tokens, WalkedEngine, engine_class
from cache_dic.engine.layerwise import WalkRecorder
from cache_dic.errors import UserError
from cache_dic.look import BlockResult, Inputs, Look, Parts, Streams
from cache_dic.plan import AnyPlan, OpenPlan, describe_steps
from cache_dic.settings import json_value, values_of
from cache_dic.site import Site, residual

if TYPE_CHECKING:
    from cache_dic.cache import Cache, Table

GATE_TOLERANCE = 0.05
"""Of the relative difference of a gate to that of the table: rounding in bf16 makes 0.003, another gate about 1."""


def numbers_of(steps: Sequence[Mapping[str, Any]], kind: str) -> list[int]:
    """Of the steps of a kind."""
    return [entry["step"] for entry in steps if entry["kind"] == kind]


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


class Leader(Protocol):
    """What decides for the runs of other guidance branches: that of the first, or what brings its word to another process."""

    def decision(self, step: int) -> bool:
        """Whether the step is full."""


class Run(NoStep):
    """State of one sampling run of one guidance branch; made by `Cache.start`.

    decider: of a schedule that decides while sampling, in the state of this run. leader: whose decisions this one follows.
    announce: is told this run's own decisions as they are made. reports: by step, what a schedule had to say that has decided
    all of them before. first_blocks, last_blocks: those that every step computes.
    """

    def __init__(
        self,
        cache: "Cache",
        plan: AnyPlan,
        tokens: Tokens,
        table: "Table",
        inputs: Inputs,
        *,
        decider: Decider | None = None,
        leader: Leader | None = None,
        announce: Callable[[bool], None] | None = None,
        reports: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.cache, self.plan, self.tokens, self.table, self.inputs = cache, plan, tokens, table, inputs
        self.decider, self.leader, self.announce, self.reports = decider, leader, announce, reports
        self.first_blocks, self.last_blocks = cache.always_computed
        sites, gates, factors = tokens, table.gates, table.factors
        if self.first_blocks or self.last_blocks:
            inner = self._inner_sites
            sites, factors = replace(tokens, num_sites=len(range(tokens.num_sites)[inner]), gate_rank=0), None
            gates = lambda steps: table.gates(steps)[:, inner]  # noqa: E731
        self.of_blocks = sites  # the tokens of the blocks that a forecast stands for
        engine = engine_class(cache.engine)
        self.engine: Engine = engine.start(plan, sites, gates, factors, cache.engine_settings)
        self.engine.grid = lambda: inputs.grid
        self.others = Snapshots(plan)  # what those blocks add to the streams that do not reach the output
        self.steps: list[dict[str, Any]] = []  # what was computed, one dictionary per step
        self.broken = False

    @cached_property
    def _block_sites(self) -> Sequence[Sequence[str]]:
        return self.inputs.ask("block_sites")

    @cached_property
    def _inner_sites(self) -> slice:
        """The sites of the blocks that are not computed in every step."""
        counts = [len(sites) for sites in self._block_sites]
        first, last = self.first_blocks, self.last_blocks
        if first + last >= len(counts):
            raise UserError(
                f"{first} first and {last} last blocks leave none of the model's {len(counts)} to forecast; take fewer"
            )
        return slice(sum(counts[:first]), sum(counts) - sum(counts[len(counts) - last :]))

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

    # ----------------------------------------------------------------------------------------------------------- a step

    def take(
        self,
        step: int,
        full: Callable[[Site], Tensor],
        forecast: Callable[[Forecast], Tensor],
        parts: Parts | None,
    ) -> Tensor:
        """The model's output at `step`, by one of its ways there; the choice is made here, outside of all of them."""
        look = Look(self.inputs, step, self.plan.num_steps, self.plan.full_steps, parts)
        head = self._first(look) if self.first_blocks else None
        is_full = self._is_full(look)
        if is_full:
            output, entry = self._full_step(look, head, full)
        else:
            entry = {"kind": "forecast", "sites": 0}
            if self.decider is not None and self.leader is None and to_verify(self.decider, look):
                output, entry["verified"] = self._verified_step(look, self.decider), True
            else:
                output = self._forecast_step(look, head, forecast)
        self._add_entry(step, entry, self.reports[step] if self.reports else look.reported)
        self.table.forget_before(step + 1)
        return output

    def _add_entry(self, step: int, entry: Mapping[str, Any], said: Mapping[str, Any]) -> None:
        """What was computed in a step, and what the schedule had to say, in a form that JSON has.

        UserError for a word of the schedule's that would hide one of ours; only remarks may.
        """
        own = {"step": step, **entry}
        if taken := (own.keys() & said.keys()) - {"note"}:
            raise UserError(
                f"schedule {self.cache.schedule!r} reports {', '.join(sorted(taken))} at step {step}, which every step's "
                "record has already; report it by another name"
            )
        self.steps.append({**own, **json_value(said)})

    def _first(self, look: Look) -> Streams:
        """The state after the blocks that every step computes first, which the schedule may look at."""
        start = look.parts.enter()
        head = look.parts.walk(start, residual, 0, self.first_blocks)
        look.before, look.after = start.x, head.x
        return head

    def _is_full(self, look: Look) -> bool:
        plan, step = self.plan, look.step
        if not isinstance(plan, OpenPlan):
            return plan.is_full(step)
        if self.leader is not None:
            is_full = self.leader.decision(step)
        else:
            assert self.decider is not None, "an open plan is that of a schedule that decides"
            is_full = decided(self.decider, look, plan.horizon)
            if self.announce is not None:
                self.announce(is_full)
        if is_full:
            plan.add(step)
        return is_full

    def decision(self, step: int) -> bool:
        """Whether a step of this run was full; ValueError for one that has not been taken."""
        if len(self.steps) <= step:
            raise ValueError(
                f"step {step} of the guidance branch that decides is to be taken before that of the others"
            )
        return self.steps[step]["kind"] == "full"

    def _full_step(
        self, look: Look, head: Streams | None, full: Callable[[Site], Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        engine, step, observed = self.engine, look.step, self.plan.observed and bool(self.steps)
        expected = engine.forecast(step) if observed else None
        decider = self.decider if self.leader is None else None
        sees_ends = decider is not None and decider.sees_ends
        site = engine.record(step, ends=self.plan.observed or sees_ends)
        if head is None and not self.last_blocks:
            output = full(site)
        else:
            head = look.parts.enter() if head is None else head
            stop = self._stop()
            middle = look.parts.walk(head, site, self.first_blocks, stop)
            if self.last_blocks:
                moved = tuple(b - a for a, b in zip(head.others, middle.others, strict=True))
                self.others.push(step, moved)
            output = look.parts.leave(look.parts.walk(middle, residual, stop, None) if self.last_blocks else middle)
        self._check_sites(site, step)
        entry: dict[str, Any] = {"kind": "full", "sites": site.calls}
        if expected is not None:
            entry.update(self._error_of(expected, site, look, output))
        engine.finish(step, site)
        if not engine.enters_model and self.plan.serves(step):
            engine.see(step, look.latents, output)
        if decider is not None:
            if sees_ends:
                look.before, look.after = site.both_ends()
            learned(decider, look, output)
        return output, entry

    def _stop(self) -> int:
        """The first of the last blocks that every step computes."""
        return len(self._block_sites) - self.last_blocks

    def _forecast_step(self, look: Look, head: Streams | None, forecast: Callable[[Forecast], Tensor]) -> Tensor:
        engine, step = self.engine, look.step
        advance = engine.forecast(step)
        if not engine.enters_model:
            output = advance(look.latents)
        elif head is None and not self.last_blocks:
            output = forecast(advance)
        else:
            head = look.parts.enter() if head is None else head
            streams = head._replace(x=advance(head.x))
            if self.last_blocks:
                streams = look.parts.walk(self._advance_others(step, streams), residual, self._stop(), None)
            output = look.parts.leave(streams)
        engine.finish(step, None)
        return output

    def _verified_step(self, look: Look, decider: Decider) -> Tensor:
        """A forecast step that walks the blocks; the last one is computed, too, for the schedule to see."""
        engine, parts = self.engine, look.parts
        assert isinstance(engine, WalkedEngine), "schedules that verify have this engine"
        site, last = engine.walk_site(look.step), len(self._block_sites) - 1
        before = parts.walk(parts.enter(), site, 0, last)
        after = parts.walk(before, site, last, None)
        actual = WalkRecorder(self.tokens.num_sites)
        tokens = parts.walk(before, actual, last, None).x
        verified(decider, look, BlockResult(site.last, after.x), BlockResult(actual.last, tokens))
        engine.finish(look.step, None)
        return parts.leave(after)

    def _advance_others(self, step: int, streams: Streams) -> Streams:
        """The streams that do not reach the output, forecast as the residual of the blocks left out."""
        others = list(streams.others)
        for m, weight in self.plan.row(step).items():
            for i, moved in enumerate(self.others.by_step[m]):
                others[i] = torch.add(others[i], moved, alpha=weight)
        return streams._replace(others=tuple(others))

    def _check_sites(self, site: Recorder, step: int) -> None:
        """RuntimeError if the blocks called other sites than the model declares, or with other gates than its table has."""
        declared = self.of_blocks.num_sites
        if site.calls != declared:
            raise RuntimeError(f"the blocks called {site.calls} sites, the model declares {declared}")
        if step or self.inputs.latents.is_meta or self.plan.least_full == self.plan.num_steps:
            return
        names = self._site_names()
        for i, name in enumerate(site.names):
            if names and name is not None and not names[i].endswith(f".{name}"):
                raise RuntimeError(f"the blocks called site {name} where the model declares {names[i]}")
        if not self.engine.needs_gates:
            return
        expected = self.engine.gates_of(step).float()  # (sites, B or 1, D)
        ones = expected.new_ones(())
        used = torch.stack(
            [
                ones.expand(expected.shape[1:]) if g is None else g.squeeze(1).expand(expected.shape[1:])
                for g in site.gates
            ]
        ).float()
        error = (used - expected).flatten(1).norm(dim=1) / used.flatten(1).norm(dim=1).clamp_min(1e-20)
        worst = int(error.nan_to_num(0).argmax())  # NaN and infinity are told by the sample
        if error[worst] > GATE_TOLERANCE:
            where = names[worst] if names else worst
            raise RuntimeError(
                f"the blocks gate site {where} with another gate than the modulation table has for it (they differ by "
                f"{float(error[worst]):.2g} of it): forecasts would be wrong; see what gates(c) of its block takes"
            )

    def _site_names(self) -> list[str]:
        """Names of the forecast sites with their blocks; none of a model that does not tell."""
        if getattr(self.inputs.model, "block_sites", None) is None:
            return []
        names = [f"{block}.{site}" for block, sites in enumerate(self._block_sites) for site in sites]
        return names[self._inner_sites] if self.first_blocks or self.last_blocks else names

    def _error_of(self, expected: Forecast, site: Recorder, look: Look, output: Tensor) -> dict[str, Any]:
        """The relative error of the forecast that would have stood for a full step."""
        if self.engine.enters_model:
            x0, true = site.both_ends()
        else:
            x0, true = look.latents, output
        error = ((expected(x0) - true).float().norm() / true.float().norm()).item()
        if math.isfinite(error):
            return {"forecast_error": error}
        return {"forecast_error": None, "note": f"the forecast error is {error}"}

    # --------------------------------------------------------------------------------------------------------- accounts

    @property
    def full_steps(self) -> list[int]:
        """Those taken so far."""
        return numbers_of(self.steps, "full")

    @property
    def kept_bytes(self) -> int:
        """The most bytes of features kept from one step to the next."""
        decides = self.decider is not None and self.leader is None
        return self.engine.most_kept() + (self.cache.decider_bytes(self.tokens) if decides else 0)

    @property
    def work_flops(self) -> int:
        """Operations of the engine itself over the steps taken so far."""
        taken = [entry["step"] for entry in self.steps]
        return type(self.engine).work_flops(self.plan, self.of_blocks, self.cache.engine_settings, taken)

    def describe(self, step_flops: tuple[int, int] | None) -> str:
        """What the run will do, in one line; `step_flops` are the model's for a full and a forecast step, where it can tell.

        What is kept is that of all branches together.
        """
        plan, t = self.plan, self.tokens
        kept = self.cache.branches * self.kept_bytes
        stored = (
            f"{t.num_sites} sites of {t.batch}x{t.length}x{t.dim} {t.dtype}, {self.cache.engine} engine keeps "
            f"{kept / 2**20:.1f} MiB"
        )
        if isinstance(plan, OpenPlan):
            return (
                f"{self.cache.label}: full steps are decided while sampling, between {plan.least_full} and "
                f"{plan.num_steps} of {plan.num_steps}, {stored}"
            )
        said = (
            f"{self.cache.label}: {len(plan.full_steps)} of {plan.num_steps} steps full "
            f"({describe_steps(plan.full_steps)}), weights up to {plan.max_weight:.3g}, {stored}"
        )
        if step_flops is None:
            return said
        full, forecast = step_flops
        work = type(self.engine).work_flops(plan, self.of_blocks, self.cache.engine_settings, range(plan.num_steps))
        cached = len(plan.full_steps) * full + len(plan.forecast_steps) * forecast + work
        return f"{said}, {plan.num_steps * full / cached:.2f}x fewer FLOPs expected"

    def record(self) -> dict[str, Any]:
        """What was done, for a JSON record: settings, plan, and every step as it was really computed; no NaN or infinity."""

        def told(values: Mapping[str, Any]) -> Any:
            return json_value({name: self.cache.told(name, value) for name, value in values.items()})

        return {
            "method": self.cache.method,
            "engine": self.cache.engine,
            "schedule": {"name": self.cache.schedule, **told(self.cache.schedule_values)},
            "forecaster": {"name": type(self.cache.forecaster).__name__, **told(values_of(self.cache.forecaster))},
            "num_steps": self.plan.num_steps,
            "full_steps": self.full_steps,
            "max_weight": self.plan.max_weight,
            "sites": self.tokens.num_sites,
            "kept_bytes": self.kept_bytes,
            "steps": self.steps,
        }


class Step:
    """One step of a run, handed to the model as `cache=`."""

    def __init__(self, run: Run, step: int) -> None:
        self.run, self.step = run, step

    @property
    def is_full(self) -> bool | None:
        """None where that is decided when the model is called."""
        plan = self.run.plan
        return None if isinstance(plan, OpenPlan) else plan.is_full(self.step)

    @property
    def modulation(self) -> Any:
        """The backbone's modulation for this step, from the run's table."""
        return self.run.table.at(self.step)

    @property
    def static_shapes(self) -> bool:
        """Whether every full step is to do the same operations on the same shapes."""
        return self.run.cache.engine_settings.static_shapes

    def __call__(
        self,
        tokens: Tokens,
        full: Callable[[Site], Tensor],
        forecast: Callable[[Forecast], Tensor],
        parts: Parts | None = None,
    ) -> Tensor:
        """The model's output at this step.

        tokens: shape of the model's token stream for the latents at hand. `full(site)` runs the whole model, its blocks with
        the given site; `forecast(advance)` its embedding and head, with `advance` in place of the blocks; parts: the call in
        parts, which some methods need.
        """
        run = self.run
        run._check_next(self.step)
        if tokens != run.tokens:
            raise ValueError(f"{tokens} reached a run started for {run.tokens}; start a new run")
        run.broken = True  # until this step has ended well
        output = run.take(self.step, full, forecast, parts)
        run.broken = False
        return output
