"""Flags of the commands that make videos, and what they ask for; needs no torch."""

import argparse
import math
from argparse import BooleanOptionalAction
from collections.abc import Sequence
from pathlib import Path

from evaluation.vbench import FLICKERING_SAMPLES, expand, make_entries
from seerkit.command.cli import Parser, positive_int, refuse_without_effect
from seerkit.command.flags import Also, add_output_flags
from seerkit.text.prompts import Listed, check_number, read_list, repeated


def add_video_flags(parser: Parser, also: Also, *, family: str, quality: float) -> None:
    """Flags of samples and output; family: folder in outputs/. quality: the official code's."""
    prompts, output = parser.section("prompts"), parser.section("output")
    prompts.add_argument(
        "--samples-per-prompt", type=positive_int, default=1, metavar="N", help="videos of every prompt (VBench: 5)"
    )
    prompts.add_argument(
        "--vbench", action="store_true", help="name the videos PROMPT-0.mp4, PROMPT-1.mp4, … as VBench expects them"
    )
    prompts.add_argument(
        "--name-file",
        type=Path,
        metavar="FILE",
        help="with --vbench: the short prompts that videos of lengthened ones are called after",
    )
    prompts.add_argument(
        "--flickering-samples",
        type=positive_int,
        nargs="?",
        const=FLICKERING_SAMPLES,
        metavar="N",
        help=f"with --vbench: videos per prompt for temporal_flickering; {FLICKERING_SAMPLES} without a number, VBench's own "
        "protocol (default: as many as of the others)",
    )
    add_output_flags(parser, also, family=family, sample="video")
    output.add_argument(
        "--quality",
        type=video_quality,
        default=quality,
        metavar="1-10",
        help="of the H.264 files, or lossless; PSNR and flicker do not depend on it",
    )
    output.add_argument("--gif", action=BooleanOptionalAction, default=True, help="small videos also as GIF")
    output.add_argument("--keep-latents", action="store_true", help="keep the latents when their videos are written")


def video_quality(text: str) -> float | str:
    """An argparse type: 1 to 10, or lossless."""
    if text == "lossless":
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number from 1 to 10 nor lossless")
    return value


def list_samples(args: argparse.Namespace, listed: Sequence[Listed]) -> tuple[list[str], list[str]]:
    """Prompt, and name of the file without suffix, of every sample: by numbers, or as VBench expects them.

    Raises UserError for names that no file can have, and for flags without effect.
    """
    if not args.vbench:
        refuse_without_effect(args, "videos that are numbered, without --vbench", "--name-file", "--flickering-samples")
        prompts = repeated([one.prompt for one in listed], args.samples_per_prompt)
        return prompts, [f"{index:06d}" for index in range(len(prompts))]
    entries = make_entries(
        listed,
        num_samples=args.samples_per_prompt,
        flickering_samples=args.flickering_samples,
        names=read_list(args.name_file) if args.name_file else None,
    )
    check_number(sum(entry.num_samples for entry in entries))
    prompts, names = zip(*expand(entries), strict=True)
    return list(prompts), list(names)
