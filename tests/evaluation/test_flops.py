"""eval/flops.py against the paper's figures, a block counted by hand, and the published counter."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from cache_dic import METHODS, make_cache
from dit import DiT, dit_config
from evaluation.backbones import BACKBONES, Workload, add_workload_flags, cache_of
from evaluation.paper import dit_counter, dit_difference
from seerkit.cli import Parser
from seerkit.flops import count_flops, sampling_flops

ROOT = Path(__file__).parents[2]
COMMAND = runpy.run_path(str(ROOT / "eval" / "flops.py"))
KEYS = {"label", "flops_T", "flops_T_uncached", "flops_ratio", "full_steps", "kept_bytes", "settings", "conditions"}


def counted(capsys: pytest.CaptureFixture, *flags: str) -> dict:
    """What `python eval/flops.py FLAGS --json` prints."""
    COMMAND["main"]([*flags, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("interval", "max_order", "full_steps", "published_T"),
    [(3, 3, 18, 8.56), (4, 4, 14, 6.66), (5, 3, 11, 11 * 0.47471 + 39 * 0.00045)],
)
def test_the_paper_s_rows(capsys, interval, max_order, full_steps, published_T):  # noqa: N803
    flags = [
        "--method",
        "taylorseer",
        "--interval",
        str(interval),
        "--max-order",
        str(max_order),
        "--warmup-steps",
        "2",
    ]
    row = counted(capsys, "--model", "DiT-XL/2", "--image-size", "256", *flags)
    assert row.keys() >= KEYS
    assert len(row["full_steps"]) == full_steps
    assert row["flops_T"] == pytest.approx(published_T, rel=0.005)
    assert row["flops_T_uncached"] == pytest.approx(23.74, rel=0.005)
    assert row["published_convention"]["flops_T"] == pytest.approx(published_T, abs=0.005)


def test_defaults_are_the_authors_for_dit(capsys):
    row = counted(capsys)
    assert row["label"] == "taylorseer-N4-W2-O4"
    assert row["full_steps"] == [0, *range(1, 50, 4)]
    tensor = 2 * 256 * 1152 * 4  # bytes of one feature in float32
    assert row["kept_bytes"] == {"folded": 15 * tensor, "layerwise": 5 * 56 * tensor, "stack": 5 * tensor}


def test_guidance_doubles_the_rows_and_half_precision_halves_the_bytes(capsys):
    guided, plain = (
        counted(capsys, "--depth", "2"),
        counted(capsys, "--depth", "2", "--cfg-scale", "1", "--precision", "bf16"),
    )
    assert (guided["settings"]["rows"], plain["settings"]["rows"]) == (2, 1)
    assert plain["kept_bytes"]["layerwise"] * 4 == guided["kept_bytes"]["layerwise"]
    assert plain["flops_T_uncached"] * 2 == pytest.approx(
        guided["flops_T_uncached"], rel=1e-3
    )  # one timestep either way


def test_a_block_by_hand():
    """Products of a block on B rows of L tokens of width D: 24·B·L·D² + 4·B·L²·D, and 12·B·D² for its modulation."""
    rows, length, dim = 2, 256, 1152
    with torch.device("meta"):
        block = DiT(dit_config("DiT-S/2")).blocks[0]  # a smaller one, so that its own numbers enter
        wide = DiT(dit_config("DiT-XL/2")).blocks[0]
        x, c = torch.empty(rows, length, dim), torch.empty(rows, dim)
    projections = 2 * rows * length * dim * (3 * dim + dim + 4 * dim + 4 * dim)
    attention = 2 * rows * length * length * dim * 2
    modulation = 2 * rows * dim * 6 * dim
    assert count_flops(lambda: wide(x, wide.modulation(c))) == projections + attention + modulation
    assert count_flops(lambda: wide.modulation(c)) == modulation
    small = torch.empty(1, 256, 384, device="meta")
    assert count_flops(lambda: block(small, small[:, :6])) == 24 * 256 * 384**2 + 4 * 256**2 * 384


def test_the_published_counter_and_the_way_from_it_to_ours():
    """0.47471 T a step, 0.06 % to 0.07 % above ours on an uncached run: softmax and GELU against adaLN and the embedders."""
    config = dit_config("DiT-XL/2", image_size=256)
    counter = dit_counter(config, 2)
    full, forecast = counter.steps
    assert full / 1e12 == pytest.approx(0.47471, abs=1e-5)
    assert forecast / 1e12 == pytest.approx(0.00045, abs=5e-6)
    with torch.device("meta"):
        case = BACKBONES["DiT-XL/2"].build(Workload(image_size=256))
    cache = make_cache("taylorseer", interval=4, max_order=4, warmup_steps=2)
    counts = sampling_flops(case.model, cache, 50, case.latents, **case.conditions)

    # Ours on a full step: the same products, adaLN at 2, and what lies outside the blocks; no element-wise work.
    dim, tokens = 1152, 2 * 256
    patches, timestep = 2 * tokens * 16 * dim, 2 * (256 * dim + dim * dim)
    output = 2 * 2 * dim * 2 * dim + 2 * tokens * dim * 32
    ours = counter.projections + counter.attention + 2 * counter.adaln + patches + timestep + output
    assert counts["flops_T_full_step"] * 1e12 == pytest.approx(ours, abs=1)
    assert 1 - ours / full == pytest.approx(0.0005, abs=1e-4)
    assert 1 - counts["flops_T_uncached"] / 23.74 == pytest.approx(0.0007, abs=1e-4)

    terms = dit_difference(config, 2, counts, 50)
    theirs = (14 * full + 36 * forecast) / 1e12
    assert theirs + sum(term["flops_T"] for term in terms) == pytest.approx(counts["flops_T"], rel=1e-12)
    named = {term["term"]: term["flops_T"] for term in terms}
    assert named["patch and timestep embedding, output layer"] == pytest.approx(
        14 * (patches + timestep + output) / 1e12
    )


def test_rows_collect_in_a_file(tmp_path, capsys):
    out = tmp_path / "rows.json"
    for interval in ("3", "4", "3"):
        COMMAND["main"](["--model", "debug", "--interval", interval, "--out", str(out)])
    assert "full step" in capsys.readouterr().out
    assert [row["label"] for row in json.loads(out.read_text())["rows"]] == [
        "taylorseer-N4-W2-O4",
        "taylorseer-N3-W2-O3",
    ]
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(ValueError, match="holds no rows"):
        COMMAND["main"](["--model", "debug", "--out", str(tmp_path / "other.json")])


@pytest.mark.parametrize("flags", [["--interval", "3", "4"], ["--method", "fora", "taylorseer"], ["--compare"]])
def test_one_cache_at_a_time(flags):
    parser = Parser("", "x")
    add_workload_flags(parser, flags)
    with pytest.raises(ValueError, match="one --method"):
        cache_of(parser.parse_args(flags))


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("name", ["debug", "fashion-mnist"])
def test_every_method_is_counted(capsys, name, method):
    row = counted(capsys, "--model", name, "--method", method)
    assert row.keys() >= KEYS
    assert (row["flops_T"] < row["flops_T_uncached"]) == (method != "uncached")
