"""calibrate.py: fits and measurements by hand, the files that it writes, and those that are shipped."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch

from cache_dic import UserError, make_cache
from cache_dic.calibration import average_ratios, fit_polynomial, polynomial_of, table_of
from cache_dic.methods.magcache import read_table
from cache_dic.methods.teacache import CALIBRATIONS
from evaluation import fitting
from evaluation.calibration import sampling_args, shown_prompts
from evaluation.fitting import measure
from evaluation.flags import EMBEDDED
from seerkit.command.cli import Parser, run_command


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("eval/calibrate.py")


def run(command, capsys, *flags: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of the command."""
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, [str(flag) for flag in flags])
    return (stop.value.code, *capsys.readouterr())


# ---------------------------------------------------------------------------------------------------------------- fits


def test_a_polynomial_is_found_again():
    x, truth = np.linspace(0.01, 0.3, 40), np.array([200.0, -80.0, 9.0, 0.5, 0.02])
    fit = fit_polynomial(x.tolist(), np.polyval(truth, x).tolist())
    assert fit["coefficients"] == pytest.approx(truth.tolist(), rel=1e-6)
    assert fit["r2"] == pytest.approx(1)
    assert (fit["num_pairs"], fit["range"]) == (40, [0.01, 0.3])


def test_r2_is_the_share_of_the_variance():
    draw = np.random.default_rng(0)
    x, y = draw.random(60), draw.random(60)
    fit = fit_polynomial(x.tolist(), y.tolist())
    design = np.vander(x, 5)
    solved, *_ = np.linalg.lstsq(design, y, rcond=None)
    assert fit["coefficients"] == pytest.approx(solved.tolist(), rel=1e-6)
    errors = y - design @ solved
    assert fit["r2"] == pytest.approx(1 - errors @ errors / ((y - y.mean()) @ (y - y.mean())))
    assert fit["r2"] < 0.3, "noise is not told by anything"


def test_few_pairs_are_refused():
    with pytest.raises(UserError, match="4 changes are too few for a polynomial of degree 4"):
        fit_polynomial([0.1, 0.2, 0.3, 0.4, 0.4], [1.0] * 5)


def test_ratios_are_averaged_by_step():
    assert average_ratios([[1.0, 2.0], [3.0, 4.0]]) == [1.0, 2.0, 3.0]


# -------------------------------------------------------------------------------------------------------- measurements


@torch.no_grad()
@pytest.mark.parametrize(("signal", "branches"), [("modulated", 1), ("time_embedding", 1)])
def test_what_is_measured_is_what_the_blocks_did(signal, branches):
    """Beside tokens that hooks saw before the first and after the last block."""
    model, ends = reference.network("dit"), {"before": [], "after": []}
    model.blocks[0].register_forward_pre_hook(lambda _, args: ends["before"].append(args[0]))
    model.blocks[-1].register_forward_hook(lambda _, args, x: ends["after"].append(x))
    pipeline = SimpleNamespace(sample=lambda cache, *_: reference.sample("dit", model, 6, cache))
    (rows,) = measure(pipeline, None, signal, 6)
    before, after = torch.stack(ends["before"]), torch.stack(ends["after"])
    changes = [((b - a).abs().mean() / a.abs().mean()).item() for a, b in itertools.pairwise(after)]
    norms = (after - before).norm(dim=-1)
    ratios = (norms[1:] / norms[:-1]).flatten(1).mean(1).tolist()
    assert [row["output_change"] for row in rows] == pytest.approx(changes, rel=1e-5)
    assert [row["ratio"] for row in rows] == pytest.approx(ratios, rel=1e-5)
    if signal == "time_embedding":
        embedded = model.t_embedder(reference.given("dit", 6).timesteps)
        expected = [((b - a).abs().mean() / a.abs().mean()).item() for a, b in itertools.pairwise(embedded)]
        assert [row["change"] for row in rows] == pytest.approx(expected, rel=1e-5)


def test_branches_are_measured_apart():
    model = reference.network("wan")
    pipeline = SimpleNamespace(sample=lambda cache, *_: reference.sample("wan", model, 4, cache))
    cond, uncond = measure(pipeline, None, "time_embedding", 4)
    assert [row["change"] for row in cond] == [row["change"] for row in uncond]
    assert [row["ratio"] for row in cond] != [row["ratio"] for row in uncond]


# ------------------------------------------------------------------------------------------------------------- command


def test_a_polynomial_is_written_used_and_gone_on_with(command, capsys, checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "own.json"
    flags = ["--model", "flux-debug", "--ckpt", checkpoint, "--num-steps", 8, "--samples", 2, "--out", out]
    code, printed, err = run(command, capsys, *flags)
    assert code == 0, err
    assert "R²" in printed
    made = json.loads(out.read_text())
    pairs = [branch for sample in made["calibration"]["measured"] for branch in sample]
    x, y = ([v for branch in pairs for v in branch[name]] for name in ("change", "output_change"))
    assert len(x) == made["num_pairs"] == 2 * 7
    assert made["coefficients"] == pytest.approx(np.polyfit(x, y, 4).tolist())
    cache = make_cache("teacache", calibration=str(out), threshold=0.1)
    assert cache.schedule_values["coefficients"] == made["coefficients"]

    calls, measured = [], fitting.measure
    monkeypatch.setattr(fitting, "measure", lambda *args: calls.append(args) or measured(*args))
    cut = json.loads(out.read_text())
    del cut["calibration"]["measured"][1:]
    out.write_text(json.dumps(cut))
    code, _, err = run(command, capsys, *flags, "--resume")
    assert code == 0, err
    assert len(calls) == 1
    assert json.loads(out.read_text()) == made
    code, _, err = run(command, capsys, *flags, "--resume", "--guidance-scale", 2)
    assert code == 2
    assert "was made with other settings (guidance)" in err


def test_a_table_is_written_and_used(command, capsys, checkpoint, tmp_path):
    out = tmp_path / "ratios.json"
    flags = ["--model", "flux-debug", "--ckpt", checkpoint, "--num-steps", 6, "--samples", 1, "--out", out]
    code, printed, err = run(command, capsys, *flags, "--method", "magcache", "--json")
    assert code == 0, err
    made = json.loads(out.read_text())
    assert json.loads(printed) == made
    assert made["ratio"] == [1.0, *made["calibration"]["measured"][0][0]["ratio"]]
    assert read_table(str(out)).ratios["uncond"] == tuple(made["ratio"])
    assert make_cache("magcache", table=str(out)).plan(6).full_steps[0] == 0


def test_plan_needs_neither_prompts_nor_weights(command, capsys):
    code, printed, err = run(command, capsys, "--model", "flux-schnell", "--dry-run", "--samples", 3)
    assert code == 0, err
    plan = json.loads(printed)
    assert (plan["samples"], plan["num_steps"]) == (3, 4)
    assert plan["flops_T_per_sample"] > 100


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --out FILE for the calibration, or --json"),
        (["--json", "--resume"], "--resume goes on with --out FILE"),
        (["--json", "--method", "magcache", "--signal", "modulated"], "--signal has no effect with --method magcache"),
        (["--json", "--signal", "time"], "signal 'time' is unknown; choose from modulated"),
        (["--json", "--batch-size", 4], "--batch-size has no effect here"),
        (["--json", "--num-steps", 1], "no step after the first to measure"),
        (["--json", "--interval", 4], "unrecognized arguments: --interval"),
        (["--json", "--model", "flux-dev"], "flux-dev needs --calibration-prompts FILE"),
    ],
)
def test_what_is_wrong_is_one_line(command, capsys, flags, message):
    code, _, err = run(command, capsys, *flags)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


# ------------------------------------------------------------------------------------------------------------- shipped


@pytest.mark.parametrize("model", EMBEDDED)
def test_shipped_calibrations_are_those_of_their_measurements(model):
    polynomial, table = (
        json.loads((CALIBRATIONS / f"{name}-{model}.json").read_text()) for name in ("teacache", "magcache")
    )
    again = polynomial_of(_steps(polynomial), polynomial["signal"])
    assert polynomial["coefficients"] == pytest.approx(again["coefficients"], rel=1e-6)
    assert polynomial["r2"] == pytest.approx(again["r2"])
    found = table_of(_steps(table), table["num_steps"])
    assert found.items() <= table.items()


@pytest.mark.parametrize("model", EMBEDDED)
def test_shipped_calibrations_are_of_other_samples_than_results(model):
    args = sampling_args(Parser("", ""), model, [], seed=0)
    for name in ("teacache", "magcache"):
        made = json.loads((CALIBRATIONS / f"{name}-{model}.json").read_text())["calibration"]["made_with"]
        assert made["seed"] != args.seed
        if model != "fashion-mnist":  # all of whose classes are shown, with other noise
            assert not set(made["prompts"]) & set(shown_prompts(model, args))


def _steps(made):
    return [
        [[dict(zip(branch, step, strict=True)) for step in zip(*branch.values(), strict=True)] for branch in sample]
        for sample in made["calibration"]["measured"]
    ]
