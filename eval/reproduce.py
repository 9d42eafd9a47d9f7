"""Run published tables again: count every row at published size, sample and score it, and set both figures side by side.

Without weights the operations are counted all the same, and what is missing is named. A killed run goes on where it stopped;
under torchrun the processes share the samples. Flags of model, prompts and device are those of the sampling command of the
backbone.
"""

import argparse
import hashlib
import itertools
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import UserError
from evaluation.families import FAMILIES, Family
from evaluation.flags import hide_caching, refuse_caching
from evaluation.reproduction.protocols import PROTOCOLS, Prompts, Protocol
from evaluation.vbench import FLICKERING, expand, make_entries
from seerkit.command.cache_flags import load_plugin
from seerkit.command.cli import Parser, positive_int, run_command, show_log
from seerkit.command.flags import add_dry_run_flag
from seerkit.io.files import read_json, write_json
from seerkit.text.prompts import read_list

if TYPE_CHECKING:
    from evaluation.reproduction.running import Plan

EXAMPLES = """
python eval/reproduce.py flux --smoke
python eval/reproduce.py flux --estimate
python eval/reproduce.py flux --prompt-file DrawBench200.txt --rows hyca 'taylorseer-*'
torchrun --nproc_per_node=8 eval/reproduce.py dit --reference VIRTUAL_imagenet256_labeled.npz --rows paper
python eval/reproduce.py flux --prompt-file DrawBench200.txt --plugin docs/examples/damped_predictor.py --rows own uncached
"""
FIXED = ("num_steps", "image_size", "height", "width", "num_frames", "size")
"""Flags of sampling commands that would make samples of another table than the one that is set beside them."""
VBENCH_EMBEDDED = Path(__file__).with_name("vbench_embedded.json")


def asked_table(argv: list[str] | None) -> Protocol:
    """The table of a command line, before its other flags can be understood."""
    given = [text for text in (sys.argv[1:] if argv is None else argv) if text in PROTOCOLS]
    return PROTOCOLS[given[0] if given else "flux"]


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, Protocol]:
    protocol = asked_table(argv)
    family = FAMILIES[protocol.package]
    parser = Parser(__doc__, EXAMPLES)
    family.add_flags(parser)
    fixed = [one for title in ("model", "sampling") for one in parser.flags_in(title) if one.dest in FIXED]
    parser.hide("--model", *(action.option_strings[0] for action in fixed))
    hide_caching(parser)
    given = sys.argv[1:] if argv is None else argv
    parser.set_defaults(**(smoke_defaults(protocol) if "--smoke" in given else published_defaults(protocol)))
    data = parser.section("data")
    data.add_argument("table", choices=tuple(PROTOCOLS), help=f"whose published tables: {', '.join(PROTOCOLS)}")
    data.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only these: keys of tables, methods or labels, with * for anything (default: all; --estimate names them)",
    )
    data.add_argument(
        "--reference", type=Path, metavar="FILE", help="ADM's reference batch, or a folder of real images, for FID"
    )
    data.add_argument("--smoke", action="store_true", help="the whole way on the embedded model, in minutes")
    parser.section("prompts").add_argument(
        "--num-samples", type=positive_int, metavar="N", help="of every row (default: as published; fewer are named so)"
    )
    parser.section("prompts").add_argument(
        "--any-prompts", action="store_true", help="take a prompt file that is not the published one"
    )
    output = parser.section("output")
    output.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="gets all that is made (default: outputs/reproduce/TABLE[-smoke])",
    )
    output.add_argument(
        "--results", type=Path, metavar="DIR", help="also copy the record to DIR/TABLE/reproduced[-smoke].json"
    )
    output.add_argument("--estimate", action="store_true", help="print rows, samples, GPU hours and disk, and stop")
    add_dry_run_flag(parser, "the same as --estimate, as JSON")
    output.add_argument("--json", action="store_true", help="print the record instead of the tables")
    args = parser.parse_args(argv)
    refuse_caching(
        parser, args, "where every row has its own settings: choose rows by --rows, or add methods by --plugin"
    )
    return args, protocol


def published_defaults(protocol: Protocol) -> dict[str, Any]:
    """Of the flags of the sampling command, by name, as the tables were made."""
    sizes = {"num_frames" if name == "frames" else name: value for name, value in protocol.sizes.items()}
    video = {"keep_latents": False, "gif": False} if "frames" in protocol.sizes else {}
    return {"model": protocol.model, "num_steps": protocol.num_steps, **sizes, **protocol.flags, **video}


def smoke_defaults(protocol: Protocol) -> dict[str, Any]:
    """The same of a smoke run, which leaves sizes and guidance to the embedded model."""
    return {"model": protocol.embedded, "num_steps": protocol.num_steps, "num_samples": protocol.smoke_samples}


def settle(args: argparse.Namespace, protocol: Protocol) -> None:
    """Fill in what was not given; UserError for what does not fit."""
    model = protocol.embedded if args.smoke else protocol.model
    if args.model != model:
        raise UserError(
            f"the tables are of {protocol.model}, and with --smoke of {protocol.embedded}; leave out --model"
        )
    args.num_samples = args.num_samples or protocol.num_samples
    args.output_dir = args.output_dir or Path("outputs/reproduce") / f"{protocol.name}{'-smoke' if args.smoke else ''}"
    args.quiet = args.json
    FAMILIES[protocol.package].fill(args)
    fixed = smoke_defaults(protocol) if args.smoke else published_defaults(protocol)
    for name in FIXED:
        if name in fixed and (given := getattr(args, name)) != fixed[name]:
            raise UserError(
                f"--{name.replace('_', '-')} {given} is not taken here, the tables are of {fixed[name]}; sample others by "
                f"scripts/run_{protocol.name}.sh"
            )


def chosen_prompts(args: argparse.Namespace, protocol: Protocol) -> tuple[list[str], list[str] | None, str | None]:
    """Prompts, one per sample; names of the files of videos for VBench; and what the list of prompts is."""
    from evaluation.reproduction.running import sampled_classes

    family = FAMILIES[protocol.package]
    if protocol.prompts is None:
        flags = family.flags
        return sampled_classes(args, flags.class_names(flags.config_of(args)), args.num_samples), None, None
    if args.smoke:
        given = smoke_prompts(args, family)
        return (
            given,
            [f"{prompt}-0" for prompt in given] if family.makes == "video" else None,
            "the embedded model's own",
        )
    if args.prompt_file is None:
        if args.estimate or args.dry_run:
            return ["…"] * args.num_samples, None, None
        raise UserError(
            f"the prompts of {protocol.prompts.name} have to be given by --prompt-file: {protocol.prompts.origin}"
        )
    listed = read_list(args.prompt_file)
    note = check_prompts(args.prompt_file, protocol.prompts, len({one.prompt for one in listed}), args.any_prompts)
    if family.makes == "image":
        prompts = [one.prompt for one in listed]
        return list(itertools.islice(itertools.cycle(prompts), args.num_samples)), None, note
    pairs = expand(make_entries(listed, num_samples=protocol.samples_per_prompt))[: args.num_samples]
    return [prompt for prompt, _ in pairs], [name for _, name in pairs], note


def smoke_prompts(args: argparse.Namespace, family: Family) -> list[str]:
    """Prompts of the embedded model; of videos as many that stand still, for VBench, as others."""
    if family.makes == "image":
        return list(itertools.islice(itertools.cycle(family.prompts(args)), args.num_samples))
    listed = read_list(VBENCH_EMBEDDED)
    still = [one.prompt for one in listed if FLICKERING in one.dimensions]
    moving = [one.prompt for one in listed if FLICKERING not in one.dimensions]
    half = args.num_samples // 2
    return [*moving[: args.num_samples - half], *still[:half]]


def write_full_info(args: argparse.Namespace, prompts: list[str]) -> Path:
    """The part of the embedded models' list for VBench that is sampled."""
    path = args.output_dir / "vbench-prompts.json"
    write_json(path, [entry for entry in read_json(VBENCH_EMBEDDED) if entry["prompt_en"] in prompts])
    return path


def check_prompts(path: Path, prompts: Prompts, count: int, any_prompts: bool) -> str:
    """What a prompt file is; UserError for one that is not the published one, unless any will do."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for known, meaning in prompts.digests.items():
        if digest.startswith(known):
            return meaning
    if any_prompts:
        return f"{path.name}, which is not the published list of {prompts.name} (SHA-256 {digest[:8]}…)"
    if count != prompts.count or prompts.digests:
        known = "; ".join(f"{value[:8]}… {meaning}" for value, meaning in prompts.digests.items())
        told = f", of SHA-256 {known}" if known else ""
        raise UserError(
            f"{path} has {count} different prompts and SHA-256 {digest[:8]}…; {prompts.name} has {prompts.count}{told}: "
            f"{prompts.origin}; --any-prompts takes others"
        )
    return f"{prompts.name}, {count} different prompts"


def make_plan(args: argparse.Namespace, protocol: Protocol, own: list[str]) -> "Plan":
    from evaluation.reproduction.rows import chosen, make_rows
    from evaluation.reproduction.running import Plan

    rows = chosen(make_rows(protocol, args.model, own), args.rows)
    prompts, names, note = chosen_prompts(args, protocol)
    full_info = args.prompt_file if names else None
    if args.smoke and names and not (args.estimate or args.dry_run):
        full_info = write_full_info(args, prompts)
    launcher = ["bash", f"scripts/reproduce_{protocol.name}.sh"]
    given = [text for text in args.command_line if text != protocol.name]
    return Plan(
        protocol=protocol,
        args=args,
        rows=rows,
        prompts=prompts,
        names=names,
        prompts_note=note,
        full_info=full_info,
        command_line=shlex.join([*launcher, *given]),
    )


def main(argv: list[str] | None = None) -> None:
    args, protocol = parse_args(argv)
    own = [name for path in args.plugin for name in load_plugin(path)]
    settle(args, protocol)

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.reproduction.estimate import estimate, estimate_text
    from evaluation.reproduction.running import check_ahead, reproduce
    from evaluation.reproduction.tables import write_tables
    from seerkit.devices.distributed import on_main, start_world

    plan = make_plan(args, protocol, own)
    if args.estimate or args.dry_run:
        told = estimate(plan)
        print(json.dumps(told, indent=2) if args.dry_run else estimate_text(told))
        return
    copied = args.results and args.results / protocol.name / f"reproduced{'-smoke' if args.smoke else ''}.json"
    world = start_world(args.device)
    on_main(world, lambda: check_ahead(plan, copied))
    if world.is_main and not args.json:
        show_log()
    record = reproduce(plan, world)
    if record is None:
        return
    text, files = write_tables(record, plan)
    if copied:
        files["copied"] = copied
        write_json(copied, record)
    print(
        json.dumps(record)
        if args.json
        else f"{text}\n\n" + "\n".join(f"{kind}: {path}" for kind, path in files.items())
    )
    lacking = dict.fromkeys(run["why"] for run in record["runs"].values() if run["why"])
    if lacking:
        raise UserError(
            f"not all rows could be run; operations are counted and the tables written: {'; '.join(lacking)}"
        )


if __name__ == "__main__":
    run_command(main)
