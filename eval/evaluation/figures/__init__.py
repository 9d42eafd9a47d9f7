"""Figures from records, each as PNG and as SVG.

What they share is here: colours that are told apart with any colour vision (Okabe and Ito 2008), markers beside them, and files
that are small, written whole and, SVGs, the same to the byte for one record.
"""

import base64
import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from seerkit.io.files import write_text, written_whole

SUFFIXES = (".png", ".svg")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F")
MARKERS = "osD^vP*X<>phd"  # their number and that of colours have no common divisor: pairs come again after 104
DPI = 100


def look(number: int) -> dict[str, Any]:
    """Colour and marker of a series."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


@contextlib.contextmanager
def plotting() -> Iterator[Any]:
    """matplotlib.pyplot, drawing without a display; words of SVGs are text."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    settings = {
        "svg.hashsalt": "compare",
        "svg.fonttype": "none",
        "font.family": ["DejaVu Sans"],  # which comes with matplotlib
        "font.size": 9,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.titlesize": "medium",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # names of methods and prompts may hold a dollar sign
    }
    with plt.rc_context(settings):
        yield plt


def save(figure: Any, folder: Path, name: str, suffixes: Sequence[str] = SUFFIXES) -> list[Path]:
    """Write a figure into a folder, once for each suffix, and close it; the files."""
    import matplotlib.pyplot as plt

    paths = [folder / f"{name}{suffix}" for suffix in suffixes]
    for path in paths:
        made, is_svg = io.BytesIO(), path.suffix == ".svg"
        metadata = {"Date": None} if is_svg else None
        figure.savefig(made, format=path.suffix[1:], dpi=DPI, bbox_inches="tight", metadata=metadata)
        if is_svg:
            write_text(path, _compact(made.getvalue().decode()))
        else:
            with written_whole(path) as temporary:
                Image.open(made).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
                    temporary, format="PNG", optimize=True
                )
    plt.close(figure)
    return paths


_PLACES = re.compile(r'(?<= d=")[^"]*|(?<= x=")[^"]*|(?<= y=")[^"]*')
"""What an SVG has coordinates in, to more digits than can be seen."""
_LONG = re.compile(r"-?\d+\.\d{3,}")
_NOTHING = re.compile(
    r""" transform="rotate\(-0 [^"]*"|^ +|(?<=<g) id="[\w.]+_\d+"|font-family: 'DejaVu Sans'; """, re.MULTILINE
)
"""Turns by no angle, indentation, names that nothing refers to, and the font, which is that of the whole."""


def _compact(svg: str) -> str:
    """An SVG that looks the same and is about half as long."""

    def shortened(places: re.Match[str]) -> str:
        return _LONG.sub(lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), places[0])

    shorter = _NOTHING.sub("", _PLACES.sub(shortened, svg))
    return _PIXELS.sub(_opaque, shorter).replace("<svg ", '<svg font-family="DejaVu Sans, sans-serif" ', 1)


_PIXELS = re.compile(r"(?<=data:image/png;base64,)[^\"]+")


def _opaque(pixels: re.Match[str]) -> str:
    """A PNG in an SVG without its alpha, which shows nothing."""
    made = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(pixels[0]))).convert("RGB").save(made, format="PNG", optimize=True)
    return base64.b64encode(made.getvalue()).decode()


def shared_legend(figure: Any, axes: Any, **where: Any) -> None:
    """One legend for all axes, each label once."""
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(list(found.values()), list(found), **where)
