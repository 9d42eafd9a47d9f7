"""Caches on pipelines side by side: which steps are forecasts, what is kept, what the table says of it."""

from argparse import Namespace

import pytest
import torch

from cache_dic import make_cache
from evaluation import fronts
from evaluation.cells import FRONTS_HEADER, front_cells
from flux.config import CONFIGS

SIZE = fronts.Size(config=CONFIGS["flux-debug"], image_tokens=64, text_tokens=4)
ARGS = Namespace(num_steps=16, repeats=1, dropped=0, precision="fp32")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base() -> fronts.Steps:
    counted, row = fronts.measure("uncached", SIZE, ARGS, CPU, None)
    assert row["forecast_steps"] == 0
    assert (row["kept_bytes"], row["operations"], row["forecast_over_full"]) == (None, None, None)
    return counted


@pytest.mark.slow
def test_forecasts_are_told_by_their_operations_and_what_is_kept_by_what_is_alive(base) -> None:
    name = "this front, TaylorSeer, folded engine"
    counted, row = fronts.measure(name, SIZE, ARGS, CPU, base)
    plan = make_cache("taylorseer", preset="flux").plan(ARGS.num_steps)
    assert row["forecast_steps"] == len(plan.forecast_steps)
    assert [flops < max(base.flops) for flops in counted.flops] == [not plan.is_full(s) for s in range(ARGS.num_steps)]
    assert row["operations"] < row["full_operations"]
    subject = fronts.make_subject(SIZE, ARGS.num_steps, torch.float32, CPU)
    fronts.FRONTS[name][1](subject)
    subject.run()
    told, stream = subject.pipe.cache_report().num_bytes, 64 * SIZE.config.hidden_size * 4
    assert told <= row["kept_bytes"] <= told + 10 * stream, "what it says that it keeps, and the last call's tokens"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (package, _) in fronts.FRONTS.items() if package == "diffusers"])
def test_hooks_of_diffusers_forecast(base, name) -> None:
    _, row = fronts.measure(name, SIZE, ARGS, CPU, base)
    assert 0 < row["forecast_steps"] < ARGS.num_steps
    assert row["kept_bytes"] > 0
    cells = front_cells({"model": "x", **row, "compiling": "Error: no"})
    assert len(cells) == len(FRONTS_HEADER)
    assert cells[0].startswith(f"{name}, diffusers 0.")
    assert cells[-2] == "fails"


def test_what_is_not_installed_is_named() -> None:
    row = {"label": "DBCache", "package": "cache-dit", "skipped": "cache-dit is not installed"}
    assert front_cells(row)[0] == "DBCache, cache-dit: cache-dit is not installed"
