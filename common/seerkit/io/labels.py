"""Text on pictures, in any script: a font that has its glyphs, and escapes such as \\u732b for what no font has."""

import importlib.util
import itertools
import subprocess
import unicodedata
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

LONGEST = 1000  # characters of a label that are looked at; more fit no sheet
FONT_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/System/Library/Fonts",
    "/Library/Fonts",
    "C:/Windows/Fonts",
)
_NO_CHARACTER = "\U0010ffff"  # has no glyph in any font, so that its picture is that of every missing one


def drawable(label: str, size: int) -> tuple[str, Font]:
    """A label as it can be drawn, with its font of `size` pixels: the first that has all of its glyphs.

    If there is none it is the one that lacks the fewest, and what it lacks is escaped as in Python's texts, like what has no
    picture at all (control characters, halves of surrogate pairs). Every line break is one \\n and every other space a
    plain one. Marks that steer layout without being seen (category Cf, variation selectors) are left out.
    """
    if len(label) > LONGEST:
        label = label[:LONGEST] + "…"
    text = unicodedata.normalize("NFC", "\n".join(label.splitlines()))
    text = "".join(c if c == "\n" or not c.isspace() else " " for c in text if not _is_unseen(c))
    font = _font_for(text, size)
    return "".join(c if c in " \n" or has_glyph(font, c) else _escaped(c) for c in text), font


def cut_to_width(text: str, font: Font, width: int) -> str:
    """One line cut to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    end = "…" if has_glyph(font, "…") else "..."
    low, high = 0, len(text)  # characters that fit, and that do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if font.getlength(text[:middle] + end) <= width else (low, middle)
    return text[:low] + end


def draw_text(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, font: Font, *, centred: bool = False) -> None:
    """Black lines of text whose middle is at height y; x is their left side, or their middle if `centred`."""
    if isinstance(font, ImageFont.FreeTypeFont):
        draw.text((x, y), text, fill="black", font=font, anchor="mm" if centred else "lm")
        return
    _, _, width, height = draw.multiline_textbbox((0, 0), text, font=font)  # fonts of bitmaps know no anchors
    draw.text((x - width / 2 if centred else x, y - height / 2), text, fill="black", font=font)


@lru_cache(maxsize=4096)
def has_glyph(font: Font, character: str) -> bool:
    """Whether a font has a picture of a character."""
    if not isinstance(font, ImageFont.FreeTypeFont):
        return " " <= character <= "~"
    return _can_have_glyph(character) and _picture(font, character) != _picture(font, _NO_CHARACTER)


def _can_have_glyph(character: str) -> bool:
    return unicodedata.category(character) not in ("Cc", "Cs")  # control characters, halves of surrogate pairs


def _picture(font: ImageFont.FreeTypeFont, character: str) -> tuple[tuple[float, ...], bytes]:
    plain = font.font_variant(layout_engine=ImageFont.Layout.BASIC)  # the other adds a dotted circle to lone marks
    return plain.getbbox(character), bytes(plain.getmask(character))


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(character, "")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


# --------------------------------------------------------------------------------------------------------------- fonts


def _font_for(text: str, size: int) -> Font:
    """The first of the fonts here that lacks the fewest characters of a text."""
    try:
        best = _default_font(size)
    except ImportError:  # Pillow without FreeType, which can draw ASCII alone
        return ImageFont.load_default()
    characters = sorted(c for c in set(text) - set(" \n") if _can_have_glyph(c))
    lacking = _num_lacking(best, characters)
    paths = itertools.chain(_matplotlib_fonts(), _system_fonts(characters))
    while lacking and (path := next(paths, None)) is not None:
        font = _load(path, size)
        if font is not None and (fewer := _num_lacking(font, characters)) < lacking:
            best, lacking = font, fewer
    return best


def _num_lacking(font: Font, characters: Iterable[str]) -> int:
    return sum(not has_glyph(font, character) for character in characters)


@lru_cache
def _default_font(size: int) -> Font:
    return ImageFont.load_default(size=size)


@lru_cache
def _load(path: Path, size: int) -> Font | None:
    """A font, None if it cannot be drawn at this size, as pictures of emoji cannot."""
    try:
        return ImageFont.truetype(path, size)
    except OSError:
        return None


def _matplotlib_fonts() -> Iterator[Path]:
    """DejaVu Sans, which matplotlib brings."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        yield Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"


def _system_fonts(characters: Iterable[str]) -> Iterator[Path]:
    """Fonts for these characters: those that fontconfig names, or where there is none all in the usual folders."""
    charset = " ".join(f"{ord(character):x}" for character in characters)
    command = ["fc-match", "--sort", "--format=%{file}\\n", f":charset={charset}"]
    try:
        named = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        for folder in FONT_FOLDERS:
            yield from sorted(Path(folder).expanduser().rglob("*.[ot]t[cf]"))
    else:
        yield from map(Path, named.splitlines())
