"""DiT's weights: where they are published, and the layouts that they come in."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dit.config import CONFIGS, DiTConfig, dit_config
from dit.model import DiT
from seerkit.embeddings import sincos_position_2d
from seerkit.weights import (
    Layout,
    Published,
    Rule,
    State,
    find_weights,
    load_weights,
    read_metadata,
    read_state,
    recognise_layout,
)

ENV = "DIT_CHECKPOINT"  # names a checkpoint file, or a folder of them, for the published models
EMBEDDED = {CONFIGS["fashion-mnist"]: Path(__file__).resolve().parents[1] / "weights" / "fashion-mnist.safetensors"}


def _published(size: int) -> tuple[Published, ...]:
    official = f"DiT-XL-2-{size}x{size}.pt"
    return (
        Published(official, url=f"https://dl.fbaipublicfiles.com/DiT/models/{official}"),
        Published("transformer/diffusion_pytorch_model.safetensors", repo=f"facebook/DiT-XL-2-{size}"),
        Published("transformer/diffusion_pytorch_model.bin", repo=f"facebook/DiT-XL-2-{size}"),
    )


PUBLISHED = {dit_config("DiT-XL/2", image_size=size): _published(size) for size in (256, 512)}

_BLOCK, _EMBEDDERS = "transformer_blocks.{i}.", "transformer_blocks.{i}.norm1.emb."
DIFFUSERS = Layout(
    "diffusers",
    (
        Rule("x_embedder.proj.{p}", "pos_embed.proj.{p}"),
        Rule("t_embedder.mlp.0.{p}", _EMBEDDERS + "timestep_embedder.linear_1.{p}"),  # the same in every block
        Rule("t_embedder.mlp.2.{p}", _EMBEDDERS + "timestep_embedder.linear_2.{p}"),
        Rule("y_embedder.embedding_table.weight", _EMBEDDERS + "class_embedder.embedding_table.weight"),
        Rule("blocks.{i}.adaLN_modulation.1.{p}", _BLOCK + "norm1.linear.{p}"),
        Rule("blocks.{i}.attn.qkv.{p}", *(_BLOCK + f"attn1.to_{part}.{{p}}" for part in "qkv")),
        Rule("blocks.{i}.attn.proj.{p}", _BLOCK + "attn1.to_out.0.{p}"),
        Rule("blocks.{i}.mlp.fc1.{p}", _BLOCK + "ff.net.0.proj.{p}"),
        Rule("blocks.{i}.mlp.fc2.{p}", _BLOCK + "ff.net.2.{p}"),
        Rule("final_layer.adaLN_modulation.1.{p}", "proj_out_1.{p}"),  # rows: shift, scale, in both
        Rule("final_layer.linear.{p}", "proj_out_2.{p}"),
    ),
)


def convert_diffusers(state: Mapping[str, Tensor], config: DiTConfig) -> State:
    """Weights of diffusers' DiTTransformer2DModel under the official names, with the `pos_embed` it does not store.

    diffusers computes two things otherwise than the official code, which these weights were trained with: norm3 has
    eps 1e-5 (official 1e-6), and the exponents of the timestep frequencies are i/127 (official i/128).
    """
    side = config.input_size // config.patch_size
    return DIFFUSERS.convert(state, {"pos_embed": sincos_position_2d(config.hidden_size, side, side).unsqueeze(0)})


def find_dit(config: DiTConfig, checkpoint: str | Path | None = None, *, download: bool = True) -> Path:
    """The checkpoint of a configuration: `checkpoint` (a file or folder), or the embedded or published one."""
    if checkpoint is None and config in EMBEDDED:
        path = EMBEDDED[config]
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there; restore it from the repository, or train one with "
                "`python TaylorSeer-DiT/train.py --out outputs/dit-fashion` and name outputs/dit-fashion/state.pt"
            )
        return path
    if checkpoint is None and config not in PUBLISHED:
        raise FileNotFoundError(
            f"no weights are published for {config}, only for DiT-XL/2 at 256 and 512 pixels and fashion-mnist; "
            "name a checkpoint of your own"
        )
    return find_weights(checkpoint, PUBLISHED.get(config, ()), env=ENV, download=download)


def load_dit(
    config: DiTConfig | str,
    checkpoint: str | Path | None = None,
    *,
    image_size: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    download: bool = True,
) -> DiT:
    """A DiT with its weights, in eval mode.

    config: a configuration, or its name in `CONFIGS` (with `image_size` in pixels). checkpoint: a file or folder in the
    official layout, as train.py writes it (its EMA), or in diffusers' layout; None finds the model's own.
    Raises FileNotFoundError if there is none, ValueError if it is damaged or does not fit.
    """
    if isinstance(config, str):
        config = dit_config(config, image_size=image_size)
    elif image_size is not None:
        raise ValueError("image_size belongs to a model's name; a DiTConfig has its input_size")
    path = find_dit(config, checkpoint, download=download)
    state = read_state(path)
    _check_config(config, path)
    with torch.device("meta"):
        model = DiT(config, attention=attention)
    try:
        if recognise_layout(state, model.state_dict(), [DIFFUSERS]) is DIFFUSERS:
            state = convert_diffusers(state, config)
        return load_weights(model, state, dtype=dtype, device=device).eval()
    except ValueError as error:
        error.args = (f"{path}: {error}",)
        raise


def _check_config(config: DiTConfig, path: Path) -> None:
    """ValueError if the file says that it is of another configuration; shapes do not show the number of heads."""
    text = read_metadata(path).get("config")
    if text is None:
        return
    try:
        theirs = dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: its configuration cannot be read ({error})") from error
    ours = asdict(config)
    del ours["class_dropout_prob"]  # of training; whether there is a null class shows in the shapes
    differ = [f"{key} {theirs[key]} (model: {ours[key]})" for key in ours if theirs.get(key, ours[key]) != ours[key]]
    if differ:
        raise ValueError(f"{path} is of another configuration: {', '.join(differ)}")
