"""Score a folder of videos by VBench, dimension by dimension, each in a process of VBench's own environment.

VIDEOS holds PROMPT-0.mp4, PROMPT-1.mp4, … of every prompt of a list, as the video commands name them with --vbench. Each
dimension is kept when it is done: a killed run goes on where it stopped. Weights are looked for in $VBENCH_CACHE_DIR
(default: ~/.cache/vbench); --dry-run names those that are missing, with their sizes and where they come from. One dimension,
temporal_flickering, needs none.
"""

import argparse
import json
import shlex
from argparse import BooleanOptionalAction
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cache_dic import UserError
from cache_dic.errors import check_choice
from evaluation.vbench_dimensions import DIMENSIONS, LIMIT_S, VARIABLE, missing, vbench_folder
from seerkit.command.cli import Parser, device_name, json_file, positive_float, positive_int, run_command
from seerkit.command.flags import add_dry_run_flag

COMMAND = "eval/vbench.py"
EXAMPLES = """
bash scripts/setup_legacy_eval.sh
bash scripts/run_wan.sh --compare --prompt-file eval/vbench_embedded.json --vbench --output-dir outputs/wan/vbench
python eval/vbench.py outputs/wan/vbench/uncached --full-info eval/vbench_embedded.json --dimensions temporal_flickering --out uncached.json
python eval/vbench.py outputs/hunyuan/vbench/uncached --samples-per-prompt 5 --out outputs/hunyuan/vbench/uncached.json --dry-run
"""  # noqa: E501
ALL, ABLE = "all", "able"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    prompts, data, measuring = (parser.section(title) for title in ("prompts", "data", "measuring"))
    output, device = parser.section("output"), parser.section("device")
    data.add_argument(
        "videos", type=Path, metavar="VIDEOS", help="folder of MP4s, such as OUT/LABEL of the video commands"
    )
    prompts.add_argument(
        "--full-info",
        type=Path,
        metavar="FILE",
        help="list of prompts and what dimensions each is for (default: VBench_full_info.json, VBench's own); "
        "eval/vbench_embedded.json is that of the embedded models",
    )
    prompts.add_argument(
        "--samples-per-prompt",
        type=positive_int,
        metavar="N",
        help="videos that every prompt must have, of which VBench looks at 5 (default: as many as the prompt with the most)",
    )
    measuring.add_argument(
        "--dimensions",
        nargs="+",
        default=[ALL],
        metavar="NAME",
        help=f"{ALL} (default: {ALL}), {ABLE} for those of the list that can be scored here, or any of {', '.join(DIMENSIONS)}",
    )
    measuring.add_argument(
        "--limit-s",
        type=positive_float,
        metavar="S",
        default=LIMIT_S,
        help="seconds after which a dimension is given up",
    )
    output.add_argument("--out", type=json_file, metavar="RECORD.json", required=True, help="the record")
    output.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="what is kept of each dimension (default: RECORD.vbench beside the record)",
    )
    output.add_argument(
        "--resume", action=BooleanOptionalAction, default=True, help="keep what is there; --no-resume scores all again"
    )
    add_dry_run_flag(parser, "by dimension, its videos and what is missing")
    output.add_argument("--json", action="store_true", help="print the record instead of the table")
    device.add_argument(
        "--device", type=device_name, default="auto", help="auto (a GPU where there is one), cpu, cuda or cuda:N"
    )
    args = parser.parse_args(argv)
    for name in args.dimensions:
        check_choice("dimension", name, (ALL, ABLE, *DIMENSIONS))
    args.work = args.work or args.out.with_suffix(".vbench")
    return args


def chosen(names: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The dimensions that are asked for, in VBench's order; UserError if none of them can be scored."""
    listed = {name for entry in entries for name in entry.get("dimension", ())}
    able = [name for name in DIMENSIONS if ABLE in names and name in listed and not missing(name)]
    asked = {*names, *able, *(DIMENSIONS if ALL in names else ())}
    found = [name for name in DIMENSIONS if name in asked]
    if not found:
        raise UserError("no dimension of the list can be scored here; --dimensions all --dry-run says what is missing")
    return found


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """What --dry-run prints; `missing` has everything that stands in the way."""
    from evaluation.vbench_scores import expected, full_info_path, read_full_info

    full_info = full_info_path(args.full_info)
    entries = read_full_info(full_info)
    dimensions = {}
    for name in chosen([ALL if name == ABLE else name for name in args.dimensions], entries):
        lines, count = missing(name), None
        try:
            count = len(expected(entries, name, args.videos, args.samples_per_prompt).videos)
        except UserError as error:
            lines.append(str(error))
        dimensions[name] = {"can_run": not lines, "num_videos": count, "missing": lines}
    return {
        "videos": str(args.videos),
        "full_info": str(full_info),
        "weights": f"{vbench_folder()} ({VARIABLE})",
        "work": str(args.work),
        "dimensions": dimensions,
    }


def table(record: dict[str, Any]) -> str:
    """The scores in percent, and what failed."""
    from seerkit.io.tables import number, text_table

    rows = []
    for name, one in record["dimensions"].items():
        low, high = one["interval_percent"] or (None, None)
        half = "" if low is None else f" ± {number((high - low) / 2)}"
        rows.append([name, number(one["raw"], 4), f"{number(one['normalised_percent'])}{half}", str(one["num_videos"])])
    rows += [[name, "–", "failed", "–"] for name in record["errors"]]
    rows += [[name, "", number(record[name]), ""] for name in ("quality", "semantic", "total")]
    return text_table(["dimension", "raw", "normalised %", "videos"], rows)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.dry_run:
        print(json.dumps(plan(args), indent=2, ensure_ascii=False))
        return

    # Only now, so that --help and mistakes are answered before torch is loaded.
    import sys

    import torch

    from evaluation.vbench_scores import full_info_path, read_full_info, score_videos
    from seerkit.io.files import writable_directory, writable_file, write_json
    from seerkit.io.records import conditions

    full_info = full_info_path(args.full_info)
    dimensions = chosen(args.dimensions, read_full_info(full_info))
    writable_file(args.out)
    writable_directory(args.work)
    scored = score_videos(
        args.videos,
        full_info,
        dimensions,
        args.work,
        samples_per_prompt=args.samples_per_prompt,
        device=args.device,
        resume=args.resume,
        limit_s=args.limit_s,
        tell=lambda line: print(line, file=sys.stderr),
    )
    here = conditions(torch.device("cpu"), torch.float32)
    record = {
        "command": COMMAND,
        "command_line": shlex.join(["python", COMMAND, *args.command_line]),
        "units": "raw: VBench's own; percent: (raw - low) / (high - low) of the official table; quality, semantic and total: "
        "official weighted means in percent",
        **scored,
        "conditions": {key: here[key] for key in ("commit", "date")},
    }
    write_json(args.out, record)
    if args.json:
        print(json.dumps(record))
    else:
        print(table(record), *(f"{name}: {note}" for name, note in record["notes"].items()), sep="\n")
        print(f"record: {args.out}")
    if record["errors"]:
        told = "; ".join(f"{name}: {error}" for name, error in record["errors"].items())
        raise UserError(f"{len(record['errors'])} of {len(dimensions)} dimensions failed, the others are there: {told}")


if __name__ == "__main__":
    run_command(main)
