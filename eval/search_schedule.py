"""Search the full steps of a model under a budget, on a few calibration samples: a schedule that every command takes.

Dynamic programming over errors measured on uncached runs gives a list, and moving one full step at a time in runs that are
really sampled betters it. The model is opened with the flags of its own sampling command, such as --num-steps, --ckpt,
--guidance-scale, --precision, --device and --offload, which go here too. Calibration samples are other than those that
results are shown on. A killed search goes on with --resume.
"""

import argparse
import shlex
from pathlib import Path

from cache_dic import UserError
from evaluation.backbones import PACKAGES
from evaluation.calibration import (
    add_calibration_flags,
    asked_prompts,
    carry_out,
    even_steps,
    family_of,
    noise_seed,
    sampling_args,
)
from evaluation.flags import add_any_model_flag
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, integer, positive_float, positive_int, run_command
from seerkit.command.flags import add_dry_run_flag, add_record_flags

EXAMPLES = """
python eval/search_schedule.py --model flux-tiny --full-steps 10
python eval/search_schedule.py --model fashion-mnist --full-steps 7 --max-order 3 --samples 20 --out outputs/seven.json
python eval/search_schedule.py --model flux-dev --full-steps 13 --calibration-prompts prompts.txt --minutes 60 --offload
python TaylorSeer-FLUX/sample.py --schedule outputs/schedules/flux-tiny-10-of-50.json --compare
"""
VAIN = ("--interval", "--schedule", "--compare", "--telemetry")
"""Flags of caches that say nothing to a search."""


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str], Parser]:
    """Flags of the search, those left for the model, and the parser."""
    parser = Parser(__doc__, EXAMPLES, conflict_handler="resolve")
    add_any_model_flag(parser, "flux-tiny")
    add_calibration_flags(parser)
    add_cache_flags(parser, "flux")
    parser.hide(*VAIN)
    for flag, text in (("--max-order", "highest Taylor order"), ("--warmup-steps", "of the forecasts")):
        parser._option_string_actions[flag].help = f"{text} (default: the model's)"
    caching = parser.section("caching")
    caching.add_argument(
        "--full-steps", type=positive_int, required=True, metavar="N", help="how many, step 0 included"
    )
    caching.add_argument(
        "--lists", type=integer(3, 10**6), default=40, metavar="N", help="lists of full steps that are sampled, at most"
    )
    caching.add_argument(
        "--minutes", type=positive_float, metavar="N", help="that sampling them takes, about, at most (default: any)"
    )
    add_record_flags(parser, out="JSON file of the schedule (default: outputs/schedules/MODEL-N-of-STEPS.json)")
    add_dry_run_flag(parser, shown="how many network evaluations a search takes")
    parser.section("output").add_argument("--resume", action="store_true", help="go on with a search that was killed")
    return *parser.parse_known_args(argv), parser


def main(argv: list[str] | None = None) -> None:
    args, rest, parser = parse_args(argv)
    given = sampling_args(parser, args.model, rest, seed=noise_seed(args.seed), dry_run=args.dry_run)
    count, num_steps = args.full_steps, given.num_steps
    if count >= num_steps:
        raise UserError(f"--full-steps {count} leaves nothing to forecast; give fewer than the {num_steps} steps")
    for flag in VAIN:
        if getattr(args, flag.removeprefix("--")):
            raise UserError(f"{flag} has no effect on a search, which finds the full steps; leave it out")
    args.full_steps = list(even_steps(num_steps, count))  # stand for those that are searched
    made = caches_from_flags(args, PACKAGES[args.model], num_steps=num_steps)
    if len(made) > 1 or "uncached" in made:
        raise UserError("a search is for one caching method; name one by --method")
    (cache,) = made.values()
    out = args.out or Path("outputs/schedules") / f"{args.model.replace('/', '-')}-{count}-of-{num_steps}.json"
    prompts = asked_prompts(args, given)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation import search

    job = search.Search(
        args=given,
        family=family_of(args.model),
        cache=cache,
        prompts=prompts,
        count=count,
        limit=args.lists,
        minutes=args.minutes,
        seed=args.seed,
        out=out,
        command_line=shlex.join(["python", "eval/search_schedule.py", *args.command_line]),
    )
    carry_out(search, job, args, "schedule")


if __name__ == "__main__":
    run_command(main)
