"""Caches on pipelines side by side: which steps are forecasts, what is kept, what the table says of it."""

import pytest
import torch

from cache_dic import make_cache
from evaluation import fronts
from evaluation.cells import FRONTS_HEADER, front_cells
from flux.config import CONFIGS

SIZE = fronts.Size(config=CONFIGS["flux-debug"], image_tokens=64, text_tokens=4)
NUM_STEPS, CPU = 16, torch.device("cpu")
FOLDED = "this front, TaylorSeer, folded engine"
OF_DIFFUSERS = [name for name, (package, _) in fronts.FRONTS.items() if package == "diffusers"]


@pytest.mark.slow
def test_forecasts_are_told_by_their_operations_and_what_is_kept_by_what_is_alive() -> None:
    names = [fronts.UNCACHED, FOLDED, *OF_DIFFUSERS]
    rows = fronts.measure(SIZE, NUM_STEPS, torch.float32, CPU, repeats=2, dropped=0, fronts=names)
    uncached, folded, *others = rows
    assert (uncached["forecast_steps"], uncached["kept_bytes"], uncached["forecast_over_full"]) == (0, None, None)
    plan = make_cache("taylorseer", preset="flux").plan(NUM_STEPS)
    assert folded["forecast_steps"] == len(plan.forecast_steps)
    assert folded["forecast_step"]["repeats"] == 2 * len(plan.forecast_steps)
    assert folded["operations"] < folded["full_operations"]

    subject = fronts.make_subject(SIZE, NUM_STEPS, torch.float32, CPU)
    fronts.FRONTS[FOLDED][1](subject)
    subject.run()
    told, stream = subject.pipe.cache_report().num_bytes, 64 * SIZE.config.hidden_size * 4
    assert told <= folded["kept_bytes"] <= told + 10 * stream, "what it says that it keeps, and the last call's tokens"

    assert [row["label"] for row in others] == OF_DIFFUSERS
    for row in others:
        assert 0 < row["forecast_steps"] < NUM_STEPS
        assert row["kept_bytes"] > 0
        cells = front_cells({"model": "x", **row, "compiling": "Error: no"})
        assert len(cells) == len(FRONTS_HEADER)
        assert cells[0].startswith(f"{row['label']}, diffusers 0.")
        assert cells[-2] == "fails"


def test_what_is_not_installed_is_named() -> None:
    row = {"label": "DBCache", "package": "cache-dit", "skipped": "cache-dit is not installed"}
    assert front_cells(row)[0] == "DBCache, cache-dit: cache-dit is not installed"
