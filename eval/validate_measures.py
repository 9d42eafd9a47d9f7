"""Validate the measures of an embedded model's samples, and say which of them mean something there.

Every candidate is held against real samples (its floor), against ladders of degradation (blur, scale, noise, kinds dropped,
wrong captions, frames out of order), against a measure that looks with other eyes, and against samples whose order is known:
50, 20, 10 and 5 steps of the same model from the same noise. What passes is shown in comparisons. Samples and all that is read
of them are kept: a killed run goes on where it stopped, and one of more samples adds to them.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from evaluation.validation.candidates import CANDIDATES
from seerkit.command.cli import Parser, positive_int, run_command
from seerkit.command.flags import add_device_flag, add_dry_run_flag, add_record_flags, add_seed_flag
from seerkit.io.files import writable_directory, writable_file, write_json
from seerkit.io.tables import text_table

COMMAND = "eval/validate_measures.py"
EXAMPLES = """
python eval/validate_measures.py --model fashion-mnist --num-samples 1000
python eval/validate_measures.py --model wan-tiny --num-samples 60 --results results
python eval/validate_measures.py --model flux-tiny --dry-run
"""
NUM_SAMPLES = 200
LEAST = 20  # samples: one for each block of the jackknife


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    parser.section("model").add_argument(
        "--model", choices=tuple(CANDIDATES), required=True, metavar="NAME", help=f"any of {', '.join(CANDIDATES)}"
    )
    data = parser.section("data")
    data.add_argument(
        "--num-samples",
        type=positive_int,
        default=NUM_SAMPLES,
        metavar="N",
        help=f"generated in every way, {LEAST} at least",
    )
    data.add_argument(
        "--num-real",
        type=positive_int,
        metavar="N",
        help="real samples of every rung of a ladder (default: --num-samples)",
    )
    data.add_argument(
        "--num-reference",
        type=positive_int,
        metavar="N",
        help="real samples that sets are compared with (default: 5000 clothes, 4000 emoji, 500 clips)",
    )
    add_seed_flag(parser, {}, sample="sample")
    add_device_flag(parser)
    output = parser.section("output")
    output.add_argument(
        "--work",
        type=Path,
        default=Path("outputs/validation"),
        metavar="DIR",
        help="for samples and what is read of them, of any models and counts",
    )
    output.add_argument(
        "--results", type=Path, metavar="DIR", help="also write record and figure as DIR/metrics/MODEL.json and .png"
    )
    add_dry_run_flag(parser, "sets, measures and the samples that are missing")
    add_record_flags(parser)
    args = parser.parse_args(argv)
    args.num_real = args.num_real or args.num_samples
    for flag, count in (("--num-samples", args.num_samples), ("--num-real", args.num_real)):
        if count < LEAST:
            parser.error(f"{flag} {count} is too few for an interval of a distance; give {LEAST} or more")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.validation.domains import domain_of
    from evaluation.validation.figures import draw_validation
    from evaluation.validation.generated import Generated
    from evaluation.validation.rules import RULES, record_path
    from evaluation.validation.study import PAIRS, Sizes, Study, describe
    from seerkit.devices.distributed import start_world
    from seerkit.devices.dtypes import torch_dtype
    from seerkit.io.records import conditions

    domain = domain_of(args.model, args.seed)
    domain.check(max(args.num_samples, args.num_real))
    world = start_world(args.device)
    generated = Generated(args.model, domain.prompts, args.work / args.model / "samples", world, seed=args.seed)
    sizes = Sizes(
        samples=args.num_samples,
        real=args.num_real,
        reference=min(args.num_reference or domain.reference_size, domain.reference_size),
        pairs=min(args.num_samples, args.num_real, PAIRS),
    )
    study = Study(args.model, domain, generated, sizes, args.work / "readings", world, quiet=args.json)
    settings = {**describe(study), "seed": args.seed}
    if args.dry_run:
        missing = generated.missing(args.num_samples)
        told = {
            "model": args.model,
            "settings": settings,
            "rules": RULES,
            "measures": [candidate.name for candidate in study.candidates],
            "samples_missing": len(missing) * generated.shard,
            "steps_missing": sum(one.row.num_steps for _, one in missing) * generated.shard,
        }
        print(json.dumps(told, indent=2))
        return
    writable_directory(args.work)
    if args.out:
        writable_file(args.out)
    generated.make(args.num_samples, quiet=args.json)
    study.run()
    record: dict[str, Any] = {
        "command": COMMAND,
        "command_line": f"python {COMMAND} --model {args.model} --num-samples {sizes.samples} --num-real {sizes.real} "
        f"--num-reference {sizes.reference} --seed {args.seed}",
        "model": args.model,
        "settings": settings,
        "units": "value, half: of the measure, half of Student's 95 % interval; steps and differences: how much worse; needed: "
        "samples at which the interval of a difference ends at zero; half_at: half of it at so many samples",
        "rules": list(RULES),
        "rows": study.rows(),
        "conditions": conditions(world.device, torch_dtype("fp32")),
    }
    if args.out:
        write_json(args.out, record)
    if args.results:
        path = record_path(args.model, args.results / "metrics")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
        draw_validation(record, path.with_suffix(".png"))
    print(json.dumps(record) if args.json else text(record))


def text(record: dict[str, Any]) -> str:
    """The verdicts as a table."""
    from evaluation.validation.cells import HEADER, MEANING, verdict_cells

    return "\n".join([record["model"], "", text_table(HEADER, verdict_cells(record)), "", MEANING])


if __name__ == "__main__":
    run_command(main)
