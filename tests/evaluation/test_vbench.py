"""Prompt lists as VBench has them: repeats, names in another case, lengthened prompts, more samples for flickering."""

import json

import pytest

from evaluation import vbench
from evaluation.vbench import Entry, check_folder, expand, make_entries
from seerkit.io.files import written_whole
from seerkit.text.prompts import Listed, read_list

HOKUSAI = "A beautiful coastal beach in spring, waves lapping on sand by Hokusai, in the style of Ukiyo"
ENTRIES = [  # what the public list has: repeats, case, dots, another alphabet, flickering
    {"prompt_en": HOKUSAI, "dimension": ["appearance_style"], "auxiliary_info": {}},
    {"prompt_en": "a fantasy landscape", "dimension": ["scene"]},
    {"prompt_en": "In a still frame, a stop sign", "dimension": ["temporal_flickering"]},
    {"prompt_en": HOKUSAI, "dimension": ["overall_consistency", "temporal_flickering"]},
    {"prompt_en": "A fantasy landscape", "dimension": ["overall_consistency"]},
    {"prompt_en": "A 3.5D model of façades.", "dimension": ["color"]},
]


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "VBench_full_info.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8")
    return read_list(path)


def test_a_prompt_that_stands_twice_is_sampled_once(listed):
    entries = make_entries(listed, num_samples=2)
    names = [
        HOKUSAI,
        "a fantasy landscape",
        "In a still frame, a stop sign",
        "A fantasy landscape",
        ENTRIES[-1]["prompt_en"],
    ]
    assert entries == [Entry(name, name, 2) for name in names]
    samples = expand(entries)
    assert samples[:2] == [(HOKUSAI, f"{HOKUSAI}-0"), (HOKUSAI, f"{HOKUSAI}-1")]
    assert len({stem for _, stem in samples}) == len(samples) == 10


def test_flickering_takes_more_where_that_is_asked_for(listed):
    counts = [entry.num_samples for entry in make_entries(listed, num_samples=5, flickering_samples=25)]
    assert counts == [25, 5, 25, 5, 5], "the dimensions of a repeat count, too"
    with pytest.raises(ValueError, match="no prompt of the list is for it"):
        make_entries([Listed("a cat")], num_samples=5, flickering_samples=25)


def test_lengthened_prompts_are_called_after_the_short_ones(listed, tmp_path, caplog):
    path = tmp_path / "all_dimension_longer.txt"
    path.write_text("".join(f"{'long ' * 200}{number}\n" for number in range(len(ENTRIES))), encoding="utf-8")
    entries = make_entries(read_list(path), names=listed, num_samples=1, flickering_samples=2)
    assert [entry.name for entry in entries][:2] == [HOKUSAI, "a fantasy landscape"]
    assert [entry.prompt.split()[-1] for entry in entries] == ["0", "1", "2", "4", "5"], "the first of a name"
    assert [entry.num_samples for entry in entries] == [2, 1, 2, 1, 1]
    assert (
        f"1 names stand in the list again with another prompt, and the first prompt of each is sampled: '{HOKUSAI}'"
        in (caplog.text)
    )
    with pytest.raises(ValueError, match="5 prompts and 6 names do not belong together"):
        make_entries(read_list(path)[1:], names=listed, num_samples=1)


def test_an_entry_s_own_name():
    (entry,) = make_entries([Listed("x" * 1000, "short")], num_samples=1)
    assert expand([entry]) == [("x" * 1000, "short-0")]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a/b", "holds a slash"),
        ("..", "begins with '.'"),
        (".hidden", "begins with '.'"),
        ("-rf", "begins with '-'"),
        ("two\nlines", "holds a line break"),
        ("a\u2028b", "holds a line break"),
        ("x" * 238, "with its number it has 240 bytes, and 239 are possible"),
        ("ç" * 120, "with its number it has 242 bytes"),
    ],
)
def test_names_that_no_file_can_have(name, reason):
    with pytest.raises(ValueError, match="give its name apart") as caught:
        make_entries([Listed("fine"), Listed(name)], num_samples=1)
    assert reason in str(caught.value)
    assert repr(name[:60])[1:-1] in str(caught.value)
    make_entries([Listed(name, "fine")], num_samples=1)


def test_the_longest_name_is_one_of_a_file(tmp_path):
    (entry,) = make_entries([Listed("x" * 236)], num_samples=25)
    (*_, (_, stem)) = expand([entry])
    with written_whole(tmp_path / f"{stem}.frames.avi") as temporary:
        temporary.write_bytes(b"frames")
    assert [path.stem for path in tmp_path.iterdir()] == [f"{stem}.frames"]


def test_a_file_system_that_does_not_tell_case_apart(listed, tmp_path, monkeypatch):
    names = [entry.name for entry in make_entries(listed, num_samples=1)]
    check_folder(names, tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "VBench_full_info.json"]
    monkeypatch.setattr(vbench, "_ignores_case", lambda folder: True)
    with pytest.raises(ValueError, match="'a fantasy landscape' and 'A fantasy landscape' would be one file"):
        check_folder(names, tmp_path)
    check_folder(names[:2], tmp_path)
