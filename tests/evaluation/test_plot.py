"""The plots: what they draw, and what they say when a record lacks it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from seerkit.command.cli import run_command


@pytest.fixture(scope="module")
def plot(load_command):
    return load_command("eval/plot.py")


@pytest.fixture
def record(tmp_path) -> Path:
    def row(method: str, interval: int, psnr: float | None) -> dict:
        steps = [{"step": s, "kind": "full", "forecast_error": 0.1 / (s + 1)} for s in range(1, 9, interval)]
        quality = {"mean_db": psnr} if psnr else None
        return {
            "label": f"{method}-{interval}",
            "method": method,
            "flops_ratio": interval,
            "psnr": quality,
            "steps": steps,
        }

    rows = [row("uncached", 1, None), row("taylorseer", 3, 30.0), row("taylorseer", 4, 27.0), row("fora", 3, 25.0)]
    path = tmp_path / "record.json"
    path.write_text(json.dumps({"rows": rows}))
    return path


class FakeAxis:
    def __init__(self) -> None:
        self.lines = {}

    def plot(self, x, y, *, marker, label) -> None:
        self.lines[label] = list(zip(x, y, strict=True))

    def set(self, **labels) -> None:
        self.labels = labels


def test_lines_are_the_records_figures(plot, record):
    rows, axis = plot.read_rows(record, "pareto"), FakeAxis()
    plot.plot_pareto(axis, rows)
    assert axis.lines == {"taylorseer": [(3, 30.0), (4, 27.0)], "fora": [(3, 25.0)]}
    axis = FakeAxis()
    plot.plot_telemetry(axis, rows)
    assert axis.lines["taylorseer-4"] == [(1, 0.05), (5, pytest.approx(0.1 / 6))]


@pytest.mark.parametrize("kind", ["pareto", "telemetry"])
def test_plots_are_written(plot, record, tmp_path, capsys, kind):
    with pytest.raises(SystemExit) as stop:
        run_command(plot.main, [kind, str(record), "--out", str(tmp_path / "out.png")])
    assert stop.value.code == 0
    with Image.open(tmp_path / "out.png") as image:
        assert image.width > 300


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"rows": []}', "rows is [] instead of a list that is not empty"),
        ("{}", 'it lacks "rows"'),
        ("[]", "it is [] instead of an object"),
        ("nonsense", "is not JSON"),
        ("[" * 100_000, "is nested too deeply"),
        ('{"rows": ' + "[" * 500 + "]" * 500 + "}", "bad.json"),
        ('{"rows": [{"label": "a", "method": "a", "flops_ratio": NaN}]}', "holds what JSON does not have"),
        ('{"rows": [{"label": "a", "method": "a", "flops_ratio": 1e999}]}', "holds what JSON does not have"),
        (
            '{"rows": [{"label": "a", "method": "a", "flops_ratio": 0}]}',
            "rows[0].flops_ratio is 0 instead of a number above",
        ),
        ('{"rows": [{"label": "a", "method": "a"}]}', 'rows[0] lacks "flops_ratio"'),
        ('{"rows": [{"label": "a", "method": 3, "flops_ratio": 1}]}', "rows[0].method is 3 instead of a text"),
        ('{"rows": [{"label": "a", "method": "b", "flops_ratio": 1}]}', "no PSNR: sample with --compare"),
        ('{"rows": [{"label": "\\ud800", "method": "b", "flops_ratio": 1}]}', "holds what JSON does not have"),
    ],
)
def test_bad_records_are_named(plot, tmp_path, capsys, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        run_command(plot.main, ["pareto", str(path), "--out", str(tmp_path / "out.png")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_identical_samples_are_named_and_not_drawn(plot):
    def row(label: str, mean: float | None) -> dict:
        psnr = {"mean_db": mean, "num_images": 2, "num_identical": 0 if mean else 2}
        return {"label": label, "method": label[:1], "flops_ratio": 2.0, "psnr": psnr}

    with pytest.raises(ValueError, match="samples of a-1, b-1 are identical"):
        plot.plot_pareto(FakeAxis(), [row("a-1", None), row("b-1", None)])
    axis = FakeAxis()
    plot.plot_pareto(axis, [row("a-1", None), row("b$1$", 30.0)])
    assert axis.lines == {"b": [(2.0, 30.0)]}
    assert axis.labels["title"] == "not drawn, as identical to the uncached samples: a-1"


def test_a_row_without_steps_has_no_telemetry(plot, record):
    rows = [{"label": "resumed"}, {"label": "_a$", "steps": [{"step": 3, "forecast_error": 0.5}, {"step": 4}]}]
    axis = FakeAxis()
    plot.plot_telemetry(axis, rows)
    assert axis.lines == {"\u200b_a\\$": [(3, 0.5)]}


@pytest.mark.parametrize("name", ["OUT.PNG", "out.Svg", "a $x^ b.pdf"])
def test_a_suffix_in_any_case(plot, record, tmp_path, name):
    plot.main(["pareto", str(record), "--out", str(tmp_path / name)])
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("out", ["folder.png", "record.json/out.png", "x" * 300 + ".png", "/dev/full"])
def test_an_output_that_cannot_be_written(plot, record, tmp_path, capsys, out, monkeypatch):
    monkeypatch.setattr(plot, "SUFFIXES", (*plot.SUFFIXES, ""))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit) as stop:
        run_command(plot.main, ["pareto", str(record), "--out", str(tmp_path / out)])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
