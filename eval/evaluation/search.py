"""The search for full steps: exact dynamic programming over errors measured on an uncached run, then steps moved one by one.

The first stage needs the uncached runs of the calibration samples alone. A forecast of the latents' own change in a step, made
from their changes in other steps, stands for the forecast of features; the errors of all forecasts in a gap add up to one
vector, and gaps add up by the squares of its length (after DPCache, arXiv 2602.22654, which adds norms of a hidden state).
The second stage samples for real: a full step is moved by one where that brings the final latents nearer to the uncached ones.

Everything that was computed is kept in a folder beside the output until that is written. The search is a function of it, so
that a killed one goes on by going through what is there.
"""

import argparse
import itertools
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from cache_dic import PRESETS, Cache, UserError, make_cache
from cache_dic.errors import code_of
from cache_dic.plan import Plan, describe_steps
from cache_dic.schedule import taylorseer
from cache_dic.settings import json_value, values_of
from evaluation.backbones import PACKAGES
from evaluation.calibration import Family, Sampler, even_steps
from evaluation.jobs import digests
from seerkit.devices.distributed import resolve_device
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.claims import differences
from seerkit.io.files import clear_partial, read_json, write_json
from seerkit.io.records import conditions
from seerkit.text.prompts import Batch, make_batches
from seerkit.weights.checkpoints import save_tensors

Steps = tuple[int, ...]

COORDINATES = 2**18
"""Of a sample's latents, the most that errors are measured on; of larger ones as many are drawn."""
MOST_GAPS = 50_000
"""Errors that the dynamic programming measures at most, which bounds the full steps that its states remember."""
LEAST_GAIN_DB = 0.01
"""Of a move: what is less is within what other samples would say."""
EXACT_DB = 200.0
"""Stands for latents that are equal."""


# ------------------------------------------------------------------------------------------------- dynamic programming


class GapErrors:
    """Errors of the forecasts between two full steps, by the full steps before them.

    gram (T, T): inner products of what is forecast at the T steps of an uncached run. weights(full_steps, step): as of a
    forecaster.
    """

    def __init__(self, gram: np.ndarray, weights: Callable[[Steps, int], Sequence[float]]) -> None:
        self.gram, self.weights = gram, weights
        self._after: dict[Steps, list[float]] = {}

    def __call__(self, state: Steps, following: int) -> float:
        """The squared length of the summed errors from the last full step of `state` to the one that follows, T for none."""
        if state not in self._after:
            self._after[state] = self._measured(state)
        return self._after[state][following - state[-1] - 1]

    def _measured(self, state: Steps) -> list[float]:
        total, errors = np.zeros(len(self.gram)), [0.0]
        for step in range(state[-1] + 1, len(self.gram)):
            row = self.weights(state, step)
            total[list(state[-len(row) :])] += row
            total[step] -= 1
            errors.append(max(0.0, float(total @ self.gram @ total)))
        return errors


def best_full_steps(num_steps: int, count: int, error: Callable[[Steps, int], float], memory: int) -> Steps:
    """The `count` full steps, 0 among them, whose gaps have the least error together.

    error(state, following): of the gap after the last of `state`, the last `memory` full steps or as many as there are.
    """
    layer: dict[Steps, tuple[float, Steps]] = {(0,): (0.0, (0,))}
    for missing in range(count - 1, 0, -1):
        reached: dict[Steps, tuple[float, Steps]] = {}
        for state, (cost, path) in layer.items():
            for step in range(state[-1] + 1, num_steps - missing + 1):
                total, key = cost + error(state, step), (*state, step)[-memory:]
                if key not in reached or total < reached[key][0]:
                    reached[key] = total, (*path, step)
        layer = reached
    return min((cost + error(state, num_steps), path) for state, (cost, path) in layer.items())[1]


def remembered(plan: Plan) -> int:
    """Full steps that a state remembers: as many as a forecast reaches back, as far as MOST_GAPS allows."""
    memory = max(1, plan.history)
    while memory > 1 and math.comb(plan.num_steps, memory + 1) > MOST_GAPS:
        memory -= 1
    return memory


# ---------------------------------------------------------------------------------------------------------- refinement


def refine(
    start: Steps, quality: Callable[[Steps], float], num_steps: int, more: Callable[[], bool] = lambda: True
) -> Steps:
    """Move full steps by one, each in turn, while that gains, until a round of all gains nothing or there is to be no more.

    Step 0 stays full. quality(full_steps): the higher the better, in dB; what was asked before costs nothing.
    """
    best = start
    while more():
        before = best
        for place in range(1, len(best)):
            for move in (-1, 1):
                while (moved := _moved(best, place, move, num_steps)) is not None and more():
                    if quality(moved) < quality(best) + LEAST_GAIN_DB:
                        break
                    best = moved
        if best == before:
            break
    return best


def _moved(steps: Steps, place: int, move: int, num_steps: int) -> Steps | None:
    """None where the step would leave the run or meet another."""
    step, bounds = steps[place] + move, (*steps, num_steps)
    return (*steps[:place], step, *steps[place + 1 :]) if bounds[place - 1] < step < bounds[place + 1] else None


# --------------------------------------------------------------------------------------------------- lists to begin with


def published_steps(num_steps: int, count: int, warmup_steps: int) -> Steps:
    """TaylorSeer's own rule with so many full steps: the least warm-up from the published one on, and the least interval."""
    for warmup in range(warmup_steps, count + 1):
        for interval in range(1, num_steps + 1):
            steps = taylorseer(num_steps, interval=interval, warmup_steps=warmup)
            if len(steps) == count:
                return steps
    return tuple(range(count))


# ------------------------------------------------------------------------------------------------------------- samples


def typical(similarity: Sequence[float]) -> float:
    """The mean of samples without the quarter that came out best and the quarter that came out worst.

    A sample that falls into another image at some list, and not at others, would decide the search alone.
    """
    left_out = len(similarity) // 4
    return float(np.mean(sorted(similarity)[left_out : len(similarity) - left_out]))


def similarity_db(latents: Tensor, reference: Tensor) -> list[float]:
    """By sample, the energy of the reference over that of the difference, in dB; -EXACT_DB where latents are not finite."""
    reference, latents = reference.flatten(1).double().cpu(), latents.flatten(1).double().cpu()
    ratio = reference.square().sum(1) / (latents - reference).square().sum(1)
    found = (10 * ratio.log10()).clamp(-EXACT_DB, EXACT_DB)
    return torch.where(latents.isfinite().all(1), found.nan_to_num(EXACT_DB), -EXACT_DB).tolist()


def coordinates(latents: Tensor) -> Tensor:
    """(B, n) in float32 on the CPU: all, or as many as COORDINATES, drawn once and for all."""
    flat = latents.flatten(1).float()
    if flat.shape[1] > COORDINATES:
        draw = torch.Generator().manual_seed(0)
        flat = flat[:, torch.randint(flat.shape[1], (COORDINATES,), generator=draw).to(flat.device)]
    return flat.cpu()


def changes_gram(latents: Sequence[Tensor]) -> Tensor:
    """Inner products (B, T, T), in float64, of the latents' changes at T steps.

    latents: (B, n) after each step. The change at step 0, of which they do not tell, is taken from the next two in a line.
    """
    changes = [after - before for before, after in itertools.pairwise(latents)]
    first = 2 * changes[0] - changes[1] if len(changes) > 1 else changes[0]
    stacked = torch.stack([first, *changes], dim=1).double()  # (B, T, n)
    return stacked @ stacked.mT


class State:
    """What a search has computed, in a folder: uncached runs by batch, and lists of full steps with what they came to.

    claim: what all of it depends on. UserError where `resume` finds a folder of another search.
    """

    def __init__(self, folder: Path, claim: Mapping[str, Any], *, resume: bool) -> None:
        self.folder = folder
        self.lists: dict[Steps, dict[str, Any]] = {}
        ours = json.loads(json.dumps(claim))
        if not resume:
            shutil.rmtree(folder, ignore_errors=True)
        elif (folder / "claim.json").is_file():
            theirs = read_json(folder / "claim.json", "claim")
            if found := differences(theirs, ours) if isinstance(theirs, dict) else ["it is no claim"]:
                raise UserError(f"{folder} is of another search: {', '.join(found[:4])}; leave out --resume")
            self.lists = self._read_lists()
        write_json(folder / "claim.json", ours)
        clear_partial(folder)

    def _read_lists(self) -> dict[Steps, dict[str, Any]]:
        try:
            return {tuple(row["full_steps"]): row for row in read_json(self.folder / "lists.json")}
        except (UserError, KeyError, TypeError):  # none, or none that can be used
            return {}

    def add(self, full_steps: Steps, similarity: list[float], seconds: float) -> None:
        row = {"full_steps": list(full_steps), "similarity_db": similarity, "seconds": seconds}
        self.lists[full_steps] = row
        write_json(self.folder / "lists.json", list(self.lists.values()))

    def _uncached(self, number: int) -> Path:
        return self.folder / f"uncached-{number:04d}.safetensors"

    def read_uncached(self, number: int) -> tuple[Tensor, Tensor] | None:
        """Final latents and inner products of a batch; None if they are not there."""
        try:
            found = load_file(self._uncached(number))
            return found["latents"], found["gram"]
        except (OSError, SafetensorError, KeyError):
            return None

    def write_uncached(self, number: int, latents: Tensor, gram: Tensor) -> None:
        save_tensors(self._uncached(number), {"latents": latents, "gram": gram})

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


# -------------------------------------------------------------------------------------------------------------- search


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a command line asks for that samples a model to find how it is best cached.

    args: of the model's own flags, with the seed of the calibration noise. count: of full steps. limit: of lists that are
    sampled. command_line: what repeats the search.
    """

    args: argparse.Namespace
    family: Family
    prompts: list[str]
    count: int
    limit: int
    seed: int
    out: Path
    command_line: str

    @property
    def num_steps(self) -> int:
        return self.args.num_steps

    @property
    def batches(self) -> list[Batch]:
        return make_batches(self.prompts, self.args.batch_size)

    def settings(self) -> dict[str, Any]:
        """What the samples depend on but for caches and prompts."""
        left_out = ("prompts", "seed", "batch_size", "model", "num_steps")
        return {key: value for key, value in self.family.settings(self.args).items() if key not in left_out}


@dataclass(frozen=True, kw_only=True)
class Search(Asked):
    """A search for full steps. cache: of the method, whatever its full steps. minutes: that sampling lists may take, None for
    any."""

    cache: Cache
    minutes: float | None

    def of(self, full_steps: Steps) -> Cache:
        return replace(self.cache, schedule_settings={"full_steps": full_steps})

    def method(self) -> dict[str, Any]:
        """What is searched for: method, engine, and the forecaster's settings."""
        return {
            "method": self.cache.method,
            "engine": self.cache.engine,
            **json_value(values_of(self.cache.forecaster)),
        }

    def plan(self) -> dict[str, Any]:
        """What a search takes, in network evaluations: of one sample, with all branches of guidance."""
        samples = len(self.prompts)
        return {
            "model": self.args.model,
            "num_steps": self.num_steps,
            "full_steps": self.count,
            "searched_for": self.method(),
            "samples": samples,
            "lists_at_most": self.limit,
            "evaluations": {
                "uncached": samples * self.num_steps,
                "lists_at_most": samples * self.count * self.limit,
            },
            "output": str(self.out),
        }

    def claim(self, contents: Mapping[str, str]) -> dict[str, Any]:
        """Everything that the outcome depends on but the limits."""
        return {
            "model": self.args.model,
            "num_steps": self.num_steps,
            "count": self.count,
            "searched_for": self.method() | code_of(type(self.cache.forecaster)),
            "calibration": {"prompts": self.prompts, "seed": self.args.seed},
            "settings": self.settings(),
            "contents": dict(contents),
        }


def describe_plan(plan: Mapping[str, Any]) -> str:
    evaluations, method = plan["evaluations"], plan["searched_for"]
    settings = ", ".join(f"{key} {value}" for key, value in method.items() if key not in ("method", "engine"))
    return "\n".join(
        [
            f"{plan['model']}: {plan['full_steps']} of {plan['num_steps']} steps full, for {method['method']} "
            f"({settings or 'no settings'}), {method['engine']} engine",
            f"network evaluations, on {plan['samples']} calibration samples: {evaluations['uncached']} of uncached runs, then "
            f"at most {evaluations['lists_at_most']} for {plan['lists_at_most']} lists of full steps",
            f"schedule: {plan['output']}",
        ]
    )


class Opening:
    """What samples for a search: the model's pipeline is opened when it is first needed."""

    def __init__(self, asked: Asked, state: State, device: torch.device) -> None:
        self.state, self.device = state, device
        self._asked = asked
        self._opened: Sampler | None = None

    @property
    def pipeline(self) -> Sampler:
        if self._opened is None:
            self._opened = self._asked.family.open(self._asked.args, self._asked.batches, self.device)
        return self._opened


class Runner(Opening):
    """Samples for a search, with progress: uncached runs first, then lists; asks the state before the model."""

    def __init__(self, search: Search, state: State, device: torch.device) -> None:
        super().__init__(search, state, device)
        self.search = search
        self.asked: dict[Steps, float] = {}
        self.references: list[Tensor] = []
        self.bar = tqdm(
            total=len(search.batches) * search.num_steps * (1 + search.limit),
            unit="step", mininterval=0.5, disable=None, desc="uncached",
        )  # fmt: skip

    def gram(self) -> np.ndarray:
        """Of the changes in uncached runs, (T, T): the mean over samples, each in parts of its final latents' energy."""
        total = torch.zeros(self.search.num_steps, self.search.num_steps, dtype=torch.float64)
        for number, batch in enumerate(self.search.batches):
            there = self.state.read_uncached(number)
            if there is None:
                there = self._sample_uncached(batch)
                self.state.write_uncached(number, *there)
            else:
                self.bar.update(self.search.num_steps)
            latents, gram = there
            self.references.append(latents)
            energy = latents.flatten(1).double().square().sum(1).clamp(min=torch.finfo(torch.float64).tiny)
            total += (gram / energy.reshape(-1, 1, 1)).sum(0)
        return (total / len(self.search.prompts)).numpy()

    def _sample_uncached(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Final latents and inner products; the first steps tell how long all may take."""
        kept: list[Tensor] = []
        begun = [time.perf_counter()]

        def keep(_: int, latents: Tensor) -> None:
            kept.append(coordinates(latents))
            begun.append(time.perf_counter())
            if len(kept) == 2 and not self.references:
                self.tell_time(begun[2] - begun[1])
            self.bar.update()

        latents, _ = self.pipeline.sample(make_cache("uncached"), batch, keep)
        if not latents.isfinite().all():
            raise UserError("the uncached run came out with NaN or infinity; take --precision fp32 or a lower guidance")
        return latents.float().cpu().contiguous(), changes_gram(kept)

    def tell_time(self, seconds: float) -> None:
        """Estimate the search from the second step of the first batch, the first one having work that is done once."""
        search, batches = self.search, len(self.search.batches)
        first, most = (
            seconds * batches * steps / 60
            for steps in (search.num_steps, search.num_steps + search.limit * search.count)
        )
        tqdm.write(
            f"a full step of a batch takes {seconds:.2g} s on {self.device}: about {first:.1f} minutes for the uncached runs, "
            f"at most {most:.1f} in all, less where few moves gain",
            file=sys.stderr,
        )

    def quality(self, full_steps: Steps) -> float:
        """Similarity to the uncached latents in dB, sampled where the state does not know it."""
        if full_steps not in self.asked:
            self.asked[full_steps] = self._quality(full_steps) if self._has_plan(full_steps) else -EXACT_DB
            best = max(self.asked.values())
            self.bar.set_description(f"list {len(self.asked)}, best {best:.2f} dB")
        return self.asked[full_steps]

    def _quality(self, full_steps: Steps) -> float:
        if full_steps not in self.state.lists:
            begun, similarity = time.perf_counter(), []
            for batch, reference in zip(self.search.batches, self.references, strict=True):
                latents, _ = self.pipeline.sample(self.search.of(full_steps), batch, lambda *_: self.bar.update())
                similarity += similarity_db(latents, reference)
            self.state.add(full_steps, similarity, time.perf_counter() - begun)
        return typical(self.state.lists[full_steps]["similarity_db"])

    def _has_plan(self, full_steps: Steps) -> bool:
        """Whether the method's weights are within bounds on a list."""
        try:
            self.search.of(full_steps).plan(self.search.num_steps)
        except UserError:
            return False
        return True

    def more(self) -> bool:
        """Whether another list may be sampled."""
        search = self.search
        spent = sum(self.state.lists[steps]["seconds"] for steps in self.asked if steps in self.state.lists)
        return len(self.asked) < search.limit and (search.minutes is None or spent < 60 * search.minutes)


def run(search: Search, *, resume: bool) -> dict[str, Any]:
    """The schedule that a search finds, written to its output."""
    device = resolve_device(search.args.device)
    claim = search.claim(digests(search.family.find(search.args)))
    if resume and (made := finished(search.out, claim)) is not None:
        return made
    state = State(search.out.with_suffix(".search"), claim, resume=resume)
    runner = Runner(search, state, device)
    plan = search.of(even_steps(search.num_steps, search.count)).plan(search.num_steps)
    gaps = GapErrors(runner.gram(), plan.forecaster.weights)
    found: dict[str, Steps] = {
        "dynamic programming": best_full_steps(search.num_steps, search.count, gaps, remembered(plan)),
        "even": plan.full_steps,
        "published": published_steps(search.num_steps, search.count, PRESETS[PACKAGES[search.args.model]].warmup_steps),
    }
    start = max(found.values(), key=runner.quality)
    found["searched"] = refine(start, runner.quality, search.num_steps, runner.more)
    runner.bar.close()
    schedule = {
        **claim,
        "full_steps": list(found["searched"]),
        "similarity_db": {name: runner.quality(steps) for name, steps in found.items()},
        "lists": {name: list(steps) for name, steps in found.items()},
        "lists_sampled": len(runner.asked),
        "limits": {"lists": search.limit, "minutes": search.minutes},
        "seed": search.seed,
        "units": "similarity_db: energy of the uncached final latents over that of the difference, mean of the middle samples",
        "command": "eval/search_schedule.py",
        "command_line": search.command_line,
        "conditions": conditions(device, torch_dtype(search.args.precision)),
    }
    write_json(search.out, schedule)
    state.remove()
    return schedule


def finished(path: Path, claim: Mapping[str, Any]) -> dict[str, Any] | None:
    """The schedule in a file, where it is the outcome of the same search."""
    if not path.is_file():
        return None
    made, ours = read_json(path, "schedule"), json.loads(json.dumps(claim))
    same = isinstance(made, dict) and "full_steps" in made and ours == {key: made.get(key) for key in ours}
    return made if same else None


def describe(schedule: Mapping[str, Any]) -> str:
    """Every list with what it came to."""
    lines = [
        f"{name:>20}  {schedule['similarity_db'][name]:6.2f} dB  {describe_steps(steps)}"
        for name, steps in schedule["lists"].items()
    ]
    return "\n".join([f"{schedule['model']}, similarity to the uncached latents of the calibration samples", *lines])
