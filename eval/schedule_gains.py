"""Measure what searched schedules gain over TaylorSeer's rule and even spacing, on the samples that results are shown on.

Those are what the model's own command draws by default, which no search is calibrated on. The model is opened with the flags
of that command, as in eval/search_schedule.py.
"""

import argparse
import json
import shlex
from pathlib import Path

from evaluation.backbones import shipped_schedules
from evaluation.calibration import SHOWN_SEED, default_samples, sampling_args
from evaluation.flags import add_any_model_flag
from seerkit.command.cli import Parser, positive_int, run_command
from seerkit.command.flags import add_record_flags
from seerkit.io.files import writable_file, write_json

EXAMPLES = """
python eval/schedule_gains.py --model flux-tiny --out results/flux/schedules.json
python eval/schedule_gains.py --model flux-tiny --schedules outputs/schedules/flux-tiny-10-of-50.json --samples 4
"""


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str], Parser]:
    """Flags of the command, those left for the model, and the parser."""
    parser = Parser(__doc__, EXAMPLES)
    add_any_model_flag(parser, "flux-tiny")
    parser.section("data").add_argument(
        "--samples", type=positive_int, metavar="N", help="the first of those that the command draws (default: all)"
    )
    parser.section("caching").add_argument(
        "--schedules",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="of eval/search_schedule.py (default: those shipped beside the model)",
    )
    add_record_flags(parser)
    return *parser.parse_known_args(argv), parser


def main(argv: list[str] | None = None) -> None:
    args, rest, parser = parse_args(argv)
    given = sampling_args(parser, args.model, rest, seed=SHOWN_SEED)
    prompts = default_samples(given)[: args.samples]
    if args.out:
        writable_file(args.out)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.schedule_gains import describe, judge, read_schedules

    files = read_schedules(
        args.schedules or shipped_schedules(args.model, given.num_steps), args.model, given.num_steps
    )
    command_line = shlex.join(["python", "eval/schedule_gains.py", *args.command_line])
    record = {**judge(given, prompts, files), "command_line": command_line}
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else describe(record))


if __name__ == "__main__":
    run_command(main)
