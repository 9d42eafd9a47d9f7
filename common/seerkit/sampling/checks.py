"""What the samplers of all backbones ask of models, settings, caches and the noise they start from."""

from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn

from cache_dic import METHODS, Cache, Run, Step, UserError, make_cache
from cache_dic.errors import shown
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import check_kind, integer
from seerkit.limits import MAX_GUIDANCE
from seerkit.sampling.seeds import SampleGenerators


def checked_steps(num_steps: Any) -> int:
    """The number of sampling steps; UserError unless it is an integer that a plan can have."""
    return integer("num_steps", num_steps, at_least=1, at_most=MAX_STEPS)


def checked_number(name: str, value: Any) -> float:
    """A guidance weight or a shift; UserError naming it unless it is a number of at most MAX_GUIDANCE."""
    value = check_kind(name, value, float)
    if abs(value) > MAX_GUIDANCE:
        raise UserError(
            f"{name} = {shown(value)} must be at most {MAX_GUIDANCE:.0e} in magnitude; usual values are 1 to 20"
        )
    return value


def checked_model(model: Any) -> nn.Module:
    """A backbone, or what stands for one; UserError for a wrapper that does not show the backbone's attributes.

    Samplers call the model itself in every step, so what wraps or overrides its `forward` counts.
    """
    missing = [name for name in ("config", "tokens", "modulation_table") if not hasattr(model, name)]
    if missing:
        raise UserError(
            f"a sampler cannot use {type(model).__name__}, which has no {' and no '.join(missing)}; hand it the backbone, or a "
            "module around it that passes its attributes on"
        )
    return model


def checked_cache(cache: Any) -> Cache:
    """A cache for a sampler, None standing for the uncached one; UserError for anything that `make_cache` does not give."""
    if cache is None:
        return make_cache("uncached")
    if isinstance(cache, Cache):
        return cache
    if isinstance(cache, Run | Step):
        raise UserError(
            f"a sampler takes the cache itself and starts its own runs, but cache is a {type(cache).__name__}; hand it what "
            "make_cache gave, sample(..., cache=cache)"
        )
    near = get_close_matches(cache, METHODS, 1) if isinstance(cache, str) else []
    raise UserError(
        f"cache = {shown(cache)} is no cache; make one, sample(..., cache=make_cache({(near or ['taylorseer'])[0]!r})), or "
        "leave it out to compute every step"
    )


def checked_generators(
    generators: SampleGenerators | None, seed: int | None, noise: Tensor, *, solver: str, draws: bool
) -> SampleGenerators | None:
    """Whatever a solver draws noise from: what is given, else those of the seed after the noise that it starts from.

    draws: whether it draws any; None comes of one that does not. UserError unless there is one generator for each sample of
    noise (B, …), and for a seed that would change nothing.
    """
    if seed is not None and not draws:
        raise UserError(
            f"seed = {shown(seed)} has no effect on the {solver} solver, which draws no noise; the noise that it is given "
            "decides, leave the seed out"
        )
    if generators is None:
        return SampleGenerators.after(seed or 0, noise) if draws else None
    if not isinstance(generators, SampleGenerators) or len(generators.generators) != len(noise):
        raise UserError(
            f"generators = {shown(generators)} must be SampleGenerators of {len(noise)} samples; or leave them out and give a "
            "seed"
        )
    return generators


def check_noise(noise: Tensor) -> None:
    """UserError if there is no sample to make, or nothing of it."""
    if not noise.numel():
        raise UserError(f"noise of shape {tuple(noise.shape)} holds no sample; give at least one")
