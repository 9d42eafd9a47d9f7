"""eval/compare.py: its figures against closed forms, and what becomes of methods that fail and of runs that are killed."""

import json
import math
import runpy
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cache_dic import METHODS, UserError, make_cache, register
from evaluation import comparing
from evaluation.backbones import shipped_schedules
from evaluation.cells import change_cell, computed_cell, plus_minus
from evaluation.comparing import Contest, Entry, computed, latency, measure, report
from evaluation.forms import COMPARISON
from evaluation.images import ImageJob
from evaluation.metrics import mean_interval, psnr, ssim, student_quantile
from evaluation.pareto import costs, front
from evaluation.perceptual import SCALE, lite0_distance, unit_features
from evaluation.variants import BASELINES, FORMS, RULES, UNCACHED, Setup, Variant, variants
from flux import Flux, flux_config, sample
from seerkit.command.cli import run_command
from seerkit.devices.distributed import World
from seerkit.io.records import misfit
from seerkit.sampling.seeds import SampleGenerators

ROOT = Path(__file__).parents[2]
TABLES = runpy.run_path(str(ROOT / "eval" / "tables.py"))
SIDE = 12  # pixels, enough for SSIM's window

# ---------------------------------------------------------------------------------------------------------- statistics


def test_an_interval_is_students():
    # t of 2 degrees of freedom, of which 2.5 % lie above: (2 p - 1) / sqrt(2 p (1 - p)), p = 0.975
    t = 0.95 / math.sqrt(2 * 0.975 * 0.025)
    assert student_quantile(0.975, 2) == pytest.approx(t, rel=1e-12)
    assert student_quantile(0.975, 1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    tabulated = {7: 2.3646242510, 15: 2.1314495456, 100: 1.9839715185}
    assert {n: student_quantile(0.975, n) for n in tabulated} == pytest.approx(tabulated, rel=1e-9)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx(
        {"mean": 2.0, "low": 2 - t / math.sqrt(3), "high": 2 + t / math.sqrt(3), "num": 3}
    )
    assert mean_interval([4.0]) == {"mean": 4.0, "low": None, "high": None, "num": 1}
    assert mean_interval([]) == {"mean": None, "low": None, "high": None, "num": 0}
    with pytest.raises(ValueError, match="finite"):
        mean_interval([1.0, math.inf])


@pytest.mark.slow
def test_an_interval_covers_the_mean_of_few_values_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = [(i := mean_interval(draw.normal(size=8)))["low"] < 0 < i["high"] for _ in range(4000)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


# ----------------------------------------------------------------------------------------------------------- distances


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of one channel (H, W) by its definition, window by window."""
    weights = np.array([[math.exp(-((i - 5) ** 2 + (j - 5) ** 2) / 4.5) for j in range(11)] for i in range(11)])
    weights /= weights.sum()
    found = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11].astype(float), b[i : i + 11, j : j + 11].astype(float)
            mx, my = (weights * x).sum(), (weights * y).sum()
            vx, vy = (weights * (x - mx) ** 2).sum(), (weights * (y - my) ** 2).sum()
            cov = (weights * (x - mx) * (y - my)).sum()
            found.append(
                (2 * mx * my + 6.5025) * (2 * cov + 58.5225) / ((mx**2 + my**2 + 6.5025) * (vx + vy + 58.5225))
            )
    return float(np.mean(found))


def noisy_pair(count: int = 2, height: int = 16, width: int = 20, noise: int = 40) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(1)
    a = draw.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return a, np.clip(a + draw.integers(-noise, noise + 1, a.shape), 0, 255).astype(np.uint8)


def test_ssim_is_that_of_its_definition():
    a, b = noisy_pair()
    expected = [np.mean([slow_ssim(a[n, ..., c], b[n, ..., c]) for c in range(3)]) for n in range(2)]
    assert ssim(a, b) == pytest.approx(expected, rel=1e-9)
    assert ssim(a, a) == pytest.approx(1, rel=1e-12)
    grey, paler = (np.full((1, 11, 11, 1), value, np.uint8) for value in (100, 120))
    assert ssim(grey, paler) == pytest.approx((2 * 100 * 120 + 6.5025) / (100**2 + 120**2 + 6.5025))
    with pytest.raises(ValueError, match="sides of at least 11"):
        ssim(a[:, :8], b[:, :8])


@pytest.mark.slow
def test_ssim_is_torchmetrics_within_the_image(need):
    image = need("torchmetrics.functional.image")
    a, b = noisy_pair()
    x, y = (torch.from_numpy(array).permute(0, 3, 1, 2).double() for array in (a, b))
    _, full = image.structural_similarity_index_measure(x, y, data_range=255.0, return_full_image=True)
    inner = full[..., 5:-5, 5:-5] if full.shape[-1] == x.shape[-1] else full
    assert ssim(a, b) == pytest.approx(inner.mean(dim=(1, 2, 3)).numpy(), rel=1e-6)


def test_the_perceptual_distance_is_lpips_formula_and_grows_with_noise():
    one, other = torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2)
    one[:, 0] = other[:, 1, :, :1] = other[:, 0, :, 1:] = 1  # unit vectors, orthogonal at the first of two places
    assert lite0_distance([one], [other]).item() == pytest.approx(SCALE * 2 / 2)
    assert lite0_distance([one, one], [other, one]).item() == pytest.approx(SCALE * 2 / 2 / 2), "mean over stages"
    a, b = noisy_pair(noise=5)
    c = noisy_pair(noise=60)[1]
    features = [unit_features(torch.from_numpy(x).permute(0, 3, 1, 2)) for x in (a, b, c)]
    assert len(features[0]) == 7
    assert lite0_distance(features[0], features[0]).tolist() == [0, 0]
    assert (lite0_distance(features[1], features[0]) > 0).all()
    assert (lite0_distance(features[1], features[0]) < lite0_distance(features[2], features[0])).all()
    grey = torch.from_numpy(a[..., :1]).permute(0, 3, 1, 2)
    assert torch.equal(unit_features(grey)[0], unit_features(grey.expand(-1, 3, -1, -1))[0])


def test_a_sample_is_measured_over_its_frames():
    frames, reference = noisy_pair(count=3)
    found = measure(frames, comparing.Reference(reference))
    assert found["psnr_db"] == pytest.approx(psnr(frames, reference).mean())
    assert found["ssim"] == pytest.approx(ssim(frames, reference).mean())
    grey = frames @ np.array([0.299, 0.587, 0.114])
    assert found["flicker"] == pytest.approx(np.abs(grey[2] - 2 * grey[1] + grey[0]).mean())
    assert measure(frames, None).keys() == {"flicker"}
    assert "flicker" not in measure(frames[:1], None)
    assert measure(frames, comparing.Reference(frames))["psnr_db"] is None, "equal"


def test_steps_and_seconds_are_those_of_all_batches():
    def batch(indices: list[int], full: int, seconds: float, uncached: float) -> dict:
        record = {"full_steps": list(range(full))}
        return {
            "indices": indices, "record": record, "seconds": seconds, "uncached_seconds": uncached,
            "processor_seconds": seconds / 2,
        }  # fmt: skip

    batches = [batch([0, 1, 2], 8, 1.0, 4.0), batch([3], 12, 2.0, 6.0)]
    assert computed(batches) == {"mean": 9.0, "min": 8, "max": 12}
    timing = latency(batches, [batch([0, 1, 2], 50, 4.0, 4.0), batch([3], 50, 8.0, 8.0)])
    assert (timing["processor_ratio"], timing["processor_share"]) == (4.0, 0.5)
    assert "processor_ratio" not in latency([{**one, "processor_seconds": None} for one in batches], batches)
    assert (timing["median_s"], timing["repeats"], timing["ratio"]) == (1.5, 2, 3.5), "ratios of batches timed together"
    assert computed_cell({"computed": computed(batches), "num_steps": 50}) == "9.0 (8-12)/50"
    assert computed_cell({"computed": {"mean": 8, "min": 8, "max": 8}, "num_steps": 50}) == "8/50"


def test_cells_show_half_an_interval():
    interval = {"mean": 2.0, "low": 1.5, "high": 2.5}
    assert plus_minus(interval, 2) == "2.00 ± 0.50"
    assert plus_minus({"mean": -0.001, "low": None, "high": None}, 2, signed=True) == "+0.00"
    assert plus_minus(None, 2) == "–"
    assert change_cell({"class_accuracy_change": {"mean": -0.05, "low": -0.1, "high": 0.0}}, "class_accuracy") == (
        "-5.0 ± 5.0"
    )


def test_time_is_that_of_the_processors_where_the_machine_had_other_work():
    def drawn(share: float | None) -> str:
        latency = {"ratio": 2.0} | ({} if share is None else {"processor_ratio": 3.0, "processor_share": share})
        rows = [{"flops_ratio": 4.0, "latency": latency}]
        (_, flops), (title, time) = costs({"conditions": {"threads": 2}}, rows).items()
        assert flops(rows[0]) == 4.0
        return f"{title.partition(' ratio')[0]} {time(rows[0])}"

    assert drawn(1.9) == "latency 2.0"
    assert drawn(0.5) == "processor time 3.0"
    assert drawn(None) == "latency 2.0", "as on a GPU"


def test_the_front_holds_what_nothing_beats_in_both():
    points = [(2.0, 40.0), (3.0, 42.0), (3.0, 41.0), (4.0, 35.0), (5.0, 36.0)]
    assert front(points, 1) == [(3.0, 42.0), (5.0, 36.0)]
    assert front([(2.0, 5.0), (3.0, 4.0), (4.0, 9.0)], -1) == [(3.0, 4.0), (4.0, 9.0)]


# ------------------------------------------------------------------------------------------------------------ variants


def labels(*asked: str, **more) -> dict[str, Variant]:
    setup = Setup(**{"model": "flux-tiny", "package": "flux", "num_steps": 50} | more)
    return {one.label: one for one in variants(asked, setup)}


def test_baselines_take_as_many_steps_as_caches_compute():
    found = labels("taylorseer", BASELINES)
    assert next(iter(found)) == UNCACHED
    steps = {len(one.cache.plan(50).full_steps) for one in found.values() if one.series == "taylorseer"}
    assert {one.changes["num_steps"] for one in found.values() if one.changes} == {25, *steps}
    found = labels(BASELINES, model="wan-tiny", package="wan", solver="unipc", solvers=("unipc", "dpm++"))
    assert {one.changes.get("solver") for one in found.values() if one.changes} == {None, "dpm++"}
    assert "fewer-steps-dpm++-25" in found


def test_forms_and_rules_hold_the_predictor():
    forms = labels(FORMS)
    assert {one.form for one in forms.values() if FORMS in one.groups} >= {"folded", "layerwise", "stack"}
    rules = labels(RULES)
    assert {one.cache.schedule for one in rules.values() if RULES in one.groups} >= {"taylorseer", "diffusers", "fora"}
    everything = labels("all")
    assert everything.keys() >= forms.keys() | rules.keys()
    assert FORMS in everything["taylorseer-N4-W3-O2"].groups, "one row serves the method, its form and its rule"
    with pytest.raises(UserError, match=r"method 'tailorseer' is unknown.*did you mean"):
        labels("tailorseer")


def test_schedules_that_ship_are_found_by_their_names(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluation.backbones.ROOT", tmp_path)
    folder = tmp_path / "TaylorSeer-FLUX" / "schedules"
    folder.mkdir(parents=True)
    for name in ("flux-tiny-7-of-50", "flux-tiny-18-of-50", "flux-tiny-10-of-28", "flux-dev-10-of-50"):
        (folder / f"{name}.json").write_text("{}")
    found = shipped_schedules("flux-tiny", 50)
    assert [path.stem for path in found] == ["flux-tiny-18-of-50", "flux-tiny-7-of-50"]


@pytest.mark.slow
def test_every_variant_of_a_model_can_be_sampled():
    model = Flux(flux_config("flux-debug")).eval().requires_grad_(False)
    noise, txt, y = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 384), torch.randn(1, 768)
    for variant in labels("all").values():
        steps = variant.changes.get("num_steps", 50)
        latents, run = sample(model, noise, txt, y, steps, cache=variant.cache, return_run=True)
        assert latents.isfinite().all(), variant.label
        assert len(run.record()["steps"]) == steps


@pytest.fixture
def registered(monkeypatch):
    """A dictionary of methods that a test may add to."""
    monkeypatch.setattr("cache_dic.METHODS", METHODS)
    before = dict(METHODS)
    yield METHODS
    METHODS.clear()
    METHODS.update(before)


def test_a_method_that_is_registered_joins(registered):
    @register("late", interval=4, warmup_steps=3)
    @dataclass(frozen=True, kw_only=True)
    class Late:
        def weights(self, full_steps, step):
            return (1.0,)

    assert {one.series for one in labels("all").values()} >= {"late", "taylorseer"}
    few = labels("late", num_steps=2)
    broken = [one for one in few.values() if one.error is not None]
    assert all(one.cache is None for one in broken)


# ------------------------------------------------------------------------------------------------------------- contest


class FakePipeline:
    """Images of noise, paler the dearer a variant was to spare; notes what it samples.

    fails: methods that raise, with what. stop_after: samplings after which the user presses Ctrl-C.
    """

    def __init__(self, fails=None, stop_after=None) -> None:
        self.fails, self.stop_after = fails or {}, stop_after
        self.sampled: list[tuple[str, int, tuple[int, ...]]] = []

    def make_sampler(self, args):
        return args.num_steps

    def sample(self, cache, batch, callback):
        if cache.method in self.fails:
            raise self.fails[cache.method]
        if self.stop_after is not None and len(self.sampled) >= self.stop_after:
            raise KeyboardInterrupt
        self.sampled.append((cache.method, self.sampler, tuple(batch.indices)))
        contrast = {"uncached": 1.0, "taylorseer": 0.9, "fora": 0.5}[cache.method] * (1 if self.sampler == 4 else 0.7)
        record = {"method": cache.method, "num_steps": self.sampler, "full_steps": [0, 2], "kept_bytes": 1024}
        latents = SampleGenerators(0, batch.indices).randn(3, SIDE, SIDE).clamp(-1, 1) * contrast
        flops = 10**12 * self.sampler // (1 if cache.method == UNCACHED else 2)
        return latents, SimpleNamespace(record=lambda: record, flops=flops)

    def decode(self, latents):
        return latents


MADE = {
    UNCACHED: Variant(label=UNCACHED, series=UNCACHED, cache=make_cache(UNCACHED)),
    "fewer-2": Variant(label="fewer-2", series="fewer", cache=make_cache(UNCACHED), changes={"num_steps": 2}),
    "ours": Variant(label="ours", series="taylorseer", form="folded", cache=make_cache("taylorseer", interval=2)),
    "theirs": Variant(label="theirs", series="fora", form="folded", cache=make_cache("fora", interval=2)),
}


@pytest.fixture
def compare(tmp_path, monkeypatch):
    """`compare(pipeline, *labels, seed=)`: the record of four images in batches of two; plots are drawn where asked for."""
    draw_pareto = comparing.draw_pareto

    def carry(pipeline: FakePipeline, *chosen: str, seed: int = 0, extra: tuple[Variant, ...] = (), plots=False):
        monkeypatch.setattr(comparing, "run_flops", lambda run: (run.flops, 0))
        monkeypatch.setattr(comparing, "draw_pareto", draw_pareto if plots else lambda *_: None)

        def job(variant: Variant) -> ImageJob:
            steps = variant.changes.get("num_steps", 4)
            args = SimpleNamespace(
                device="cpu", precision="fp32", batch_size=2, accumulator_dtype=None, num_steps=steps, compile=False,
                command_line=[],
            )  # fmt: skip
            settings = {
                "model": "fake",
                "width": SIDE,
                "height": SIDE,
                "num_steps": steps,
                "batch_size": 2,
                "seed": seed,
            }
            return ImageJob(
                command="fake.py", args=args, prompts=["a", "b", "c", "d"], settings=settings, sizes={},
                caches={} if variant.cache is None else {variant.label: variant.cache}, out=tmp_path / "out",
                find=lambda _: {}, make_pipeline=lambda *_: pipeline,
            )  # fmt: skip

        made = [MADE[label] for label in (UNCACHED, *(chosen or [*MADE][1:]))] + [*extra]
        entries = [
            Entry(
                variant=one, job=job(one), error=one.error,
                counts={"flops_T": 4.0 if one.label == UNCACHED else 2.0, "full_steps": [0, 2]},
            )
            for one in made
        ]  # fmt: skip
        contest = Contest(entries=entries, world=World(rank=0, size=1, device=torch.device("cpu")), quiet=True)
        contest.prepare()
        contest.run()
        return report(contest, "python fake.py")

    return carry


def by_label(record: dict) -> dict[str, dict]:
    return {row["label"]: row for row in record["rows"]}


@pytest.mark.slow
def test_every_variant_has_its_row_files_and_page(compare, tmp_path):
    pipeline = FakePipeline()
    record = compare(pipeline, plots=True)
    rows = by_label(record)
    assert [*rows] == [UNCACHED, "fewer-2", "ours", "theirs"]
    assert rows["ours"]["psnr"]["mean_db"] > rows["fewer-2"]["psnr"]["mean_db"] > rows["theirs"]["psnr"]["mean_db"]
    assert rows["ours"]["psnr"]["low_db"] < rows["ours"]["psnr"]["mean_db"] < rows["ours"]["psnr"]["high_db"]
    assert rows["ours"]["ssim"]["num"] == 4
    assert rows["ours"]["lite0"]["mean"] < rows["theirs"]["lite0"]["mean"]
    assert rows[UNCACHED]["psnr"] is None
    assert rows["ours"]["flops_ratio"] == 2.0
    assert rows["fewer-2"]["num_steps"] == 2, "its own sampler"
    assert rows[UNCACHED]["latency"]["ratio"] == 1.0
    assert pipeline.sampled[1:] == [
        (method, steps, batch)
        for batch in ((0, 1), (2, 3))
        for method, steps in ((UNCACHED, 4), (UNCACHED, 2), ("taylorseer", 4), ("fora", 4))
    ], "batch by batch, after one rehearsal"
    out = tmp_path / "out"
    assert json.loads((out / "record.json").read_text()) == record
    assert (out / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (out / "pareto.svg").read_text()
    page = (out / "index.html").read_text()
    assert all(f"{label}/000003.png" in page for label in MADE)
    assert "Lite0 distance" in page
    assert "LPIPS" not in page.replace("LPIPS&#39;s formula on another network", "").replace("not LPIPS", "")


def test_a_method_that_fails_is_a_row_and_the_others_go_on(compare, capsys):
    unmade = Variant(label="unmade", series="unmade", error="not defined for fakes")
    record = compare(FakePipeline(fails={"taylorseer": RuntimeError("no memory")}), extra=(unmade,))
    rows = by_label(record)
    assert rows["ours"] == {
        "label": "ours", "name": "ours", "series": "taylorseer", "form": "folded", "groups": [], "changes": {},
        "error": "RuntimeError: no memory",
    }  # fmt: skip
    assert rows["unmade"]["error"] == "not defined for fakes"
    assert rows["theirs"]["psnr"]["num_images"] == 4
    assert "ours failed: RuntimeError: no memory" in capsys.readouterr().err
    again = by_label(compare(FakePipeline()))
    assert again["ours"]["psnr"]["num_images"] == 4, "tried again by the next run"


def test_tables_are_made_of_the_record(compare, tmp_path):
    other = replace(MADE["ours"], label="ours-stack", name="", form="stack", cache=make_cache("fora", interval=2))
    unmade = Variant(label="unmade", series="unmade", error="not defined for fakes")
    made = [replace(one, groups=frozenset({FORMS})) for one in (replace(MADE["ours"], label="ours2", name=""), other)]
    record = compare(FakePipeline(), "ours", extra=(*made, unmade))
    assert misfit(record, COMPARISON) is None
    text = TABLES["compared_methods"](record, tmp_path)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    psnr_of = by_label(record)["ours"]["psnr"]
    assert rows["ours"][1:4] == ["2/4", "2.00x", rows["ours"][3]]
    half = (psnr_of["high_db"] - psnr_of["low_db"]) / 2
    assert rows["ours"][6] == f"{psnr_of['mean_db']:.2f} ± {half:.2f}"
    assert "unmade failed: not defined for fakes" in text
    assert "4 samples in batches of 2" in text
    one, two = ({"samples": {"psnr_db": values}} for values in ([30.0, 32.0, None], [29.0, 29.0, 40.0]))
    assert TABLES["paired"](one, two) == pytest.approx(mean_interval([1.0, 3.0])), "over the samples that both tell"


def test_without_uncached_samples_there_is_nothing_to_compare(compare):
    with pytest.raises(RuntimeError, match="no memory"):
        compare(FakePipeline(fails={UNCACHED: RuntimeError("no memory")}))


def test_a_killed_run_goes_on_where_it_stopped(compare):
    first = FakePipeline(stop_after=4)
    with pytest.raises(KeyboardInterrupt):
        compare(first)
    assert first.sampled[1:] == [(UNCACHED, 4, (0, 1)), (UNCACHED, 2, (0, 1)), ("taylorseer", 4, (0, 1))]
    second = FakePipeline()
    rows = by_label(compare(second))
    again = [one for one in second.sampled[1:] if one[2] == (0, 1)]
    assert again == [(UNCACHED, 4, (0, 1)), ("fora", 4, (0, 1))], "the uncached batch once more, to be timed beside it"
    assert rows["ours"]["latency"]["repeats"] == 2
    third = FakePipeline()
    assert compare(third)["rows"] == [*rows.values()]
    assert third.sampled == [], "all there"


def test_methods_asked_for_later_join_those_that_are_there(compare):
    compare(FakePipeline(), "ours")
    later = FakePipeline()
    record = compare(later, "theirs")
    assert {method for method, *_ in later.sampled} == {UNCACHED, "fora"}
    assert [*by_label(record)] == [UNCACHED, "theirs", "ours"]


def test_a_changed_setting_is_not_taken_for_an_old_row(compare, monkeypatch):
    compare(FakePipeline(), "ours")
    with pytest.raises(UserError, match="holds samples of other settings: seed is 0 there and 1 here"):
        compare(FakePipeline(), "ours", seed=1)
    other = Variant(label="ours", series="taylorseer", cache=make_cache("taylorseer", interval=2, warmup_steps=1))
    monkeypatch.setitem(MADE, "ours", other)
    with pytest.raises(UserError, match=r"ours holds samples of other settings: cache\.plan"):
        compare(FakePipeline(), "ours")


def test_a_damaged_sample_is_made_again(compare, tmp_path):
    compare(FakePipeline(), "ours")
    (tmp_path / "out" / "ours" / "000001.png").write_bytes(b"")
    pipeline = FakePipeline()
    compare(pipeline, "ours")
    assert {(method, batch) for method, _, batch in pipeline.sampled} == {(UNCACHED, (0, 1)), ("taylorseer", (0, 1))}


# ------------------------------------------------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def command(load_command):
    return load_command("eval/compare.py")


def test_a_plan_lists_every_variant_without_weights(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command.main(["--model", "wan-debug", "--methods", "taylorseer", "fewer-steps", "--dry-run"])
    plan = json.loads(capsys.readouterr().out)
    rows = by_label(plan)
    assert rows["taylorseer-N5-W1-O1"]["full_steps"][:3] == [0, 5, 10]
    assert rows["fewer-steps-dpm++-25"]["flops_ratio"] == pytest.approx(2.0, rel=1e-3)
    assert plan["output_dir"].startswith("outputs/compare/wan-debug-")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--model", "fluks-tiny"], "model 'fluks-tiny' is unknown"),
        (["--methods", "tailorseer"], "did you mean"),
        (["--interval", "4"], "--interval is not taken here"),
        (["--model", "flux-dev", "--methods", "fora"], "flux-dev needs --prompt"),
    ],
)
def test_mistakes_are_named(command, flags, told, capsys):
    with pytest.raises(SystemExit) as stop:
        run_command(command.main, flags)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1


@pytest.mark.slow
def test_the_command_compares_an_embedded_model(tmp_path):
    methods = ["fora", "fewer-steps", "brightest"]
    flags = ["--model", "flux-tiny", "--methods", *methods, "--num-samples", "2", "--num-steps", "6"]
    flags += ["--plugin", ROOT / "docs" / "examples" / "brightest_tokens.py"]
    call = [sys.executable, ROOT / "eval" / "compare.py", *flags, "--output-dir", "out", "--results", "results"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / "flux" / "compare-flux-tiny.json").read_text())
    rows = by_label(record)
    assert rows["fora-N4-W3"]["computed"] == {"mean": 3, "min": 3, "max": 3}
    assert rows["fora-N4-W3"]["psnr"]["mean_db"] > 0
    assert rows["fewer-steps-3"]["flops_ratio"] == pytest.approx(2.0, rel=1e-3)
    assert "score_change" in rows["fora-N4-W3"]
    assert {path.suffix for path in (tmp_path / "results" / "flux").iterdir()} == {".json", ".png", ".svg"}
    assert "Lite0 distance" in done.stdout
    partial = rows["brightest"]
    assert partial["partial_steps"] == [1, 2, 3, 5]
    ((steps, told),) = partial["computed_in_part"]
    assert (steps, told.count("16 tokens")) == ("steps 1–3, 5", 1)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert told in page
    assert "tokens/brightest.png" in page
