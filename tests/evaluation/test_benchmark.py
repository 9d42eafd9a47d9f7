"""eval/benchmark.py: its record once as a command, and how it puts a run together."""

import json
import os
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import hidream.config
from cache_dic import make_cache
from evaluation import benchmark
from evaluation.backbones import BACKBONES, workload
from seerkit.devices.compile import compile_steps

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "eval" / "benchmark.py"
MAIN = runpy.run_path(str(COMMAND))["main"]


@pytest.mark.slow
def test_the_command_writes_a_whole_record(tmp_path):
    out = tmp_path / "record.json"
    flags = [
        "--model",
        "debug",
        "--num-steps",
        "20",
        "--repeats",
        "3",
        "--whole-run",
        "--whole-repeats",
        "1",
        "--seed",
        "7",
    ]
    done = subprocess.run(
        [sys.executable, COMMAND, *flags, "--device", "cpu", "--threads", "1", "--out", out],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "random weights" in done.stdout
    record = json.loads(out.read_text())
    assert record["weights"] == "random"
    assert record["label"] == "taylorseer-N4-W2-O4"
    assert record["conditions"]["threads"] == 1
    assert record["settings"]["seed"] == 7
    assert record["full_step"].keys() == {"plain", "folded"}
    assert record["forecast_step"].keys() == {"folded", "layerwise", "stack", "hidden"}
    assert record["modulation_table"].keys() == {"uncached", "folded"}
    assert record["whole_run"].keys() == {"uncached", "taylorseer-N4-W2-O4"}
    timings = [*record["full_step"].values(), *record["forecast_step"].values(), *record["modulation_table"].values()]
    assert all(t["repeats"] == 3 and 0 < t["min_s"] <= t["median_s"] <= t["max_s"] for t in timings)
    assert record["goals"].keys() == {
        "latency_over_flops",
        "forecast_over_full",
        "folding_overhead",
        "kept_ratio_order_2",
    }
    ratio = record["goals"]["latency_over_flops"]
    assert ratio["value"] == pytest.approx(record["speedup"]["measured"] / record["speedup"]["flops"])
    assert ratio["met"] == (ratio["value"] >= 0.95)
    # 2 blocks of 2 sites, 3 features each against 9 accumulators.
    assert record["goals"]["kept_ratio_order_2"]["value"] == pytest.approx(3 * 4 / 9)
    assert [row["sites"] for row in record["operations"]] == [4, 56]
    assert record["peak_bytes"] is record["kernels"] is record["diffusers"] is None, "of CUDA, of CUDA, not asked for"


FLUX = ["--model", "flux-debug", "--device", "cpu", "--num-steps", "20", "--repeats", "2"]


@pytest.mark.slow
def test_flux_against_diffusers(need, tmp_path):
    need("diffusers")
    out = tmp_path / "record.json"
    MAIN([*FLUX, "--height", "16", "--width", "24", "--against-diffusers", "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["label"] == "taylorseer-N6-W3-O2"
    assert (record["settings"]["height"], record["settings"]["width"], record["settings"]["tokens"]) == (16, 24, 24)
    assert set(record["goals"]) == {
        "latency_over_flops", "forecast_over_full", "folding_overhead", "forecast_operations", "peak_memory"
    }  # fmt: skip
    assert record["goals"]["peak_memory"]["met"] is None
    shallow, deep = record["operations"]
    assert (shallow["sites"], deep["sites"]) == (4, 76)
    assert shallow["folded"] == deep["folded"] == record["goals"]["forecast_operations"]["value"] <= 40
    assert deep["layerwise"] > 10 * shallow["layerwise"]
    against = record["diffusers"]
    assert against["ours"]["repeats"] == against["theirs"]["repeats"] == 2
    assert against["ours_over_theirs"]["min"] > 0


VIDEO = [
    "--device",
    "cpu",
    "--num-steps",
    "12",
    "--repeats",
    "2",
    "--height",
    "16",
    "--width",
    "24",
    "--num-frames",
    "8",
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows", "sites"), [("hunyuan-debug", 1, [4, 80]), ("wan-debug", 2, [6, 120])])
def test_videos_against_diffusers(need, tmp_path, name, rows, sites):
    need("diffusers")
    out = tmp_path / "record.json"
    flags = ["--model", name, "--whole-run", "--whole-repeats", "1", "--against-diffusers", "--out", str(out)]
    MAIN([*VIDEO, *flags])
    record = json.loads(out.read_text())
    assert record["label"] == "taylorseer-N5-W1-O1"
    assert (record["settings"]["frames"], record["settings"]["tokens"], record["settings"]["rows"]) == (8, 48, rows)
    assert set(record["goals"]) == {"latency_over_flops", "forecast_over_full", "folding_overhead", "peak_memory"}
    assert record["goals"]["peak_memory"]["met"] is None
    assert [row["sites"] for row in record["operations"]] == sites
    shallow, deep = record["operations"]
    assert shallow["folded"] == deep["folded"] < deep["layerwise"]
    assert record["whole_run"].keys() == {"uncached", "taylorseer-N5-W1-O1"}
    assert record["diffusers"]["ours_over_theirs"]["min"] > 0


HIDREAM = ["--model", "hidream-debug", "--device", "cpu", "--num-steps", "12", "--repeats", "2"]


@pytest.mark.slow
def test_hidream_against_diffusers(need, tmp_path):
    need("diffusers")
    out = tmp_path / "record.json"
    flags = ["--height", "16", "--width", "24", "--whole-run", "--whole-repeats", "1", "--against-diffusers"]
    MAIN([*HIDREAM, *flags, "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["label"] == "taylorseer-N4-W1-O2"
    assert (record["settings"]["tokens"], record["settings"]["rows"], record["settings"]["cfg_scale"]) == (24, 2, 3)
    assert set(record["goals"]) == {"latency_over_flops", "forecast_over_full", "folding_overhead", "peak_memory"}
    assert all(
        record["goals"][key]["value"] for key in ("latency_over_flops", "forecast_over_full", "folding_overhead")
    )
    assert record["flops"]["kept_bytes"]["folded"] == 9 * 2 * 24 * 32 * 4
    assert record["whole_run"].keys() == {"uncached", "taylorseer-N4-W1-O2"}
    assert record["diffusers"]["ours_over_theirs"]["min"] > 0


@pytest.mark.slow
@torch.no_grad()
def test_folded_forecasts_of_hidream_do_not_depend_on_depth():
    backbone, cache = BACKBONES["hidream-tiny"], make_cache("taylorseer", interval=4, max_order=2)
    asked = workload("hidream-tiny", depth=1)
    shallow, deep = benchmark.count_by_depth(backbone, asked, torch.bfloat16, cache, 13)
    assert (shallow["sites"], deep["sites"]) == (6, 6 * backbone.deepest)
    assert shallow["folded"] == deep["folded"] < shallow["layerwise"] < deep["layerwise"]
    assert BACKBONES["hidream-full"].deepest == 16


@pytest.mark.slow
@pytest.mark.usefixtures("num_graphs")
def test_wan_compiled(monkeypatch, tmp_path):
    """A video, with guidance in two calls."""
    out = tmp_path / "record.json"
    monkeypatch.setattr(benchmark, "compile_steps", partial(compile_steps, backend="eager"))
    MAIN([*VIDEO, "--model", "wan-debug", "--compile", "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["settings"]["compile"]
    assert set(record["forecast_step"]) == {"folded"}


@pytest.mark.parametrize(("name", "cfg_scale"), [("hunyuan-debug", None), ("wan-debug", 1), ("wan-debug", 4.0)])
def test_a_sampling_run_of_a_video_starts_from_the_latents_of_the_case(name, cfg_scale):
    backbone = BACKBONES[name]
    asked = workload(name, height=16, width=16, frames=4, cfg_scale=cfg_scale, num_samples=2)
    case = backbone.build(asked, torch.float32)
    steps = []
    latents, run = backbone.sample(
        case, asked, 6, make_cache("taylorseer", interval=2, max_order=1), lambda *s: steps.append(s)
    )
    assert latents.shape == case.latents[:2].shape
    assert torch.equal(latents, steps[-1][1])
    assert len(steps) == run.record()["num_steps"] == 6
    first = backbone.timesteps(case, 6)[0]
    assert case.rows == (4 if cfg_scale == 4 else 2)
    assert 990 <= first <= 1000


@pytest.mark.parametrize(("solver", "cfg_scale"), [("unipc", 1.0), ("unipc", 3.0), ("flash", 1.0)])
def test_a_sampling_run_of_hidream_starts_from_the_latents_of_the_case(monkeypatch, solver, cfg_scale):
    """What the backbone samples is what the sampler makes of the texts in the case's rows."""
    backbone, seen = BACKBONES["hidream-debug"], []
    monkeypatch.setitem(
        hidream.config.USAGE, backbone.name, replace(hidream.config.USAGE[backbone.name], solver=solver)
    )
    asked = workload(backbone.name, height=16, width=16, cfg_scale=cfg_scale, num_samples=2, text_tokens=3)
    case = backbone.build(asked, torch.float32)
    assert case.rows == (2 if cfg_scale == 1 else 4)
    case.model.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    cache, steps = make_cache("taylorseer", interval=2, max_order=1), []
    latents, run = backbone.sample(case, asked, 6, cache, lambda *s: steps.append(s))
    assert latents.shape == case.latents[:2].shape
    assert torch.equal(latents, steps[-1][1])
    assert len(steps) == run.record()["num_steps"] == 6
    (first,), given = seen[0]
    assert torch.equal(first, case.latents)
    assert all(torch.equal(given[name], value) for name, value in case.conditions.items())
    assert torch.equal(given["timesteps"], backbone.timesteps(case, 6)[:1].expand(case.rows))


@pytest.mark.parametrize("name", ["hunyuan-debug", "wan-debug", "wan-i2v-14B-480P", "hidream-debug", "hidream-full"])
def test_the_reference_is_as_large_as_ours(need, name):
    need("diffusers")
    sizes = {"height": 32, "width": 32}
    if "hidream" not in name:
        sizes["frames"] = 8 if "debug" in name else 9
    with torch.device("meta"):
        case = BACKBONES[name].build(workload(name, depth=1, **sizes), torch.float32)
        model, arguments = BACKBONES[name].reference(case)
    ours, theirs = (sum(parameter.numel() for parameter in m.parameters()) for m in (case.model, model))
    assert theirs == ours
    in_dim = model.config.in_channels
    assert arguments["hidden_states"].shape == (case.rows, in_dim, *case.latents.shape[2:])


@pytest.mark.slow
def test_flux_compiled(monkeypatch, tmp_path):
    """Each kind of step is one graph, here run without an inductor; only the folded engine is timed."""
    out = tmp_path / "record.json"
    monkeypatch.setattr(benchmark, "compile_steps", partial(compile_steps, backend="eager"))
    MAIN([*FLUX, "--compile", "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["settings"]["compile"]
    assert set(record["forecast_step"]) == {"folded"}


@pytest.mark.gpu
def test_flux_on_cuda(tmp_path):
    out = tmp_path / "record.json"
    MAIN([*FLUX, "--device", "cuda", "--precision", "bf16", "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["peak_bytes"]["folded"] >= record["peak_bytes"]["uncached"] > 0
    assert 0 < record["kernels"] <= 2 * record["operations"][0]["folded"]


def test_a_composed_run():
    """50 uncached steps of 1 s against 14 full ones, 13 of them folding, and 36 forecasts; tables are added once each."""
    cache = make_cache("taylorseer", interval=4, max_order=0, warmup_steps=2)
    assert cache.plan(50).full_steps[-1] == 49  # the last full step serves no forecast; with order 0 step 0 neither
    timings = {
        "full_step": {"plain": {"median_s": 1.0}},
        "folding_overhead": {"median": 0.1},
        "forecast_step": {"folded": {"median_s": 0.01}},
        "modulation_table": {"uncached": {"median_s": 2.0}, "folded": {"median_s": 3.0}},
    }
    run = benchmark.composed(timings, cache, 50)
    assert run["uncached_s"] == pytest.approx(52)
    assert run["cached_s"] == pytest.approx(12 * 1.1 + 2 * 1.0 + 36 * 0.01 + 3)
    assert run["speedup"] == pytest.approx(run["uncached_s"] / run["cached_s"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "uncached"], "forecasts none"),
        (["--num-steps", "2"], "forecasts none"),
        (["--interval", "2", "3"], "one "),
        (["--against-diffusers"], "no effect on debug"),
    ],
)
def test_what_cannot_be_timed(flags, message):
    with pytest.raises(ValueError, match=message):
        MAIN(["--model", "debug", "--device", "cpu", *flags])


@pytest.mark.parametrize("flags", [["--engine", "stack"], ["--telemetry"]])
def test_flags_without_effect_are_refused(flags, capsys):
    with pytest.raises(SystemExit, match="2"):
        MAIN(["--model", "debug", *flags])
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "--repeats 1000000000",
        "--dropped 1000000000",
        "--threads 1000000000",
        "--whole-run --whole-repeats 1000000000",
        "--seed 100000000000000000000",
    ],
)
def test_numbers_without_an_end_are_refused(capsys, flags):
    with pytest.raises(SystemExit) as stop:
        MAIN(["--model", "debug", "--device", "cpu", *flags.split()])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert "is too much; take at most" in err or "must be at most" in err


def test_a_flag_without_effect_is_refused(capsys):
    with pytest.raises(SystemExit):
        MAIN(["--model", "debug", "--whole-repeats", "3"])
    assert "--whole-repeats has no effect without --whole-run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model DiT-XL/2 --depth 1000", "are free on cpu; take a smaller --depth"),
        ("--model debug --batch-size 1000000", "are free on cpu; take a smaller --depth"),
        ("--model debug --against-diffusers", "there is no model to compare with"),
        ("--model debug --depth 1000000", "at most 1000"),
    ],
)
def test_what_a_device_cannot_hold_is_refused_before_it_is_made(monkeypatch, tmp_path, flags, message):
    monkeypatch.setattr(benchmark, "free_bytes", lambda device: 2**30)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("the model is being made"))
    out = tmp_path / "record.json"
    with pytest.raises(ValueError, match=message):
        MAIN(["--device", "cpu", "--out", str(out), *flags.split()])
    assert not out.exists()
