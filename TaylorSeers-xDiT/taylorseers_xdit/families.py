"""The models that the commands sample: where they are published, their usual settings, and how many tokens they have."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import hunyuan_video.config
import wan.config
from cache_dic import UserError
from flux.config import REPOS

SPATIAL = 16
"""Pixels of a side of a token: the autoencoder's 8, patches of 2."""
TEMPORAL = 4
"""Frames that the autoencoders of videos make one of, after the first."""
XFUSER, DIFFUSERS = "xfuser", "diffusers"
BACKENDS = (XFUSER, DIFFUSERS)


@dataclass(frozen=True, kw_only=True)
class Family:
    """preset: our backbone, whose published settings are the usual ones. pipeline: diffusers' class. model: on the hub.

    own: our command that samples the model without diffusers. classes: of transformers, by xfuser's module and name of the one
    that stands for it. plan: whether diffusers says how the tokens are split. text_length: tokens of a text that are split with
    the image's, 0 where each process has them all. num_frames: 0 for images. fps: of the videos' files. repos: models on the
    hub, by the names that methods have published settings under.
    """

    preset: str
    pipeline: str
    model: str
    own: str
    classes: tuple[str, str, str]
    plan: bool
    text_length: int
    height: int
    width: int
    num_frames: int = 0
    num_steps: int = 50
    guidance_scale: float
    fps: int = 0
    repos: Mapping[str, str]

    def name_of(self, model: str) -> str:
        """What a model on the hub, or one in a folder, is called here; `model` as it is for one that is not known."""
        from taylorseers_diffusers.transformers import published_in

        by_repo = {repo: name for name, repo in self.repos.items()}
        return by_repo.get(model) or published_in(Path(model)) or model

    def num_tokens(self, height: int, width: int, num_frames: int) -> int:
        """Of an image or video; UserError for sizes that its patches do not make up."""
        for name, size in (("--height", height), ("--width", width)):
            if size % SPATIAL:
                raise UserError(f"{name} {size} must be a multiple of {SPATIAL}")
        if not self.num_frames:
            return (height // SPATIAL) * (width // SPATIAL)
        if num_frames % TEMPORAL != 1:
            raise UserError(f"--num-frames {num_frames} must be {TEMPORAL}n + 1, such as {self.num_frames}")
        return (1 + num_frames // TEMPORAL) * (height // SPATIAL) * (width // SPATIAL)

    def check_processes(self, backend: str, num_tokens: int, text_length: int, processes: int) -> None:
        """UserError for tokens that so many processes cannot share evenly, and for a backend that cannot split them."""
        if backend == DIFFUSERS and not self.plan:
            raise UserError(
                f"diffusers' ContextParallelConfig has no plan for {self.classes[0]}, and its attention no masks there; take "
                f"--backend xfuser, or {self.own} with --ulysses-degree"
            )
        counts = {"tokens of the image or video": num_tokens}
        if self.text_length:
            counts["tokens of the text (--max-sequence-length)"] = text_length
        for what, count in counts.items():
            if count % processes:
                raise UserError(
                    f"{count} {what} are not the same number for each of {processes} processes, which {backend} cannot have; "
                    f"start {math.gcd(*counts.values(), processes)}, or take another size"
                )


FLUX = Family(
    preset="flux", pipeline="FluxPipeline", model=REPOS["flux-dev"], own="TaylorSeer-FLUX/sample.py",
    classes=("FluxTransformer2DModel", "transformer_flux", "xFuserFlux1Transformer2DWrapper"),
    plan=True, text_length=512, height=1024, width=1024, guidance_scale=3.5, repos=REPOS,
)  # fmt: skip
HUNYUAN = Family(
    preset="hunyuan_video", pipeline="HunyuanVideoPipeline", model=hunyuan_video.config.DIFFUSERS_REPOS["hunyuan-video"],
    own="TaylorSeer-HunyuanVideo/sample_video.py",
    classes=("HunyuanVideoTransformer3DModel", "transformer_hunyuan_video", "xFuserHunyuanVideoTransformer3DWrapper"),
    plan=False, text_length=0, height=720, width=1280, num_frames=129, guidance_scale=6.0, fps=24,
    repos=hunyuan_video.config.DIFFUSERS_REPOS,
)  # fmt: skip
WAN = Family(
    preset="wan", pipeline="WanPipeline", model=wan.config.DIFFUSERS_REPOS["wan-t2v-14B"],
    own="TaylorSeer-Wan2.1/generate.py",
    classes=("WanTransformer3DModel", "transformer_wan", "xFuserWanTransformer3DWrapper"),
    plan=True, text_length=0, height=480, width=832, num_frames=81, guidance_scale=5.0, fps=16,
    repos=wan.config.DIFFUSERS_REPOS,
)  # fmt: skip
FAMILIES: dict[str, Family] = {family.classes[0]: family for family in (FLUX, HUNYUAN, WAN)}
"""By class of transformer."""
