"""Flags that the commands share that make videos of prompts, and what they do with them; needs no torch."""

import argparse

from cache_dic import UserError
from seerkit.command.cli import Parser, positive_float, positive_int
from seerkit.command.flags import Also, add_sampling_flags, spellings
from seerkit.command.images import planned_prompts
from seerkit.data.captions import PROMPTS, word_indices
from seerkit.text.prompts import Listed, chosen_list


def add_clip_flags(
    parser: Parser,
    also: Also,
    *,
    num_steps: str,
    guidance: str,
    batch_size: str,
    height: str,
    width: str,
    num_frames: str,
    shift: str,
) -> None:
    """Those of `add_sampling_flags`, and --height, --width, --num-frames, --shift. All others: help with the defaults."""
    add_sampling_flags(parser, also, sample="video", num_steps=num_steps, guidance=guidance, batch_size=batch_size)
    section = parser.section("sampling")
    for flag, default in (("--height", height), ("--width", width)):
        section.add_argument(flag, type=positive_int, metavar="PIXELS", help=f"in pixels (default: {default})")
    section.add_argument(
        *spellings("--num-frames", also), type=positive_int, metavar="N", help=f"frames of a video, {num_frames}"
    )
    section.add_argument(
        *spellings("--shift", also),
        type=positive_float,
        metavar="FACTOR",
        help=f"of the noise levels (default: {shift})",
    )


def add_process_flags(parser: Parser, also: Also) -> argparse._ArgumentGroup:
    """--ulysses-degree, --ring-degree, --dit-fsdp, in a section of their own, which is returned."""
    group = parser.add_argument_group(
        "several processes", "under torchrun; without degrees the processes share the prompts"
    )
    for flag, way in (("--ulysses-degree", "heads"), ("--ring-degree", "a ring")):
        group.add_argument(
            *spellings(flag, also),
            type=positive_int,
            metavar="N",
            help=f"processes that share a video, by {way} in attention",
        )
    group.add_argument("--dit-fsdp", action="store_true", help="share the transformer's weights among those processes")
    return group


def sequence_parallel(args: argparse.Namespace) -> bool:
    """Whether all processes make one video together."""
    return args.ulysses_degree is not None or args.ring_degree is not None


def check_processes(args: argparse.Namespace, heads: int, *shared: str) -> None:
    """UserError for a division of videos that the number of processes or of attention heads does not allow.

    shared: flags of weights that are shared among processes.
    """
    from seerkit.devices.distributed import num_processes
    from seerkit.devices.parallel import sequence_degrees

    size = num_processes()
    if sequence_parallel(args):
        sequence_degrees(size, heads, args.ulysses_degree, args.ring_degree)
        if args.compile and size > 1:
            raise UserError("--compile works with one process per video; leave out --ulysses-degree and --ring-degree")
    for flag in shared:
        if getattr(args, flag.removeprefix("--").replace("-", "_")) and size == 1:
            raise UserError(f"{flag} shares weights among processes, and this is one; use torchrun or leave it out")


def shipped_or_given_list(args: argparse.Namespace, *, published: bool) -> list[Listed]:
    """The prompts that the flags ask for, or of models that are not published the shipped ones.

    UserError if there are none or two sources of them, where a plan needs none, and for words that models that are not
    published do not know.
    """
    default = planned_prompts(args) if published else lambda: list(PROMPTS)
    listed = chosen_list(args.prompt, args.prompt_file, model=args.model, default=default)
    if not published:
        for one in listed:
            word_indices(one.prompt)
    return listed
