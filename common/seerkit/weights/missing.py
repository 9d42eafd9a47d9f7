"""All files of a published model looked for together: one message for what is missing, and the few commands that fetch it."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from seerkit.weights.checkpoints import NotFoundError, Published


@dataclass(frozen=True)
class Repository:
    """A hub repository, the files in it that a model needs, and what to do where the hub refuses access."""

    name: str
    patterns: Sequence[str]
    hint: str | None = None

    @property
    def folder(self) -> Path:
        """Where a download lies."""
        return Published(".", repo=self.name).place

    @property
    def remedy(self) -> str:
        include = [word for pattern in self.patterns for word in ("--include", pattern)]
        command = shlex.join(["hf", "download", self.name, *include, "--local-dir", str(self.folder)])
        return f"`{command}`" + (f" ({self.hint})" if self.hint else "")


@dataclass(frozen=True)
class Part:
    """A part of a model: its name, the repository that has it, and a search for its files that raises NotFoundError."""

    name: str
    repository: Repository
    search: Callable[[], list[Path]]


def find_parts(model: str, parts: Sequence[Part], *, flags: str) -> dict[str, list[Path]]:
    """What all searches find, by part; FileNotFoundError with what is missing and where it was looked for.

    flags: those that name files of the user's own, for the message.
    """
    found: dict[str, list[Path]] = {}
    missing: list[tuple[Part, NotFoundError]] = []
    for part in parts:
        try:
            found[part.name] = part.search()
        except NotFoundError as error:
            missing.append((part, error))
    if not missing:
        return found
    usual = "{}, the hub's cache"
    places = [error.named or usual.format(part.repository.folder) for part, error in missing]
    listed = "; ".join(f"{part.name} (looked at {place})" for (part, _), place in zip(missing, places, strict=True))
    reasons = dict.fromkeys(reason.partition(": ")[2] for _, error in missing for reason in error.failures)
    failed = f"; download failed: {', '.join(reasons)}" if reasons else ""
    remedies = " and ".join(dict.fromkeys(part.repository.remedy for part, _ in missing))
    raise FileNotFoundError(
        f"{model} cannot run without {listed}{failed}; fetch everything with {remedies}, or name yours by {flags}"
    )
