"""The models that can be counted and timed by name: how each is built, what it is called with, how it is sampled.

A new backbone is one class with the members of `Backbone` and one line in `BACKBONES`; eval/flops.py and eval/benchmark.py
then take its names as --model. Everything is built on torch's default device: under `torch.device("meta")` nothing is
allocated.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cache_dic import Cache, Run
from dit import CONFIGS, DiT, DiTConfig, Sampler, dit_config
from dit.command import DEFAULTS, PAPER_ORDERS
from dit.diffusion import Diffusion
from evaluation.paper import Term, dit_counter, dit_difference
from seerkit.attention import BACKENDS
from seerkit.cache_flags import add_cache_flags, caches_from_flags
from seerkit.cli import PRECISIONS, Parser, positive_float, positive_int


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a model call works on; None leaves a size to the model.

    image_size: side in pixels. num_samples: samples a call. cfg_scale: guidance weight; with any but 1 a sample takes two
    rows, conditional and unconditional. depth: number of blocks, for trials. attention: a name in `seerkit.attention.BACKENDS`.
    """

    image_size: int | None = None
    num_samples: int = 1
    cfg_scale: float = 1.5
    depth: int | None = None
    attention: str = "sdpa"


@dataclass(frozen=True)
class Case:
    """A model and the inputs of one call: `model(latents, t, **conditions)`, rows of both guidance branches together."""

    model: nn.Module
    latents: Tensor
    conditions: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return len(self.latents)

    def to(self, dtype: torch.dtype) -> "Case":
        """The same with weights and latents in another precision."""
        return Case(self.model.to(dtype), self.latents.to(dtype), self.conditions)


class Backbone(Protocol):
    """What counting and timing need of a model that has a name.

    defaults: the authors' interval, max_order and warmup_steps. orders: the paper's order by interval.
    """

    defaults: Mapping[str, int]
    orders: Mapping[int, int]

    def config(self, workload: Workload) -> Any:
        """The model's configuration; ValueError if it cannot be had."""

    def build(self, workload: Workload) -> Case:
        """The model with random weights and random inputs, on the default device."""

    def timesteps(self, num_steps: int) -> Tensor:
        """Timesteps (S,) in sampling order."""

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callable[[int, Tensor], None]
    ) -> tuple[Tensor, Run]:
        """A whole sampling run from the latents of `case`: final latents and the run."""

    def published_step_flops(self, config: Any, rows: int) -> tuple[int, int] | None:
        """Operations of a full and a forecast step as the paper's own counter has them; None where that is not known."""

    def difference(self, config: Any, rows: int, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        """What leads from the paper's counter to ours over a run, adding up exactly; `counts` as `sampling_flops` returns."""


@dataclass(frozen=True)
class DiTBackbone:
    name: str
    defaults = DEFAULTS
    orders = PAPER_ORDERS

    def config(self, workload: Workload) -> DiTConfig:
        config = dit_config(self.name, image_size=workload.image_size)
        return config if workload.depth is None else replace(config, depth=workload.depth)

    def build(self, workload: Workload) -> Case:
        config = self.config(workload)
        count, side = workload.num_samples, config.input_size
        latents = torch.randn(count, config.in_channels, side, side)
        y = torch.arange(count) % config.num_classes
        if workload.cfg_scale != 1:
            latents, y = torch.cat([latents, latents]), torch.cat([y, torch.full_like(y, config.num_classes)])
        model = DiT(config, attention=workload.attention).eval().requires_grad_(False)
        return Case(model, latents, {"y": y})

    def timesteps(self, num_steps: int) -> Tensor:
        return Diffusion.respaced(num_steps).timesteps.flip(0)

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callable[[int, Tensor], None]
    ) -> tuple[Tensor, Run]:
        sampler = Sampler(case.model, num_steps, guidance_scale=workload.cfg_scale)
        samples = slice(workload.num_samples)  # the sampler adds the unconditional rows itself
        return sampler.run(case.latents[samples].float(), case.conditions["y"][samples], cache=cache, callback=callback)

    def published_step_flops(self, config: DiTConfig, rows: int) -> tuple[int, int]:
        return dit_counter(config, rows).steps

    def difference(self, config: DiTConfig, rows: int, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        return dit_difference(config, rows, counts, num_steps)


BACKBONES: dict[str, Backbone] = {name: DiTBackbone(name) for name in CONFIGS}
DEFAULT_MODEL = "DiT-XL/2"


def add_workload_flags(parser: Parser, argv: Sequence[str] | None) -> None:
    """Flags of a command that works on one model and one cache; --model in `argv` decides the defaults of caching."""
    parser.add_argument("--model", choices=tuple(BACKBONES), default=DEFAULT_MODEL)
    parser.add_argument("--image-size", type=positive_int, help="side in pixels (default: the model's own)")
    parser.add_argument("--num-steps", type=positive_int, default=50, help="sampling steps")
    parser.add_argument("--num-samples", type=positive_int, default=1, help="samples a model call")
    parser.add_argument(
        "--cfg-scale", type=positive_float, default=1.5, help="guidance weight; 1 runs no second branch"
    )
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of weights and features")
    parser.add_argument("--depth", type=positive_int, help="number of blocks, for trials (default: the model's own)")
    parser.add_argument("--attention", choices=BACKENDS, default="sdpa")
    add_cache_flags(parser, **BACKBONES[_asked_model(argv)].defaults)


def workload_of(args: argparse.Namespace) -> Workload:
    """The workload that the flags ask for."""
    return Workload(
        image_size=args.image_size,
        num_samples=args.num_samples,
        cfg_scale=args.cfg_scale,
        depth=args.depth,
        attention=args.attention,
    )


def cache_of(args: argparse.Namespace) -> Cache:
    """The one cache that the flags ask for; ValueError if they ask for several or for none that fits the steps."""
    if len(args.method or ()) > 1 or len(args.interval or ()) > 1 or args.compare:
        raise ValueError("this command takes one --method and one --interval at a time, without --compare")
    backbone = BACKBONES[args.model]
    made = caches_from_flags(
        args,
        interval=backbone.defaults["interval"],
        orders=backbone.orders,
        max_order=backbone.defaults["max_order"],
        compare_intervals=(),
    )
    (cache,) = made.values()
    cache.plan(args.num_steps)
    return cache


def describe(args: argparse.Namespace, case: Case) -> dict[str, Any]:
    """Model, sizes and steps for a record."""
    tokens = case.model.tokens(case.latents)
    return {
        "model": args.model,
        "config": asdict(case.model.config),
        "reduced_depth": args.depth is not None,
        "num_steps": args.num_steps,
        "num_samples": args.num_samples,
        "cfg_scale": args.cfg_scale,
        "rows": tokens.batch,
        "tokens": tokens.length,
        "sites": tokens.num_sites,
        "precision": args.precision,
        "attention": args.attention,
    }


def _asked_model(argv: Sequence[str] | None) -> str:
    """--model of a command line, before its other flags can be understood; the full parser complains of unknown ones."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--model", default=DEFAULT_MODEL)
    try:
        asked = first.parse_known_args(argv)[0].model
    except argparse.ArgumentError:
        return DEFAULT_MODEL
    return asked if asked in BACKBONES else DEFAULT_MODEL
