"""Every caching method on one model, on the same seeds and by the same counters: cost, distance to the uncached samples with
95 % intervals, scores without a reference, plots and a page.

Any model of the repository can be named; flags of prompts, sampling and device are those of its own command, and --help with
--model shows them. A killed run goes on where it stopped; methods that
are asked for later join those that are there. A method that fails is a row with its error: the others go on, and the exit code
is 2.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import UserError
from cache_dic.errors import check_choice
from evaluation.families import FAMILIES, Family, all_models, asked_model
from evaluation.flags import add_comparison_output, hide_caching, refuse_caching
from evaluation.variants import GROUPS, Variant, choices, setup_of, variants
from seerkit.command.cache_flags import for_compiling, load_plugin
from seerkit.command.cli import Parser, positive_int, run_command, show_log
from seerkit.io.files import copy_whole

if TYPE_CHECKING:
    from evaluation.comparing import Entry

COMMAND = "eval/compare.py"
EXAMPLES = """
python eval/compare.py --model flux-tiny --methods all
python eval/compare.py --model wan-tiny --methods taylorseer fewer-steps --num-samples 4
python eval/compare.py --model fashion-mnist --methods forms --results results
python eval/compare.py --model flux-dev --prompt-file DrawBench.txt --num-samples 20 --offload
"""
DEFAULT_MODEL = "flux-tiny"
BATCHES = 2  # of an embedded model's samples: every row has as many timings
DECIDED = "full steps are decided while sampling; these are bounds"


def make_parser(family: Family) -> Parser:
    parser = Parser(__doc__, EXAMPLES)
    family.add_flags(parser)
    caching = parser.section("caching")
    hide_caching(parser)
    caching.add_argument(
        "--methods",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help=f"all (default: all), or any of {', '.join(choices()[1:])}; "
        f"{'; '.join(f'{name}: {what}' for name, what in GROUPS.items())}",
    )
    parser.section("prompts").add_argument(
        "--num-samples",
        type=positive_int,
        metavar="N",
        help=f"{family.makes}s of every variant; prompts begin anew where there are fewer (default: of {family.flags.EMBEDDED} "
        f"{family.num_samples}, else one of every prompt)",
    )
    add_comparison_output(
        parser, "outputs/compare/MODEL-DIGEST", f"{family.folder}/compare-MODEL.*",
        shown="every variant with its full steps, FLOPs and kept bytes",
    )  # fmt: skip
    return parser


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, Family]:
    family = FAMILIES[all_models()[asked_model(argv, DEFAULT_MODEL)]]
    parser = make_parser(family)
    args = parser.parse_args(argv)
    refuse_caching(
        parser, args, "where every method has its own settings: name methods by --methods, or give it to the sampling command "
        "with --compare",
    )  # fmt: skip
    return args, family


def settle(args: argparse.Namespace, family: Family) -> list[str]:
    """Fill in defaults; the prompts, one per sample."""
    if args.model == family.flags.EMBEDDED:
        args.num_samples = args.num_samples or family.num_samples
        args.batch_size = args.batch_size or -(-args.num_samples // BATCHES)
    family.fill(args)
    prompts = family.prompts(args)
    count = args.num_samples or len(prompts)
    return list(itertools.islice(itertools.cycle(prompts), count))


def make_entries(args: argparse.Namespace, family: Family, prompts: list[str]) -> "list[Entry]":
    """An entry for the uncached run and for everything that is asked for, counted."""
    from evaluation.comparing import entries_of

    asked = variants(args.methods, setup_of(args, family))
    if args.compile:
        asked = [compilable(variant) for variant in asked]
    return entries_of(asked, COMMAND, args, family, prompts, folder="compare")


def compilable(variant: Variant) -> Variant:
    """A variant whose steps are all alike, for --compile; one that cannot have such says why."""
    if variant.cache is None:
        return variant
    try:
        return replace(variant, cache=for_compiling({variant.label: variant.cache})[variant.label])
    except UserError as error:
        return replace(variant, cache=None, error=str(error))


def plan(entries: "Sequence[Entry]") -> dict[str, Any]:
    """What --dry-run prints."""
    base = entries[0].counts["flops_T"]

    def row(entry: "Entry") -> dict[str, Any]:
        if entry.error is not None:
            return {"label": entry.label, "error": entry.error}
        counts, cache = entry.counts, entry.variant.cache
        bounds = {name: counts[name] for name in ("full_steps_bounds", "flops_ratio_bounds") if name in counts}
        return {
            "label": entry.label,
            "num_steps": entry.job.num_steps,
            "full_steps": counts["full_steps"],
            **{name: counts[name] for name in ("partial_steps",) if name in counts},
            "flops_ratio": counts["flops_T"] and base / counts["flops_T"],
            **bounds,
            **({"note": DECIDED} if bounds else {}),
            "kept_bytes": counts["kept_bytes"][cache.engine],
        }

    rows = [row(entry) for entry in entries]
    dearest = [row.get("flops_ratio_bounds", [row.get("flops_ratio")])[0] for row in rows if "error" not in row]
    job = entries[0].job
    return {
        "settings": job.settings,
        "output_dir": str(job.out),
        "num_samples": len(job.prompts),
        "batch_size": job.args.batch_size,
        "uncached_runs_at_most": sum(1 / ratio for ratio in dearest),
        "rows": rows,
    }


def copy_results(folder: Path, family: Family, model: str, out: Path) -> list[Path]:
    """Record and plots under the names of results/."""
    target = folder / family.folder
    target.mkdir(parents=True, exist_ok=True)
    copied = []
    for name, suffix in (("record", ".json"), ("pareto", ".png"), ("pareto", ".svg")):
        if (made := out / f"{name}{suffix}").is_file():
            copied.append(copy_whole(made, target / f"compare-{model.replace('/', '-')}{suffix}"))
    return copied


def main(argv: list[str] | None = None) -> None:
    args, family = parse_args(argv)
    for path in args.plugin:
        args.methods = [*args.methods, *load_plugin(path)]
    for name in args.methods:
        check_choice("method", name, choices())
    prompts = settle(args, family)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.comparing import Contest, compared, report
    from evaluation.jobs import print_json
    from seerkit.devices.distributed import num_processes, start_world

    if num_processes() > 1:
        raise UserError("a comparison is timed by one process; start it without torchrun")
    entries = make_entries(args, family, prompts)
    if args.dry_run:
        print_json(plan(entries))
        return
    if entries[0].error is not None:
        raise UserError(entries[0].error)
    world = start_world(args.device)
    if not args.json:
        show_log()
    contest = Contest(entries=entries, world=world, resume=args.resume)
    contest.prepare()
    contest.run()
    record = report(contest, entries[0].job.command_line(1))
    out = entries[0].job.out
    copied = copy_results(args.results, family, args.model, out) if args.results else []
    if args.json:
        print(json.dumps(record))
    else:
        rows = [row for row in record["rows"] if "error" not in row]
        print("", compared(record, contest.judge(), rows).text(), sep="\n")
        print(f"plots: {out / 'pareto.png'}, .svg\nrecord: {out / 'record.json'}\npage: {out / 'index.html'}")
        if copied:
            print(f"copied: {', '.join(map(str, copied))}")
    failed = {row["label"]: row["error"] for row in record["rows"] if "error" in row}
    if failed:
        told = "; ".join(f"{label}: {error}" for label, error in failed.items())
        raise UserError(f"{len(failed)} of {len(record['rows'])} rows failed, the others are there: {told}")


if __name__ == "__main__":
    run_command(main)
