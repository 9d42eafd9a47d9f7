"""Operations counted from outside a model, on the meta device, 2 per multiply-add, attention included.

Matrix products, convolutions and attention are counted by `torch.utils.flop_counter` from the operations that the model
performs; the element-wise work of a caching engine, which that counter does not see, is added by formula (`Cache.work_flops`).
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cache_dic import EVERYTHING, NOTHING, REST, Cache, Forecast, Parts, Run, Site, make_cache, residual
from cache_dic.engine import PartialEngine, engine_class
from cache_dic.look import TRAINING_SPAN
from cache_dic.partial_run import OBSERVERS, PartialRun, Work
from cache_dic.plan import OpenPlan
from cache_dic.run import numbers_of
from cache_dic.site import Addition
from seerkit.layers.few_rows import unfilled
from seerkit.sampling.branches import Branches
from seerkit.sampling.outline import CallShapes, outline, outlined_runs
from seerkit.sampling.published import PartialCounts


def grouped_mm_flops(rows: Any, weights: Any, *_: Any, **__: Any) -> int:
    """Of a grouped product by shapes: each of the rows (T, in) times one of the weights (E, in, out)."""
    return 2 * rows[0] * weights[-2] * weights[-1]


COUNTED = {torch.ops.aten._grouped_mm: grouped_mm_flops}  # what torch.utils.flop_counter does not know


Shapes = tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
"""Of conditions, by name."""


def count_flops(function: Callable[[], Any]) -> int:
    """Operations of the matrix products, convolutions and attention calls that `function` performs."""
    with unfilled(), FlopCounterMode(display=False, custom_mapping=COUNTED) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def step_flops(model: nn.Module, latents: Tensor, conditions: dict[str, Tensor]) -> tuple[int, int]:
    """Operations of a full and of a forecast step of `model`, a backbone made by type(model)(model.config).

    latents, conditions: as the model gets them; only their shapes matter. The modulation table's share is included: shift,
    scale and gate at a full step, gates alone at a forecast step. Counted once a configuration and shape.
    """
    backbone: Any = type(model)
    return _step_flops(backbone, model.config, tuple(latents.shape), _shapes(conditions))


def _shapes(conditions: Mapping[str, Tensor | None]) -> Shapes:
    """Of the conditions that are given; counts do not depend on precision."""
    return tuple(
        (name, tuple(value.shape), torch.float32 if value.is_floating_point() else value.dtype)
        for name, value in conditions.items()
        if value is not None
    )


def _twin(
    backbone: Callable[[Any], nn.Module], config: Any, shape: tuple[int, ...], conditions: Shapes
) -> tuple[nn.Module, Tensor, dict[str, Tensor]]:
    """A model of the same configuration with its inputs, on the meta device."""
    with torch.device("meta"):
        made = {name: torch.empty(size, dtype=dtype) for name, size, dtype in conditions}
        return backbone(config).eval(), torch.empty(shape), made


@functools.lru_cache
def _step_flops(
    backbone: Callable[[Any], nn.Module], config: Any, shape: tuple[int, ...], conditions: Shapes
) -> tuple[int, int]:
    twin, latents, made = _twin(backbone, config, shape, conditions)

    def run(num_steps: int) -> None:
        """A first full step, then forecasts."""
        timesteps = torch.zeros(num_steps, device="meta")
        state = make_cache("fora", full_steps=[0]).start(twin, latents, timesteps, **made)
        for step in range(num_steps):
            time = {twin.TIME: timesteps[step].expand(len(latents))}
            twin(latents, **time, **made, cache=state.at(step))

    full = count_flops(lambda: run(1))
    return full, count_flops(lambda: run(2)) - full


@dataclass(frozen=True)
class PartFlops:
    """Operations of parts of a step: modulation of all blocks, and its gates alone; block 0's modulated tokens; the first and
    the last blocks; the last one, for schedules that verify forecasts; what blocks read that a forecast step does without; and
    the head with its modulation.
    """

    modulation: int = 0
    gates: int = 0
    modulated: int = 0
    first: int = 0
    last: int = 0
    last_block: int = 0
    context: int = 0
    head: int = 0


def part_flops(
    model: nn.Module, latents: Tensor, conditions: dict[str, Tensor], first_blocks: int, last_blocks: int
) -> PartFlops:
    """Operations of parts of a step of `model`; as `step_flops`."""
    backbone: Any = type(model)
    shapes = _shapes(conditions)
    return _part_flops(backbone, model.config, tuple(latents.shape), shapes, first_blocks, last_blocks)


class _Taken:
    """Stands for a step of a run: keeps the parts of the call that it is handed to."""

    static_shapes = False

    def __init__(self, modulation: Any) -> None:
        self.modulation = modulation
        self.parts: Parts | None = None
        self.forecast: Callable[[Forecast], Tensor] | None = None

    def __call__(self, tokens: Any, full: Any, forecast: Callable[[Forecast], Tensor], parts: Parts) -> Tensor:
        self.parts, self.forecast = parts, forecast
        return forecast(lambda x: x)


def _in_parts(
    backbone: Callable[[Any], nn.Module], config: Any, shape: tuple[int, ...], conditions: Shapes
) -> tuple[nn.Module, Callable[[list[int], list[int]], Any], _Taken]:
    """A model on the meta device; its table of one step, by whether that is full and gated; and a call of it in parts."""
    twin, latents, made = _twin(backbone, config, shape, conditions)
    timesteps = torch.zeros(1, device="meta")

    def table(full_steps: list[int], gated_steps: list[int]) -> Any:
        return twin.modulation_table(timesteps, full_steps, gated_steps, **made)

    taken = _Taken(table([0], []).at(0))
    twin(latents, **{twin.TIME: timesteps.expand(len(latents))}, **made, cache=taken)
    return twin, table, taken


@functools.lru_cache
@torch.no_grad()
def _part_flops(
    backbone: Callable[[Any], nn.Module],
    config: Any,
    shape: tuple[int, ...],
    conditions: Shapes,
    first_blocks: int,
    last_blocks: int,
) -> PartFlops:
    twin, made_table, taken = _in_parts(backbone, config, shape, conditions)
    parts, forecast = taken.parts, taken.forecast
    assert parts is not None, "every backbone hands its parts to a step"
    assert forecast is not None, "and the two ways through it"
    streams, count = parts.enter(), len(twin.block_sites())

    def walk(start: int, stop: int) -> int:
        return count_flops(lambda: parts.walk(streams, residual, start, stop)) if start < stop else 0

    def modulate(full_steps: list[int]) -> int:
        return count_flops(lambda: made_table(full_steps, []).at(0))

    return PartFlops(
        modulation=modulate([0]) - modulate([]),
        gates=count_flops(lambda: made_table([], [0]).gates([0])) - count_flops(lambda: made_table([], [])),
        modulated=count_flops(parts.modulated),
        first=walk(0, first_blocks),
        last=walk(count - last_blocks, count),
        last_block=walk(count - 1, count),
        context=count_flops(lambda: parts.leave(parts.enter())) - count_flops(lambda: forecast(lambda x: x)),
        head=modulate([]) + count_flops(lambda: parts.leave(streams)),
    )


def tells_flops(run: Any) -> bool:
    """Whether the model of a run, or of the runs of its branches, can tell its operations."""
    return all(hasattr(branch, "inputs") for branch in getattr(run, "runs", [run]))


def run_flops(run: Any) -> tuple[int, int]:
    """Operations of what a run, or the runs of its guidance branches, really computed, and of the same steps uncached.

    A branch that another process computed counts as much as this one's.
    """
    counts = [_run_flops(branch) for branch in getattr(run, "runs", [run])]
    times = 1 + getattr(run, "elsewhere", 0)
    return times * sum(cached for cached, _ in counts), times * sum(uncached for _, uncached in counts)


class _Replay(Site):
    """Computes at each site of a block what is asked of it by name, and looks at attention as a method does."""

    def __init__(self, asked: Mapping[str, int | str], observes: str | None) -> None:
        self.asked, self.observes = asked, observes

    def add(self, addition: Addition) -> Tensor:
        assert addition.name is not None, "sites carry names"
        work, x = self.asked[addition.name], addition.x
        if isinstance(work, int) or work == REST:
            tokens = x[:, :work] if isinstance(work, int) else x
            attended = addition.attended and (lambda: tokens)
            addition._replace(x=tokens, attended=attended).value()
        elif work == EVERYTHING:
            addition.value()
        return x

    def attend(
        self, attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, *mask: Any, **streams: int
    ) -> Tensor:
        if self.observes is not None:
            OBSERVERS[self.observes](q, k, v, *mask)
        return attention(q, k, v, *mask)


Block = tuple[tuple[str, "int | str"], ...]
"""Names of the sites of a block, with what each computes."""


@functools.lru_cache
@torch.no_grad()
def _outline(
    backbone: Callable[[Any], nn.Module], config: Any, shape: tuple[int, ...], conditions: Shapes
) -> CallShapes:
    twin, _, taken = _in_parts(backbone, config, shape, conditions)
    assert taken.parts is not None, "every backbone hands its parts to a step"
    return outline(taken.parts, len(twin.block_sites()))


@functools.lru_cache
def _block_counter(
    backbone: Callable[[Any], nn.Module], config: Any, shape: tuple[int, ...], conditions: Shapes, observes: str | None
) -> Callable[[int, Block], int]:
    """Operations of a block by what its sites compute, tokens of one site aside; blocks with the same sites cost the same."""
    twin, _, taken = _in_parts(backbone, config, shape, conditions)
    parts, sites = taken.parts, list(twin.block_sites())
    assert parts is not None, "every backbone hands its parts to a step"
    with torch.no_grad():
        streams = parts.enter()

    @functools.lru_cache
    def count(first: int, work: Block) -> int:
        site = _Replay(dict(work), observes)
        return count_flops(lambda: parts.walk(streams, site, first, first + 1))

    return lambda block, work: count(sites.index(sites[block]), work)


def _partial_step_flops(
    run: PartialRun, model: Any, latents: Tensor, conditions: dict[str, Tensor], *, observed: bool = True
) -> list[int]:
    """Of what each step of a run of `model` computed: some tokens of a site cost their share of all of them.

    observed: with what it takes to see the attention that tokens pay each other.
    """
    backbone: Any = type(model)
    shape, shapes = tuple(latents.shape), _shapes(conditions)
    of_block = _block_counter(backbone, model.config, shape, shapes, run.method.observes if observed else None)
    plain = _block_counter(backbone, model.config, shape, shapes, None)
    full, _ = step_flops(model, latents, conditions)
    whole = [tuple((name, EVERYTHING) for name in names) for names in run.site_names()]
    around = full - sum(plain(block, work) for block, work in enumerate(whole))  # embedding, modulation and head
    head = part_flops(model, latents, conditions, 0, 0).head

    def of_step(entry: Mapping[str, Any], work: tuple[Work, ...]) -> int:
        if "made_of" in entry:
            return 0
        return (around if work else head) + sum(
            _block_flops(of_block, block, of) for block, of in _by_block(work).items()
        )

    return [of_step(entry, work) for entry, work in zip(run.steps, run.work_by_step, strict=True)]


def _by_block(work: tuple[Work, ...]) -> dict[int, Block]:
    blocks: dict[int, list[tuple[str, int | str]]] = {}
    for block, name, done in work:
        blocks.setdefault(block, []).append((name, done))
    return {block: tuple(done) for block, done in blocks.items()}


def _block_flops(of_block: Callable[[int, Block], int], block: int, work: Block) -> int:
    whole = tuple((name, NOTHING if isinstance(done, int) else done) for name, done in work)
    total = of_block(block, whole)
    for name, done in work:
        if (
            isinstance(done, int) and done
        ):  # a share that grows with the tokens, and what these share, as keys of a text
            one, two = (
                of_block(block, tuple((other, n if other == name else NOTHING) for other, _ in work)) for n in (1, 2)
            )
            total += one + (done - 1) * (two - one)
    return total


def _whole_call(model: Any, latents: Tensor, conditions: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor], int]:
    """Inputs of a call with all tokens, and how many processes share these, each of which has its part of them."""
    if hasattr(model, "whole_call"):
        return model.whole_call(latents, **conditions)
    return latents, dict(conditions), 1


def _run_flops(run: Run) -> tuple[int, int]:
    inputs, enters = run.inputs, run.engine.enters_model
    model, (latents, conditions, processes) = inputs.model, _whole_call(inputs.model, inputs.latents, inputs.conditions)
    if isinstance(run, PartialRun):
        full, _ = step_flops(model, latents, conditions)
        partial = sum(_partial_step_flops(run, model, latents, conditions))
        return partial // processes, len(run.steps) * full // processes
    full, forecast = inputs.model.step_flops(inputs.latents, **inputs.conditions)
    total, uncached, decided = run.work_flops, len(run.steps) * full, not run.plan.foreseen
    parts = PartFlops()
    if decided or run.first_blocks or run.last_blocks:
        whole = part_flops(model, latents, conditions, run.first_blocks, run.last_blocks)
        parts = PartFlops(**{name: count // processes for name, count in asdict(whole).items()})
    split = bool(run.first_blocks or run.last_blocks)
    if decided:  # every step has the modulation of all blocks, and gates apart where forecasts are made of them
        gates = parts.gates if run.engine.needs_gates else 0
        full, forecast = full + gates, forecast - parts.gates + parts.modulation + gates
    for entry in run.steps:
        if entry["kind"] == "full":
            total += full
        elif enters:
            total += forecast + parts.first + parts.last + split * parts.context
        total += parts.modulated * ("looked_at" in entry) + (parts.context + parts.last_block) * ("verified" in entry)
    return total, uncached


def partial_steps(
    model: nn.Module,
    cache: Cache,
    num_steps: int,
    latents: Tensor,
    conditions: dict[str, Tensor],
    times: Tensor | None = None,
    branches: int = 1,
) -> tuple[Branches, int, list[int]]:
    """The outline of a run of a method that computes part of a step, bytes kept, operations by step; see `sampling_flops`.

    Of all guidance branches that have calls of their own.
    """
    backbone: Any = type(model)
    call = _outline(backbone, model.config, tuple(latents.shape), _shapes(conditions))
    if times is None:
        times = torch.linspace(getattr(model, "TIME_SPAN", TRAINING_SPAN), 0, num_steps + 1, device="cpu")[:-1]
    calls = branches if cache.separate_branches else 1
    runs, kept = outlined_runs(model, call, cache, latents.shape, times.cpu(), calls, conditions)
    by_run = [_partial_step_flops(run, model, latents, conditions) for run in runs]  # each with the rows of all
    return Branches(runs), kept // calls, [sum(counts) // calls for counts in zip(*by_run, strict=True)]


def partial_counts(run: PartialRun, model: nn.Module, latents: Tensor, conditions: dict[str, Tensor]) -> PartialCounts:
    """Operations of such a run, for `seerkit.sampling.published`."""
    total = sum(_partial_step_flops(run, model, latents, conditions))
    unseeing = sum(_partial_step_flops(run, model, latents, conditions, observed=False))
    return PartialCounts(
        works=tuple(run.work_by_step),
        full=tuple(entry["kind"] == "full" for entry in run.steps),
        flops_T=total / 1e12,
        observed_T=(total - unseeing) / 1e12,
    )


def sampling_flops(
    model: nn.Module,
    cache: Cache,
    num_steps: int,
    latents: Tensor,
    *,
    times: Tensor | None = None,
    branches: int = 1,
    **conditions: Tensor,
) -> dict[str, Any]:
    """A sampling run with and without `cache`: `flops_T`, `flops_T_uncached` (10^12), `flops_ratio`, `full_steps`,
    and of a method that computes part of some steps `partial_steps`.

    times: timesteps (S,) of the run, on the host, which some methods go by; None for evenly spaced ones. branches: of guidance,
    whose rows latents and conditions have together; methods that may leave one out call the model for each.
    Where full steps are decided while sampling, these are None, and `full_steps_bounds` and `flops_ratio_bounds` are there.
    UserError where the cache has a memory limit that it would not keep to.
    """
    plan, tokens = cache.plan(num_steps), model.tokens(latents)
    full, forecast = step_flops(model, latents, conditions)
    if cache.memory_limit is not None:
        cache.check_memory(plan, tokens, latents.device)
    uncached = num_steps * full
    common = {
        "flops_T_uncached": uncached / 1e12,
        "flops_T_full_step": full / 1e12,
        "flops_T_forecast_step": forecast / 1e12,
        "kept_bytes": cache.kept_bytes(num_steps, tokens),
        "stream_bytes": tokens.stream_bytes,
    }
    if cache.engine == PartialEngine.name:
        made, kept, by_step = partial_steps(model, cache, num_steps, latents, conditions, times, branches)
        total = sum(by_step)
        cache.check_kept(kept, len(latents))
        return {
            **common,
            "kept_bytes": {cache.engine: kept},
            "flops_T": total / 1e12,
            "flops_ratio": uncached / total,
            "flops_T_engine": 0.0,
            "full_steps": numbers_of(made.steps, "full"),
            "partial_steps": numbers_of(made.steps, "partial"),
        }
    if isinstance(plan, OpenPlan):
        first, last = cache.always_computed
        parts = part_flops(model, latents, conditions, first, last)
        context = parts.context if first or last else 0
        each = forecast + parts.first + parts.last + context if engine_class(cache.engine).enters_model else 0
        least = plan.least_full * full + (num_steps - plan.least_full) * each
        return {
            **common,
            **dict.fromkeys(("flops_T", "flops_ratio", "flops_T_engine", "full_steps")),
            "decided": "while sampling",
            "full_steps_bounds": [plan.least_full, num_steps],
            "flops_ratio_bounds": [1.0, uncached / least],
        }
    work = cache.work_flops(num_steps, tokens)
    steps = forecast if engine_class(cache.engine).enters_model else 0
    cached = len(plan.full_steps) * full + len(plan.forecast_steps) * steps + work
    return {
        **common,
        "flops_T": cached / 1e12,
        "flops_ratio": uncached / cached,
        "flops_T_engine": work / 1e12,
        "full_steps": list(plan.full_steps),
    }
