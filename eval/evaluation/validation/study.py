"""A validation: every candidate of a model on real samples, on ladders and on samples of a known order; and the verdicts."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evaluation.scoring.extractors import find_extractor
from evaluation.validation import rules
from evaluation.validation.candidates import CANDIDATES, FRECHET, GAP, KERNEL, PAIRED, Candidate
from evaluation.validation.domains import Domain
from evaluation.validation.estimates import (
    BLOCKS,
    Estimate,
    FrechetReference,
    KernelReference,
    half_at,
    mean_estimate,
    needed,
    spearman,
)
from evaluation.validation.generated import STEPS, Generated, steps_label
from evaluation.validation.ladders import CAPTIONS, DROPPED, LADDERS, drop_kinds, shifted
from evaluation.validation.readings import NETWORKS, read_pairs, read_set
from seerkit.devices.distributed import World

PAIRS = 100
"""Samples that paired measures are validated with: a ladder lowers every sample's figure, so that few tell as much as many."""
NOISE_AT = (100, 1000)  # samples, for which the noise of a difference is told
LEAST_ROWS = 6  # that two measures must share for a rank correlation
REAL = "real"

Arrays = Mapping[str, np.ndarray]
Maker = Callable[[Arrays, np.ndarray], Estimate]
"""Of what is read of a set, and the sample whose caption each has (N,)."""
Values = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of one array (N, ...) and these captions, the samples' own values (N,)."""


def rung_name(ladder: str, strength: float) -> str:
    return f"{ladder} {strength:g}"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many samples: generated of every row, real ones of every rung, of the reference, of pairs."""

    samples: int
    real: int
    reference: int
    pairs: int


class Study:
    """All estimates of a model: `estimates[candidate][set]`, sets being REAL, rungs and rows of `Generated`."""

    def __init__(
        self,
        model: str,
        domain: Domain,
        generated: Generated,
        sizes: Sizes,
        work: Path,
        world: World,
        *,
        quiet: bool = False,
    ) -> None:
        self.model, self.domain, self.generated, self.sizes = model, domain, generated, sizes
        self.work, self.world, self.quiet = work, world, quiet
        self.candidates = CANDIDATES[model]
        self.reads = list(dict.fromkeys(candidate.of for candidate in self.candidates if candidate.kind != PAIRED))
        self.labels = [one.row.label for one in generated.made]
        self.methods = self.labels[len(STEPS) :]
        self.estimates: dict[str, dict[str, Estimate]] = {candidate.name: {} for candidate in self.candidates}

    # ---------------------------------------------------------------------------------------------------------- read

    def _arrays(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Everything that is read of a set alone."""
        return {name: read_set(name, pixels, self.work, self.world) for name in self.reads}

    def _pairs(self, pixels: np.ndarray, others: np.ndarray) -> dict[str, np.ndarray]:
        count = self.sizes.pairs
        return read_pairs(pixels[:count], others[:count], self.work, self.world)

    def _sets(self) -> Iterator[tuple[str, np.ndarray, np.ndarray | None]]:
        """Name, pixels and what they are paired with."""
        real = self.domain.real(self.sizes.real)
        yield REAL, real, None
        seen = {name for candidate in self.candidates for name in candidate.sees}
        for ladder in (ladder for ladder in LADDERS.values() if ladder.name in seen):
            for strength in ladder.strengths:
                name = rung_name(ladder.name, strength)
                if ladder is DROPPED:
                    yield name, drop_kinds(self.domain, real, strength), None
                elif ladder.change is not None:
                    yield name, ladder.change(real, strength), real
        made = self.generated.pixels(self.sizes.samples)
        best = made[steps_label(STEPS[0])]()
        for label in self.labels:
            is_best = label == steps_label(STEPS[0])
            yield label, best if is_best else made[label](), None if is_best else best

    # ------------------------------------------------------------------------------------------------------ estimate

    def run(self) -> None:
        """Read and estimate all sets."""
        reference = self._arrays(self.domain.reference(self.sizes.reference))
        makers = self._makers(reference)
        for name, pixels, pairs in tqdm(self._sets(), "sets", unit="set", disable=self.quiet):
            arrays = self._arrays(pixels)
            paired = {} if pairs is None else self._pairs(pixels, pairs)
            for candidate in self.candidates:
                if candidate.kind == PAIRED:
                    if paired:
                        self.estimates[candidate.name][name] = mean_estimate(paired[candidate.of])
                else:
                    self.estimates[candidate.name][name] = makers[candidate.name](arrays, np.arange(len(pixels)))
            if name == REAL:
                self._shuffle_captions(makers, arrays)

    def _shuffle_captions(self, makers: Mapping[str, Maker], arrays: Arrays) -> None:
        for candidate in self.candidates:
            if CAPTIONS.name in candidate.sees:
                for strength in CAPTIONS.strengths:
                    captions = shifted(self.sizes.real, strength)
                    name = rung_name(CAPTIONS.name, strength)
                    self.estimates[candidate.name][name] = makers[candidate.name](arrays, captions)

    def _makers(self, reference: Arrays) -> dict[str, Maker]:
        """By candidate that is not of pairs, what makes an estimate of a set's arrays."""
        found: dict[str, Maker] = {}
        values: dict[str, Values] = {"class": self._is_of_class}
        if any(candidate.of == "vector" for candidate in self.candidates):
            values["vector"] = self._scores()
        for candidate in self.candidates:
            if candidate.kind in (FRECHET, KERNEL):
                found[candidate.name] = _distance(candidate, reference[candidate.of])
            elif candidate.kind != PAIRED:
                of = values.get(candidate.of, lambda array, _: array)
                middle = float(reference[candidate.of].mean()) if candidate.kind == GAP else None
                found[candidate.name] = _of_means(candidate.of, of, middle)
        return found

    def _is_of_class(self, classes: np.ndarray, captions: np.ndarray) -> np.ndarray:
        return classes == self.domain.groups[captions]

    def _scores(self) -> Values:
        """100 times the cosine of an image's and a caption's vector."""
        from evaluation.scorer import load_scorer
        from seerkit.text.minilm import TEXT_TABLE, TextTable

        prompts = self.domain.prompts[: max(self.sizes.samples, self.sizes.real)]
        with torch.inference_mode():
            texts = load_scorer().embed_text(TextTable.load(TEXT_TABLE).encode(prompts)[1]).numpy()
        return lambda vectors, captions: 100 * (vectors * texts[captions]).sum(axis=1, dtype=np.float64)

    # ------------------------------------------------------------------------------------------------------- verdict

    def rows(self) -> list[dict[str, Any]]:
        """What is found of every candidate, as records have it."""
        return [self._row(candidate) for candidate in self.candidates]

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        found = {
            "floor": None if candidate.kind == PAIRED else self._floor(candidate),
            "ladders": self._ladders(candidate),
            "agreement": self._agreement(candidate),
            "order": self._order(candidate),
        }
        passed = [part["passes"] for part in found.values() if isinstance(part, dict)]
        passed += [ladder["passes"] for ladder in found["ladders"]]
        floor, order = found["floor"], found["order"]["differences"]
        return {
            "name": candidate.name,
            "title": candidate.title,
            "kind": candidate.kind,
            "digits": candidate.digits,
            "scale": candidate.scale,
            "best": candidate.best,
            "num_real": None if candidate.kind == PAIRED else self.sizes.real,
            "num": self.estimates[candidate.name][steps_label(STEPS[-1])].num,
            "shown": all(passed),
            "least_samples": rules.least_samples(
                self.sizes.real,
                floor and (floor["half"], floor["mildest_step"]),
                [one["needed"] if one["value"] > 0 else None for one in order],
            ),
            **found,
            "methods": self._methods(candidate),
        }

    def _worse(self, candidate: Candidate, name: str, than: str) -> Estimate:
        """How much worse a set is than another."""
        found = self.estimates[candidate.name]
        ours, theirs = found[name], found[than]
        return ours.minus(theirs) if candidate.best < 0 else theirs.minus(ours)

    def _floor(self, candidate: Candidate) -> dict[str, Any]:
        floor = self.estimates[candidate.name][REAL]
        first = [rung_name(name, LADDERS[name].strengths[0]) for name in candidate.sees]
        steps = [self._worse(candidate, name, REAL).value for name in first]
        return {**figure(floor), "mildest_step": min(steps), "passes": rules.floor_is_low(floor.half, steps)}

    def _ladders(self, candidate: Candidate) -> list[dict[str, Any]]:
        found = []
        for name in candidate.sees:
            strengths = LADDERS[name].strengths
            rungs = [rung_name(name, strength) for strength in strengths]
            before = [REAL, *rungs[:-1]] if candidate.kind != PAIRED else [None, *rungs[:-1]]
            steps = [
                figure(self._worse(candidate, rung, than)) if than else None
                for rung, than in zip(rungs, before, strict=True)
            ]
            # A real sample has no distance from itself, so that the last rung is held against the first.
            whole = figure(self._worse(candidate, rungs[-1], rungs[0] if candidate.kind == PAIRED else REAL))
            estimates = self.estimates[candidate.name]
            found.append(
                {
                    "name": name,
                    "unit": LADDERS[name].unit,
                    "rungs": [
                        {"strength": strength, **figure(estimates[rung]), "step": step}
                        for strength, rung, step in zip(strengths, rungs, steps, strict=True)
                    ],
                    "spearman": _known(
                        spearman(strengths, [-candidate.best * estimates[rung].value for rung in rungs])
                    ),
                    "passes": rules.climbs([step for step in steps if step], whole),
                }
            )
        return found

    def _agreement(self, candidate: Candidate) -> dict[str, Any]:
        ours, by = self.estimates[candidate.name], {}
        for other in self.candidates:
            if other.eyes == candidate.eyes or (other.kind == PAIRED) != (candidate.kind == PAIRED):
                continue
            both = {REAL, *self.labels}
            both |= {
                rung_name(name, strength)
                for name in {*candidate.sees} & {*other.sees}
                for strength in LADDERS[name].strengths
            }
            shared = [name for name in ours if name in both and name in self.estimates[other.name]]
            if len(shared) < LEAST_ROWS:
                continue
            ranks = spearman(
                [-candidate.best * ours[name].unbiased for name in shared],
                [-other.best * self.estimates[other.name][name].unbiased for name in shared],
            )
            by[other.name] = _known(ranks)
        return {"by": by, "passes": rules.agrees(by)}

    def _order(self, candidate: Candidate) -> dict[str, Any]:
        """Of paired measures, nearness to the run of the most steps."""
        estimates = self.estimates[candidate.name]
        steps = [count for count in STEPS if steps_label(count) in estimates]
        differences = [
            {"from": more, "to": fewer, **difference(self._worse(candidate, steps_label(fewer), steps_label(more)))}
            for more, fewer in itertools.pairwise(steps)
        ]
        return {
            "values": [{"steps": count, **figure(estimates[steps_label(count)])} for count in steps],
            "differences": differences,
            "passes": all(map(rules.is_worse, differences)),
        }

    def _methods(self, candidate: Candidate) -> dict[str, Any]:
        """How far the noise lets caching methods be told apart."""
        estimates = self.estimates[candidate.name]
        compared = [label for label in (steps_label(STEPS[0]), *self.methods) if label in estimates]
        pairs = [(a, b) for index, a in enumerate(compared) for b in compared[index + 1 :]]
        return {
            "values": [{"label": label, **figure(estimates[label])} for label in compared],
            "differences": [{"from": a, "to": b, **difference(self._worse(candidate, b, a))} for a, b in pairs],
        }


def _distance(candidate: Candidate, reference: np.ndarray) -> Maker:
    made = {FRECHET: FrechetReference, KERNEL: KernelReference}[candidate.kind](
        reference.reshape(-1, reference.shape[-1])
    )
    return lambda arrays, _: made.estimate(arrays[candidate.of])


def _of_means(key: str, of: Values, middle: float | None) -> Maker:
    """The mean of what an array and captions give, or how far it is from `middle`."""

    def estimate(arrays: Arrays, captions: np.ndarray) -> Estimate:
        values = np.asarray(of(arrays[key], captions), dtype=np.float64)
        if middle is None:
            return mean_estimate(values)
        return mean_estimate(math.copysign(1, values.mean() - middle) * (values - middle))

    return estimate


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def figure(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "half": estimate.half}


def difference(estimate: Estimate) -> dict[str, Any]:
    """How much worse, with the samples that would tell, and half of the interval at NOISE_AT samples."""
    count = needed(estimate)
    return {
        **figure(estimate),
        "needed": math.ceil(count) if math.isfinite(count) else None,
        "half_at": {str(num): half_at(estimate, num) for num in NOISE_AT},
    }


def describe(study: Study) -> dict[str, Any]:
    """What the figures of a study depend on."""
    return {
        "num_samples": study.sizes.samples,
        "num_real": study.sizes.real,
        "num_reference": study.sizes.reference,
        "num_pairs": study.sizes.pairs,
        "blocks": BLOCKS,
        "steps": list(STEPS),
        "methods": study.methods,
        "data": study.domain.told,
        "networks": {name: dict(find_extractor(name).reading().facts) for name in study.reads if name in NETWORKS},
        "sampling": study.generated.settings,
    }
