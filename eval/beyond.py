"""The evidence for LoopSeer on one model: at every budget of full steps beside TaylorSeer with as many, the other methods at
equal operations and fewer steps, on samples that no calibration has seen, with differences sample by sample.

--ablations: with parts of its calibration left out. --transfer: used on what it was not calibrated for. Flags of sampling and
device are those of the model's own command, and --help with --model shows them. A killed run goes on where it stopped.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cache_dic import UserError
from evaluation.beyond.calibrations import by_budget, for_published
from evaluation.beyond.cells import evidence_text, failures, study_text
from evaluation.beyond.samples import HELD_OUT
from evaluation.families import FAMILIES, Family, all_models, asked_model
from evaluation.flags import add_comparison_output, hide_caching, refuse_caching
from evaluation.variants import setup_of
from seerkit.command.cache_flags import load_plugin
from seerkit.command.cli import Parser, non_negative_int, positive_int, run_command

COMMAND = "eval/beyond.py"
EXAMPLES = """
python eval/beyond.py --model flux-tiny --results results
python eval/beyond.py --model wan-tiny --budgets 10 --num-samples 8 --rivals 0
python eval/beyond.py --model flux-tiny --ablations --results results
python eval/beyond.py --model flux-tiny --transfer --dry-run
"""
DEFAULT_MODEL = "flux-tiny"
BUDGETS = (16, 12, 10, 7)
STUDY_BUDGETS = (10,)
NUM_SAMPLES = {"image": (256, 64), "video": (64, 16)}
"""Of the evidence, and of every case of a study."""
RIVAL_SAMPLES = {"image": 8, "video": 4}
BATCH = {"image": 16, "video": 4}


def make_parser(family: Family) -> Parser:
    parser = Parser(__doc__, EXAMPLES)
    family.add_flags(parser)
    hide_caching(parser)
    evidence = parser.add_argument_group("evidence")
    study = evidence.add_mutually_exclusive_group()
    study.add_argument(
        "--ablations", action="store_true", help="calibrations with parts left out, made where they are not there"
    )
    study.add_argument("--transfer", action="store_true", help="calibrations used on what they were not made for")
    evidence.add_argument(
        "--budgets",
        nargs="+",
        type=positive_int,
        metavar="N",
        help=f"full steps (default: {' '.join(map(str, BUDGETS))}; of a study {' '.join(map(str, STUDY_BUDGETS))})",
    )
    evidence.add_argument(
        "--calibrations",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="of LoopSeer (default: those that ship)",
    )
    evidence.add_argument(
        "--rivals",
        type=non_negative_int,
        default=1,
        metavar="N",
        help="other methods that are shown at a budget, the best at settings of their own and as many on LoopSeer's full steps",
    )
    numbers = "; ".join(f"{kind}s: {count}, of a study {few}" for kind, (count, few) in NUM_SAMPLES.items())
    parser.section("prompts").add_argument(
        "--num-samples", type=positive_int, metavar="N", help=f"(default: {numbers})"
    )
    parser.section("prompts").add_argument(
        "--rival-samples",
        type=positive_int,
        default=RIVAL_SAMPLES[family.makes],
        metavar="N",
        help=f"others than those, on which the best rivals are found (default: {RIVAL_SAMPLES[family.makes]})",
    )
    add_comparison_output(
        parser, "outputs/beyond/MODEL[-STUDY]", f"{family.folder}/beyond-MODEL*",
        shown="every row with its FLOPs ratio, before rivals are tried",
    )  # fmt: skip
    return parser


def parse_args(argv: Sequence[str] | None, more: Sequence[str] = ()) -> tuple[argparse.Namespace, Family]:
    """more: flags of sampling that stand against those of the command line."""
    given = list(sys.argv[1:] if argv is None else argv)
    family = FAMILIES[all_models()[asked_model(given, DEFAULT_MODEL)]]
    parser = make_parser(family)
    parser.set_defaults(model=DEFAULT_MODEL)
    args = parser.parse_args([*given, *more])
    refuse_caching(parser, args, "where every row has its own settings: name full steps by --budgets")
    return args, family


def passed_on(argv: Sequence[str] | None, family: Family) -> list[str]:
    """The flags of model, sampling and device on the command line, which a calibration takes, too; its seed is its own."""
    parser, kept, keeps = make_parser(family), [], False
    shared = {action.dest for title in ("model", "sampling", "device") for action in parser.flags_in(title)}
    for text in sys.argv[1:] if argv is None else argv:
        if text.startswith("--"):
            action = parser._option_string_actions.get(text.partition("=")[0].replace("_", "-"))
            keeps = action is not None and action.dest in shared - {"model", "seed", "batch_size"}
        kept += [text] if keeps else []
    return kept


def settle(
    args: argparse.Namespace, family: Family, *, kind: str, seed: int, count: int | None, out: Path
) -> list[str]:
    """Fill in defaults and the seed of the noise; the prompts, one per sample.

    seed: of prompts and noise. count: None for as many as there are prompts, where those are given.
    """
    from evaluation.beyond.samples import drawn, repeated, sample_seed

    args.batch_size = args.batch_size or BATCH[family.makes]
    family.fill(args)
    given = family.prompts(args) if is_given(args) else None
    args.seed, args.output_dir = sample_seed(seed), out
    args.num_samples = count or (len(given) if given else NUM_SAMPLES[family.makes][args.ablations or args.transfer])
    return repeated(given, args.num_samples) if given else drawn(args, args.num_samples, seed, kind)


def is_given(args: argparse.Namespace) -> bool:
    """Whether the command line has prompts of its own."""
    return any(getattr(args, name, None) for name in ("prompt", "prompt_file"))


def main(argv: list[str] | None = None) -> None:
    args, family = parse_args(argv)
    for path in args.plugin:
        load_plugin(path)
    is_study = args.ablations or args.transfer
    name = args.model.replace("/", "-")
    suffix = "-ablations" if args.ablations else "-transfer" if args.transfer else ""
    out = args.output_dir or Path("outputs") / "beyond" / f"{name}{suffix}"
    budgets = tuple(dict.fromkeys(args.budgets or (STUDY_BUDGETS if is_study else BUDGETS)))
    made = run_study(argv, args, family, out, budgets) if is_study else run_evidence(argv, args, family, out, budgets)
    if made is None:
        return
    record, text, draw = made
    copied = []
    if args.results:
        from seerkit.io.files import copy_whole, write_json

        target = args.results / family.folder / f"beyond-{name}{suffix}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, record)
        copied = [target, *(copy_whole(path, target.parent / path.name) for path in draw(record, out))]
    print(json.dumps(record) if args.json else text)
    if copied and not args.json:
        print(f"copied: {', '.join(map(str, copied))}")
    if failed := failures(record):
        raise UserError(
            f"{len(failed)} of {len(record.get('rows') or record['cases'])} rows failed, the others are there: "
            + "; ".join(failed)
        )


def run_evidence(
    argv: list[str] | None, args: argparse.Namespace, family: Family, out: Path, budgets: Sequence[int]
) -> Any:
    """The record of the evidence, its text, and what draws its figures; None for a plan."""
    from evaluation.beyond.evidence import Budget, Evidence, plan
    from evaluation.beyond.samples import check_unseen
    from evaluation.jobs import print_json
    from seerkit.devices.distributed import num_processes, start_world

    if num_processes() > 1:
        raise UserError("the evidence is timed by one process; start it without torchrun")
    seed, count = args.seed, args.num_samples
    rival_args = parse_args(argv)[0] if args.rivals else None
    prompts = settle(args, family, kind=HELD_OUT, seed=seed, count=count, out=out)
    rival_prompts: list[str] = []
    if rival_args is not None:
        rival_prompts = settle(
            rival_args, family, kind=HELD_OUT, seed=seed + 1, count=args.rival_samples, out=out / "rivals"
        )
    calibrations = by_budget(args.model, args.num_steps, budgets, args.calibrations)
    fitted = for_published(args.model, args.num_steps, args.calibrations)
    check_unseen(args.model, [*prompts, *rival_prompts], [*calibrations.values(), *fitted.values()])
    evidence = Evidence(
        args=args,
        prompts=prompts,
        rival_args=rival_args,
        rival_prompts=rival_prompts,
        family=family,
        setup=setup_of(args, family),
        budgets=[Budget(calibration=calibrations[count], fitted=fitted.get(count)) for count in budgets],
        kept=args.rivals,
        seed=seed,
        resume=args.resume,
        command_line=shlex.join(["python", COMMAND, *args.command_line]),
    )
    evidence.prepare()
    if args.dry_run:
        print_json(plan(evidence, evidence.entries(args, prompts, evidence.variants())))
        return None
    record = evidence.run(start_world(args.device))

    def draw(record: dict[str, Any], folder: Path) -> list[Path]:
        from evaluation.figures.beyond import draw_beyond

        return draw_beyond(record, folder)

    return record, f"{evidence_text(record)}\nrecord: {out / 'beyond.json'}", draw


def run_study(
    argv: list[str] | None, args: argparse.Namespace, family: Family, out: Path, budgets: Sequence[int]
) -> Any:
    """As `run_evidence`, of a study."""
    from evaluation.beyond import studies
    from evaluation.beyond.evidence import Evidence
    from evaluation.jobs import print_json
    from seerkit.devices.distributed import start_world

    if len(budgets) > 1:
        raise UserError(f"a study is of one budget, and --budgets names {len(budgets)}; give one")
    study = studies.ABLATIONS if args.ablations else studies.TRANSFER
    seed, count = args.seed, args.num_samples
    command_line = shlex.join(["python", COMMAND, *args.command_line])

    def open_evidence(group: studies.Contestants) -> Evidence:
        own, _ = parse_args(argv, group.flags)
        prompts = settle(own, family, kind=group.kind, seed=seed, count=count, out=out / studies.slug(group))
        return Evidence(
            args=own,
            prompts=prompts,
            rival_args=None,
            rival_prompts=[],
            family=family,
            setup=setup_of(own, family),
            budgets=[],
            kept=0,
            seed=seed,
            resume=args.resume,
            command_line=command_line,
        )

    settle(args, family, kind=HELD_OUT, seed=seed, count=count, out=out)
    (one,) = by_budget(args.model, args.num_steps, budgets, args.calibrations).values()
    cases = studies.STUDIES[study](
        one, args.model, setup_of(args, family), out / "calibrations", passed_on(argv, family)
    )
    if args.dry_run:
        print_json(studies.plan(cases, args.model))
        return None
    failed = studies.make_missing(cases, args.model, one.seen)
    record = studies.run(
        study, one.count, cases, failed, open_evidence, start_world(args.device), command_line, out, seed
    )
    return record, f"{study_text(record)}\nrecord: {out / 'beyond.json'}", lambda *_: []


if __name__ == "__main__":
    run_command(main)
