"""Real data of the embedded models' domains: a reference set, others of the same kind, and prompts for samples of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from cache_dic import UserError

REFERENCE = {"fashion": 5000, "emoji": 4000, "clips": 500}
"""Samples of a reference set: all of one half of the test images; as many training emoji as have features in minutes; clips."""
TOO_FEW = "{model} has {most} real samples to compare with, and {count} are asked for; lower --num-samples"


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Real data for samples of a model.

    prompts: of sample 0 and on. most: real samples with these prompts. reference(count): pixels (M, T, H, W, C) uint8, T = 1 of
    images, that no measure compares with itself. real(count): others, sample i of prompt i. groups: (most,) kinds of the real
    samples, by which kinds are dropped. others(kept, count): further real samples of the kinds that are kept. told: what these
    data are, for records. reference_size: samples of the reference where no other number is asked for.
    """

    model: str
    prompts: Sequence[str]
    most: int
    reference: Callable[[int], np.ndarray]
    real: Callable[[int], np.ndarray]
    groups: np.ndarray
    others: Callable[[Sequence[int], int], np.ndarray]
    told: str
    reference_size: int

    def check(self, count: int) -> None:
        if count > self.most:
            raise UserError(TOO_FEW.format(model=self.model, most=self.most, count=count))


def domain_of(model: str, seed: int = 0) -> Domain:
    """The domain of an embedded model; FileNotFoundError says how its data are had."""
    return DOMAINS[model](model, seed)


# -------------------------------------------------------------------------------------------------------------- images


def _fashion(model: str, seed: int) -> Domain:
    """Two halves of the test images, which neither model nor classifier was trained on; classes in turn."""
    from seerkit.data.fashion_mnist import CLASS_NAMES, load_fashion_mnist

    images, labels = load_fashion_mnist("test")
    order = np.random.default_rng(seed).permutation(len(labels))
    pixels, labels = images.permute(0, 2, 3, 1)[:, None].numpy()[order], labels.numpy()[order]
    half = len(labels) // 2
    ours = _in_turn(labels[half:], len(CLASS_NAMES)) + half
    chosen = labels[ours]

    def others(kept: Sequence[int], count: int) -> np.ndarray:
        of_kept = ours[np.isin(chosen, kept)][::-1]  # from the end, which smaller counts do not reach
        return pixels[of_kept[:count]]

    return Domain(
        model=model,
        prompts=[CLASS_NAMES[label] for label in chosen],
        most=len(ours),
        reference=lambda count: pixels[:half][:count],
        real=lambda count: pixels[ours[:count]],
        groups=chosen,
        others=others,
        told="Fashion-MNIST: half of the test images as reference, the others as real samples, classes in turn",
        reference_size=REFERENCE["fashion"],
    )


def _in_turn(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Indices of labels 0, 1, …, 0, 1, … as long as there is one of each."""
    by_class = [np.flatnonzero(labels == number) for number in range(num_classes)]
    rounds = min(map(len, by_class))
    return np.stack([indices[:rounds] for indices in by_class], axis=1).reshape(-1)


def _emoji(model: str, seed: int) -> Domain:
    """Training emoji as reference; test emoji, pairs of a label and a style never trained on, as real samples."""
    from seerkit.data.emoji import load_emoji

    data = load_emoji()
    pixels = data.images.permute(0, 2, 3, 1)[:, None].numpy()  # (N, 1, S, S, 3)
    names = sorted({group for group in data.groups if group})
    kinds = np.array([names.index(group) if group else -1 for group in data.groups])[data.label.numpy()]
    draw = np.random.default_rng(seed)
    train, test = (draw.permutation(np.flatnonzero(mask.numpy())) for mask in (data.train, data.test))
    test = test[kinds[test] >= 0]
    size = min(REFERENCE["emoji"], len(train) // 2)

    def others(kept: Sequence[int], count: int) -> np.ndarray:
        rest = train[size:]
        return pixels[rest[np.isin(kinds[rest], kept)][:count]]

    return Domain(
        model=model,
        prompts=[data.prompt(index) for index in test.tolist()],
        most=len(test),
        reference=lambda count: pixels[train[:size][:count]],
        real=lambda count: pixels[test[:count]],
        groups=kinds[test],
        others=others,
        told="emoji: training images as reference, test images (pairs of label and style never trained on) as real samples",
        reference_size=size,
    )


# -------------------------------------------------------------------------------------------------------------- videos


def _clips(model: str, seed: int) -> Domain:
    """Moving objects drawn with three seeds that no training had, with captions of the training clips."""
    from seerkit.data.captions import CAPTIONS, OBJECTS, is_held_out
    from seerkit.data.moving_objects import MovingObjects
    from seerkit.io.media import video_to_uint8
    from seerkit.sampling.seeds import derive_seed

    reference, real, further = (MovingObjects(derive_seed(seed, which)) for which in range(3))
    known = [caption for caption in CAPTIONS if not is_held_out(caption)]
    captions = [known[index] for index in np.random.default_rng(seed + 1).permutation(len(known))]
    kinds = np.array([next(i for i, name in enumerate(OBJECTS) if name in caption.split()) for caption in captions])

    @cache
    def drawn(clips: MovingObjects, some: Sequence[str]) -> np.ndarray:
        parts = [clips.clips(range(i, min(i + 50, len(some))), some[i : i + 50])[0] for i in range(0, len(some), 50)]
        return np.concatenate([video_to_uint8(part) for part in parts])

    def others(kept: Sequence[int], count: int) -> np.ndarray:
        some = [caption for caption, kind in zip(captions[::-1], kinds[::-1], strict=True) if kind in kept]
        return drawn(further, tuple(some[:count]))

    return Domain(
        model=model,
        prompts=captions,
        most=len(captions),
        reference=lambda count: drawn(reference, tuple(captions[::-1][:count])),
        real=lambda count: drawn(real, tuple(captions[:count])),
        groups=kinds,
        others=others,
        told="moving objects: clips drawn with one seed as reference, with another as real samples, neither of them training's",
        reference_size=REFERENCE["clips"],
    )


DOMAINS = {
    "fashion-mnist": _fashion,
    "flux-tiny": _emoji,
    "hidream-tiny": _emoji,
    "wan-tiny": _clips,
    "hunyuan-tiny": _clips,
}
"""By embedded model."""
