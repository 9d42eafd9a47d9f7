"""The command-line flags that choose caching methods, the same for every backbone."""

import argparse
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from cache_dic import (
    ENGINE_NAMES,
    METHODS,
    PRESETS,
    SCHEDULES,
    UserError,
    accepted_settings,
    compared_rows,
    make_cache,
    read_setting,
)
from cache_dic.errors import check_choice, run_of_user_code, suggestion
from cache_dic.schedule import SEARCHED
from cache_dic.searched import is_schedule_file
from seerkit.command.cli import Parser, non_negative_int, positive_float, positive_int
from seerkit.devices.dtypes import DTYPES, torch_dtype
from seerkit.io.files import read_text

if TYPE_CHECKING:
    from cache_dic import Cache

GIB = 2**30
FLAGGED = ("interval", "max_order", "warmup_steps", "full_steps")
"""Settings with a flag of their own, of the same name."""


def _shared_rules() -> list[str]:
    """Those that any method may follow; schedules of methods that compute part of a step are for nobody else."""
    return [name for name in _rules() if name not in METHODS or METHODS[name].engine != "partial"]


def _rules() -> list[str]:
    """Schedules that have a name of their own; that of a file is its path."""
    return [name for name in SCHEDULES if name != SEARCHED]


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
        help=f"distance of full steps, one or more (default: the method's own, else {usual.interval})",
    )
    group.add_argument(
        "--max-order",
        type=non_negative_int,
        metavar="N",
        help=f"highest Taylor order (default: the method's own, else {usual.max_order})",
    )
    group.add_argument(
        "--warmup-steps",
        type=positive_int,
        metavar="N",
        help=f"full steps before the first forecast (default: the method's own, else {usual.warmup_steps}, or as many as there "
        "are)",
    )
    group.add_argument("--engine", choices=ENGINE_NAMES, help="where features are kept (default: the method's)")
    group.add_argument(
        "--schedule",
        metavar="NAME",
        help=f"rule for full steps, one of {', '.join(_shared_rules())}, a --plugin's, or the .json file of a searched "
        "schedule (default: the method's)",
    )
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
        help="a Python file that registers methods or schedules of yours",
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
        f"{' '.join(map(str, usual.compare_intervals))} unless --interval, the method or its --plugin gives others",
    )


def caches_from_flags(
    args: argparse.Namespace,
    preset: str,
    *,
    num_steps: int,
) -> dict[str, "Cache"]:
    """Caches by label, one for each method and interval asked for; with --compare the uncached run first.

    preset: a backbone of PRESETS, whose settings stand where no flag says otherwise; so do the rows that a method comes with,
    all of which a comparison shows, and the interval that a plugin registers its method with. With --compile, of commands
    that have it, as `for_compiling`. Raises UserError for settings that no method takes, that exclude each other or that do
    not fit the number of sampling steps.
    """
    methods = args.method or (["taylorseer", "fora"] if args.compare else ["taylorseer"])
    for path in args.plugin:
        registered = load_plugin(path)
        if not registered & {*methods, args.schedule}:
            raise UserError(
                f"--plugin {path} has no effect without --method {' or --method '.join(sorted(registered))}"
            )
    if args.schedule is not None and not is_schedule_file(args.schedule):
        check_choice("schedule", args.schedule, _rules())
    given = _given_settings(args)
    _refuse_idle_flags(args, methods, given)
    model, intervals = vars(args).get("model"), given.pop("interval", None)
    schedule = "explicit" if args.full_steps else args.schedule
    common: dict[str, Any] = {
        "engine": args.engine,
        "schedule": schedule,
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
        accepted = accepted_settings(method, schedule)
        asked = {
            name: read_setting(method, name, value, schedule) if isinstance(value, str) else value
            for name, value in given.items()
            if name in accepted
        }
        of_method = [{"interval": n} for n in intervals] if intervals else _usual(args, method, preset, schedule)
        for row in of_method:
            usual = {name: value for name, value in row.items() if name in accepted}
            where = {name: common[name] or row.get(name) for name in ("engine", "schedule")}
            cache = make_cache(method, preset=preset, model=model, **common | where | usual | asked)
            caches[cache.label] = cache
    if args.accumulator_dtype and all(
        cache.engine != "folded" for cache in caches.values() if cache.method != "uncached"
    ):
        raise UserError(
            f"--accumulator-dtype has no effect with {', '.join(caches)}, which sum nothing; leave it out, or take "
            "--engine folded"
        )
    for cache in caches.values():
        cache.plan(num_steps)
    _warn_of_other_models(args, caches)
    return for_compiling(caches) if vars(args).get("compile") else caches


def _usual(args: argparse.Namespace, method: str, preset: str, schedule: str | None) -> Sequence[Mapping[str, Any]]:
    """What a method is sampled with where no interval is asked for: with --compare all that a comparison shows of it."""
    chosen, model = METHODS[method], vars(args).get("model")
    if args.compare and not args.full_steps:
        return compared_rows(method, preset, model, schedule) or [{}]
    if rows := chosen.rows(model, preset):
        return rows[:1]
    return [{"interval": chosen.own_interval or PRESETS[preset].interval}]


def _warn_of_other_models(args: argparse.Namespace, caches: "Mapping[str, Cache]") -> None:
    """Say so where full steps were searched for another model than the one that a command runs."""
    files = {cache.schedule_settings["file"] for cache in caches.values() if cache.schedule == SEARCHED}
    for file in files:
        if file.model != vars(args).get("model", file.model):
            print(
                f"warning: schedule {file.name} was searched for {file.model}, and the model is {args.model}",
                file=sys.stderr,
            )


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
    """The caches with full steps that are all alike, as `seerkit.devices.compile` needs them; UserError for engines without.

    Says so where a method's blocks are walked site by site, which is not compiled.
    """
    for cache in caches.values():
        if cache.engine == "partial":
            _tell_uncompiled(cache.method)
        if cache.engine in ("layerwise", "walked"):
            raise UserError(
                f"--compile works with engines whose steps are all alike, such as the folded one, not with {cache.engine}"
            )
    return {
        label: replace(cache, engine_settings=replace(cache.engine_settings, static_shapes=True))
        for label, cache in caches.items()
    }


@lru_cache
def _tell_uncompiled(method: str) -> None:
    """Once a method."""
    print(
        f"warning: --compile has no effect on {method}: its steps differ in what they compute, and each would be a graph of "
        "its own; they run as they are",
        file=sys.stderr,
    )


_plugins: dict[Path, tuple[set[str], set[str]]] = {}
"""Names of the methods and of the schedules that each file registered."""


def load_plugin(path: Path) -> set[str]:
    """Run a Python file that registers methods, and return their names.

    A file that was run before is run anew, in place of what it registered. UserError if it is not there, fails or registers
    no method; what it had registered by then is forgotten.
    """
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"--plugin {path} is not a file that ends in .py; pass one that calls cache_dic.register")
    path = path.resolve()
    registries: tuple[dict[str, Any], ...] = METHODS, SCHEDULES
    before = [dict(registry) for registry in registries]
    for registry, names in zip(registries, _plugins.get(path, ()), strict=False):
        for name in names:
            registry.pop(name, None)
    others = [set(registry) for registry in registries]
    # Known under its path, so that no library is shadowed; dataclasses look their module up. Compiled here and not by an
    # importer, which may take the bytecode of an earlier version of the file. Claims tell that version by its digest.
    module = sys.modules[str(path)] = ModuleType(str(path))
    module.__file__, module.__package__ = str(path), ""
    try:
        with run_of_user_code("--plugin", str(path)):
            text = read_text(path)
            vars(module)["__digest__"] = hashlib.sha256(text.encode()).hexdigest()[:16]
            exec(compile(text, path, "exec", dont_inherit=True), vars(module))
            if set(METHODS) == others[0]:
                raise UserError("registered no method; decorate a class with cache_dic.register(name)")
    except BaseException:
        for registry, old in zip(registries, before, strict=True):
            registry.clear()
            registry.update(old)
        raise
    methods, schedules = (set(registry) - old for registry, old in zip(registries, others, strict=True))
    _plugins[path] = methods, schedules
    return methods


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
