"""ImageReward (Xu et al. 2023, arXiv 2304.05977) of images for their prompts, by the authors' package image-reward 1.5.

The reward is standardised, (r - 0.1672) / 1.0333, by the authors' constants; figures of text-to-image models lie near 1.
Prompts are cut at 35 tokens; an image is resized to 224 pixels on its shorter side, and the square in its middle is looked at,
so that of a wide one the sides do not count. In float32; devices differ in the last digits.
"""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cache_dic import UserError
from evaluation.legacy import (
    BERT_VOCABULARY,
    LegacyError,
    LegacyWorker,
    MissingFilesError,
    Needed,
    legacy_facts,
    legacy_python,
    missing_lines,
    weights_digests,
)
from evaluation.scoring.samples import in_words

if TYPE_CHECKING:
    import numpy as np

VARIABLE = "IMAGE_REWARD_DIR"
HUB = "https://huggingface.co/THUDM/ImageReward"
NEEDED = (
    Needed(name="ImageReward.pt", size="1.79 GB", source=HUB),
    Needed(name="med_config.json", size="under 1 kB", source=HUB),
    BERT_VOCABULARY,
)
LOAD_S, IMAGE_S = 900.0, 60.0  # limits, for 1.79 GB from a slow disk and for one image on a slow processor


def image_reward_folder() -> Path:
    """Where the weights are looked for."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/ImageReward").expanduser().absolute()


def missing() -> list[str]:
    """What has to be fetched or made before images can be scored, a line for each; none where nothing is missing."""
    lines = []
    try:
        legacy_python()
    except UserError as error:
        lines.append(str(error))
    return lines + missing_lines(NEEDED, image_reward_folder())


def facts() -> dict[str, Any]:
    """What scores depend on besides images and prompts: digests of the weights, and versions."""
    told = legacy_facts()
    return {
        "weights": weights_digests(NEEDED, image_reward_folder()),
        "python": told["python"],
        "versions": {name: told["versions"].get(name) for name in ("image-reward", "torch", "transformers", "timm")},
    }


class ImageReward:
    """The model in a process of its own, from `with` to its end. MissingFilesError where something has to be fetched first.

    device: auto, cpu, cuda or cuda:N. device_name: the processor's, once it is there.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = device

    def __enter__(self) -> Self:
        if lines := missing():
            raise MissingFilesError(
                "\n".join(["ImageReward needs what is not here:", *(f"  {line}" for line in lines)])
            )
        folder = image_reward_folder()
        weights, config = (NEEDED[index].find(folder) for index in (0, 1))
        self._worker = LegacyWorker(folder=folder).__enter__()
        try:
            loaded = self._worker.ask(
                "load_image_reward",
                {"device": str},
                limit_s=LOAD_S,
                weights=str(weights),
                med_config=str(config),
                device=self.device,
            )
        except LegacyError as error:
            self._worker.__exit__(None, None, None)
            raise UserError(f"{weights} cannot be used: {error}") from error
        self.device_name: str = loaded["device"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.__exit__(kind, error, trace)

    def scores(self, prompts: Sequence[str], images: "Sequence[str | Path | np.ndarray]") -> list[float]:
        """The reward of each image, a file or pixels (H, W, 3) of uint8, for its prompt.

        UserError for lists of different lengths, empty prompts, files that are missing or no images, and answers that are not
        finite; nothing is scored then.
        """
        check_pairs(prompts, images)
        with tempfile.TemporaryDirectory(prefix="taylorseer-") as folder:
            paths = [_as_file(image, Path(folder) / f"{index}.png") for index, image in enumerate(images)]
            found = self._worker.ask(
                "image_reward",
                _numbers,
                limit_s=LOAD_S + IMAGE_S * len(paths),
                prompts=list(prompts),
                images=[str(path.absolute()) for path in paths],
            )
        if len(found) != len(paths):
            raise UserError(f"ImageReward answered {len(found)} scores for {len(paths)} images")
        if bad := [str(path) for path, value in zip(paths, found, strict=True) if not math.isfinite(value)]:
            raise UserError(f"ImageReward of {in_words(bad)} is not finite; the weights may be damaged")
        return [float(value) for value in found]


def image_reward(prompts: Sequence[str], paths: Sequence[str | Path], *, device: str = "auto") -> list[float]:
    """The reward of each image file for its prompt, by a process for this call; `ImageReward` serves many calls."""
    check_pairs(prompts, paths)
    with ImageReward(device) as model:
        return model.scores(prompts, paths)


def check_pairs(prompts: Sequence[str], images: "Sequence[str | Path | np.ndarray]") -> None:
    """UserError for prompts and images that ImageReward would stumble over, or score as if they were others."""
    if isinstance(prompts, str) or len(prompts) != len(images):
        count = 1 if isinstance(prompts, str) else len(prompts)
        raise UserError(f"{count} prompts and {len(images)} images do not belong together; give one for each")
    if empty := [str(index) for index, prompt in enumerate(prompts) if not prompt.strip()]:
        raise UserError(
            f"prompts {in_words(empty)} (counted from 0) are empty; ImageReward judges images by their prompts"
        )
    files = [Path(image) for image in images if isinstance(image, str | Path)]
    if absent := [str(path) for path in files if not path.is_file()]:
        raise UserError(f"images are missing: {in_words(absent)}")


def _as_file(image: "str | Path | np.ndarray", place: Path) -> Path:
    if isinstance(image, str | Path):
        return Path(image)
    from PIL import Image

    Image.fromarray(image).save(place)
    return place


def _numbers(value: Any) -> bool:
    """a list of numbers"""
    return isinstance(value, list) and all(isinstance(one, int | float) for one in value)
