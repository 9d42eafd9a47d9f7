"""The rivals of every budget: operations are counted, or measured on a few samples where a method decides while it samples, and
the best are found on a few samples that are not those of the evidence."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache_dic import METHODS, UserError, make_cache
from evaluation.backbones import BACKBONES, count_case, workload
from evaluation.beyond.calibrations import Calibration
from evaluation.beyond.rivals import LEAST_SHARE, Choice, Settings, choose, forecasters, knob_of, rivals, start_of
from evaluation.beyond.rows import RIVAL, RIVAL_ON_LIST, Placed, cached
from evaluation.comparing import Contest, Entry, LatePipeline
from evaluation.variants import Setup, Variant
from seerkit.io.files import read_json, write_json
from seerkit.sampling.flops import run_flops
from seerkit.text.prompts import make_batches

NUM_SAMPLES = 4
"""That ratios are measured on: a decision is one for a batch, and differs little between batches."""


class Ratios:
    """FLOPs ratios of caches on a model, counted where full steps are foreseen, else measured on a few samples of a contest.

    What was measured is kept in a file. tried: settings by method, of which the next budget begins with the nearest.
    """

    def __init__(self, contest: Contest, path: Path) -> None:
        import torch

        self.contest, self.path = contest, path
        job = contest.job
        self.model, self.num_steps = job.settings["model"], job.num_steps
        self.batch = make_batches(job.prompts, NUM_SAMPLES)[0]
        self.tried: dict[str, list[Settings]] = {}
        self.backbone = BACKBONES[self.model]
        with torch.device("meta"):
            self.case = self.backbone.build(
                workload(self.model, num_samples=len(self.batch.indices), **job.sizes), job.dtype
            )
        try:
            self.measured: dict[str, float | None] = read_json(path)
        except UserError:
            self.measured = {}
        self._pipeline: LatePipeline | None = None
        self._uncached: int | None = None

    def of(self, cache: Any, least: float) -> float | None:
        """None where a run fails; where full steps are decided while sampling and `least` is out of reach, the bound."""
        found = count_case(self.backbone, self.case, cache, self.num_steps)
        if found["flops_ratio"] is not None:
            return found["flops_ratio"]
        _, most = found["flops_ratio_bounds"]
        if most < least:
            return most
        if cache.label not in self.measured:
            self.measured[cache.label] = self._measure(cache)
            write_json(self.path, self.measured)
        return self.measured[cache.label]

    def _measure(self, cache: Any) -> float | None:
        if self._uncached is None:
            self._uncached = self._flops(self.contest.uncached.variant.cache)
        try:
            return self._uncached / self._flops(cache)
        except Exception:  # the comparison says what is wrong with a method
            return None

    def _flops(self, cache: Any) -> int:
        if self._pipeline is None:
            self._pipeline = LatePipeline(self.contest)
            self._pipeline.load([self.batch])
        variant = Variant(label=cache.label, series=cache.method, cache=cache)
        entry = Entry(variant=variant, job=self.contest.job)
        return run_flops(self._pipeline.sample(entry, self.batch, lambda *_: None)[1])[0]

    def close(self) -> None:
        if self._pipeline is not None:
            self._pipeline.unload()


def choices(ratios: Ratios, setup: Setup, target: float) -> list[Choice]:
    """Every other method's settings nearest to a FLOPs ratio."""

    def ratio_of(method: str) -> Any:
        tried = ratios.tried.setdefault(method, [])

        def ratio(settings: Settings) -> float | None:
            if settings not in tried:
                tried.append(settings)
            try:
                cache = make_cache(method, preset=setup.package, model=setup.model, **settings)
                cache.plan(setup.num_steps)
                return ratios.of(cache, LEAST_SHARE * target)
            except UserError:
                return None

        return ratio

    found = []
    for method, rows in rivals(setup).items():
        knob = knob_of(method)
        start = None if knob in (None, "interval") else start_of(method, setup, rows[0], knob)
        earlier = [one for one in ratios.tried.get(method, ()) if one not in rows]
        found.append(choose(method, rows, knob, start, ratio_of(method), target, earlier))
    return found


def placed_rivals(found: list[Choice], one: Calibration, setup: Setup) -> list[Placed]:
    """Every method at its chosen settings, and every forecast on LoopSeer's list."""
    own = [
        Placed(
            role=RIVAL,
            variant=cached(f"{choice.method}-{one.count}", choice.method, choice.method, setup, **choice.settings),
        )
        for choice in found
        if choice.settings is not None
    ]
    full_steps = list(one.full_steps)
    on_list = [
        Placed(
            role=RIVAL_ON_LIST,
            variant=cached(
                f"{method}-on-the-list-{one.count}", f"{method}, on the list", method, setup, full_steps=full_steps,
                **_own_engine(method),
            ),
        )
        for method in forecasters(setup)
    ]  # fmt: skip
    return own + on_list


def _own_engine(method: str) -> dict[str, Any]:
    return {"engine": METHODS[method].engine}


def best(placed: list[Placed], rows: Mapping[str, Mapping[str, Any]], count: int) -> list[Placed]:
    """Of either role, so many that came out best by mean PSNR, of those that came out at all; rows: by label."""

    def psnr(one: Placed) -> float:
        found = rows.get(one.variant.label, {}).get("psnr")
        if found is None:
            return -math.inf
        return math.inf if found["mean_db"] is None else found["mean_db"]

    kept = []
    for role in (RIVAL, RIVAL_ON_LIST):
        own = sorted((one for one in placed if one.role == role and psnr(one) > -math.inf), key=psnr, reverse=True)
        kept += own[:count]
    return kept


def screened(placed: list[Placed], rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a record says of the rivals that were tried."""

    def told(one: Placed) -> dict[str, Any]:
        row = rows.get(one.variant.label) or {}
        error = one.variant.error or row.get("error")
        if error is not None or "psnr" not in row:
            return {"name": one.variant.name, "role": one.role, "error": error or "it was not sampled"}
        return {
            "name": one.variant.name,
            "role": one.role,
            "label": one.variant.label,
            "flops_ratio": row["flops_ratio"],
            "psnr_db": (row["psnr"] or {}).get("mean_db"),
        }

    return [told(one) for one in placed]
