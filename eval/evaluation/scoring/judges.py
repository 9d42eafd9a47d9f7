"""In-domain scores of the embedded models' images: of the emoji scorer for prompts, of the classifier for classes.

They compare with nothing that is published, and separate caching methods little (their real images say how far they go).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache_dic import UserError
from cache_dic.errors import check_choice
from evaluation.scoring.measures import Measure, Reading, Score, mean_score
from evaluation.scoring.read import Readout, Shard


def _reading(name: str, facts: Mapping[str, Any], load: Callable[[], Callable[[Tensor, list[str]], Tensor]]) -> Reading:
    """The array `name` of what scores images (B, 3, H, W) uint8 of their prompts; images of one size are scored together."""

    def load_reader(_: torch.device) -> Callable[[Shard], Mapping[str, np.ndarray]]:
        score = load()

        def read(shard: Shard) -> Mapping[str, np.ndarray]:
            found = []
            pairs = zip(shard.frames, shard.prompts, strict=True)
            for _, group in groupby(pairs, key=lambda pair: pair[0].shape):
                frames, prompts = zip(*group, strict=True)
                images = torch.from_numpy(np.concatenate(frames)).permute(0, 3, 1, 2)
                found.append(score(images, list(prompts)).double().numpy())
            return {name: np.concatenate(found)}

        return read

    return Reading(name=name, facts=facts, load=load_reader, of=("prompts",))


def _emoji_reading() -> Reading:
    from evaluation.images import emoji_judge
    from evaluation.scorer import WEIGHTS, load_scorer
    from seerkit.io.files import content_digest
    from seerkit.text.minilm import TEXT_TABLE

    scorer = load_scorer()
    facts = {
        "weights": content_digest(WEIGHTS, TEXT_TABLE),
        "ceiling": scorer.ceiling,
        "floor": scorer.floor,
    }
    return _reading("emoji-score", facts, lambda: emoji_judge().score)


def _class_reading() -> Reading:
    from evaluation.classifier import WEIGHTS, classify, load_classifier
    from seerkit.data.fashion_mnist import CLASS_NAMES, IMAGE_SIZE
    from seerkit.io.files import content_digest

    classifier = load_classifier()

    def score(images: Tensor, classes: Sequence[str]) -> Tensor:
        for name in classes:
            check_choice("class", name, CLASS_NAMES)
        side = IMAGE_SIZE
        if images.shape[2:] != (side, side) or (images != images[:, :1]).any():
            raise UserError(
                f"class-accuracy is of grey images of {side} x {side} pixels, as the embedded DiT makes them, and there are "
                f"{'coloured' if images.shape[2:] == (side, side) else ' x '.join(map(str, images.shape[2:]))} ones"
            )
        wanted = torch.tensor([CLASS_NAMES.index(name) for name in classes])
        return classify(classifier, images[:, :1]).argmax(dim=1) == wanted

    facts = {"weights": content_digest(WEIGHTS), "real_test_accuracy": classifier.test_accuracy}
    return _reading("class-accuracy", facts, lambda: score)


def _score(name: str) -> Callable[[Readout, Readout | None], Score]:
    return lambda samples, _: mean_score(samples.whole(name))


MEASURES = {
    "emoji-score": Measure(
        name="emoji-score",
        title="emoji score",
        needs=frozenset({"prompts", "image"}),
        best=1,
        digits=1,
        reading=_emoji_reading,
        score=_score("emoji-score"),
        meaning="emoji score: 100 x cosine of image and prompt by the shipped in-domain scorer (no CLIP score); ceiling and "
        "floor in the record are those of real images with their own captions and with others'",
    ),
    "class-accuracy": Measure(
        name="class-accuracy",
        title="class accuracy",
        needs=frozenset({"prompts", "image"}),
        best=1,
        reading=_class_reading,
        score=_score("class-accuracy"),
        meaning="class accuracy: share of images that the shipped Fashion-MNIST classifier takes for their class, which is the "
        "prompt; real_test_accuracy in the record is that of real images",
    ),
}
