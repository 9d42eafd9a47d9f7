"""LoopSeer's calibration: lists that the model of a run proposes, sampled for real; corrections, fitted in the closed loop.

1. The calibration samples are drawn without a cache; of every step some coordinates of the latents are kept, no features.
2. A few lists are sampled, which says how the network answers to a distance of its input (`loop_model.Sensitivity`); the even
   one with every basis in every form, of which the best form is that of the lists to come.
3. For each basis the best list is sought in the model of a run and sampled; what that teaches of the sensitivity goes into a
   second round. The best is sampled with every basis in every form, since what the model thinks of a basis holds for no form in
   particular, and then with every basis damped. The best of all is moved step by step, in the order in which the model thinks
   well of the moves, while samples come nearer to the uncached ones. Lists race: one is sampled on further samples only while
   it may still be the best.
4. Corrections of the weights are fitted: in the model of a run; or, with a run for each of them, to the final latents of
   sampled runs, by a Gauss-Newton step whose derivatives are differences of runs. How far that goes, and whether it is taken,
   is decided on samples that it was not fitted to.

What was sampled is kept in a folder beside the output; a killed calibration goes through it again and goes on where it ended.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
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
DAMPINGS = (1.0, 0.85, 0.7, 0.5)
"""Of forecasts, to choose from; a list is sought with the first."""
NUM_PROBES = 2
"""Lists that are sampled beside a given one: they tell how the network answers, and what the given one is worth."""
RIDGES = (0.01, 0.1, 1.0)
SHARES = (0.5, 1.0)
"""Of a Gauss-Newton step, that may be taken: the network answers to large changes less than in proportion."""
ROUNDS = 1
"""Of Gauss-Newton steps."""
DIFFERENCE = 0.03
"""Of a weight, by which derivatives are taken."""
MADE_UP_DB = 2.0
"""The most that corrections were seen to gain, in one form more than in another."""
FOLDS = 2
TOLD_APART = 1.0
"""Standard errors of its mean that a paired difference must exceed to be believed: enough to choose by, no proof."""
LEAST_SEEN = 4
"""Samples that a difference is told on, at the least."""
FLOAT64_ROWS = 10
"""Rows of float32 that are as large as what stands in float64 for each row of one sample while it is measured."""


@dataclass(frozen=True)
class Sampled:
    """A run: by step |e|², e·d and |d|² as `Sensitivity.measured` takes them, and how near it came, by sample.

    Of the first samples alone, where it was given up; mean_db then is that of what it lost to, less what it is worse by.
    """

    moments: np.ndarray
    similarity_db: list[float]
    mean_db: float


@dataclass(frozen=True, kw_only=True)
class Job(Asked):
    """A calibration. forms, bases, dampings: to choose from. full_steps: a list that is taken and not sought. fit: none,
    teacher, model or closed."""

    forms: tuple[str, ...]
    bases: tuple[tuple[str, int], ...]
    dampings: tuple[float, ...]
    full_steps: Steps | None
    fit: str

    @property
    def warmup_steps(self) -> int:
        return PRESETS[PACKAGES[self.args.model]].warmup_steps

    def uncorrected(
        self, full_steps: Steps, base: tuple[str, int], form: str, damping: float | None = None
    ) -> Calibration:
        """Of the first damping to choose from, where none is asked for."""
        (basis, order), damping = base, self.dampings[0] if damping is None else damping
        return Calibration(
            model=self.args.model, num_steps=self.num_steps, full_steps=full_steps, engine=form, basis=basis,
            max_order=order, warmup_steps=self.warmup_steps, damping=damping, corrections=((),) * len(full_steps),
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

    @property
    def fits(self) -> bool:
        """Whether corrections are fitted: too few samples do not tell of one whether it helps."""
        return self.fit != "none" and len(self.prompts) >= LEAST_SEEN

    def damped_at_most(self) -> int:
        return len(self.bases) * (len(self.dampings) - 1)

    def corrections_at_most(self) -> int:
        return sum(min(REACH, i + 1) for i in range(self.count))

    def runs_at_most(self) -> dict[str, int]:
        """Sampled runs with so many full steps, by stage."""
        by_model = FOLDS * len(RIDGES) + 1
        by_runs = ROUNDS * (self.corrections_at_most() + FOLDS * len(RIDGES) * len(SHARES) + 1)
        fit = (by_runs if self.fit == "closed" else by_model) if self.fits else 0
        lists = self.limit if self.full_steps is None else NUM_PROBES + len(self.given) + self.damped_at_most()
        return {"lists": lists, "corrections": len(self.forms) * fit}

    def plan(self) -> dict[str, Any]:
        """What a calibration takes: network evaluations, with all branches of guidance, in all and for one sample; bytes that
        are held at most beside the model's, and kept on disk, of latents of at most COORDINATES numbers.

        Held are the uncached latents of every step, the ends of a run, twice while a batch is added, of a batch those of every
        step, the ends of all runs that derivatives are differences of, and one sample's in float64. Of larger latents the last
        ones are kept whole beside the coordinates.
        """
        samples, runs = len(self.prompts), self.runs_at_most()
        evaluations = {"uncached": self.num_steps, **{stage: self.count * number for stage, number in runs.items()}}
        row, steps = COORDINATES * 4, self.num_steps
        columns = self.corrections_at_most() + 1 if self.fits and self.fit == "closed" else 0
        at_once = 2 * steps * min(samples, self.args.batch_size) + columns * samples
        return {
            "model": self.args.model,
            "num_steps": self.num_steps,
            "full_steps": self.count,
            "forms": list(self.forms),
            "bases": [f"{basis} {order}" for basis, order in self.bases],
            "dampings": list(self.dampings),
            "fit": self.fit if self.fits else "none",
            "samples": samples,
            "runs_at_most": runs,
            "evaluations_per_sample_at_most": evaluations,
            "uncached_runs_at_most": sum(evaluations.values()) / self.num_steps,
            "held_bytes_at_most": row * (samples * (steps + 3) + at_once + FLOAT64_ROWS * max(steps, columns)),
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
                "dampings": list(self.dampings),
                "given": None if self.full_steps is None else list(self.full_steps),
                "searched": [list(steps) for steps in self.searched()],
                "fit": self.fit,
                "lists": self.limit,
                "seed": self.seed,
            },
            "made_with": {"prompts": self.prompts, "seed": self.args.seed, "batch_size": self.args.batch_size},
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
            f"{', '.join(plan['bases'])}; damping {', '.join(map('{:g}'.format, plan['dampings']))}; fit {plan['fit']}",
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
        if not all(torch.isfinite(one).all() for name in ("latents", "final") for one in self.reference[name]):
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

    def __call__(self, calibration: Calibration, rival: Sampled | None = None) -> Sampled:
        """A run. rival: of all samples; a run that is told apart as worse is given up, and goes on if it is asked for whole."""
        done, whole = self.done.get(calibration), len(self.job.prompts)
        if done is None or (rival is None and len(done.similarity_db) < whole):
            found = self._sampled(calibration, rival)
            similarity = found["similarity_db"].numpy()
            mean = float(similarity.mean())
            if rival is not None and len(similarity) < whole:
                mean += rival.mean_db - float(np.mean(rival.similarity_db[: len(similarity)]))
            self.done[calibration] = Sampled(found["moments"].numpy(), similarity.tolist(), mean)
            best = max(self.done.values(), key=lambda one: one.mean_db)
            self.bar.set_description(f"run {len(self.done)}, best {best.mean_db:.2f} dB")
        return self.done[calibration]

    def _sampled(self, calibration: Calibration, rival: Sampled | None) -> dict[str, Tensor]:
        """By name, of as many samples as it takes; each batch is kept."""
        name, cache = digest(calibration), cache_of(calibration)
        found = self._read(name) or {}
        for number, (batch, rows) in enumerate(self._batches()):
            begin = rows.start
            if rival is not None and begin and told_worse(found["similarity_db"][:begin], rival.similarity_db[:begin]):
                self.bar.update((len(self.job.batches) - number) * self.job.num_steps)
                return {part: values[:begin] for part, values in found.items()}
            if len(found.get("similarity_db", ())) > begin:
                self.bar.update(self.job.num_steps)
                continue
            made = self._batch(cache, batch, rows)
            found = {part: torch.cat([found[part], made[part]]) for part in made} if found else made
            save_tensors(self._path(name), found)
        return found

    def _batch(self, cache: Cache, batch: Batch, rows: slice) -> dict[str, Tensor]:
        run = self._trajectory(cache, batch)
        pairs = zip(run["latents"], self.reference["latents"][rows], strict=True)
        similarity = similarity_db(run["final"], self.reference["final"][rows])
        return {
            "final": run["latents"][:, -1].clone(),
            "moments": torch.stack([self._moments(*pair) for pair in pairs]),
            "similarity_db": torch.tensor(similarity, dtype=torch.float64),
        }

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


def told_worse(mine: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a run's samples have less than the same samples of another, beyond the error of the mean."""
    return beyond_chance(np.asarray(other) - np.asarray(mine))


def beyond_chance(gains: np.ndarray) -> bool:
    """Whether the mean of paired differences is above 0 by more than TOLD_APART of its standard errors."""
    if len(gains) < LEAST_SEEN:
        return False
    return float(gains.mean()) > TOLD_APART * float(gains.std(ddof=1)) / len(gains) ** 0.5


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
        return self.sample(calibration, self._leader()).mean_db

    def _leader(self) -> Sampled | None:
        """The best run so far, which others race with; one that was given up has less than what it lost to. Runs of a given
        list race with each other alone, whatever it is worth."""
        given = self.job.full_steps
        runs = (found for one, found in self.sample.done.items() if given in (None, one.full_steps))
        return max(runs, key=lambda found: found.mean_db, default=None)

    def more(self) -> bool:
        return len(self.lists) < self.job.limit

    def model(self, calibration: Calibration, caution: float = CAUTION[0]) -> LoopModel:
        """With the sensitivity that all runs so far have shown."""
        return self._model(calibration, self._runs(), np.ones(len(self.gram), dtype=bool), caution)

    def _runs(self) -> list[tuple[Steps, np.ndarray]]:
        """Of all runs so far, as `Sensitivity.measured` takes them."""
        return [(one.full_steps, found.moments) for one, found in self.sample.done.items()]

    def _model(
        self,
        calibration: Calibration,
        moments: Sequence[tuple[Steps, np.ndarray]],
        rows: np.ndarray,
        caution: float = CAUTION[0],
    ) -> LoopModel:
        """Of the samples of `rows`, (B,) of bool, alone."""
        seen = [(steps, values[rows[: len(values)]]) for steps, values in moments]
        found = Sensitivity.measured([one for one in seen if len(one[1])], self.job.num_steps, int(rows.sum()))
        found = replace(found, incoherent=caution * found.incoherent)
        return LoopModel(self.gram[rows], self.moves, found, calibration.uncorrected)

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
                "damping": calibration.damping,
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
            self.note(name, job.uncorrected(steps, usual, job.forms[0]))
        if job.given:
            self._damp(max(job.given, key=self.quality))
            return self._ranked()[0]
        self._each(probes["even"], job.limit // 3)
        even = [one for one in self.lists if one.full_steps == probes["even"]]
        form = max(even, key=self.quality).engine if even else job.forms[0]
        if self.more():
            self.quality(job.uncorrected(ending_steps(job.num_steps, job.count), usual, form))
        for steps in job.searched():
            if self.more():
                self.note("searched schedule", job.uncorrected(steps, usual, form))
        for base in job.bases:
            if self.more():
                self.quality(self._proposed(base, CAUTION[0], form))
        self.note("proposed", self.best())
        bases = dict.fromkeys((one.basis, one.max_order) for one in self._ranked())
        for base, caution in itertools.product(list(bases)[:FINALISTS], CAUTION):
            if self.more():
                self.quality(self._proposed(base, caution, form))
        self.note("proposed again", self.best())
        self._each(self.best().full_steps, job.limit)
        self.note("form", self.best())
        self._damp(self.best())
        self.note("damping", self.best())
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

    def _ranked(self) -> list[Calibration]:
        """All that was sampled for a list, the best first; of a given list what was sampled on it."""
        given = self.job.full_steps
        found = (one for one in self.lists if given in (None, one.full_steps))
        return sorted(found, key=self.quality, reverse=True)

    def by_form(self) -> list[Calibration]:
        """The best list of every form that corrections may make the best, a given list with its best basis."""
        ranked = self._ranked()
        best: dict[str, Calibration] = {}
        for one in ranked:
            if self.quality(one) >= self.quality(ranked[0]) - MADE_UP_DB:
                best.setdefault(one.engine, one)
        return [best[form] for form in self.job.forms if form in best]

    def _usual_base(self) -> tuple[str, int]:
        """The published order, where it is among those to choose from."""
        usual = ("taylor", PRESETS[PACKAGES[self.job.args.model]].max_order)
        return usual if usual in self.job.bases else self.job.bases[0]

    def _proposed(self, base: tuple[str, int], caution: float, form: str) -> Calibration:
        """The best list by the model of a run."""
        model = self.model(self.job.uncorrected((0,), base, form), caution)
        best = best_list(
            model.similarity_db, even_steps(self.job.num_steps, self.job.count), self.job.num_steps, self.job.seed
        )
        return self.job.uncorrected(best, base, form)

    def _each(self, full_steps: Steps, limit: int) -> None:
        """Sample a list with every basis in every form, while there are fewer lists than the limit."""
        for base, form in itertools.product(self.job.bases, self.job.forms):
            if len(self.lists) < limit:
                self.quality(self.job.uncorrected(full_steps, base, form))

    def _damp(self, found: Calibration) -> None:
        """Sample a list in its form with every basis, damped: those of high order may then be better than those of low."""
        for base, damping in itertools.product(self.job.bases, self.job.dampings):
            if self.more() or self.job.given:
                self.quality(self.job.uncorrected(found.full_steps, base, found.engine, damping))

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
        """With the corrections of the job's fit; as it was where none helps, or too few samples would tell."""
        keys = correction_keys(start.full_steps, self.job.num_steps, REACH)
        if not self.job.fits or not keys:
            return start
        if self.job.fit == "closed":
            best = start
            for _ in range(ROUNDS):
                better = self._gauss_newton(best, keys)
                if better == best:
                    break
                best = better
            return best

        self.sample(start)
        moments = self._runs()

        def fit(rows: np.ndarray, ridge: float) -> Calibration | None:
            model = self._model(start, moments, rows)
            solve = model.teacher_forced if self.job.fit == "teacher" else model.fitted
            return corrected(start, solve(start.full_steps, keys, ridge))

        return self._cross_fitted(start, [(ridge,) for ridge in RIDGES], fit)

    def _cross_fitted(
        self,
        start: Calibration,
        options: Sequence[tuple[float, ...]],
        fit: Callable[..., Calibration | None],
    ) -> Calibration:
        """fit(rows, *option): what is fitted to the samples of `rows`, None where it cannot be taken.

        The option is taken by which samples gain most that it was not fitted to, and then fitted to all; `start` where they do
        not gain beyond chance.
        """
        here = self.sample(start)
        rows = np.arange(len(here.similarity_db))

        def unseen(option: tuple[float, ...]) -> np.ndarray | None:
            """The gains in dB of the samples that a fit has not seen."""
            gains = np.zeros(len(rows))
            for fold in (rows % FOLDS == number for number in range(FOLDS)):
                found = fit(~fold, *option)
                if found is None:
                    return None
                gains[fold] = np.subtract(self.sample(found).similarity_db, here.similarity_db)[fold]
            return gains

        gains = {option: unseen(option) for option in options}
        means = {option: float(of.mean()) for option, of in gains.items() if of is not None}
        self.stages.append(
            {
                "stage": "corrections",
                "engine": start.engine,
                "tried": [{"option": list(option), "gain_on_unseen_db": means.get(option)} for option in options],
            }
        )
        able = [option for option, of in gains.items() if of is not None and beyond_chance(of)]
        better = fit(rows >= 0, *max(able, key=lambda option: means[option])) if able else None
        return better if better is not None and self.sample(better).mean_db > here.mean_db else start

    def _gauss_newton(self, start: Calibration, keys: Sequence[Key]) -> Calibration:
        """One step along the corrections."""
        values = corrections_of(start)
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

        def stepped(rows: np.ndarray, share: float, ridge: float) -> Calibration | None:
            own = [np.einsum("b,b...->...", weights[rows], made[rows]) for made in (curvature, slope)]
            by = dict(zip(keys, -ridged(*own, ridge), strict=True))
            return corrected(start, {key: values.get(key, 0.0) + share * by[key] for key in keys})

        return self._cross_fitted(start, list(itertools.product(reversed(SHARES), RIDGES)), stepped)


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
        f"form {made['engine']}, {made['basis']} weights of order {made['max_order']}, damping {made['damping']:g}",
    ]
    for stage in made["stages"]:
        if "similarity_db" in stage:
            lines.append(f"{stage['stage']}: {stage['similarity_db']:.2f} dB after {stage['runs']} runs")
    lines.append(f"corrections: {found['list']:.2f} dB -> {found['fitted']:.2f} dB on the calibration samples")
    return "\n".join(lines)
