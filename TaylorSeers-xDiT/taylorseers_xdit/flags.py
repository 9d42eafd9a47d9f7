"""What run_flux.py, run_hunyuan.py and run_wan.py do: flags as xfuser's examples have them, those of the caches, and checks
before anything is loaded; needs no torch until then."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, non_negative_float, positive_int
from seerkit.command.flags import add_dry_run_flag, add_seed_flag, spellings
from seerkit.text.prompts import require
from taylorseers_xdit.families import BACKENDS, XFUSER, Family

if TYPE_CHECKING:
    from cache_dic import Cache

ALSO = {"--num-steps": "--num-inference-steps"}
"""Spellings of xfuser's command line where they are others."""
ONE_WAY = (
    "a cache keeps what one process computes of its own tokens; share those, by --ulysses-degree and --ring-degree"
)
NOT_TAKEN = {
    "--use-cfg-parallel": "no model here has two branches in a call; TaylorSeer-Wan2.1/generate.py has --guidance-parallel",
    "--pipefusion-parallel-degree": f"PipeFusion spreads the blocks of a step over processes, and {ONE_WAY}",
    "--num-pipeline-patch": "it is PipeFusion's, which caches do not go with",
    "--tensor-parallel-degree": f"it spreads the features of a token over processes, and {ONE_WAY}",
    "--data-parallel-degree": "start one command for each share of the prompts",
    "--use-teacache": "take --method teacache",
    "--use-fbcache": "take --method first_block_cache",
    "--use-torch-compile": "a step in one graph cannot leave out blocks",
    "--no-use-resolution-binning": "sizes are always taken as they are given",
}
"""xfuser's flags that have no counterpart, and what to do instead."""


def parser_of(family: Family, description: str, examples: str) -> Parser:
    """The command's flags."""
    parser = Parser(description, examples)
    parser.not_taken = NOT_TAKEN
    parser.section("model").add_argument(
        "--model",
        default=family.model,
        metavar="NAME",
        help="folder of a pipeline of diffusers, or its name on the hub",
    )
    parser.section("prompts").add_argument("--prompt", nargs="+", metavar="TEXT", help="one or more, each in quotes")
    if family.preset == "wan":
        parser.section("prompts").add_argument("--negative-prompt", metavar="TEXT", help="prompt of the second branch")
    sampling = parser.section("sampling")
    sampling.add_argument(
        *spellings("--num-steps", ALSO), type=positive_int, default=family.num_steps, metavar="N", help="sampling steps"
    )
    sampling.add_argument(
        "--guidance-scale",
        type=non_negative_float,
        default=family.guidance_scale,
        metavar="WEIGHT",
        help="guidance weight",
    )
    add_seed_flag(parser, ALSO, sample="video" if family.num_frames else "image")
    for name, size in (("--height", family.height), ("--width", family.width)):
        sampling.add_argument(name, type=positive_int, default=size, metavar="PIXELS", help="in pixels")
    if family.num_frames:
        sampling.add_argument(
            "--num-frames", type=positive_int, default=family.num_frames, metavar="N", help="frames, 4n + 1"
        )
    if family.text_length:
        sampling.add_argument(
            "--max-sequence-length", type=positive_int, default=family.text_length, metavar="N", help="tokens of a text"
        )
    add_cache_flags(parser, family.preset)
    output = parser.section("output")
    output.add_argument("--output-dir", type=Path, default=Path("outputs/xdit"), metavar="DIR", help="gets the files")
    add_dry_run_flag(parser, "what would be done")
    device = parser.section("device")
    device.add_argument(
        "--enable-model-cpu-offload", action="store_true", help="parts of the pipeline take turns on the device"
    )
    group = parser.add_argument_group("several processes", "under torchrun; all of them make one sample together")
    group.add_argument("--backend", choices=BACKENDS, default=XFUSER, help="what splits the tokens")
    for flag, way in (("--ulysses-degree", "heads"), ("--ring-degree", "a ring")):
        group.add_argument(
            flag, type=positive_int, metavar="N", help=f"processes that share the tokens by {way} in attention"
        )
    return parser


def check(args: argparse.Namespace, family: Family) -> int:
    """UserError for what the backend cannot split; the number of tokens."""
    from seerkit.devices.distributed import num_processes
    from seerkit.devices.parallel import sequence_degrees

    require(args.prompt, "give --prompt, one or more in quotes")
    processes = num_processes()
    num_tokens = family.num_tokens(args.height, args.width, vars(args).get("num_frames", 1))
    sequence_degrees(processes, processes, args.ulysses_degree, args.ring_degree)  # heads: once the model is known
    family.check_processes(args.backend, num_tokens, vars(args).get("max_sequence_length", 0), processes)
    return num_tokens


def caches_of(args: argparse.Namespace, family: Family) -> "dict[str, Cache]":
    """The caches that the flags ask for, of a known model with what is published for it; UserError for methods that diffusers'
    blocks do not allow.
    """
    from taylorseers_diffusers.methods import check_method

    named = argparse.Namespace(**{**vars(args), "model": family.name_of(args.model)})
    caches = caches_from_flags(named, family.preset, num_steps=args.num_steps)
    for cache in caches.values():
        check_method(cache)
    return caches


def main(family: Family, description: str, examples: str, argv: list[str] | None = None) -> None:
    args = parser_of(family, description, examples).parse_args(argv)
    chosen = caches_of(args, family)
    num_tokens = check(args, family)
    if args.dry_run:
        for label, cache in chosen.items():
            plan = cache.plan(args.num_steps)
            full = f"{plan.full_steps} of {args.num_steps}" if plan.foreseen else "decided while sampling"
            print(f"{label}: full steps {full}, {num_tokens} tokens")
        return

    from taylorseers_xdit.sampling import run  # only now, so that --help and mistakes are answered before it is loaded

    run(args, family, chosen)
