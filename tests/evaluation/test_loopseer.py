"""LoopSeer's calibration as a command: what it finds, that a killed one goes on, what it costs, what is refused."""

import json

import numpy as np
import pytest

from cache_dic import UserError, make_cache
from cache_dic.methods.loopseer import Calibration, digest, read_calibration
from evaluation import loopseer
from evaluation.flags import EMBEDDED
from evaluation.loopseer import FORMS, Levels, cache_of, corrections_of, told_worse, with_corrections
from seerkit.command.cli import run_command

CALIBRATION = Calibration(
    model="flux-debug", num_steps=9, full_steps=(0, 3, 6), engine="folded", basis="taylor", max_order=1, warmup_steps=1,
    corrections=((), (), ()),
)  # fmt: skip


@pytest.fixture(scope="module")
def main(load_command):
    return load_command("eval/calibrate_loopseer.py").main


@pytest.fixture
def found(main, checkpoint, tmp_path):
    """`found(*more)`: what a small calibration writes to found.json in the test's folder."""

    def run(*more: object):
        flags = ["--model", "flux-debug", "--ckpt", checkpoint, "--num-steps", 9, "--samples", 4, "--device", "cpu"]
        flags += ["--width", 16, "--height", 16, "--lists", 8, "--out", tmp_path / "found.json", *more]
        if "--list" not in more:
            flags += ["--full-steps", 3]
        main([*map(str, flags)])
        return json.loads((tmp_path / "found.json").read_text())

    return run


def outcome(made: dict) -> dict:
    return {key: value for key, value in made.items() if key not in ("conditions", "command_line")}


def test_a_calibration_is_no_worse_than_what_it_began_with_and_its_file_is_a_cache(found, tmp_path, capsys):
    made = found("--basis", "taylor")
    stages = {stage["stage"]: stage for stage in made["stages"] if "similarity_db" in stage}
    assert stages["even"]["full_steps"] == [0, 3, 6]
    assert stages["moved"]["similarity_db"] == max(
        stages[name]["similarity_db"] for name in ("published", "even", "proposed", "proposed again", "form", "moved")
    )
    assert made["similarity_db"]["fitted"] >= made["similarity_db"]["list"] == stages["moved"]["similarity_db"]
    cache = make_cache("loopseer", calibration=str(tmp_path / "found.json"))
    assert list(cache.plan(9).full_steps) == made["full_steps"]
    assert cache.engine == made["engine"]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert "dB on the calibration samples" in capsys.readouterr().out


KINDS = {
    (*base, form)
    for base in [*[("taylor", order) for order in (1, 2, 3, 4)], ("newton", 2), ("foca", 2)]
    for form in FORMS
}


@pytest.fixture
def tried(monkeypatch):
    """What a search asks for, in order, with what it was worth."""
    asked, quality = {}, loopseer.Search.quality

    def noted(self, one):
        value = quality(self, one)
        asked.setdefault(one, value)
        return value

    monkeypatch.setattr(loopseer.Search, "quality", noted)
    return asked


def test_the_best_list_is_sampled_with_every_basis_in_every_form_and_then_damped(found, tried):
    """The model of a run is of outputs: a basis that it thinks less of may be the best of another form."""
    stages = {stage["stage"]: stage for stage in found("--lists", 100, "--fit", "none")["stages"]}
    for stage in ("even", "proposed again"):
        on_it = {
            kind_of(one) for one in tried if list(one.full_steps) == stages[stage]["full_steps"] and one.damping == 1
        }
        assert on_it == KINDS
    form = stages["form"]["engine"]
    damped = {(*kind_of(one), one.damping) for one in tried if one.damping != 1}
    wanted = {(*kind, damping) for kind in KINDS if kind[-1] == form for damping in (0.85, 0.7, 0.5)}
    assert damped >= wanted


@pytest.mark.parametrize("forms", [FORMS, FORMS[::-1]])
def test_lists_are_sought_in_the_form_that_suits_the_even_one(found, tried, monkeypatch, forms):
    monkeypatch.setattr(loopseer, "FORMS", forms)
    made = found("--lists", 40, "--fit", "none")
    even = [one for one in tried if one.full_steps == (0, 3, 6) and one.damping == 1]
    best = max(even, key=lambda one: tried[one])
    runs = {stage["stage"]: stage["runs"] for stage in made["stages"]}
    sought = list(tried)[len(KINDS) + 1 : runs["proposed"]]
    assert sought
    assert {one.engine for one in sought} == {best.engine}


def kind_of(one: Calibration) -> tuple[str, int, str]:
    return one.basis, one.max_order, one.engine


@pytest.mark.parametrize("killed_at", [0, 1, 5, 12])
def test_a_killed_calibration_goes_on_to_the_outcome_of_one_that_was_not(found, tmp_path, monkeypatch, killed_at):
    flags = ("--basis", "taylor", "--max-order", 1, "--fit", "closed")
    whole = found(*flags)
    (tmp_path / "found.json").unlink()
    save, written = loopseer.save_tensors, []

    def note(path, tensors):
        written.append((path.name, len(tensors["final"])))

    def killed(path, tensors):
        note(path, tensors)
        if len(written) > killed_at:
            raise KeyboardInterrupt
        save(path, tensors)

    monkeypatch.setattr(loopseer, "save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        found(*flags)
    lost = written.pop()
    monkeypatch.setattr(loopseer, "save_tensors", lambda *made: (note(*made), save(*made)))
    assert outcome(found(*flags, "--resume")) == outcome(whole)
    assert len(written) == len({*written}), "each batch of a run once, and the uncached ones"
    assert len({name for name, _ in written}) == whole["runs_sampled"] + 1
    assert lost in written


def test_lists_race(found, monkeypatch):
    """One that is told apart on the first samples is given up; the best and all that is fitted to are sampled whole."""
    monkeypatch.setattr(loopseer, "LEAST_SEEN", 2)
    runs: dict[Calibration, list[loopseer.Sampled | None]] = {}
    sample = loopseer.Sampling.__call__

    def noted(self, one, rival=None):
        runs.setdefault(one, []).append(found := sample(self, one, rival))
        return found

    monkeypatch.setattr(loopseer.Sampling, "__call__", noted)
    made = found("--samples", 6, "--batch-size", 2, "--lists", 20)
    counts = {one: len(of[-1].similarity_db) for one, of in runs.items()}
    assert min(counts.values()) < 6
    best = max((one for one in runs if not any(one.corrections)), key=lambda one: runs[one][-1].mean_db)
    assert counts[best] == 6
    assert runs[best][-1].mean_db == made["similarity_db"]["list"]
    assert list(best.full_steps) == made["full_steps"]


def test_a_run_that_was_given_up_goes_on_where_it_is_asked_for_whole(found, monkeypatch):
    """As where corrections are fitted to it; it is then what it would have been."""
    monkeypatch.setattr(loopseer, "LEAST_SEEN", 2)
    sample, pairs = loopseer.Sampling.__call__, []

    def noted(self, one, rival=None):
        found = sample(self, one, rival)
        if len(found.similarity_db) < 6:
            pairs.append((found, sample(self, one)))
            del self.done[one]  # as a killed search finds it, with all its samples on disk
            assert sample(self, one, rival).similarity_db == found.similarity_db
            self._path(digest(one)).unlink()
            del self.done[one]
            pairs.append((found, sample(self, one)))
        return self.done[one]

    monkeypatch.setattr(loopseer.Sampling, "__call__", noted)
    found("--samples", 6, "--batch-size", 2, "--lists", 20, "--fit", "none")
    assert pairs
    for part, whole in pairs:
        seen = len(part.similarity_db)
        assert len(whole.similarity_db) == 6
        assert whole.similarity_db[:seen] == part.similarity_db
        assert whole.mean_db == pytest.approx(np.mean(whole.similarity_db))
        np.testing.assert_array_equal(whole.moments[:seen], part.moments)


def test_a_run_is_given_up_where_it_is_worse_beyond_what_chance_explains():
    other = np.array([30.0, 31.0, 32.0, 33.0])
    assert told_worse(other - [1.0, 2.0, 1.0, 2.0], other)
    assert not told_worse(other - [4.0, -2.0, 3.0, -3.0], other)
    assert not told_worse(other + 1.0, other)
    assert not told_worse(other[:3] - 5.0, other[:3])


@pytest.mark.parametrize("damping", [1.0, 0.5])
def test_a_damping_is_kept(found, damping, tmp_path):
    made = found("--damping", damping, "--form", "output", "--basis", "newton", "--fit", "none")
    assert made["damping"] == damping
    assert read_calibration(str(tmp_path / "found.json")).damping == damping


def test_a_given_list_is_kept(found):
    made = found("--list", "0,2,5", "--fit", "none", "--form", "hidden")
    assert made["full_steps"] == [0, 2, 5]
    assert made["engine"] == "hidden"
    assert made["corrections"] == [[], [], []]


def test_a_given_list_is_kept_though_it_loses_to_what_every_search_begins_with(found):
    flags = ("--samples", 8, "--batch-size", 4, "--form", "output", "--max-order", 1, "--fit", "none")
    made = found("--list", "0,1,3", *flags)
    even = next(stage for stage in made["stages"] if stage["stage"] == "even")
    assert made["full_steps"] == [0, 1, 3]
    assert made["similarity_db"]["fitted"] < even["similarity_db"]


@pytest.mark.parametrize("steps", ["0,1,2", "0,2,5"])
def test_runs_of_a_given_list_race_with_each_other_alone(found, steps):
    """The even list, which every search begins with, is far better than either."""
    made = found("--list", steps, "--samples", 8, "--batch-size", 4, "--fit", "none")
    assert made["full_steps"] == [*map(int, steps.split(","))]
    assert made["similarity_db"]["fitted"] == made["similarity_db"]["list"]


def test_a_killed_calibration_does_not_go_on_with_another_batch_size(found, tmp_path, monkeypatch):
    """Runs are given up after a batch, so that another size may find another list."""
    flags = ("--samples", 8, "--lists", 8, "--fit", "none", "--batch-size")
    save, saved = loopseer.save_tensors, []

    def killed(path, tensors):
        saved.append(path)
        if len(saved) > 5:
            raise KeyboardInterrupt
        save(path, tensors)

    monkeypatch.setattr(loopseer, "save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        found(*flags, 4)
    monkeypatch.setattr(loopseer, "save_tensors", save)
    with pytest.raises(UserError, match="batch_size"):
        found(*flags, 3, "--resume")


def test_samples_that_a_fit_is_judged_on_tell_it_nothing(found, monkeypatch):
    models, fitted = [], loopseer.Search.fitted

    def noted(self, start):
        self.sample(start)
        rows = np.arange(6) % 2 == 0
        other = [(steps, np.where(rows[: len(of), None, None], of, 3 * of + 1)) for steps, of in self._runs()]
        models.extend(self._model(start, moments, rows).sensitivity for moments in (self._runs(), other))
        return fitted(self, start)

    monkeypatch.setattr(loopseer.Search, "fitted", noted)
    found("--samples", 6, "--batch-size", 2, "--lists", 20)
    for one, other in zip(models[::2], models[1::2], strict=True):
        np.testing.assert_array_equal(one.coherent, other.coherent)
        np.testing.assert_array_equal(one.incoherent, other.incoherent)


@pytest.mark.parametrize("fit", ["teacher", "model"])
def test_corrections_are_kept_only_where_they_help(found, fit):
    made = found("--list", "0,2,5", "--fit", fit, "--form", "output", "--max-order", 1)
    assert made["similarity_db"]["fitted"] >= made["similarity_db"]["list"]


def test_too_few_samples_fit_no_corrections(found, capsys):
    """There would be none that tell of a correction whether it helps others than those it is fitted to."""
    made = found("--list", "0,2,5", "--samples", 3, "--form", "output", "--max-order", 1)
    assert made["corrections"] == [[], [], []]
    assert "(corrections)" not in capsys.readouterr().out


@pytest.mark.parametrize(("gains", "kept"), [([0.5, -0.5, 2.0, -1.6], False), ([0.5, 0.4, 0.6, 0.5], True)])
def test_corrections_that_gain_no_more_than_chance_explains_are_left_out(gains, kept):
    """The means of both gains are above 0, of the second by more than its error."""
    search = object.__new__(loopseer.Search)
    search.stages, moments = [], np.zeros((4, 9, 3))
    better = with_corrections(CALIBRATION, {(0, 0): 0.1})
    runs = {CALIBRATION: [30.0] * 4, better: [30.0 + gain for gain in gains]}
    search.sample = lambda one: loopseer.Sampled(moments, runs[one], float(np.mean(runs[one])))
    assert search._cross_fitted(CALIBRATION, [(0.1,)], lambda rows, ridge: better) == (better if kept else CALIBRATION)


def test_a_correction_that_next_to_nothing_depends_on_is_left_alone(found):
    """Gauss-Newton asks for hundreds there, which no file may hold; the calibration goes on without."""
    made = found(
        "--num-steps", 5, "--list", "0,3", "--samples", 4, "--fit", "closed", "--form", "hidden", "--max-order", 2
    )
    tried = next(stage["tried"] for stage in made["stages"] if stage["stage"] == "corrections")
    assert None in [option["gain_on_unseen_db"] for option in tried]
    assert made["similarity_db"]["fitted"] >= made["similarity_db"]["list"]


@pytest.mark.parametrize("flags", [["--list", "0,1,2,3"], ["--full-steps", "4"]])
def test_weights_that_are_out_of_bounds_on_every_list_are_named(main, checkpoint, tmp_path, flags, monkeypatch):
    monkeypatch.setattr("cache_dic.plan.MAX_WEIGHT", 1.0)
    flags = [
        *flags,
        "--model",
        "flux-debug",
        "--ckpt",
        str(checkpoint),
        "--width",
        "16",
        "--height",
        "16",
        "--device",
        "cpu",
    ]
    flags += ["--num-steps", "12", "--samples", "1", "--basis", "newton", "--max-order", "3"]
    with pytest.raises(UserError, match=r"within ±|out of bounds"):
        main([*flags, "--out", str(tmp_path / "none.json")])


@pytest.mark.parametrize(
    ("flags", "runs"),
    [
        (("--max-order", 1), 2 + 4 + 2 * 3),
        (("--form", "output", "--fit", "none"), 2 + 6 + 6 * 3),
        (("--form", "output", "--fit", "none", "--damping", 1), 2 + 6),
    ],
)
def test_a_given_list_takes_the_runs_that_its_plan_tells(found, capsys, flags, runs):
    made = found("--list", "0,2,5", "--lists", 5, *flags)
    text = capsys.readouterr().out
    assert f" for {runs} runs (lists)" in text
    assert next(stage["runs"] for stage in made["stages"][::-1] if stage["stage"] == "even") == 2
    told = runs + (0 if "none" in flags else 2 * (5 + 2 * 3 * 2 + 1))
    assert runs < made["runs_sampled"] + 1 <= told + 1


def test_corrections_survive_their_file_form():
    given = {(0, 0): 0.5, (3, 1): -0.25, (6, 0): 0.1, (6, 1): 0.2}
    changed = with_corrections(CALIBRATION, given)
    assert changed.corrections == ((0.5,), (-0.25, 0.0), (0.2, 0.1))
    assert {key: value for key, value in corrections_of(changed).items() if value} == given


def test_a_run_before_its_file_is_the_run_of_the_file(tmp_path):
    changed = with_corrections(CALIBRATION, {(3, 1): -0.25, (6, 0): 0.1})
    path = tmp_path / "one.json"
    path.write_text(json.dumps({name: getattr(changed, name) for name in Calibration.__dataclass_fields__}))
    assert read_calibration(str(path)) == changed
    assert cache_of(changed).plan(9).weights == make_cache("loopseer", calibration=str(path)).plan(9).weights


def test_levels_of_a_flow_are_its_times_and_those_of_a_diffusion_lie_between():
    flow = Levels([(0.0, 1.0), (0.5, 0.5)])
    assert flow.scales == [1.0, 1.0, 1.0]
    assert flow.moves.tolist() == [-0.5, -0.5]
    diffusion = Levels([(0.6, 0.8)])
    assert diffusion.scales == [pytest.approx(1.4), 1.0]
    assert diffusion.moves.tolist() == [pytest.approx(-0.8 / 1.4)]


def test_a_plan_tells_what_a_calibration_takes(main, capsys):
    main(
        [
            "--model",
            "flux-dev",
            "--full-steps",
            "10",
            "--samples",
            "4",
            "--lists",
            "20",
            "--fit",
            "closed",
            "--dry-run",
            "--json",
        ]
    )
    plan = json.loads(capsys.readouterr().out)
    assert plan["evaluations_per_sample_at_most"]["uncached"] == 50
    assert plan["evaluations_per_sample_at_most"]["lists"] == 200
    # In two forms: two full steps back, three ridges with two shares on two folds, and the whole.
    assert plan["runs_at_most"]["corrections"] == 2 * (19 + 2 * 6 + 1)
    # Every step and the ends of the uncached runs, the ends of a run twice; a batch of one, twice, or 19 derivatives and what
    # they start from; a sample in float64.
    assert plan["held_bytes_at_most"] == 4 * 2**18 * (4 * (50 + 3) + 2 * 50 + 4 * (19 + 1) + 10 * 50)
    assert plan["disk_bytes_at_most"] == 4 * 4 * 2**18 * (50 + 1 + 20 + 2 * (19 + 2 * 6 + 1))
    main(["--model", "wan-t2v-1.3B", "--full-steps", "10", "--fit", "none", "--dry-run"])
    assert "of latents, no features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--full-steps", "50"], "--full-steps 50 leaves nothing to forecast"),
        (["--list", "0,5,80"], "--list 0,5,80 ends past the last step, 49"),
        (["--list", "0,a"], "--list 0,a is no list of steps"),
        (["--list", "3,5"], "full_steps"),
        (["--full-steps", "8", "--basis", "newton", "--max-order", "4"], "--max-order 4 is not one of newton's"),
        (["--full-steps", "8", "--samples", "3", "--fit", "closed"], "--fit closed takes at least 4 samples"),
        ([], "one of the arguments --full-steps --list is required"),
    ],
)
def test_what_cannot_be_calibrated_is_one_line(main, flags, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_command(main, ["--model", "flux-tiny", *flags])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_run_that_is_not_finite_is_refused(found, monkeypatch):
    monkeypatch.setattr(loopseer, "coordinates", lambda latents: latents.flatten(1).float() * float("nan"))
    with pytest.raises(UserError, match="NaN or infinity"):
        found()


@pytest.mark.slow
@pytest.mark.parametrize("model", EMBEDDED)
def test_every_backbone_is_calibrated_and_samples_with_what_was_found(main, model, tmp_path):
    """Guidance by two calls, by one batch and by the model; solvers of first and of second order; pictures and videos."""
    out = tmp_path / "found.json"
    flags = ["--num-steps", "6", "--full-steps", "3", "--samples", "2", "--lists", "6", "--max-order", "1"]
    main(["--model", model, *flags, "--device", "cpu", "--out", str(out)])
    made = json.loads(out.read_text())
    assert made["full_steps"][0] == 0
    assert made["similarity_db"]["fitted"] >= made["similarity_db"]["list"]
    assert make_cache("loopseer", model=model, calibration=str(out)).plan(6).full_steps == tuple(made["full_steps"])
