"""LoopSeer: weights and schedule of a calibration, and files that are none."""

import json
import re
import shutil

import pytest

from cache_dic import UserError, make_cache
from cache_dic.forecast import Newton, Taylor
from cache_dic.methods.adams_bashforth import Multistep
from cache_dic.methods.loopseer import calibration_names, read_calibration

FOUND = {
    "model": "flux-tiny",
    "num_steps": 10,
    "full_steps": [0, 2, 6],
    "engine": "output",
    "basis": "taylor",
    "max_order": 1,
    "warmup_steps": 1,
    "corrections": [[0.25], [], [0.5, -0.5, 0.125]],
}


@pytest.fixture
def file(tmp_path):
    """Writes a calibration with some keys changed, None for those left out."""

    def write(**changes):
        path = tmp_path / "found.json"
        content = {key: value for key, value in (FOUND | changes).items() if value is not None}
        path.write_text(json.dumps(content), encoding="utf-8")
        return str(path)

    return write


def test_weights_are_taylors_and_the_corrections_of_the_gap(file):
    cache = make_cache("loopseer", calibration=file())
    plan = cache.plan(10)
    assert plan.full_steps == (0, 2, 6)
    assert plan.row(1) == {0: 1.25}  # reuse, and what stands after step 0
    assert plan.row(4) == {0: -1.0, 2: 2.0}  # a line through steps 0 and 2, two steps on
    # A line through steps 2 and 6, one step on: -1/4 and 5/4; the correction reaches back to step 0.
    assert plan.row(7) == {0: 0.5, 2: -0.75, 6: 1.375}


def test_without_corrections_it_is_the_basis(file):
    none = [[], [], []]
    for basis, forecaster in (("taylor", Taylor(max_order=2, warmup_steps=1)), ("newton", Newton(max_order=2))):
        found = read_calibration(file(basis=basis, max_order=2, corrections=none))
        for so_far, step in (((0,), 1), ((0, 2), 5), ((0, 2, 6), 9)):
            assert found.weights(so_far, step) == list(forecaster.weights(so_far, step))


def test_focas_basis_is_its_formula_and_has_one_order(file):
    found = read_calibration(file(basis="foca", max_order=2, corrections=[[], [], []]))
    for so_far, step in (((0,), 1), ((0, 2), 5), ((0, 2, 6), 9)):
        assert found.weights(so_far, step) == list(Multistep(formula="foca").weights(so_far, step))
    with pytest.raises(UserError, match="max_order = 1 must be 2 with the basis foca"):
        read_calibration(file(basis="foca"))


def test_a_damped_forecast_is_that_of_a_nearer_step(file):
    """Two steps after steps 2 and 6, damped by a half: the line at one step, -1/4 and 5/4; order 2 goes by its square."""
    none = [[], [], []]
    for basis in ("taylor", "newton"):
        found = read_calibration(file(basis=basis, damping=0.5, corrections=none))
        assert found.weights((0, 2, 6), 8) == [-0.25, 1.25]
    square = [0.0, 2.0**2, 6.0**2]
    found = read_calibration(file(basis="newton", max_order=2, damping=0.5, corrections=none))
    assert sum(w * f for w, f in zip(found.weights((0, 2, 6), 8), square, strict=True)) == pytest.approx(7.0**2)


@pytest.mark.parametrize("damping", [-0.1, 2.5, float("nan"), "0.5", True])
def test_a_damping_that_is_none_is_refused(file, damping):
    with pytest.raises(UserError, match="damping"):
        read_calibration(file(damping=damping))


def test_the_calibration_says_which_form_is_kept_unless_one_is_asked_for(file):
    assert make_cache("loopseer", calibration=file()).engine == "output"
    assert make_cache("loopseer", calibration=file(engine="hidden")).engine == "hidden"
    assert make_cache("loopseer", calibration=file(), engine="folded").engine == "folded"


def test_equal_contents_make_equal_samples_and_other_weights_other_claims(file):
    first = make_cache("loopseer", calibration=file()).plan(10).claim()
    assert make_cache("loopseer", calibration=file()).plan(10).claim() == first
    assert (
        make_cache("loopseer", calibration=file(corrections=[[0.25], [], [0.5, -0.5, 0.126]])).plan(10).claim() != first
    )


def test_labels_and_records_tell_what_is_in_a_file_and_not_where_it_lies(file, tmp_path, make_toy, trajectory):
    label = make_cache("loopseer", calibration=file()).label
    assert re.fullmatch(r"loopseer-calibration=3of10\.[0-9a-f]{8}", label)
    moved = shutil.copy(tmp_path / "found.json", tmp_path / "another.json")
    assert make_cache("loopseer", calibration=str(moved)).label == label
    assert make_cache("loopseer", calibration=file(max_order=2)).label != label
    record = trajectory(make_toy(), make_cache("loopseer", calibration=file()), num_steps=10)[1].record()
    assert record["forecaster"]["calibration"] == record["schedule"]["calibration"] == label.rpartition("=")[2]
    assert str(tmp_path) not in json.dumps(record)
    name = calibration_names()[0]
    assert make_cache("loopseer", calibration=name).label == f"loopseer-calibration={name.replace('-', '+2D')}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"full_steps": None}, "no JSON object with model, num_steps, full_steps"),
        ({"full_steps": [0, 2, 12]}, "full_steps ends with 12"),
        ({"full_steps": [2, 6, 8]}, "full_steps"),
        ({"engine": "pocket"}, "engine"),
        ({"basis": "chebyshev"}, "basis"),
        ({"max_order": 99}, "max_order = 99"),
        ({"corrections": [[0.25], []]}, "a list for each of the 3 full steps"),
        ({"corrections": [[0.25, 0.5], [], []]}, "after full step 1"),
        ({"corrections": [[], ["a"], []]}, "after full step 2"),
        ({"corrections": [[], [], [float("nan")]]}, "after full step 3"),
        ({"corrections": [[], [], [1e9]]}, "within ±100"),
        ({"corrections": [[10**400], [], []]}, "after full step 1"),
        ({"num_steps": "ten"}, "num_steps = 'ten'"),
        ({"warmup_steps": 0}, "warmup_steps = 0"),
        ({"basis": "newton", "warmup_steps": {}}, "warmup_steps = {}"),
        ({"model": {"name": "flux-tiny"}}, "model = {'name': 'flux-tiny'} must be a name"),
    ],
)
def test_what_is_no_calibration_is_named(file, changes, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_calibration(file(**changes))
    assert "found.json" in str(caught.value)
    assert "calibrate_loopseer.py" in str(caught.value)


def test_files_that_are_not_there_or_no_json_are_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.json cannot be read"):
        make_cache("loopseer", calibration=str(tmp_path / "absent.json"))
    (tmp_path / "cut.json").write_text('{"model": ')
    with pytest.raises(UserError, match=r"cut\.json is not JSON"):
        make_cache("loopseer", calibration=str(tmp_path / "cut.json"))
    with pytest.raises(UserError, match="calibration"):
        make_cache("loopseer", calibration="no-such-name")
    with pytest.raises(UserError, match="cannot be read"):
        make_cache("loopseer", calibration="nul\0.json")


def test_no_calibration_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="no calibration for this model; make one with `python eval/calibrate_loopseer"):
        make_cache("loopseer", preset="flux", model="flux-dev")


def test_another_number_of_steps_and_another_schedule_are_refused(file):
    with pytest.raises(UserError, match="for runs of 10 steps, and this one has 12"):
        make_cache("loopseer", calibration=file()).plan(12)
    with pytest.raises(UserError, match="its own list of full steps"):
        make_cache("loopseer", calibration=file(), schedule="fora", interval=3).plan(10)


@pytest.mark.parametrize("name", calibration_names())
def test_shipped_calibrations_have_a_plan(name):
    found = read_calibration(name)
    plan = make_cache("loopseer", model=found.model, calibration=name).plan(found.num_steps)
    assert plan.full_steps == found.full_steps
    assert plan.max_weight < 100


def test_the_first_shipped_calibration_stands_where_none_is_asked_for():
    for model in {read_calibration(name).model for name in calibration_names()}:
        cache = make_cache("loopseer", model=model)
        assert read_calibration(cache.forecaster.calibration).model == model
