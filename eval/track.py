"""Say how often clips of the embedded video models show what their captions ask for, by following the object in them.

The captions are held out: no training clip had one of them. Beside the model's uncached samples stand real clips of the same
captions, the ceiling of the measure, and the samples under other captions than their own, its floor. The rules stand in
`evaluation.tracking`. Samples are kept: a killed run goes on where it stopped, and one of more captions adds to them.
"""

import argparse
import json
import shlex
from pathlib import Path
from typing import Any

from evaluation.backbones import PACKAGES
from evaluation.calibration import sampling_args
from evaluation.flags import EMBEDDED
from seerkit.command.cli import Parser, positive_int, run_command
from seerkit.command.flags import add_device_flag, add_dry_run_flag, add_record_flags, add_seed_flag
from seerkit.io.files import writable_directory, writable_file, write_json
from seerkit.io.tables import text_table

COMMAND = "eval/track.py"
EXAMPLES = """
python eval/track.py --model wan-tiny
python eval/track.py --model hunyuan-tiny --per-motion 20 --out results/hunyuan/tracking.json
"""
MODELS = tuple(model for model in EMBEDDED if PACKAGES[model] in ("wan", "hunyuan_video"))
PER_MOTION = 10
REAL_SEED = 1  # of the real clips: another than training's


def parse_args(argv: list[str] | None) -> tuple[argparse.Namespace, list[str], Parser]:
    """Flags of the command, those left for the model, and the parser."""
    parser = Parser(__doc__, EXAMPLES)
    parser.section("model").add_argument("--model", choices=MODELS, required=True, help="what is sampled")
    parser.section("data").add_argument(
        "--per-motion", type=positive_int, default=PER_MOTION, metavar="N", help="held-out captions of every motion"
    )
    add_seed_flag(parser, {}, sample="clip", condition="caption")
    add_device_flag(parser)
    output = parser.section("output")
    output.add_argument(
        "--work",
        type=Path,
        default=Path("outputs/tracking"),
        metavar="DIR",
        help="for samples, of any models and counts",
    )
    add_dry_run_flag(parser, "captions and the samples that are missing")
    add_record_flags(parser)
    return *parser.parse_known_args(argv), parser


def main(argv: list[str] | None = None) -> None:
    args, rest, parser = parse_args(argv)
    given = sampling_args(
        parser, args.model, rest, seed=args.seed
    )  # refuses what the model's own command does not take

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from cache_dic import make_cache
    from evaluation.tracking import held_out_captions, rates, told
    from evaluation.validation.generated import Generated, Row, steps_label
    from evaluation.variants import UNCACHED
    from seerkit.data.moving_objects import MovingObjects
    from seerkit.devices.distributed import start_world
    from seerkit.devices.dtypes import torch_dtype
    from seerkit.io.media import video_to_uint8
    from seerkit.io.records import conditions

    captions = held_out_captions(args.per_motion, args.seed)
    world = start_world(args.device)
    row = Row(label=steps_label(given.num_steps), num_steps=given.num_steps, cache=make_cache(UNCACHED))
    made = Generated(args.model, captions, args.work / args.model, world, seed=args.seed, rows=[row], flags=rest)
    if args.dry_run:
        missing = len(made.missing(len(captions))) * made.shard
        print(json.dumps({"model": args.model, "captions": captions, "samples_missing": missing}, indent=2))
        return
    writable_directory(args.work)
    if args.out:
        writable_file(args.out)
    made.make(len(captions), quiet=args.json)
    real = MovingObjects(REAL_SEED).clips(range(len(captions)), captions)[0]
    clips = {"generated": made.pixels(len(captions))[row.label](), "real": video_to_uint8(real)}
    shown = {kind: [told(clip) for clip in clips[kind]] for kind in clips}
    record: dict[str, Any] = {
        "command": COMMAND,
        "command_line": shlex.join(["python", COMMAND, *args.command_line]),
        "model": args.model,
        "settings": made.settings,
        "units": "right_: how many of `num` clips show what their caption asks for; "
        "chance: share of the other clips, averaged over captions, that move as the caption asks",
        "rows": {kind: rates(facts, captions) for kind, facts in shown.items()},
        "clips": [{"caption": caption, **facts} for caption, facts in zip(captions, shown["generated"], strict=True)],
        "conditions": conditions(world.device, torch_dtype(given.precision)),
    }
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


def text(record: dict[str, Any]) -> str:
    """The shares as a table."""
    from evaluation.cells import TRACKING_HEADER, TRACKING_MEANING, tracking_cells

    return "\n".join([record["model"], "", text_table(TRACKING_HEADER, tracking_cells(record)), "", TRACKING_MEANING])


if __name__ == "__main__":
    run_command(main)
