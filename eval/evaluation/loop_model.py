"""A model of a cached run: what full steps and weights do to the final latents, from inner products of the uncached run alone.

In the coordinates u = b / (a + b), y = x / (a + b), a and b being the scales of data and noise in the latents x, a sampler of
diffusion or of a flow moves along dy = v du. With e the distance of a cached run from the uncached one, and w the weights of
its forecasts,

    e_{s+1} = e_s + Δu_s (p_s - v_s),    p_s = Σ_m w_m(s) p_m at a forecast step,
                                         p_m = v_m + κ_m e_m + ρ_m |e_m| ξ at a full one:

the network answers to its input's distance with κ of it and with something of size ρ that points elsewhere. Everything but ξ
is a combination of the v_s, so that a T x T matrix of inner products tells the energy of the final distance. ξ adds to it by
the steps that are forecast from p_m; that later full steps answer to what has scattered, too, is left out, since with the same
κ and ρ for it the energies of sampled runs come out far too large. κ and ρ are measured on a few runs that are really sampled.
Without them a search would find lists whose errors cancel in the end, which they do not in a run that goes another way.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from cache_dic.forecast import Forecaster
from cache_dic.plan import MAX_WEIGHT

Steps = tuple[int, ...]
Key = tuple[int, int]
"""A correction: the full step after which it stands, and how many full steps back its feature lies."""

RESTARTS, MOVES = 2, 1200
"""Of the annealing: a list takes about a millisecond."""
COOLING_DB = 1.0
NOTHING = 1e-20
"""Stands for the energy of no distance."""


@dataclass(frozen=True)
class Sensitivity:
    """κ at every step, (T,), and ρ of every sample, (B, T): some samples fall into another picture where others stay."""

    coherent: np.ndarray
    incoherent: np.ndarray

    @classmethod
    def measured(
        cls, moments: Sequence[tuple[Sequence[int], np.ndarray]], num_steps: int, samples: int
    ) -> "Sensitivity":
        """From runs: their full steps, and (b, T, 3) with |e|², e·d and |d|² at a step, d being p - v, of the first b samples.

        Between steps that were full in some run, a line. Steps of a run are left out at which a sample is at no distance, or at
        one that is not finite. Samples that a run has not stand for the mean of those that it has.
        """
        by_step: dict[int, list[tuple[float, np.ndarray]]] = {}
        for full_steps, values in moments:
            for step in full_steps:
                square, product, other = values[:, step].T
                if not (np.isfinite(values[:, step]).all() and (square > NOTHING).all()):
                    continue
                kappa = float((product / square).mean())
                rest = (other - 2 * kappa * product + kappa**2 * square) / square
                rest = np.maximum(rest, 0.0)
                rest = np.concatenate([rest, np.full(samples - len(rest), rest.mean())])
                by_step.setdefault(step, []).append((kappa, rest))
        if not by_step:
            return cls(np.zeros(num_steps), np.zeros((samples, num_steps)))
        steps, every = sorted(by_step), range(num_steps)
        kappas = [np.mean([kappa for kappa, _ in by_step[step]]) for step in steps]
        sizes = np.sqrt([np.mean([rest for _, rest in by_step[step]], axis=0) for step in steps])  # (steps, B)
        return cls(np.interp(every, steps, kappas), np.array([np.interp(every, steps, of) for of in sizes.T]))


@dataclass
class LoopModel:
    """gram (B, T, T): inner products of v by sample, in parts of the energy of the final latents. moves (T,): Δu."""

    gram: np.ndarray
    moves: np.ndarray
    sensitivity: Sensitivity
    forecaster: Forecaster
    _weights: dict[tuple[Steps, int], np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def num_steps(self) -> int:
        return len(self.moves)

    def weights(self, so_far: Steps, step: int) -> np.ndarray:
        if (so_far, step) not in self._weights:
            self._weights[so_far, step] = np.asarray(self.forecaster.weights(so_far, step), dtype=np.float64)
        return self._weights[so_far, step]

    def run(
        self, full_steps: Steps, corrections: Mapping[Key, float] | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The final e (T,) and that before each full step (K, T), as combinations of v; (K,) what every
        p_m adds to the final e by the steps that take it or are forecast from it."""
        distance, answers = np.zeros(self.num_steps), np.zeros((len(full_steps), self.num_steps))
        before, influence = np.zeros_like(answers), np.zeros(len(full_steps))
        for i, (step, following) in enumerate(zip(full_steps, (*full_steps[1:], self.num_steps), strict=True)):
            before[i] = distance
            answers[i] = self.sensitivity.coherent[step] * distance
            answers[i, step] += 1
            total = np.zeros(i + 1)
            total[i] = self.moves[step]
            gap = slice(step + 1, following)
            for later in range(step + 1, following):
                row = self.weights(full_steps[: i + 1], later)
                total[i + 1 - len(row) :] += self.moves[later] * row
            for back in range(i + 1):
                total[i - back] += self.moves[gap].sum() * (corrections or {}).get((step, back), 0.0)
            influence[: i + 1] += total
            distance = distance + total @ answers[: i + 1]
            distance[step] -= self.moves[step]
            distance[gap] -= self.moves[gap]
        return distance, before, influence

    def energies(self, full_steps: Steps, corrections: Mapping[Key, float] | None = None) -> np.ndarray:
        """Expected energy of the final distance, (B,), in parts of that of the latents."""
        distance, before, influence = self.run(full_steps, corrections)
        path = np.einsum("bkt,kt->bk", before @ self.gram, before)
        return (self._scattered(full_steps, influence) * path).sum(1) + np.einsum(
            "bt,t->b", distance @ self.gram, distance
        )

    def _scattered(self, full_steps: Steps, influence: np.ndarray) -> np.ndarray:
        """What the final energy gets of |e|² before each full step, (B or 1, K)."""
        return (influence * self.sensitivity.incoherent[:, list(full_steps)]) ** 2

    def similarity_db(self, full_steps: Steps, corrections: Mapping[Key, float] | None = None) -> float:
        """The mean over samples, the higher the better; -inf for weights that no plan takes."""
        if self._exceeds(full_steps):
            return -np.inf
        return float(np.mean(-10 * np.log10(np.maximum(self.energies(full_steps, corrections), NOTHING))))

    def _exceeds(self, full_steps: Steps) -> bool:
        ends = (*full_steps[1:], self.num_steps)
        return any(
            np.abs(self.weights(full_steps[: i + 1], end - 1)).max() > MAX_WEIGHT
            for i, (step, end) in enumerate(zip(full_steps, ends, strict=True))
            if end - step > 1
        )

    # ------------------------------------------------------------------------------------------------------------ fits

    def fitted(self, full_steps: Steps, keys: Sequence[Key], ridge: float) -> dict[Key, float]:
        """Corrections of the least expected energy, of a run that is linear in them and scatters as it does without;
        ridge: in parts of the curvature along each."""
        start, before, influence = self.run(full_steps)
        scattered = self._scattered(full_steps, influence).mean(0)
        ends, paths = [], []
        for key in keys:
            end, path, _ = self.run(full_steps, {key: 1.0})
            ends.append(end - start)
            paths.append(path - before)
        change, way = np.array(ends), np.array(paths)  # (P, T), (P, K, T)
        gram = self._weighted(self.energies(full_steps))
        curvature = change @ gram @ change.T + np.einsum("pkt,k,tu,qku->pq", way, scattered, gram, way, optimize=True)
        slope = change @ gram @ start + np.einsum("pkt,k,tu,ku->p", way, scattered, gram, before, optimize=True)
        return dict(zip(keys, -ridged(curvature, slope, ridge), strict=True))

    def teacher_forced(self, full_steps: Steps, keys: Sequence[Key], ridge: float) -> dict[Key, float]:
        """Corrections by which the v of uncached runs are forecast best from the v of uncached runs, gap by gap."""
        gram = self._weighted(np.ones(len(self.gram)))
        found: dict[Key, float] = {}
        for i, (step, end) in enumerate(zip(full_steps, (*full_steps[1:], self.num_steps), strict=True)):
            mine = [key for key in keys if key[0] == step]
            if not mine:
                continue
            nodes = [full_steps[i - back] for _, back in mine]
            errors = np.zeros(self.num_steps)
            for later in range(step + 1, end):
                row = self.weights(full_steps[: i + 1], later)
                errors[list(full_steps[i + 1 - len(row) : i + 1])] += row
                errors[later] -= 1
            slope = gram[nodes] @ errors
            curvature = (end - step - 1) * gram[np.ix_(nodes, nodes)]
            found |= dict(zip(mine, -ridged(curvature, slope, ridge), strict=True))
        return found

    def _weighted(self, energies: np.ndarray) -> np.ndarray:
        """The mean of inner products, samples weighted so that a mean of decibels falls."""
        weights = 1 / np.maximum(energies, NOTHING)
        return np.einsum("b,btu->tu", weights / weights.sum(), self.gram)


def ridged(curvature: np.ndarray, slope: np.ndarray, ridge: float) -> np.ndarray:
    """The solution of (curvature + ridge · its diagonal) x = slope."""
    diagonal = np.diag(curvature)
    return np.linalg.solve(curvature + np.diag(ridge * diagonal + NOTHING), slope)


def correction_keys(full_steps: Steps, num_steps: int, reach: int) -> list[Key]:
    """The corrections that there can be: after every full step that a forecast follows, of at most `reach` features."""
    return [
        (step, back)
        for i, (step, end) in enumerate(zip(full_steps, (*full_steps[1:], num_steps), strict=True))
        if end - step > 1
        for back in range(min(reach, i + 1))
    ]


# -------------------------------------------------------------------------------------------------------------- lists


def moved(full_steps: Steps, num_steps: int, farthest: int = 2) -> list[Steps]:
    """The lists in which one full step, not step 0, stands up to `farthest` steps elsewhere."""
    found = []
    for place in range(1, len(full_steps)):
        for by in range(-farthest, farthest + 1):
            step = full_steps[place] + by
            if 0 < step < num_steps and step not in full_steps:
                found.append(tuple(sorted((*full_steps[:place], step, *full_steps[place + 1 :]))))
    return found


def best_list(score: Callable[[Steps], float], start: Steps, num_steps: int, seed: int) -> Steps:
    """A list of as many full steps of the highest score, by annealing from `start` and then moves of single steps."""
    best, best_score = start, score(start)
    for restart in range(RESTARTS):
        draw = random.Random(seed + restart)
        here, value = start, score(start)
        for i in range(MOVES):
            there = _neighbour(here, num_steps, draw)
            if there is None:
                continue
            found, heat = score(there), COOLING_DB * (1 - i / MOVES) ** 2 + 1e-3
            if found > value or draw.random() < np.exp((found - value) / heat):
                here, value = there, found
                if value > best_score:
                    best, best_score = here, value
    while (better := max(moved(best, num_steps), key=score, default=best)) and score(better) > best_score:
        best, best_score = better, score(better)
    return best


def _neighbour(full_steps: Steps, num_steps: int, draw: random.Random) -> Steps | None:
    """One step moved a little, or anywhere, or all from one on moved by one; None where that is no list."""
    if len(full_steps) < 2:
        return None
    place, kind = draw.randrange(1, len(full_steps)), draw.random()
    if kind < 0.75:
        changed = {
            *full_steps[:place],
            *full_steps[place + 1 :],
            full_steps[place] + draw.choice((-3, -2, -1, 1, 2, 3)),
        }
    elif kind < 0.88:
        by = draw.choice((-1, 1))
        changed = {*full_steps[:place], *(step + by for step in full_steps[place:])}
    else:
        changed = {*full_steps[:place], *full_steps[place + 1 :], draw.randrange(1, num_steps)}
    found = tuple(sorted(changed))
    return found if len(found) == len(full_steps) and found[0] == 0 and found[-1] < num_steps else None
