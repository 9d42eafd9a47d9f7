"""eval/flops.py against the paper's figures, a block counted by hand, and the published counter."""

import json
import runpy
from pathlib import Path

import pytest
import torch

from cache_dic import METHODS, make_cache
from dit import DiT, dit_config
from evaluation.backbones import BACKBONES, add_workload_flags, cache_of, workload
from evaluation.paper import dit_counter, dit_difference, flux_counter, printed, published, published_flops
from flux import CONFIGS, flux_config
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
        case = BACKBONES["DiT-XL/2"].build(workload("DiT-XL/2"), torch.float32)
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
@pytest.mark.parametrize("name", ["debug", "fashion-mnist", "flux-debug"])
def test_every_method_is_counted(capsys, name, method):
    row = counted(capsys, "--model", name, "--method", method)
    assert row.keys() >= KEYS
    assert (row["flops_T"] < row["flops_T_uncached"]) == (method != "uncached")


FLUX_UNITS_T = 74.39, 0.02271  # a full and a forecast step, as the published counter prints them


@pytest.fixture(scope="module")
def flux_dev() -> dict:
    """FLUX.1-dev at 1024 x 1024 with the paper's settings, counted once."""
    args = COMMAND["parse_args"](["--model", "flux-dev", "--precision", "bf16"])
    return COMMAND["count"](args)


class TestFlux:
    def test_the_paper_s_row(self, flux_dev):
        assert flux_dev["label"] == "taylorseer-N6-W3-O2", "the paper's settings are the defaults"
        assert flux_dev["flops_T_uncached"] == pytest.approx(3719.50, rel=0.005)
        assert flux_dev["flops_T"] == pytest.approx(744.81, rel=0.005)
        settings = flux_dev["settings"]
        assert (settings["tokens"], settings["text_tokens"], settings["sites"]) == (4096, 512, 76)
        assert (settings["height"], settings["width"], settings["reduced_depth"]) == (1024, 1024, False)
        assert "cfg_scale" not in settings, "guidance is an input of the model, not a second branch"
        json.dumps(flux_dev)

    def test_the_published_counter_to_the_last_digit(self, flux_dev):
        theirs = flux_dev["published_convention"]
        assert (theirs["flops_T_full_step"], theirs["flops_T_forecast_step"]) == FLUX_UNITS_T
        assert (round(theirs["flops_T_uncached"], 2), round(theirs["flops_T"], 2)) == (3719.50, 744.81)

    @pytest.mark.parametrize(
        ("interval", "full_steps", "published_T"), [(4, 14, 1042.28), (5, 12, 893.54), (7, 9, 670.44)]
    )
    def test_other_intervals_follow_from_the_steps(self, flux_dev, interval, full_steps, published_T):  # noqa: N803
        full, forecast = FLUX_UNITS_T
        plan = make_cache("taylorseer", interval=interval, max_order=2, warmup_steps=3).plan(50)
        assert len(plan.full_steps) == full_steps
        assert round(full_steps * full + (50 - full_steps) * forecast, 2) == published_T
        ours = full_steps * flux_dev["flops_T_full_step"] + (50 - full_steps) * flux_dev["flops_T_forecast_step"]
        assert ours == pytest.approx(published_T, rel=0.005)

    def test_terms_lead_from_their_count_to_ours(self, flux_dev):
        theirs = flux_dev["published_convention"]
        terms = {term["term"]: term["flops_T"] for term in theirs["difference"]}
        assert theirs["flops_T"] + sum(terms.values()) == pytest.approx(flux_dev["flops_T"], rel=1e-12)
        # The products of a full step are the same in both: what is left out is 4 a LayerNorm element and 1 a GELU element.
        norms, gelus = 4 * 3072 * ((2 * 19 + 38) * 4608 + 4096), 57 * 4608 * 4 * 3072
        assert terms["LayerNorm and GELU left out"] == pytest.approx(-10 * (norms + gelus) / 1e12, rel=1e-9)
        assert terms["the forecaster's own sums"] == flux_dev["flops_T_engine"] > 0

    def test_parts_of_the_published_counter(self):
        """The parts named in the notes on the counter: 59.490, 14.872, 0.0227 and 0.0076 T."""
        counter = flux_counter(CONFIGS["flux-dev"], 1, 4096, 512)
        assert counter.projections / 1e12 == pytest.approx(59.490, abs=5e-4)
        assert counter.attention / 1e12 == pytest.approx(14.872, abs=5e-4)
        assert counter.conditioning / 1e12 == pytest.approx(0.0227, abs=5e-5)
        assert (counter.elements + counter.head_elements) / 1e12 == pytest.approx(0.0076, abs=5e-5)

    @pytest.mark.parametrize(("name", "samples"), [("flux-debug", 1), ("flux-debug", 3), ("flux-schnell", 1)])
    def test_full_steps_have_the_counter_s_products(self, name, samples):
        """With and without embedded guidance, for several rows: nothing but element-wise work differs."""
        config = flux_config(name, depth=1)
        with torch.device("meta"):
            case = BACKBONES[name].build(
                workload(name, num_samples=samples, depth=1, height=64, width=32), torch.float32
            )
        tokens = case.latents.shape[1], case.conditions["txt"].shape[1]
        full, _ = case.model.step_flops(case.latents, **case.conditions)
        assert full == flux_counter(config, samples, *tokens).products[0]

    def test_kept_features_at_1024(self, flux_dev):
        kept = {engine: size / 2**30 for engine, size in flux_dev["kept_bytes"].items()}
        assert kept["folded"] == pytest.approx(15 * 4096 * 3072 * 4 / 2**30) == pytest.approx(0.703, abs=5e-4)
        assert kept["layerwise"] == pytest.approx(3 * 76 * 4096 * 3072 * 2 / 2**30)
        assert kept["folded"] <= 0.8 < kept["layerwise"] / 5

    def test_sizes_and_trials(self, capsys):
        flags = ["--model", "flux-dev", "--depth", "1", "--num-steps", "8"]
        wide = counted(capsys, *flags, "--height", "512", "--width", "768", "--text-tokens", "64")
        assert (wide["settings"]["tokens"], wide["settings"]["text_tokens"]) == (32 * 48, 64)
        assert wide["settings"]["reduced_depth"]
        assert wide["settings"]["config"]["depth_single_blocks"] == 2
        square = counted(capsys, *flags, "--image-size", "512")
        assert square["settings"]["tokens"] == 32 * 32
        tiny = counted(capsys, "--model", "flux-tiny")
        assert (tiny["settings"]["tokens"], tiny["settings"]["text_tokens"], tiny["settings"]["num_steps"]) == (
            64,
            16,
            50,
        )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "flux-dev", "--height", "1000"], "height 1000 must be a positive multiple of 16"),
        (["--model", "flux-debug", "--image-size", "30"], "multiple of 4"),
        (["--model", "flux-debug", "--image-size", "32", "--width", "32"], "either that or --height and --width"),
        (["--model", "flux-debug", "--cfg-scale", "2"], "--cfg-scale 2.0 has no effect on flux-debug"),
        (["--model", "debug", "--text-tokens", "8"], "--text-tokens 8 has no effect on debug"),
        (["--model", "debug", "--height", "8", "--width", "16"], "makes squares"),
        (["--model", "debug", "--height", "8"], "makes squares"),
    ],
)
def test_sizes_and_flags_that_do_not_fit(flags, message):
    with pytest.raises(ValueError, match=message):
        COMMAND["main"](flags)


@pytest.mark.parametrize(
    ("flops", "shown"),
    [(74_392_220_000_000, 74_390_000_000_000), (22_713_400_000, 22_710_000_000), (1_999_999, 2_000_000), (999, 999)],
)
def test_a_count_as_calflops_prints_it(flops, shown):
    assert printed(flops) == shown


@pytest.mark.parametrize("name", ["dit", "flux"])
def test_published_rows_name_their_source(name):
    facts = published(name)
    assert published_flops(facts, "uncached")["flops_T"] > 0
    assert published_flops(facts, "taylorseer", 99) is None
    for row in facts["flops"]:
        assert row["source"]
        assert name == "dit" or row["confidence"] in ("read", "requoted")


def test_published_flux_counts_are_the_rule_s_or_marked():
    """Every TaylorSeer and FORA count is that of its full steps, unless a discrepancy is noted beside it."""
    full, forecast = FLUX_UNITS_T
    for row in published("flux")["flops"]:
        if row["method"] in ("taylorseer", "fora") and row["flops_T"] and "ChebBooster" not in row["source"]:
            full_steps = len(make_cache("fora", interval=row["interval"], warmup_steps=3).plan(50).full_steps)
            rule = full_steps * full + (50 - full_steps) * forecast
            assert (abs(row["flops_T"] - rule) < 0.02) != ("discrepancy" in row), row
