"""The records of a results folder, with the conditions that their figures were measured under."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cache_dic import UserError
from evaluation.page import flat
from seerkit.io.records import Form, misfit, read_record

Row = Mapping[str, Any]
OF_RUN = ("conditions", "command_line", "num_samples", "batch_size")
"""What a row may have of its own, measured in another run than the record's other rows."""
WEIGHTS = {
    "flops": "none: counted on the meta device",
    "method-costs": "random",
    "partial-steps": "random",
    "op-counts": "random",
    "fronts": "random",
    "gpu": "random",
}
"""By the beginning of a record's name, where the record does not say which weights a model had and they are not trained."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What some rows of a record share. place: the name of its anchor. labels: of the rows, none where they are all."""

    place: str
    of_run: Mapping[str, Any]
    labels: tuple[str, ...]

    @property
    def conditions(self) -> Mapping[str, Any]:
        found = self.of_run.get("conditions")
        return found if isinstance(found, dict) else {}

    @property
    def facts(self) -> list[tuple[str, str]]:
        """All conditions, and samples where there are any."""
        counted = {
            name: self.of_run[name] for name in ("num_samples", "batch_size") if self.of_run.get(name) is not None
        }
        return flat({**counted, **self.conditions})


@dataclass(frozen=True)
class Stored:
    """A record. name: of its file in the results folder, with slashes."""

    name: str
    value: Mapping[str, Any]

    @property
    def folder(self) -> str:
        """Of its file: that of a backbone, paper or metrics; the empty text right in the results folder."""
        return self.name.rpartition("/")[0].partition("/")[0]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def place(self) -> str:
        return "record-" + self.name.removesuffix(".json").replace("/", "-")

    @property
    def rows(self) -> list[Row]:
        found = self.value.get("rows")
        return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []

    @property
    def settings(self) -> Mapping[str, Any]:
        """Of all rows, of the first one where they have their own, or none."""
        places = (self.value, *self.rows[:1])
        return next((found for place in places if isinstance(found := place.get("settings"), dict)), {})

    @property
    def model(self) -> str:
        return str(self.settings.get("model") or self.value.get("model") or "–")

    @property
    def weights(self) -> str:
        """Trained or random, by what the record says or is."""
        said = self.value.get("weights")
        if isinstance(said, str):
            return said
        usual = next((weights for start, weights in WEIGHTS.items() if self.stem.startswith(start)), "trained")
        return usual if self.folder != "paper" else "published"

    @property
    def command(self) -> str | None:
        """What makes it, as far as it says."""
        for key in ("command_line", "command"):
            if isinstance(self.value.get(key), str):
                return self.value[key]
        return None

    @cached_property
    def _by_run(self) -> dict[str, tuple[Mapping[str, Any], list[str]]]:
        """By what rows share, that and their labels."""
        found: dict[str, tuple[Mapping[str, Any], list[str]]] = {}
        for row in self.rows or [{}]:
            of_run = self._of_run(row)
            found.setdefault(_key(of_run), (of_run, []))[1].append(str(row.get("label", "")))
        return found

    def _of_run(self, row: Row) -> dict[str, Any]:
        found = {name: place[name] for place in (self.value, row) for name in OF_RUN if place.get(name) is not None}
        return {name: value for name, value in found.items() if name != "command_line" or isinstance(value, str)}

    @cached_property
    def runs(self) -> list[Run]:
        """The runs that its rows are of."""
        alone = len(self._by_run) == 1
        return [
            Run(place=f"{self.place}-{number}", of_run=of_run, labels=() if alone else tuple(filter(None, labels)))
            for number, (of_run, labels) in enumerate(self._by_run.values(), 1)
        ]

    def place_of(self, row: Row) -> str:
        """The anchor of the run that a row is of; of what is no row of the record, of its first run."""
        keys, key = list(self._by_run), _key(self._of_run(row))
        return f"{self.place}-{keys.index(key) + 1 if key in keys else 1}"

    def misfit(self, form: Form) -> str | None:
        return misfit(self.value, form)


def _key(of_run: Mapping[str, Any]) -> str:
    """Equal for equal conditions but for the second at which a batch was begun."""
    conditions = of_run.get("conditions")
    if isinstance(conditions, dict) and isinstance(conditions.get("date"), str):
        of_run = {**of_run, "conditions": {**conditions, "date": conditions["date"][:10]}}
    return json.dumps(of_run, sort_keys=True)


def read_results(results: Path) -> tuple[list[Stored], dict[str, str]]:
    """All records in the folders of a results folder, by name, and by name why others could not be read."""
    stored, unread = [], {}
    for path in _files(results):
        name = path.relative_to(results).as_posix()
        try:
            value = read_record(path, (dict, list), "the command that it names")
        except UserError as error:
            unread[name] = str(error)
        else:
            stored.append(Stored(name, value if isinstance(value, dict) else {"rows": value}))
    return stored, unread


def _files(results: Path) -> Iterator[Path]:
    yield from sorted(results.glob("*.json"))
    yield from sorted(results.glob("[!.]*/*.json"))
