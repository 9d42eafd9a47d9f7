"""Count the operations that a forecast step dispatches at the depth of FLUX.1: here, in diffusers, in cache-dit, as released.

The count depends on depth and order alone, so that a narrow model on a CPU serves; nothing is timed.
"""

from seerkit.command.cli import Parser, json_file, non_negative_int, positive_int, run_command  # isort: skip

import json
from importlib import metadata
from typing import Any

import torch

from cache_dic import ENGINES, PRESETS, make_cache
from evaluation.backbones import BACKBONES, PACKAGES, workload
from evaluation.operations import count_forecast
from evaluation.rivals import RIVALS, count_rival
from seerkit.devices.dtypes import PRECISIONS, torch_dtype
from seerkit.io.files import writable_file, write_json
from seerkit.io.records import conditions
from seerkit.io.tables import number, text_table

EXAMPLES = """
python eval/op_counts.py
python eval/op_counts.py --max-order 1 --json
python eval/op_counts.py --out results/flux/op-counts.json
"""
MODEL = "flux-debug"  # narrow; the depth comes from --depth
OURS = "this repository, {} engine"


def parse_args(argv: list[str] | None):
    backbone, parser = BACKBONES[MODEL], Parser(__doc__, EXAMPLES)
    parser.add_argument("--max-order", type=non_negative_int, default=PRESETS[PACKAGES[MODEL]].max_order)
    parser.add_argument(
        "--depth", type=positive_int, default=backbone.deepest, help="double blocks; single blocks are twice as many"
    )
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bf16", help="of weights and features")
    parser.add_argument("--json", action="store_true", help="print the record instead of the table")
    parser.add_argument("--out", type=json_file, help="JSON file for the record")
    args = parser.parse_args(argv)
    if args.max_order >= backbone.num_steps:
        parser.error(
            f"--max-order {args.max_order} is too much; a run of {backbone.num_steps} steps has no such difference"
        )
    return args


def count_all(args) -> dict[str, Any]:
    """The record: operations by implementation, None where its package is not installed."""
    backbone, dtype = BACKBONES[MODEL], torch_dtype(args.precision)
    case = backbone.build(workload(MODEL, depth=args.depth), dtype)
    settings = {"preset": PACKAGES[MODEL], "max_order": args.max_order}
    cache = make_cache("taylorseer", **settings)
    timesteps = backbone.timesteps(case, backbone.num_steps)
    rows = [
        {
            "label": OURS.format(engine),
            "package": None,
            "operations": count_forecast(case, make_cache("taylorseer", engine=engine, **settings), timesteps),
        }
        for engine in ENGINES
    ]
    for label, (package, make) in RIVALS.items():
        version = installed(package) if package else None
        missing = package and version is None
        rows.append(
            {
                "label": label,
                "package": f"{package} {version or '(not installed)'}" if package else None,
                "operations": None if missing else count_rival(make, backbone, case, args.max_order),
            }
        )
    config = case.model.config
    return {
        "command": "eval/op_counts.py",
        "cache": cache.label,
        "settings": {
            "depth": config.depth,
            "depth_single_blocks": config.depth_single_blocks,
            "hidden_size": config.hidden_size,
            "sites": case.model.tokens(case.latents).num_sites,
            **settings,
            "precision": args.precision,
        },
        "units": "operations: ATen operations that read or write elements, dispatched by one forecast step in its steady state",
        "rows": rows,
        "conditions": conditions(torch.device("cpu"), dtype),
    }


def installed(package: str) -> str | None:
    """Its version, None if it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def text(record: dict[str, Any]) -> str:
    s = record["settings"]
    rows = [[row["label"], row["package"] or "", number(row["operations"], 0)] for row in record["rows"]]
    return "\n".join(
        [
            f"a forecast step of {s['depth']} double and {s['depth_single_blocks']} single blocks, order {s['max_order']}, "
            f"{s['precision']}",
            text_table(["", "package", "operations"], rows),
        ]
    )


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.out:
        writable_file(args.out)
    record = count_all(args)
    if args.out:
        write_json(args.out, record)
    print(json.dumps(record) if args.json else text(record))


if __name__ == "__main__":
    run_command(main)
