"""DiT's weights: where they are published, and the layouts that they come in."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from cache_dic import UserError
from dit.config import CONFIGS, PUBLISHED_SIZES, DiTConfig, dit_config
from dit.model import EPS, DiT
from seerkit.layers.embeddings import sincos_position_2d
from seerkit.weights.checkpoints import Published, find_checkpoint, load_checkpoint
from seerkit.weights.counterparts import Counterpart
from seerkit.weights.layouts import Layout, Rule, State

ENV = "DIT_CHECKPOINT"  # names a checkpoint file, or a folder of them, for the published models
EMBEDDED = {CONFIGS["fashion-mnist"]: Path(__file__).resolve().parents[1] / "weights" / "fashion-mnist.safetensors"}


def _published(size: int) -> tuple[Published, ...]:
    official = f"DiT-XL-2-{size}x{size}.pt"
    return (
        Published(official, url=f"https://dl.fbaipublicfiles.com/DiT/models/{official}"),
        Published("transformer/diffusion_pytorch_model.safetensors", repo=f"facebook/DiT-XL-2-{size}"),
        Published("transformer/diffusion_pytorch_model.bin", repo=f"facebook/DiT-XL-2-{size}"),
    )


PUBLISHED = {dit_config("DiT-XL/2", image_size=size): _published(size) for size in PUBLISHED_SIZES}

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


def _take_official_frequencies(model: nn.Module) -> None:
    """diffusers' exponents of the timestep frequencies are i/127, those of the official code i/128."""
    for block in model.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0


COUNTERPART = Counterpart(
    kind="DiTTransformer2DModel",
    model=DiT,
    config=DiTConfig,
    layout=DIFFUSERS,
    settings={
        "sample_size": "input_size",
        "patch_size": "patch_size",
        "in_channels": "in_channels",
        "num_layers": "depth",
        "num_attention_heads": "num_heads",
        "num_embeds_ada_norm": "num_classes",
    },
    to_theirs=lambda config: {
        "attention_head_dim": config.hidden_size // config.num_heads,
        "out_channels": config.out_channels,
        "norm_eps": EPS,  # the class's own is that of no other norm
    },
    to_ours=lambda theirs: {
        "hidden_size": theirs["num_attention_heads"] * theirs["attention_head_dim"],
        "learn_sigma": theirs["out_channels"] not in (None, theirs["in_channels"]),
    },
    untold=("class_dropout_prob",),
    idle=("dropout", "norm_num_groups", "upcast_attention", "norm_eps"),
    buffers={"pos_embed": "pos_embed.pos_embed"},
    adapt=_take_official_frequencies,
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
    return find_checkpoint(
        checkpoint,
        embedded=EMBEDDED.get(config),
        published=PUBLISHED.get(config, ()),
        known="DiT-XL/2 at 256 and 512 pixels and fashion-mnist",
        training="python TaylorSeer-DiT/train.py",
        env=ENV,
        download=download,
    )


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
    Raises FileNotFoundError if there is none, UserError if it is damaged or does not fit.
    """
    if isinstance(config, str):
        config = dit_config(config, image_size=image_size)
    elif image_size is not None:
        raise UserError("image_size belongs to a model's name; a DiTConfig has its input_size")
    path = find_dit(config, checkpoint, download=download)
    shape = asdict(config)
    del shape["class_dropout_prob"]  # of training; whether there is a null class shows in the tensors' shapes
    with torch.device("meta"):
        model = DiT(config, attention=attention)
    layouts = {DIFFUSERS: lambda state: convert_diffusers(state, config)}
    return load_checkpoint(model, path, config=shape, layouts=layouts, dtype=dtype, device=device)
