"""CLIP score: how well samples fit their prompts, by the image and text towers of OpenAI's CLIP (arXiv 2103.00020).

Of each image 100 max(cos, 0) (CLIPScore, arXiv 2104.08718, without its factor of 2.5 and on the scale of 100 that the caching
papers print), of a video the mean over its frames. A prompt is cut at 77 tokens. torchmetrics clips the mean over images
instead of each, which differs only where an image has a negative cosine.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from evaluation.scoring.measures import Measure, Reading, mean_score, missing_packages
from evaluation.scoring.read import Shard
from evaluation.scoring.weights import STAND_INS, stand_ins_allowed
from seerkit.io.files import content_digest
from seerkit.text.encoders import Encoder, Source, encoder_files, find_encoder, from_folder
from seerkit.weights.checkpoints import NotFoundError

BATCH = 16  # images that the tower looks at together


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One of OpenAI's models. variable: of the environment, that names another folder. size: in words.

    vision: width, layers and patch of the image tower, which tell a model from another under its name.
    """

    backbone: str
    variable: str
    source: Source
    size: str
    vision: tuple[int, int, int]

    def folder(self) -> Path:
        """Where it is; NotFoundError with the places, and the command that fetches it."""
        encoder = Encoder(
            name=f"CLIP {self.backbone}",
            flag=f"the variable {self.variable}",
            sources=(self.source,),
            processor="preprocessor_config",
        )
        return find_encoder(encoder, os.environ.get(self.variable), download=False)[0]

    def missing(self) -> list[str]:
        if lines := missing_packages("transformers", extra="models"):
            return lines
        try:
            folder = self.folder()
        except NotFoundError as error:
            return [f"{self.size} of weights: {error}"]
        vision = self._vision(folder)
        if vision == self.vision or stand_ins_allowed():
            return []
        return [
            f"CLIP {self.backbone}, and {folder} has another model: width, layers and patch of its image tower are {vision} "
            f"instead of {self.vision}; fetch it with `{self.source.command}`, or set {STAND_INS}=1 to try the command with a "
            "stand-in, whose figures mean nothing"
        ]

    def _vision(self, folder: Path) -> tuple[int, int, int]:
        from transformers import CLIPConfig

        config = from_folder(CLIPConfig, folder).vision_config
        return config.hidden_size, config.num_hidden_layers, config.patch_size

    def reading(self, name: str) -> Reading:
        import transformers

        folder = self.folder()
        stand_in = {} if self._vision(folder) == self.vision else {"stand_in_weights": True}
        facts = {
            "backbone": self.backbone,
            "weights": content_digest(*encoder_files((folder, folder))),
            "transformers": transformers.__version__,
        }

        def load(device: torch.device) -> Callable[[Shard], Mapping[str, np.ndarray]]:
            return clip_reader(folder, device)

        return Reading(name=name, facts={**facts, **stand_in}, load=load, of=("prompts",))


def clip_reader(folder: Path, device: torch.device) -> Callable[[Shard], Mapping[str, np.ndarray]]:
    """What gives the CLIP score of each sample, by the model in a folder of transformers; Pillow resizes on every machine."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = from_folder(CLIPModel, folder).float().to(device)
    tokenizer, processor = from_folder(CLIPTokenizer, folder), from_folder(CLIPImageProcessorPil, folder)
    length = model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def score(frames: np.ndarray, prompt: str) -> float:
        text = tokenizer([prompt], padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        found = []
        for start in range(0, len(frames), BATCH):
            images = processor(
                images=list(frames[start : start + BATCH]), input_data_format="channels_last", return_tensors="pt"
            )
            out = model(**text.to(device), **images.to(device))
            cosine = F.cosine_similarity(out.image_embeds.double(), out.text_embeds.double())
            found.append(100 * cosine.clamp(min=0).cpu())
        return float(torch.cat(found).mean())

    def read(shard: Shard) -> Mapping[str, np.ndarray]:
        return {"score": np.array([score(*pair) for pair in zip(shard.frames, shard.prompts, strict=True)])}

    return read


CLIPS = {
    "clip-l14": Clip(
        backbone="ViT-L/14",
        variable="CLIP_L14",
        source=Source("openai/clip-vit-large-patch14"),
        size="1.7 GB",
        vision=(1024, 24, 14),
    ),
    "clip-b32": Clip(
        backbone="ViT-B/32",
        variable="CLIP_B32",
        source=Source("openai/clip-vit-base-patch32", weights="pytorch_model.bin"),
        size="0.6 GB",
        vision=(768, 12, 32),
    ),
}
_SCALES = {
    "clip-l14": "Figures near 19 for FLUX.1-dev, as in TaylorSeer's own table, are of ViT-L/14, as the authors' group says of "
    "an earlier paper; a user with this model got 17.2 for a row of 19.6, so only differences compare",
    "clip-b32": "Figures near 32 for FLUX.1-dev, as in HyCa's table, are on the scale of ViT-B/32 and ViT-B/16 (a rerun with "
    "B/16 got 31.3); which of them is not published",
}


def _measure(name: str, clip: Clip) -> Measure:
    def score(samples: Any, _: Any) -> dict[str, Any]:
        return mean_score(samples.whole("score"))

    return Measure(
        name=name,
        title=f"CLIP score ({clip.backbone})",
        needs=frozenset({"prompts"}),
        best=1,
        missing=clip.missing,
        reading=lambda: clip.reading(name),
        score=score,
        meaning=f"CLIP score ({clip.backbone}): 100 max(cos, 0) of each image and its prompt by OpenAI's weights in "
        f"transformers, prompts cut at 77 tokens, mean over frames and samples. {_SCALES[name]}",
    )


MEASURES = {name: _measure(name, clip) for name, clip in CLIPS.items()}
