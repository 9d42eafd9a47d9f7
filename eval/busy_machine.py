"""Time a step of the embedded FLUX alone and beside busy processes, by how long threads of OpenMP look for work.

Threads that wait by looking take a core from whoever has work. The commands let them look less often than GNU OpenMP would,
where the user has set nothing (GOMP_SPINCOUNT, in `seerkit.environment`).
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache_dic import UserError
from seerkit.command.cli import Parser, integer, positive_int, run_command
from seerkit.command.flags import add_record_flags
from seerkit.environment import OPENMPS_OWN_SPINS, SPINS
from seerkit.io.files import writable_file, write_json
from seerkit.io.tables import number, text_table

EXAMPLES = """
python eval/busy_machine.py
python eval/busy_machine.py --spins 300000 10000 1000 --neighbours 0 1 --out results/flux/busy-machine.json
"""
ROOT = Path(__file__).resolve().parents[1]
BATCH, STEPS = 8, 20  # images of a model call, and its calls in a run


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes of one thread that never wait."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def step_ms(spins: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a full step: median, least and most of `repeats` batches of the sampling command, the first dropped."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, ROOT / "TaylorSeer-FLUX" / "sample.py", "--method", "uncached", "--device", "cpu"]
        command += ["--num-steps", STEPS, "--batch-size", BATCH, "--json", "--output-dir", folder]
        command += ["--prompt", *["red apple, noto"] * (BATCH * (repeats + 1))]
        done = subprocess.run(
            list(map(str, command)),
            env=environment | {"GOMP_SPINCOUNT": str(spins)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
    if done.returncode:
        raise UserError(f"the sampling command ended with exit code {done.returncode}; what it said stands above")
    (row,) = json.loads(done.stdout)["rows"]
    return {name: 1000 * row["latency"][name] / STEPS for name in ("median_s", "min_s", "max_s")}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(__doc__, EXAMPLES)
    measuring = parser.section("measuring")
    measuring.add_argument(
        "--spins",
        type=positive_int,
        nargs="+",
        metavar="N",
        default=[OPENMPS_OWN_SPINS, SPINS],
        help="of GOMP_SPINCOUNT: looks for work before a thread sleeps",
    )
    measuring.add_argument(
        "--neighbours",
        type=integer(0, 256),
        nargs="+",
        metavar="N",
        default=[0, 1],
        help="busy processes of one thread beside it",
    )
    measuring.add_argument("--repeats", type=integer(1, 1000), metavar="N", default=3, help="timings of each")
    add_record_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.out:
        writable_file(args.out)
    rows: list[dict[str, Any]] = []
    for neighbours in args.neighbours:
        for spins in args.spins:
            with busy_processes(neighbours):
                timing = step_ms(spins, args.repeats)
            rows.append(
                {"spins": spins, "neighbours": neighbours, **{k.replace("_s", "_ms"): v for k, v in timing.items()}}
            )

    # Only now, so that --help and mistakes are answered before torch is loaded.
    import torch

    from seerkit.io.records import conditions

    record = {
        "command": "eval/busy_machine.py",
        "settings": {"model": "flux-tiny", "batch_size": BATCH, "num_steps": STEPS, "repeats": args.repeats},
        "units": "milliseconds of a full step; neighbours: processes of one thread that never wait",
        "cores": os.cpu_count(),
        "rows": rows,
        "conditions": conditions(torch.device("cpu"), torch.float32),
    }
    if args.out:
        write_json(args.out, record)
    cells = [
        [str(row["spins"]), str(row["neighbours"]), *(number(row[k], 1) for k in ("median_ms", "min_ms", "max_ms"))]
        for row in rows
    ]
    table = text_table(["GOMP_SPINCOUNT", "busy processes beside", "step ms", "least", "most"], cells)
    print(json.dumps(record) if args.json else table)


if __name__ == "__main__":
    run_command(main)
