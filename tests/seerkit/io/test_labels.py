"""Labels in any script, with the fonts of this machine and with none."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from seerkit.io import labels
from seerkit.io.labels import cut_to_width, drawable, has_glyph
from seerkit.io.media import frame_strip, labelled_grid

CELL = np.zeros((2, 64, 64, 3), np.uint8)


@pytest.fixture
def no_fonts(monkeypatch):
    """Pillow's own font alone."""
    monkeypatch.setattr(labels, "_matplotlib_fonts", lambda: iter(()))
    monkeypatch.setattr(labels, "_system_fonts", lambda characters: iter(()))


@pytest.fixture
def no_freetype(monkeypatch):
    """Pillow as if built without FreeType."""

    class Missing:
        def __getattr__(self, name: str):
            raise ImportError("The _imagingft C module is not installed")

    labels._default_font.cache_clear()
    monkeypatch.setattr(ImageFont, "core", Missing())
    yield
    labels._default_font.cache_clear()


@pytest.fixture
def dejavu() -> Path:
    """DejaVu Sans with its Cyrillic letters."""
    path = next(labels._matplotlib_fonts(), Path("none"))
    if not path.is_file():
        pytest.skip("needs matplotlib, which brings DejaVu Sans")
    return path


def asked_in_vain(characters):
    raise AssertionError("a font was there already")
    yield


def sheet(label: str) -> bytes:
    return labelled_grid([CELL], [label], [label, "b"]).tobytes()


ANY = [
    "café",
    "猫 и кот",
    "قطة",
    "बिल्ली",
    "👨‍👩‍👧 ❤️",
    "e\u0301",
    "a\x00\x07\x1b[1m",
    "\ud800",
    "a\tb\r\nc\u2028d",
    "\u202eabc",
    "\ufffe",
]


class TestAnyScript:
    @pytest.mark.parametrize("label", ANY, ids=ascii)
    def test_is_drawn(self, label):
        drawn = np.asarray(labelled_grid([CELL + 255], [label], [label, label]))
        assert drawn[:, :40].min() < 128
        assert sheet(label) == sheet(label)
        frame_strip([CELL], [label])

    @pytest.mark.parametrize("label", ANY, ids=ascii)
    def test_is_drawn_without_freetype(self, label, no_freetype):
        drawn = np.asarray(labelled_grid([CELL + 255], [label], [label, "x" * 100]))
        assert drawn[:, :40].min() < 128
        text, font = drawable(label, 12)
        assert not isinstance(font, ImageFont.FreeTypeFont)
        assert text.replace("\n", "").isascii()

    @pytest.mark.parametrize("label", ANY, ids=ascii)
    def test_nothing_becomes_a_box(self, label):
        text, font = drawable(label, 12)
        assert all(has_glyph(font, character) for character in text if character not in " \n")

    def test_words_of_one_length_differ(self, no_fonts):
        """Not as boxes, which are all alike."""
        assert len({sheet(word) for word in ("кот", "пёс", "猫猫猫", "犬犬犬", "abc")}) == 5

    def test_what_no_font_has_is_escaped(self, no_fonts):
        assert drawable("a 猫 🐱 é", 12)[0] == r"a \u732b \U0001f431 \xe9"
        assert sheet("猫") == sheet(r"\u732b")

    def test_control_characters_and_lone_surrogates_are_escaped(self):
        assert drawable("a\x00\x07\x1b\x7f\ud800", 12)[0] == r"a\x00\x07\x1b\x7f\ud800"

    def test_spaces_and_line_breaks(self):
        assert drawable("a\tb\u00a0c\u3000d\r\ne\u2028f\x0bg", 12)[0] == "a b c d\ne\nf\ng"

    def test_unseen_marks_are_left_out(self):
        assert drawable("\ufeffa\u200d\u202eb\ufe0f", 12)[0] == "ab"

    def test_letters_with_marks_are_put_together(self, dejavu):
        assert drawable("e\u0301", 12)[0] == "é"


class TestFonts:
    def test_ascii_keeps_the_default(self, monkeypatch):
        monkeypatch.setattr(labels, "_system_fonts", asked_in_vain)
        assert drawable("taylorseer\nN6-W3-O2 …", 12)[1].getname() == ImageFont.load_default(12).getname()

    def test_the_first_font_that_has_all(self, dejavu, monkeypatch):
        monkeypatch.setattr(labels, "_system_fonts", asked_in_vain)
        text, font = drawable("кот", 12)
        assert (text, font.getname()[0]) == ("кот", "DejaVu Sans")

    def test_the_one_that_lacks_the_fewest(self, dejavu, monkeypatch):
        monkeypatch.setattr(labels, "_system_fonts", lambda characters: iter(()))
        assert drawable("кот 猫", 12)[0] == r"кот \u732b"

    def test_fontconfig_is_asked_for_what_lacks(self, dejavu, tmp_path, monkeypatch):
        """And what it names and cannot be loaded is passed over."""
        program = tmp_path / "fc-match"
        keep = f"import sys\nopen({str(tmp_path / 'asked')!r}, 'w').write(sys.argv[-1])\n"
        code = f"{keep}print('/none.ttf')\nprint({str(dejavu)!r})\n"
        program.write_text(f"#!{sys.executable} -IS\n{code}", encoding="utf-8")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(labels, "_matplotlib_fonts", lambda: iter(()))
        assert drawable("кот\x07", 12)[0] == r"кот\x07"
        assert (tmp_path / "asked").read_text(encoding="utf-8") == ":charset=43a 43e 442"

    def test_folders_are_searched_where_there_is_no_fontconfig(self, dejavu, tmp_path, monkeypatch):
        (tmp_path / "deep").mkdir()
        (tmp_path / "deep" / "b.ttf").write_bytes(dejavu.read_bytes())
        (tmp_path / "a.ttf").write_bytes(b"no font")
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(labels, "FONT_FOLDERS", (str(tmp_path / "none"), str(tmp_path)))
        monkeypatch.setattr(labels, "_matplotlib_fonts", lambda: iter(()))
        assert drawable("кот", 12)[0] == "кот"

    def test_lone_marks_are_found_missing(self, dejavu):
        """Shaping puts a dotted circle under them, which is no glyph of theirs."""
        font = ImageFont.truetype(dejavu, 12)
        assert not has_glyph(font, "\u093f")
        assert has_glyph(font, "\u0301")

    def test_importing_starts_nothing(self):
        code = "import sys, seerkit.io.labels; assert 'matplotlib' not in sys.modules"
        subprocess.run([sys.executable, "-c", code], check=True)


class TestWidth:
    def test_cut(self):
        font = ImageFont.load_default(size=12)
        assert cut_to_width("short", font, 200) == "short"
        text = "a very long label indeed"
        for width in range(12, 150):
            cut = cut_to_width(text, font, width)
            assert font.getlength(cut) <= width
            if cut != text:
                assert font.getlength(text[: len(cut)] + "…") > width, "one more character does not fit"
        assert cut_to_width(text, font, 0) == "…"

    def test_fonts_without_an_ellipsis(self):
        assert cut_to_width("a very long label", ImageFont.load_default_imagefont(), 60) == "a very ..."

    def test_bitmaps_are_centred(self):
        image = Image.new("RGB", (100, 40), "white")
        labels.draw_text(ImageDraw.Draw(image), 50, 20, "HHHH", ImageFont.load_default_imagefont(), centred=True)
        rows, columns = np.nonzero(np.asarray(image)[..., 0] == 0)
        assert abs(columns.mean() - 50) < 2
        assert abs(rows.mean() - 20) < 3
