"""Whether measures mean something: estimates against closed forms, ladders, rules, and the command from end to end."""

import json
from dataclasses import replace

import numpy as np
import pytest

from cache_dic import UserError
from evaluation.forms import VALIDATION
from evaluation.metrics import frechet_distance, mean_interval
from evaluation.validation import estimates, ladders, rules
from evaluation.validation.candidates import CANDIDATES
from evaluation.validation.domains import Domain
from evaluation.validation.estimates import (
    FrechetReference,
    KernelReference,
    jackknife,
    mean_estimate,
    needed,
    spearman,
)
from evaluation.validation.study import Study
from seerkit.io.records import misfit


def features(num: int, frames: int = 1, dim: int = 6, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(num, frames, dim)) @ draw.normal(size=(dim, dim)) + shift


# ----------------------------------------------------------------------------------------------------------- estimates


@pytest.mark.parametrize(
    ("num", "frames", "dim"), [(60, 1, 6), (60, 3, 6), (24, 1, 40)], ids=["images", "frames", "few"]
)
def test_a_frechet_estimate_is_the_distance_of_all_frames(num, frames, dim):
    reference, samples = features(200, 1, dim, seed=1), features(num, frames, dim, shift=0.3)
    found = FrechetReference(reference[:, 0]).estimate(samples)
    assert found.value == pytest.approx(frechet_distance(samples.reshape(-1, dim), reference[:, 0]), rel=1e-6)
    assert found.num == num


def test_a_kernel_estimate_is_the_unbiased_mean_over_pairs():
    reference, samples = features(30, seed=1), features(40, 2, shift=0.3)
    x, y = samples.reshape(-1, 6), reference[:, 0]

    def kernel(a, b):
        return (a @ b / 6 + 1) ** 3

    own = np.mean([kernel(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    other = np.mean([kernel(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    across = np.mean([kernel(a, b) for a in x for b in y])
    assert KernelReference(y).estimate(samples).value == pytest.approx(own + other - 2 * across, rel=1e-9)


def test_pseudo_values_of_a_mean_are_the_means_of_the_blocks():
    values = np.random.default_rng(0).normal(size=60)
    found = jackknife(60, lambda indices: float(values[indices].mean()))
    assert found.value == pytest.approx(values.mean())
    np.testing.assert_allclose(found.parts, [values[start::20].mean() for start in range(20)], atol=1e-12)


@pytest.mark.slow
def test_the_interval_of_a_distance_is_as_wide_as_sets_differ():
    reference = FrechetReference(features(4000, seed=9)[:, 0])
    rotation = np.random.default_rng(9).normal(size=(6, 6))
    made = [reference.estimate(np.random.default_rng(s).normal(size=(200, 1, 6)) @ rotation + 0.5) for s in range(60)]
    spread = np.std([one.value for one in made], ddof=1)
    assert np.mean([one.half for one in made]) == pytest.approx(2.09 * spread, rel=0.25)  # Student's t of 19 degrees


def test_a_difference_of_the_same_samples_has_what_they_share_taken_out():
    values = np.random.default_rng(0).normal(size=50)
    better, worse = mean_estimate(values), mean_estimate(values + 0.01)
    assert better.half == pytest.approx(mean_interval(values)["high"] - values.mean())
    assert worse.minus(better).value == pytest.approx(0.01)
    assert worse.minus(better).half < 1e-12


def test_the_bias_of_few_samples_is_taken_off_before_ranks():
    reference, same = features(4000, seed=9)[:, 0], features(4000, seed=9)
    few = [FrechetReference(reference).estimate(same[start : start + 60]) for start in range(0, 1200, 60)]
    plain, unbiased = (np.mean([getattr(one, name) for one in few]) for name in ("value", "unbiased"))
    assert abs(unbiased) < 0.25 * plain


def test_samples_needed_are_those_at_which_the_interval_ends_at_zero():
    one = mean_estimate([1.0, 2.0, 3.0, 6.0])
    count = needed(one)
    assert estimates.half_at(one, count) == pytest.approx(one.value)
    assert needed(mean_estimate([1.0, -1.0])) == np.inf


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1),
        ([1, 2, 3], [3, 2, 1], -1),
        ([1, 2, 3, 4], [1, 3, 2, 4], 0.8),
        ([1, 1, 2], [1, 2, 3], 0.8660254),
    ],
)
def test_rank_correlations_are_the_known_ones(a, b, expected):
    assert spearman(a, b) == pytest.approx(expected)


def test_figures_that_do_not_vary_have_no_rank_correlation():
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))


# ------------------------------------------------------------------------------------------------------------- ladders


@pytest.mark.parametrize("ladder", [one for one in ladders.LADDERS.values() if one.change], ids=lambda one: one.name)
def test_rungs_lie_ever_farther_from_the_real_samples(ladder):
    scene = ladders.blur(np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32, 3), dtype=np.uint8), 1.5)
    moving = np.concatenate([np.roll(scene, frame, axis=3) for frame in range(8)], axis=1)
    made = [ladder.change(moving, strength) for strength in ladder.strengths]
    errors = [np.square(one.astype(float) - moving).mean() for one in made]
    assert all(one.dtype == np.uint8 and one.shape == moving.shape for one in made)
    assert errors[0] > 0
    assert errors == sorted({*errors})


def test_blur_and_scale_leave_a_plain_picture_alone():
    plain = np.full((1, 1, 16, 16, 1), 77, np.uint8)
    assert (ladders.blur(plain, 2.0) == plain).all()
    assert (ladders.downscale(plain, 4) == plain).all()


def test_blur_is_a_gaussian():
    point = np.zeros((1, 1, 33, 33, 1), np.uint8)
    point[0, 0, 16, 16] = 255
    row = ladders.blur(point, 1.0)[0, 0, 16, :, 0].astype(float)
    assert row[16] == round(255 / (2 * np.pi), 0)
    assert row[17] / row[16] == pytest.approx(np.exp(-0.5), abs=0.02)


def test_noise_is_as_strong_as_asked_and_a_samples_own():
    grey = np.full((4, 1, 64, 64, 1), 128, np.uint8)
    noisy = ladders.noise(grey, 0.1)
    assert (noisy.astype(float) - 128).std() == pytest.approx(25.5, rel=0.05)
    assert (ladders.noise(grey[:2], 0.1) == noisy[:2]).all()


def test_shuffled_frames_are_that_many_of_the_same_ones():
    frames = np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1, 1)
    for share in (0.25, 0.5, 1.0):
        moved = ladders.shuffle_frames(frames, share)
        assert (moved != frames).sum() == 8 * share
        assert sorted(moved.ravel()) == list(range(8))


def test_repeated_frames_stand_still():
    frames = np.arange(8, dtype=np.uint8).reshape(1, 8, 1, 1, 1)
    assert ladders.repeat_frames(frames, 4).ravel().tolist() == [0, 0, 0, 0, 4, 4, 4, 4]


def fake_domain(count: int = 20) -> Domain:
    groups = np.arange(count) % 5

    def pictures(kinds) -> np.ndarray:
        return np.broadcast_to(np.asarray(kinds, np.uint8)[:, None, None, None, None], (len(kinds), 1, 2, 2, 1))

    return Domain(
        model="x", prompts=[str(group) for group in groups], most=count, reference=lambda n: pictures(groups[:n]),
        real=lambda n: pictures(groups[:n]), groups=groups, others=lambda kept, n: pictures(np.resize(kept, n)),
        told="a stand-in", reference_size=count,
    )  # fmt: skip


@pytest.mark.parametrize(("share", "kept"), [(0.2, {0, 1, 2, 3}), (0.5, {0, 1}), (0.8, {0})])
def test_kinds_are_dropped_at_equal_counts(share, kept):
    domain = fake_domain()
    real = domain.real(20)
    found = ladders.drop_kinds(domain, real, share)
    assert found.shape == real.shape
    assert set(np.unique(found)) == kept
    stays = np.isin(domain.groups, sorted(kept))
    assert (found[stays] == real[stays]).all()


def test_wrong_captions_are_that_many():
    for share in (0.25, 0.5, 1.0):
        captions = ladders.shifted(20, share)
        assert (captions != np.arange(20)).sum() == 20 * share
        assert sorted(captions) == list(range(20))


def test_more_real_samples_than_there_are_say_so():
    with pytest.raises(
        UserError, match="x has 20 real samples to compare with, and 21 are asked for; lower --num-samples"
    ):
        fake_domain().check(21)


# --------------------------------------------------------------------------------------------------------------- rules


def figure(value: float, half: float) -> dict[str, float]:
    return {"value": value, "half": half}


def test_a_ladder_is_climbed_within_noise_and_left_behind_beyond_it():
    assert rules.climbs([figure(-0.5, 1), figure(2, 1)], figure(1.5, 1))
    assert not rules.climbs([figure(-2, 1), figure(9, 1)], figure(7, 1))  # a rung that is better
    assert not rules.climbs([figure(0.1, 1), figure(0.1, 1)], figure(0.2, 1))  # no rung worse than the noise


def test_a_floor_is_low_where_two_sets_of_intervals_do_not_meet():
    assert rules.floor_is_low(1.0, [2.0, 9.0])
    assert not rules.floor_is_low(1.1, [2.0, 9.0])
    assert not rules.floor_is_low(0.0001, [-1.0, 9.0])


def test_one_pair_of_other_eyes_is_enough():
    assert rules.agrees({"a": 0.2, "b": 0.8})
    assert not rules.agrees({"a": 0.79, "b": None})
    assert not rules.agrees({})


def test_the_samples_that_a_measure_takes():
    assert rules.least_samples(100, (2.0, 4.0), [30, 50]) == 100  # half the step is the interval
    assert rules.least_samples(100, (1.0, 4.0), [30, 50]) == 50
    assert rules.least_samples(100, None, [30, 50]) == 50
    assert rules.least_samples(100, (1.0, -4.0), [30, 50]) is None
    assert rules.least_samples(100, None, [30, None]) is None


def row(name: str, *, shown: bool, least: int | None) -> dict:
    difference = {**figure(1, 0.5), "needed": 25, "half_at": {"100": 0.5, "1000": 0.2}}
    rung = {"strength": 1.0, **figure(1, 1), "step": None}
    return {
        "name": name, "title": name, "kind": "mean", "digits": 2, "scale": 1.0, "num": 100, "num_real": 90, "shown": shown,
        "least_samples": least, "floor": None,
        "ladders": [{"name": "blur", "unit": "pixels", "spearman": 1.0, "passes": shown, "rungs": [rung]}],
        "agreement": {"by": {"b": 0.9}, "passes": shown},
        "order": {
            "values": [{"steps": 50, **figure(1, 1)}], "passes": True,
            "differences": [{"from": 50, "to": 20, **difference}],
        },
        "methods": {
            "values": [{"label": "uncached-50", **figure(1, 1)}],
            "differences": [{"from": "uncached-50", "to": "fora-N5", **difference}],
        },
    }  # fmt: skip


@pytest.fixture
def record() -> dict:
    measured = [("psnr", True, 25), ("emoji-score", False, None), ("fd-lite0", True, 90)]
    return {
        "model": "flux-tiny",
        "settings": {
            "num_samples": 100, "num_real": 90, "num_reference": 400, "num_pairs": 20, "steps": [50, 20],
            "methods": ["fora-N5"], "data": "emoji", "seed": 0,
        },
        "rules": ["a"],
        "rows": [row(name, shown=shown, least=least) for name, shown, least in measured],
        "conditions": {"device": "cpu", "dtype": "float32", "versions": {"torch": "2"}, "date": "2026-01-01"},
    }  # fmt: skip


def test_measures_that_passed_are_shown_where_there_are_samples_enough(tmp_path, record):
    assert misfit(record, VALIDATION) is None
    rules.record_path("flux-tiny", tmp_path).write_text(json.dumps(record))
    headings = {"psnr": "PSNR dB", "score": "score", "fd-lite0": "FD-Lite0", "flicker": "flicker"}
    shown, lines = rules.screened("flux-tiny", headings, 100, tmp_path)
    assert shown == ["psnr", "fd-lite0", "flicker"]
    assert lines == [
        "left out, score: failed on flux-tiny: agreement, ladders (blur)",
        "flicker: not validated on flux-tiny",
    ]
    shown, lines = rules.screened("flux-tiny", {"psnr": "PSNR dB", "fd-lite0": "FD-Lite0"}, 40, tmp_path)
    assert shown == ["psnr"]
    assert lines == ["left out, FD-Lite0: takes 90 samples on flux-tiny, here are 40"]
    assert not rules.is_shown("flux-tiny", "emoji-score", 100, tmp_path)


def test_without_a_record_a_measure_of_an_embedded_model_is_marked_and_of_others_nothing_is_said(tmp_path):
    headings = {"psnr": "PSNR dB", "flicker": "flicker"}
    lines = ["PSNR dB, flicker: not validated on wan-tiny"]
    assert rules.screened("wan-tiny", headings, 5, tmp_path) == (["psnr", "flicker"], lines)
    assert rules.screened("flux-dev", headings, 5, tmp_path) == (["psnr", "flicker"], [])


def test_a_record_of_another_form_says_what_makes_it(tmp_path):
    rules.record_path("wan-tiny", tmp_path).write_text("{}")
    with pytest.raises(UserError, match=r"eval/validate_measures\.py --model wan-tiny"):
        rules.verdict("wan-tiny", "psnr", 5, tmp_path)


def test_records_of_the_repository_are_of_the_form_and_their_verdicts_follow_from_their_figures():
    for model, candidates in CANDIDATES.items():
        path = rules.record_path(model)
        if not path.is_file():
            continue
        record = json.loads(path.read_text())
        assert misfit(record, VALIDATION) is None
        assert [one["name"] for one in record["rows"]] == [one.name for one in candidates]
        for one in record["rows"]:
            floor = one["floor"]
            passed = [floor is None or rules.floor_is_low(floor["half"], [floor["mildest_step"]])]
            passed += [ladder["passes"] for ladder in one["ladders"]]
            passed += [rules.agrees(one["agreement"]["by"]), all(map(rules.is_worse, one["order"]["differences"]))]
            assert one["shown"] == all(passed), (model, one["name"])


def test_psnr_passes_on_every_embedded_model_so_that_its_column_need_not_ask():
    assert all(rules.is_shown(model, "psnr", 2) for model in CANDIDATES)


@pytest.mark.parametrize(("values", "passes"), [((42.0, 32.0, 31.8), True), ((42.0, 39.0, 42.2), False)])
def test_a_distance_to_a_sample_may_level_off_but_must_fall_in_all(values, passes):
    """Every frame for two, four and eight frames: of eight, the last two differ from the sample by nearly as much."""
    draw = np.random.default_rng(0).normal(0, 1, 50)
    noise = draw - draw.mean()
    candidate = replace(next(one for one in CANDIDATES["wan-tiny"] if one.name == "psnr"), sees=("frames repeated",))
    study = object.__new__(Study)
    rungs = dict(zip(("frames repeated 2", "frames repeated 4", "frames repeated 8"), values, strict=True))
    study.estimates = {"psnr": {name: mean_estimate(value + noise) for name, value in rungs.items()}}
    study._worse = lambda _, rung, than: mean_estimate(rungs[than] - rungs[rung] + noise)
    (ladder,) = study._ladders(candidate)
    assert ladder["passes"] == passes


def test_candidates_are_told_apart_and_see_ladders_that_there_are():
    for model, candidates in CANDIDATES.items():
        names = [candidate.name for candidate in candidates]
        assert len({*names}) == len(names), model
        assert all({*candidate.sees} <= ladders.LADDERS.keys() for candidate in candidates)


@pytest.mark.parametrize(
    "found", [rules.Verdict(True), rules.Verdict(False, "failed: order"), rules.Verdict(True, "not validated")]
)
def test_comparisons_have_the_scores_that_passed_alone(monkeypatch, found):
    from evaluation import comparing
    from evaluation.images import Judge

    asked = []

    def verdict(model, measure, num_samples, results):
        asked.append((model, measure, num_samples))
        return found if measure == "score" else rules.Verdict(True)

    monkeypatch.setattr(rules, "verdict", verdict)
    judge = Judge(
        key="score", heading="score", score=lambda images, prompts: images, facts={}, explanation="what it is"
    )
    record = {
        "settings": {"model": "flux-tiny", "width": 32, "height": 32, "num_steps": 50},
        "num_samples": 16,
        "batch_size": 8,
    }
    row = {"psnr": None, "score": mean_interval([50.0, 60.0])}
    table = comparing.compared(record, judge, [row])
    has = ("score" in table.extra, "change" in table.extra, "what it is" in table.explanations)
    assert has == (found.shown,) * 3
    assert any(found.why in line for line in table.explanations) if found.why else asked
    assert asked == [("flux-tiny", measure, 16) for measure in ("ssim", "lite0", "score")]
