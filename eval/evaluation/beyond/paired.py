"""Differences sample by sample, between rows of one comparison: what one method gains over another on the same noise."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluation.metrics import mean_interval

BETTER = {"psnr_db": 1, "ssim": 1, "lite0": -1}
"""By measure of a sample, 1 where more is better and -1 where less is."""

Values = Sequence[float | None]


def difference(ours: Values, theirs: Values, better: int = 1) -> dict[str, Any]:
    """The mean difference, ours less theirs, with Student's 95 % interval, and on how many samples ours is better.

    Values are one per sample, None where a sample equals the uncached one; pairs with such are left out. wins, losses: shares
    of the pairs, equal values being neither. All None without pairs, but for num.
    """
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None]
    gains = [better * (a - b) for a, b in pairs]
    return {
        **mean_interval([a - b for a, b in pairs]),
        "wins": sum(gain > 0 for gain in gains) / len(gains) if gains else None,
        "losses": sum(gain < 0 for gain in gains) / len(gains) if gains else None,
    }


def differences(row: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """`difference` by every measure of BETTER that both rows have of their samples."""
    mine, others = row["samples"], other["samples"]
    return {
        key: difference(mine[key], others[key], better)
        for key, better in BETTER.items()
        if key in mine and key in others
    }


def verdict(found: Mapping[str, Any], goal: float = 0.0) -> str:
    """Whether a mean difference is above a goal beyond its interval: "yes", "no" where it is below beyond it, else "open".

    An interval that there is not, of fewer than two pairs, decides nothing.
    """
    if found["low"] is None:
        return "open"
    if found["low"] > goal:
        return "yes"
    return "no" if found["high"] < goal else "open"
