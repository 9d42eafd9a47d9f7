"""eval/flops.py against the paper's figures, a block counted by hand, and the published counter."""

import json
import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cache_dic import UserError, make_cache
from dit import DiT, dit_config
from dit.counts import published_counter as dit_counter
from evaluation.backbones import BACKBONES, PACKAGES, workload
from evaluation.flags import add_workload_flags, cache_of, fill_num_steps
from evaluation.flops import count, text
from evaluation.operations import attention_flops
from evaluation.paper import published, published_flops, published_latency
from flux import CONFIGS, flux_config
from flux.counts import published_counter as flux_counter
from hidream import HiDream, hidream_config
from hidream.counts import HiDreamOperations, hidream_operations
from hunyuan_video import HunyuanVideo, hunyuan_video_config
from hunyuan_video.counts import published_counter as hunyuan_counter
from seerkit.command.cli import Parser
from seerkit.layers.attention import attention_backend
from seerkit.sampling.flops import count_flops, partial_steps, sampling_flops, step_flops
from seerkit.sampling.published import PartialCounts, printed
from seerkit.sampling.workload import Case
from wan import Wan, wan_config
from wan.counts import published_counter as wan_counter

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
    forms = {"folded": 15 * tensor, "layerwise": 5 * 56 * tensor, "stack": 5 * tensor, "hidden": 5 * tensor}
    assert row["kept_bytes"].items() >= forms.items()


def test_guidance_doubles_the_rows_and_half_precision_halves_the_bytes(capsys):
    guided, plain = (
        counted(capsys, "--depth", "2"),
        counted(capsys, "--depth", "2", "--guidance-scale", "1", "--precision", "bf16"),
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
    """0.47471 T per step, 0.06 % to 0.07 % above ours on an uncached run: softmax and GELU against adaLN and the embedders."""
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

    terms = counter.difference(counts, 50)
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


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "it is .. instead of an object"),
        ('{"rows": [{"label": "a", "settings": {}}]}', 'it lacks "command"'),
        ('{"command": "eval/op_counts.py", "rows": []}', "instead of .eval/flops.py."),
        ('{"command": "eval/flops.py", "rows": [{"label": "a"}]}', 'lacks "settings"'),
        ('{"command": "eval/flops.py", "rows": [3]}', "is 3 instead of an object"),
        ('{"command": "eval/flops.py", "rows": [{"label": "a", "settings": {"a": NaN}}]}', "JSON does not have"),
    ],
)
def test_a_file_that_is_not_of_the_command_stays(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        COMMAND["main"](["--model", "debug", "--out", str(path)])
    assert path.read_text() == content


@pytest.mark.parametrize(
    "flags",
    [
        "--batch-size 2000000000",
        "--model flux-dev --text-tokens 1000000000",
        "--model wan-t2v-1.3B --num-frames 1000000001",
        "--model flux-dev --width 100000 --height 100000",
        "--depth 1000000",
    ],
)
def test_absurd_numbers_are_refused_before_anything_is_built(flags):
    with pytest.raises(ValueError, match="is too much; at most"):
        COMMAND["main"](flags.split())


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_many_rows_and_tokens_are_counted_at_once(capsys):
    """On the meta device folding does not loop over chunks, of which there would be a million."""
    row = counted(capsys, "--model", "DiT-XL/2", "--batch-size", str(2**20))
    one = counted(capsys, "--model", "DiT-XL/2")
    assert row["flops_T"] == pytest.approx(2**20 * one["flops_T"], rel=1e-3)
    wide = counted(capsys, "--model", "flux-dev", "--depth", "1", "--width", "40000", "--height", "40000")
    assert wide["settings"]["tokens"] == 2500**2


def test_a_flag_without_effect_is_refused(capsys):
    with pytest.raises(SystemExit):
        COMMAND["main"](["--memory-limit-gib", "1"])
    assert "--memory-limit-gib has no effect" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--interval", "3", "4"], ["--method", "fora", "taylorseer"], ["--compare"]])
def test_one_cache_at_a_time(flags):
    parser = Parser("", "x")
    add_workload_flags(parser, flags)
    args = parser.parse_args(flags)
    fill_num_steps(args)
    with pytest.raises(ValueError, match="one --method"):
        cache_of(args)


@pytest.mark.parametrize(
    "method", ["fora", "newton", "taylorseer", "taylorseer_lite", "hicache", "ab_cache", "uncached"]
)
@pytest.mark.parametrize(
    "name", ["debug", "fashion-mnist", "flux-debug", "hunyuan-debug", "wan-debug", "hidream-debug"]
)
def test_every_method_on_a_schedule_is_counted(capsys, name, method):
    row = counted(capsys, "--model", name, "--method", method)
    assert row.keys() >= KEYS
    assert (row["flops_T"] < row["flops_T_uncached"]) == (method != "uncached")


def test_what_is_decided_while_sampling_is_told_with_its_bounds(capsys):
    with pytest.raises(ValueError, match="are decided while sampling, between 1 and 30 of 30"):
        counted(capsys, "--model", "flux-debug", "--method", "first_block_cache", "--num-steps", "30")


@pytest.mark.parametrize("name", BACKBONES)
def test_every_name_is_counted(capsys, name):
    row = counted(capsys, "--model", name, "--depth", "1")
    assert row["settings"]["model"] == name
    assert 0 < row["flops_T"] < row["flops_T_uncached"]
    theirs = row["published_convention"]
    assert (theirs is None) == name.startswith("hidream")
    if theirs is not None:
        led = theirs["flops_T"] + sum(term["flops_T"] for term in theirs["difference"])
        assert led == pytest.approx(row["flops_T"], rel=1e-12)


def test_attention_is_told_apart(capsys):
    """DiT-XL/2: 4·B·L²·D of every block, in full steps alone."""
    row = counted(capsys, "--model", "DiT-XL/2")
    attention = 28 * 4 * 2 * 256**2 * 1152 / 1e12
    assert row["flops_T"] - row["flops_T_without_attention"] == pytest.approx(14 * attention)
    assert row["flops_T_uncached"] - row["flops_T_uncached_without_attention"] == pytest.approx(50 * attention)


def test_attention_backends_have_the_same_products():
    q, k = torch.empty(2, 3, 5, 8, device="meta"), torch.empty(2, 3, 7, 8, device="meta")
    for backend in ("sdpa", "reference"):
        assert attention_flops(lambda b=backend: attention_backend(b)(q, k, k)) == 2 * 2 * 2 * 3 * 5 * 7 * 8
    layer = torch.nn.Linear(8, 4, device="meta")
    assert attention_flops(lambda: layer(q)) == 0 < count_flops(lambda: layer(q))
    part = torch.empty(2, 5, 8, device="meta")[:, :3]  # becomes a batched product with one weight for all of the batch
    assert attention_flops(lambda: layer(part)) == 0 < count_flops(lambda: layer(part))


def test_a_goal_for_what_is_kept(capsys):
    flags = ["--model", "wan-debug", "--kept-goal-gib"]
    met, missed = (counted(capsys, *flags, bound) for bound in ("1", "0.0000001"))
    assert met["kept_goal"] == {"bound_gib": 1.0, "value_gib": met["kept_bytes"]["folded"] / 2**30, "met": True}
    assert missed["kept_goal"]["met"] is False
    assert "kept_goal" not in counted(capsys, "--model", "wan-debug")
    COMMAND["main"]([*flags, "1"])
    assert "folded under 1 GiB: met" in capsys.readouterr().out


FLUX_UNITS_T = 74.39, 0.02271  # a full and a forecast step, as the published counter prints them


@pytest.fixture(scope="session")
def flux_dev() -> dict:
    """FLUX.1-dev at 1024 x 1024 with the paper's settings, counted once."""
    args = COMMAND["parse_args"](["--model", "flux-dev", "--precision", "bf16"])
    return count(args)


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
        assert terms["element-wise work left out: LayerNorm and activations"] == pytest.approx(
            -10 * (norms + gelus) / 1e12, rel=1e-9
        )
        assert terms["the forecaster's own sums"] == flux_dev["flops_T_engine"] > 0

    def test_parts_of_the_published_counter(self):
        """The parts named in the notes on the counter: 59.490, 14.872, 0.0227 and 0.0076 T."""
        counter = flux_counter(CONFIGS["flux-dev"], 1, 4096, 512)
        assert counter.projections / 1e12 == pytest.approx(59.490, abs=5e-4)
        assert counter.attention / 1e12 == pytest.approx(14.872, abs=5e-4)
        assert counter.conditioning / 1e12 == pytest.approx(0.0227, abs=5e-5)
        assert (counter.elements + counter.conditioning_elements) / 1e12 == pytest.approx(0.0076, abs=5e-5)

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


@pytest.fixture(scope="session")
def hunyuan_video() -> dict:
    """HunyuanVideo at 480 x 640, 65 frames, with the released settings, counted once."""
    return count(COMMAND["parse_args"](["--model", "hunyuan-video", "--precision", "bf16"]))


class TestHunyuanVideo:
    def test_the_paper_s_row(self, hunyuan_video):
        assert hunyuan_video["label"] == "taylorseer-N5-W1-O1", "the released settings are the defaults"
        assert len(hunyuan_video["full_steps"]) == 10
        assert hunyuan_video["flops_T_uncached"] == pytest.approx(29773, rel=0.005)
        assert hunyuan_video["flops_T"] == pytest.approx(5960, rel=0.005)
        settings = hunyuan_video["settings"]
        assert (settings["height"], settings["width"], settings["frames"]) == (480, 640, 65)
        assert (settings["rows"], settings["tokens"], settings["text_tokens"], settings["sites"]) == (1, 20400, 256, 80)
        assert "cfg_scale" not in settings, "guidance is an input of the model, not a second branch"

    def test_the_published_counter_to_the_last_digit(self, hunyuan_video):
        theirs = hunyuan_video["published_convention"]
        assert theirs["flops_T_full_step"] == 595.46
        assert theirs["flops_T_forecast_step"] == pytest.approx(0.145, abs=1e-3)
        assert (round(theirs["flops_T_uncached"], 1), round(theirs["flops_T"], 1)) == (29773.0, 5960.4)

    def test_parts_of_the_published_counter(self):
        """The parts named in the notes on the counter: 280.71, 314.58, 0.145 and 0.035 T."""
        counter = hunyuan_counter(hunyuan_video_config("hunyuan-video"), 1, 20400, 256)
        assert counter.projections / 1e12 == pytest.approx(280.71, abs=5e-3)
        assert counter.attention / 1e12 == pytest.approx(314.58, abs=5e-3)
        assert counter.conditioning / 1e12 == pytest.approx(0.145, abs=1e-3)
        assert (counter.elements + counter.conditioning_elements) / 1e12 == pytest.approx(0.035, abs=1e-3)

    @pytest.mark.parametrize(
        ("tokens", "published_T"), [(33 * 34 * 60, 45930), (9 * 30 * 40, 7520)], ids=["540p, 129 frames", "480p, 33"]
    )
    def test_counts_without_attention_of_other_sizes(self, tokens, published_T):  # noqa: N803
        counter = hunyuan_counter(hunyuan_video_config("hunyuan-video"), 1, tokens, 256)
        assert 50 * (counter.projections + counter.conditioning) / 1e12 == pytest.approx(published_T, rel=1e-3)

    def test_terms_lead_from_their_count_to_ours(self, hunyuan_video):
        theirs = hunyuan_video["published_convention"]
        terms = {term["term"]: term["flops_T"] for term in theirs["difference"]}
        assert theirs["flops_T"] + sum(terms.values()) == pytest.approx(hunyuan_video["flops_T"], rel=1e-12)
        refiner = 2 * 4 * 256**2 * 3072
        assert terms["the token refiner's attention, a fused call"] == pytest.approx(10 * refiner / 1e12)
        # What is left out: 4 a LayerNorm element, 5 with weights, 1 a GELU or SiLU element.
        norms, gelus = 4 * 3072 * ((2 * 20 + 40) * 20656 + 20400), 60 * 20656 * 4 * 3072
        refined = 2 * 256 * 3072 * (2 * 5 + 4)
        elements = terms["element-wise work left out: LayerNorm and activations"]
        assert elements == pytest.approx(-10 * (norms + gelus + refined) / 1e12, rel=1e-6)
        assert terms["the forecaster's own sums"] == hunyuan_video["flops_T_engine"] > 0

    @pytest.mark.parametrize("samples", [1, 3])
    @pytest.mark.parametrize("name", ["hunyuan-debug", "hunyuan-tiny", "hunyuan-video"])
    def test_full_steps_have_the_counter_s_products(self, name, samples):
        sizes = {"height": 32, "width": 64, "frames": 8 if name != "hunyuan-video" else 9}
        with torch.device("meta"):
            case = BACKBONES[name].build(workload(name, num_samples=samples, depth=1, **sizes), torch.float32)
        tokens = case.model.tokens(case.latents).length, case.conditions["text_states"].shape[1]
        counter = hunyuan_counter(case.model.config, samples, *tokens)
        full, _ = case.model.step_flops(case.latents, **case.conditions)
        assert full == counter.products[0] + counter.unseen

    def test_blocks_by_hand(self):
        """24·L·D² and 4·L²·D of a block on L tokens of both streams; 12·D² of modulation a double block, 3·D² a single one."""
        config, video, text = hunyuan_video_config("hunyuan-debug"), 6, 4
        dim, length = config.hidden_size, video + text
        with torch.device("meta"):
            model = HunyuanVideo(config)
            img, txt, c = torch.empty(1, video, dim), torch.empty(1, text, dim), torch.empty(1, dim)
            rope = model.rope((1, 2, 3), text)
        products = 24 * length * dim**2 + 4 * length**2 * dim
        double, single = model.double_blocks[0], model.single_blocks[0]
        assert count_flops(lambda: double(img, txt, rope, double.modulation(c))) == products + 24 * dim**2
        x, of_video = torch.cat([img, txt], dim=1), slice(0, video)
        assert count_flops(lambda: single(x, rope, single.modulation(c), of_video)) == products + 6 * dim**2

    @pytest.mark.parametrize(
        ("size", "bound"), [((480, 640, 65), 1.9), ((720, 1280, 129), 11)], ids=["480x640x65", "720x1280x129"]
    )
    def test_kept_features(self, capsys, size, bound):
        height, width, frames = size
        sizes = ["--height", str(height), "--width", str(width), "--num-frames", str(frames)]
        flags = ["--model", "hunyuan-video", "--depth", "1", "--precision", "bf16", "--kept-goal-gib", str(bound)]
        row = counted(capsys, *flags, *sizes)
        tokens = ((frames - 1) // 4 + 1) * (height // 16) * (width // 16)
        assert row["kept_bytes"]["folded"] == 8 * tokens * 3072 * 4 < bound * 2**30, (
            "2 orders x 4 forecasts, at any depth"
        )
        assert row["kept_bytes"]["layerwise"] == 2 * row["settings"]["sites"] * tokens * 3072 * 2
        assert row["kept_goal"]["met"]


@pytest.fixture(scope="session")
def wan_small() -> dict:
    """Wan2.1 1.3B at 832 x 480, 81 frames, with the released settings, counted once."""
    return count(COMMAND["parse_args"](["--model", "wan-t2v-1.3B", "--precision", "bf16"]))


class TestWan:
    def test_published_counts_without_attention_and_with(self, wan_small):
        assert wan_small["label"] == "taylorseer-N5-W1-O1"
        assert wan_small["flops_T_uncached_without_attention"] == pytest.approx(8210, rel=0.005)
        assert wan_small["flops_T_uncached"] == pytest.approx(28300, rel=0.005)
        settings = wan_small["settings"]
        assert (settings["height"], settings["width"], settings["frames"]) == (480, 832, 81)
        assert (settings["rows"], settings["tokens"], settings["sites"], settings["cfg_scale"]) == (2, 32760, 90, 5)

    def test_the_published_convention(self, wan_small):
        theirs = wan_small["published_convention"]
        assert theirs["flops_T_uncached"] == pytest.approx(8210, rel=5e-4)
        terms = {term["term"]: term["flops_T"] for term in theirs["difference"]}
        assert theirs["flops_T"] + sum(terms.values()) == pytest.approx(wan_small["flops_T"], rel=1e-12)
        attention = 30 * 4 * 2 * 32760 * (32760 + 512) * 1536
        assert terms["attention, self and cross"] == pytest.approx(10 * attention / 1e12)
        measured = wan_small["flops_T"] - wan_small["flops_T_without_attention"]
        assert terms["attention, self and cross"] == pytest.approx(measured), "counted and by formula"
        time = 2 * (256 * 1536 + 7 * 1536**2)
        assert terms["time embedded once, not in every row"] == pytest.approx(-10 * time / 1e12, rel=1e-4)

    @pytest.mark.parametrize("cfg_scale", [1, 5.0])
    @pytest.mark.parametrize("name", ["wan-debug", "wan-t2v-1.3B", "wan-i2v-14B-480P"])
    def test_full_steps_have_the_counter_s_products(self, name, cfg_scale):
        """Text and first frame to video, one branch and two: only the embedding of time is shared by the rows."""
        sizes = {"height": 32, "width": 64, "frames": 8 if name == "wan-debug" else 9}
        with torch.device("meta"):
            case = BACKBONES[name].build(
                workload(name, depth=1, num_samples=2, cfg_scale=cfg_scale, **sizes), torch.float32
            )
        assert case.rows == (2 if cfg_scale == 1 else 4)
        config, image = case.model.config, 257 if "i2v" in name else 0
        counter = wan_counter(config, case.rows, case.model.tokens(case.latents).length, image)
        time = 2 * (config.freq_dim * config.dim + 7 * config.dim**2)
        full, _ = case.model.step_flops(case.latents, **case.conditions)
        assert full == counter.steps[0] + counter.unseen - (case.rows - 1) * time

    def test_a_block_by_hand(self):
        """Self-attention 8·L·D² and 4·L²·D, cross-attention 4·L·D² + 4·T·D² and 4·L·T·D, MLP 4·L·D·F."""
        config, length = wan_config("wan-debug"), 6
        dim, text = config.dim, config.text_len
        with torch.device("meta"):
            model = Wan(config)
            x, context, shared = torch.empty(1, length, dim), torch.empty(1, text, dim), torch.empty(1, 6, dim)
            rope = model.rope((1, 2, 3), "meta")
        products = 8 * length * dim**2 + 4 * length**2 * dim
        products += 4 * (length + text) * dim**2 + 4 * length * text * dim + 4 * length * dim * config.ffn_dim
        block = model.blocks[0]
        assert count_flops(lambda: block(x, shared, context, rope)) == products
        attention = attention_flops(lambda: block(x, shared, context, rope))
        assert attention == 4 * length * (length + text) * dim

    @pytest.mark.parametrize(
        ("name", "size", "bound"),
        [("wan-t2v-1.3B", (480, 832), 2.5), ("wan-t2v-14B", (720, 1280), 24)],
        ids=["1.3B-480p", "14B-720p"],
    )
    def test_kept_features(self, capsys, name, size, bound):
        sizes = ["--height", str(size[0]), "--width", str(size[1]), "--num-frames", "81"]
        flags = ["--model", name, "--depth", "1", "--precision", "bf16", "--kept-goal-gib", str(bound)]
        row = counted(capsys, *flags, *sizes)
        numel = 2 * 21 * (size[0] // 16) * (size[1] // 16) * wan_config(name).dim
        assert row["kept_bytes"]["folded"] == 6 * numel * 4 < bound * 2**30, "3 terms of the gates x 2 full steps"
        assert row["kept_bytes"]["layerwise"] == 2 * 3 * numel * 2
        assert row["kept_goal"]["met"]


@pytest.fixture(scope="session")
def hidream_full() -> dict:
    """HiDream-I1 Full at 1024 x 1024 with the authors' settings, counted once."""
    return count(COMMAND["parse_args"](["--model", "hidream-full", "--precision", "bf16"]))


class TestHiDream:
    @staticmethod
    def formula(case: Case) -> HiDreamOperations:
        config, (height, width) = case.model.config, case.model.grid(case.latents)
        padding = config.max_tokens - height * width if height != width else 0
        text_tokens = case.conditions["t5"].shape[1]
        return hidream_operations(config, case.rows, height * width, text_tokens, padding)

    def test_full(self, hidream_full):
        assert hidream_full["label"] == "taylorseer-N4-W1-O2", "the authors' settings are the defaults"
        assert hidream_full["full_steps"] == list(range(0, 50, 4))
        settings = hidream_full["settings"]
        assert (settings["rows"], settings["tokens"], settings["text_tokens"], settings["sites"]) == (2, 4096, 128, 96)
        assert (settings["height"], settings["width"], settings["cfg_scale"]) == (1024, 1024, 5)
        assert hidream_full["flops_T_full_step"] == pytest.approx(152.07, abs=5e-3)
        assert hidream_full["flops_T_uncached"] == 50 * hidream_full["flops_T_full_step"]
        json.dumps(hidream_full)

    def test_nothing_is_published(self, hidream_full):
        assert hidream_full["published_convention"] is None
        assert "paper's counter" not in text(hidream_full)
        assert published_flops(published("hidream"), "uncached") is None

    def test_attention_by_hand(self, hidream_full):
        """Queries are 4096 image tokens and 2 x 128 of text; keys also 128 of Llama's in each of 48 blocks."""
        attention = 48 * 4 * 2 * (4096 + 256) * (4096 + 384) * 2560 / 1e12
        assert hidream_full["flops_T"] - hidream_full["flops_T_without_attention"] == pytest.approx(13 * attention)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "sizes"),
        [
            ("hidream-full", {}),
            ("hidream-dev", {}),
            ("hidream-full", {"depth": 2, "height": 768, "width": 1024}),
            ("hidream-tiny", {"cfg_scale": 1.0}),
            ("hidream-debug", {"height": 16, "width": 32, "num_samples": 3, "text_tokens": 5}),
        ],
    )
    def test_the_formula_to_the_last_operation(self, name, sizes):
        """Full and forecast steps, both branches and one, square and padded."""
        with torch.device("meta"):
            case = BACKBONES[name].build(workload(name, **sizes), torch.float32)
        assert case.rows == sizes.get("num_samples", 1) * (1 if name == "hidream-dev" or "cfg_scale" in sizes else 2)
        assert step_flops(case.model, case.latents, case.conditions) == self.formula(case).steps

    @pytest.mark.parametrize("cfg_scale", [1.0, 5.0])
    def test_what_the_official_code_adds(self, need, cfg_scale):
        """diffusers' model, which computes as the official one, counted on a CPU; it also embeds time in every row."""
        need("diffusers")
        backbone = BACKBONES["hidream-debug"]
        case = backbone.build(workload("hidream-debug", cfg_scale=cfg_scale), torch.float32)
        model, arguments = backbone.reference(case)
        with sdpa_kernel(SDPBackend.MATH):  # whose products are counted on CPUs, unlike those of fused attention
            theirs = count_flops(lambda: model(**arguments))
        formula, dim = self.formula(case), case.model.config.hidden_size
        assert theirs == formula.steps[0] + formula.dropped + (case.rows - 1) * 2 * (256 * dim + dim**2)

    def test_experts_are_counted_by_the_tokens_routed_to_them(self):
        """A token: the gate E·D, the shared expert 3·D·F and two of four others 3·D·F each, 2 per multiply-add."""
        config = hidream_config("hidream-debug")
        with torch.device("meta"):
            layer, x = HiDream(config).double_blocks[0].ff_i, torch.empty(2, 5, config.hidden_size)
        products = 4 + 3 * config.shared_width + 2 * 3 * config.expert_width
        assert count_flops(lambda: layer(x)) == 2 * 10 * config.hidden_size * products

    def test_kept_features_at_1024(self, hidream_full):
        """Folded: 3 orders x 3 forecasts in float32; layerwise: 3 orders of 96 sites in bf16. Both branches."""
        feature = 2 * 4096 * 2560
        assert hidream_full["kept_bytes"]["folded"] == 9 * feature * 4
        assert hidream_full["kept_bytes"]["layerwise"] == 3 * 96 * feature * 2 == 16 * 9 * feature * 4


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "flux-debug", "--num-frames", "17"], "--num-frames 17 has no effect on flux-debug"),
        (["--model", "hunyuan-video", "--num-frames", "66"], "number of frames 66 must be 1, 5, 9"),
        (["--model", "hunyuan-debug", "--guidance-scale", "2"], "--guidance-scale 2.0 has no effect on hunyuan-debug"),
        (["--model", "wan-t2v-1.3B", "--num-frames", "80"], "number of frames 80 must be 4k \\+ 1"),
        (["--model", "wan-debug", "--text-tokens", "8"], "--text-tokens 8 has no effect on wan-debug"),
        (["--model", "hidream-full", "--num-frames", "17"], "--num-frames 17 has no effect on hidream-full"),
        (["--model", "hidream-full", "--height", "1000"], "height 1000 must be a positive multiple of 16"),
        (["--model", "hidream-full", "--width", "1040"], "positions for 4096"),
        (["--model", "flux-dev", "--height", "1000"], "height 1000 must be a positive multiple of 16"),
        (["--model", "flux-debug", "--image-size", "30"], "multiple of 4"),
        (["--model", "flux-debug", "--image-size", "32", "--width", "32"], "either that or --height and --width"),
        (["--model", "flux-debug", "--guidance-scale", "2"], "--guidance-scale 2.0 has no effect on flux-debug"),
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


@pytest.mark.parametrize("name", ["dit", "flux", "hunyuan", "wan"])
def test_published_rows_name_their_source(name):
    facts = published(name)
    assert published_flops(facts, "uncached")["flops_T"] > 0
    assert published_flops(facts, "taylorseer", 99) is None
    for row in facts["flops"]:
        assert row["source"]
        assert name == "dit" or row["confidence"] in ("read", "requoted")


def test_published_latency_of_hidream():
    """Speed-ups are against the uncached row of the same source."""
    rows = published("hidream")["latency"]
    base = {row["source"]: row["latency_s"] for row in rows if row["method"] == "uncached"}
    for row in rows:
        assert row["confidence"] == "read"
        assert row["latency_speedup"] == pytest.approx(base[row["source"]] / row["latency_s"], abs=5e-3)
    assert published_latency(published("hidream"), "taylorseer")[0]["interval"] == 4


def test_published_flux_counts_are_the_rule_s_or_marked():
    """Every TaylorSeer and FORA count is that of its full steps, unless a discrepancy is noted beside it."""
    full, forecast = FLUX_UNITS_T
    for row in published("flux")["flops"]:
        if row["method"] in ("taylorseer", "fora") and row["flops_T"] and "ChebBooster" not in row["source"]:
            full_steps = len(make_cache("fora", interval=row["interval"], warmup_steps=3).plan(50).full_steps)
            rule = full_steps * full + (50 - full_steps) * forecast
            assert (abs(row["flops_T"] - rule) < 0.02) != ("discrepancy" in row), row


def test_published_hunyuan_video_counts_are_the_rule_s():
    for row in published("hunyuan")["flops"]:
        if row["method"] in ("taylorseer", "fora") and row["flops_T"]:
            full_steps = len(make_cache("fora", interval=row["interval"], warmup_steps=1).plan(50).full_steps)
            assert round(full_steps * 595.46 + (50 - full_steps) * 0.14576, 1) == row["flops_T"], row


class TestPartialSteps:
    """Methods that compute part of a step, by the counters behind the published totals and by ours."""

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "method", "interval", "published_T", "digits"),
        [
            ("flux-dev", "toca", 4, 1263.22, 2),
            ("flux-dev", "toca", 5, 1126.76, 2),
            ("flux-dev", "toca", 6, 990.30, 2),
            ("flux-dev", "delta_dit", 2, 2480.0, 2),
            ("hunyuan-video", "toca", 5, 7006.2, 1),
            ("hunyuan-video", "duca", 5, 6483.2, 1),
            ("DiT-XL/2", "toca", 3, 10.23, 2),
        ],
    )
    def test_published_totals_to_the_last_digit(self, name, method, interval, published_T, digits):  # noqa: N803
        assert round(published_total(name, method, interval), digits) == published_T

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("name", "interval", "published_T", "within"),
        [
            ("flux-dev", 5, 978.76, 1e-4), ("flux-dev", 7, 760.14, 1e-4), ("flux-dev", 9, 690.25, 1e-4),
            ("flux-dev", 10, 606.91, 2e-4), ("DiT-XL/2", 3, 23.74 / 2.48, 2e-3), ("DiT-XL/2", 5, 23.74 / 3.78, 7e-3),
        ],
    )  # fmt: skip
    def test_published_totals_of_duca(self, name, interval, published_T, within):  # noqa: N803
        """A conservative step of FLUX is 4.51 in all four, and as many of each kind as ours follow each other."""
        assert published_total(name, "duca", interval) == pytest.approx(published_T, rel=within)

    @pytest.mark.parametrize(
        ("name", "method"),
        [("debug", "toca"), ("debug", "duca"), ("flux-debug", "toca"), ("flux-debug", "duca"), ("hunyuan-debug", "toca"),
         ("flux-debug", "delta_dit")],
    )  # fmt: skip
    def test_terms_lead_from_their_count_to_ours(self, capsys, name, method):
        row = counted(capsys, "--model", name, "--method", method, "--num-steps", "12")
        theirs = row["published_convention"]
        led = theirs["flops_T"] + sum(term["flops_T"] for term in theirs["difference"])
        assert led == pytest.approx(row["flops_T"], rel=1e-12)
        named = {term["term"]: term["flops_T"] for term in theirs["difference"]}
        observed = next((flops for term, flops in named.items() if "products of queries and keys" in term), 0)
        assert observed == row["flops_T_observed"]
        assert (observed > 0) == (method != "delta_dit")

    def test_what_sees_attention_by_hand(self, capsys):
        """Another product of queries and keys in each block of a full step."""
        row = counted(capsys, "--model", "flux-debug", "--method", "toca", "--num-steps", "12")
        settings = row["settings"]
        config, length = settings["config"], settings["tokens"] + settings["text_tokens"]
        blocks = config["depth"] + config["depth_single_blocks"]
        expected = len(row["full_steps"]) * blocks * 2 * settings["rows"] * length**2 * config["hidden_size"]
        assert row["flops_T_observed"] * 1e12 == pytest.approx(expected, rel=1e-9)

    def test_other_methods_that_compute_part_of_a_step_are_counted_without(self, capsys):
        row = counted(capsys, "--model", "flux-debug", "--method", "pab", "--num-steps", "12")
        assert row["published_convention"] is None
        assert row["flops_T_without_attention"] is None
        with pytest.raises(UserError, match="--kept-goal-gib is of the folded engine, which pab"):
            counted(capsys, "--model", "flux-debug", "--method", "pab", "--kept-goal-gib", "1")


def published_total(name: str, method: str, interval: int) -> float:
    """10^12 operations of 50 steps by the published counter."""
    backbone = BACKBONES[name]
    with torch.device("meta"):
        case = backbone.build(workload(name), torch.bfloat16)
    cache = make_cache(method, preset=PACKAGES[name], model=name, interval=interval)
    run, *_ = partial_steps(case.model, cache, 50, case.latents, case.conditions, backbone.timesteps(case, 50))
    full = tuple(entry["kind"] == "full" for entry in run.steps)
    counter = backbone.counter(case)
    return PartialCounts(tuple(run.runs[0].work_by_step), full, 0.0, 0.0).total(counter, method) / 1e12
