"""Caches on diffusers' FluxPipeline side by side: what a forecast step dispatches and takes, what is kept, what is compiled."""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import flop_registry

from cache_dic import PRESETS
from cache_dic.presets import Preset
from evaluation.cells import FRONTS_HEADER, front_cells
from evaluation.operations import Operations
from evaluation.rivals import enable_dbcache, taylorseer_hook
from flux.config import CONFIGS, USAGE, FluxConfig
from seerkit.devices.dtypes import made_in, torch_dtype
from seerkit.devices.timing import spread, synchronize
from seerkit.io.records import conditions, version_of
from seerkit.io.tables import text_table
from seerkit.sampling.compare import UNCACHED
from taylorseers_diffusers import enable
from taylorseers_diffusers.convert import counterparts
from taylorseers_diffusers.official import official_scheduler

SAVES = 0.99  # of a full step's operations, below which a step is a forecast
UNITS = (
    "operations: ATen operations that read or write elements, dispatched by the last forecast step, uncached: by a "
    "full one; a step: one call of the transformer; kept: live tensors beyond those of the uncached pipeline after the same "
    "step, the most of a run; graphs and breaks: of a run with compile_repeated_blocks"
)


@dataclass(frozen=True, kw_only=True)
class Size:
    """A model and what it is called for: image tokens, a square, and text tokens."""

    config: FluxConfig
    image_tokens: int
    text_tokens: int


SIZES = {
    "flux-tiny": Size(config=CONFIGS["flux-tiny"], image_tokens=64, text_tokens=16),
    "flux-depth": Size(
        config=replace(
            CONFIGS["flux-debug"],
            depth=CONFIGS["flux-dev"].depth,
            depth_single_blocks=CONFIGS["flux-dev"].depth_single_blocks,
        ),
        image_tokens=64,
        text_tokens=16,
    ),
    "flux-dev": Size(
        config=CONFIGS["flux-dev"],
        image_tokens=(USAGE["flux-dev"].image_size // 16) ** 2,
        text_tokens=USAGE["flux-dev"].text_tokens,
    ),
}
"""The embedded model; one as deep as FLUX.1 and narrow, in which what is dispatched is all that takes time; FLUX.1-dev."""


@dataclass
class Subject:
    """A pipeline with random weights. num_steps: of a run. refresh: called before a run, where a cache does not begin anew."""

    pipe: Any
    inputs: Mapping[str, Any]
    num_steps: int
    preset: Preset
    dtype: torch.dtype
    refresh: Callable[[], None] = lambda: None

    def run(self) -> None:
        self.refresh()
        with torch.no_grad():
            self.pipe(**self.inputs, num_inference_steps=self.num_steps, output_type="latent")


def make_subject(
    size: Size, num_steps: int, dtype: torch.dtype, device: torch.device, weights: nn.Module | None = None
) -> Subject:
    """weights: a transformer that this one shares its weights with, None for new ones."""
    from diffusers import FluxPipeline

    torch.manual_seed(0)
    with made_in(dtype), torch.device(device if weights is None else "meta"):
        transformer = counterparts()["flux"].make(size.config).eval().requires_grad_(False)
    if weights is not None:
        transformer.load_state_dict(weights.state_dict(), assign=True)
    pipe = FluxPipeline(
        scheduler=official_scheduler(transformer), transformer=transformer, vae=None, text_encoder=None, tokenizer=None,
        text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    side, config = round(size.image_tokens**0.5), size.config

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=dtype, device=device)

    inputs = {
        "prompt_embeds": drawn(1, size.text_tokens, config.context_in_dim),
        "pooled_prompt_embeds": drawn(1, config.vec_in_dim),
        "latents": drawn(1, size.image_tokens, config.in_channels),
        "height": 16 * side,
        "width": 16 * side,
    }
    return Subject(pipe, inputs, num_steps, PRESETS["flux"], dtype)


# -------------------------------------------------------------------------------------------------------------- fronts


def _ours(engine: str) -> Callable[[Subject], None]:
    return lambda subject: enable(subject.pipe, "taylorseer", engine=engine) and None


def _taylorseer(lite: bool) -> Callable[[Subject], None]:
    def put_on(subject: Subject) -> None:
        preset = subject.preset
        hook = taylorseer_hook(preset, preset.max_order, subject.dtype, lite=lite)
        subject.pipe.transformer.enable_cache(hook)

    return put_on


def _first_block_cache(subject: Subject) -> None:
    from diffusers import FirstBlockCacheConfig

    subject.pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=float("inf")))


def _mag_cache(subject: Subject) -> None:
    from diffusers import MagCacheConfig

    ratios = torch.ones(subject.num_steps)
    skips = subject.preset.interval - 1
    subject.pipe.transformer.enable_cache(
        MagCacheConfig(
            threshold=1e9, max_skip_steps=skips, num_inference_steps=subject.num_steps, mag_ratios=ratios
        )
    )  # fmt: skip


def _dbcache(subject: Subject) -> None:
    preset = subject.preset
    transformer = subject.pipe.transformer
    enable_dbcache(transformer, preset, preset.max_order, num_steps=subject.num_steps)

    import cache_dit

    subject.refresh = lambda: cache_dit.refresh_context(transformer, num_inference_steps=subject.num_steps)


FRONTS: dict[str, tuple[str | None, Callable[[Subject], None]]] = {
    UNCACHED: (None, lambda _: None),
    "this front, TaylorSeer, folded engine": (None, _ours("folded")),
    "this front, TaylorSeer, stack engine": (None, _ours("stack")),
    "TaylorSeer hook": ("diffusers", _taylorseer(lite=False)),
    "TaylorSeer hook, lite": ("diffusers", _taylorseer(lite=True)),
    "FirstBlockCache hook": ("diffusers", _first_block_cache),
    "MagCache hook": ("diffusers", _mag_cache),
    "DBCache, first block computed, TaylorSeer": ("cache-dit", _dbcache),
}
"""By name: the package that it is of, None for this repository, and what puts it on a pipeline."""


# ----------------------------------------------------------------------------------------------------------- measuring


@contextmanager
def around_calls(module: nn.Module, before: Callable[[], None], after: Callable[[], None]) -> Iterator[None]:
    """While it lasts, these are called around every call of a module, whatever hooks are in its forward."""
    handles = [
        module.register_forward_pre_hook(lambda *_: before()),
        module.register_forward_hook(lambda *_: after()),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Counting(Operations):
    """Operations, and FLOPs of the products with weights among them."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(function, types, args, kwargs)
        if (count := flop_registry.get(function._overloadpacket)) is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass
class Steps:
    """By step of a run."""

    seconds: list[float] = field(default_factory=list)
    operations: list[int] = field(default_factory=list)
    flops: list[int] = field(default_factory=list)
    alive: list[int] = field(default_factory=list)


def time_steps(subject: Subject, device: torch.device) -> list[float]:
    """Seconds of the transformer's calls of a run, the device synchronised around each."""
    found: list[float] = []
    begun = [0.0]

    def before() -> None:
        synchronize(device)
        begun[0] = time.perf_counter()

    def after() -> None:
        synchronize(device)
        found.append(time.perf_counter() - begun[0])

    with around_calls(subject.pipe.transformer, before, after):
        subject.run()
    return found


def count_steps(subject: Subject) -> Steps:
    """Operations, FLOPs and live bytes of the transformer's calls of a run."""
    steps, under_way = Steps(), []

    def before() -> None:
        under_way.append(Counting().__enter__())

    def after() -> None:
        counted = under_way.pop()
        counted.__exit__(None, None, None)
        steps.flops.append(counted.flops)
        steps.operations.append(counted.count)
        steps.alive.append(live_bytes())

    with around_calls(subject.pipe.transformer, before, after):
        subject.run()
    return steps


def live_bytes() -> int:
    """Bytes of all tensors that are alive, each storage once."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and not thing.is_meta:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def count_graphs(subject: Subject, put_on: Callable[[Subject], None]) -> dict[str, Any]:
    """Graphs and breaks of a run with compiled blocks; the reason where it fails."""
    counters = torch._dynamo.utils.counters
    torch.compiler.reset()
    counters.clear()
    try:
        put_on(subject)
        subject.pipe.transformer.compile_repeated_blocks(backend="eager")
        subject.run()
        breaks = sum(counters["graph_break"].values())
        return {"graphs": counters["stats"]["unique_graphs"], "graph_breaks": breaks, "compiling": None}
    except Exception as error:  # of whatever is compared; it is reported
        reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        return {"graphs": None, "graph_breaks": None, "compiling": reason[:200]}
    finally:
        torch.compiler.reset()


def count(name: str, subject: Subject, base: Steps | None = None) -> Steps:
    """Put a front on a pipeline and count its steps; base: those of the uncached pipeline, whose live bytes are taken off."""
    alive = live_bytes()
    FRONTS[name][1](subject)
    steps = count_steps(subject)
    steps.alive = [found - alive for found in steps.alive]
    if base is not None:
        steps.alive = [found - other for found, other in zip(steps.alive, base.alive, strict=True)]
    return steps


def make_row(name: str, steps: Steps, runs: list[list[float]], full_flops: int, uncached: bool) -> dict[str, Any]:
    """A front's row of its counted steps and of the seconds of each step of its timed runs."""
    package = FRONTS[name][0]
    is_forecast = [flops < SAVES * full_flops for flops in steps.flops]
    by_run = [
        {
            kind: [s for s, forecast in zip(run, is_forecast, strict=True) if forecast is wanted]
            for kind, wanted in (("full", False), ("forecast", True))
        }
        for run in runs
    ]
    times = {f"{kind}_step": [s for run in by_run for s in run[kind]] for kind in ("full", "forecast")}
    # Ratios within each run, so that a drift of the machine's speed falls on both kinds of step alike.
    ratios = [
        statistics.median(run["forecast"]) / statistics.median(run["full"])
        for run in by_run
        if run["forecast"] and run["full"]
    ]
    operations = [number for number, forecast in zip(steps.operations, is_forecast, strict=True) if forecast]
    return {
        "label": name,
        "package": f"{package} {version_of(package)}" if package else None,
        "forecast_steps": sum(is_forecast),
        "full_operations": max(steps.operations),
        "operations": operations[-1] if operations else None,
        **{kind: spread(seconds) if seconds else None for kind, seconds in times.items()},
        "forecast_over_full": _of_ratios(ratios) if ratios else None,
        "kept_bytes": None if uncached else max(steps.alive),
    }


def measure(
    size: Size,
    num_steps: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    repeats: int,
    dropped: int,
    fronts: Sequence[str],
) -> list[dict[str, Any]]:
    """Rows of fronts, the uncached pipeline first; timed runs take turns, so that a drift falls on all alike."""
    subjects: dict[str, Subject] = {}
    counted: dict[str, Steps] = {}
    for name in fronts:
        weights = subjects[UNCACHED].pipe.transformer if subjects else None
        subjects[name] = make_subject(size, num_steps, dtype, device, weights)
        counted[name] = count(name, subjects[name], counted.get(UNCACHED))
    runs: dict[str, list[list[float]]] = {name: [] for name in fronts}
    for _ in range(dropped + repeats):
        for name, subject in subjects.items():
            runs[name].append(time_steps(subject, device))
    full = max(counted[UNCACHED].flops)
    return [make_row(name, counted[name], runs[name][dropped:], full, name == UNCACHED) for name in fronts]


def _of_ratios(ratios: list[float]) -> dict[str, float]:
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def compare(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The record that the flags of compare_fronts.py ask for."""
    dtype = torch_dtype(args.precision)
    missing = {name: package for name, (package, _) in FRONTS.items() if package and version_of(package) is None}
    rows: list[dict[str, Any]] = []
    for model in args.sizes:
        there = [name for name in FRONTS if name not in missing]
        measured = measure(
            SIZES[model], args.num_steps, dtype, device, repeats=args.repeats, dropped=args.dropped, fronts=there
        )
        rows += [{"model": model, **row} for row in measured]
        rows += [
            {"model": model, "label": name, "package": package, "skipped": f"{package} is not installed"}
            for name, package in missing.items()
        ]
        gc.collect()
    if not args.no_compile:  # last: what a compiler leaves behind would be among the tensors that are alive
        for row in rows:
            if "skipped" not in row:
                subject = make_subject(SIZES[row["model"]], args.num_steps, dtype, device)
                row |= count_graphs(subject, FRONTS[row["label"]][1])
    preset = PRESETS["flux"]
    return {
        "command": "eval/compare_fronts.py",
        "settings": {
            "num_steps": args.num_steps,
            "repeats": args.repeats,
            "interval": preset.interval,
            "max_order": preset.max_order,
            "warmup_steps": preset.warmup_steps,
            "sizes": {
                name: {
                    "double_blocks": SIZES[name].config.depth,
                    "single_blocks": SIZES[name].config.depth_single_blocks,
                    "width": SIZES[name].config.hidden_size,
                    "tokens": SIZES[name].image_tokens + SIZES[name].text_tokens,
                }
                for name in args.sizes
            },
        },
        "units": UNITS,
        "rows": rows,
        "conditions": conditions(device, dtype),
    }


def text(record: Mapping[str, Any]) -> str:
    """The record for the terminal."""
    parts = []
    for model in record["settings"]["sizes"]:
        rows = [front_cells(row) for row in record["rows"] if row["model"] == model]
        parts.append(f"{model}\n{text_table(FRONTS_HEADER, rows)}")
    return "\n\n".join(parts)
