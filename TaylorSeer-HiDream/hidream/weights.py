"""HiDream-I1's weights: where they are published, and how they are loaded; diffusers has the official names."""

from dataclasses import asdict, fields
from pathlib import Path

import torch

from hidream.config import REPOS, HiDreamConfig, hidream_config
from hidream.model import HiDream
from seerkit.weights.checkpoints import Published, find_checkpoint, load_checkpoint
from seerkit.weights.counterparts import Counterpart

ENV = {name: name.upper().replace("-", "_") for name in REPOS}  # name a checkpoint file or folder
PUBLISHED = {
    name: Published("transformer/diffusion_pytorch_model.safetensors.index.json", repo=repo)
    for name, repo in REPOS.items()
}
EMBEDDED = {"hidream-tiny": Path(__file__).resolve().parents[1] / "weights" / "hidream-tiny.safetensors"}

COUNTERPART = Counterpart(
    kind="HiDreamImageTransformer2DModel",
    model=HiDream,
    config=HiDreamConfig,
    settings={field.name: field.name for field in fields(HiDreamConfig)},
    to_theirs=lambda config: {"force_inference_output": True},  # by the experts' products as they are in inference
    idle=("force_inference_output",),
)


def find_hidream(name: str | None, checkpoint: str | Path | None = None, *, download: bool = True) -> Path:
    """The checkpoint of a model of `CONFIGS`: `checkpoint` (a file or folder), or the embedded or published one.

    By name, since Full, Dev and Fast have one configuration. Raises FileNotFoundError with the files, the places looked at,
    and the commands that fetch them.
    """
    published = [PUBLISHED[name]] if name in PUBLISHED else []
    known, training = ", ".join((*REPOS, *EMBEDDED)), "python TaylorSeer-HiDream/train.py"
    return find_checkpoint(
        checkpoint,
        embedded=EMBEDDED.get(name),
        published=published,
        known=known,
        training=training,
        env=ENV.get(name),
        download=download,
    )


def load_hidream(
    model: HiDreamConfig | str,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    download: bool = True,
) -> HiDream:
    """A HiDream transformer with its weights, in eval mode.

    model: a configuration, or the name of one in `CONFIGS`. checkpoint: a file or folder in the official layout, in shards or
    whole, or as train.py writes it (its EMA); None finds the named model's own.
    On the host weights of the same dtype stay mapped from the file, but for those of experts, 60 % of HiDream-I1: they
    are stacked, hence copied. That happens there so that the device never holds them twice.
    Raises FileNotFoundError if there is none, UserError if it is damaged or does not fit.
    """
    name, config = (model, hidream_config(model)) if isinstance(model, str) else (None, model)
    path = find_hidream(name, checkpoint, download=download)
    with torch.device("meta"):
        made = HiDream(config, attention=attention)
    return load_checkpoint(made, path, config=asdict(config), layouts={}, dtype=dtype, device="cpu").to(device)
