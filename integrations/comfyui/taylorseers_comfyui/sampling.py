"""A cache on a patched model: every call of its transformer is taken as a step of a run.

Which step that is follows from the noise levels of the sampling (`transformer_options["sample_sigmas"]`) and that of the call;
nothing is counted from run to run. Calls of one step are branches, told apart by the conditions that they are made for.
"""

import inspect
import logging
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Cache, UserError, make_cache
from cache_dic.engine import engine_class
from cache_dic.plan import describe_steps
from taylorseers_diffusers.branches import TIME_NAMES, Branch, Branches
from taylorseers_diffusers.clock import Moment

from .models import ComfyModel, ComfyPasses, replaced_forward

log = logging.getLogger("taylorseers_comfyui")

KEY = "taylorseer"
"""Name of the wrapper around samplings."""

OUTER_SAMPLE = "outer_sample"
"""comfy.patcher_extension.WrappersMP.OUTER_SAMPLE."""

NEARLY = 1e-4
"""Relative difference by which the noise level of a call may miss that of its step."""

ADDING = {"double_block", "single_block"}
"""Names of patches that are called with the tokens after a block."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """The part of sampling that is cached; all limits hold at once.

    start_percent, end_percent: of sampling, from 0 to 1, as model_sampling.percent_to_sigma has them. start_at_step,
    end_at_step: in steps of the sampling, the last one excluded.
    """

    start_percent: float = 0.0
    end_percent: float = 1.0
    start_at_step: int = 0
    end_at_step: int = 10000

    def __post_init__(self) -> None:
        if not 0 <= self.start_percent < self.end_percent <= 1:
            raise UserError(
                f"start_percent = {self.start_percent} and end_percent = {self.end_percent} must be between 0 and 1, the end "
                "after the start"
            )
        if not 0 <= self.start_at_step < self.end_at_step:
            raise UserError(
                f"start_at_step = {self.start_at_step} and end_at_step = {self.end_at_step} must be steps from 0 on, the end "
                "after the start"
            )

    def steps(self, sigmas: list[float], percent_to_sigma: Callable[[float], float]) -> range:
        """Those of noise levels that are in it."""
        most = percent_to_sigma(self.start_percent) * (1 + NEARLY) if self.start_percent > 0 else math.inf
        least = percent_to_sigma(self.end_percent) if self.end_percent < 1 else -math.inf
        inside = [
            step
            for step, sigma in enumerate(sigmas)
            if self.start_at_step <= step < self.end_at_step and least < sigma <= most
        ]
        return range(inside[0], inside[-1] + 1) if inside else range(0)


@dataclass
class Sampling(Branches):
    """Runs of one sampling, by the conditions that calls are made for.

    sigmas (S,): noise levels of its steps on the CPU. cached: steps of the window.
    """

    sigmas: Tensor
    cached: range

    def step_of(self, sigma: float) -> int | None:
        """None for a noise level between those of the steps."""
        distance = (self.sigmas - sigma).abs()
        nearest = int(distance.argmin())
        return nearest if float(distance[nearest]) <= NEARLY * float(self.sigmas[nearest]) else None


class SamplingCache:
    """What the node puts on a model: `__call__` around every model call, `sample` around every sampling.

    base: the model (comfy.model_base.BaseModel), shared by the patched model and its clones. inner: the wrapper around model
    calls that was there before.
    """

    def __init__(self, base: Any, cache: Cache, window: Window, inner: Callable[..., Tensor] | None = None) -> None:
        self.base, self.cache, self.window, self.inner = base, cache, window, inner
        self.passes = ComfyPasses(base.diffusion_model)
        self.sampling: Sampling | None = None
        self.said: set[str] = set()

    def __deepcopy__(self, memo: Any) -> "SamplingCache":
        """Clones of a patched model share it, as they share the model; each sampling starts afresh."""
        return self

    def sample(self, executor: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """A sampling; what its runs kept is dropped at its end, however it ends."""
        before, self.sampling, self.said = self.sampling, None, set()
        try:
            return executor(*args, **kwargs)
        finally:
            self.report()
            self.sampling = before

    def report(self) -> None:
        """Log what the runs of this sampling did."""
        for branch in [] if self.sampling is None else self.sampling.branches.values():
            full, taken = branch.run.full_steps, len(branch.run.steps)
            from_step = f" from step {branch.first} on" if branch.first else ""
            log.info(
                f"{self.cache.label}: {len(full)} of {taken} steps{from_step} full ({describe_steps(full)}), "
                f"{branch.run.kept_bytes / 2**20:.1f} MiB kept"
            )

    # ------------------------------------------------------------------------------------------------------------- a call

    def __call__(self, apply_model: Callable[..., Tensor], call: Mapping[str, Any]) -> Tensor:
        """The model's answer to a call as ComfyUI makes it: input, timestep (the noise level), c (conditions and options)."""
        step, conditions = self._step(call["timestep"], call["c"].get("transformer_options", {}), call)
        if step is None:
            return self._inner(apply_model, call)
        transformer = self.base.diffusion_model
        if transformer is not self.passes.transformer:
            self.passes = ComfyPasses(transformer)
        self.passes.refresh()
        taken = partial(self._taken, transformer.forward, step, conditions)
        with replaced_forward(transformer, taken):
            return self._inner(apply_model, call)

    def _inner(self, apply_model: Callable[..., Tensor], call: Mapping[str, Any]) -> Tensor:
        if self.inner is not None:
            return self.inner(apply_model, call)
        return apply_model(call["input"], call["timestep"], **call["c"])

    def _step(
        self, timestep: Tensor, options: Mapping[str, Any], call: Mapping[str, Any]
    ) -> tuple[int | None, Hashable]:
        """Step of the sampling and conditions of a call; no step for one that is computed as if there were no cache."""
        sigmas = options.get("sample_sigmas")
        if sigmas is None or len(sigmas) < 2:
            self._say("a call outside of a sampling, of which it is not known which step it is, is computed in full")
            return None, None
        if options.get("patches_replace", {}).get("dit"):
            self._say("calls with blocks replaced, as guidance by skipped layers makes them, are computed in full")
            return None, None
        levels = sigmas[:-1].detach().cpu().double()
        if self.sampling is None or not torch.equal(self.sampling.sigmas, levels):
            self._begin(levels)
        step = self.sampling.step_of(float(timestep.flatten()[0]))
        if step is None:
            self._say("calls of the sampler between two of its steps are computed in full")
            return None, None
        if step < self.sampling.step:
            self._begin(levels)
        window = options.get("context_window")
        conditions = (
            tuple(options.get("cond_or_uncond", call.get("cond_or_uncond", ()))),
            tuple(options.get("uuids", ())),
            None if window is None else tuple(window.index_list),
        )
        return (step, conditions) if step in self.sampling.cached else (None, None)

    def _begin(self, levels: Tensor) -> None:
        percent_to_sigma = self.base.model_sampling.percent_to_sigma
        self.sampling = Sampling(levels, self.window.steps(levels.tolist(), percent_to_sigma))

    def _say(self, what: str) -> None:
        """Once a sampling."""
        if what not in self.said:
            self.said.add(what)
            log.warning(f"{self.cache.label}: {what}")

    def _taken(
        self, forward: Callable[..., Tensor], step: int, conditions: Hashable, *args: Any, **kwargs: Any
    ) -> Tensor:
        """In place of the transformer's forward: the call as a step of its run."""
        arguments = dict(inspect.signature(forward).bind(*args, **kwargs).arguments)
        arguments |= arguments.pop("kwargs", {})
        time = next((name for name in TIME_NAMES if name in arguments), None)
        if time is None:
            raise UserError(
                f"{type(self.passes.transformer).__name__} takes its time by none of {', '.join(TIME_NAMES)}, so its steps are "
                "not known; see which version of ComfyUI the README of this node was written for"
            )
        sampling = self.sampling
        assert sampling is not None, "begun before the call"
        start, stop = sampling.cached.start, sampling.cached.stop
        levels = sampling.sigmas[start:stop]
        moment = Moment(step - start, levels, levels, self.base.model_sampling.timestep)
        key, latents = sampling.key(step, conditions), next(v for v in arguments.values() if isinstance(v, Tensor))
        branch = sampling.branches.get(key)
        if branch is None or not branch.fits(step, latents):
            branch = self._branch(key, step, moment, forward, arguments, time)
            sampling.branches[key] = branch
        model = branch.model
        if (
            branch.run.engine.needs_gates
            and ADDING & arguments.get("transformer_options", {}).get("patches", {}).keys()
        ):
            raise UserError(
                f"another node adds to the tokens of {model.name} between its blocks, by what the tokens are there, so that "
                "this has to be forecast, too; take engine = stack"
            )
        model.arguments, model.moment, model.forward = arguments, moment, forward
        return model.step(branch.run, step - branch.first)

    def _branch(
        self, key: Hashable, step: int, moment: Moment, forward: Any, arguments: Mapping[str, Any], time: str
    ) -> Branch:
        """A run that begins at this step."""
        others = self.sampling.branches.items()
        leader = next((other.run for k, other in others if k != key and other.first == step), None)
        kind = type(type(self.passes.transformer).__name__, (ComfyModel,), {})
        model = kind(self.passes, forward, None, moment, arguments, time, partial=False)
        levels = moment.timesteps[moment.step :]
        return Branch(model, self.cache.start(model, model.latents, levels, leader=leader, sigmas=levels), step)


def made_cache(transformer: nn.Module, method: str, engine: str | None, settings: Mapping[str, Any]) -> Cache:
    """The cache for a transformer, with an engine that its blocks allow."""
    passes = ComfyPasses(transformer)
    given = {"preset": passes.known.preset, **settings}
    cache = make_cache(method, engine=engine, **given)
    chosen, name = engine_class(cache.engine), type(transformer).__name__
    if chosen.walks:
        raise UserError(
            f"method {method!r} computes a part of a block or of its tokens, which is not to be had of ComfyUI's blocks; "
            "take one that leaves out whole steps, such as taylorseer"
        )
    if passes.site_form or not chosen.needs_gates:
        return cache
    if engine is not None:
        raise UserError(f"the {engine} engine needs the gates of all sites, which are not known of {name}; take stack")
    return make_cache(method, engine="stack", **given)


def patched(model: Any, cache: Cache, window: Window) -> Any:
    """A clone of a model (comfy.model_patcher.ModelPatcher) with a cache, in place of one that it may have had."""
    if not hasattr(model, "add_wrapper_with_key"):
        raise UserError(
            f"{type(model).__name__} has no add_wrapper_with_key, by which a cache learns where a sampling begins and ends; "
            "update ComfyUI to a version of 2025 or later"
        )
    clone = model.clone()
    inner = clone.model_options.get("model_function_wrapper")
    if isinstance(inner, SamplingCache):
        inner = inner.inner
    made = SamplingCache(clone.model, cache, window, inner)
    clone.set_model_unet_function_wrapper(made)
    clone.remove_wrappers_with_key(OUTER_SAMPLE, KEY)
    clone.add_wrapper_with_key(OUTER_SAMPLE, KEY, made.sample)
    return clone
