"""Operations that a forecast step dispatches, by implementation."""

import argparse
from typing import Any

import torch

from cache_dic import ENGINES, make_cache
from evaluation.backbones import BACKBONES, PACKAGES, workload
from evaluation.operations import count_forecast
from evaluation.rivals import RIVALS, count_rival
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.records import conditions, version_of
from seerkit.io.tables import number, text_table

OURS = "this repository, {} engine"


@torch.no_grad()
def count_all(model: str, args: argparse.Namespace) -> dict[str, Any]:
    """The record that the flags of op_counts.py ask for: operations by implementation, None where its package is missing."""
    backbone, dtype = BACKBONES[model], torch_dtype(args.precision)
    case = backbone.build(workload(model, depth=args.depth), dtype)
    settings = {"preset": PACKAGES[model], "max_order": args.max_order}
    cache = make_cache("taylorseer", **settings)
    timesteps = backbone.timesteps(case, backbone.num_steps)
    rows = [
        {
            "label": OURS.format(engine),
            "package": None,
            "operations": count_forecast(case, make_cache("taylorseer", engine=engine, **settings), timesteps),
        }
        for engine, form in ENGINES.items()
        if form.enters_model
    ]
    for label, (package, make) in RIVALS.items():
        version = version_of(package) if package else None
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
