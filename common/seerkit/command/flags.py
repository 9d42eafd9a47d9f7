"""Flags that sampling commands share: one name for each thing, its unit and its default; what they need loads no torch.

also: by flag, how a reference command spells it officially, hyphenated; the parser takes underscores everywhere.
"""

import argparse
import sys
from argparse import BooleanOptionalAction
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from seerkit.command.cli import Parser, device_name, guidance_weight, json_file, non_negative_int, positive_int
from seerkit.devices.dtypes import PRECISIONS
from seerkit.layers.names import ATTENTION_BACKENDS

if TYPE_CHECKING:
    from cache_dic import Cache

Also = Mapping[str, str]
LOOKED_IN = "checkpoints/, the hub's cache"  # for help: where files are looked for, before they are downloaded


def spellings(flag: str, also: Also) -> tuple[str, ...]:
    """A flag with its official spellings."""
    return flag, *also.get(flag, "").split()


def model_name(names: Sequence[str], prefix: str, official: Also) -> Callable[[str], str]:
    """An argparse type: a name, or what official commands have for it: what follows its prefix, or a name of their own."""

    def convert(text: str) -> str:
        return next((name for name in (text, prefix + text, official.get(text, text)) if name in names), text)

    return convert


def is_debug(name: str) -> bool:
    """Whether a model is for tests, without weights."""
    return name.endswith("debug")


def in_order(names: Iterable[str], embedded: Collection[str]) -> list[str]:
    """Names of models: the official ones, the embedded ones, those for tests."""
    return sorted(names, key=lambda name: 2 * is_debug(name) + (name in embedded))


def add_model_flag(
    parser: Parser,
    names: Sequence[str],
    embedded: str,
    also: Also,
    *,
    prefix: str = "",
    official: Also = MappingProxyType({}),
) -> None:
    """--model; prefix: what official commands leave out of the names. official: their names, where they are others."""
    names = in_order(names, [embedded])
    debug = "".join(f", {name} a tiny one for tests" for name in names if is_debug(name))
    parser.section("model").add_argument(
        *spellings("--model", also),
        type=model_name(names, prefix, official),
        choices=names,
        default=embedded,
        metavar="NAME",
        help=f"one of {', '.join(names)}; {embedded} is the embedded model{debug}",
    )


def add_prompt_flags(parser: Parser, *, embedded: str) -> None:
    """--prompt and --prompt-file."""
    section = parser.section("prompts")
    section.add_argument("--prompt", nargs="+", metavar="TEXT", help="one or more prompts, each in quotes")
    section.add_argument(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help=f"prompts, one per line, or VBench_full_info.json (default: of {embedded} those shipped with it)",
    )


def add_sampling_flags(
    parser: Parser,
    also: Also,
    *,
    sample: str,
    num_steps: str,
    guidance: str,
    batch_size: str | None = None,
    guidance_type: Callable[[str], float] = guidance_weight,
    condition: str = "prompt",
) -> None:
    """--num-steps, --guidance-scale, --seed, --batch-size.

    sample: what is made, of a condition. The others: help with the defaults; without that of batch_size there is no such flag.
    """
    section = parser.section("sampling")
    section.add_argument(
        *spellings("--num-steps", also), type=positive_int, metavar="N", help=f"sampling steps (default: {num_steps})"
    )
    section.add_argument(
        *spellings("--guidance-scale", also), type=guidance_type, metavar="WEIGHT", help=f"guidance weight, {guidance}"
    )
    add_seed_flag(parser, also, sample=sample, condition=condition)
    if batch_size is not None:
        section.add_argument(
            "--batch-size", type=positive_int, metavar="N", help=f"{sample}s per model call (default: {batch_size})"
        )


def add_seed_flag(parser: Parser, also: Also, *, sample: str, condition: str = "prompt") -> None:
    """--seed."""
    parser.section("sampling").add_argument(
        *spellings("--seed", also),
        type=non_negative_int,
        default=0,
        metavar="N",
        help=f"{sample} i depends on its {condition}, the seed and i alone",
    )


def add_device_flags(parser: Parser, *, precision: str) -> None:
    """--device, --precision, --attention, --compile. precision: help with the defaults."""
    add_device_flag(parser)
    section = parser.section("device")
    section.add_argument(
        "--precision", choices=tuple(PRECISIONS), help=f"of weights and features (default: {precision})"
    )
    section.add_argument("--attention", choices=ATTENTION_BACKENDS, default="sdpa", help="kernels")
    section.add_argument("--compile", action="store_true", help="torch.compile full and forecast steps, one graph each")


def add_guidance_parallel_flag(group: argparse._ArgumentGroup) -> None:
    """--guidance-parallel."""
    group.add_argument(
        "--guidance-parallel", action="store_true", help="each of both guidance branches in a process of its own"
    )


def guidance_parallel(args: argparse.Namespace) -> bool:
    """Whether each guidance branch has a process; a command may have no such flag."""
    return vars(args).get("guidance_parallel", False)


def check_guidance_parallel(args: argparse.Namespace, caches: Mapping[str, "Cache"]) -> None:
    """UserError for --guidance-parallel with another number of processes, or a method that needs both branches in one."""
    if guidance_parallel(args):
        from seerkit.devices.distributed import num_processes
        from seerkit.devices.guidance import check_guidance_processes, check_split

        check_guidance_processes(num_processes())
        for cache in caches.values():
            check_split(cache)


def add_device_flag(parser: Parser) -> None:
    """--device."""
    parser.section("device").add_argument(
        "--device", type=device_name, default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N"
    )


def add_output_flags(parser: Parser, also: Also, *, family: str, sample: str) -> None:
    """--output-dir, --resume, --dry-run, --json. family: folder in outputs/."""
    section = parser.section("output")
    section.add_argument(
        *spellings("--output-dir", also),
        type=Path,
        metavar="DIR",
        help=f"gets a folder of {sample}s for every cache (default: outputs/{family}/MODEL-DIGEST)",
    )
    section.add_argument("--resume", action="store_true", help=f"keep the {sample}s that are there, make those missing")
    add_dry_run_flag(parser)
    section.add_argument("--json", action="store_true", help="print the record instead of the table")


def add_dry_run_flag(parser: Parser, shown: str = "configuration, full steps, FLOPs and kept bytes") -> None:
    """--dry-run. shown: what it prints."""
    parser.section("output").add_argument("--dry-run", action="store_true", help=f"print {shown}, and stop")


def add_record_flags(parser: Parser, *, out: str = "JSON file for the record") -> None:
    """--out, --json. out: what the file is."""
    section = parser.section("output")
    section.add_argument("--out", type=json_file, metavar="FILE", help=out)
    section.add_argument("--json", action="store_true", help="print the record instead of the table")


def add_image_flags(parser: Parser, also: Also, *, family: str) -> None:
    """Flags of a command that makes images."""
    add_output_flags(parser, also, family=family, sample="image")
    section = parser.section("output")
    section.add_argument(
        "--add-sampling-metadata", action=BooleanOptionalAction, default=True, help="put the settings into the PNGs"
    )
    section.add_argument(
        "--test-FLOPs", action="store_true", dest="test_flops", help="print the FLOPs of every cache and stop"
    )


def check_sizes(args: argparse.Namespace, check: Callable[[], object], *, embedded: str, published: str) -> None:
    """Let `check` refuse sizes that a model cannot have.

    embedded, published: where it is the first, the second is suggested, for which official commands that name no model are.
    """
    from cache_dic import UserError

    try:
        check()
    except UserError as error:
        if args.model != embedded:
            raise
        raise UserError(f"{error}; did you mean --model {published}?") from error


def is_planned(args: argparse.Namespace) -> bool:
    """Whether a run is only counted."""
    return vars(args).get("dry_run", False) or vars(args).get("test_flops", False)


def require_weights(args: argparse.Namespace, known: Sequence[str]) -> None:
    """As `report_no_weights`, for a model that is none of those known to have some, where --ckpt names none."""
    if args.model not in known and args.ckpt is None:
        report_no_weights(args, f"no weights are published for {args.model}, only for {', '.join(known)}")


def report_no_weights(args: argparse.Namespace, finding: str, hint: str = "") -> None:
    """UserError for a run that would find no weights; a plan, which needs none, says so beside what it prints."""
    from cache_dic import UserError

    message = f"{finding}; name a checkpoint of your own by --ckpt{hint}"
    if not is_planned(args):
        raise UserError(message)
    print(f"note: {message}", file=sys.stderr)


def refuse_two_sizes(args: argparse.Namespace, flag: str) -> None:
    """UserError where a size is given by an official flag and by --height and --width too."""
    from cache_dic import UserError

    if args.height is not None or args.width is not None:
        raise UserError(f"{flag} is height and width; leave out --height and --width, or it")
