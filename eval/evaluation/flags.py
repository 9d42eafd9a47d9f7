"""The flags of commands that work on one model and one cache, and what they ask for."""

import argparse
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import UserError
from evaluation.backbones import BACKBONES, PACKAGES, workload
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, positive_float, positive_int
from seerkit.command.flags import add_dry_run_flag, in_order
from seerkit.devices.dtypes import PRECISIONS
from seerkit.layers.names import ATTENTION_BACKENDS

if TYPE_CHECKING:
    from cache_dic import Cache
    from seerkit.sampling.workload import Case, Workload

DEFAULT_MODEL = "DiT-XL/2"
EMBEDDED = ("fashion-mnist", "flux-tiny", "hidream-tiny", "hunyuan-tiny", "wan-tiny")


def add_any_model_flag(parser: Parser, default: str) -> None:
    """--model of a command that takes every model that has a name."""
    parser.section("model").add_argument(
        "--model",
        choices=tuple(PACKAGES),
        default=default,
        metavar="NAME",
        help=f"one of {', '.join(in_order(PACKAGES, EMBEDDED))}",
    )


def add_workload_flags(parser: Parser, argv: Sequence[str] | None) -> None:
    """Flags of a command that works on one model and one cache; --model in `argv` decides the defaults of the cache."""
    model, sampling, device = (parser.section(title) for title in ("model", "sampling", "device"))
    add_any_model_flag(parser, DEFAULT_MODEL)
    model.add_argument(
        "--depth",
        type=positive_int,
        metavar="N",
        help="number of blocks, of FLUX, HunyuanVideo and HiDream double blocks, for trials (default: the model's own)",
    )
    sampling.add_argument(
        "--num-steps", type=positive_int, metavar="N", help="sampling steps (default: the model's own)"
    )
    sampling.add_argument(
        "--guidance-scale",
        "--cfg-scale",
        type=positive_float,
        metavar="WEIGHT",
        help="guidance weight of DiT, Wan2.1 and HiDream; 1 runs no second branch (default: the model's own)",
    )
    sampling.add_argument(
        "--batch-size", "--num-samples", type=positive_int, metavar="N", default=1, help="samples per model call"
    )
    sampling.add_argument(
        "--image-size",
        type=positive_int,
        metavar="PIXELS",
        help="side of a square in pixels (default: the model's own)",
    )
    for side, other in (("--width", "--height"), ("--height", "--width")):
        sampling.add_argument(
            side, type=positive_int, metavar="PIXELS", help=f"in pixels; with {other}, instead of --image-size"
        )
    sampling.add_argument(
        "--num-frames", "--frames", type=positive_int, metavar="N", help="of a video (default: the model's own)"
    )
    sampling.add_argument(
        "--text-tokens",
        type=positive_int,
        metavar="N",
        help="of a FLUX, HunyuanVideo or HiDream prompt, for trials (default: the model's own)",
    )
    device.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of weights and features")
    device.add_argument("--attention", choices=ATTENTION_BACKENDS, default="sdpa", help="kernels")
    add_cache_flags(parser, PACKAGES[_asked_model(argv)])


KEPT_FLAGS = ("--plugin", "--methods")
"""Of those of caching, what a command takes whose methods have settings of their own."""


def hide_caching(parser: Parser) -> list[argparse.Action]:
    """Flags of caching that a sampling command has and a command with rows of its own refuses: hidden from --help."""
    actions = [
        action
        for action in parser.flags_in("caching")
        if action.option_strings and action.option_strings[0] not in KEPT_FLAGS
    ]
    parser.hide(*(action.option_strings[0] for action in actions))
    return actions


def refuse_caching(parser: Parser, args: argparse.Namespace, reason: str) -> None:
    """An error of the parser for a flag of `hide_caching` that was given. reason: where that is not taken, and what to do."""
    for action in hide_caching(parser):
        if getattr(args, action.dest) != action.default:
            parser.error(f"{action.option_strings[0]} is not taken here, {reason}")


def add_comparison_output(parser: Parser, output_dir: str, copied: str, *, shown: str) -> None:
    """--output-dir, --results, --resume, --dry-run and --json of a command that samples many rows into one record.

    output_dir: the default, in words. copied: where --results puts record and pictures. shown: what --dry-run prints.
    """
    output = parser.section("output")
    output.add_argument("--output-dir", type=Path, metavar="DIR", help=f"gets all that is made (default: {output_dir})")
    output.add_argument("--results", type=Path, metavar="DIR", help=f"also copy record and figures to DIR/{copied}")
    output.add_argument(
        "--resume", action=BooleanOptionalAction, default=True, help="keep what is there; --no-resume makes all again"
    )
    add_dry_run_flag(parser, shown)
    output.add_argument("--json", action="store_true", help="print the record instead of the table")


def fill_num_steps(args: argparse.Namespace) -> None:
    """Set the number of steps that was not given to the model's own, for which its backbone is loaded."""
    args.num_steps = args.num_steps or BACKBONES[args.model].num_steps


def workload_of(args: argparse.Namespace) -> "Workload":
    """The workload that the flags ask for; UserError for flags that exclude each other or do not suit the model."""
    sides = {"height": args.height, "width": args.width}
    if args.image_size is not None:
        if any(sides.values()):
            raise UserError("--image-size is a square; give either that or --height and --width")
        sides = dict.fromkeys(sides, args.image_size)
    return workload(
        args.model,
        **sides,
        frames=args.num_frames,
        num_samples=args.batch_size,
        depth=args.depth,
        attention=args.attention,
        cfg_scale=args.guidance_scale,
        text_tokens=args.text_tokens,
    )


def cache_of(args: argparse.Namespace, *, partial: bool = False) -> "Cache":
    """The one cache that the flags ask for, with a schedule known beforehand.

    partial: whether a method that computes part of a step will do, too. UserError if they ask for several, for none that
    fits the steps, or for one that decides while sampling.
    """
    if len(args.method or ()) > 1 or len(args.interval or ()) > 1 or args.compare:
        raise UserError("this command takes one --method and one --interval at a time, without --compare")
    made = caches_from_flags(args, PACKAGES[args.model], num_steps=args.num_steps)
    (cache,) = made.values()
    plan = cache.plan(args.num_steps)
    if not plan.foreseen and not (partial and cache.engine == "partial"):
        raise UserError(
            f"the full steps of {cache.label} are decided while sampling, between {plan.least_full} and {plan.num_steps} of "
            f"{plan.num_steps}; sampling commands count and time what they do, this one takes a schedule that is known before"
        )
    return cache


def describe(args: argparse.Namespace, case: "Case") -> dict[str, Any]:
    """Model, sizes and steps for a record."""
    tokens, asked = case.model.tokens(case.latents), workload_of(args)
    own = {name: getattr(asked, name) for name in BACKBONES[args.model].own}
    return {
        "model": args.model,
        "config": asdict(case.model.config),
        "reduced_depth": args.depth is not None,
        "num_steps": args.num_steps,
        "num_samples": args.batch_size,
        **{name: value for name, value in own.items() if value is not None},
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
    return asked if asked in PACKAGES else DEFAULT_MODEL
