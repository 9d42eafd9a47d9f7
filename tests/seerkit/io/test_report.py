"""Rows, table and grid of a comparison."""

import numpy as np

from cache_dic import make_cache
from seerkit.io.report import Comparison, draw_grid, make_rows, seconds
from seerkit.io.tables import number
from seerkit.sampling.compare import Outcome

CACHES = {"uncached": make_cache("uncached"), "fora-N2-W1": make_cache("fora", interval=2, warmup_steps=1)}
COUNTS = {
    label: {
        "flops_T": 1.0, "flops_T_uncached": ratio, "flops_ratio": ratio, "full_steps": full, "kept_bytes": {"folded": 2**20}
    }
    for label, ratio, full in (("uncached", 1.0, [0, 1, 2]), ("fora-N2-W1", 2.0, [0, 2]))
}  # fmt: skip
SCORES = {"uncached": {"psnr": None}, "fora-N2-W1": {"psnr": {"mean_db": 30.0, "num_images": 2, "num_identical": 0}}}


def test_rows_say_what_was_computed_or_what_is_planned():
    record = {"method": "uncached", "engine": "folded", "num_steps": 3, "full_steps": [0, 1, 2], "kept_bytes": 0}
    outcomes = {"uncached": Outcome(record=record, seconds=[2.0]), "fora-N2-W1": Outcome()}
    computed, planned = make_rows(CACHES, 3, outcomes, COUNTS, SCORES)
    assert record.items() <= computed.items()
    assert computed["latency"]["median_s"] == 2.0
    assert planned["latency"] is None
    assert planned["full_steps"] == [0, 2]
    assert planned["kept_bytes"] == 2**20

    comparison = Comparison(
        title="tiny",
        facts="3 steps",
        rows=[computed, planned],
        extra={"score": ["1.5", "2.5"]},
        explanations=["score: x"],
    )
    title, header, _, first, second, latency, explanation = comparison.text().splitlines()
    assert (title, explanation) == ("tiny, 3 steps", "score: x")
    assert latency.startswith("latency s: seconds for one batch, the median (and the range) over batches")
    assert header.split()[-1] == "score"
    assert first.split() == ["uncached", "3/3", "1.000", "1.00x", "2.00", "(2.00-2.00)", "1.00x", "0.0", "–", "1.5"]
    assert second.split() == ["fora-N2-W1", "2/3", "1.000", "2.00x", "–", "–", "1.0", "30.00", "2.5"]


def test_what_an_earlier_run_measured_stands_where_nothing_was_sampled():
    outcomes = dict.fromkeys(CACHES, Outcome())
    earlier = {
        "label": "fora-N2-W1",
        "latency": {"median_s": 3.0},
        "steps": [1, 2],
        "psnr": None,
        "conditions": {"dtype": "x"},
    }
    planned, kept = make_rows(CACHES, 3, outcomes, COUNTS, SCORES, {"fora-N2-W1": earlier})
    assert planned["latency"] is None
    assert kept == earlier | SCORES["fora-N2-W1"], "judged anew"


def test_a_timing_with_the_first_call_in_it_says_so():
    timing = {"median_s": 2.0, "min_s": 2.0, "max_s": 2.0, "repeats": 1, "ratio": None}
    assert seconds(timing) == "2.00 (2.00-2.00)"
    assert seconds({**timing, "first_call": True}) == "2.00 (first call)"
    assert seconds(None) == "–"


def test_the_grid_has_a_row_for_every_cache_and_a_column_for_every_name():
    images = {label: np.zeros((5, 8, 8, 3), np.uint8) for label in CACHES}
    wide, narrow = draw_grid(images, list("abcde")), draw_grid(images, list("ab"))
    assert wide.height == narrow.height > 2 * 64
    assert wide.width - narrow.width == 3 * (64 + 2)


def test_numbers_that_round_to_zero_have_no_sign():
    assert (number(-0.008, 1), number(-0.08, 1), number(None), number(1.25, 1, "x")) == ("0.0", "-0.1", "–", "1.2x")
