"""Measure every backbone at its published size on a GPU, on random weights: steps, whole runs, memory, every method, others'
models and hooks, text encoders and autoencoders, beside what the device attains.

The work is divided into slices. Each stores every measurement as soon as it is made: what is interrupted, or runs out of
--budget-s, goes on at the next call, and what is finished is not measured again unless its settings change.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from cache_dic import UserError
from evaluation.gpu.journal import Journal
from evaluation.gpu.report import collect, text
from evaluation.gpu.slices import SLICES, Slice, chosen, settings_of
from seerkit.command.cli import Parser, non_negative_int, positive_int, run_command
from seerkit.command.flags import add_device_flag
from seerkit.devices.dtypes import PRECISIONS
from seerkit.io.files import writable_directory
from seerkit.io.tables import number, text_table

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = """
python eval/measure_gpu.py --list
python eval/measure_gpu.py --estimate
python eval/measure_gpu.py --slice ceilings flux-steps
python eval/measure_gpu.py --within-s 570
python eval/measure_gpu.py --device cpu --tiny
"""
GRACE_S = 20.0
"""Seconds that a slice may take longer than its budget, before it is ended."""
UNFINISHED = 3
"""The exit code that says: call again."""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    measuring, output = parser.section("measuring"), parser.section("output")
    measuring.add_argument(
        "--slice",
        nargs="+",
        choices=tuple(SLICES),
        metavar="NAME",
        help="slices to measure (default: all, in the order of --list)",
    )
    measuring.add_argument(
        "--budget-s", type=positive_int, metavar="SECONDS", default=540, help="of a slice, after which it stops"
    )
    measuring.add_argument(
        "--within-s",
        type=positive_int,
        metavar="SECONDS",
        help="of the whole call (default: until all slices are done)",
    )
    measuring.add_argument(
        "--repeats", type=positive_int, metavar="N", help="timings kept of a step (default: 5, tiny 2)"
    )
    measuring.add_argument(
        "--dropped", type=non_negative_int, metavar="N", default=1, help="timings dropped before them"
    )
    measuring.add_argument(
        "--tiny",
        action="store_true",
        help="small models and few repeats: a trial of the whole, whose times say nothing",
    )
    measuring.add_argument("--again", action="store_true", help="measure slices that are finished, too")
    measuring.add_argument(
        "--in-process",
        action=argparse.BooleanOptionalAction,
        help="measure in this process, not in one for each slice, which is ended when its time is over (default: with --tiny)",
    )
    actions = output.add_mutually_exclusive_group()
    actions.add_argument("--list", action="store_true", help="print the slices and how far they are, and stop")
    actions.add_argument(
        "--estimate", "--dry-run", action="store_true", help="print what they take on an H100, about, and stop"
    )
    actions.add_argument("--name-device", action="store_true", help="print the processor's name, and stop")
    output.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="files of the slices (default: outputs/gpu, tiny outputs/gpu-tiny)",
    )
    output.add_argument(
        "--results",
        type=Path,
        metavar="DIR",
        help="folder of the records, BACKBONE/gpu-DEVICE.json (default: results/ of the repository, tiny --output-dir)",
    )
    add_device_flag(parser)
    parser.section("device").add_argument(
        "--precision", choices=tuple(PRECISIONS), default="bf16", help="of weights and features"
    )
    args = parser.parse_args(argv)
    args.repeats = args.repeats or (2 if args.tiny else 5)
    for name in ("repeats", "dropped"):
        if getattr(args, name) > 1000:
            parser.error(f"--{name} {getattr(args, name)} is too much; take at most 1000")
    args.in_process = args.tiny if args.in_process is None else args.in_process
    args.output_dir = args.output_dir or ROOT / "outputs" / ("gpu-tiny" if args.tiny else "gpu")
    args.results = args.results or (args.output_dir if args.tiny else ROOT / "results")
    return args


def settings(args: argparse.Namespace, one: Slice, device: str) -> dict[str, Any]:
    return settings_of(
        one, tiny=args.tiny, precision=args.precision, repeats=args.repeats, dropped=args.dropped, device=device
    )


def path_of(args: argparse.Namespace, one: Slice) -> Path:
    return args.output_dir / f"{one.name}.json"


def show_list(args: argparse.Namespace) -> None:
    """The slices, and how far their files say that they are."""
    for one in chosen(args.slice):
        path = path_of(args, one)
        state = Journal.read(path).state if path.exists() else "not begun"
        print(f"{one.name:<{max(map(len, SLICES))}}  {one.summary}; {state}")


def show_estimate(args: argparse.Namespace) -> None:
    from evaluation.gpu.measure import estimate

    rows = estimate({one.name: settings(args, one, "an H100") for one in chosen(args.slice)})
    shown = [
        [name, str(row["parts"]), number(row["seconds"], 0), row["left_out"] or f"longest {row['longest_s']:.0f} s"]
        for name, row in rows.items()
    ]
    total = sum(row["seconds"] for row in rows.values())
    print(text_table(["slice", "parts", "s on an H100", ""], shown))
    print(f"about {total / 60:.0f} minutes on an H100, from the operations of full steps; other devices by their speed")


def device_of(args: argparse.Namespace) -> str:
    """The processor's name, asked in another process, so that this one holds no memory of a GPU; UserError for none."""
    flags = ["--device", args.device, "--name-device", *(["--tiny"] if args.tiny else [])]
    done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True, env=child_environment())
    if done.returncode:
        told = done.stderr.strip().splitlines() or ["no word"]
        raise UserError(told[-1].rpartition("error: ")[2])
    return done.stdout.strip().splitlines()[-1]


def child_environment() -> dict[str, str]:
    """As this process's, with the places that it imports from."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def run_apart(args: argparse.Namespace, one: Slice, budget_s: float) -> None:
    """Measure a slice in a process of its own, which is ended `GRACE_S` after its budget."""
    flags = [
        "--slice", one.name, "--in-process", "--budget-s", str(max(1, round(budget_s))), "--repeats", str(args.repeats),
        "--dropped", str(args.dropped), "--device", args.device, "--precision", args.precision,
        "--output-dir", str(args.output_dir), "--results", str(args.results),
        *(["--tiny"] if args.tiny else []),
    ]  # fmt: skip
    child = subprocess.Popen([sys.executable, __file__, *flags], env=child_environment(), stdout=subprocess.DEVNULL)
    try:
        child.wait(budget_s + GRACE_S)
    except subprocess.TimeoutExpired:
        print(f"{one.name}: ended after {budget_s + GRACE_S:.0f} s; what it measured is kept", file=sys.stderr)
    finally:
        end(child)
    if child.returncode not in (0, UNFINISHED):
        print(f"{one.name}: its process ended with code {child.returncode}", file=sys.stderr)


def end(child: subprocess.Popen) -> None:
    """End a process, by force where it does not follow."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.list:
        show_list(args)
        return
    if args.estimate:
        show_estimate(args)
        return
    if args.name_device:
        from seerkit.devices.distributed import resolve_device
        from seerkit.io.records import device_name

        device = resolve_device(args.device)
        if device.type == "cpu" and not args.tiny:
            raise UserError("published sizes take a GPU, and here is a CPU; try the whole with --device cpu --tiny")
        print(device_name(device))
        return
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a process of a slice is ended with this one
    writable_directory(args.output_dir)
    device = device_of(args)
    states = {}
    for one in chosen(args.slice):
        journal = Journal(path_of(args, one), settings(args, one, device), again=args.again)
        budget_s = float(args.budget_s)
        if args.within_s is not None:
            budget_s = min(budget_s, args.within_s - GRACE_S - (time.monotonic() - begun))
        if reason := one.missing():
            journal.leave_out(reason)
        elif not journal.is_finished and budget_s > 0:
            journal.save()
            if args.in_process:
                from evaluation.gpu.measure import measure_slice

                measure_slice(journal, one, args.device, budget_s)
            else:
                run_apart(args, one, budget_s)
            journal = Journal(journal.path, journal.settings)
        states[one.name] = journal
        print(f"{one.name}: {journal.state}", file=sys.stderr)
    records = collect(args.output_dir, args.results, device)
    for path, record in records.items():
        print(f"\n{text(record)}\nrecord: {path}")
    waiting = [name for name, journal in states.items() if not journal.is_finished]
    if waiting:
        print(f"not finished: {', '.join(waiting)}; call again to go on", file=sys.stderr)
        sys.exit(UNFINISHED)


if __name__ == "__main__":
    run_command(main)
