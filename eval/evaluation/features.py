"""How alike features of an uncached run are from step to step, and how well they are forecast: the record of eval/figures.py.

A run is watched at the first, the middle and the last block of every kind. Everything follows from the inner products of a
site's features at all steps: the cosine of two of them, and the error of a forecast, as weights make it of some of them. Of a
run no more is held than `HELD_BYTES`; where the features of the watched sites take more, as many of their coordinates are
drawn, the same of every step and sample, as fit.
"""

import argparse
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from cache_dic import PRESETS, Cache, Preset, Run, UserError, make_cache
from cache_dic.engine import Engine, Recorder
from cache_dic.forecast import Taylor
from cache_dic.schedule import taylorseer
from evaluation.backbones import BACKBONES, PACKAGES, workload
from evaluation.calibration import family_of
from evaluation.jobs import PATHS
from evaluation.metrics import mean_interval
from seerkit.devices.distributed import start_world
from seerkit.devices.dtypes import torch_dtype
from seerkit.io.records import conditions
from seerkit.text.prompts import make_batches

Array = NDArray[np.float64]
HELD_BYTES = 2**29
"""The most that features of the sites take at once, of all steps of a sample together with those that paths are drawn of."""
ORDERS = (0, 1, 2, 3, 4)
"""Of the forecasts; 0 reuses the last full step's features."""
LONGEST = 10
"""Steps between full ones, and between features that are compared, at most."""
MOST_PATHS = 4
"""Samples whose paths are recorded."""
DIGITS = 5
SEED = 0
"""Of the coordinates that are drawn."""


# --------------------------------------------------------------------------------------------------------------- watch

See = Callable[[int, int, Tensor], None]
"""`see(step, site, feature)`: a feature (B, L, D) of a full step."""


class _Watch(Recorder):
    """Hands every feature on."""

    def __init__(self, num_sites: int, see: Callable[[int, Tensor], None]) -> None:
        super().__init__(num_sites)
        self.see = see

    def keep(self, feature: Tensor) -> None:
        self.see(self.calls - 1, feature)


class _Watching(Engine):
    """The engine of a run whose steps are all full: it keeps nothing."""

    needs_gates = False
    see: See

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        return _Watch(self.tokens.num_sites, lambda site, feature: self.see(step, site, feature))

    def most_kept(self) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class Watched(Cache):
    """The uncached run, whose conditional branch shows its features to `see`; branches of guidance are calls of their own."""

    see: See

    @property
    def separate_branches(self) -> bool:
        return True

    def start(self, *given: Any, leader: Run | None = None, **more: Any) -> Run:
        run = super().start(*given, leader=leader, **more)
        if leader is None:
            old = run.engine
            run.engine = _Watching(old.plan, old.tokens, old.gates, old.settings)
            run.engine.see = self.see
        return run


def watched(see: See) -> Watched:
    uncached = make_cache("uncached")
    return Watched(**{field.name: getattr(uncached, field.name) for field in fields(Cache)}, see=see)


class Place(NamedTuple):
    """A site of a model: its number among all, its name, its block and that block's place among those of its kind.

    depth: first, middle or last. central: whether it is the block of its kind that paths are recorded of.
    """

    number: int
    name: str
    block: int
    depth: str
    central: bool


def watched_places(block_sites: Sequence[Sequence[str]]) -> list[Place]:
    """The sites of the first, the middle and the last block of each kind, as far as there are so many.

    Blocks are of a kind whose sites have the same names. block_sites: names of the sites that reach the output, by block.
    """
    firsts = [0, *itertools.accumulate(len(names) for names in block_sites)]
    alike: dict[tuple[str, ...], list[int]] = {}
    for block, names in enumerate(block_sites):
        alike.setdefault(tuple(names), []).append(block)
    places = []
    for names, blocks in alike.items():
        central = blocks[len(blocks) // 2]
        depths = {central: "middle", blocks[-1]: "last", blocks[0]: "first"}  # of few blocks, one is several of these
        for block in sorted(depths):
            places += [
                Place(firsts[block] + i, name, block, depths[block], block == central) for i, name in enumerate(names)
            ]
    return places


# ----------------------------------------------------------------------------------------------------------- statistics


def similarity(gram: Array, longest: int) -> list[float]:
    """Mean cosine of features so many steps apart, from 1 to `longest`. gram (T, T): their inner products."""
    norms = np.sqrt(np.diag(gram))
    cosine = gram / np.outer(norms, norms)
    return [float(np.diag(cosine, distance).mean()) for distance in range(1, longest + 1)]


def forecasts(num_steps: int, interval: int, max_order: int, warmup_steps: int) -> dict[int, dict[int, float]]:
    """TaylorSeer's forecasts: by forecast step, the weight of the feature at each full step that it is made of."""
    full_steps = taylorseer(num_steps, interval=interval, warmup_steps=warmup_steps)
    forecaster = Taylor(max_order=max_order, warmup_steps=warmup_steps)
    found = {}
    for step in sorted(set(range(num_steps)).difference(full_steps)):
        known = [full for full in full_steps if full < step]
        weights = forecaster.weights(known, step)
        found[step] = dict(zip(known[-len(weights) :], weights, strict=True))
    return found


def forecast_error(gram: Array, made_of: Mapping[int, Mapping[int, float]]) -> float:
    """Mean over forecast steps of ‖forecast - feature‖ / ‖feature‖, from inner products (T, T) of the features."""
    errors = []
    for step, weights in made_of.items():
        difference = np.zeros(len(gram))
        for full, weight in weights.items():
            difference[full] += weight
        difference[step] -= 1
        errors.append(np.sqrt(max(0.0, float(difference @ gram @ difference)) / gram[step, step]))
    return float(np.mean(errors))


def plane(features: Sequence[Array | Tensor]) -> tuple[list[Array], list[float]]:
    """Paths (T, 2) of samples in the plane of the two first principal components of all, and these' shares of the variance.

    features: of a site, (T, n) for each sample, whose own mean is taken off, so that the plane is that of how features move.
    The sign of a component is that for which the first sample begins on its positive side.
    """
    count, steps = len(features), len(features[0])
    gram = np.empty((count * steps, count * steps))
    for i, j in itertools.combinations_with_replacement(range(count), 2):
        block = _inner(features[i], features[j])
        block = block - block.mean(axis=0) - block.mean(axis=1, keepdims=True) + block.mean()
        gram[i * steps : (i + 1) * steps, j * steps : (j + 1) * steps] = block
        gram[j * steps : (j + 1) * steps, i * steps : (i + 1) * steps] = block.T
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1][:2].clip(min=0), vectors[:, ::-1][:, :2]
    paths = vectors * np.sqrt(values) * np.where(vectors[0] < 0, -1, 1)
    shares = values / np.trace(gram)
    return list(paths.reshape(count, steps, 2)), shares.tolist()


def _inner(a: Array | Tensor, b: Array | Tensor) -> Array:
    """Inner products (T, T) of the rows of two (T, n), in float64."""
    return (torch.as_tensor(a).double() @ torch.as_tensor(b).double().mT).numpy()


# --------------------------------------------------------------------------------------------------------------- measure


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much of features is held. size: coordinates of one, of which `coordinates` are kept. held_bytes: at most at once."""

    size: int
    coordinates: int
    held_bytes: int


def extent(size: int, num_steps: int, num_sites: int, num_paths: int, limit: int) -> Extent:
    """As many coordinates as fit the limit: those of a sample, those of paths, and two of float64 while products are formed.

    num_paths: of all samples and sites together. UserError where not one coordinate fits.
    """
    each = num_steps * (4 * (num_sites + num_paths) + 2 * 8)
    coordinates = min(size, limit // each)
    if coordinates < 1:
        raise UserError(f"features of {num_steps} steps take {each} bytes for each coordinate, more than {limit}")
    return Extent(size=size, coordinates=coordinates, held_bytes=each * coordinates)


class Features:
    """Features of one sample at the watched sites, at all steps: (sites, T, n) float32."""

    def __init__(self, places: Sequence[Place], num_steps: int, kept: Extent) -> None:
        self.rows = {place.number: row for row, place in enumerate(places)}
        self.held = torch.full((len(places), num_steps, kept.coordinates), torch.nan)
        self.drawn: Tensor | None = None
        if kept.coordinates < kept.size:
            generator = torch.Generator().manual_seed(SEED)
            self.drawn = torch.randint(kept.size, (kept.coordinates,), generator=generator)

    def see(self, step: int, site: int, feature: Tensor) -> None:
        if (row := self.rows.get(site)) is None:
            return
        (flat,) = feature.flatten(1)  # one sample
        if self.drawn is not None:
            self.drawn = self.drawn.to(flat.device)
            flat = flat[self.drawn]
        self.held[row, step] = flat.float().cpu()


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What a command line asks for. args: of the model's own flags, defaults filled in. limit: of bytes held."""

    args: argparse.Namespace
    prompts: Sequence[str]
    limit: int

    @property
    def num_steps(self) -> int:
        return self.args.num_steps

    @property
    def preset(self) -> Preset:
        """The published settings of the backbone."""
        return PRESETS[PACKAGES[self.args.model]]

    @property
    def longest(self) -> int:
        return min(LONGEST, self.num_steps - 1)

    def outline(self) -> tuple[list[Place], Extent]:
        """Which sites are watched and how much is held, from the model on the meta device."""
        given = vars(self.args)
        sizes = {"height": given.get("height"), "width": given.get("width"), "frames": given.get("num_frames")}
        if given.get("image_size"):
            sizes["height"] = sizes["width"] = self.args.image_size
        with torch.device("meta"):
            case = BACKBONES[self.args.model].build(
                workload(self.args.model, **sizes), torch_dtype(self.args.precision)
            )
        places = watched_places(case.model.block_sites())
        size = case.model.tokens(case.latents).row_numel
        num_paths = min(MOST_PATHS, len(self.prompts)) * sum(place.central for place in places)
        return places, extent(size, self.num_steps, len(places), num_paths, self.limit)

    def settings(self) -> dict[str, Any]:
        """What the samples depend on but for prompts."""
        left_out = {"config", "prompts", "batch_size", *PATHS}
        settings = family_of(self.args.model).settings(self.args)
        return {name: value for name, value in settings.items() if name not in left_out}

    def plan(self) -> dict[str, Any]:
        """What --dry-run prints."""
        places, kept = self.outline()
        return {
            "settings": self.settings(),
            "samples": len(self.prompts),
            "sites": [f"block {place.block} ({place.depth}): {place.name}" for place in places],
            "coordinates": {"of": kept.size, "measured": kept.coordinates},
            "held_bytes": kept.held_bytes,
        }

    def make(self, *, quiet: bool = False) -> dict[str, Any]:
        """Sample, uncached, and measure: the record but for its command. UserError for features that are not finite."""
        family = family_of(self.args.model)
        if self.num_steps < 3:
            raise UserError(f"--num-steps {self.num_steps} leaves no step to forecast; take at least 3")
        family.find(self.args)
        places, kept = self.outline()
        batches = make_batches(self.prompts, 1)
        device = start_world(self.args.device).device
        pipeline = family.open(self.args, batches, device)
        grams: list[list[Array]] = []
        central = [i for i, place in enumerate(places) if place.central]
        shown: list[Tensor] = []
        with tqdm(total=len(batches) * self.num_steps, unit="step", mininterval=0.5, disable=quiet) as bar:
            for batch in batches:
                features = Features(places, self.num_steps, kept)
                pipeline.sample(watched(features.see), batch, lambda *_: bar.update())
                if not features.held.isfinite().all():
                    raise UserError(
                        f"features of {batch.prompts[0]!r} came out with NaN or infinity; take --precision fp32"
                    )
                grams.append([_inner(one, one) for one in features.held])
                if len(shown) < MOST_PATHS:
                    shown.append(features.held[central])
        return {
            "settings": self.settings(),
            "weights": "trained",
            "units": "similarity: mean cosine of features so many steps apart; forecast_error: mean over forecast steps of "
            "|forecast - feature| / |feature|, full steps by TaylorSeer's rule with that interval, order 0 is reuse; low, "
            "high: Student's 95 % interval of the mean over samples; paths: coordinates on the two first principal "
            "components of all paths of a site, each with its own mean taken off",
            "num_samples": len(self.prompts),
            "prompts": list(self.prompts),
            "warmup_steps": self.preset.warmup_steps,
            "coordinates": {"of": kept.size, "measured": kept.coordinates},
            "held_bytes": kept.held_bytes,
            "sites": [
                {**_named(place), **self.statistics([gram[i] for gram in grams])} for i, place in enumerate(places)
            ],
            "trajectories": self.trajectories([places[i] for i in central], shown),
            "conditions": conditions(device, torch_dtype(self.args.precision)),
        }

    def statistics(self, grams: Sequence[Array]) -> dict[str, Any]:
        """Of a site, from its inner products in every sample."""
        warmup_steps = min(self.preset.warmup_steps, self.num_steps - 2)
        intervals = [
            interval
            for interval in range(2, LONGEST + 1)
            if len(taylorseer(self.num_steps, interval=interval, warmup_steps=warmup_steps)) < self.num_steps
        ]
        by_order = {}
        for order in ORDERS:
            made = [forecasts(self.num_steps, interval, order, warmup_steps) for interval in intervals]
            by_order[str(order)] = _intervals([[forecast_error(gram, one) for one in made] for gram in grams])
        return {
            "similarity": {
                "distance": list(range(1, self.longest + 1)),
                **_intervals([similarity(gram, self.longest) for gram in grams]),
            },
            "forecast_error": {"interval": intervals, "by_order": by_order},
        }

    def trajectories(self, places: Sequence[Place], shown: Sequence[Tensor]) -> dict[str, Any]:
        """Paths of the shown samples, and the published settings whose forecasts are drawn beside them."""
        sites = []
        for i, place in enumerate(places):
            paths, shares = plane([features[i] for features in shown])
            rounded = [[[_rounded(value) for value in point] for point in path] for path in paths]
            sites.append({**_named(place), "variance": [_rounded(share) for share in shares], "paths": rounded})
        settings = self.preset.settings()
        settings["warmup_steps"] = min(settings["warmup_steps"], self.num_steps)
        return {**settings, "prompts": list(self.prompts[: len(shown)]), "sites": sites}


def _named(place: Place) -> dict[str, Any]:
    return {"name": place.name, "block": place.block, "depth": place.depth}


def _intervals(by_sample: Sequence[Sequence[float]]) -> dict[str, list[float | None]]:
    """Mean, low and high over samples of lists of values."""
    found = [mean_interval(values) for values in zip(*by_sample, strict=True)]
    return {key: [None if one[key] is None else _rounded(one[key]) for one in found] for key in ("mean", "low", "high")}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
