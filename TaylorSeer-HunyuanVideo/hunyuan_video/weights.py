"""HunyuanVideo's weights: where they are published, and the layouts that they come in."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from hunyuan_video.config import CONFIGS, DIFFUSERS_REPOS, REPOS, HunyuanVideoConfig, hunyuan_video_config
from hunyuan_video.model import HunyuanVideo
from seerkit.weights.checkpoints import Published, find_checkpoint, load_checkpoint
from seerkit.weights.counterparts import Counterpart
from seerkit.weights.layouts import Layout, Rule, State, swap_halves

ENV = {CONFIGS["hunyuan-video"]: "HUNYUAN_VIDEO"}  # names a checkpoint file or folder
PUBLISHED = {
    CONFIGS[name]: (
        Published("hunyuan-video-t2v-720p/transformers/mp_rank_00_model_states.pt", repo=repo),
        Published("transformer/diffusion_pytorch_model.safetensors.index.json", repo=DIFFUSERS_REPOS[name]),
    )
    for name, repo in REPOS.items()
}
EMBEDDED = {
    CONFIGS["hunyuan-tiny"]: Path(__file__).resolve().parents[1] / "weights" / "hunyuan-tiny.safetensors",
}


_DOUBLE, _SINGLE = "transformer_blocks.{i}.", "single_transformer_blocks.{i}."
_REFINER, _REFINER_BLOCK = "context_embedder.", "context_embedder.token_refiner.refiner_blocks.{i}."
_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")


def _pair(ours: tuple[str, str], theirs: str) -> tuple[Rule, Rule]:
    """Rules of two layers with an activation between."""
    return tuple(Rule(f"{name}.{{p}}", f"{theirs}.linear_{i}.{{p}}") for i, name in enumerate(ours, start=1))


def _stream(ours: str, *, norm: str, qkv: tuple[str, ...], qk_norm: str, proj: str, ff: str) -> tuple[Rule, ...]:
    """Rules of one stream of a double block."""
    block = f"double_blocks.{{i}}.{ours}_"
    return (
        Rule(block + "mod.linear.{p}", _DOUBLE + norm + ".linear.{p}"),
        Rule(block + "attn_qkv.{p}", *(_DOUBLE + part + ".{p}" for part in qkv)),
        Rule(block + "attn_q_norm.{p}", _DOUBLE + f"attn.{qk_norm}_q.{{p}}"),
        Rule(block + "attn_k_norm.{p}", _DOUBLE + f"attn.{qk_norm}_k.{{p}}"),
        Rule(block + "attn_proj.{p}", _DOUBLE + f"attn.{proj}.{{p}}"),
        Rule(block + "mlp.fc1.{p}", _DOUBLE + ff + ".net.0.proj.{p}"),
        Rule(block + "mlp.fc2.{p}", _DOUBLE + ff + ".net.2.{p}"),
    )


def _refiner_block() -> tuple[Rule, ...]:
    block = "txt_in.individual_token_refiner.blocks.{i}."
    return (
        Rule(block + "norm1.{p}", _REFINER_BLOCK + "norm1.{p}"),
        Rule(block + "self_attn_qkv.{p}", *(_REFINER_BLOCK + part + ".{p}" for part in _QKV)),
        Rule(block + "self_attn_proj.{p}", _REFINER_BLOCK + "attn.to_out.0.{p}"),
        Rule(block + "norm2.{p}", _REFINER_BLOCK + "norm2.{p}"),
        Rule(block + "mlp.fc1.{p}", _REFINER_BLOCK + "ff.net.0.proj.{p}"),
        Rule(block + "mlp.fc2.{p}", _REFINER_BLOCK + "ff.net.2.{p}"),
        Rule(block + "adaLN_modulation.1.{p}", _REFINER_BLOCK + "norm_out.linear.{p}"),
    )


DIFFUSERS = Layout(
    "diffusers",
    (
        Rule("img_in.proj.{p}", "x_embedder.proj.{p}"),
        Rule("txt_in.input_embedder.{p}", _REFINER + "proj_in.{p}"),
        *_pair(("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.mlp.2"), _REFINER + "time_text_embed.timestep_embedder"),
        *_pair(
            ("txt_in.c_embedder.linear_1", "txt_in.c_embedder.linear_2"), _REFINER + "time_text_embed.text_embedder"
        ),
        *_refiner_block(),
        *_pair(("time_in.mlp.0", "time_in.mlp.2"), "time_text_embed.timestep_embedder"),
        *_pair(("vector_in.in_layer", "vector_in.out_layer"), "time_text_embed.text_embedder"),
        *_pair(("guidance_in.mlp.0", "guidance_in.mlp.2"), "time_text_embed.guidance_embedder"),
        *_stream("img", norm="norm1", qkv=_QKV, qk_norm="norm", proj="to_out.0", ff="ff"),
        *_stream(
            "txt", norm="norm1_context", qkv=("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
            qk_norm="norm_added", proj="to_add_out", ff="ff_context",
        ),
        Rule("single_blocks.{i}.modulation.linear.{p}", _SINGLE + "norm.linear.{p}"),
        Rule("single_blocks.{i}.linear1.{p}", *(_SINGLE + part + ".{p}" for part in (*_QKV, "proj_mlp"))),
        Rule("single_blocks.{i}.linear2.{p}", _SINGLE + "proj_out.{p}"),
        Rule("single_blocks.{i}.q_norm.{p}", _SINGLE + "attn.norm_q.{p}"),
        Rule("single_blocks.{i}.k_norm.{p}", _SINGLE + "attn.norm_k.{p}"),
        Rule("final_layer.adaLN_modulation.1.{p}", "norm_out.linear.{p}", transform=swap_halves),  # they: scale, shift
        Rule("final_layer.linear.{p}", "proj_out.{p}"),
    ),
)  # fmt: skip

COUNTERPART = Counterpart(
    kind="HunyuanVideoTransformer3DModel",
    model=HunyuanVideo,
    config=HunyuanVideoConfig,
    layout=DIFFUSERS,
    settings={
        "in_channels": "in_channels",
        "out_channels": "out_channels",
        "num_attention_heads": "heads_num",
        "num_layers": "mm_double_blocks_depth",
        "num_single_layers": "mm_single_blocks_depth",
        "num_refiner_layers": "refiner_depth",
        "mlp_ratio": "mlp_width_ratio",
        "guidance_embeds": "guidance_embed",
        "text_embed_dim": "text_states_dim",
        "pooled_projection_dim": "text_states_dim_2",
        "rope_theta": "rope_theta",
        "rope_axes_dim": "rope_dim_list",
    },
    to_theirs=lambda config: {
        "attention_head_dim": config.head_dim,
        "patch_size_t": config.patch_size[0],
        "patch_size": config.patch_size[1],
    },
    to_ours=lambda theirs: {
        "hidden_size": theirs["num_attention_heads"] * theirs["attention_head_dim"],
        "patch_size": (theirs["patch_size_t"], theirs["patch_size"], theirs["patch_size"]),
    },
)


def convert_diffusers(state: Mapping[str, Tensor]) -> State:
    """Weights of diffusers' HunyuanVideoTransformer3DModel under the official names."""
    return DIFFUSERS.convert(state)


def find_hunyuan_video(
    config: HunyuanVideoConfig, checkpoint: str | Path | None = None, *, download: bool = True
) -> Path:
    """The checkpoint of a configuration: `checkpoint` (a file or folder), or the embedded or published one.

    Raises FileNotFoundError with the files, the places looked at, and the commands that fetch them.
    """
    return find_checkpoint(
        checkpoint,
        embedded=EMBEDDED.get(config),
        published=PUBLISHED.get(config, ()),
        known="hunyuan-video and hunyuan-tiny",
        training="python TaylorSeer-HunyuanVideo/train.py",
        env=ENV.get(config),
        download=download,
    )


def load_hunyuan_video(
    config: HunyuanVideoConfig | str,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    download: bool = True,
) -> HunyuanVideo:
    """A HunyuanVideo transformer with its weights, in eval mode.

    config: a configuration, or its name in `CONFIGS`. checkpoint: a file or folder in the official layout, as published (the
    weights under the key "module") or as train.py writes it (its EMA), or in diffusers' layout, in shards or whole; None
    finds the model's own. Nothing in a pickle is run.
    Raises FileNotFoundError if there is none, UserError if it is damaged or does not fit.
    """
    if isinstance(config, str):
        config = hunyuan_video_config(config)
    path = find_hunyuan_video(config, checkpoint, download=download)
    with torch.device("meta"):
        model = HunyuanVideo(config, attention=attention)
    return load_checkpoint(
        model, path, config=asdict(config), layouts={DIFFUSERS: convert_diffusers}, dtype=dtype, device=device
    )
