"""The runs of a sampling run whose branches of guidance have model calls of their own."""

from dataclasses import dataclass
from typing import Any

from cache_dic import Run


@dataclass(frozen=True)
class Branches:
    """The runs: with the text and, where it is guided, without. One schedule decides for both."""

    runs: list[Run]

    def record(self) -> dict[str, Any]:
        """What was done, for a JSON record: that of the conditional branch, with what all branches keep, and the steps that a
        branch was left out of."""
        kept = sum(run.kept_bytes for run in self.runs)
        record = {**self.runs[0].record(), "branches": len(self.runs), "kept_bytes": kept}
        left_out = [entry["step"] for run in self.runs[1:] for entry in run.steps if "made_of" in entry]
        return {**record, "left_out_of": left_out} if left_out else record
