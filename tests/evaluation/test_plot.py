"""The plots: what they draw, and what they say when a record lacks it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from seerkit.cli import run_command


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
    rows, axis = plot.read_rows(record), FakeAxis()
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
    [('{"rows": []}', "no PSNR: sample with --compare"), ("{}", "is not a record"), ("nonsense", "is not a record")],
)
def test_bad_records_are_named(plot, tmp_path, capsys, content, message):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(SystemExit) as stop:
        run_command(plot.main, ["pareto", str(path), "--out", str(tmp_path / "out.png")])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
