"""Plain-text and Markdown tables from records."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

MOST_DIGITS = 12


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right, a rule under the header."""
    cells = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(_align(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """A GitHub table; `left` are the columns to the left, counted from 0, the others are to the right."""
    rule = ["---" if column in left else "---:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(header), rule, *[list(row) for row in rows]])


def number(value: float | None, digits: int = 2, unit: str = "") -> str:
    """A fixed number of decimals, no minus before zeros; a dash for a missing value."""
    return "–" if value is None else f"{value:z.{digits}f}{unit}"


def apart_from(bound: float, value: float, digits: int) -> str:
    """A value with so many decimals, or more where those would show the bound that it is judged by and does not equal."""
    while value != bound and float(number(value, digits)) == float(number(bound, digits)) and digits < MOST_DIGITS:
        digits += 1
    return number(value, digits)


def counted(count: int, noun: str) -> str:
    """`1 image`, `16 images`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def psnr_cell(psnr: Mapping[str, Any] | None) -> str:
    """Mean PSNR of a record (`evaluation.metrics.summarize_psnr`) in dB, with half of its interval where it has one.

    A dash is for what was not compared.
    """
    psnr = psnr or {}
    compared, low = psnr.get("num_images"), psnr.get("low_db")
    if compared and psnr.get("num_identical") == compared:
        return "identical"
    return number(psnr.get("mean_db")) + ("" if low is None else f" ± {number((psnr['high_db'] - low) / 2)}")


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column == 0 else cell.rjust(width)


def full_steps_cell(mean: float, low: int, high: int, num_steps: int, num_partial: int = 0) -> str:
    """Full steps of all: their number, or mean and range where it differs between samples; and partial ones."""
    full = f"{high}/{num_steps}" if low == high else f"{mean:.1f} ({low}-{high})/{num_steps}"
    return f"{full}, {num_partial} partial" if num_partial else full
