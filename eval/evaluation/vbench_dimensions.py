"""The sixteen dimensions of VBench (arXiv 2311.17982): what each needs, and the official total; needs no torch.

Bounds and weights are those of Vchitect/VBench, scripts/constant.py; files and where they belong those of vbench 0.1.5.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cache_dic import UserError
from cache_dic.errors import check_choice
from evaluation.legacy import (
    BERT,
    BERT_VOCABULARY,
    SETUP,
    MissingFilesError,
    Needed,
    legacy_facts,
    missing_lines,
)
from evaluation.vbench import FLICKERING

VARIABLE = "VBENCH_CACHE_DIR"
LIMIT_S = 6 * 3600.0  # for one dimension; all 16 of 4720 videos took about 1.6 hours on a GPU
DETECTRON2 = "detectron2 in the legacy environment, built from source: https://github.com/facebookresearch/detectron2"

# ------------------------------------------------------------------------------------------------------------- weights

_HUB = "https://huggingface.co"
_CLIP = "https://openaipublic.azureedge.net/clip/models"
CLIP_B = Needed(
    name="clip_model/ViT-B-32.pt",
    size="about 0.35 GB",
    source=f"{_CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
)
CLIP_L = Needed(
    name="clip_model/ViT-L-14.pt",
    size="about 0.93 GB",
    source=f"{_CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
)
AESTHETIC = Needed(
    name="aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",
    size="4 kB",
    source="https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
)
AMT = Needed(name="amt_model/amt-s.pth", size="about 12 MB", source=f"{_HUB}/lalala125/AMT/resolve/main/amt-s.pth")
RAFT = Needed(
    name="raft_model/models/raft-things.pth",
    size="about 21 MB",
    source="https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
)
MUSIQ = Needed(
    name="pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",
    size="about 109 MB",
    source="https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
)
DINO_CODE = Needed(
    name="dino_model/facebookresearch_dino_main/hubconf.py",
    size="a repository",
    source="a clone of https://github.com/facebookresearch/dino",
)
DINO = Needed(
    name="dino_model/dino_vitbase16_pretrain.pth",
    size="about 343 MB",
    source="https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
)
UMT = Needed(
    name="umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",
    size="about 1.2 GB",
    source=f"{_HUB}/OpenGVLab/VBench_Used_Models/resolve/main/l16_ptk710_ftk710_ftk400_f16_res224.pth",
)
VICLIP = Needed(
    name="ViCLIP/ViClip-InternVid-10M-FLT.pth",
    size="about 1.7 GB",
    source=f"{_HUB}/OpenGVLab/VBench_Used_Models/resolve/main/ViClip-InternVid-10M-FLT.pth",
)
TAG2TEXT = Needed(
    name="caption_model/tag2text_swin_14m.pth",
    size="about 4.5 GB",
    source=f"{_HUB}/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
)
BERT_WEIGHTS = Needed(
    name=f"{BERT}/pytorch_model.bin",
    size="about 0.44 GB",
    source=f"{_HUB}/{BERT}",
    hub=BERT,
    instead=(f"{BERT}/model.safetensors",),
)
GRIT = Needed(
    name="grit_model/grit_b_densecap_objectdet.pth",
    size="about 0.8 GB",
    source="https://datarelease.blob.core.windows.net/grit/models/grit_b_densecap_objectdet.pth (which no longer answered in "
    "2026; mirrors exist)",
)


# ---------------------------------------------------------------------------------------------------------- dimensions


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A dimension of VBench. group, low, high, weight: of the official total (its scripts/constant.py).

    needed: weights. uses_detectron2. is_partial: a video in which VBench finds no object has no value, by its protocol.
    per_value: what a video's value of 1 is in the score.
    """

    group: Literal["quality", "semantic"]
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0
    needed: Sequence[Needed] = ()
    uses_detectron2: bool = False
    is_partial: bool = False
    per_value: float = 1.0

    def normalised(self, raw: float) -> float:
        """0 at `low`, 1 at `high`, not clipped, as officially."""
        return (raw - self.low) / (self.high - self.low)


_GRIT: dict[str, Any] = {"group": "semantic", "needed": (GRIT, BERT_VOCABULARY), "uses_detectron2": True}
DIMENSIONS = {
    "subject_consistency": Dimension(group="quality", low=0.1462, needed=(DINO_CODE, DINO)),
    "background_consistency": Dimension(group="quality", low=0.2615, needed=(CLIP_B,)),
    FLICKERING: Dimension(group="quality", low=0.6293),
    "motion_smoothness": Dimension(group="quality", low=0.706, high=0.9975, needed=(AMT,)),
    "dynamic_degree": Dimension(group="quality", weight=0.5, needed=(RAFT,)),
    "aesthetic_quality": Dimension(group="quality", needed=(CLIP_L, AESTHETIC)),
    "imaging_quality": Dimension(group="quality", needed=(MUSIQ,), per_value=0.01),
    "object_class": Dimension(**_GRIT),
    "multiple_objects": Dimension(**_GRIT),
    "human_action": Dimension(group="semantic", needed=(UMT,)),
    "color": Dimension(**_GRIT, is_partial=True),
    "spatial_relationship": Dimension(**_GRIT),
    "scene": Dimension(group="semantic", high=0.8222, needed=(TAG2TEXT, BERT_VOCABULARY, BERT_WEIGHTS)),
    "appearance_style": Dimension(group="semantic", low=0.0009, high=0.2855, needed=(CLIP_B,)),
    "temporal_style": Dimension(group="semantic", high=0.364, needed=(VICLIP,)),
    "overall_consistency": Dimension(group="semantic", high=0.364, needed=(VICLIP,)),
}
GROUP_WEIGHTS = {"quality": 4, "semantic": 1}


def summary(raw: Mapping[str, float]) -> dict[str, float | None]:
    """Quality, semantic and total score in percent of raw scores by dimension; None for one that lacks a dimension.

    VBench's own script counts a missing dimension as a raw 0, which is no score of anything.
    """
    found: dict[str, float | None] = {}
    for group in GROUP_WEIGHTS:
        members = {name: one for name, one in DIMENSIONS.items() if one.group == group}
        if members.keys() <= raw.keys():
            total = sum(one.weight * one.normalised(raw[name]) for name, one in members.items())
            found[group] = 100 * total / sum(one.weight for one in members.values())
        else:
            found[group] = None
    parts = [(found[group], weight) for group, weight in GROUP_WEIGHTS.items()]
    known = [(value, weight) for value, weight in parts if value is not None]
    whole = len(known) == len(parts)
    found["total"] = sum(value * weight for value, weight in known) / sum(GROUP_WEIGHTS.values()) if whole else None
    return found


def total_score(raw: Mapping[str, float]) -> float:
    """The total in percent; UserError naming the dimensions that it lacks."""
    total = summary(raw)["total"]
    if total is None:
        lacking = [name for name in DIMENSIONS if name not in raw]
        raise UserError(f"VBench's total needs all 16 dimensions, and there is none of {', '.join(lacking)}")
    return total


# ----------------------------------------------------------------------------------------------------------- what is there


def vbench_folder() -> Path:
    """Where VBench looks for weights."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/vbench").expanduser().absolute()


def missing(dimension: str) -> list[str]:
    """What a dimension needs that is not here, a line for each: the environment, weights, packages."""
    check_choice("dimension", dimension, DIMENSIONS)
    asked = DIMENSIONS[dimension]
    lines = []
    try:
        facts = legacy_facts()
        if facts["vbench_folder"] is None:
            lines.append(f"vbench in the legacy environment: `{SETUP}`")
        elif asked.uses_detectron2 and not facts["has_detectron2"]:
            lines.append(DETECTRON2)
    except UserError as error:
        lines.append(str(error))
    return lines + missing_lines(asked.needed, vbench_folder())


def check_missing(dimensions: Sequence[str]) -> None:
    """MissingFilesError with a line for everything that some dimensions lack."""
    needing: dict[str, list[str]] = {}
    for name in dimensions:
        for line in missing(name):
            needing.setdefault(line, []).append(name)
    if needing:
        lines = [f"  {', '.join(names)}: {line}" for line, names in needing.items()]
        able = [name for name in DIMENSIONS if not missing(name)]
        hint = f"Without them these can be scored: --dimensions {' '.join(able)}" if able else None
        raise MissingFilesError("\n".join(filter(None, ["VBench needs what is not here:", *lines, hint])))
