"""Score finished samples: a folder of images or videos, or an .npz batch, by any measures of the repository.

What is read of the samples is kept shard by shard: a killed run goes on where it stopped, several processes share the work
(torchrun), and a reference is read once for all sets that are compared with it. A file that cannot be read fails the whole.
"""

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import UserError
from evaluation.scoring.measures import NAMES, find_measure
from seerkit.command.cli import Parser, positive_int, run_command
from seerkit.command.flags import add_device_flag, add_dry_run_flag, add_record_flags
from seerkit.io.files import writable_directory, writable_file, write_json
from seerkit.io.tables import counted, number, text_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evaluation.scoring.samples import Samples

EXAMPLES = """
python eval/score.py outputs/flux/A/taylorseer-N6-W3-O2 --measures psnr ssim --pairs outputs/flux/A/uncached
python eval/score.py --list
torchrun --nproc_per_node=8 eval/score.py samples.npz --measures psnr --pairs uncached.npz --out score.json
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    data = parser.section("data")
    data.add_argument(
        "samples",
        type=Path,
        nargs="?",
        help="folder of images or of .mp4 videos, or .npz with arr_0, (N, H, W, 3) uint8",
    )
    data.add_argument(
        "--measures", nargs="+", choices=NAMES, default=[], metavar="NAME", help=f"any of {', '.join(NAMES)}"
    )
    data.add_argument(
        "--reference", type=Path, metavar="SET", help="set that the whole is compared with, such as real images"
    )
    data.add_argument(
        "--pairs", type=Path, metavar="SET", help="set whose samples are compared one by one, such as uncached ones"
    )
    prompts = data.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help="a prompt a line, one for each sample in order of names; or the list that files PROMPT-NUMBER are called after",
    )
    prompts.add_argument(
        "--record", type=Path, metavar="FILE", help="record.json or claim.json of the run, with its prompts"
    )
    prompts.add_argument("--prompts-in-names", action="store_true", help="files are called PROMPT-NUMBER")
    data.add_argument(
        "--num-samples", type=positive_int, metavar="N", help="how many there must be (default: as there are)"
    )
    data.add_argument("--allow-duplicates", action="store_true", help="take samples that are equal to the last pixel")
    add_device_flag(parser)
    output = parser.section("output")
    output.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        default=Path("outputs/scores"),
        help="for what is read (default: outputs/scores)",
    )
    output.add_argument("--list", action="store_true", help="print what every measure needs and lacks here, and stop")
    add_dry_run_flag(parser, "what would be scored and what is missing")
    add_record_flags(parser)
    args = parser.parse_args(argv)
    if not args.list and not (args.samples and args.measures):
        parser.error("samples and --measures are needed; --list says which measures there are")
    return args


def listed() -> str:
    """Every measure with what it needs, and below what is missing here."""
    rows, missing = [], {}
    for measure in map(find_measure, NAMES):
        lines = measure.missing()
        for line in lines:
            missing.setdefault(line, []).append(measure.name)
        rows.append([measure.name, measure.title, ", ".join(sorted(measure.needs)) or "–", "no" if lines else "yes"])
    table = text_table(["measure", "title", "needs", "ready"], rows)
    return "\n".join([table, *(f"\n{', '.join(names)}: missing {line}" for line, names in missing.items())])


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.list:
        print(listed())
        return

    # Only now, so that --help and mistakes are answered before torch is loaded.
    from evaluation.scoring.read import Task, check_task, score
    from evaluation.scoring.samples import open_samples
    from seerkit.devices.distributed import on_main, start_world
    from seerkit.devices.dtypes import torch_dtype
    from seerkit.io.records import conditions

    samples = open_samples(args.samples)
    count = len(samples.names)
    if args.num_samples not in (None, count):
        raise UserError(
            f"{args.samples} has {count} samples, --num-samples asks for {args.num_samples}; sample the others first"
        )
    task = Task(
        samples=samples,
        reference=args.reference and open_samples(args.reference),
        pairs=args.pairs and open_samples(args.pairs),
        prompts=prompts_of(samples, args),
    )
    if args.dry_run:
        told = {
            "samples": str(samples.path),
            "num_samples": count,
            "measures": args.measures,
            "missing": check_task(task, args.measures),
        }
        print(json.dumps(told, indent=2))
        return
    if args.out:
        writable_file(args.out)
    world = start_world(args.device)
    on_main(world, lambda: str(writable_directory(args.work)))
    scores = score(task, args.measures, args.work, world, allow_duplicates=args.allow_duplicates)
    if not world.is_main:
        return
    record: dict[str, Any] = {
        "command": "eval/score.py",
        "samples": {"path": str(samples.path), "digest": samples.digest(), "num_samples": count},
        **{
            name: {"path": str(one.path), "digest": one.digest(), "num_samples": len(one.names)}
            for name, one in (("reference", task.reference), ("pairs", task.pairs))
            if one is not None
        },
        **({"prompts": told_of_prompts(task.prompts, args)} if task.prompts else {}),
        "scores": scores,
        "conditions": conditions(world.device, torch_dtype("fp32")),
    }
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


def prompts_of(samples: "Samples", args: argparse.Namespace) -> list[str] | None:
    """One for each sample, None where none are given."""
    from evaluation.scoring.prompts import listed_prompts, prompts_in_names, recorded_prompts

    if args.prompt_file:
        return listed_prompts(samples, args.prompt_file)
    if args.record:
        return recorded_prompts(samples, args.record)
    return prompts_in_names(samples) if args.prompts_in_names else None


def told_of_prompts(prompts: "Sequence[str]", args: argparse.Namespace) -> dict[str, Any]:
    """Where the prompts come from, and the digest of a file with one of them a line, in the order of the samples."""
    lines = "".join(f"{prompt}\n" for prompt in prompts)
    source = args.prompt_file or args.record
    return {
        "path": str(source) if source else "names of the files",
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }


def text(record: dict[str, Any]) -> str:
    """The scores as a table, with what they mean and what keeps them from being compared."""
    rows, meanings, remarks = [], [], []
    for name, found in record["scores"].items():
        measure = find_measure(name)
        shown = found.get("note") or number(found["value"], measure.digits)
        interval = "–"
        if found.get("low") is not None:
            interval = f"{number(found['low'], measure.digits)} to {number(found['high'], measure.digits)}"
        remark = found.get("remark")
        if remark:
            remarks = list(dict.fromkeys([*remarks, remark]))
        number_of = f" [{remarks.index(remark) + 1}]" if remark else ""
        rows.append([found["title"], shown + number_of, interval, str(found["num"])])
        meanings.append(measure.meaning)
    facts = f"{record['samples']['path']}, {counted(record['samples']['num_samples'], 'sample')}"
    return "\n".join(
        [
            facts,
            "",
            text_table(["measure", "value", "95 % interval", "of"], rows),
            "",
            *(f"[{number}] {remark}" for number, remark in enumerate(remarks, 1)),
            *dict.fromkeys(meanings),
        ]
    )


if __name__ == "__main__":
    run_command(main)
