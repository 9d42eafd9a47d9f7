"""`enable` and `disable`: a cache on the transformer of a pipeline."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from torch import Tensor, nn

from cache_dic import Cache, Partial, Run, UserError, make_cache
from cache_dic.engine import PartialEngine, engine_class
from taylorseers_diffusers.clock import Clock, Moment
from taylorseers_diffusers.model import CachedTransformer
from taylorseers_diffusers.passes import Passes, drop_empty_registry
from taylorseers_diffusers.report import Report
from taylorseers_diffusers.transformers import known

HOOK = "taylorseers_cache"
TIME_NAMES = ("timestep", "timesteps", "t")
"""Arguments by which transformers take the timestep."""
TRANSFORMERS = ("transformer", "transformer_2")
"""Names of a pipeline's parts that may be cached; Wan 2.2 has two, each for a part of the steps."""


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None:
        """The context alone is wanted of diffusers' state manager."""


@dataclass
class Branch:
    """A guidance branch's run: which step of the scheduler its first step is, and the model as the run sees it."""

    model: CachedTransformer
    run: Run
    first: int

    def fits(self, moment: Moment, arguments: Mapping[str, Any]) -> bool:
        """Whether its next step is at hand, for latents of the same form."""
        latents, before = _latents(arguments), self.model.latents
        is_next = moment.step - self.first == len(self.run.steps) and not self.run.broken
        return (
            is_next
            and latents.shape == before.shape
            and latents.dtype == before.dtype
            and latents.device == before.device
        )


@dataclass
class Sampling:
    """Runs of one list of timesteps: by guidance branch."""

    timesteps: Tensor
    branches: dict[tuple[str | None, int], Branch] = field(default_factory=dict)
    ended: list[Branch] = field(default_factory=list)
    step: int = -1
    calls: dict[str | None, int] = field(default_factory=dict)


class CacheHook(ModelHook):
    """On a transformer: every call is taken as a step of a run of the cache."""

    _is_stateful = True

    def __init__(self, cache: Cache, passes: Passes) -> None:
        super().__init__()
        self.cache, self.passes, self.clock = cache, passes, Clock()
        self.state_manager = StateManager(_NoState)
        self.sampling: Sampling | None = None
        self.report: Report | None = None
        self.shard: Any = None

    def reset_state(self, module: nn.Module) -> nn.Module:
        """A pipeline has ended; what its runs kept is dropped, what they did stays for the report."""
        if self.sampling is not None:
            self.report = Report.of(self.cache, self.passes, self._runs())
        self.sampling = None
        return module

    def _runs(self) -> dict[str, list[Run]]:
        assert self.sampling is not None, "asked during sampling"
        found: dict[str, list[Run]] = {}
        for key, branch in self.sampling.branches.items():
            found.setdefault(_branch_name(key), []).append(branch.run)
        return found

    def cache_report(self) -> Report:
        """Of the run under way, or the last one."""
        if self.sampling is not None:
            self.report = Report.of(self.cache, self.passes, self._runs())
        return self.report or Report.of(self.cache, self.passes, {})

    # ------------------------------------------------------------------------------------------------------------- a call

    @torch.compiler.disable
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _check_module(module)
        forward = self.fn_ref.original_forward
        arguments = dict(inspect.signature(type(module).forward).bind(module, *args, **kwargs).arguments)
        arguments.pop(next(iter(arguments)))
        arguments |= arguments.pop("kwargs", {})
        time = next((name for name in TIME_NAMES if arguments.get(name) is not None), None)
        if time is None:
            raise UserError(f"{type(module).__name__} was called without a timestep")
        self.passes.refresh()
        moment = self.clock.now(arguments[time])
        branch = self._branch(module, moment, arguments, time, forward)
        model, run = branch.model, branch.run
        model.arguments, model.moment, model.raw, model.forward = arguments, moment, None, forward
        step = moment.step - branch.first
        needs_gates = run.engine.needs_gates
        gates = (
            run.table.gates([step])[0]
            if step == 0 and needs_gates and run.plan.least_full < run.plan.num_steps
            else None
        )
        output = run.at(step)(
            run.tokens,
            lambda site: model.full_step(site, gates),
            lambda advance: model.forecast_step(advance, needs_gates),
            model.parts(),
        )
        return model.answer(output)

    def _branch(
        self, module: nn.Module, moment: Moment, arguments: Mapping[str, Any], time: str, forward: Any
    ) -> Branch:
        """The run that a call belongs to, a new one where none fits."""
        if self.sampling is None or self.sampling.timesteps is not moment.timesteps or moment.step < self.sampling.step:
            self.sampling = Sampling(moment.timesteps)
        sampling = self.sampling
        if moment.step != sampling.step:
            sampling.step, sampling.calls = moment.step, {}
        context = self.state_manager._context
        name = None if context is None else context.name
        key = (name, sampling.calls.get(name, 0))
        sampling.calls[name] = key[1] + 1
        branch = sampling.branches.get(key)
        if branch is None or not branch.fits(moment, arguments):
            leader = next((b.run for k, b in sampling.branches.items() if k != key and b.first == moment.step), None)
            kind = type(type(module).__name__, (CachedTransformer,), {})
            model = kind(
                self.passes,
                forward,
                self.clock,
                moment,
                arguments,
                time,
                self.cache.engine == PartialEngine.name,
                self.shard,
            )
            run = self.cache.start(
                model,
                model.latents,
                moment.timesteps[moment.step :],
                leader=leader,
                sigmas=None if moment.sigmas is None else moment.sigmas[moment.step :],
            )
            branch = Branch(model, run, moment.step)
            sampling.branches[key] = branch
        return branch


def _latents(arguments: Mapping[str, Any]) -> Tensor:
    return next(value for value in arguments.values() if isinstance(value, Tensor))


def _branch_name(key: tuple[str | None, int]) -> str:
    name, number = key
    if name is None:
        return f"call {number + 1}"
    return name if number == 0 else f"{name} {number + 1}"


def _check_module(module: nn.Module) -> None:
    """UserError for what cannot be together with this cache."""
    if getattr(module, "_cache_config", None) is not None:
        raise UserError(
            f"diffusers' own {type(module._cache_config).__name__} is on; call transformer.disable_cache(), or disable() this"
        )
    if module._compiled_call_impl is not None:
        raise UserError(
            f"{type(module).__name__} is compiled as a whole, one graph in which no block can be left out; compile its blocks "
            "instead: transformer.compile_repeated_blocks()"
        )


# ---------------------------------------------------------------------------------------------------------------- enable


def enable(pipe: Any, method: str | Cache = "taylorseer", **settings: Any) -> Any:
    """Put a cache on a pipeline's transformer; returns the pipeline.

        enable(pipe, method="taylorseer", interval=6, max_order=2)
        image = pipe("a fox").images[0]
        print(pipe.cache_report())

    method, settings: as in `cache_dic.make_cache`, or what that has made, without settings; published settings of the model are
    the usual ones where there are any.
    engine: None for the site form, kept folded, of transformers whose gates can be read from their modules, and for the stack
    form, what all blocks together add, of others. A cache that is on already is replaced. Raises UserError for a pipeline
    without a transformer with blocks, and for one with diffusers' own cache on.
    """
    modules = _transformers(pipe)
    made = [(module, Passes(module)) for module in modules]  # all is checked before anything is changed
    caches = [_made_cache(passes, method, settings) for _, passes in made]
    for module in modules:
        _check_module(module)
    for (module, passes), cache in zip(made, caches, strict=True):
        others = _pipelines_of(module)
        _remove(module)
        hook = CacheHook(cache, passes)
        for other in (*others, pipe):
            hook.clock.add(other)
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)
        if passes.site_form:
            passes.watch()
        module._diffusers_hook.invalidate_child_registries_cache()
    pipe.cache_report = lambda: report(pipe)
    return pipe


def disable(pipe: Any) -> Any:
    """Take the cache off again: the transformer is what it was before; returns the pipeline."""
    for module in _transformers(pipe):
        _remove(module)
    vars(pipe).pop("cache_report", None)
    return pipe


def report(pipe: Any) -> Report:
    """What the cache of a pipeline has done in the last run."""
    for module in _transformers(pipe):
        hook = _hook_of(module)
        if hook is not None:
            return hook.cache_report()
    raise UserError(f"{type(pipe).__name__} has no cache; call enable(pipe, ...) first")


def _transformers(pipe: Any) -> list[nn.Module]:
    """Those of a pipeline, without what torch.compile puts around them."""
    found = [part for name in TRANSFORMERS if isinstance(part := getattr(pipe, name, None), nn.Module)]
    if not found:
        raise UserError(
            f"{type(pipe).__name__} has no transformer; what is supported are pipelines of diffusers with one, such as "
            "FluxPipeline, WanPipeline and HunyuanVideoPipeline"
        )
    for part in found:
        if hasattr(part, "_orig_mod"):
            raise UserError(
                f"the transformer of {type(pipe).__name__} is compiled as a whole, one graph in which no block can be left "
                "out; compile its blocks instead: transformer.compile_repeated_blocks()"
            )
    return found


def _hook_of(module: nn.Module) -> CacheHook | None:
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(HOOK)


def _pipelines_of(module: nn.Module) -> list[Any]:
    hook = _hook_of(module)
    return [] if hook is None else [pipe for held in hook.clock._pipelines if (pipe := held()) is not None]


def _remove(module: nn.Module) -> None:
    hook = _hook_of(module)
    if hook is None:
        return
    hook.passes.unwatch()
    module._diffusers_hook.remove_hook(HOOK, recurse=False)
    module._diffusers_hook.invalidate_child_registries_cache()
    drop_empty_registry(module)


def _made_cache(passes: Passes, method: str | Cache, settings: Mapping[str, Any]) -> Cache:
    """The cache of a transformer, with an engine that its blocks allow."""
    preset = settings.get("preset", known(passes.transformer).preset)
    given = {"preset": preset, **settings}
    if isinstance(method, Cache):
        cache, method, settings = method, method.method, {"engine": method.engine}
    else:
        cache = make_cache(method, **given)
    engine, decider = engine_class(cache.engine), cache.decider()
    if isinstance(decider, Partial) and (decider.selects_tokens or decider.observes is not None):
        raise UserError(
            f"method {method!r} computes some tokens of a block or looks into its attention, which diffusers' blocks do not "
            "allow; the backbones of this repository do, or take another method"
        )
    if passes.site_form or not (engine.needs_gates or engine.walks):
        return cache
    name = type(passes.transformer).__name__
    if settings.get("engine") is not None or engine.walks:
        raise UserError(
            f"the {cache.engine} engine needs the gates of all sites, which are not known of {name}; take engine='stack'"
            if not engine.walks
            else f"method {method!r} walks through the sites of the blocks, which are not known of {name}; take another method"
        )
    if engine is PartialEngine:
        raise UserError(
            f"method {method!r} computes a part of a block, whose submodules are not known of {name}; take another method"
        )
    return make_cache(method, **{**given, "engine": "stack"})
