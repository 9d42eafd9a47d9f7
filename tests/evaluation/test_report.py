"""The report of all records, as text and in Chromium."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from colours import contrast

from evaluation.report_page import write_report
from evaluation.report_page.records import Stored, read_results
from evaluation.report_page.tables import Kind, Line, Table, kinds, others
from seerkit.io.files import read_text

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = """<script>alert("x")</script></td> & 'q' {{ 1 }}"""
CONDITIONS = {
    "device": "A Processor", "threads": 2, "dtype": "float32", "python": "3.11.7", "versions": {"torch": "2.15.0"},
    "commit": "0123456789ab", "date": "2026-11-28T17:15:42+00:00",
}  # fmt: skip


def compared(name: str, ratio: float, psnr: float | None, **more: Any) -> dict[str, Any]:
    interval = None if psnr is None else {"mean_db": psnr, "low_db": psnr - 1, "high_db": psnr + 1, "num_images": 2,
                                          "num_identical": 0}  # fmt: skip
    return {
        "label": name, "name": name, "series": name.partition("-")[0], "form": None, "groups": [], "num_steps": 10,
        "computed": {"mean": 4, "min": 4, "max": 4}, "flops_ratio": ratio, "kept_bytes": 2**20,
        "latency": {"ratio": ratio}, "psnr": interval, "samples": {"psnr_db": [1.0] * 1000}, **more,
    }  # fmt: skip


@pytest.fixture
def results(tmp_path) -> Path:
    """Records of two backbones: a comparison with a failed and a hostile row, one of no known kind, one that is damaged."""
    rows = [
        compared("uncached", 1, None), compared("fora-4", 3.5, 31.0), compared("fora-6", 5.0, 25.5),
        compared(HOSTILE, 2.0, 28.0, conditions={**CONDITIONS, "device": "Another"}),
        {"label": "toca-3", "name": "toca-3", "series": "toca", "error": "it <b>broke</b>"},
    ]  # fmt: skip
    record = {
        "command": "eval/compare.py", "command_line": "python eval/compare.py --model a-model",
        "settings": {"model": "a-model", "num_steps": 10, "seed": 0}, "num_samples": 2, "batch_size": 1, "scores": {},
        "rows": rows, "conditions": CONDITIONS,
    }  # fmt: skip
    unknown = {"answer": 42.0, "lots": list(range(100)), "rows": [{"label": "one", "value": 1.23456789}]}
    folder = tmp_path / "results"
    for name, value in (("flux/compare-a-model", record), ("wan/something-new", {**unknown, "conditions": CONDITIONS})):
        path = folder / f"{name}.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    (folder / "wan" / "broken.json").write_text("{")
    return folder


@pytest.fixture
def report(results, tmp_path) -> Path:
    out = tmp_path / "out" / "index.html"
    write_report(results, out, [])
    return out


def test_rows_lead_to_the_conditions_of_their_run(results, report):
    stored, unread = read_results(results)
    one = stored[0]
    assert list(unread) == ["wan/broken.json"]
    assert [run.conditions["device"] for run in one.runs] == ["A Processor", "Another"]
    assert one.runs[1].labels == (HOSTILE,)
    text = read_text(report)
    for place in re.findall(r'href="#([^"]+)"', text):
        assert f'id="{place}"' in text, f"nothing is at {place}"
    assert 'href="#record-flux-compare-a-model-2"' in text
    assert "Another" in text


def test_labels_and_errors_are_text(report):
    text = read_text(report)
    assert text.count("<script>") == 1
    assert "it &lt;b&gt;broke&lt;/b&gt;" in text
    assert "&lt;script&gt;alert(&#34;x&#34;)" in text


def test_what_is_not_known_is_listed_and_what_cannot_be_read_is_named(results, report):
    text = read_text(report)
    assert "wan/something-new.json" in text
    assert "<dt>answer</dt><dd>42.0</dd>" in text
    assert "1.2346" in text
    assert "wan/broken.json" in text
    assert "toca-3" in text
    assert "there is no record flux/flops.json" in text
    assert len(text) < 150_000, "values of single samples are left out"


def test_a_record_that_belies_its_name_says_so(results, tmp_path):
    (results / "flux" / "method-costs.json").write_text('{"rows": 3}')
    told = write_report(results, tmp_path / "index.html", [])
    assert told["records"] == 3
    assert "It is not as its name says" in read_text(tmp_path / "index.html")


@pytest.mark.parametrize(
    ("name", "change", "is_named"),
    [
        ("paper/flux", lambda record: record.update(flops=True), True),
        ("paper/flux", lambda record: record["flops"][0].pop("method"), True),
        ("paper/flux", lambda record: record["flops"][1].update(source=[[]]), True),
        ("flux/compare-flux-tiny", lambda record: record["rows"][2]["psnr"].pop("high_db"), True),
        ("flux/method-costs", lambda record: record["rows"][1].pop("forecast_step_s"), True),
        ("flux/features-flux-tiny", lambda record: record["sites"][0]["similarity"]["mean"].pop(), True),
        ("flux/flux-tiny", lambda record: record.update(command_line=0), False),
        ("flux/flux-tiny", lambda record: record.update(command_line="python 'never ends " + 50 * "--flag "), False),
        ("flux/flux-tiny", lambda record: record.update(runs={"a": {"why": [[]]}}), False),
    ],
)
def test_a_damaged_record_spoils_no_other(results, tmp_path, name, change, is_named):
    record = json.loads((ROOT / "results" / f"{name}.json").read_text())
    change(record)
    path = results / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record))
    write_report(results, tmp_path / "index.html", [])
    page = read_text(tmp_path / "index.html")
    assert page.count("It is not as its name says") == 1 + is_named  # wan/something-new is not, either
    assert "fora-6" in page


def test_columns_are_sorted_as_the_numbers_that_cells_begin_with():
    cells = [["a", "3.50x", "–", "x"], ["b", "identical", "-2 %", "1"], ["c", "10/50", "+1.5 ± 2", "2"]]
    lines = [Line(cells=line, backbone="", method="", place="") for line in cells]
    table = Table(id="t", title="", caption="", header=["n", "p", "q", "r"], lines=lines)
    assert table.numeric == [False, True, True, False]
    assert [line.keys[1] for line in lines] == [3.5, float("inf"), 10]
    assert [line.keys[2] for line in lines] == [None, -2, 1.5]


def test_objects_by_name_are_rows_too():
    (table,) = others(
        Stored("flux/gpu-x.json", {"slices": {"a": {"ms": 1.0}, "b": {"ms": 2.0}}, "settings": {"c": {}}})
    )
    assert table.header == ["name", "ms"]
    assert [line.cells for line in table.lines] == [["a", "1.0"], ["b", "2.0"]]


def test_pages_of_runs_are_linked(results, tmp_path):
    run = tmp_path / "runs" / "a b" / "c#d"
    run.mkdir(parents=True)
    (run / "record.json").write_text(json.dumps({"rows": [{}], "settings": {"model": "m"}, "num_samples": 3}))
    (run / "index.html").write_text("<title>page</title>")
    told = write_report(results, tmp_path / "out" / "index.html", [tmp_path / "runs"])
    assert told["pages of runs"] == 1
    assert 'href="../runs/a%20b/c%23d/index.html"' in read_text(tmp_path / "out" / "index.html")


@pytest.mark.slow
def test_the_repositorys_records_make_a_page_that_opens_quickly(load_command, look, tmp_path, capsys):
    load_command("eval/report.py").main(["--out", str(tmp_path), "--runs", str(tmp_path)])
    page = tmp_path / "index.html"
    assert page.stat().st_size < 3_000_000
    opened = look(page)
    assert opened.evaluate("performance.getEntriesByType('navigation')[0].domComplete") < 20_000
    assert opened.locator("#compared tbody tr").count() > 300
    assert opened.locator(".plot").count() == 5


def names(page: Any) -> list[str]:
    return page.locator("#compared tbody tr:visible th").all_inner_texts()


@pytest.mark.slow
def test_tables_are_sorted_by_click_and_by_keyboard(report, look):
    page = look(report)
    before = names(page)
    heading = page.locator("#compared thead th", has_text="PSNR dB")
    assert heading.get_attribute("aria-sort") == "none"
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert names(page) == ["fora-6", HOSTILE, "fora-4", "uncached"], "what has no number comes last"
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert names(page) == ["fora-4", HOSTILE, "fora-6", "uncached"]
    other = page.locator("#compared thead th", has_text="method")
    other.get_by_role("button").press("Space")
    assert heading.get_attribute("aria-sort") == "none"
    for _ in range(2):
        other.get_by_role("button").press("Enter")
    assert names(page) == before


@pytest.mark.slow
def test_the_filter_holds_for_rows_and_points(report, look):
    page = look(report)
    page.get_by_label("Filter rows").fill("FORA 5.0")
    assert names(page) == ["fora-6"]
    assert page.locator(".panel:visible .point:not(.out)").count() == 1
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("combobox", name="Method").select_option("fora")
    assert names(page) == ["fora-4", "fora-6"]
    page.get_by_role("combobox", name="Method").select_option("")
    page.get_by_role("combobox", name="Backbone").select_option("wan")
    assert names(page) == []
    assert page.locator("#compared .none-left").is_visible()
    assert "of" in page.locator(".filter output").inner_text()


@pytest.mark.slow
def test_points_are_reached_by_keys_and_lead_to_their_rows(report, look):
    page = look(report)
    first = page.locator(".panel:visible .point").first
    first.focus()
    page.keyboard.press("ArrowRight")
    assert (
        page.locator(".readout").inner_text().startswith("fora-4: FLOPs ratio 3.50, PSNR to uncached, dB 31.00 (30.00")
    )
    page.keyboard.press("End")
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('tr:target th').textContent") == "fora-6"
    assert page.locator(".panel:visible .point[tabindex='0']").count() == 1


@pytest.mark.slow
def test_it_fits_a_telephone_and_keeps_its_contrast(report, look):
    colours = []
    for scheme in ("light", "dark"):
        page = look(report, color_scheme=scheme, viewport={"width": 400, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 400
        style = "(name) => getComputedStyle(document.querySelector(name[0]))[name[1]].match(/\\d+/g).slice(0, 3).map(Number)"
        paper = page.evaluate(style, ["body", "backgroundColor"])
        for element in ("body", ".note", "nav a", "thead th", "caption", "tbody td a", ".missing span"):
            assert contrast(paper, page.evaluate(style, [element, "color"])) > 4.5, f"WCAG AA: {element} in {scheme}"
        for colour in page.locator(".panel:visible .point").all():
            shown = colour.evaluate("(e) => getComputedStyle(e).color.match(/\\d+/g).slice(0, 3).map(Number)")
            assert contrast(paper, shown) > 3, "WCAG AA of graphics"
        colours.append(paper)
    assert sum(colours[0]) > 700 > 100 > sum(colours[1])


@pytest.mark.slow
def test_landmarks_captions_and_the_way_past_them(report, look):
    page = look(report)
    for role in ("banner", "navigation", "main", "search", "contentinfo"):
        assert page.get_by_role(role).count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator("table.data").count() == page.locator("table.data > caption").count()
    assert page.locator("table.data thead th:not([scope=col])").count() == 0
    assert page.locator("table.data tbody tr:not(:has(th[scope=row]))").count() == 0


def test_its_files_are_installed_with_the_package():
    text = (ROOT / "pyproject.toml").read_text()
    assert '"evaluation.report_page" = ["*.j2", "*.css", "*.js"]' in text
    assert {path.suffix for path in (ROOT / "eval/evaluation/report_page").iterdir() if path.is_file()} == {
        ".py", ".j2", ".css", ".js"
    }  # fmt: skip


def test_measures_have_tables_and_those_that_failed_are_left_out_of_others(results, tmp_path):
    (results / "metrics").mkdir()
    shutil.copy(ROOT / "results" / "metrics" / "flux-tiny.json", results / "metrics")
    shutil.copy(ROOT / "results" / "flux" / "flux-tiny.json", results / "flux")
    write_report(results, tmp_path / "index.html", [])
    stored, _ = read_results(results)
    tables = {table.id: table for kind in kinds(stored) for table in made(kind, stored)}
    assert [line.cells[0] for line in tables["measures"].lines] == [
        "FD-Lite0", "KD-Lite0", "FD-SqueezeNet", "KD-SqueezeNet", "emoji score", "PSNR dB", "SSIM", "Lite0 distance"
    ]  # fmt: skip
    assert {(line.backbone, line.cells[2], line.cells[-1]) for line in tables["measures"].lines[4:6]} == {
        ("flux", "flux-tiny", "no"), ("flux", "flux-tiny", "yes")
    }  # fmt: skip
    assert {len(line.cells) for line in tables["noise"].lines} == {len(tables["noise"].header)}
    assert "score" not in tables["sampled"].header
    assert tables["sampled"].notes == ["left out, score: failed on flux-tiny: floor, agreement, order"]
    text = read_text(tmp_path / "index.html")
    assert all(f'id="{name}"' in text for name in ("measures", "noise", "sampled"))
    assert "left out, score: failed on flux-tiny" in text


def made(kind: Kind, stored: list[Stored]) -> list[Table]:
    fitting = [one for one in stored if kind.takes(one) and one.misfit(kind.form) is None]
    return [table(fitting) for table in kind.tables]
