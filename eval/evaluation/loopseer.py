"""LoopSeer's calibration: lists that the model of a run proposes, sampled for real; corrections, fitted in the closed loop.

1. The calibration samples are drawn without a cache; of every step some coordinates of the latents are kept, no features.
2. A few lists are sampled, which says how the network answers to a distance of its input (`loop_model.Sensitivity`).
3. For each basis the best list is sought in the model of a run and sampled; what that teaches of the sensitivity goes into a
   second round. The best is sampled with every basis in every form: what the model thinks of a basis holds for no form in
   particular. The best of all is moved step by step, in the order in which the model thinks well of the moves, while samples
   come nearer to the uncached ones.
4. Corrections of the weights are fitted: in the model of a run, with the ridge under which sampled runs come nearest; or, at
   some ten times the cost, to the final latents of sampled runs, by a Gauss-Newton step whose derivatives are differences of
   runs. How far that goes, and whether it is taken, is decided on samples that it was not fitted to.

What was sampled is kept in a folder beside the output; a killed calibration goes through it again and goes on where it ended.
"""

import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from cache_dic import PRESETS, Cache, UserError, make_cache
from cache_dic.methods.loopseer import Calibration, digest
from cache_dic.plan import describe_steps
from cache_dic.searched import read_schedule
from evaluation.backbones import PACKAGES, shipped_schedules
from evaluation.calibration import even_steps
from evaluation.jobs import digests
from evaluation.loop_model import Key, LoopModel, Sensitivity, Steps, best_list, correction_keys, moved, ridged
from evaluation.search import (
    COORDINATES,
    EXACT_DB,
    LEAST_GAIN_DB,
    Asked,
    Opening,
    State,
    coordinates,
    finished,
    published_steps,
    similarity_db,
)
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.files import write_json
from seerkit.io.records import conditions
from seerkit.text.prompts import Batch
from seerkit.weights.checkpoints import save_tensors

FORMS = ("folded", "output")
"""Chosen from where none is asked for."""
REACH = 2
"""Full steps back that corrections reach."""
FINALISTS = 2
"""Bases that go into the second round, those of the best lists."""
CAUTION = (1.0, 2.0, 4.0)
"""What ρ is taken for beside what was measured: the network answers to small distances as it was seen to, to large ones more
than in proportion, and then early steps want to lie closer. Which holds for a model its samples decide."""
NUM_PROBES = 2
"""Lists that are sampled beside a given one: they tell how the network answers, and what the given one is worth."""
RIDGES = (0.01, 0.1, 1.0)
SHARES = (0.5, 1.0)
"""Of a Gauss-Newton step, that may be taken: the network answers to large changes less than in proportion."""
ROUNDS = 1
"""Of Gauss-Newton steps."""
DIFFERENCE = 0.03
"""Of a weight, by which derivatives are taken."""
FOLDS = 2
FLOAT64_ROWS = 10
"""Rows of float32 that are as large as what stands in float64 for each row of one sample while it is measured."""


@dataclass(frozen=True)
class Sampled:
    """A run: by step |e|², e·d and |d|² as `Sensitivity.measured` takes them, and how near it came, by sample."""

    moments: np.ndarray
    similarity_db: list[float]

    @property
    def mean_db(self) -> float:
        return float(np.mean(self.similarity_db))


@dataclass(frozen=True, kw_only=True)
class Job(Asked):
    """A calibration. forms, bases: to choose from. full_steps: a list that is taken and not sought. fit: none, teacher, model
    or closed."""

    forms: tuple[str, ...]
    bases: tuple[tuple[str, int], ...]
    full_steps: Steps | None
    fit: str

    @property
    def warmup_steps(self) -> int:
        return PRESETS[PACKAGES[self.args.model]].warmup_steps

    def uncorrected(self, full_steps: Steps, base: tuple[str, int], form: str) -> Calibration:
        basis, order = base
        return Calibration(
            model=self.args.model, num_steps=self.num_steps, full_steps=full_steps, engine=form, basis=basis,
            max_order=order, warmup_steps=self.warmup_steps, corrections=((),) * len(full_steps),
        )  # fmt: skip

    @cached_property
    def given(self) -> list[Calibration]:
        """The given list with every basis and form, none without a list; UserError where no forecast on it can be had."""
        if self.full_steps is None:
            return []
        every = [self.uncorrected(self.full_steps, base, form) for base in self.bases for form in self.forms]
        able = list(filter(has_plan, every))
        if not able:
            cache_of(every[0]).plan(self.num_steps)  # which says why
        return able

    def searched(self) -> list[Steps]:
        """The lists that `eval/search_schedule.py` has found for the model and ship with it, with as many full steps."""
        shipped = map(read_schedule, shipped_schedules(self.args.model, self.num_steps))
        return [file.full_steps for file in shipped if len(file.full_steps) == self.count]

    def corrections_at_most(self) -> int:
        return sum(min(REACH, i + 1) for i in range(self.count))

    def runs_at_most(self) -> dict[str, int]:
        """Sampled runs with so many full steps, by stage."""
        fits = {"none": 0, "teacher": len(RIDGES), "model": len(RIDGES)}
        per_round = self.corrections_at_most() + FOLDS * len(RIDGES) * len(SHARES) + 1
        lists = self.limit if self.full_steps is None else NUM_PROBES + len(self.given)
        return {"lists": lists, "corrections": len(self.forms) * fits.get(self.fit, ROUNDS * per_round)}

    def plan(self) -> dict[str, Any]:
        """What a calibration takes: network evaluations, with all branches of guidance, in all and for one sample; bytes that
        are held at most beside the model's, and kept on disk, of latents of at most COORDINATES numbers.

        Held are the uncached latents of every step, of a batch those of a run, or the ends of all runs that derivatives are
        differences of, and one sample's in float64. Of larger latents the last ones are kept whole beside the coordinates.
        """
        samples, runs = len(self.prompts), self.runs_at_most()
        evaluations = {"uncached": self.num_steps, **{stage: self.count * number for stage, number in runs.items()}}
        row, steps = COORDINATES * 4, self.num_steps
        columns = self.corrections_at_most() + 1 if self.fit == "closed" else 0
        at_once = max(2 * steps * min(samples, self.args.batch_size), columns * samples)
        return {
            "model": self.args.model,
            "num_steps": self.num_steps,
            "full_steps": self.count,
            "forms": list(self.forms),
            "bases": [f"{basis} {order}" for basis, order in self.bases],
            "fit": self.fit,
            "samples": samples,
            "runs_at_most": runs,
            "evaluations_per_sample_at_most": evaluations,
            "uncached_runs_at_most": sum(evaluations.values()) / self.num_steps,
            "held_bytes_at_most": row * (samples * (steps + 1) + at_once + FLOAT64_ROWS * max(steps, columns)),
            "disk_bytes_at_most": samples * row * (steps + 1 + sum(runs.values())),
            "output": str(self.out),
        }

    def claim(self, contents: Mapping[str, str]) -> dict[str, Any]:
        """Everything that the outcome depends on."""
        return {
            "model": self.args.model,
            "num_steps": self.num_steps,
            "count": self.count,
            "searched_for": {
                "method": "loopseer",
                "forms": list(self.forms),
                "bases": [list(base) for base in self.bases],
                "given": None if self.full_steps is None else list(self.full_steps),
                "searched": [list(steps) for steps in self.searched()],
                "fit": self.fit,
                "lists": self.limit,
                "seed": self.seed,
            },
            "made_with": {"prompts": self.prompts, "seed": self.args.seed},
            "settings": self.settings(),
            "contents": dict(contents),
        }


def describe_plan(plan: Mapping[str, Any]) -> str:
    evaluations, runs = plan["evaluations_per_sample_at_most"], plan["runs_at_most"]
    parts = [f"{evaluations['uncached']} uncached"]
    parts += [f"{evaluations[stage]} for {number} runs ({stage})" for stage, number in runs.items() if number]
    return "\n".join(
        [
            f"{plan['model']}: {plan['full_steps']} of {plan['num_steps']} steps full; forms {', '.join(plan['forms'])}; bases "
            f"{', '.join(plan['bases'])}; fit {plan['fit']}",
            f"network evaluations of each of {plan['samples']} samples, at most: {', then '.join(parts)}; as many as "
            f"{plan['uncached_runs_at_most']:.1f} uncached runs",
            f"held beside the model, at most: {plan['held_bytes_at_most'] / 2**20:.0f} MiB of latents, no features; on disk "
            f"{plan['disk_bytes_at_most'] / 2**20:.0f} MiB, which are removed at the end",
            f"calibration: {plan['output']}",
        ]
    )


# ------------------------------------------------------------------------------------------------------------- samples


class Levels:
    """Scales of data and noise, a and b, at every step and at the end: y = x / (a + b), u = b / (a + b)."""

    def __init__(self, levels: Sequence[tuple[float, float]]) -> None:
        pairs = [*levels, (1.0, 0.0)]
        self.scales = [a + b for a, b in pairs]
        self.moves = np.diff([b / (a + b) for a, b in pairs])


class Sampling(Opening):
    """Real runs, with progress; what a folder has is not sampled again."""

    def __init__(self, job: Job, state: State, device: torch.device) -> None:
        super().__init__(job, state, device)
        self.job = job
        self.done: dict[Calibration, Sampled] = {}
        stages = job.runs_at_most()
        self.bar = tqdm(
            total=len(job.batches) * job.num_steps * (1 + sum(stages.values())),
            unit="step", mininterval=0.5, disable=None, desc="uncached",
        )  # fmt: skip
        self.reference = self._uncached()
        finite = torch.isfinite(self.reference["latents"]).all() and torch.isfinite(self.reference["final"]).all()
        if not finite:
            raise UserError("the uncached run came out with NaN or infinity; take --precision fp32 or a lower guidance")

    # -------------------------------------------------------------------------------------------------- uncached runs

    def _uncached(self) -> dict[str, Tensor]:
        """latents (B, T, n): coordinates after each step; final (B, N): the whole of the last; levels (T, 2)."""
        found = self._read("uncached")
        if found is not None:
            self.bar.update(len(self.job.batches) * self.job.num_steps)
            return found
        made: dict[str, Tensor] = {}
        for batch, rows in self._batches():
            part = self._trajectory(make_cache("uncached"), batch, first=not made)
            made = made or {
                "latents": part["latents"].new_empty(len(self.job.prompts), *part["latents"].shape[1:]),
                "final": part["final"].new_empty(len(self.job.prompts), part["final"].shape[1]),
                "levels": part["levels"],
            }
            for name in ("latents", "final"):
                made[name][rows] = part[name]
        save_tensors(self._path("uncached"), made)
        return made

    def _batches(self) -> Iterator[tuple[Batch, slice]]:
        """Each with its rows among all samples."""
        begin = 0
        for batch in self.job.batches:
            yield batch, slice(begin, begin := begin + len(batch.indices))

    def _trajectory(self, cache: Cache, batch: Batch, *, first: bool = False) -> dict[str, Tensor]:
        kept: list[Tensor] = []
        begun = [time.perf_counter()]

        def keep(_: int, latents: Tensor) -> None:
            kept.append(coordinates(latents))
            begun.append(time.perf_counter())
            if first and len(kept) == 2:
                self._tell_time(begun[2] - begun[1])
            self.bar.update()

        latents, run = self.pipeline.sample(cache, batch, keep)
        inputs = getattr(run, "runs", [run])[0].inputs
        return {
            "latents": torch.stack(kept, dim=1),
            "final": latents.float().cpu().flatten(1).contiguous(),
            "levels": torch.tensor(inputs.noise_levels, dtype=torch.float64),
        }

    def _tell_time(self, seconds: float) -> None:
        """Estimate from the second step of the first batch, the first one having work that is done once."""
        job, batches = self.job, len(self.job.batches)
        most = job.num_steps + job.count * sum(job.runs_at_most().values())
        tqdm.write(
            f"a full step of a batch takes {seconds:.2g} s on {self.device}: at most "
            f"{seconds * batches * most / 60:.1f} minutes in all",
            file=sys.stderr,
        )

    @cached_property
    def levels(self) -> Levels:
        return Levels([(a, b) for a, b in self.reference["levels"].tolist()])

    def gram(self) -> np.ndarray:
        """Inner products (B, T, T) of v, in parts of the final latents' energy; that of step 0, of whose start the runs do not
        tell, is taken from the next two in a line."""
        made = []
        for latents in self.reference["latents"]:
            v = self._velocities(latents)
            energy = latents[-1].double().square().sum().clamp_min(torch.finfo(torch.float64).tiny)
            made.append((v @ v.mT) / energy)
        return torch.stack(made).numpy()

    def _velocities(self, latents: Tensor) -> Tensor:
        """(T, n) in float64, from coordinates of a sample's latents (T, n)."""
        levels = self.levels
        y = latents.double() / torch.tensor(levels.scales[1:], dtype=torch.float64)[:, None]
        later = y.diff(dim=0) / torch.tensor(levels.moves[1:])[:, None]  # of steps 1, 2, …
        first = 2 * later[:1] - later[1:2] if len(later) > 1 else later[:1]
        return torch.cat([first, later])

    # ---------------------------------------------------------------------------------------------------- cached runs

    def __call__(self, calibration: Calibration) -> Sampled:
        if calibration not in self.done:
            name = digest(calibration)
            found = self._read(name)
            if found is None:
                found = self._sampled(calibration)
                save_tensors(self._path(name), found)
            else:
                self.bar.update(len(self.job.batches) * self.job.num_steps)
            self.done[calibration] = Sampled(found["moments"].numpy(), found["similarity_db"].tolist())
            best = max(self.done.values(), key=lambda one: one.mean_db)
            self.bar.set_description(f"run {len(self.done)}, best {best.mean_db:.2f} dB")
        return self.done[calibration]

    def _sampled(self, calibration: Calibration) -> dict[str, Tensor]:
        cache, parts = cache_of(calibration), []
        for batch, rows in self._batches():
            run = self._trajectory(cache, batch)
            pairs = zip(run["latents"], self.reference["latents"][rows], strict=True)
            similarity = similarity_db(run["final"], self.reference["final"][rows])
            parts.append(
                {
                    "final": run["latents"][:, -1].clone(),
                    "moments": torch.stack([self._moments(*pair) for pair in pairs]),
                    "similarity_db": torch.tensor(similarity, dtype=torch.float64),
                }
            )
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _moments(self, latents: Tensor, reference: Tensor) -> Tensor:
        """(T, 3) of a sample, from coordinates (T, n) of its latents after each step."""
        scales = torch.tensor(self.levels.scales[1:], dtype=torch.float64)[:, None]
        distance = (latents.double() - reference.double()) / scales
        before = torch.cat([torch.zeros_like(distance[:1]), distance[:-1]])
        answer = (distance - before) / torch.tensor(self.levels.moves)[:, None]
        return torch.stack([before.square().sum(1), (before * answer).sum(1), answer.square().sum(1)], dim=1)

    def final(self, calibration: Calibration) -> Tensor:
        """Coordinates of a run's final latents (B, n), which are kept on disk alone."""
        self(calibration)
        return load_file(self._path(digest(calibration)))["final"]

    def _path(self, name: str) -> Path:
        return self.state.folder / f"{name}.safetensors"

    def _read(self, name: str) -> dict[str, Tensor] | None:
        try:
            return load_file(self._path(name))
        except (OSError, SafetensorError):
            return None


def cache_of(calibration: Calibration) -> Cache:
    """The cache that follows a calibration which is in no file yet."""
    plain = make_cache("taylorseer", full_steps=calibration.full_steps, max_order=0, engine=calibration.engine)
    return replace(plain, forecaster=calibration)


# -------------------------------------------------------------------------------------------------------------- search


class Search:
    """The stages of the calibration, over real runs that `sample` gives."""

    def __init__(self, job: Job, sample: Sampling) -> None:
        self.job, self.sample = job, sample
        self.gram, self.moves = sample.gram(), sample.levels.moves
        self.lists: list[Calibration] = []
        self.stages: list[dict[str, Any]] = []

    def quality(self, calibration: Calibration) -> float:
        """Mean similarity in dB of a run that is sampled, where one may be; -EXACT_DB for weights that no plan takes."""
        if not has_plan(calibration):
            return -EXACT_DB
        if calibration not in self.sample.done:
            self.lists.append(calibration)
        return self.sample(calibration).mean_db

    def more(self) -> bool:
        return len(self.lists) < self.job.limit

    def model(self, calibration: Calibration, caution: float = CAUTION[0]) -> LoopModel:
        """With the sensitivity that all runs so far have shown."""
        runs = [(one.full_steps, found.moments) for one, found in self.sample.done.items()]
        seen = Sensitivity.measured(runs, self.job.num_steps)
        seen = replace(seen, incoherent=caution * seen.incoherent)
        return LoopModel(self.gram, self.moves, seen, calibration.uncorrected)

    def note(self, stage: str, calibration: Calibration) -> None:
        """Nothing of a list whose weights no plan takes, which is not sampled."""
        if not has_plan(calibration):
            return
        self.stages.append(
            {
                "stage": stage,
                "similarity_db": self.quality(calibration),
                "full_steps": list(calibration.full_steps),
                "engine": calibration.engine,
                "basis": calibration.basis,
                "max_order": calibration.max_order,
                "runs": len(self.sample.done),
            }
        )

    def found(self) -> Calibration:
        """The best list with its form and basis."""
        job = self.job
        usual = self._usual_base()
        probes = {
            "published": published_steps(job.num_steps, job.count, job.warmup_steps),
            "even": even_steps(job.num_steps, job.count),
        }
        for name, steps in probes.items():
            self.note(name, self.job.uncorrected(steps, usual, job.forms[0]))
        if job.given:
            return max(job.given, key=self.quality)
        self.quality(self.job.uncorrected(ending_steps(job.num_steps, job.count), usual, job.forms[0]))
        for steps in job.searched():
            self.note("searched schedule", self.job.uncorrected(steps, usual, job.forms[0]))
        for base in job.bases:
            if self.more():
                self.quality(self._proposed(base, CAUTION[0]))
        self.note("proposed", self.best())
        ranked = sorted(self.lists, key=self.quality, reverse=True)
        bases = dict.fromkeys((one.basis, one.max_order) for one in ranked)
        for base, caution in itertools.product(list(bases)[:FINALISTS], CAUTION):
            if self.more():
                self.quality(self._proposed(base, caution))
        self.note("proposed again", self.best())
        best = self.best()
        for base, form in itertools.product(job.bases, job.forms):
            if self.more():
                self.quality(job.uncorrected(best.full_steps, base, form))
        self.note("form", self.best())
        self._move()
        self.note("moved", self.best())
        return self.best()

    def best(self) -> Calibration:
        if not self.lists:
            job = self.job
            raise UserError(
                f"with {job.count} of {job.num_steps} steps full the weights of all bases are out of "
                "bounds; take a lower --max-order or more --full-steps"
            )
        return max(self.lists, key=self.quality)

    def by_form(self) -> list[Calibration]:
        """The best list of every form, a given list with its best basis: corrections make up for more in one than another."""
        ranked = sorted(self.lists, key=self.quality, reverse=True)
        if self.job.full_steps is not None:
            ranked = [one for one in ranked if one.full_steps == self.job.full_steps]
        best: dict[str, Calibration] = {}
        for one in ranked:
            best.setdefault(one.engine, one)
        return [best[form] for form in self.job.forms if form in best]

    def _usual_base(self) -> tuple[str, int]:
        """The published order, where it is among those to choose from."""
        usual = ("taylor", PRESETS[PACKAGES[self.job.args.model]].max_order)
        return usual if usual in self.job.bases else self.job.bases[0]

    def _proposed(self, base: tuple[str, int], caution: float) -> Calibration:
        """The best list by the model of a run."""
        model = self.model(self.job.uncorrected((0,), base, self.job.forms[0]), caution)
        best = best_list(
            model.similarity_db, even_steps(self.job.num_steps, self.job.count), self.job.num_steps, self.job.seed
        )
        return self.job.uncorrected(best, base, self.job.forms[0])

    def _move(self) -> None:
        """Sample moves of single full steps of the best, those first of which the model thinks well, while one gains."""
        while self.more():
            best, model = self.best(), self.model(self.best())
            options = sorted(moved(best.full_steps, self.job.num_steps), key=model.similarity_db, reverse=True)
            for steps in options:
                if (
                    not self.more()
                    or self.quality(replace(best, full_steps=steps)) > self.quality(best) + LEAST_GAIN_DB
                ):
                    break
            else:
                return

    # ---------------------------------------------------------------------------------------------------- corrections

    def fitted(self, start: Calibration) -> Calibration:
        """With the corrections of the job's fit; as it was where none helps."""
        keys = correction_keys(start.full_steps, self.job.num_steps, REACH)
        if self.job.fit == "none" or not keys:
            return start
        if self.job.fit == "closed":
            best = start
            for _ in range(ROUNDS):
                better = self._gauss_newton(best, keys)
                if better == best:
                    break
                best = better
            return best
        model = self.model(start)
        solve = model.teacher_forced if self.job.fit == "teacher" else model.fitted
        options = [corrected(start, solve(start.full_steps, keys, ridge)) for ridge in RIDGES]
        return max([start, *filter(None, options)], key=lambda one: self.sample(one).mean_db)

    def _gauss_newton(self, start: Calibration, keys: Sequence[Key]) -> Calibration:
        """One step along the corrections; its ridge is the one that samples gain by which it was not fitted to."""
        here, values = self.sample(start), corrections_of(start)
        finals = [self.sample.final(start)]
        for key in keys:
            changed = with_corrections(start, {**values, key: values.get(key, 0.0) + DIFFERENCE})
            finals.append(self.sample.final(changed))
        curvatures, slopes, energies = [], [], []  # by sample
        for reference, mine, *others in zip(self.sample.reference["latents"][:, -1], *finals, strict=True):
            derivative = (torch.stack(others, dim=1).double() - mine.double()[:, None]) / DIFFERENCE  # (n, P)
            residual = mine.double() - reference.double()
            curvatures.append(derivative.T @ derivative)
            slopes.append(derivative.T @ residual)
            energies.append(residual.square().sum())
        curvature, slope = (torch.stack(made).numpy() for made in (curvatures, slopes))
        weights = 1 / torch.stack(energies).clamp_min(1e-12).numpy()  # so that a mean of decibels falls

        def stepped(rows: np.ndarray, ridge: float, share: float) -> Calibration | None:
            own = [np.einsum("b,b...->...", weights[rows], made[rows]) for made in (curvature, slope)]
            by = dict(zip(keys, -ridged(*own, ridge), strict=True))
            return corrected(start, {key: values.get(key, 0.0) + share * by[key] for key in keys})

        rows = np.arange(len(weights))
        folds = [rows % FOLDS == fold for fold in range(FOLDS)] if len(rows) >= FOLDS else []

        def unseen(ridge: float, share: float) -> float | None:
            """The mean gain in dB on the samples that a step was not fitted to; None for one that cannot be taken."""
            gains = np.zeros(len(rows))
            for fold in folds:
                step = stepped(~fold, ridge, share)
                if step is None:
                    return None
                gains[fold] = np.subtract(self.sample(step).similarity_db, here.similarity_db)[fold]
            return float(gains.mean())

        options = list(itertools.product(RIDGES, SHARES)) if folds else [(RIDGES[-1], SHARES[0])]
        gains = {option: unseen(*option) for option in options}
        tried = [
            {"ridge": ridge, "share": share, "gain_on_unseen_db": gain if folds else None}
            for (ridge, share), gain in gains.items()
        ]
        self.stages.append({"stage": "step", "engine": start.engine, "tried": tried})
        able = {option: gain for option, gain in gains.items() if gain is not None and (gain > 0 or not folds)}
        better = stepped(rows >= 0, *max(able, key=lambda option: able[option])) if able else None
        return better if better is not None and self.sample(better).mean_db > here.mean_db else start


def ending_steps(num_steps: int, count: int) -> Steps:
    """Even full steps of which the last is the last step, a list that a search learns from beside those that begin so."""
    if count == 1:
        return (0,)
    return tuple(i * (num_steps - 1) // (count - 1) for i in range(count))


def corrections_of(calibration: Calibration) -> dict[Key, float]:
    return {
        (step, back): value
        for step, row in zip(calibration.full_steps, calibration.corrections, strict=True)
        for back, value in enumerate(reversed(row))
    }


def with_corrections(calibration: Calibration, corrections: Mapping[Key, float]) -> Calibration:
    rows = []
    for step in calibration.full_steps:
        reach = max((back + 1 for of, back in corrections if of == step), default=0)
        rows.append(tuple(float(corrections.get((step, back), 0.0)) for back in reversed(range(reach))))
    return replace(calibration, corrections=tuple(rows))


def corrected(calibration: Calibration, corrections: Mapping[Key, float]) -> Calibration | None:
    """`with_corrections`; None for those that no file may hold or no plan takes, as where next to nothing depends on one."""
    try:
        made = with_corrections(calibration, corrections)
    except UserError:
        return None
    return made if has_plan(made) else None


def has_plan(calibration: Calibration) -> bool:
    """Whether its weights are within bounds."""
    try:
        cache_of(calibration).plan(calibration.num_steps)
    except UserError:
        return False
    return True


def run(job: Job, *, resume: bool) -> dict[str, Any]:
    """The calibration that is found, written to its output."""
    device = resolve_device(job.args.device)
    claim = job.claim(digests(job.family.find(job.args)))
    if resume and (made := finished(job.out, claim)) is not None:
        return made
    state = State(job.out.with_suffix(".search"), claim, resume=resume)
    sampling = Sampling(job, state, device)
    search = Search(job, sampling)
    listed = search.found()
    final = max([search.fitted(one) for one in search.by_form()], key=search.quality)
    search.note("fitted", final)
    sampling.bar.close()
    made = {
        "method": "loopseer",
        **asdict(final),
        **claim,
        "stages": search.stages,
        "similarity_db": {"list": sampling(listed).mean_db, "fitted": sampling(final).mean_db},
        "units": "similarity_db: energy of the uncached final latents over that of the difference, mean over samples",
        "runs_sampled": len(sampling.done),
        "command": "eval/calibrate_loopseer.py",
        "command_line": job.command_line,
        "conditions": conditions(device, torch_dtype(job.args.precision)),
    }
    write_json(job.out, made)
    state.remove()
    return made


def describe(made: Mapping[str, Any]) -> str:
    found = made["similarity_db"]
    lines = [
        f"{made['model']}: {len(made['full_steps'])} of {made['num_steps']} steps full: {describe_steps(made['full_steps'])}",
        f"form {made['engine']}, {made['basis']} weights of order {made['max_order']}",
    ]
    for stage in made["stages"]:
        if "similarity_db" in stage:
            lines.append(f"{stage['stage']}: {stage['similarity_db']:.2f} dB after {stage['runs']} runs")
    lines.append(f"corrections: {found['list']:.2f} dB -> {found['fitted']:.2f} dB on the calibration samples")
    return "\n".join(lines)
