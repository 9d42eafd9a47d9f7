"""eval/measure_gpu.py: slices that stop, go on and leave out; what is counted and composed; tables of a made-up record."""

import importlib.util
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cache_dic import UserError, make_cache
from evaluation.backbones import BACKBONES, workload
from evaluation.gpu import measure, parts, report, roofline
from evaluation.gpu.hooks import HOOKS, STEPS, time_rival
from evaluation.gpu.journal import Journal
from evaluation.gpu.measure import measure_slice
from evaluation.gpu.parts import Part, run_method
from evaluation.gpu.slices import KINDS, SLICES, SUBJECTS, settings_of
from evaluation.gpu.subject import Subject, draw_zeros
from evaluation.report_page import write_report
from seerkit.devices.dtypes import made_in
from seerkit.io.files import read_text

ROOT = Path(__file__).parents[2]
COMMAND = ROOT / "eval" / "measure_gpu.py"
MAIN = runpy.run_path(str(COMMAND))["main"]
TABLES = runpy.run_path(str(ROOT / "eval" / "tables.py"))["TABLES"]
CPU = torch.device("cpu")


def settings(name: str, **changed) -> dict:
    given = {"tiny": True, "precision": "bf16", "repeats": 2, "dropped": 1, "device": "A Processor", **changed}
    return settings_of(SLICES[name], **given)


def subject(name: str) -> Subject:
    return Subject(SLICES[name], settings(name), CPU)


# -------------------------------------------------------------------------------------------------------------- slices


def test_every_backbone_has_every_slice_but_those_against_a_model_that_there_is_not():
    expected = {f"{folder}-{kind}" for folder in SUBJECTS for kind in KINDS}
    assert set(SLICES) - {"tests", "ceilings"} == expected - {"dit-diffusers", "dit-cache-dit"}
    assert next(iter(SLICES)) == "tests"
    for folder, (published, tiny) in SUBJECTS.items():
        assert SLICES[f"{folder}-steps"].model(tiny=False) == published
        assert SLICES[f"{folder}-steps"].model(tiny=True) == tiny
        assert (BACKBONES[f"{published}"].reference.__annotations__["return"] is None) == (folder == "dit")


@pytest.fixture
def of_parts(monkeypatch, tmp_path):
    """`of_parts(settings, part, …)`: a journal of the slice of ceilings that consists of these, measured for 10 s."""

    def run(given: dict, *made: Part, budget_s: float = 10.0) -> Journal:
        monkeypatch.setitem(parts._PARTS, "ceilings", lambda work: list(made))
        journal = Journal(tmp_path / "slice.json", given)
        measure_slice(journal, SLICES["ceilings"], "cpu", budget_s)
        return Journal.read(journal.path)

    return run


def test_a_slice_stops_at_its_budget_and_goes_on_at_the_next_call(of_parts):
    calls = []
    made = [Part(name, lambda name=name: calls.append(name), besides_s=1000) for name in "abc"]
    given = settings("ceilings", tiny=False)
    journal = of_parts(given, *made)
    assert (calls, journal.waiting, journal.state) == (["a"], ["b", "c"], "under way, 1 of 3 measurements")
    assert journal.conditions["driver"] is None
    assert of_parts(given, *made).waiting == ["c"]
    journal = of_parts(given, *made)
    assert (calls, journal.is_finished, journal.state) == (["a", "b", "c"], True, "finished, 3 of 3 measurements")
    assert of_parts({**given, "repeats": 9}, *made).waiting == ["b", "c"], "anew with other settings"
    assert calls == ["a", "b", "c", "a"]


def test_tiny_parts_take_their_steps_alone(of_parts):
    made = [Part(name, lambda: 1, besides_s=1000) for name in "ab"]
    assert of_parts(settings("ceilings"), *made).is_finished


def test_a_part_that_fails_is_stored_and_a_broken_device_is_left_to_the_next_call(of_parts):
    def fail(error: Exception):
        def call():
            raise error

        return call

    errors = {
        "asked": UserError("not to be had"),
        "memory": torch.OutOfMemoryError("CUDA out of memory. Tried"),
        "defect": KeyError("lost"),
        "broken": RuntimeError("CUDA error: an illegal memory access was encountered"),
    }
    made = [*(Part(name, fail(error)) for name, error in errors.items()), Part("good", lambda: 1)]
    journal = of_parts(settings("ceilings"), *made)
    told = {name: part["error"] for name, part in journal.parts.items()}
    assert told["asked"] == "not to be had"
    assert told["memory"].startswith("out of memory (CUDA out of memory")
    assert told["defect"] == "KeyError: 'lost'"
    assert "illegal memory access" in told["broken"]
    assert journal.waiting == ["good"]
    assert of_parts(settings("ceilings"), *made).parts["good"]["value"] == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from evaluation.gpu import parts
from evaluation.gpu.journal import Journal
from evaluation.gpu.measure import measure_slice
from evaluation.gpu.slices import SLICES
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
parts._PARTS["ceilings"] = lambda work: [parts.Part("a", lambda: 1), parts.Part("b", kill), parts.Part("c", lambda: 3)]
settings = {"slice": "ceilings", "model": None, "size": "tiny", "precision": "bf16", "repeats": 1, "dropped": 0}
measure_slice(Journal(Path(sys.argv[1]), settings), SLICES["ceilings"], "cpu", 100)
"""


@pytest.mark.slow
def test_what_kills_its_process_twice_is_left_out(tmp_path):
    path = tmp_path / "slice.json"
    codes = [subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True).returncode for _ in range(3)]
    assert codes == [-signal.SIGKILL, -signal.SIGKILL, 0]
    journal = Journal.read(path)
    assert [journal.parts[name].get("value") for name in "abc"] == [1, None, 3]
    assert journal.parts["b"]["error"] == "begun 2 times, and ended each time before it was done"


def test_a_package_that_is_missing_is_named_and_its_slices_are_left_out(monkeypatch, tmp_path, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in ("cache_dit", "pytest") else found(name)
    )
    monkeypatch.setitem(MAIN.__globals__, "device_of", lambda args: "A Processor")
    flags = ["--slice", "tests", "flux-cache-dit", "--tiny", "--output-dir", str(tmp_path)]
    MAIN(flags)
    told = capsys.readouterr().err
    assert "tests: left out: pytest not installed; `pip install pytest` and call again" in told
    assert "flux-cache-dit: left out: cache-dit not installed; `pip install cache-dit` and call again" in told
    record = json.loads((tmp_path / "flux" / "gpu-a-processor.json").read_text())
    assert record["slices"]["cache-dit"]["left_out"].startswith("cache-dit not installed")
    MAIN([*flags, "--list"])
    assert "diffusers' model; left out: cache-dit" in capsys.readouterr().out
    monkeypatch.setattr(importlib.util, "find_spec", found)
    journal = Journal(tmp_path / "flux-cache-dit.json", settings("flux-cache-dit"))
    assert journal.state == "not begun", "once it is there"


@pytest.mark.slow
def test_a_call_ends_a_slice_in_time_and_says_what_is_left(tmp_path):
    flags = ["--tiny", "--no-in-process", "--device", "cpu", "--output-dir", tmp_path]
    command = [sys.executable, COMMAND, *flags, "--slice", "ceilings", "dit-methods", "--within-s", "21"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert done.stderr.splitlines()[-1].startswith("not finished: ")
    done = subprocess.run([*command[:-2], "--slice", "ceilings"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Journal.read(tmp_path / "ceilings.json").is_finished


# ----------------------------------------------------------------------------------------------------- what is measured


def test_random_models_are_made_in_their_precision():
    with made_in(torch.bfloat16):
        assert {weight.dtype for weight in nn.Linear(2, 3).parameters()} == {torch.bfloat16}
    with pytest.raises(KeyError), made_in(torch.bfloat16):
        raise KeyError
    assert nn.Linear(2, 3).weight.dtype is torch.float32


def test_no_weight_stays_zero():
    model = BACKBONES["flux-debug"].build(workload("flux-debug"), torch.bfloat16).model
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    draw_zeros(model)
    assert all(weight.any() for weight in model.parameters())
    kept = [torch.equal(weight, before[name]) for name, weight in model.named_parameters() if before[name].any()]
    assert kept
    assert all(kept)


def test_operations_and_least_bytes_of_a_layer():
    """An input read twice counts once; what is made and read within the step does not count."""
    with torch.device("meta"):
        layer, other, x = (
            nn.Linear(8, 4, dtype=torch.bfloat16),
            nn.Linear(1, 1),
            torch.randn(3, 8, dtype=torch.bfloat16),
        )
    model = nn.ModuleList([layer, other])
    with torch.no_grad():
        found = roofline.step_work(lambda: (layer(x) * 2).relu() + x[:, :4], model, blocks_bytes=1000)
    assert found["flops"] == 2 * 3 * 8 * 4
    assert found["weights_bytes"] == 2 * (8 * 4 + 4), "without the layer that is not read"
    assert found["inputs_and_output_bytes"] == 2 * (3 * 8 + 3 * 4)
    assert found["bytes"] == found["weights_bytes"] + found["inputs_and_output_bytes"] + 1000


def test_work_of_both_kinds_of_step():
    """A forecast reads embedding, head, the folded sum in float32 and the latents; a full step all blocks, too."""
    of = subject("flux-steps")
    counted = parts.counts(of, of.cache())
    case, full, forecast = of.meta, counted["full"], counted["forecast"]
    model, tokens = case.model, case.model.tokens(case.latents)
    ends = sum(w.nbytes for part in (model.img_in, model.final_layer.linear) for w in part.parameters())
    assert forecast["weights_bytes"] == ends
    kept = tokens.numel * 4
    latents = 2 * case.latents.nbytes
    assert kept + latents <= forecast["inputs_and_output_bytes"] <= 1.2 * (kept + latents)
    assert full["blocks_bytes"] == 2 * len(model.block_sites()) * tokens.numel * 2
    assert ends < full["weights_bytes"] < sum(w.nbytes for w in model.parameters()), "modulation is in the table"
    assert counted["parameters"] == sum(w.numel() for w in model.parameters())
    assert full["flops"] < of.flops < 1.1 * full["flops"]


def test_what_bounds_a_step():
    ceilings = {"flops": {"per_s": 100.0}, "bytes": {"per_s": 10.0}}
    assert report.attainable({"flops": 1000, "bytes": 50}, ceilings) == ("operations", 10.0)
    assert report.attainable({"flops": 100, "bytes": 50}, ceilings) == ("bytes", 5.0)


def test_a_run_of_a_method_by_steps():
    found = run_method(subject("dit-methods"), "fora")
    plan = make_cache("fora", preset="dit", model="DiT-XL/2").plan(50)
    assert found["label"] == "fora-N4-W2"
    assert {kind: of["steps"] for kind, of in found["kinds"].items()} == {
        "full": len(plan.full_steps),
        "forecast": len(plan.forecast_steps),
    }
    assert found["ratio"] == pytest.approx(50 * found["uncached_step"]["median_s"] / found["total_s"])
    assert found["total_s"] >= sum((of["steps"] - 1) * of["min_s"] for of in found["kinds"].values())
    assert found["decided"] == "beforehand"
    assert 2 < found["flops_ratio"] < 4
    with pytest.raises(UserError, match="easycache"):
        run_method(subject("dit-methods"), "easycache")


@pytest.mark.slow
def test_steps_with_a_hook_by_what_they_compute(need):
    need("diffusers")
    of = subject("flux-diffusers")
    found = time_rival(of, HOOKS["taylorseer"])
    # Full are calls 0, 1, 2, 4, 10 and 16; of each kind the first is dropped.
    assert {kind: steps["repeats"] for kind, steps in found["steps"].items()} == {
        "computed": 5,
        "cached": STEPS - 6 - 1,
    }
    assert found["ours"]["full_s"] > 0
    assert time_rival(of, HOOKS["first-block-cache"])["steps"]["cached"]["repeats"] > 10, "the hook before is off"


@pytest.mark.slow
def test_the_seconds_expected_follow_from_operations(monkeypatch):
    given = settings("dit-steps", tiny=False)
    found = measure.estimate({"dit-steps": given, "ceilings": settings("ceilings", tiny=False)})
    work = parts.Work(SLICES["dit-steps"], given, "cpu")
    step_s = work.subject.flops / measure.H100_FLOPS
    assert step_s == pytest.approx(0.4745e12 / (0.6 * 989e12), rel=1e-3)
    timed = next(part for part in work.parts if part.name == "steps")
    assert timed.full_steps == 2 * 3 + 14, "pairs, and the full steps of a run"
    assert found["dit-steps"]["seconds"] == pytest.approx(
        work.setup_s + sum(part.full_steps for part in work.parts) * step_s + sum(part.besides_s for part in work.parts)
    )
    assert found["ceilings"]["parts"] == 1


# ---------------------------------------------------------------------------------------------- on a device that is not there


def falling(tensor: torch.Tensor) -> list:
    """Made-up numbers of a tensor, such as noise levels: from 1 to 0."""
    if tensor.ndim == 1:
        return [1 - i / max(1, len(tensor) - 1) for i in range(len(tensor))]
    return [falling(part) for part in tensor] if tensor.ndim else tensor.item()


@pytest.mark.slow
@pytest.mark.parametrize("folder", SUBJECTS)
def test_nothing_is_left_on_the_host(monkeypatch, folder):
    """Whole runs on a pretended CUDA device, whose tensors refuse to meet those of the host; numbers read back are made up."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    published, tiny = SUBJECTS[folder]
    backbone, package = (
        BACKBONES[tiny],
        parts.Subject(SLICES[f"{folder}-runs"], settings(f"{folder}-runs"), CPU).package,
    )
    for name, answer in (("__float__", 0.5), ("__int__", 1), ("__bool__", True)):
        monkeypatch.setattr(torch.Tensor, name, lambda self, answer=answer: answer)
    monkeypatch.setattr(torch.Tensor, "item", lambda self: 0.5 if self.is_floating_point() else 1)
    monkeypatch.setattr(FakeTensor, "tolist", falling)
    monkeypatch.setattr(nn.Module, "to", lambda self, *_, **__: self)
    monkeypatch.setattr("cache_dic.run.Run._check_sites", lambda *_: None)
    monkeypatch.setattr("cache_dic.cache.free_bytes", lambda device: None)
    monkeypatch.setattr("cache_dic.fold_triton.fold_", lambda *_: None, raising=False)
    for method in ("uncached", "taylorseer", "first_block_cache", "toca"):
        with FakeTensorMode(), torch.no_grad():
            with torch.device("cuda"):
                case = backbone.build(workload(tiny), torch.bfloat16)
            cache = make_cache(method, preset=package, model=published)
            latents, run = backbone.sample(case, workload(tiny), 8, cache, lambda *_: None)
        assert latents.device.type == "cuda"
        assert len(run.steps) == 8


# A finder that refuses what the core does not need; it is found before any other module, in a folder of its own.
REFUSING = """
import importlib.abc, sys
REFUSED = {"diffusers", "transformers", "cache_dit", "accelerate", "torchvision", "timm", "matplotlib", "yaml", "scipy", "cv2",
    "huggingface_hub", "pytest", "tokenizers", "peft"}
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.partition(".")[0] in REFUSED else found(name, package)
"""


@pytest.mark.slow
def test_a_checkout_without_weights_on_a_machine_without_further_packages(tmp_path):
    copy, refusing = tmp_path / "a checkout", tmp_path / "refusing"
    left_out = shutil.ignore_patterns("weights", ".git", "outputs", "results", ".venv", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out)
    shutil.copytree(ROOT / "common" / "seerkit" / "weights", copy / "common" / "seerkit" / "weights")
    for package in copy.glob("TaylorSeer-*"):
        assert not (package / "weights").exists()
    refusing.mkdir()
    (refusing / "sitecustomize.py").write_text(REFUSING)
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    names = ["tests", "ceilings", "dit-steps", "dit-pipeline", "flux-diffusers"]
    done = subprocess.run(
        ["bash", copy / "scripts" / "measure_gpu.sh", "--device", "cpu", "--tiny", "--slice", *names],
        cwd="/", env={**kept, "PYTHONPATH": str(refusing), "TAYLORSEER_PYTHON": sys.executable}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = copy / "outputs" / "gpu-tiny"
    record = json.loads(next((folder / "dit").glob("gpu-*.json")).read_text())
    assert record["tests"] is None
    assert record["ceilings"]["flops"]["per_s"] > 0
    assert record["slices"]["steps"]["parts"]["steps"]["value"]["composed_run"]["speedup"] > 0
    around = record["slices"]["pipeline"]["parts"]
    assert around["autoencoder, decoding"]["error"].startswith("diffusers is not installed")
    assert "value" in around["denoising"]
    assert "debug on random weights, bf16" in done.stdout
    assert "TINY: a trial" in done.stdout
    assert "flux-diffusers: left out: diffusers not installed" in done.stderr


def test_the_script_names_a_python_that_cannot_be_used(tmp_path):
    script = ROOT / "scripts" / "measure_gpu.sh"
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'einops'\" >&2\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(["bash", script, "--python", python, "--list"], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"error: {python} cannot be used (ModuleNotFoundError: No module named 'einops'); install" in done.stderr


# -------------------------------------------------------------------------------------------------------------- tables


def timing(seconds: float) -> dict:
    return {"median_s": seconds, "min_s": 0.9 * seconds, "max_s": 1.1 * seconds, "repeats": 5}


def made_up(size: str = "published") -> dict:
    """A record of eval/measure_gpu.py."""
    steps = {
        "label": "taylorseer-N6-W3-O2",
        "full_step": {"plain": timing(0.2), "folded": timing(0.205)},
        "forecast_step": {"folded": timing(0.001)},
        "modulation_table": {"uncached": timing(0.02), "folded": timing(0.03)},
        "composed_run": {"uncached_s": 10.0, "cached_s": 2.0, "speedup": 5.0},
        "kernels": 12,
    }
    work = {"full": {"flops": 80e12, "bytes": 20e9}, "forecast": {"flops": 3e9, "bytes": 2e9}}
    run = {"flops_ratio": 5.2, "kept_bytes": {"folded": 3 * 2**20}}
    pair = {
        "uncached": {"seconds": 10.0, "peak_bytes": 2**35},
        "cached": {"seconds": 2.1, "peak_bytes": 2**35},
        "ratio": 4.76,
    }
    method = {
        "label": "toca-N4", "decided": "while sampling", "kinds": {"full": {"steps": 14}, "partial": {"steps": 36}},
        "ratio": 2.0, "flops_ratio": 3.0, "total_s": 5.0, "kept_bytes": 2**21, "peak_bytes": None,
    }  # fmt: skip
    memory = {"before": 2**30, "peak": 3 * 2**30, "after": 2**31}
    rival = {
        "label": "TaylorSeer hook", "full_step": timing(0.25), "cached_over_full": 0.1,
        "steps": {"computed": timing(0.26), "cached": timing(0.025)}, "memory": memory,
        "ours": {"full_s": 0.2, "forecast_s": 0.001},
    }  # fmt: skip
    against = {"ours_over_theirs": {"median": 0.8}}
    around = {"label": "T5-XXL", **timing(1.0), "weights_bytes": 2**33, "memory": memory}
    values = {
        "steps": {
            "counts": {**work, "run": run, "rows": 1, "tokens": 4096},
            "steps": steps,
            "forecast stack": timing(0.002),
        },
        "runs": {"pair 1": pair, "run layerwise": {"peak_bytes": 2**36}},
        "methods": {"toca": method},
        "diffusers": {"full step": against, "taylorseer": rival},
        "pipeline": {"denoising": steps, "T5-XXL": around},
    }
    conditions = {"driver": "580.1", "versions": {"torch": "2.13.0"}, "commit": "abc", "date": "2026-01-02T03:04:05"}

    def of(kind: str, made: dict) -> dict:
        held = {name: {"value": value, "seconds": 1.0} for name, value in made.items()}
        if kind == "methods":
            held["pab"] = {"error": "of no use"}
        given = {
            "command": "eval/measure_gpu.py",
            "settings": {},
            "left_out": None,
            "begun": {},
            "conditions": conditions,
        }
        return {**given, "planned": [*held, *(["last"] if kind == "runs" else [])], "parts": held}

    slices = {kind: of(kind, made) for kind, made in values.items()}
    slices["cache-dit"] = {**of("cache-dit", {}), "left_out": "cache-dit not installed"}
    ceilings = {"flops": {"per_s": 800e12, "side": 8192}, "bytes": {"per_s": 4e12}}
    head = {
        "command": "eval/measure_gpu.py",
        "model": "flux-dev",
        "size": size,
        "precision": "bf16",
        "device": "NVIDIA H200",
    }
    return {**head, "ceilings": ceilings, "tests": None, "slices": slices}


@pytest.fixture
def results(tmp_path) -> Path:
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "gpu-nvidia-h200.json").write_text(json.dumps(made_up()))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "gpu-steps",
            [
                "**flux-dev on random weights, bf16, NVIDIA H200**",
                "| full step, ms | 200.00 (180.00 – 220.00) | – |",
                "| forecast / full step, % | 0.50 | – |",
                "| forecast stack, ms | 2.00 (1.80 – 2.20) | – |",
                "| speed-up of whole runs | 4.76x, 10.00 s → 2.10 s (1 pair) | – |",
                "| peak of a run, layerwise, GiB | 64.00 | – |",
                "| full step, ours to diffusers', eager | 0.800x | – |",
                "*1 row of 4096 tokens; ceilings measured: 800.0 TFLOP/s (bf16 product of 8192 squared), 4.00 TB/s (copy); "
                "driver 580.1, torch 2.13.0, commit abc, 2026-01-02*",
            ],
        ),
        (
            "gpu-roofline",
            [
                "| full, eager | 80.0000 | 20.000 | 4000.0 | 100.000 | operations | 200.00 | 50.0 |",
                "| forecast, folded, eager | 0.0030 | 2.000 | 1.5 | 0.500 | bytes | 1.00 | 50.0 |",
            ],
        ),
        ("gpu-methods", ["| toca-N4 | while sampling | 14 full, 36 partial | 2.00x | 3.00x | 5.00 | 2.0 | – |"]),
        (
            "gpu-rivals",
            [
                "| TaylorSeer hook | 250.00 (225.00 – 275.00) | 260.00 (234.00 – 286.00) | 25.00 (22.50 – 27.50) | 10.00 "
                "| 0.50 | 2.00 | 1.00 |"
            ],
        ),
        (
            "gpu-pipeline",
            [
                "| T5-XXL | 1000.00 (900.00 – 1100.00) | 9.09 | 33.33 | 8.00 | 2.00 |",
                "| denoising, uncached → taylorseer-N6-W3-O2 | 10000.00 → 2000.00 | 90.91 | 66.67 | – | – |",
            ],
        ),
    ],
)
def test_tables_of_a_record(results, name, lines):
    shown = TABLES[name](results).splitlines()
    assert [line for line in lines if line not in shown] == []


def test_the_report_has_all_tables(results, tmp_path):
    write_report(results, tmp_path / "index.html", [])
    text = read_text(tmp_path / "index.html")
    assert all(f'id="gpu-{name}"' in text for name in report.TABLES)
    cells = ["flux", "flux-dev", "NVIDIA H200", "200.00 (180.00 – 220.00)", "–"]
    assert re.search("".join(f"<td[^>]*>{re.escape(cell)}</td>" for cell in cells), text)
    assert '<tr data-backbone="flux" data-method="toca"><th scope="row">toca-N4</th>' in text
    assert "cache-dit: left out, cache-dit not installed" in text


def test_the_terminal_shows_all_tables_and_what_is_missing():
    shown = report.text(made_up())
    assert all(what in shown for _, what in report.TABLES.values())
    missing = shown.partition("missing:\n")[2].splitlines()
    assert missing == [
        "runs: not measured yet, last", "methods, pab: of no use", "cache-dit: left out, cache-dit not installed",
    ]  # fmt: skip
    assert report.title(made_up("tiny")).endswith("TINY: a trial, its times say nothing")


@pytest.mark.parametrize("name", report.TABLES)
def test_without_a_record_the_command_that_makes_it_is_named(tmp_path, name):
    with pytest.raises(UserError, match=r"make it on a GPU with `bash scripts/measure_gpu\.sh`"):
        TABLES[f"gpu-{name}"](tmp_path)


def test_slices_of_another_day_are_added_to_a_record_and_others_are_not(tmp_path):
    """A second device has a file of its own; a tiny record is not added to one at the published size."""
    out, results = tmp_path / "out", tmp_path / "results"
    for name, device in (("flux-steps", "NVIDIA H200"), ("flux-runs", "NVIDIA H100")):
        journal = Journal(out / f"{name}.json", settings(name, device=device))
        out.mkdir(exist_ok=True)
        journal.plan(["a"], {})
        journal.finish("a", 1, 1.0)
    (made,) = report.collect(out, results, "NVIDIA H200").values()
    assert made["slices"].keys() == {"steps"}
    (out / "flux-steps.json").unlink()
    journal = Journal(out / "flux-runs.json", settings("flux-runs", device="NVIDIA H200"))
    journal.leave_out("of no use")
    ((path, made),) = report.collect(out, results, "NVIDIA H200").items()
    assert path == results / "flux" / "gpu-nvidia-h200.json"
    assert made["slices"].keys() == {"steps", "runs"}
    journal = Journal(out / "flux-runs.json", settings("flux-runs", device="NVIDIA H200", tiny=False))
    journal.leave_out("of no use")
    (made,) = report.collect(out, results, "NVIDIA H200").values()
    assert made["slices"].keys() == {"runs"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--slice", "flux"], "invalid choice: 'flux'"),
        (["--budget-s", "0"], "must be at least 1"),
        (["--repeats", "1001"], "--repeats 1001 is too much; take at most 1000"),
        (["--list", "--estimate"], "not allowed with"),
    ],
)
def test_mistakes(capsys, flags, message):
    with pytest.raises(SystemExit, match="2"):
        MAIN(flags)
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_published_sizes_are_not_begun_on_a_cpu(device):
    with pytest.raises(
        UserError, match="published sizes take a GPU, and here is a CPU; try the whole with --device cpu --tiny"
    ):
        MAIN.__globals__["device_of"](SimpleNamespace(device=device, tiny=False))
    assert MAIN.__globals__["device_of"](SimpleNamespace(device=device, tiny=True))


def test_the_script_asks_for_the_python_that_is_to_be_named():
    done = subprocess.run(
        ["bash", ROOT / "scripts" / "measure_gpu.sh", "--python"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "measure_gpu.sh: error: --python needs the path of a Python\n")
