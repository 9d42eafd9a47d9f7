"""All files of a model looked for together: a list of what is missing, and the commands that fetch it."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cache_dic.errors import ListError
from seerkit.weights import checkpoints
from seerkit.weights.checkpoints import NotFoundError, hub_command


class MissingError(ListError, FileNotFoundError):
    """Parts of a model that are nowhere: a line for each, the commands that fetch them, and the flags that name others."""


class Origin(Protocol):
    """Where files are published: in a hub repository `repo`, by patterns of their names, or at an address of their own.

    folder: where `command` puts them. cache: what else is looked in.
    """

    @property
    def repo(self) -> str | None: ...
    @property
    def patterns(self) -> Sequence[str]: ...
    @property
    def address(self) -> str: ...
    @property
    def folder(self) -> Path: ...
    @property
    def cache(self) -> str: ...
    @property
    def command(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a model: its name, where it is published, and a search for its files that raises NotFoundError.

    flag, given: the flag that names another place, and its value; env: the environment variable that does. Where one of them
    is set, the search looks nowhere else. hint: what to do where the hub refuses access.
    """

    name: str
    origin: Origin
    search: Callable[[], list[Path]]
    flag: str
    given: str | Path | None = None
    env: str | None = None
    hint: str | None = None

    @property
    def is_named_by_env(self) -> bool:
        return not self.given and bool(self.env and os.environ.get(self.env))

    def line(self, error: NotFoundError) -> str:
        """What is missing, where it was looked for, and where it is published."""
        if self.given:
            places = f"{self.flag} {error.named}"
        elif error.named:
            places = error.named
        else:
            home = self.origin.folder.relative_to(checkpoints.CHECKPOINTS.parent)
            unset = (f"${self.env} (not set)",) if self.env else ()
            places = ", ".join((*unset, str(home), self.origin.cache))
        files = ", ".join(self.origin.patterns)
        return f"  {self.name}: {files}  looked in: {places}  from: {self.origin.address}"


def find_parts(model: str, parts: Mapping[str, Part]) -> dict[str, list[Path]]:
    """What all searches find, by the parts' keys; MissingError with all that is missing."""
    found: dict[str, list[Path]] = {}
    missing: list[tuple[Part, NotFoundError]] = []
    for key, part in parts.items():
        try:
            found[key] = part.search()
        except NotFoundError as error:
            missing.append((part, error))
    if missing:
        raise MissingError(_message(model, missing))
    return found


def _message(model: str, missing: Sequence[tuple[Part, NotFoundError]]) -> str:
    several = len(missing) > 1
    lines = [f"{model} needs {f'{len(missing)} parts that are' if several else 'a part that is'} not here:"]
    lines += [part.line(error) for part, error in missing]
    reasons = dict.fromkeys(reason.partition(": ")[2] for _, error in missing for reason in error.failures)
    if reasons:
        lines.append(f"  download failed: {', '.join(reasons)}")
    lines.append("Fetch all of them:" if several else "Fetch it:")
    lines.append(" &&\n".join(f"  {command}" for command in _commands(missing)))
    lines += dict.fromkeys(f"({part.hint})" for part, _ in missing if part.hint)
    fetched_elsewhere = [part for part, error in missing if not error.command]
    others = [f"leave out {part.flag}" for part in fetched_elsewhere if part.given]
    others += [f"unset {part.env}" for part in fetched_elsewhere if part.is_named_by_env]
    if others:
        lines.append(f"Then {' and '.join(dict.fromkeys(others))}, beside which no other place is looked in.")
    flags = [part.flag for part, _ in missing]
    variables = [f"${part.env}" for part, _ in missing if part.env]
    lines.append(f"Or name your own with {', '.join(dict.fromkeys((*flags, *variables)))}.")
    return "\n".join(lines)


def _commands(missing: Sequence[tuple[Part, NotFoundError]]) -> list[str]:
    """A command for each repository, each address, and each copy that is there in part."""
    commands: list[str] = []
    wanted: dict[str, tuple[Path, list[str]]] = {}
    for part, error in missing:
        origin = part.origin
        command = error.command or (None if origin.repo else origin.command)
        if command:
            commands.append(command)
        elif origin.repo:
            wanted.setdefault(origin.repo, (origin.folder, []))[1].extend(origin.patterns)
    merged = [hub_command(repo, list(dict.fromkeys(patterns)), folder) for repo, (folder, patterns) in wanted.items()]
    return list(dict.fromkeys((*commands, *merged)))
