"""The command-line flags that choose caching methods, the same for every backbone."""

import argparse
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cache_dic import ENGINE_NAMES, METHODS, PRESETS, SCHEDULES, UserError, accepted_settings, make_cache, read_setting
from cache_dic.errors import run_of_user_code, suggestion
from seerkit.command.cli import Parser, non_negative_int, positive_float, positive_int
from seerkit.devices.dtypes import DTYPES, torch_dtype

if TYPE_CHECKING:
    from cache_dic import Cache

GIB = 2**30
FLAGGED = ("interval", "max_order", "warmup_steps", "full_steps")
"""Settings with a flag of their own, of the same name."""


def add_cache_flags(parser: Parser, preset: str) -> None:
    """Flags of a command that samples with caches; preset: a backbone of PRESETS, whose settings are the defaults."""
    usual = PRESETS[preset]
    group = parser.section("caching")
    group.add_argument(
        "--method",
        action="extend",
        nargs="+",
        metavar="NAME",
        help=f"one or more of {', '.join(METHODS)}, or a --plugin's (default: taylorseer)",
    )
    group.add_argument(
        "--interval",
        action="extend",
        nargs="+",
        type=positive_int,
        metavar="N",
        help=f"distance of full steps, one or more (default: {usual.interval}; what a --plugin registers for its methods)",
    )
    group.add_argument(
        "--max-order", type=non_negative_int, metavar="N", help=f"highest Taylor order (default: {usual.max_order})"
    )
    group.add_argument(
        "--warmup-steps",
        type=positive_int,
        metavar="N",
        help=f"full steps before the first forecast (default: {usual.warmup_steps}, or as many as there are)",
    )
    group.add_argument("--engine", choices=ENGINE_NAMES, help="where features are kept (default: the method's)")
    group.add_argument("--schedule", choices=tuple(SCHEDULES), help="rule for full steps (default: the method's)")
    group.add_argument("--full-steps", type=_step_list, metavar="LIST", help="explicit full steps, e.g. 0,1,2,8,14")
    group.add_argument(
        "--set", action="append", type=_setting, default=[], metavar="KEY=VALUE", help="a method's own setting"
    )
    group.add_argument(
        "--plugin",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="a Python file that registers methods of yours",
    )
    group.add_argument(
        "--accumulator-dtype",
        choices=tuple(DTYPES),
        metavar="DTYPE",
        help=f"number format of the folded engine's sums, one of {', '.join(DTYPES)} (default: float32)",
    )
    group.add_argument(
        "--memory-limit-gib",
        type=positive_float,
        metavar="GIB",
        help="most that a cache may keep (default: what is free)",
    )
    group.add_argument("--telemetry", action="store_true", help="record the forecast error at every full step")
    group.add_argument(
        "--compare",
        action="store_true",
        help="add the uncached run with PSNR to its samples and, unless --method is given, FORA, at intervals "
        f"{' '.join(map(str, usual.compare_intervals))} unless --interval or the method's --plugin gives others",
    )


def caches_from_flags(
    args: argparse.Namespace,
    preset: str,
    *,
    num_steps: int,
) -> dict[str, "Cache"]:
    """Caches by label, one for each method and interval asked for; with --compare the uncached run first.

    preset: a backbone of PRESETS, whose settings stand where no flag says otherwise; so does the interval that a plugin
    registers its method with, which compares as it was registered. With --compile, of commands that have
    it, as `for_compiling`. Raises UserError for settings that no method takes, that exclude each other or that do not fit
    the number of sampling steps.
    """
    methods = args.method or (["taylorseer", "fora"] if args.compare else ["taylorseer"])
    for path in args.plugin:
        registered = load_plugin(path)
        if not registered & {*methods}:
            raise UserError(
                f"--plugin {path} has no effect without --method {' or --method '.join(sorted(registered))}"
            )
    given = _given_settings(args)
    _refuse_idle_flags(args, methods, given)
    model, intervals = vars(args).get("model"), given.pop("interval", None)
    chosen = {"engine": args.engine, "schedule": args.schedule}
    common: dict[str, Any] = {
        **{name: value for name, value in chosen.items() if value is not None},
        "accumulator_dtype": args.accumulator_dtype and torch_dtype(args.accumulator_dtype),
        "memory_limit": None if args.memory_limit_gib is None else int(args.memory_limit_gib * GIB),
        "telemetry": args.telemetry,
    }
    caches: dict[str, Cache] = {}
    if args.compare:
        caches["uncached"] = make_cache("uncached")
    for method in methods:
        if method == "uncached":
            caches["uncached"] = make_cache("uncached")
            continue
        accepted = accepted_settings(method, "explicit" if args.full_steps else args.schedule)
        asked = {
            name: read_setting(method, name, value) if isinstance(value, str) else value
            for name, value in given.items()
            if name in accepted
        }
        for row in _rows(method, accepted, intervals, args, preset):
            cache = make_cache(method, preset=preset, model=model, **{**row, **common, **asked})
            caches[cache.label] = cache
    for cache in caches.values():
        cache.plan(num_steps)
    return for_compiling(caches) if vars(args).get("compile") else caches


def _rows(
    method: str,
    accepted: Collection[str],
    intervals: Sequence[int] | None,
    args: argparse.Namespace,
    preset: str,
) -> Sequence[Mapping[str, Any]]:
    """The settings that a method is sampled with beside those asked for: one row, or with --compare the published ones.

    Where no rows are published for a method, a comparison shows it at the preset's intervals, one of a plugin as registered.
    """
    if intervals:
        return [{"interval": n} for n in intervals] if "interval" in accepted else [{}]
    if not args.compare or args.full_steps:
        return [{}]
    chosen = METHODS[method]
    if rows := chosen.rows(vars(args).get("model"), preset):
        known = {*accepted, "engine", "schedule"}
        return [{name: value for name, value in row.items() if name in known} for row in rows]
    if "interval" not in accepted or (not chosen.shipped and "interval" in chosen.defaults):
        return [{}]
    return [{"interval": n} for n in PRESETS[preset].compare_intervals]


def _given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What was asked for, by the name of the setting: of --set as text, of the other flags as they are.

    UserError for what is given twice.
    """
    given = {name: getattr(args, name) for name in FLAGGED if getattr(args, name) is not None}
    for name, text in args.set:
        if name == "full_steps":
            raise UserError(f"--set full_steps={text} is no list; give --full-steps 0,1,5")
        if name in given:
            flag = f"--{name.replace('_', '-')}" if name in FLAGGED and getattr(args, name) is not None else "--set"
            raise UserError(f"{name} is given by --set {name}={text} and by {flag} too; leave one out")
        given[name] = text
    for name in ("method", "interval"):
        values = getattr(args, name) or []
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"--{name} names {value} {values.count(value)} times; once is enough")
    if isinstance(given.get("interval"), str):
        given["interval"] = [read_setting("taylorseer", "interval", given["interval"])]
    return given


def _refuse_idle_flags(args: argparse.Namespace, methods: Sequence[str], given: Mapping[str, Any]) -> None:
    """UserError for flags and settings that would change nothing."""
    if args.full_steps and args.schedule not in (None, "explicit"):
        raise UserError(f"--full-steps is a schedule of its own; leave out --schedule {args.schedule}")
    if args.schedule == "explicit" and not args.full_steps:
        raise UserError("--schedule explicit needs --full-steps, such as 0,1,5,9")
    for name in ("interval", "warmup_steps"):
        if args.full_steps and name in given:
            raise UserError(
                f"{name} and --full-steps exclude each other: the list names every full step; leave one out"
            )
    if args.accumulator_dtype and args.engine not in (None, "folded"):
        raise UserError(f"--accumulator-dtype has no effect with --engine {args.engine}, which has no accumulators")
    cached = [method for method in methods if method != "uncached"]
    if not cached:
        flags = ("compare", "schedule", "accumulator_dtype", "memory_limit_gib", "telemetry")
        idle = [f"--{name.replace('_', '-')}" for name in flags if getattr(args, name)]
        idle += ["--engine"] if args.engine else []
        idle += list(given)
        if idle:
            raise UserError(
                f"{', '.join(idle)} without effect: --method uncached computes every step; name another method"
            )
        return
    schedule = "explicit" if args.full_steps else args.schedule
    taken = set[str]().union(*(accepted_settings(method, schedule) for method in cached))
    for name, value in given.items():
        if name not in taken:
            raise UserError(
                f"{name} = {value} has no effect with {', '.join(methods)}; they take {', '.join(sorted(taken))}"
                f"{suggestion(name, taken)}"
            )


def for_compiling(caches: "Mapping[str, Cache]") -> "dict[str, Cache]":
    """The caches with full steps that are all alike, as `seerkit.devices.compile` needs them; UserError for engines without."""
    for cache in caches.values():
        if cache.engine == "layerwise":
            raise UserError(
                "--compile works with engines whose steps are all alike, such as the folded one, not with layerwise"
            )
    return {
        label: replace(cache, engine_settings=replace(cache.engine_settings, static_shapes=True))
        for label, cache in caches.items()
    }


_plugins: dict[Path, set[str]] = {}
"""Names of the methods that each file registered."""


def load_plugin(path: Path) -> set[str]:
    """Run a Python file that registers methods, and return their names.

    A file that was run before is run anew, in place of what it registered. UserError if it is not there, fails or registers
    no method; what it had registered by then is forgotten.
    """
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"--plugin {path} is not a file that ends in .py; pass one that calls cache_dic.register")
    path = path.resolve()
    before = dict(METHODS)
    for name in _plugins.get(path, ()):
        METHODS.pop(name, None)
    others = set(METHODS)
    # Known under its path, so that no library is shadowed; dataclasses look their module up. Compiled here and not by an
    # importer, which may take the bytecode of an earlier version of the file.
    module = sys.modules[str(path)] = ModuleType(str(path))
    module.__file__, module.__package__ = str(path), ""
    try:
        with run_of_user_code("--plugin", str(path)):
            exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
            if set(METHODS) == others:
                raise UserError("registered no method; decorate a class with cache_dic.register(name)")
    except BaseException:
        METHODS.clear()
        METHODS.update(before)
        raise
    _plugins[path] = set(METHODS) - others
    return _plugins[path]


def _step_list(text: str) -> list[int]:
    try:
        return [non_negative_int(part.strip(" ")) for part in text.split(",")]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a list of steps like 0,1,2,8") from None


def _setting(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (name and separator):
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return name, value
