"""ImageReward as a measure: the model runs in the environment of envs/legacy-eval (`evaluation.image_reward`)."""

import weakref
from collections.abc import Callable, Mapping

import numpy as np
import torch

from evaluation.scoring.measures import Measure, Reading, mean_score
from evaluation.scoring.read import Shard


class _Reader:
    """A process with the model, which ends with this object."""

    def __init__(self, device: torch.device) -> None:
        from evaluation.image_reward import ImageReward

        model = ImageReward(str(device))
        self._scores = model.__enter__().scores
        weakref.finalize(self, model.__exit__, None, None, None)

    def __call__(self, shard: Shard) -> Mapping[str, np.ndarray]:
        images = [frames[0] for frames in shard.frames]
        return {"reward": np.array(self._scores(shard.prompts, images), dtype=np.float64)}


def _missing() -> list[str]:
    from evaluation.image_reward import missing

    return missing()


def _reading() -> Reading:
    from evaluation.image_reward import facts

    load: Callable[[torch.device], Callable[[Shard], Mapping[str, np.ndarray]]] = _Reader
    return Reading(name="image-reward", facts=facts(), load=load, of=("prompts",))


MEASURES = {
    "image-reward": Measure(
        name="image-reward",
        title="ImageReward",
        needs=frozenset({"prompts", "image"}),
        best=1,
        missing=_missing,
        reading=_reading,
        score=lambda samples, _: mean_score(samples.whole("reward")),
        meaning="ImageReward v1.0 (arXiv 2304.05977) of each image and its prompt, standardised as its authors do, so that 0 "
        "is the mean of their validation set; mean over images. Papers disagree by 0.06 for one row: compare within a table",
    )
}
