"""What a cache has done, to be printed or read."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_dic import Cache
from cache_dic.errors import shown_bytes
from cache_dic.plan import describe_steps
from taylorseers_diffusers.passes import Passes

Record = Mapping[str, Any]
"""`Run.record`, and as `first_step` which step of the scheduler the run began at."""


@dataclass(frozen=True)
class Report:
    """What the cache of a pipeline has done; `str` says it in a few lines.

    model: class of the transformer. form: of the transformer, "site" or "stack". branches: by guidance branch, records of its
    runs, more than one where it began anew. num_bytes: the most that was kept from step to step. second: of a second
    transformer, for the other steps, as Wan 2.2 has one.
    """

    model: str
    label: str
    engine: str
    form: str
    branches: Mapping[str, Sequence[Record]]
    num_bytes: int
    second: "Report | None" = None

    @classmethod
    def of(cls, cache: Cache, passes: Passes, branches: Mapping[str, Sequence[Record]]) -> "Report":
        return cls(
            type(passes.transformer).__name__,
            cache.label,
            cache.engine,
            "site" if passes.site_form else "stack",
            branches,
            sum(max(record["kept_bytes"] for record in records) for records in branches.values()),
        )

    def __str__(self) -> str:
        lines = [f"{self.model} ({self.form} form): {self.label}, {self.engine} engine"]
        for name, records in self.branches.items():
            for number, record in enumerate(records):
                first, full, taken = record["first_step"], record["full_steps"], record["steps"]
                begun = f", begun anew at step {first}" if number else f", from step {first}" if first else ""
                steps = describe_steps([first + step for step in full])
                others = Counter(entry["kind"] for entry in taken if entry["kind"] != "full")
                rest = "".join(f", {count} {kind}" for kind, count in others.items())
                lines.append(f"  {name}{begun}: {len(full)} of {len(taken)} steps full ({steps}){rest}")
        if not self.branches:
            lines.append("  no run yet")
        else:
            lines.append(f"  kept from step to step: {shown_bytes(self.num_bytes)}")
        if self.second is not None:
            lines.append(f"transformer_2, {self.second}")
        return "\n".join(lines)
