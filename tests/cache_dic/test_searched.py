"""Searched schedules: what of a file is read, what is refused, and how caches that follow one are told apart."""

import hashlib
import json
from pathlib import Path

import pytest

from cache_dic import UserError, make_cache
from cache_dic.searched import read_schedule
from cache_dic.settings import json_value

GOOD = {"model": "flux-tiny", "num_steps": 20, "full_steps": [0, 4, 9, 15], "anything": {"else": None}}


@pytest.fixture
def write(tmp_path):
    """`write(value, name="s.json")`: a file of text, or of a value as JSON, below a folder of its own."""

    def to_file(value: object, name: str = "s.json") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return to_file


def test_a_file_is_a_schedule_that_the_record_names_by_content(write):
    path = write(GOOD)
    for given in (path, str(path)):
        cache = make_cache("taylorseer", schedule=given, max_order=2)
        assert cache.plan(20).full_steps == (0, 4, 9, 15)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert cache.label == f"taylorseer-searched-4of20.{digest[:8]}-O2-W3"
    assert json_value(cache.schedule_settings) == {
        "file": {
            "name": "s.json",
            "digest": digest[:16],
            "model": "flux-tiny",
            "num_steps": 20,
            "full_steps": [0, 4, 9, 15],
        }
    }
    assert cache.plan(20).claim() == make_cache("taylorseer", full_steps=[0, 4, 9, 15], max_order=2).plan(20).claim()


def test_two_files_of_one_name_are_told_apart(write):
    one, other = (write({**GOOD, "full_steps": steps}, f"{steps[1]}/s.json") for steps in ([0, 4], [0, 5]))
    assert one.name == other.name
    labels = {make_cache("fora", schedule=path).label for path in (one, other)}
    assert len(labels) == 2
    assert read_schedule(one).digest != read_schedule(other).digest


def test_another_number_of_steps_is_refused(write):
    cache = make_cache("taylorseer", schedule=write(GOOD, "Mine.JSON"))
    with pytest.raises(UserError, match=r"^schedule Mine\.JSON is for runs of 20 steps, and this one has 50; take 20"):
        cache.plan(50)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("\x00", "is not JSON"),
        ("[1, 2]", "is no JSON object"),
        ({key: value for key, value in GOOD.items() if key != "model"}, 'has no "model"'),
        ({key: value for key, value in GOOD.items() if key != "full_steps"}, 'has no "full_steps"'),
        ({**GOOD, "model": 3}, '"model" is 3, where a name is wanted'),
        ({**GOOD, "num_steps": "50"}, "num_steps = '50' must be an integer"),
        ({**GOOD, "num_steps": True}, "num_steps = True must be an integer"),
        ({**GOOD, "num_steps": 10**9}, "must be at most 10000"),
        ({**GOOD, "full_steps": "0,1"}, "must be a list of integers"),
        ({**GOOD, "full_steps": []}, "begin with 0"),
        ({**GOOD, "full_steps": [1, 2]}, "begin with 0"),
        ({**GOOD, "full_steps": [0, 2, 2]}, "must ascend"),
        ({**GOOD, "full_steps": [0, 20]}, "ends with 20, but the run has steps 0 … 19"),
        ({**GOOD, "full_steps": [0, 1.5]}, "must be integers"),
    ],
    ids=str,
)
def test_what_is_no_schedule_is_refused_by_its_name(write, content, message):
    path = write(content)
    with pytest.raises(UserError) as caught:
        make_cache("taylorseer", schedule=path)
    assert str(caught.value).startswith(f"schedule {path}")
    assert message in str(caught.value)
    assert str(caught.value).endswith("make one with `python eval/search_schedule.py`")


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder.json").mkdir()
    for path in (tmp_path / "none.json", tmp_path / "folder.json", "zero\0.json"):
        with pytest.raises(UserError, match=r"^schedule .* is no file; make one with"):
            make_cache("taylorseer", schedule=path)


@pytest.mark.parametrize("setting", ["full_steps", "interval", "file"])
def test_a_file_says_all_of_the_schedule(write, setting):
    with pytest.raises(UserError, match=f"has no setting '{setting}'; it accepts: max_order, warmup_steps"):
        make_cache("taylorseer", schedule=write(GOOD), **{setting: 3})


def test_the_uncached_method_has_no_schedule(write):
    with pytest.raises(UserError, match="'uncached' computes every step"):
        make_cache("uncached", schedule=write(GOOD))
