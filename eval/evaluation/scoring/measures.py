"""The measures of samples by name. What a measure needs is loaded when it is asked for; naming them needs no torch.

A measure is made of a reading: what is computed of every sample alone, once, and kept (`evaluation.scoring.read`). Measures
of one reading share it, as FID and KID share features.
"""

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cache_dic.errors import check_choice

if TYPE_CHECKING:
    import numpy as np
    import torch

    from evaluation.scoring.read import Readout, Shard

Score = dict[str, Any]
"""value: of the set, a finite number, or None with a `note` that stands for it; low, high: of its 95 % interval, where one is
known; num: samples; qualifiers: of the measure's title, what is not as usual; remark: what keeps it from being compared; and
figures of the measure's own."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is computed of every sample alone.

    name: short, of a folder. facts: what the arrays depend on besides the samples, such as the digest of weights and versions;
    "stand_in_weights" among them where the weights are not those that the measure is named after.
    load(device): what reads a shard: arrays by name, the first dimension that of the shard's samples (or of all their frames,
    where frames are what is counted). of: the sets beside the samples that it looks at, "pairs" or "prompts".
    """

    name: str
    facts: Mapping[str, Any]
    load: "Callable[[torch.device], Callable[[Shard], Mapping[str, np.ndarray]]]"
    of: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure of a set of samples.

    name: in commands and records. title: of a column, with what the figure depends on, such as the backbone. needs: of
    "reference" (a set that the whole is compared with), "pairs" (a set whose samples are compared one by one), "prompts",
    "video" and "image" (samples of one kind alone). best: 1 where more is better, -1 where less, 0 where neither. digits:
    shown. missing(): what has to be fetched first, in lines that name file, place and size. reading(): UserError where
    something is missing. score(samples, reference): of their readouts; reference is None unless one is needed. statistics:
    names of an .npz reference's arrays that stand for what would be read of it (`Readout.statistics`). meaning: what a reader
    must know.
    """

    name: str
    title: str
    needs: frozenset[str] = field(default_factory=frozenset)
    best: int
    digits: int = 3
    missing: Callable[[], list[str]] = list
    reading: Callable[[], Reading]
    score: "Callable[[Readout, Readout | None], Score]"
    statistics: tuple[str, str] | None = None
    meaning: str


def mean_score(values: "np.ndarray") -> Score:
    """Mean over samples (N,) with Student's 95 % interval."""
    from evaluation.metrics import mean_interval

    found = mean_interval(values)
    return {"value": found["mean"], "low": found["low"], "high": found["high"], "num": found["num"]}


def missing_packages(*names: str, extra: str = "eval") -> list[str]:
    """A line for each package that is not installed. extra: of this project, that it comes with."""
    absent = (name for name in names if importlib.util.find_spec(name) is None)
    return [f'the package {name}; install it with `pip install -e ".[{extra}]"`' for name in absent]


_MODULES = {
    "psnr": "pairs",
    "ssim": "pairs",
    "lpips": "pairs",
    "lpips-vgg": "pairs",
    "lite0": "pairs",
    "clip-l14": "texts",
    "clip-b32": "texts",
    "image-reward": "rewards",
    "emoji-score": "judges",
    "class-accuracy": "judges",
    "psnr-worst": "videos",
    "flicker": "videos",
    "flicker-change": "videos",
    "warping-error": "videos",
    "flow-difference": "videos",
    **dict.fromkeys(("fid", "sfid", "is", "kid", "precision", "recall", "fd-dinov2"), "distributions"),
    **{
        f"{figure}-{network}": "distributions"
        for network in ("lite0", "squeezenet", "fashion")
        for figure in ("fd", "kid", "precision", "recall")
    },
}
"""By measure, the module of this package that has it in its MEASURES."""
NAMES = tuple(_MODULES)


def find_measure(name: str) -> Measure:
    """A measure; UserError for a name that there is not."""
    check_choice("measure", name, NAMES)
    return importlib.import_module(f"evaluation.scoring.{_MODULES[name]}").MEASURES[name]
