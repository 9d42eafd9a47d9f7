"""Figures of the paper's kinds, each PNG and SVG, from records; and the record of features that some of them are drawn from.

measure    watch an uncached run of a model: similarity of its features from step to step, errors of forecasts, paths
features   of such a record: similarity and forecast error over the distance of steps, and paths by PCA
compare    of a record of eval/compare.py: quality over acceleration, every method
beyond     of a record of eval/beyond.py: LoopSeer at every budget beside the others, and the full steps that were found
published  of results/paper/NAME.json: published quality over published speed-ups, for each source
samples    of the folder of a sampling command or of eval/compare.py: samples side by side

The model of `measure` is opened with the flags of its own sampling command, such as --num-steps, --ckpt, --height and
--offload, which go there too.
"""

import argparse
import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_dic import UserError
from cache_dic.errors import check_choice
from evaluation.calibration import default_samples, family_of, listed_prompts, sampling_args
from evaluation.families import FAMILIES, all_models
from evaluation.flags import add_any_model_flag
from evaluation.forms import BEYOND, COMPARISON
from seerkit.command.cli import Parser, non_negative_int, positive_float, positive_int, run_command
from seerkit.command.flags import add_dry_run_flag
from seerkit.io.files import writable_directory, writable_file, write_json
from seerkit.io.records import read_record
from seerkit.text.prompts import ANY_PROMPT

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "eval/figures.py"
EXAMPLES = """
bash scripts/reproduce_figures.sh
python eval/figures.py measure --model flux-tiny
python eval/figures.py measure --model flux-dev --prompt-file prompts.txt --samples 4 --offload --dry-run
python eval/figures.py features results/flux/features-flux-tiny.json
python eval/figures.py compare results/flux/compare-flux-tiny.json --output-dir figures
python eval/figures.py beyond results/flux/beyond-flux-tiny.json
python eval/figures.py published results/paper/flux.json
python eval/figures.py samples outputs/flux/flux-tiny-12345678
"""
NUM_SAMPLES = 8
MIB = 2**20


# ---------------------------------------------------------------------------------------------------------------- draw
# Each takes the path that was named, the record in it, the folder for the figures and the arguments, and returns the files.


def features(_: Path, record: Mapping[str, Any], folder: Path, __: argparse.Namespace) -> list[Path]:
    from evaluation.figures.features import draw_features, draw_trajectories

    return draw_features(record, folder) + draw_trajectories(record, folder)


def compare(_: Path, record: Mapping[str, Any], folder: Path, __: argparse.Namespace) -> list[Path]:
    from evaluation.pareto import draw_pareto

    return draw_pareto(record, folder, f"compare-{record['settings']['model'].replace('/', '-')}")


def beyond(_: Path, record: Mapping[str, Any], folder: Path, __: argparse.Namespace) -> list[Path]:
    from evaluation.figures.beyond import draw_beyond

    return draw_beyond(record, folder)


def published(path: Path, record: Mapping[str, Any], folder: Path, _: argparse.Namespace) -> list[Path]:
    from evaluation.figures.published import draw_published

    return draw_published(record, folder, path.stem)


def samples(path: Path, record: Mapping[str, Any], folder: Path, args: argparse.Namespace) -> list[Path]:
    from evaluation.figures.samples import draw_samples

    return draw_samples(record, path.parent, folder, args.ratio)


def forms() -> dict[str, tuple[Callable[..., list[Path]], Any, str]]:
    """By kind of figure: what draws it, what a record must hold, and the command that makes such a record."""
    from evaluation.figures.features import FEATURES
    from evaluation.figures.published import PUBLISHED
    from evaluation.figures.samples import SAMPLED

    return {
        "features": (features, FEATURES, f"{COMMAND} measure"),
        "compare": (compare, COMPARISON, "eval/compare.py"),
        "beyond": (beyond, BEYOND, "eval/beyond.py"),
        "published": (published, PUBLISHED, "results/paper/NAME.json"),
        "samples": (samples, SAMPLED, "a sampling command or eval/compare.py"),
    }


KINDS = ("features", "compare", "beyond", "published", "samples")


def draw(args: argparse.Namespace) -> None:
    """All figures of the records that are named; with --dry-run only their records are read."""
    make, form, made_by = forms()[args.action]
    paths = [path / "record.json" if args.action == "samples" and path.is_dir() else path for path in args.records]
    records = [(path, read_record(path, form, made_by)) for path in paths]
    for path, record in records:
        if args.output_dir:
            folder = args.output_dir
        else:
            folder = args.results / path.stem if args.action == "published" else home(args, record["settings"]["model"])
        if args.dry_run:
            print(f"{path}: {args.action} into {folder}")
            continue
        writable_directory(folder)
        made = make(path, record, folder, args)
        print(*made or [f"{path}: nothing to draw, no two points with a figure of merit"], sep="\n")


def home(args: argparse.Namespace, model: str) -> Path:
    """The folder of a model's records in results/, whose figures go there unless another one is named."""
    check_choice("model", model, all_models())
    return args.results / FAMILIES[all_models()[model]].folder


# --------------------------------------------------------------------------------------------------------------- measure


def measured_prompts(asked: argparse.Namespace, args: argparse.Namespace) -> list[str]:
    """Prompts of the samples, of DiT names of classes; those that come with the model where no file is named."""
    if asked.prompt_file is not None:
        given = listed_prompts(args, asked.prompt_file)
    elif not family_of(asked.model).published(asked.model):
        given = default_samples(args)
    elif asked.dry_run:
        given = [ANY_PROMPT] * asked.samples
    else:
        raise UserError(f"{asked.model} needs --prompt-file FILE with one prompt per line")
    return given[: asked.samples]


def measure(asked: argparse.Namespace, args: argparse.Namespace, command_line: Sequence[str]) -> None:
    prompts = measured_prompts(asked, args)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.features import Measurement
    from evaluation.figures.features import facts

    measurement = Measurement(args=args, prompts=prompts, limit=asked.held_mib * MIB)
    if asked.dry_run:
        print(json.dumps(measurement.plan(), indent=2))
        return
    name = f"features-{asked.model.replace('/', '-')}.json"
    out = writable_file((asked.output_dir or home(asked, asked.model)) / name)
    made = measurement.make()
    record = {"command": COMMAND, "command_line": shlex.join(["python", COMMAND, *command_line]), **made}
    write_json(out, record)
    print(f"{facts(record)}\nrecord: {out}")


# ---------------------------------------------------------------------------------------------------------------- command


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.Namespace | None]:
    """What is asked for, and for `measure` the arguments of the model's sampling command."""
    parser = Parser(__doc__, EXAMPLES)
    parser.section("data").add_argument("action", choices=("measure", *KINDS), help="what to make, as above")
    parser.section("data").add_argument("records", nargs="*", type=Path, metavar="RECORD", help="what to draw it from")
    add_any_model_flag(parser, "flux-tiny")
    parser.section("prompts").add_argument(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="one per line, of DiT classes (default: those of embedded models)",
    )
    parser.section("data").add_argument(
        "--samples", type=positive_int, default=NUM_SAMPLES, metavar="N", help="samples that are watched, at most"
    )
    parser.section("sampling").add_argument(
        "--seed", type=non_negative_int, default=0, metavar="N", help="of the noise, as of sampling commands"
    )
    parser.section("measuring").add_argument(
        "--held-mib",
        type=positive_int,
        default=512,
        metavar="MIB",
        help="the most that features of the watched sites take at once; coordinates are drawn where they take more",
    )
    output = parser.section("output")
    output.add_argument(
        "--ratio", type=positive_float, default=5.0, metavar="X", help="of samples: FLOPs ratio to compare methods at"
    )
    output.add_argument(
        "--results",
        type=Path,
        default=ROOT / "results",
        metavar="DIR",
        help="record and figures go to DIR/BACKBONE (default: results/ of the repository)",
    )
    output.add_argument("--output-dir", type=Path, metavar="DIR", help="record and figures go to DIR itself")
    add_dry_run_flag(parser, "what would be measured or drawn, and where to")
    asked, rest = parser.parse_known_args(argv)
    if asked.action == "measure":
        if asked.records:
            parser.error(f"measure takes no record ({asked.records[0]}); name a model by --model")
        return asked, sampling_args(parser, asked.model, rest, seed=asked.seed, dry_run=asked.dry_run)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if not asked.records:
        parser.error(f"{asked.action} needs a RECORD to be drawn from")
    of_measuring = ("model", "prompt_file", "samples", "seed", "held_mib")
    for name in (*of_measuring, *(["ratio"] if asked.action != "samples" else [])):
        if getattr(asked, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} has no effect with {asked.action}")
    return asked, None


def main(argv: list[str] | None = None) -> None:
    asked, args = parse_args(argv)
    if args is None:
        draw(asked)
    else:
        measure(asked, args, asked.command_line)


if __name__ == "__main__":
    run_command(main)
