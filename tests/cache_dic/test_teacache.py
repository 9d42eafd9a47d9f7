"""TeaCache's rule on changes worked out by hand, its calibrations, and its runs beside those of the official code."""

import json
from types import SimpleNamespace

import pytest
import reference
import torch

from cache_dic import UserError, make_cache
from cache_dic.look import Inputs, Look, Parts
from cache_dic.methods.teacache import PRESETS, TeaCache, calibration_names, read_calibration

IDENTITY = (1.0, 0.0)
NETWORKS = ["dit", "flux", "hunyuan_video", "wan", "hidream"]


def decisions(method, changes, **inputs):
    """Full steps and reports of a schedule that sees a signal which changes by `changes` of itself from step to step."""
    signal, full_steps, reports = torch.ones(1, 2, 3), [], []
    signals = [signal, *(signal := signal * (1 + change) for change in changes)]
    model = SimpleNamespace(time_signals=lambda timesteps, **_: {"time_embedding": torch.stack(signals)})
    given = Inputs(model, torch.zeros(1), torch.arange(len(signals)), **inputs)
    for step, value in enumerate(signals):
        parts = Parts(latents=value, modulated=lambda value=value: value, enter=None, walk=None, leave=None)
        look = Look(given, step, len(signals), full_steps, parts)
        if method.decide(look):
            full_steps.append(step)
        reports.append(look.reported)
    return full_steps, reports


class TestRule:
    def test_changes_add_up_to_the_threshold(self):
        full_steps, reports = decisions(TeaCache(threshold=0.25, coefficients=IDENTITY), [0.1] * 9)
        assert full_steps == [0, 3, 6, 9]
        sums = [report["accumulated"] for report in reports]
        assert sums == pytest.approx([0, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3, 0.1, 0.2, 0.3], abs=1e-6)
        assert "change" not in reports[0]

    def test_the_change_is_from_step_to_step_not_from_the_last_full_one(self):
        full_steps, reports = decisions(
            TeaCache(threshold=0.35, coefficients=IDENTITY), [0.1, 0.1, -0.1, 0.02, 0.1, 0.1]
        )
        assert [report.get("change") for report in reports[1:]] == pytest.approx(
            [0.1, 0.1, 0.1, 0.02, 0.1, 0.1], abs=1e-6
        )
        assert full_steps == [0, 5, 6]

    def test_coefficients_begin_with_the_highest_power(self):
        _, reports = decisions(TeaCache(threshold=9, coefficients=(3.0, 2.0, 1.0)), [0.5])
        assert reports[1]["accumulated"] == pytest.approx(3 * 0.25 + 2 * 0.5 + 1)

    def test_a_forced_step_empties_the_sum(self):
        full_steps, reports = decisions(TeaCache(threshold=0.25, coefficients=IDENTITY, forced_first=3), [0.1] * 6)
        assert full_steps == [0, 1, 2, 5, 6]
        assert reports[3]["accumulated"] == pytest.approx(0.1, abs=1e-6)

    def test_the_sum_at_the_threshold_is_full(self):
        assert decisions(TeaCache(threshold=0.5, coefficients=(0.0, 0.25)), [0.1] * 4)[0] == [0, 2, 4]

    @pytest.mark.parametrize(("num_steps", "forced"), [(50, 5), (28, 3), (30, 3), (16, 2)])
    def test_hidream_forces_a_tenth_of_the_steps_and_no_tail(self, num_steps, forced):
        method = TeaCache(threshold=1e9, calibration="hidream-full")
        assert decisions(method, [1e-3] * (num_steps - 1))[0] == list(range(forced))

    def test_a_polynomial_below_zero_is_told_and_can_be_clamped(self):
        falls = {"threshold": 0.3, "coefficients": (0.0, -0.2)}
        full_steps, reports = decisions(TeaCache(**falls), [0.1] * 6)
        assert full_steps == [0, 6]
        assert reports[5]["accumulated"] == pytest.approx(-1.0)
        assert "negative" in reports[5]["note"]
        _, reports = decisions(TeaCache(**falls, clamp=True), [0.1] * 6)
        assert reports[5]["accumulated"] == 0
        assert decisions(TeaCache(**falls, max_consecutive=2), [0.1] * 6)[0] == [0, 3, 6]

    def test_threshold_0_computes_every_step_whatever_the_polynomial_says(self):
        assert decisions(TeaCache(threshold=0, coefficients=(0.0, -1.0)), [0.1] * 4)[0] == [0, 1, 2, 3, 4]


class TestCalibrations:
    def test_wan_has_two_modes(self):
        plain, ret = (read_calibration("wan-t2v-1.3B", mode) for mode in ("plain", "use_ret_steps"))
        assert (plain.signal, plain.forced_first, plain.forced_last) == ("time_embedding", 1, 1)
        assert (ret.signal, ret.forced_first, ret.forced_last) == ("time_projection", 5, 0)
        assert plain.coefficients != ret.coefficients

    def test_published_numbers(self):
        """At d = 0.1 by hand: 0.0498651651 - 0.283781631 + 0.558554382 - 0.382021401 + 0.264230861."""
        assert read_calibration("flux-dev")(0.1) == pytest.approx(0.2068473761)

    def test_every_row_is_a_cache_and_no_two_have_a_label(self):
        for model, rows in PRESETS.items():
            labels = {make_cache("teacache", **row).label for row in rows}
            assert len(labels) == len(rows), model

    def test_a_model_has_the_first_row(self):
        cache = make_cache("teacache", preset="wan", model="wan-t2v-1.3B")
        assert cache.schedule_values["threshold"] == 0.05
        assert cache.schedule_values["coefficients"][0] == 2396.76752
        assert cache.label == "teacache-threshold=0.05-calibration=wan+2Dt2v+2D1.3B"

    def test_a_model_without_is_told_how_to_get_one(self):
        with pytest.raises(UserError, match=r"no polynomial.*eval/calibrate\.py.*calibration=FILE"):
            make_cache("teacache", preset="dit", model="DiT-XL/2")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"calibration": "flux"}, "calibration 'flux' is unknown.*flux-dev"),
            ({"calibration": "flux-dev", "mode": "use_ret_steps"}, "is not published for flux-dev; it has plain"),
            ({"calibration": "nowhere.json"}, "nowhere.json.*cannot be read"),
            ({"coefficients": ()}, "finite numbers"),
            ({"coefficients": (1.0, float("nan"))}, "finite numbers"),
            ({"coefficients": IDENTITY, "signal": "time"}, "signal 'time' is unknown"),
            ({"coefficients": IDENTITY, "threshold": -1.0}, "threshold = -1.0 must be at least 0"),
            ({"coefficients": IDENTITY, "forced_first": -1.0}, "forced_first = -1.0 must be at least 0"),
        ],
    )
    def test_what_is_wrong_is_named(self, settings, message):
        with pytest.raises(UserError, match=message):
            make_cache("teacache", **settings)

    def test_samples_are_claimed_by_what_a_file_says(self, tmp_path):
        file = tmp_path / "own.json"
        claims = []
        for last in (0.1, 0.2):
            file.write_text(json.dumps({"coefficients": [1.0, last], "signal": "modulated", "calibration": {}}))
            claims.append(make_cache("teacache", calibration=str(file)).plan(10).claim())
        assert claims[0] != claims[1]

    def test_a_file_that_is_none_is_named(self, tmp_path):
        file = tmp_path / "own.json"
        file.write_text("[]")
        with pytest.raises(UserError, match=r"own\.json.*no object with coefficients and signal"):
            make_cache("teacache", calibration=str(file))

    def test_embedded_models_have_their_own(self):
        embedded = {"fashion-mnist", "flux-tiny", "hidream-tiny", "hunyuan-tiny", "wan-tiny"}
        assert embedded <= set(calibration_names())
        assert all(3 <= len(PRESETS[name]) <= 4 for name in embedded)


class TestRuns:
    @pytest.mark.parametrize(("file", "number"), reference.files("teacache"))
    def test_is_the_official_one(self, file, number):
        settings = reference.stored(file)["runs"][number]["settings"]
        compared = reference.compare(file, number, make_cache("teacache", **settings))
        assert compared.ours == compared.theirs
        assert compared.difference <= 1e-4

    @pytest.mark.parametrize("name", NETWORKS)
    def test_threshold_0_is_the_uncached_run(self, name):
        loop = reference.open_loop(name, 4)
        (plain, expected), (runs, outputs) = (
            reference.play(name, loop, cache)
            for cache in (make_cache("uncached"), make_cache("teacache", threshold=0.0, coefficients=IDENTITY))
        )
        assert [run.full_steps for run in runs] == [run.full_steps for run in plain] == [[0, 1, 2, 3]] * len(runs)
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))

    def test_state_is_of_one_run(self):
        """Two runs of one cache, taken in turn, decide as each alone."""
        cache = make_cache("teacache", threshold=0.4, calibration="flux-dev")
        model, loop = reference.network("flux"), reference.open_loop("flux", 12)
        (alone,), _ = reference.play("flux", loop, cache)
        (conditions,) = loop.branches
        turned = loop.latents.flip(0)
        runs = [cache.start(model, loop.latents[0], loop.timesteps, **conditions) for _ in range(2)]
        for step, latents in enumerate(zip(loop.latents, turned, strict=True)):
            for run, x in zip(runs, latents, strict=True):
                model(x, timesteps=loop.timesteps[step].expand(len(x)), **conditions, cache=run.at(step))
        assert runs[0].full_steps == alone.full_steps
        assert [step.get("change") for step in runs[0].steps] == [step.get("change") for step in alone.steps]
        assert runs[1].full_steps[0] == 0

    def test_a_signal_of_the_time_is_foreseen_and_folds_exactly(self):
        """All decided before the first step, each with its reason in the record; the folded engine is that of a list."""
        loop = reference.open_loop("wan", 20)
        settings = {"calibration": "wan-t2v-1.3B", "threshold": 0.08}
        runs, outputs = reference.play("wan", loop, make_cache("teacache", **settings, engine="folded"))
        full_steps = (0, 2, 5, 7, 9, 11, 13, 15, 17, 19)
        assert all(run.plan.foreseen and run.plan.full_steps == full_steps for run in runs)
        _, listed = reference.play("wan", loop, make_cache("fora", full_steps=full_steps))
        assert all(torch.equal(a, b) for a, b in zip(outputs, listed, strict=True))
        steps = runs[0].record()["steps"]
        assert steps[2]["accumulated"] >= 0.08 > steps[1]["accumulated"]
        assert runs[0].record()["schedule"]["coefficients"][0] == 2396.76752
