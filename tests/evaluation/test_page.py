"""The page of a run, as text and in Chromium."""

import io
import json
import shlex
import subprocess
import tomllib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from colours import contrast
from PIL import Image

from evaluation import page as page_module
from evaluation.page import LARGE, SMALL, Shown, broken, flat, in_words, readable, write_page
from seerkit.io.files import read_text
from seerkit.io.images import image_path
from seerkit.io.media import enlarged, save_gif, save_mp4, save_png
from seerkit.io.report import Comparison

ROOT = Path(__file__).resolve().parents[2]
LABELS = ["uncached", "taylorseer-N4-W3-O2", "fora-N4-W3"]
GREY = dict(zip(LABELS, (200, 190, 100), strict=True))  # of what each cache makes
HOSTILE = """<script>alert("x")</script> </article> & 'q' "r" {{ 1 }} 赤いリンゴ, تفاحة"""
CONDITIONS = {
    "device": "A Processor", "threads": 2, "dtype": "float32", "python": "3.11.7", "versions": {"torch": "2.15.0"},
    "commit": "0123456789ab", "date": "2026-11-28T17:15:42+00:00",
}  # fmt: skip


def row(label: str, **more: Any) -> dict[str, Any]:
    full = list(range(10)) if label == "uncached" else [0, 1, 2, 6]
    return {
        "label": label, "full_steps": full, "num_steps": 10, "flops_T": 1.0, "flops_ratio": 2.5, "kept_bytes": 2**20,
        "latency": None, "psnr": None, **more,
    }  # fmt: skip


class Run:
    """A run that nothing was sampled for, in a folder."""

    def __init__(self, folder: Path, *, rows: Sequence[dict[str, Any]] | None = None) -> None:
        self.path, self.rows = folder / "index.html", rows or [row(label) for label in LABELS]
        self.samples: list[tuple[str, list[Shown]]] = []

    def add_images(self, prompt: str, side: int = 8) -> None:
        made = []
        for label, grey in GREY.items():
            file = image_path(self.path.parent / label, len(self.samples))
            save_png(file, np.full((side, side, 3), grey, np.uint8))
            made.append(Shown(label=label, file=file, width=side, height=side))
        self.samples.append((prompt, made))

    def add_videos(self, prompt: str, name: str, num_frames: int = 8) -> None:
        """Videos that get brighter, with a GIF."""
        made, out = [], self.path.parent
        for label, grey in GREY.items():
            ramp = np.linspace(0, grey, num_frames, dtype=np.uint8)[:, None, None, None]
            frames = enlarged(np.broadcast_to(ramp, (num_frames, 8, 8, 3)))
            file, gif = out / label / f"{name}.mp4", out / "gif" / label / f"{name}.gif"
            save_mp4(file, frames, 4)
            save_gif(gif, frames, 4)
            made.append(Shown(label=label, file=file, width=128, height=128, frames=num_frames, gif=gif))
        self.samples.append((prompt, made))

    def write(self, **more: Any) -> Path:
        record = {
            "command": "fake.py", "command_line": "python fake.py --compare", "settings": {"model": "fake", "seed": 0},
            "num_samples": len(self.samples), "conditions": CONDITIONS,
        }  # fmt: skip
        comparison = Comparison(
            title="fake",
            facts="10 steps",
            rows=self.rows,
            extra={"score": ["1.0"] * len(self.rows)},
            explanations=["score: 0"],
        )
        write_page(self.path, record | more, comparison, self.samples)
        return self.path


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path)


class Parsed(HTMLParser):
    """What a page holds: addresses, and by tag the texts and attributes of elements."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.open, self.texts, self.tags = path, [], {}, []
        self.feed(read_text(path))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.texts.setdefault(tag, []).append("")
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "every element is closed"

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data

    def attributes(self, name: str) -> list[str]:
        return [values[name] for _, values in self.tags if name in values]

    @property
    def files(self) -> set[Path]:
        """Those beside the page that it names."""
        names = ("src", "href", "data-src", "data-url", "data-still")
        addresses = {address for name in names for address in self.attributes(name) if not address.startswith("#")}
        assert not any(urlsplit(address).scheme or urlsplit(address).netloc for address in addresses)
        return {self.path.parent / unquote(urlsplit(address).path) for address in addresses}


# ------------------------------------------------------------------------------------------------------------ as text


def test_what_a_page_names_lies_beside_it(run):
    run.add_images("a cat")
    run.add_images("a dog")
    named = Parsed(run.write()).files
    assert named == {image_path(run.path.parent / label, index) for label in LABELS for index in range(2)}
    assert all(path.is_file() for path in named)
    assert not (run.path.parent / "page").exists(), "small images need no smaller copies"


def test_names_of_files_are_encoded(run, need):
    need("imageio_ffmpeg")
    run.add_videos("a cat", "a cat? 100%25 #1 é: \"x\"&'y'-0")
    named = Parsed(run.write()).files
    assert {path.suffix for path in named} == {".mp4", ".gif"}
    assert all(path.is_file() for path in named)


def test_prompts_are_text(run):
    run.add_images(HOSTILE)
    page = Parsed(run.write(command_line=shlex.join(["python", "fake.py", HOSTILE])))
    assert page.texts["bdi"] == [HOSTILE]
    assert f"{LABELS[1]}: {HOSTILE}" in page.attributes("alt")
    assert len(page.texts["script"]) == 1
    assert shlex.split(page.texts["code"][0]) == ["python", "fake.py", HOSTILE]


def test_the_table_is_that_of_the_terminal(run):
    run.rows = [row("uncached"), row(LABELS[1], psnr={"mean_db": 21.5, "num_images": 1, "num_identical": 0})]
    run.add_images("a cat")
    page = Parsed(run.write())
    comparison = Comparison(title="", facts="", rows=run.rows, extra={"score": ["1.0"] * 2}, explanations=[])
    header = comparison.header
    assert page.texts["th"] == [*header, "uncached", LABELS[1]]
    assert page.texts["td"] == [cell for line in comparison.cells for cell in line[1:]]
    assert "21.50" in page.texts["td"]
    assert "score: 0." in page.texts["p"]
    assert page.texts["dt"][: len(header) - 1] == header[:-1], "and what its columns mean"


def test_strips_are_the_full_steps_of_the_rows(run):
    run.add_images("a cat")
    page = Parsed(run.write())
    cells = [values["class"] for tag, values in page.tags if tag == "i"]
    assert cells[:3] == ["full", "partial", "forecast"], "the legend"
    assert cells[3:13] == ["full"] * 10
    assert cells[13:23] == ["full" if step in (0, 1, 2, 6) else "forecast" for step in range(10)]
    assert f"{LABELS[1]}: of 10 steps, counted from 0, full are 0, 1, 2, 6" in page.attributes("aria-label")
    assert "What was computed in steps that are not full" not in page.texts["summary"]


SHARES = [[0.25, 0.5, 0.25], [0.25, 1.0, 0.375]]


def selective(label: str, **more: Any) -> dict[str, Any]:
    """A row of a method that computes two tokens at three steps, and nothing at another."""
    steps: list[dict[str, Any]] = [{"step": step, "kind": "full"} for step in (0, 1, 2, 6)]
    steps += [{"step": step, "kind": "partial", "computed": {"attn": "nothing", "mlp": [2, 3]}} for step in (3, 4, 7)]
    steps += [{"step": step, "kind": "forecast", "blocks": [[0, 2, "hidden"]]} for step in (5, 8, 9)]
    tokens = {"grid": [2, 3], "share": SHARES}
    return row(label, partial_steps=[3, 4, 7], steps=steps, tokens_computed=tokens, **more)


def test_partial_steps_have_a_mark_and_say_what_they_computed(run):
    run.rows = [row("uncached"), selective(LABELS[1])]
    run.add_images("a cat")
    page = Parsed(run.write())
    cells = [(values["class"], values["title"]) for tag, values in page.tags if tag == "i" and "title" in values]
    kinds = ["full"] * 3 + ["partial"] * 2 + ["forecast", "full", "partial", "forecast", "forecast"]
    assert [kind for kind, _ in cells[10:]] == kinds
    part, left_out = (
        "mlp: 2 to 3 tokens; reused: attn",
        "blocks 0–1 left out: the tokens after them are those of the step before",
    )
    assert cells[10:][3][1] == f"step 3: {part}"
    assert cells[10:][5][1] == f"step 5: {left_out}"
    assert cells[10][1] == "step 0: full"
    assert f"{LABELS[1]}: of 10 steps, counted from 0, full are 0, 1, 2, 6; partial are 3, 4, 7" in page.attributes(
        "aria-label"
    )
    assert page.texts["dt"][-4:-2] == ["steps 3–4, 7", "steps 5, 8–9"]
    assert page.texts["dd"][-4:-2] == [part, left_out]
    assert "4/10, 3 partial" in page.texts["td"]


def test_what_a_comparison_keeps_of_partial_steps_is_told_as_it_is(run):
    run.rows = [row("uncached"), row(LABELS[1], partial_steps=[3], computed_in_part=[["step 3", "mlp: 2 tokens"]])]
    run.add_images("a cat")
    page = Parsed(run.write())
    assert (page.texts["dt"][-3], page.texts["dd"][-3]) == ("step 3", "mlp: 2 tokens")


def test_a_map_of_tokens_lies_beside_the_samples(run):
    run.rows = [row("uncached"), selective(LABELS[1])]
    run.add_images("a cat")
    page = Parsed(run.write())
    path = run.path.parent / "tokens" / f"{LABELS[1]}.png"
    assert path in page.files
    assert f"{LABELS[1]}: 2 × 3 tokens, computed 25.0 % to 100.0 % of the times" in page.attributes("alt")
    (size,) = (
        [values["width"], values["height"]] for _, values in page.tags if values.get("src", "").startswith("tokens/")
    )
    with Image.open(path) as image:
        assert [str(side) for side in image.size] == size
    assert not list((run.path.parent / "tokens").glob("uncached*"))
    assert "full steps count for every token" in " ".join(page.texts["p"])
    assert "A site is a place in a block" in " ".join(page.texts["p"])


@pytest.mark.parametrize(
    "tokens",
    [{"grid": [2, 3], "share": SHARES[:1]}, {"grid": [6], "share": [[0.5] * 6]}, {"grid": [0, 3], "share": SHARES}, 3],
)
def test_a_row_whose_tokens_fit_no_grid_is_left_out(tokens):
    assert readable([selective("a"), selective("b") | {"tokens_computed": tokens}]) == [selective("a")]


def test_rows_of_earlier_runs_are_told_apart(run):
    earlier = {"num_samples": 1, "conditions": CONDITIONS | {"threads": 1}, "command_line": "python fake.py --seed 0"}
    run.rows = [row("uncached"), *(row(label, **earlier) for label in LABELS[1:])]
    run.add_images("a cat")
    run.add_images("a dog")
    page = Parsed(run.write())
    assert f"uncached, 2 samples. {in_words(CONDITIONS)}" in page.texts["p"]
    assert f"{LABELS[1]}, {LABELS[2]}, 1 sample. {in_words(earlier['conditions'])}" in page.texts["p"]
    assert page.texts["code"] == ["python fake.py --compare", "python fake.py --seed 0"]


def test_rows_that_no_table_can_be_made_of_are_left_out():
    whole = [row("uncached"), row("fora", latency={"median_s": 1.0, "min_s": 1.0, "max_s": 1.0, "ratio": None})]
    broken_rows = [
        row("a", full_steps=[]),
        {"label": "b"},
        row("c", latency={"median_s": 1.0}),
        row("d", conditions={}),
    ]
    assert readable([*whole, *broken_rows]) == whole


def test_conditions_in_words():
    assert in_words(CONDITIONS) == (
        "Measured on A Processor, 2 threads, in float32, with torch 2.15.0 and Python 3.11.7, on 2026-11-28 17:15 UTC, "
        "at commit 0123456789ab."
    )
    changed = in_words(CONDITIONS | {"threads": 1, "commit": "0123456789ab+changes"})
    assert "A Processor, 1 thread, in" in changed
    assert changed.endswith("at commit 0123456789ab with uncommitted changes.")
    elsewhere = in_words(CONDITIONS | {"threads": None, "commit": None})
    assert "A Processor, in float32" in elsewhere
    assert elsewhere.endswith("outside a git checkout.")


def test_a_long_command_is_broken_at_its_options():
    short = "python fake.py --compare"
    assert broken(short) == short
    words = ["python", "fake.py", "--prompt", "a 'cat' --on $HOME", "b\nc", "--seed", "-1", "--output-dir", "x" * 80]
    shown = broken(shlex.join(words))
    assert [line.split()[0] for line in shown.splitlines() if line.startswith("  --")] == [
        "--prompt",
        "--seed",
        "--output-dir",
    ]
    told = subprocess.run(["sh", "-c", f"printf '%s\\0' {shown}"], capture_output=True, text=True, check=True).stdout
    assert told.split("\0")[:-1] == words, "a shell takes it as it was"


def test_settings_are_told_without_prompts():
    settings = {"model": "m", "prompts": ["a"], "ckpt": None, "compile": False, "config": {"dim": 8, "axes": [1, 2]}}
    assert flat(settings) == [
        ("model", "m"), ("ckpt", "not set"), ("compile", "no"), ("config.dim", "8"), ("config.axes", "[1, 2]")
    ]  # fmt: skip


def test_large_images_have_smaller_copies_in_the_list(run):
    run.add_images("a cat", side=LARGE + 8)
    page = Parsed(run.write())
    copies = [run.path.parent / "page" / label / "000000.jpg" for label in LABELS]
    assert set(copies) <= page.files
    with Image.open(copies[0]) as image:
        assert image.size == (SMALL, SMALL)
    sampled = run.samples[0][1][0].file
    made = copies[0].stat().st_mtime_ns
    run.write()
    assert copies[0].stat().st_mtime_ns == made
    save_png(sampled, np.zeros((LARGE + 8, LARGE + 8, 3), np.uint8))
    run.write()
    with Image.open(copies[0]) as image:
        assert image.getpixel((5, 5)) == (0, 0, 0), "made anew with its image"
    sampled.write_bytes(b"half an image")
    assert sampled not in Parsed(run.write()).files


def test_a_page_shows_so_many_samples_and_says_so(run, monkeypatch):
    monkeypatch.setattr(page_module, "MOST_SHOWN", 3)
    run.add_images("a cat")
    run.samples *= 5
    page = Parsed(run.write())
    assert len(page.texts["article"]) == 3
    assert "The first 3 of 5; the folder holds them all." in page.texts["p"]


def test_its_files_are_installed_with_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["evaluation.page"]
    beside = [path for path in Path(page_module.__file__).parent.iterdir() if path.is_file() and path.suffix != ".py"]
    assert len(beside) == 4
    assert all(any(path.match(pattern) for pattern in data) for path in beside)


# -------------------------------------------------------------------------------------------------------- in Chromium


def pixel(page: Any, across: float) -> tuple[int, int, int]:
    """Colour of the stage, at a share of its width."""
    page.wait_for_function("[...document.querySelectorAll('.stage img')].every((image) => image.complete)")
    with Image.open(io.BytesIO(page.locator(".stage").screenshot())) as image:
        return image.convert("RGB").getpixel((int(image.width * across), image.height // 3))


def grey(label: str) -> tuple[int, int, int]:
    return (GREY[label],) * 3


def in_step(page: Any) -> list[float]:
    return page.evaluate("[...document.querySelectorAll('video')].map((video) => video.currentTime)")


@pytest.mark.slow
def test_images_decode_and_labels_are_whole(run, look):
    for index in range(3):
        run.add_images(f"prompt {index}")
    run.rows = [row("uncached"), selective(LABELS[1]), selective(LABELS[2])]
    for width in (1100, 400):
        page = look(run.write(), viewport={"width": width, "height": 800})
        for image in page.locator("img").all():
            image.scroll_into_view_if_needed()
        page.wait_for_function("[...document.images].every((image) => image.naturalWidth > 0)")
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
        assert page.locator(".sample").first.locator("figcaption").all_inner_texts() == LABELS
        for label in page.locator("figcaption, .strips .label").all():
            assert label.evaluate("(element) => element.scrollWidth <= element.clientWidth || !element.clientWidth")


@pytest.mark.slow
def test_the_line_moves_by_keys_and_by_mouse(run, look):
    run.add_images("a cat")
    page = look(run.write())
    line = page.get_by_role("slider", name=f"Line between {LABELS[0]} and {LABELS[1]}")
    assert (pixel(page, 0.25), pixel(page, 0.75)) == (grey("uncached"), grey(LABELS[1]))
    line.focus()
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert line.get_attribute("aria-valuetext") == "20 percent of the left one"
    assert (pixel(page, 0.15), pixel(page, 0.25)) == (grey("uncached"), grey(LABELS[1]))
    box = page.locator(".stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * 0.2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, middle, steps=4)
    page.mouse.up()
    assert abs(int(line.input_value()) - 80) <= 1
    assert (pixel(page, 0.75), pixel(page, 0.85)) == (grey("uncached"), grey(LABELS[1]))


@pytest.mark.slow
def test_the_gain_multiplies_the_difference(run, look):
    run.add_images("a cat")
    page = look(run.write())
    page.get_by_role("radio", name="Wipe").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("radio", name="Difference").is_checked()
    difference = GREY["uncached"] - GREY[LABELS[1]]
    assert pixel(page, 0.25) == pixel(page, 0.75) == (4 * difference,) * 3
    page.get_by_role("slider", name="Gain").focus()
    page.keyboard.press("ArrowRight")
    assert pixel(page, 0.25) == (8 * difference,) * 3
    assert page.locator(".tag.left").inner_text() == f"|uncached − {LABELS[1]}| × 8"
    page.keyboard.press("Home")
    assert pixel(page, 0.25) == (difference,) * 3
    assert not page.get_by_role("slider", name="Line between").is_visible()


@pytest.mark.slow
def test_caches_are_chosen_by_keyboard_and_stay_chosen(run, look):
    run.add_images("a cat")
    run.add_images("a dog")
    page = look(run.write())
    page.get_by_role("combobox", name="Right").focus()
    page.keyboard.press("ArrowDown")
    assert pixel(page, 0.75) == grey(LABELS[2])
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Swap
    assert (pixel(page, 0.25), pixel(page, 0.75)) == (grey(LABELS[2]), grey("uncached"))
    second = page.locator("details.compare").nth(1)
    second.locator("summary").focus()
    page.keyboard.press("Enter")
    second.locator(".panel").wait_for()
    shown = second.locator(".layers img").evaluate_all("(images) => images.map((image) => image.alt)")
    assert shown == ["uncached", LABELS[2]]
    page.keyboard.press("Enter")
    second.locator(".panel").wait_for(state="detached")


@pytest.mark.slow
def test_a_panel_says_what_it_shows_whatever_is_chosen_in_another(run, look):
    run.add_images("a cat")
    run.add_images("a dog")
    page = look(run.write())
    first, second = (page.locator("details.compare").nth(index) for index in range(2))
    second.locator("summary").click()
    second.get_by_role("combobox", name="Right").select_option(label=LABELS[2])
    first.get_by_role("slider", name="Line between").focus()
    page.keyboard.press("ArrowRight")
    shown = first.locator(".layers img").evaluate_all("(images) => images.map((image) => image.alt)")
    assert shown == [LABELS[1], "uncached"], "the upper layer comes last"
    assert first.locator(".tag.right").inner_text() == LABELS[1]
    assert (
        first.get_by_role("combobox", name="Right").evaluate("(select) => select.selectedOptions[0].text") == LABELS[1]
    )


@pytest.mark.slow
def test_the_tabulator_reaches_everything_in_order(run, look):
    run.add_images("a cat")
    page = look(run.write())
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "(({ localName, className, type }) => className || type || localName)(document.activeElement)"
            )
        )
    panel = ["wipe", "left", "right", "swap", "radio", "copy"]
    expected = [*["a"] * 5, "scroll", "summary", *["a"] * 3, "summary", *panel[:-1], "pre", "copy"]
    assert reached[: len(expected)] == expected


@pytest.mark.slow
def test_dark_follows_the_system_and_text_keeps_its_contrast(run, look):
    run.add_images("a cat")
    colours = []
    for scheme in ("light", "dark"):
        page = look(run.write(), color_scheme=scheme)
        style = "(name) => getComputedStyle(document.querySelector(name[0]))[name[1]].match(/\\d+/g).slice(0, 3).map(Number)"
        paper = page.evaluate(style, ["body", "backgroundColor"])
        for element in ("body", ".note", "nav a", "thead th"):
            assert contrast(paper, page.evaluate(style, [element, "color"])) > 4.5, f"WCAG AA: {element} in {scheme}"
        colours.append(paper)
    assert sum(colours[0]) > 700 > 100 > sum(colours[1])


@pytest.mark.slow
def test_hostile_prompts_are_shown_as_text(run, look):
    run.add_images(HOSTILE)
    page = look(run.write(command_line=shlex.join(["python", "fake.py", HOSTILE])))
    assert page.locator("h3 bdi").inner_text() == HOSTILE
    assert page.get_by_role("img", name=f"uncached: {HOSTILE}").count() == 1


@pytest.mark.slow
def test_two_hundred_prompts_open_quickly(run, look):
    run.add_images("prompt")
    run.samples = [(f"prompt {index}", made) for index, (_, made) in enumerate(run.samples * 200)]
    for index, (prompt, made) in enumerate(run.samples):  # files of their own, which a browser does not know yet
        own = []
        for shown in made:
            file = image_path(run.path.parent / shown.label, index)
            if not file.exists():
                file.hardlink_to(shown.file)
            own.append(Shown(label=shown.label, file=file, width=8, height=8))
        run.samples[index] = (prompt, own)
    page = look(run.write())
    timing = page.evaluate("performance.getEntriesByType('navigation')[0].domComplete")
    assert timing < 5000
    assert page.locator("figure img").count() == 600
    assert len(page.asked) < 200, "images far below are not read"
    page.locator("#sample-199 img").last.scroll_into_view_if_needed()
    page.wait_for_function("document.querySelector('#sample-199 img').naturalWidth > 0")


@pytest.mark.slow
def test_videos_play_in_step(run, look, need):
    need("imageio_ffmpeg")
    run.add_videos("brighter", "brighter #1", num_frames=8)
    page = look(run.write())
    page.wait_for_function("[...document.querySelectorAll('video')].every((video) => video.readyState >= 2)")
    assert page.locator("video").count() == len(LABELS) + 2, "those of the comparison, too"
    assert set(in_step(page)) == {0.125}, "the middle of the first frame"
    page.get_by_role("button", name="Play").press("Enter")
    page.wait_for_function("document.querySelector('video').currentTime > 0.5")
    times = in_step(page)
    assert max(times) - min(times) < 0.25, "less than a frame"
    assert min(times) > 0.2
    page.get_by_role("button", name="Pause").press("Enter")
    page.wait_for_function("[...document.querySelectorAll('video')].every((video) => !video.seeking)")
    (stopped,) = set(in_step(page))
    seeker = page.get_by_role("slider", name="Frame")
    seeker.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert seeker.get_attribute("aria-valuetext") == "frame 2 of 8"
    page.wait_for_function("[...document.querySelectorAll('video')].every((video) => !video.seeking)")
    assert set(in_step(page)) == {0.375}
    assert stopped > 0.375
    page.get_by_role("button", name="Play").press("Enter")
    page.wait_for_function("document.querySelector('video').currentTime > 1.8")
    page.wait_for_function(
        "document.querySelector('video').currentTime < 0.8", timeout=5000
    )  # and from the start again


@pytest.mark.slow
def test_a_video_that_cannot_be_played_is_named_and_its_gif_shown(run, look, need):
    need("imageio_ffmpeg")
    run.add_videos("a cat", "000000")
    broken_one = run.samples[0][1][1].file
    broken_one.write_bytes(b"no video")
    page = look(run.write())
    figure = page.locator("figure").nth(1)
    figure.locator("img").wait_for()
    page.wait_for_function("[...document.images].every((image) => image.naturalWidth > 0)")
    assert figure.locator(".note").inner_text() == (
        "This browser cannot play the file. Its GIF is shown, which has fewer colours and does not play in step."
    )
    assert page.locator("figure video").count() == 2
    assert page.get_by_role("button", name="Play").is_visible()


@pytest.mark.slow
def test_a_command_leaves_a_page_that_works(load_command, look, tmp_path, capsys):
    out, script = tmp_path / "a run", "TaylorSeer-FLUX/sample.py"
    flags = ["--prompt", "red apple, noto", "--num_steps", "4", "--method", "uncached", "taylorseer", "--device", "cpu"]
    load_command(script).main([*flags, "--output_dir", str(out)])
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {out / 'index.html'}"
    record = json.loads((out / "record.json").read_text())
    assert record["command_line"].startswith(f"python {script} --prompt 'red apple, noto' --num")
    assert all(path.is_file() for path in Parsed(out / "index.html").files)
    page = look(out / "index.html")
    samples = "[...document.querySelectorAll('figure img, figure video')]"
    page.wait_for_function(f"{samples}.every((one) => (one.naturalWidth || one.videoWidth) > 0)")
    assert page.locator("figcaption").all_inner_texts() == [row["label"] for row in record["rows"]]
    assert page.get_by_role("heading", level=1).inner_text() == record["settings"]["model"]
