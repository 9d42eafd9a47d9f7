"""`enable` and `disable`: a cache on the transformer of a pipeline."""

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache as cache_of_results
from typing import Any, NoReturn

import torch
from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from torch import Tensor, nn

from cache_dic import Cache, UserError, make_cache
from cache_dic.engine import PartialEngine, engine_class
from taylorseers_diffusers.attach import hook_on, put_on, take_off
from taylorseers_diffusers.branches import TIME_NAMES, Branch, Branches, Key
from taylorseers_diffusers.clock import Clock, Moment
from taylorseers_diffusers.methods import check_method
from taylorseers_diffusers.model import CachedTransformer, latents_of
from taylorseers_diffusers.passes import Passes
from taylorseers_diffusers.reports import Record, Report
from taylorseers_diffusers.shards import shared_tokens
from taylorseers_diffusers.transformers import known, published_name

HOOK = "taylorseers_cache"
"""Name of the hook."""
RESET = "_reset_stateful_cache"
"""What pipelines call at their end, where a transformer has it: those that may have a cache of diffusers'."""
TRANSFORMERS = ("transformer", "transformer_2")
"""Names of a pipeline's parts that may be cached; Wan 2.2 has two, each for a part of the steps."""


class _NoState(BaseState):
    def reset(self, *args: Any, **kwargs: Any) -> None:
        """The context alone is wanted of diffusers' state manager."""


@dataclass
class Sampling(Branches):
    """Runs of one list of timesteps, by the cache context that calls are made in; ended: records of those that a branch had
    before."""

    timesteps: Tensor
    ended: dict[Key, list[Record]] = field(default_factory=dict)

    def begin(self, key: Key, branch: Branch) -> None:
        before = self.branches.get(key)
        if before is not None and before.run.steps:
            self.ended.setdefault(key, []).append(before.record())
        self.branches[key] = branch

    def records(self) -> dict[str, list[Record]]:
        """Of all runs, by name of the branch."""
        return {_branch_name(key): [*self.ended.get(key, []), b.record()] for key, b in self.branches.items()}


class CacheHook(ModelHook):
    """On a transformer: every call is taken as a step of a run of the cache."""

    _is_stateful = True

    def __init__(self, cache: Cache, passes: Passes) -> None:
        super().__init__()
        self.cache, self.passes, self.clock = cache, passes, Clock()
        self.state_manager = StateManager(_NoState)
        self.sampling: Sampling | None = None
        self.report: Report | None = None

    def __reduce__(self) -> NoReturn:
        raise UserError(
            f"{type(self.passes.transformer).__name__} cannot be copied or pickled with a cache on it; disable() it first"
        )

    def reset_state(self, module: nn.Module) -> nn.Module:
        """A pipeline has ended; what its runs kept is dropped, what they did stays for the report."""
        self.report = self.cache_report()
        self.sampling = None
        self.clock.ended()
        return module

    def cache_report(self) -> Report:
        """Of the run under way, or the last one."""
        if self.sampling is None:
            return self.report or Report.of(self.cache, self.passes, {})
        return Report.of(self.cache, self.passes, self.sampling.records())

    # ------------------------------------------------------------------------------------------------------------- a call

    @torch.compiler.disable
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _check_module(module)
        forward = self.fn_ref.original_forward
        arguments = dict(_signature(type(module)).bind(*args, **kwargs).arguments)
        arguments |= arguments.pop("kwargs", {})
        time = next((name for name in TIME_NAMES if arguments.get(name) is not None), None)
        if time is None:
            raise UserError(f"{type(module).__name__} was called without a timestep")
        if not isinstance(arguments[time], Tensor):
            arguments[time] = torch.as_tensor([arguments[time]], device=latents_of(arguments).device)
        self.passes.refresh()
        moment = self.clock.now(arguments[time])
        branch = self._branch(module, moment, arguments, time, forward)
        model = branch.model
        model.arguments, model.moment, model.forward = arguments, moment, forward
        return model.answer(model.step(branch.run, moment.step - branch.first))

    def _branch(
        self, module: nn.Module, moment: Moment, arguments: Mapping[str, Any], time: str, forward: Any
    ) -> Branch:
        """The run that a call belongs to, a new one where none fits."""
        if self.sampling is None or self.sampling.timesteps is not moment.timesteps or moment.step < self.sampling.step:
            self.sampling = Sampling(moment.timesteps)
        sampling, context = self.sampling, self.state_manager._context
        key = sampling.key(moment.step, None if context is None else context.name)
        branch = sampling.branches.get(key)
        if (
            branch is None
            or moment.reading is not branch.model.first.reading  # as which timesteps turn out to be given only later
            or not branch.fits(moment.step, latents_of(arguments))
        ):
            branch = self._begun(module, moment, arguments, time, forward, key)
            sampling.begin(key, branch)
        return branch

    def _begun(
        self, module: nn.Module, moment: Moment, arguments: Mapping[str, Any], time: str, forward: Any, key: Key
    ) -> Branch:
        """A branch with a run over the timesteps that are left."""
        assert self.sampling is not None, "a branch of it"
        self.clock.check(moment, arguments[time])
        for pipe in self.clock.pipelines:
            _transformers(pipe)
        others = [b for k, b in self.sampling.branches.items() if k != key and b.first == moment.step]
        leader, cache = None, self.cache
        if moment.step:  # where what is left may be less than the warm-up
            cache = replace(cache, default_warmup=True)
        if others:
            leader, cache = others[0].run, replace(cache, branches=len(others) + 1)
            leader.inputs = replace(leader.inputs, branches=cache.branches)
        kind = type(type(module).__name__, (CachedTransformer,), {})
        partial = cache.engine == PartialEngine.name
        model = kind(self.passes, forward, self.clock, moment, arguments, time, partial, shared_tokens(module, HOOK))
        run = cache.start(
            model,
            model.latents,
            moment.timesteps[moment.step :],
            leader=leader,
            sigmas=None if moment.sigmas is None else moment.sigmas[moment.step :],
        )
        return Branch(model, run, moment.step)


@cache_of_results
def _signature(kind: type) -> inspect.Signature:
    """Of a class's forward, as it is called on an object."""
    full = inspect.signature(kind.forward)
    return full.replace(parameters=list(full.parameters.values())[1:])


def _branch_name(key: Key) -> str:
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
    if torch.is_grad_enabled() and getattr(module, "gradient_checkpointing", False):
        raise UserError(
            f"gradient checkpointing of {type(module).__name__} computes blocks once more outside of a step; call "
            "transformer.disable_gradient_checkpointing(), or disable() the cache first"
        )


# ---------------------------------------------------------------------------------------------------------------- enable


def enable(pipe: Any, method: str | Cache = "taylorseer", **settings: Any) -> Any:
    """Put a cache on a pipeline's transformer; returns the pipeline.

        enable(pipe, method="taylorseer", interval=6, max_order=2)
        image = pipe("a fox").images[0]
        print(pipe.cache_report())

    method, settings: as `cache_dic.make_cache` takes them; or, as method, a cache that it has made, without settings. What is
    published for the model is the default; model="flux-dev" says which it is where its configuration does not. engine: left
    out, the method's own, "folded" for taylorseer; "stack", which keeps what all blocks together add, where that needs gates
    that cannot be read from the transformer's modules. A cache that is on already is replaced.

    Another pipeline with the same transformer and scheduler runs with the cache, too, and `report(pipe)` tells what it did; one
    with a scheduler of its own needs `enable`. Raises UserError for a pipeline without a transformer with blocks, for one with
    diffusers' own cache on, and for methods that diffusers' blocks do not allow.
    """
    caches = [_made_cache(pipe, Passes(module), method, settings) for module in _transformers(pipe)]
    return install(pipe, *caches)


def install(pipe: Any, *caches: Cache) -> Any:
    """Put ready caches on a pipeline's transformers, one for each or one for all, in place of those that are on."""
    modules = _transformers(pipe)
    made = [(module, Passes(module)) for module in modules]  # all is checked before anything is changed
    for module in modules:
        _check_module(module)
    for (module, passes), cache in zip(made, caches * len(modules) if len(caches) == 1 else caches, strict=True):
        others = _pipelines_of(module)
        _remove(module)
        hook = CacheHook(cache, passes)
        for other in (*others, pipe):
            hook.clock.add(other)
        put_on(module, hook, HOOK)
        if passes.site_form:
            passes.watch()
        if not hasattr(module, RESET):
            setattr(module, RESET, lambda hook=hook: hook.reset_state(None))
        module._diffusers_hook.invalidate_child_registries_cache()
    pipe.cache_report = _reporter(weakref.ref(pipe))
    return pipe


def _reporter(held: "weakref.ref[Any]") -> Callable[[], Report]:
    """A pipeline's `cache_report`, which does not keep it."""

    def cache_report() -> Report:
        pipe = held()
        if pipe is None:
            raise UserError("the pipeline of this report is gone")
        return report(pipe)

    return cache_report


def disable(pipe: Any) -> Any:
    """Take the cache off again: the transformer is what it was before; returns the pipeline."""
    for module in _transformers(pipe):
        _remove(module)
    vars(pipe).pop("cache_report", None)
    return pipe


def report(pipe: Any) -> Report:
    """What the cache of a pipeline has done in the run under way, or else the last one; UserError where there is none."""
    reports = [hook.cache_report() for hook in hooks_of(pipe)]
    if not reports:
        raise UserError(f"{type(pipe).__name__} has no cache; call enable(pipe, ...) first")
    return replace(reports[0], second=reports[1]) if len(reports) > 1 else reports[0]


def _transformers(pipe: Any) -> list[nn.Module]:
    """Those of a pipeline, without what torch.compile puts around them."""
    parts = [part for name in TRANSFORMERS if isinstance(part := getattr(pipe, name, None), nn.Module)]
    found = list(dict.fromkeys(parts))
    if not found and isinstance(pipe, nn.Module):
        raise UserError(
            f"{type(pipe).__name__} is a model; give the pipeline that calls it, whose scheduler tells the steps"
        )
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


def hooks_of(pipe: Any) -> list[CacheHook]:
    """Those of a pipeline's caches."""
    return [hook for module in _transformers(pipe) if (hook := hook_on(module, HOOK)) is not None]


def _pipelines_of(module: nn.Module) -> list[Any]:
    hook = hook_on(module, HOOK)
    return [] if hook is None else hook.clock.pipelines


def _remove(module: nn.Module) -> None:
    hook = hook_on(module, HOOK)
    if hook is None:
        return
    hook.passes.unwatch()
    vars(module).pop(RESET, None)
    take_off(module, HOOK)
    if hasattr(module, "_diffusers_hook"):
        module._diffusers_hook.invalidate_child_registries_cache()


def _made_cache(pipe: Any, passes: Passes, method: str | Cache, settings: Mapping[str, Any]) -> Cache:
    """The cache of a transformer, with an engine that its blocks allow."""
    transformer = passes.transformer
    given = {"preset": known(transformer).preset, "model": published_name(transformer, pipe), **settings}
    if isinstance(method, Cache):
        if settings:
            raise UserError(
                f"{', '.join(settings)} would have no effect on a cache that is made already; give it to make_cache instead"
            )
        cache, method, settings = method, method.method, {"engine": method.engine}
    else:
        cache = make_cache(method, **given)
    check_method(cache)
    engine = engine_class(cache.engine)
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
