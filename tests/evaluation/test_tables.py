"""eval/tables.py: tables are made of the records, and a README that differs from them is noticed."""

import copy
import json
import random
import runpy
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from cache_dic import UserError
from cache_dic.methods.toca import RECIPES
from hidream import CONFIGS as HIDREAM_CONFIGS

ROOT = Path(__file__).parents[2]
TABLES = runpy.run_path(str(ROOT / "eval" / "tables.py"))
FLOPS = runpy.run_path(str(ROOT / "eval" / "flops.py"))

CONDITIONS = {
    "device": "A Processor",
    "threads": 2,
    "dtype": "float32",
    "versions": {"torch": "2.13.0"},
    "date": "2026-01-02T03:04:05+00:00",
}
README = "# Title\n\n<!-- table:dit-flops -->\n<!-- /table -->\n\ntext\n\n<!-- table:dit-samples -->\nbefore\n<!-- /table -->\n"


def of(mean: float, half: float) -> dict:
    return {"mean": mean, "low": mean - half, "high": mean + half}


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """A folder of small records: two counts by eval/flops.py itself, samples and a benchmark in the form of their commands."""
    root = tmp_path_factory.mktemp("results")
    out = root / "dit" / "flops.json"
    for flags in (["--interval", "3"], ["--method", "fora", "--interval", "4"]):
        FLOPS["main"](["--model", "DiT-XL/2", *flags, "--out", str(out)])
    row = {
        "label": "uncached", "full_steps": list(range(10)), "num_steps": 10, "flops_ratio": 1.0, "kept_bytes": 0,
        "latency": {"median_s": 2.0, "ratio": 1.0}, "psnr": None, "class_accuracy": of(0.912, 0.02),
    }  # fmt: skip
    cached = {
        **row, "label": "taylorseer-N3-W2-O3", "full_steps": [0, 1, 4, 7], "flops_ratio": 2.5, "kept_bytes": 3 * 2**20,
        "latency": {"median_s": 0.9, "ratio": 2.222}, "psnr": {"mean_db": 31.257},
        "class_accuracy": of(0.9, 0.03), "class_accuracy_change": of(-0.012, 0.01),
    }  # fmt: skip
    samples = {
        "settings": {"model": "fashion-mnist", "batch_size": 10, "seed": 0, "solver": "ddim", "guidance_scale": 2.0},
        "num_samples": 50, "real_test_accuracy": 0.941, "rows": [row, cached], "conditions": CONDITIONS,
    }  # fmt: skip
    (root / "dit" / "fashion-mnist.json").write_text(json.dumps(samples))

    out = root / "flux" / "flops.json"
    for flags in (["--method", "uncached"], ["--interval", "4"], ["--method", "fora", "--interval", "3"]):
        FLOPS["main"](["--model", "flux-debug", *flags, "--out", str(out)])
    row, cached = ({k: v for k, v in r.items() if not k.startswith("class_accuracy")} for r in (row, cached))
    row |= {"score": of(31.26, 1)}
    cached |= {"score": of(31.26, 1), "score_change": of(-0.126, 0.5)}
    samples = {
        "settings": {"model": "flux-tiny", "batch_size": 8, "seed": 0, "guidance": 3.0},
        "num_samples": 16, "scorer": {"ceiling": 45.26, "ceiling_new_labels": 30.5, "floor": 3.11},
        "rows": [row, {**cached, "latency": None}], "conditions": CONDITIONS,
    }  # fmt: skip
    (root / "flux" / "flux-tiny.json").write_text(json.dumps(samples))
    counts = {
        "settings": {"depth": 19, "depth_single_blocks": 38, "sites": 76, "max_order": 2},
        "units": "operations: of a kind",
        "rows": [
            {"label": "ours", "package": None, "operations": 8},
            {"label": "theirs", "package": "other 1.2", "operations": 1760},
            {"label": "third", "package": "third (not installed)", "operations": None},
        ],
        "conditions": CONDITIONS,
    }
    (root / "flux" / "op-counts.json").write_text(json.dumps(counts))

    videos = {"hunyuan": ["--model", "hunyuan-video"], "wan": ["--model", "wan-t2v-1.3B"]}
    runs = (["--method", "uncached"], ["--interval", "3"], ["--interval", "5", "--kept-goal-gib", "1.9"])
    for name, flags in videos.items():
        for run_flags in runs:
            out = ["--out", str(root / name / "flops.json")]
            FLOPS["main"]([*flags, "--precision", "bf16", "--depth", "1", *run_flags, *out])
    flags = ["--model", "wan-debug", "--kept-goal-gib", "0.0001", "--out", str(root / "wan" / "flops-14b-720p.json")]
    FLOPS["main"](flags)
    row, cached = ({k: v for k, v in r.items() if not k.startswith("score")} for r in (row, cached))
    samples = {
        "settings": {"model": "hunyuan-tiny", "batch_size": 4, "seed": 0, "guidance": 3.0}, "num_samples": 8,
        "rows": [
            {**row, "flicker": of(4.561, 0.2)},
            {**cached, "flicker": of(4.7, 0.2), "flicker_change": of(0.139, 0.05)},
            {**cached, "flicker": None},
        ],
        "conditions": CONDITIONS,
    }  # fmt: skip
    (root / "hunyuan" / "hunyuan-tiny.json").write_text(json.dumps(samples))
    samples["settings"] |= {"model": "wan-tiny", "solver": "unipc"}
    (root / "wan" / "wan-tiny.json").write_text(json.dumps(samples))

    for flags in (["full", "--method", "uncached"], ["full"], ["dev", "--method", "fora"]):
        out = ["--precision", "bf16", "--depth", "1", "--out", str(root / "hidream" / "flops.json")]
        FLOPS["main"](["--model", f"hidream-{flags[0]}", *flags[1:], *out])
    training = {
        "config": asdict(HIDREAM_CONFIGS["hidream-debug"]), "num_parameters": 12_345_678, "images_seen": 20480,
        "training_images": 4096, "final_loss": {"flow": 0.12345}, "seconds": 5400,
        "expert_shares": [[0.2549, 0.24, 0.26, 0.2451], [0.2, 0.25, 0.25, 0.3]],
        "training": {
            "steps": 160, "batch_size": 128, "lr": 1e-3, "lr_schedule": "cosine", "lr_warmup_steps": 20, "ema_decay": 0.999,
            "precision": "bf16", "seed": 0,
        },
        "conditions": {**CONDITIONS, "python": "3.11.7"},
    }  # fmt: skip
    (root / "hidream" / "hidream-tiny-training.json").write_text(json.dumps(training))
    return root


def benchmark(whole_run: bool) -> dict:
    """A record in the form of eval/benchmark.py."""

    def timing(median_s: float) -> dict:
        return {"median_s": median_s, "min_s": median_s, "max_s": median_s, "repeats": 5}

    def goal(name: str, wanted: str, value: float, met: bool) -> dict:
        return {"name": name, "goal": wanted, "value": value, "met": met}

    label = "taylorseer-N4-W2-O4"
    return {
        "label": label,
        "full_step": {"plain": timing(2.0), "folded": timing(2.05)},
        "forecast_step": {"folded": timing(0.005)},
        "speedup": {"measured": 3.5 if whole_run else None, "composed": 3.6, "flops": 3.55},
        "whole_run": {"uncached": timing(100.0), label: timing(28.57)} if whole_run else None,
        "goals": {
            "latency_over_flops": goal("speed", ">= 0.95", 0.986, True),
            "forecast_over_full": goal("forecast", "<= 0.02", 0.0025, True),
            "folding_overhead": goal("folding", "<= 0.05", 0.071, False),
            "kept_ratio_order_2": goal("kept", ">= 8", 18.67, True),
        },
        "flops": {"kept_bytes": {"folded": 15 * 2**20, "layerwise": 280 * 2**20}},
        "settings": {
            "model": "DiT-XL/2", "reduced_depth": False, "rows": 2, "tokens": 256, "num_steps": 50, "attention": "sdpa",
            "compile": False, "precision": "fp32", "config": {"depth": 28},
        },
        "conditions": CONDITIONS,
    }  # fmt: skip


def readme(folder: Path, text: str = README) -> Path:
    path = folder / "README.md"
    path.write_text(text)
    return path


def run(path: Path, results: Path, *flags: str) -> None:
    TABLES["main"](["--readme", str(path), "--results", str(results), *flags])


def test_tables_are_written_between_their_markers(tmp_path, results):
    path = readme(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        run(path, results, "--check")
    assert path.read_text() == README
    run(path, results)
    run(path, results, "--check")
    text = path.read_text()
    assert text.startswith("# Title\n\n<!-- table:dit-flops -->\n| run |")
    assert text.endswith("*\n<!-- /table -->\n")
    assert "\ntext\n" in text
    assert "before" not in text
    run(path, results)
    assert path.read_text() == text


def test_a_changed_figure_is_stale(tmp_path, results, capsys):
    path = readme(tmp_path)
    run(path, results)
    path.write_text(path.read_text().replace("31.26", "41.26"))
    with pytest.raises(SystemExit, match="1"):
        run(path, results, "--check")
    assert "dit-samples differ" in capsys.readouterr().err


def test_flops_beside_the_published_row(results):
    table = TABLES["dit_flops"](results)
    assert "| uncached | 50/50 | 23.74 | 23.74 | 23.72 | -0.07 % | 1.00x | arXiv 2602.19506 (RFC) |" in table
    assert "| taylorseer-N3-W2-O3 | 18/50 | 8.56 | 8.56 | 8.56 | +0.01 % | 2.77x | arXiv 2503.06923" in table
    assert "| fora-N4-W2 | 14/50 | not published |" in table
    assert "- the forecaster's own sums: +" in table


@pytest.fixture
def every_backbone(results, tmp_path) -> Path:
    """The small records, with samples for every backbone; latencies of the later ones are those of DiT's."""
    root = tmp_path / "every"
    shutil.copytree(results, root)
    record = json.loads((root / "dit" / "fashion-mnist.json").read_text())
    rows = record["rows"]
    rows.append({**rows[1], "label": "taylorseer-N5-W2-O3", "latency": {"ratio": 9.9}, "psnr": {"mean_db": 29.99}})
    rows.append({**rows[1], "label": "fora-N3-W2", "psnr": {"mean_db": 25.5}})
    rows.append({**rows[1], "label": "fora-N5-W2", "full_steps": [0, 1, 6], "psnr": {"mean_db": 40.0}})
    (root / "dit" / "fashion-mnist.json").write_text(json.dumps(record))
    record["settings"]["model"] = "hidream-tiny"
    record["conditions"] = {**CONDITIONS, "device": "Another"}
    (root / "hidream" / "hidream-tiny.json").write_text(json.dumps(record))
    return root


def test_the_overview_shows_the_fastest_run_that_is_good_enough(every_backbone):
    table = TABLES["overview"](every_backbone)
    lines = {line.split("](")[0].removeprefix("| ["): line for line in table.splitlines() if line.startswith("| [")}
    assert list(lines) == ["FLUX.1", "HiDream-I1", "HunyuanVideo", "Wan2.1", "DiT"]
    assert lines["DiT"] == (
        "| [DiT](TaylorSeer-DiT/README.md) | fashion-mnist, 50 samples | taylorseer-N3-W2-O3 | 4/10 | 2.50x | 2.22x | 31.26 "
        "| 25.50 | 2.77x (DiT-XL/2) |"
    )
    assert lines["HiDream-I1"].endswith("| taylorseer-N3-W2-O3 | 4/10 | 2.50x | 2.22x | 31.26 | 25.50 | – |"), (
        "not counted"
    )
    assert lines["FLUX.1"].endswith("| flux-tiny, 16 samples | – | – | – | – | – | – | – |"), "no latency"
    header, rule = table.splitlines()[:2]
    assert "| fastest run of at least 30 dB |" in header
    assert rule.startswith("| --- | --- | --- | ---: |"), "texts to the left"
    assert "A Processor, 2 threads, float32, torch 2.13.0, 2026-01-02; Another, 2 threads," in table


def test_no_run_is_good_enough(every_backbone):
    path = every_backbone / "dit" / "fashion-mnist.json"
    record = json.loads(path.read_text())
    record["rows"] = [row for row in record["rows"] if not row["label"].startswith("taylorseer-N3")]
    path.write_text(json.dumps(record))
    assert "| fashion-mnist, 50 samples | – |" in TABLES["overview"](every_backbone)


def test_samples_name_their_conditions(results):
    table = TABLES["dit_samples"](results)
    assert "| uncached | 10/10 | 1.00x | 1.00x | 0.0 | – | 91.2 ± 2.0 | – |" in table
    assert "| taylorseer-N3-W2-O3 | 4/10 | 2.50x | 2.22x | 3.0 | 31.26 | 90.0 ± 3.0 | -1.2 ± 1.0 |" in table
    assert "50 samples" in table
    assert "94.1 % on real test images" in table
    assert "A Processor, 2 threads, float32, torch 2.13.0, 2026-01-02" in table


def test_benchmarks_stand_side_by_side(tmp_path):
    (tmp_path / "dit").mkdir()
    for name, whole_run in (("cpu", True), ("other", False)):
        (tmp_path / "dit" / f"benchmark-{name}.json").write_text(json.dumps(benchmark(whole_run)))
    table = TABLES["dit_benchmark"](tmp_path)
    assert "|  | A Processor, fp32 | A Processor, fp32 |" in table
    assert "| whole run, uncached → cached | 100.00 s → 28.57 s (runs of each: 5) | not run |" in table
    assert "| forecast step, folded (of a full step) | 5.00 ms (0.25 %) |" in table
    assert "| folding (goal <= 5 %) | 7.10 %, not met |" in table
    assert "| kept (goal >= 8x) | 18.7x, met |" in table
    assert "random weights" in table
    assert "ChebBooster" in table


def test_flux_counts_show_what_is_kept_and_what_is_doubtful(results):
    table = TABLES["flux_flops"](results)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert "| folded keeps GiB | layerwise keeps GiB | published in |" in rows[0]
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| uncached", "| taylorseer-N4-W3-O2", "| fora-N3-W3"]
    assert " | 50/50 | 3719.50 | " in rows[2]
    assert " | 1.00x | 0.000 | 0.000 | GitHub Shenyi-Z/ToCa, README |" in rows[2]
    assert " | 14/50 | 1042.27 | " in rows[3]
    assert "- fora-N3-W3, 1320.07 in GitHub Shenyi-Z/ToCa, README: not explained" in table
    assert "32×32 with 16 text tokens, 50 steps" in table


def test_flux_benchmark_shows_its_own_goals(tmp_path):
    record = benchmark(whole_run=False)
    goal = {"name": "a step", "goal": "<= 40", "value": 7, "met": True}
    unmeasured = {"name": "memory", "goal": "<= 0.03", "value": None, "met": None}
    record["goals"] = {"forecast_operations": goal, "peak_memory": unmeasured}
    record["diffusers"] = {"ours_over_theirs": {"median": 0.987}}
    record["peak_bytes"] = {"uncached": 24 * 2**30, "folded": 24.6 * 2**30}
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "benchmark-cpu.json").write_text(json.dumps(record))
    table = TABLES["flux_benchmark"](tmp_path)
    assert "| a step (goal <= 40) | 7, met |" in table
    assert "| memory (goal <= 3 %) | not measured |" in table
    assert "| full step, ours to diffusers' | 0.987x |" in table
    assert "| peak memory, uncached → folded | 24.00 GiB → 24.60 GiB |" in table
    assert "kernels" not in table
    assert "N=6 3.53x at 4.99x fewer FLOPs (GitHub Shenyi-Z/TaylorSeer, README)" in table


def test_flux_samples_are_scored(results):
    table = TABLES["flux_samples"](results)
    assert "| PSNR dB | score | change of score |" in table
    assert "| uncached | 10/10 | 1.00x | 1.00x | 0.0 | – | 31.3 ± 1.0 | – |" in table
    assert "| taylorseer-N3-W2-O3 | 4/10 | 2.50x | – | 3.0 | 31.26 | 31.3 ± 1.0 | -0.13 ± 0.50 |" in table
    assert "score: not validated on flux-tiny" in table
    assert "seed 0, guidance 3;" in table
    assert (
        "45.3 on real images with their captions, 30.5 where the label was never trained on, 3.1 with shuffled" in table
    )


def test_a_measure_that_failed_is_left_out_and_named(results, tmp_path):
    shutil.copytree(results / "flux", tmp_path / "flux")
    (tmp_path / "metrics").mkdir()
    shutil.copy(ROOT / "results" / "metrics" / "flux-tiny.json", tmp_path / "metrics")
    table = TABLES["flux_samples"](tmp_path)
    assert "| PSNR dB |\n" in table
    assert "31.3 ± 1.0" not in table
    assert "left out, score: failed on flux-tiny: floor, agreement, order;" in table
    assert "real images" not in table


def test_operations_stand_beside_the_fewest(results):
    table = TABLES["flux_op_counts"](results)
    assert "| ours | 8 | 1.0x |" in table
    assert "| theirs, other 1.2 | 1760 | 220.0x |" in table
    assert "| third, third (not installed) | – | – |" in table
    assert "19 double and 38 single blocks, 76 sites, order 2, float32" in table


def test_every_recipe_of_tokens_says_who_comes_with_it_and_what_it_fixes(tmp_path):
    rows = TABLES["TABLES"]["toca-recipes"](tmp_path).splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == list(RECIPES)
    assert "| `dit_50` | `toca`: `dit` | counted down | 2.5 | 1 | 0 | -1 to 3 | 0.8 to 1.2 | 0.6 in 2 × 2 |" in rows
    assert rows[5].startswith(
        "| `joint` | `toca`: `hidream`, others; `duca`: `hidream`, others | the first 3, then every `interval` | 1.6 | 0.4 |"
    )
    assert "| the first, then every `interval` |" in rows[6]


def test_partial_steps_stand_beside_their_flops(tmp_path):
    def middle(value: float) -> dict:
        return {"median": value, "min": value / 2, "max": value * 2}

    step = {"time": middle(0.3), "processor_time": middle(0.25), "observing": middle(0.0), "flops": middle(0.2)}
    whole_run = {"steps": 36, "flops": middle(0.45)}
    record = {
        "settings": {"model": "flux-dev", "depth": 1, "tokens": 256, "rows": 1, "repeats": 3},
        "full_step_s": 5.0, "machine": {"processors": 2, "load_before": 3.25},
        "rows": [
            {"label": "toca-N4", "num_steps": 50, "kinds": {"partial": whole_run}, "steps": {"partial": step}},
            {"label": "duca-N5", "error": "of no use"},
        ],
        "conditions": CONDITIONS,
    }  # fmt: skip
    for name, load in (("flux", 3.25), ("dit", 0.25)):
        (tmp_path / name).mkdir()
        record["machine"]["load_before"] = load
        (tmp_path / name / "partial-steps.json").write_text(json.dumps(record))
    busy, idle, note = TABLES["TABLES"]["partial-steps"](tmp_path).split("2026-01-02*")
    assert "| toca-N4 | partial | 36/50 | 45.0 | 20.0 | 30.0 | 15.0 – 60.0 | 25.0 | 1.25 | – |" in busy
    assert busy.startswith("**flux-dev**\n\n| method |")
    assert "1 row of 256 tokens" in busy
    assert "duca-N5: of no use" in busy
    assert "a load of 3.2 on 2 processors before it began" in busy
    assert "a load of" not in idle
    assert "they are no typical ones" in note


def test_video_counts_beside_the_published_rows(results):
    table = TABLES["hunyuan_flops"](results)
    assert "| uncached | 50/50 | 29773.00 | " in table
    assert "| taylorseer-N5-W1-O1 | 10/50 | 5960.40 | " in table
    assert "| taylorseer-N3-W1-O1 | 17/50 | not published | " in table
    assert "of taylorseer-N5-W1-O1, in TFLOPs of the run" in table
    assert "640×480, 65 frames, 20400 tokens and 256 of text" in table


def test_wan_is_compared_without_attention(results):
    table = TABLES["wan_flops"](results)
    header = next(line for line in table.splitlines() if line.startswith("| run"))
    names = [name.strip() for name in header.split("|")]
    row = json.loads((results / "wan" / "flops.json").read_text())["rows"][-1]
    cells = next(line for line in table.splitlines() if line.startswith("| uncached | 50/50 | 8210.00")).split("|")
    shown = dict(zip(names, (cell.strip() for cell in cells), strict=True))
    without = row["flops_T_uncached_without_attention"]
    assert shown["our count"] == f"{row['flops_T_uncached']:.2f}"
    assert shown["ours without attention"] == f"{without:.2f}"
    assert shown["ours to published, both without"] == f"{100 * (without / 8210 - 1):+.2f} %"
    assert "of taylorseer-N5-W1-O1, in TFLOPs of the run" in table, "the run with a goal"
    assert "wan-debug at 24×24, 8 frames" in table
    assert table.count("published figures") == 1, "none for the larger model"


def test_kept_features_of_videos_stand_beside_their_goals(results):
    lines = [line for line in TABLES["video_memory"](results).splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| hunyuan-video, 640×480, 65 frames",
        "| wan-t2v-1.3B, 832×480, 81 frames",
        "| wan-debug, 24×24, 8 frames",
    ]
    assert " | 1 × 20400 | 4 | 1.87 | < 1.9, met | 0.93 | 0.5x |" in lines[2]
    assert " | 2 × 32760 | 3 | 2.25 | < 1.9, not met | " in lines[3]
    assert " | < 0.0001, not met | " in lines[4]


def test_hidream_counts_have_no_published_row(results):
    table = TABLES["hidream_flops"](results)
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[:3] for row in rows[2:]] == [
        ["| hidream-full", "uncached", "50/50"],
        ["| hidream-full", "taylorseer-N4-W1-O2", "13/50"],
        ["| hidream-dev", "fora-N4-W1", "7/28"],
    ]
    assert rows[2].endswith(" | 1.00x | 0.000 | 0.000 | – |")
    feature = 2 * 4096 * 2560
    assert rows[3].endswith(f" | {9 * feature * 4 / 2**30:.3f} | {3 * 6 * feature * 2 / 2**30:.3f} | 1.0x |")
    assert "published" not in rows[0]
    assert "experts by the tokens routed to them (2 of 4)" in table
    assert "1024×1024 with 128 text tokens of T5 and as many of Llama" in table


def test_what_the_official_code_adds_is_computed(results):
    """A double and two single blocks: of 2 x 128 tokens queries, output, attention, a feed-forward layer, or experts."""
    row = json.loads((results / "hidream" / "flops.json").read_text())["rows"][0]
    expert, shared, keys, dim = 6912, 3584, 4096 + 3 * 128, 2560
    experts = dim * (3 * shared + 4 + 2 * 3 * expert)
    added = 2 * 128 * (3 * (2 * 2 * dim**2 + 4 * keys * dim) + 2 * (3 * dim * expert + 2 * experts)) / 1e12
    full = row["flops_T_full_step"]
    said = f"takes {added:.2f} ({100 * added / full:.1f} %) more in a full step: it also computes queries"
    assert said in TABLES["hidream_flops"](results)


def test_hidream_training_names_the_experts(results):
    table = TABLES["hidream_training"](results)
    shape = "1 double and 2 single blocks of 32, 2 heads, 2 of 4 experts and a shared one; 12.35 M parameters"
    assert f"| model | {shape} |" in table
    assert "| steps × samples | 160 × 128 (5.0 epochs) |" in table
    assert "| final loss of the velocity | 0.1235 |" in table
    assert "| an expert's share of the choices, in any block | 20.0 % to 30.0 % |" in table


def test_hidream_samples_are_scored(results, tmp_path):
    record = json.loads((results / "flux" / "flux-tiny.json").read_text())
    record["settings"] |= {"model": "hidream-tiny", "solver": "unipc"}
    (tmp_path / "hidream").mkdir()
    (tmp_path / "hidream" / "hidream-tiny.json").write_text(json.dumps(record))
    table = TABLES["hidream_samples"](tmp_path)
    assert "| uncached | 10/10 | 1.00x | 1.00x | 0.0 | – | 31.3 ± 1.0 | – |" in table
    assert "hidream-tiny, trained weights, 16 samples in batches of 8, seed 0, unipc, guidance 3;" in table


def test_video_samples_flicker(results):
    table = TABLES["hunyuan_samples"](results)
    assert "| PSNR dB | flicker | change of flicker |" in table
    assert "| uncached | 10/10 | 1.00x | 1.00x | 0.0 | – | 4.6 ± 0.2 | – |" in table
    assert "| taylorseer-N3-W2-O3 | 4/10 | 2.50x | 2.22x | 3.0 | 31.26 | 4.7 ± 0.2 | +0.14 ± 0.05 |" in table
    assert table.count(" | – | – |\n") == 1
    assert "hunyuan-tiny, trained weights, 8 samples in batches of 4, seed 0, guidance 3;" in table
    assert "wan-tiny, trained weights, 8 samples in batches of 4, seed 0, unipc, guidance 3;" in TABLES["wan_samples"](
        results
    )


@pytest.mark.parametrize(
    ("name", "config", "blocks", "published"),
    [
        (
            "hunyuan", {"mm_double_blocks_depth": 1, "mm_single_blocks_depth": 2}, "1 double and 2 single blocks",
            "N=5 4.65x at 5.00x fewer FLOPs (GitHub Shenyi-Z/TaylorSeer, README)",
        ),
        (
            "wan", {"num_layers": 2}, "2 blocks",
            "TaylorSeer as released: N=2 2.07x (arXiv 2506.09045 (MagCache), Table 1).",
        ),
        (
            "hidream", {"num_layers": 3, "num_single_layers": 6}, "3 double and 6 single blocks",
            "N=4 3.62x (GitHub Shenyi-Z/TaylorSeer, TaylorSeer-HiDream.md).",
        ),
    ],
)  # fmt: skip
def test_benchmarks_at_reduced_depth(tmp_path, name, config, blocks, published):
    record = benchmark(whole_run=False)
    record["settings"]["config"] = config
    size, record["settings"]["reduced_depth"] = "", True
    if name != "hidream":
        record["settings"] |= {"height": 256, "width": 256, "frames": 17}
        size = ", 256×256, 17 frames"
    (tmp_path / name).mkdir()
    (tmp_path / name / "benchmark-cpu.json").write_text(json.dumps(record))
    table = TABLES[f"{name}_benchmark"](tmp_path)
    assert f"of reduced depth ({blocks}){size}; 2 rows of 256 tokens" in table
    assert "layerwise grow with the depth" in table
    assert published in table


@pytest.mark.parametrize(
    "name",
    [
        "overview",
        "hunyuan-flops",
        "hunyuan-benchmark",
        "hunyuan-samples",
        "wan-flops",
        "wan-benchmark",
        "wan-samples",
        "video-memory",
        "hidream-flops",
        "hidream-benchmark",
        "hidream-samples",
        "hidream-training",
        "dit-flops",
        "dit-benchmark",
        "dit-samples",
        "flux-flops",
        "flux-benchmark",
        "flux-op-counts",
        "flux-samples",
        "partial-steps",
    ],
)
def test_a_missing_record_names_its_command(tmp_path, name):
    with pytest.raises(ValueError, match="is not there; make it with"):
        TABLES["TABLES"][name](tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table:nothing -->\n<!-- /table -->\n", "'nothing' is unknown"),
        ("<!-- table:dit-flops -->\n", "1 beginnings and 0 ends .* ends with"),
        ("<!-- /table -->\n", "0 beginnings and 1 ends"),
        ("<!-- table:dit-flops --> <!-- /table -->\n", "on a line of its own"),
        ("<!-- table:dit-flops -->\n<!-- /table -->\n<!-- /table -->\n", "1 beginnings and 2 ends"),
        ("# A title\n", "README.md has no place for a table"),
        ("", "README.md has no place for a table"),
        ("<!-- table:dit-flops -->\n<!-- table:dit-samples -->\n<!-- /table -->\n", "ends with"),
    ],
)
def test_markers_that_do_not_fit(tmp_path, results, text, message):
    path = readme(tmp_path, text)
    with pytest.raises(ValueError, match=message):
        run(path, results)
    assert path.read_text() == text
    other = readme(tmp_path / "..", README)
    with pytest.raises(ValueError, match=message):
        TABLES["main"](["--readme", str(other), str(path), "--results", str(results)])
    assert other.read_text() == README, "none is written where one does not fit"


def test_a_readme_keeps_its_line_ends(tmp_path, results):
    path = readme(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + README.replace("\n", "\r\n").encode())
    run(path, results)
    run(path, results, "--check")
    text = path.read_bytes()
    assert text.count(b"\n") == text.count(b"\r\n") > 20


def test_a_readme_that_cannot_be_read(tmp_path, results):
    for path in (tmp_path, tmp_path / "absent.md"):
        with pytest.raises(ValueError, match="cannot be read"):
            run(path, results)


def test_identical_samples_are_not_shown_as_not_compared(results, tmp_path):
    record = json.loads((results / "dit" / "fashion-mnist.json").read_text())
    record["rows"][1]["psnr"] = {"mean_db": None, "pooled_db": None, "num_images": 50, "num_identical": 50}
    record["rows"][0]["psnr"] = {
        "mean_db": 31.257,
        "low_db": 29.757,
        "high_db": 32.757,
        "num_images": 50,
        "num_identical": 0,
    }
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "fashion-mnist.json").write_text(json.dumps(record))
    table = TABLES["dit_samples"](tmp_path)
    assert "| 0.0 | 31.26 ± 1.50 | 91.2 ± 2.0 |" in table
    assert "| 3.0 | identical | 90.0 ± 3.0 |" in table


def test_benchmarks_that_timed_different_things(tmp_path):
    (tmp_path / "dit").mkdir()
    one, other = benchmark(whole_run=False), benchmark(whole_run=False)
    other["forecast_step"] = {"compiled": other["forecast_step"]["folded"]}
    del other["goals"]["folding_overhead"]
    for name, record in (("a", one), ("b", other)):
        (tmp_path / "dit" / f"benchmark-{name}.json").write_text(json.dumps(record))
    table = TABLES["dit_benchmark"](tmp_path)
    assert "| forecast step, compiled (of a full step) | not measured | 5.00 ms" in table
    assert "| folding (goal <= 5 %) | 7.10 %, not met | not measured |" in table


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Where something stands in a JSON value, of lists in the first and the last element."""
    keys = (
        value if isinstance(value, dict) else sorted({0, len(value) - 1}) if isinstance(value, list) and value else ()
    )
    for key in keys:
        yield (*path, key)
        yield from places(value[key], (*path, key))


def spoilt(record: object, place: tuple, *replacement: object) -> object:
    """A copy of a record with something else at a place, or nothing there."""
    record = copy.deepcopy(record)
    *above, key = place
    inside = record
    for step in above:
        inside = inside[step]
    if replacement:
        (inside[key],) = replacement
    else:
        del inside[key]
    return record


OF_NO_RECORD = ("methods", "method-presets", "toca-recipes")
"""Tables that the registry makes."""
OF_COSTLY_RECORDS = {name for name in TABLES["TABLES"] if "beyond" in name or name.startswith("gpu-")}
"""Tables that say what makes their records where these are not there, or fail with that."""
REPLACEMENTS = ((), (None,), ("",), ("text",), ([],), ({},), (-1,), (0,), (True,), (10**400,), ([[]],), (float("nan"),))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TABLES["TABLES"] if name not in OF_NO_RECORD])
def test_a_spoilt_record_makes_a_table_or_one_message(tmp_path, monkeypatch, name):
    """The records of the repository with something in them missing or of another kind: never another error."""
    rng, family = random.Random(name), name.split("-")[0]
    families = {"video": ("hunyuan", "wan"), "measure": ("metrics",), **{one: (one,) for one in TABLES["BACKBONES"]}}
    for one in families.get(family, TABLES["BACKBONES"]):
        shutil.copytree(ROOT / "results" / one, tmp_path / one)
    make, read, refusals = TABLES["TABLES"][name], {}, {}
    with monkeypatch.context() as patch:  # which records it reads
        names = getattr(make, "func", make).__globals__  # a partial has none of its own
        if "read_record" not in names:
            pytest.skip("another module reads its records")
        inner = names["read_record"]
        patch.setitem(names, "read_record", lambda path, *how: read.setdefault(path, inner(path, *how)))
        try:
            make(tmp_path)
        except UserError:
            assert not read
    if not read and name in OF_COSTLY_RECORDS:
        pytest.skip("its record is not part of the repository")
    for path in read:
        record = json.loads(path.read_text())
        for place in rng.sample(found := list(places(record)), min(40, len(found))):
            path.write_text(json.dumps(spoilt(record, place, *rng.choice(REPLACEMENTS))))
            try:
                make(tmp_path)
            except UserError as error:
                refusals[str(error)] = path
        path.write_text(json.dumps(record))
    assert refusals
    assert all(str(path) in message for message, path in refusals.items())


@pytest.mark.parametrize("path", TABLES["marked_documents"](), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_tables_of_the_repository_are_those_of_the_records(path):
    assert TABLES["stale_tables"](path, ROOT / "results") == []


WITHOUT_RECORDS = ("gpu-",)
"""Tables, by how their names begin, whose records are made on a GPU or take hours, and are not part of the repository yet."""


def test_every_table_stands_in_one_document():
    shown = [
        name for path in TABLES["marked_documents"]() for _, name, _, _ in TABLES["BLOCK"].findall(path.read_text())
    ]
    wanted = [name for name in TABLES["TABLES"] if not name.startswith(WITHOUT_RECORDS)]
    assert sorted(shown) == sorted(wanted)
