"""The command-line flags that choose caching methods, the same for every backbone."""

import argparse
import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cache_dic import ENGINES, METHODS, SCHEDULES, Cache, accepted_settings, make_cache
from seerkit.cli import Parser, non_negative_int, positive_float, positive_int

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
GIB = 2**30


def add_cache_flags(parser: Parser, *, interval: int, max_order: int, warmup_steps: int) -> None:
    """Flags of a command that samples with caches; the defaults are the authors' for this backbone."""
    group = parser.add_argument_group("caching")
    group.add_argument(
        "--method",
        nargs="+",
        metavar="NAME",
        help=f"one or more of {', '.join(METHODS)}, or a --plugin's (default: taylorseer)",
    )
    group.add_argument(
        "--interval",
        nargs="+",
        type=positive_int,
        metavar="N",
        help=f"distance of full steps, one or more (default: {interval})",
    )
    group.add_argument("--max-order", type=non_negative_int, help=f"highest Taylor order (default: {max_order})")
    group.add_argument(
        "--warmup-steps", type=positive_int, default=warmup_steps, help="full steps before the first forecast"
    )
    group.add_argument("--engine", choices=tuple(ENGINES), default="folded", help="where features are kept")
    group.add_argument("--schedule", choices=tuple(SCHEDULES), help="rule for full steps (default: the method's)")
    group.add_argument("--full-steps", type=_step_list, help="explicit full steps, e.g. 0,1,2,8,14")
    group.add_argument(
        "--set", action="append", type=_setting, default=[], metavar="KEY=VALUE", help="a method's own setting"
    )
    group.add_argument("--plugin", type=Path, help="a Python file that registers a method of yours")
    group.add_argument("--accumulator-dtype", choices=tuple(DTYPES), help="of the folded engine (default: float32)")
    group.add_argument(
        "--memory-limit-gib", type=positive_float, help="most that a cache may keep (default: what is free)"
    )
    group.add_argument("--telemetry", action="store_true", help="record the forecast error at every full step")
    group.add_argument(
        "--compare", action="store_true", help="add the uncached run and FORA, and PSNR to the uncached samples"
    )


def caches_from_flags(
    args: argparse.Namespace,
    *,
    num_steps: int,
    defaults: Mapping[str, int],
    orders: Mapping[int, int],
    compare_intervals: tuple[int, ...] = (),
) -> dict[str, Cache]:
    """Caches by label, one for each method and interval asked for; with --compare the uncached run first.

    defaults: interval and max_order of the backbone. orders: the paper's order by interval, used where --max-order is not
    given. compare_intervals: those of --compare without --interval. With --compile, of commands that have it, as
    `for_compiling`. Raises ValueError for settings that no method takes or that do not fit the number of sampling steps.
    """
    if args.plugin:
        load_plugin(args.plugin)
    methods = args.method or (["taylorseer", "fora"] if args.compare else ["taylorseer"])
    intervals = args.interval or (
        compare_intervals if args.compare and not args.full_steps else (defaults["interval"],)
    )
    common = {
        "engine": args.engine,
        "schedule": args.schedule,
        "accumulator_dtype": DTYPES.get(args.accumulator_dtype),
        "memory_limit": int(args.memory_limit_gib * GIB) if args.memory_limit_gib else None,
        "telemetry": args.telemetry,
    }
    caches: dict[str, Cache] = {}
    if args.compare:
        caches["uncached"] = make_cache("uncached")
    asked = {"max_order": args.max_order, "full_steps": args.full_steps, **dict(args.set)}
    asked = {name: value for name, value in asked.items() if value is not None}
    taken: set[str] = set()
    for method in methods:
        if method == "uncached":
            caches["uncached"] = make_cache("uncached")
            continue
        accepted = accepted_settings(method, "explicit" if args.full_steps else args.schedule)
        taken |= accepted
        for n in intervals:
            order = orders.get(n, defaults["max_order"])
            offered = {"interval": n, "warmup_steps": args.warmup_steps, "max_order": order, **asked}
            cache = make_cache(method, **common, **{k: v for k, v in offered.items() if k in accepted})
            caches[cache.label] = cache
    for name in asked.keys() - taken:
        raise ValueError(
            f"{name} = {asked[name]} has no effect with {', '.join(methods)}; they take {', '.join(sorted(taken))}"
        )
    for cache in caches.values():
        cache.plan(num_steps)
    return for_compiling(caches) if vars(args).get("compile") else caches


def for_compiling(caches: Mapping[str, Cache]) -> dict[str, Cache]:
    """The caches with full steps that are all alike, as `seerkit.compile` needs them; ValueError for engines without."""
    for cache in caches.values():
        if cache.engine != "folded":
            raise ValueError(
                f"--compile works with the folded engine, whose steps are all alike, not with {cache.engine}"
            )
    return {
        label: replace(cache, engine_settings=replace(cache.engine_settings, static_shapes=True))
        for label, cache in caches.items()
    }


def load_plugin(path: Path) -> None:
    """Run a Python file that registers methods; ValueError if it is not there or registers none."""
    if not path.is_file():
        raise ValueError(f"--plugin {path} is not a file; pass a Python file that calls cache_dic.register")
    before = set(METHODS)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    if set(METHODS) == before:
        raise ValueError(f"--plugin {path} registered no method; decorate a class with cache_dic.register(name)")


def _step_list(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of steps like 0,1,2,8") from None


def _setting(text: str) -> tuple[str, Any]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
