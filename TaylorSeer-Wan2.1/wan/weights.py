"""Wan2.1's weights: where they are published, and the layouts that they come in."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seerkit.weights.checkpoints import Published, find_checkpoint, load_checkpoint
from seerkit.weights.counterparts import Counterpart, Settings
from seerkit.weights.layouts import Layout, Rule, State
from wan.config import DIFFUSERS_REPOS, REPOS, WanConfig, wan_config
from wan.model import Wan

ENV = {name: name.upper().replace("-", "_").replace(".", "_") for name in REPOS}  # name a checkpoint file or folder
EMBEDDED = {"wan-tiny": Path(__file__).resolve().parents[1] / "weights" / "wan-tiny.safetensors"}


def published(name: str) -> tuple[Published, ...]:
    """The files of a published model, the official ones first; none for other models."""
    if name not in REPOS:
        return ()
    sharded = "" if name == "wan-t2v-1.3B" else ".index.json"
    return (
        Published(f"diffusion_pytorch_model.safetensors{sharded}", repo=REPOS[name]),
        Published("transformer/diffusion_pytorch_model.safetensors.index.json", repo=DIFFUSERS_REPOS[name]),
    )


def _attention(ours: str, theirs: str, **parts: str) -> tuple[Rule, ...]:
    return tuple(
        Rule(f"blocks.{{i}}.{ours}.{to}.{{p}}", f"blocks.{{i}}.{theirs}.{part}.{{p}}") for to, part in parts.items()
    )


_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0", "norm_q": "norm_q", "norm_k": "norm_k"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj", "norm_k_img": "norm_added_k"}
_CONDITION = "condition_embedder."

DIFFUSERS = Layout(
    "diffusers",
    (
        *(
            Rule(f"text_embedding.{i}.{{p}}", f"{_CONDITION}text_embedder.linear_{n}.{{p}}")
            for i, n in ((0, 1), (2, 2))
        ),
        *(
            Rule(f"time_embedding.{i}.{{p}}", f"{_CONDITION}time_embedder.linear_{n}.{{p}}")
            for i, n in ((0, 1), (2, 2))
        ),
        Rule("time_projection.1.{p}", f"{_CONDITION}time_proj.{{p}}"),
        *(
            Rule(f"img_emb.proj.{i}.{{p}}", f"{_CONDITION}image_embedder.{part}.{{p}}")
            for i, part in ((0, "norm1"), (1, "ff.net.0.proj"), (3, "ff.net.2"), (4, "norm2"))
        ),
        # By its two names: {p} would also take those of the official layout's convolution.
        *(Rule(f"patch_embedding.{p}", f"patch_embedding.{p}") for p in ("weight", "bias")),
        Rule("blocks.{i}.modulation", "blocks.{i}.scale_shift_table"),
        *_attention("self_attn", "attn1", **_ATTENTION),
        *_attention("cross_attn", "attn2", **_ATTENTION, **_IMAGE),
        Rule("blocks.{i}.norm3.{p}", "blocks.{i}.norm2.{p}"),
        Rule("blocks.{i}.ffn.0.{p}", "blocks.{i}.ffn.net.0.proj.{p}"),
        Rule("blocks.{i}.ffn.2.{p}", "blocks.{i}.ffn.net.2.{p}"),
        Rule("head.modulation", "scale_shift_table"),
        Rule("head.head.{p}", "proj_out.{p}"),
    ),
)


def _image_of(config: WanConfig) -> dict[str, Any]:
    """Settings of the image branch, which text-to-video models have none of."""
    has_image = config.model_type == "i2v"
    return {
        "attention_head_dim": config.head_dim,
        "image_dim": config.image_dim if has_image else None,
        "added_kv_proj_dim": config.dim if has_image else None,
    }


def _type_of(theirs: Settings) -> dict[str, Any]:
    image = {} if theirs["image_dim"] is None else {"model_type": "i2v", "image_dim": theirs["image_dim"]}
    return {"dim": theirs["num_attention_heads"] * theirs["attention_head_dim"], **image}


COUNTERPART = Counterpart(
    kind="WanTransformer3DModel",
    model=Wan,
    config=WanConfig,
    layout=DIFFUSERS,
    settings={
        "patch_size": "patch_size",
        "num_attention_heads": "num_heads",
        "in_channels": "in_dim",
        "out_channels": "out_dim",
        "text_dim": "text_dim",
        "freq_dim": "freq_dim",
        "ffn_dim": "ffn_dim",
        "num_layers": "num_layers",
        "eps": "eps",
    },
    to_theirs=_image_of,
    to_ours=_type_of,
    untold=("text_len",),  # the pipeline's max_sequence_length
    idle=("rope_max_seq_len",),
)


def convert_diffusers(state: Mapping[str, Tensor]) -> State:
    """Weights of diffusers' WanTransformer3DModel under the official names."""
    return DIFFUSERS.convert(state)


def find_wan(name: str | None, checkpoint: str | Path | None = None, *, download: bool = True) -> Path:
    """The checkpoint of a model of `CONFIGS`: `checkpoint` (a file or folder), or the embedded or published one.

    Raises FileNotFoundError with the files, the places looked at, and the commands that fetch them.
    """
    return find_checkpoint(
        checkpoint,
        embedded=EMBEDDED.get(name),
        published=published(name),
        known=", ".join((*REPOS, *EMBEDDED)),
        training="python TaylorSeer-Wan2.1/train.py",
        env=ENV.get(name),
        download=download,
    )


def load_wan(
    model: WanConfig | str,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    download: bool = True,
) -> Wan:
    """A Wan2.1 transformer with its weights, in eval mode.

    model: a configuration, or the name of one in `CONFIGS`. checkpoint: a file or folder in the official layout, as train.py
    writes it (its EMA), or in diffusers' layout, in shards or whole; None finds the named model's own. dtype: of the blocks;
    modulation and head stay float32 at least. Raises FileNotFoundError if there is none, UserError if it is damaged or does
    not fit.
    """
    name, config = (model, wan_config(model)) if isinstance(model, str) else (None, model)
    path = find_wan(name, checkpoint, download=download)
    with torch.device("meta"):
        made = Wan(config, attention=attention).cast(dtype)
    return load_checkpoint(
        made, path, config=asdict(config), layouts={DIFFUSERS: convert_diffusers}, dtype=None, device=device
    )
