"""The file of a slice: what has been measured so far, so that the next call goes on there; needs no torch."""

from pathlib import Path
from typing import Any

from seerkit.io.files import write_json
from seerkit.io.records import Form, read_record

COMMAND = "eval/measure_gpu.py"
ATTEMPTS = 2
"""How often a measurement is begun that ends its process, before the slice goes on without it."""

SLICE: Form = {
    "command": COMMAND,
    "settings": dict,
    "planned": (None, list),
    "left_out": (None, str),
    "parts": dict,
    "begun": dict,
    "conditions": (None, dict),
}


class Journal:
    """What a slice has measured with its settings; another one's file, or one of other settings, is begun anew.

    parts: by name, {"value": …, "seconds": …} or {"error": …}. begun: by name, how often a part has been. planned: names of all
    parts, None until they are known. left_out: why nothing is measured.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, again: bool = False) -> None:
        self.path = path
        kept = read_record(path, SLICE, COMMAND) if path.exists() and not again else {}
        if kept.get("settings") != settings:
            kept = {}
        self.settings = settings
        self.planned: list[str] | None = kept.get("planned")
        self.left_out: str | None = kept.get("left_out")
        self.parts: dict[str, dict[str, Any]] = kept.get("parts", {})
        self.begun: dict[str, int] = kept.get("begun", {})
        self.conditions: dict[str, Any] | None = kept.get("conditions")

    @classmethod
    def read(cls, path: Path) -> "Journal":
        """What is in a file, whatever its settings."""
        return cls(path, read_record(path, SLICE, COMMAND)["settings"])

    @property
    def waiting(self) -> list[str]:
        """Parts that are neither measured nor known to fail."""
        return [name for name in self.planned or () if name not in self.parts]

    @property
    def is_finished(self) -> bool:
        return self.left_out is not None or (self.planned is not None and not self.waiting)

    @property
    def state(self) -> str:
        """For a reader."""
        if self.left_out is not None:
            return f"left out: {self.left_out}"
        if self.planned is None:
            return "not begun"
        failed = sum("error" in part for part in self.parts.values())
        done = f"{len(self.parts)} of {len(self.planned)} measurements"
        return f"{'finished' if self.is_finished else 'under way'}, {done}{f', {failed} without a result' if failed else ''}"

    def plan(self, names: list[str], conditions: dict[str, Any]) -> None:
        self.planned, self.conditions = names, conditions
        self.save()

    def leave_out(self, reason: str) -> None:
        self.left_out = reason
        self.save()

    def begin(self, name: str) -> bool:
        """Note that a part is begun; False for one that has ended its process too often, which is noted, too."""
        if self.begun.get(name, 0) >= ATTEMPTS:
            self.fail(name, f"begun {ATTEMPTS} times, and ended each time before it was done")
            return False
        self.begun[name] = self.begun.get(name, 0) + 1
        self.save()
        return True

    def finish(self, name: str, value: Any, seconds: float) -> None:
        self.parts[name] = {"value": value, "seconds": seconds}
        self.save()

    def fail(self, name: str, error: str) -> None:
        self.parts[name] = {"error": error}
        self.save()

    def save(self) -> None:
        write_json(self.path, self.record())

    def record(self) -> dict[str, Any]:
        return {
            "command": COMMAND,
            "settings": self.settings,
            "left_out": self.left_out,
            "planned": self.planned,
            "parts": self.parts,
            "begun": self.begun,
            "conditions": self.conditions,
        }
