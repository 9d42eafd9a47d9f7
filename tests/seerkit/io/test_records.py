"""Records: what a command needs of them, and conditions wherever they are taken."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from seerkit.io import records
from seerkit.io.records import conditions, misfit, positive, read_record
from seerkit.io.tables import psnr_cell

FORM = {"rows": [{"label": str, "psnr": (None, {"mean_db": (None, float)}), "ratio": positive, "kept": {str: int}}]}
ROW = {"label": "a", "ratio": 2, "kept": {"folded": 3}}


def without(key: str) -> dict:
    return {name: value for name, value in ROW.items() if name != key}


@pytest.mark.parametrize(
    "row", [ROW, {**ROW, "psnr": None, "more": [None]}, {**ROW, "psnr": {"mean_db": 3.5}, "kept": {}}]
)
def test_what_fits(row):
    assert misfit({"rows": [ROW, row], "command": "x"}, FORM) is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ([], "it is [] instead of an object"),
        ({}, 'it lacks "rows"'),
        ({"rows": []}, "rows is [] instead of a list that is not empty"),
        ({"rows": {}}, "rows is {} instead of a list that is not empty"),
        ({"rows": [ROW, without("label")]}, 'rows[1] lacks "label"'),
        ({"rows": [{**ROW, "label": 3}]}, "rows[0].label is 3 instead of a text"),
        ({"rows": [{**ROW, "ratio": True}]}, "rows[0].ratio is true instead of a number above 0"),
        ({"rows": [{**ROW, "ratio": -1}]}, "rows[0].ratio is -1 instead of a number above 0"),
        (
            {"rows": [{**ROW, "ratio": 10**400}]},
            "rows[0].ratio is 1000000000000000000000000000000000000000… instead of",
        ),
        ({"rows": [{**ROW, "psnr": {"mean_db": "x"}}]}, 'rows[0].psnr.mean_db is "x" instead of a number'),
        ({"rows": [{**ROW, "kept": {"folded": 1.5}}]}, "rows[0].kept.folded is 1.5 instead of a whole number"),
    ],
)
def test_what_does_not_fit_is_named(record, message):
    assert misfit(record, FORM).startswith(message)


@pytest.mark.parametrize("text", ["{", "[" * 10**5, "NaN", "1e999", '"\\udc00"', "1" * 5000])
def test_what_is_no_record_at_all(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"record\.json"):
        read_record(path, list, "a command")
    with pytest.raises(ValueError, match="cannot be read"):
        read_record(tmp_path, list, "a command")


def test_records_of_any_editor(tmp_path):
    path = tmp_path / "record.json"
    for content in (b'\xef\xbb\xbf{"rows":\r\n[]}', '{"rows": []}'.encode("utf-16")):
        path.write_bytes(content)
        assert read_record(path, {"rows": list}, "a command") == {"rows": []}


def test_conditions_without_git_and_proc(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    monkeypatch.setattr(Path, "read_text", missing)
    made = conditions(torch.device("cpu"), torch.float32)
    assert made["commit"] is None
    assert made["device"]
    json.dumps(made, allow_nan=False)


@pytest.mark.parametrize("failure", [subprocess.TimeoutExpired("git", 10), subprocess.CalledProcessError(128, "git")])
def test_a_checkout_that_git_does_not_describe(monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    assert records._commit() is None


def test_a_processor_s_name_in_any_encoding(monkeypatch):
    read = Path.read_text
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, **how: read(path, **how) if how.get("encoding") else path.read_bytes().decode("ascii"),
    )
    assert records.device_name(torch.device("cpu"))


def test_identical_is_not_the_dash_of_what_was_not_compared():
    assert psnr_cell(None) == "–"
    assert psnr_cell({"mean_db": None, "num_images": 4, "num_identical": 4}) == "identical"
    assert psnr_cell({"mean_db": 31.256, "num_images": 4, "num_identical": 3}) == "31.26"
    assert psnr_cell({"mean_db": 31.256}) == "31.26"
    assert psnr_cell({"mean_db": 31.256, "low_db": 30.256, "high_db": 32.256}) == "31.26 ± 1.00"
