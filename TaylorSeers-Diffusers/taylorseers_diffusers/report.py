"""What a cache has done, to be printed or read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache_dic import Cache, Run
from cache_dic.plan import describe_steps
from taylorseers_diffusers.passes import Passes


@dataclass(frozen=True)
class Report:
    """model: class of the transformer. form: "site" or "blocks". branches: by guidance branch, records of its runs
    (`Run.record`), more than one where a run began anew. num_bytes: the most that was kept from step to step.
    """

    model: str
    label: str
    engine: str
    form: str
    branches: Mapping[str, Sequence[Mapping[str, Any]]]
    num_bytes: int

    @classmethod
    def of(cls, cache: Cache, passes: Passes, runs: Mapping[str, Sequence[Run]]) -> "Report":
        records = {name: [run.record() for run in of_branch] for name, of_branch in runs.items()}
        return cls(
            type(passes.transformer).__name__,
            cache.label,
            cache.engine,
            "site" if passes.site_form else "blocks",
            records,
            sum(run.kept_bytes for of_branch in runs.values() for run in of_branch),
        )

    def __str__(self) -> str:
        lines = [f"{self.model}: {self.label}, {self.engine} engine on the {self.form} form"]
        for name, records in self.branches.items():
            for record in records:
                full, taken = record["full_steps"], len(record["steps"])
                lines.append(f"  {name}: {len(full)} of {taken} steps full ({describe_steps(full)})")
        if not self.branches:
            lines.append("  no run yet")
        else:
            lines.append(f"  kept from step to step: {self.num_bytes / 2**20:.1f} MiB")
        return "\n".join(lines)
