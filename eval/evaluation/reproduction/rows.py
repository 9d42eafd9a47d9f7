"""From a published row to the run that makes it again: method, settings and steps, or why there is none."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cache_dic import METHODS, UserError, compared_rows, make_cache
from evaluation.paper import published
from evaluation.reproduction.protocols import Protocol, PublishedTable

if TYPE_CHECKING:
    from cache_dic import Cache

UNCACHED, FEWER_STEPS = "uncached", "fewer steps"
OURS = {
    "fresh_ratio": "ratio", "K": "num_clusters", "l": "threshold", "H": "num_snapshots", "N_max": "max_interval",
    "N_min": "min_interval",
}  # fmt: skip
"""What published settings are called here."""
OF_A_MODEL = ("calibration", "table")
"""Settings that come with a model; thresholds beside them mean nothing for another."""
INFERRED = {
    "magcache-slow": ("magcache", {"max_consecutive": 2}, "K = 2, by the times in MagCache's README"),
    "magcache-fast": ("magcache", {"max_consecutive": 4}, "K = 4, by the times in MagCache's README"),
    "teacache-slow": ("teacache", {"threshold": 0.05}, "threshold 0.05, by the times in TeaCache's README"),
    "teacache-fast": ("teacache", {"threshold": 0.08}, "threshold 0.08, by the times in TeaCache's README"),
}
"""Published names that stand for settings which their table does not state: method, settings, and where those are from."""
DEFAULTS = ("easycache", "pab", "procache", "teacache", "magcache")
"""Methods whose rows without settings are taken for those of their released code; of others, such rows are left out."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One way to sample, which may stand in several rows. label: of folders and of --rows. note: on its settings."""

    label: str
    cache: "Cache"
    num_steps: int
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """A published row of a table, with the run of the published model, and of the model that is sampled.

    why: there is no such run. Of a method of the user's own nothing is published.
    """

    table: PublishedTable | None
    published: Mapping[str, Any]
    counted: Run | None = None
    sampled: Run | None = None
    why: str | None = None

    @property
    def name(self) -> str:
        """As tables show it."""
        return self.counted.label if self.counted else self.in_words

    @property
    def in_words(self) -> str:
        """The published row's method and settings."""
        p = self.published
        parts = [p["method"]]
        parts += [f"N={p['interval']}"] if p.get("interval") else []
        parts += [f"O={p['max_order']}"] if p.get("max_order") is not None else []
        parts += [f"{key}={value}" for key, value in (p.get("settings") or {}).items()]
        return " ".join(parts)

    def matches(self, pattern: str) -> bool:
        """Whether --rows means it: by the key of its table, its method or its label, with wildcards."""
        names = [self.name, self.published["method"], self.table.key if self.table else "own"]
        return any(fnmatch.fnmatchcase(name, pattern) for name in names)


def published_rows(table: PublishedTable, name: str) -> list[dict[str, Any]]:
    """The rows of a table in results/paper/NAME.json, fastest last."""
    facts = published(name)
    rows = [row for row in (*facts["flops"], *facts["latency"]) if row["source"].startswith(table.source)]
    return sorted(rows, key=lambda row: row.get("speedup") or row.get("latency_speedup") or 0)


def make_run(published: Mapping[str, Any], protocol: Protocol, model: str) -> Run:
    """The run of a published row on a model; UserError saying why there is none."""
    method, settings, note = published["method"], dict(published.get("settings") or {}), None
    if method in (UNCACHED, FEWER_STEPS):
        num_steps = settings.get("steps", protocol.num_steps)
        label = UNCACHED if num_steps == protocol.num_steps else f"fewer-steps-{num_steps}"
        return Run(label=label, cache=make_cache(UNCACHED), num_steps=num_steps)
    if method in INFERRED:
        method, settings, note = INFERRED[method]
    if method not in METHODS:
        raise UserError(f"{method} is not among the methods here")
    if "R" in settings:  # tokens that are not computed
        settings["ratio"] = round(1 - float(settings.pop("R").rstrip("%")) / 100, 6)
    settings = {OURS.get(key, key): value for key, value in settings.items()}
    settings |= {key: published[key] for key in ("interval", "max_order") if published.get(key) is not None}
    if not settings:
        if method not in DEFAULTS:
            raise UserError(f"the settings of {method} are not stated there")
        note = "settings are not stated there; here the first of its released code"
    rows = compared_rows(method, protocol.package, model)
    if model == protocol.embedded and rows and any(key in rows[0] for key in OF_A_MODEL):
        settings = {}
    base = next(
        (row for row in rows if all(row.get(key) == value for key, value in settings.items())), (rows or [{}])[0]
    )
    cache = make_cache(method, preset=protocol.package, model=model, **{**base, **settings})
    cache.plan(protocol.num_steps)
    return Run(label=cache.label, cache=cache, num_steps=protocol.num_steps, note=note)


def make_rows(protocol: Protocol, model: str, own: Sequence[str] = ()) -> list[Row]:
    """The rows of all tables of a protocol, for a run of a model. own: methods of the user's, a row each."""
    rows = [
        Row(table=table, published=row) for table in protocol.tables for row in published_rows(table, protocol.name)
    ]
    rows += [Row(table=None, published={"method": method, **settings}) for method in own
             for settings in compared_rows(method, protocol.package, model) or [{}]]  # fmt: skip
    return [_filled(row, protocol, model) for row in rows]


def _filled(row: Row, protocol: Protocol, model: str) -> Row:
    make = _own_run if row.table is None else make_run
    try:
        counted = make(row.published, protocol, protocol.model)
    except UserError as error:
        return replace(row, why=str(error))
    if model == protocol.model:
        return replace(row, counted=counted, sampled=counted)
    try:
        return replace(row, counted=counted, sampled=make(row.published, protocol, model))
    except UserError as error:
        return replace(row, counted=counted, why=str(error))


def _own_run(settings: Mapping[str, Any], protocol: Protocol, model: str) -> Run:
    cache = make_cache(preset=protocol.package, model=model, **settings)
    cache.plan(protocol.num_steps)
    return Run(label=cache.label, cache=cache, num_steps=protocol.num_steps)


def chosen(rows: Sequence[Row], patterns: Sequence[str]) -> list[Row]:
    """The rows that --rows names, all without it; UserError for a pattern that none fits, with what there is."""
    if not patterns:
        return list(rows)
    for pattern in patterns:
        if not any(row.matches(pattern) for row in rows):
            keys = dict.fromkeys(row.table.key for row in rows if row.table)
            labels = dict.fromkeys(row.name for row in rows)
            raise UserError(f"no row is called {pattern!r}; tables: {', '.join(keys)}; rows: {', '.join(labels)}")
    return [row for row in rows if any(row.matches(pattern) for pattern in patterns)]


def runs_of(rows: Sequence[Row], which: str, num_steps: int) -> dict[str, Run]:
    """By label, the runs of rows, each once. which: counted or sampled.

    The uncached one of `num_steps` is always there, and first: samples are compared with its samples, costs with its cost.
    """
    runs = {UNCACHED: Run(label=UNCACHED, cache=make_cache(UNCACHED), num_steps=num_steps)}
    return runs | {run.label: run for row in rows if (run := getattr(row, which)) is not None}
