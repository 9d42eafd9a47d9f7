"""The runs of a sampling run whose branches of guidance have model calls of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cache_dic import Run
from cache_dic.run import numbers_of


@dataclass(frozen=True)
class Branches:
    """The runs: with the text and, where it is guided, without. One schedule decides for both.

    elsewhere: how many branches other processes have computed, whose runs are theirs.
    """

    runs: Sequence[Run]
    elsewhere: int = 0

    @property
    def left_out(self) -> list[int]:
        """Steps in which the output of a branch was made of that of the first."""
        return sorted({entry["step"] for run in self.runs[1:] for entry in run.steps if "made_of" in entry})

    @property
    def steps(self) -> list[dict[str, Any]]:
        """Those of the first branch, of which one that is full is partial where another branch was left out."""
        left_out = self.left_out
        return [
            {**entry, "kind": "partial"} if entry["kind"] == "full" and entry["step"] in left_out else entry
            for entry in self.runs[0].steps
        ]

    def record(self) -> dict[str, Any]:
        """What was done, for a JSON record: that of the conditional branch, with what all branches of this process
        keep, and the steps that a branch was left out of."""
        kept = sum(run.kept_bytes for run in self.runs)
        record = {**self.runs[0].record(), "branches": len(self.runs) + self.elsewhere, "kept_bytes": kept}
        if not self.left_out:
            return record
        numbers = {f"{kind}_steps": numbers_of(self.steps, kind) for kind in ("full", "partial")}
        return {**record, **numbers, "steps": self.steps, "left_out_of": self.left_out}
