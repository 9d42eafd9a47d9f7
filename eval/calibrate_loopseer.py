"""Calibrate LoopSeer: full steps, form and weights for a budget, from a few samples; no model is trained.

The model is opened with the flags of its own sampling command, such as --num-steps, --ckpt, --guidance-scale, --precision,
--device and --offload, which go here too. Calibration samples are other than those that results are shown on. --dry-run tells
what it takes. A killed calibration goes on with --resume.
"""

import argparse
import shlex
from pathlib import Path

from cache_dic import UserError
from cache_dic.methods.loopseer import MAX_DAMPING
from cache_dic.settings import full_steps_tuple
from evaluation.calibration import add_calibration_flags, asked_prompts, carry_out, family_of, noise_seed, sampling_args
from evaluation.flags import add_any_model_flag
from seerkit.command.cli import Parser, integer, non_negative_float, positive_int, run_command
from seerkit.command.flags import add_dry_run_flag, add_record_flags

EXAMPLES = """
python eval/calibrate_loopseer.py --model flux-tiny --full-steps 10
python TaylorSeer-FLUX/sample.py --method loopseer --set calibration=outputs/loopseer/flux-tiny-10-of-50.json --compare
python eval/calibrate_loopseer.py --model wan-tiny --full-steps 7 --samples 4 --form output --out outputs/seven.json
python eval/calibrate_loopseer.py --model flux-dev --full-steps 10 --calibration-prompts prompts.txt --offload --dry-run
"""
ALL_FORMS, FITS = ("folded", "hidden", "output"), ("none", "teacher", "model", "closed")
DEFAULT_FIT = "closed"
BASES = {"taylor": (1, 2, 3, 4), "newton": (1, 2, 3), "foca": (2,)}
USUAL = {"taylor": (1, 2, 3, 4), "newton": (2,), "foca": (2,)}
"""Tried where neither basis nor order is asked for; every one costs a sampled run or more."""


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str], Parser]:
    """Flags of the calibration, those left for the model, and the parser."""
    parser = Parser(__doc__, EXAMPLES)
    add_any_model_flag(parser, "flux-tiny")
    add_calibration_flags(parser)
    caching = parser.section("caching")
    budget = caching.add_mutually_exclusive_group(required=True)
    budget.add_argument("--full-steps", type=positive_int, metavar="N", help="how many, step 0 included")
    budget.add_argument("--list", metavar="0,4,9", help="these full steps; only form and weights are sought")
    caching.add_argument(
        "--form", choices=ALL_FORMS, help="the form that is kept (default: the better of folded and output)"
    )
    caching.add_argument("--basis", choices=BASES, help="of the weights (default: the best)")
    caching.add_argument("--max-order", type=integer(1, 4), metavar="N", help="of the weights (default: the best)")
    caching.add_argument(
        "--damping",
        type=damping_of,
        metavar="X",
        help="of forecasts, 1 for none (default: the best)",
    )
    caching.add_argument(
        "--fit",
        choices=FITS,
        help="of corrections: none, to uncached runs, to the model of a run, or to sampled runs (default: closed, none of too "
        "few samples)",
    )
    caching.add_argument(
        "--lists",
        type=integer(5, 10**6),
        default=80,
        metavar="N",
        help="runs that are sampled for a list, at most, where none is given (default: 80)",
    )
    add_record_flags(parser, out="JSON file of the calibration (default: outputs/loopseer/MODEL-N-of-STEPS.json)")
    add_dry_run_flag(parser, "network evaluations and memory that a calibration takes")
    parser.section("output").add_argument("--resume", action="store_true", help="go on with one that was killed")
    return *parser.parse_known_args(argv), parser


def main(argv: list[str] | None = None) -> None:
    asked, rest, parser = parse_args(argv)
    args = sampling_args(parser, asked.model, rest, seed=noise_seed(asked.seed), dry_run=asked.dry_run)
    given = None if asked.list is None else listed_steps(asked.list, args.num_steps)
    count = asked.full_steps if given is None else len(given)
    if count >= args.num_steps:
        raise UserError(f"--full-steps {count} leaves nothing to forecast; give fewer than the {args.num_steps} steps")
    bases = tuple(
        (basis, order)
        for basis, orders in (USUAL if asked.basis is None and asked.max_order is None else BASES).items()
        for order in orders
        if asked.basis in (None, basis) and asked.max_order in (None, order)
    )
    if not bases:
        raise UserError(f"--max-order {asked.max_order} is not one of {asked.basis}'s, {BASES[asked.basis]}")
    out = asked.out or Path("outputs/loopseer") / f"{asked.model.replace('/', '-')}-{count}-of-{args.num_steps}.json"
    prompts = asked_prompts(asked, args)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation import loopseer

    if asked.fit not in (None, "none") and len(prompts) < loopseer.LEAST_SEEN:
        raise UserError(
            f"--fit {asked.fit} takes at least {loopseer.LEAST_SEEN} samples, to tell whether corrections help those that they "
            f"are not fitted to, and there are {len(prompts)}; give more of them, or --fit none"
        )
    job = loopseer.Job(
        args=args,
        family=family_of(asked.model),
        prompts=prompts,
        count=count,
        forms=(asked.form,) if asked.form else loopseer.FORMS,
        bases=bases,
        dampings=loopseer.DAMPINGS if asked.damping is None else (asked.damping,),
        full_steps=given,
        limit=asked.lists,
        fit=asked.fit or DEFAULT_FIT,
        seed=asked.seed,
        out=out,
        command_line=shlex.join(["python", "eval/calibrate_loopseer.py", *asked.command_line]),
    )
    carry_out(loopseer, job, asked, "calibration")


def damping_of(text: str) -> float:
    """A number from 0 to MAX_DAMPING."""
    value = non_negative_float(text)
    if value > MAX_DAMPING:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to {MAX_DAMPING:g}")
    return value


def listed_steps(text: str, num_steps: int) -> tuple[int, ...]:
    """UserError for what is no list of full steps of such a run."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--list {text} is no list of steps, such as 0,4,9") from error
    steps = full_steps_tuple(numbers)
    if steps[-1] >= num_steps:
        raise UserError(f"--list {text} ends past the last step, {num_steps - 1}")
    return steps


if __name__ == "__main__":
    run_command(main)
