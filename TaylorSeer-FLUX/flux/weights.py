"""FLUX's weights: where they are published, and the layouts that they come in."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from flux.config import CONFIGS, REPOS, FluxConfig, flux_config
from flux.model import Flux
from seerkit.weights.checkpoints import Published, find_checkpoint, load_checkpoint
from seerkit.weights.counterparts import Counterpart
from seerkit.weights.layouts import Layout, Rule, State, swap_halves

ENV = {CONFIGS["flux-dev"]: "FLUX_DEV", CONFIGS["flux-schnell"]: "FLUX_SCHNELL"}  # name a checkpoint file or folder
PUBLISHED = {
    CONFIGS[name]: (
        Published(f"{name.replace('flux-', 'flux1-')}.safetensors", repo=repo),
        Published("transformer/diffusion_pytorch_model.safetensors.index.json", repo=repo),
    )
    for name, repo in REPOS.items()
}
EMBEDDED = {CONFIGS["flux-tiny"]: Path(__file__).resolve().parents[1] / "weights" / "flux-tiny.safetensors"}


_TIME, _DOUBLE, _SINGLE = "time_text_embed.", "transformer_blocks.{i}.", "single_transformer_blocks.{i}."


def _embedder(ours: str, theirs: str) -> tuple[Rule, Rule]:
    return (
        Rule(f"{ours}.in_layer.{{p}}", f"{_TIME}{theirs}.linear_1.{{p}}"),
        Rule(f"{ours}.out_layer.{{p}}", f"{_TIME}{theirs}.linear_2.{{p}}"),
    )


def _stream(ours: str, *, norm: str, qkv: tuple[str, str, str], qk_norm: str, proj: str, ff: str) -> tuple[Rule, ...]:
    """Rules of one stream of a double block."""
    block = f"double_blocks.{{i}}.{ours}_"
    return (
        Rule(block + "mod.lin.{p}", _DOUBLE + norm + ".linear.{p}"),
        Rule(block + "attn.qkv.{p}", *(_DOUBLE + f"attn.{part}.{{p}}" for part in qkv)),
        Rule(block + "attn.norm.query_norm.scale", _DOUBLE + f"attn.{qk_norm}_q.weight"),
        Rule(block + "attn.norm.key_norm.scale", _DOUBLE + f"attn.{qk_norm}_k.weight"),
        Rule(block + "attn.proj.{p}", _DOUBLE + f"attn.{proj}.{{p}}"),
        Rule(block + "mlp.0.{p}", _DOUBLE + ff + ".net.0.proj.{p}"),
        Rule(block + "mlp.2.{p}", _DOUBLE + ff + ".net.2.{p}"),
    )


DIFFUSERS = Layout(
    "diffusers",
    (
        *_embedder("time_in", "timestep_embedder"),
        *_embedder("guidance_in", "guidance_embedder"),
        *_embedder("vector_in", "text_embedder"),
        Rule("txt_in.{p}", "context_embedder.{p}"),
        Rule("img_in.{p}", "x_embedder.{p}"),
        *_stream("img", norm="norm1", qkv=("to_q", "to_k", "to_v"), qk_norm="norm", proj="to_out.0", ff="ff"),
        *_stream(
            "txt", norm="norm1_context", qkv=("add_q_proj", "add_k_proj", "add_v_proj"), qk_norm="norm_added",
            proj="to_add_out", ff="ff_context",
        ),
        Rule("single_blocks.{i}.modulation.lin.{p}", _SINGLE + "norm.linear.{p}"),
        Rule(
            "single_blocks.{i}.linear1.{p}",
            *(_SINGLE + part + ".{p}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")),
        ),
        Rule("single_blocks.{i}.linear2.{p}", _SINGLE + "proj_out.{p}"),
        Rule("single_blocks.{i}.norm.query_norm.scale", _SINGLE + "attn.norm_q.weight"),
        Rule("single_blocks.{i}.norm.key_norm.scale", _SINGLE + "attn.norm_k.weight"),
        Rule("final_layer.adaLN_modulation.1.{p}", "norm_out.linear.{p}", transform=swap_halves),  # they: scale, shift
        Rule("final_layer.linear.{p}", "proj_out.{p}"),
    ),
)  # fmt: skip

COUNTERPART = Counterpart(
    kind="FluxTransformer2DModel",
    model=Flux,
    config=FluxConfig,
    layout=DIFFUSERS,
    settings={
        "in_channels": "in_channels",
        "num_layers": "depth",
        "num_single_layers": "depth_single_blocks",
        "num_attention_heads": "num_heads",
        "joint_attention_dim": "context_in_dim",
        "pooled_projection_dim": "vec_in_dim",
        "guidance_embeds": "guidance_embed",
        "axes_dims_rope": "axes_dim",
    },
    to_theirs=lambda config: {"attention_head_dim": config.head_dim, "out_channels": config.out_channels},
    to_ours=lambda theirs: {
        "hidden_size": theirs["num_attention_heads"] * theirs["attention_head_dim"],
        "out_channels": theirs["out_channels"] or theirs["in_channels"],
    },
    idle=("out_channels",),
)


def convert_diffusers(state: Mapping[str, Tensor]) -> State:
    """Weights of diffusers' FluxTransformer2DModel under the official names."""
    return DIFFUSERS.convert(state)


def licence_hint(repo: str) -> str:
    """What to do where the hub refuses access to a repository of black-forest-labs."""
    return (
        f"where the hub refuses access, accept the licence at https://huggingface.co/{repo} and log in with "
        "`hf auth login`"
    )


def find_flux(config: FluxConfig, checkpoint: str | Path | None = None, *, download: bool = True) -> Path:
    """The checkpoint of a configuration: `checkpoint` (a file or folder), or the embedded or published one.

    Raises FileNotFoundError with the files, the places looked at, and the commands that fetch them.
    """
    files = PUBLISHED.get(config, ())
    try:
        return find_checkpoint(
            checkpoint,
            embedded=EMBEDDED.get(config),
            published=files,
            known="flux-dev, flux-schnell and flux-tiny",
            training="python TaylorSeer-FLUX/train.py",
            env=ENV.get(config),
            download=download,
        )
    except FileNotFoundError as error:
        if files:
            error.args = (f"{error}; {licence_hint(files[0].repo)}",)
        raise


def load_flux(
    config: FluxConfig | str,
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    download: bool = True,
) -> Flux:
    """A FLUX transformer with its weights, in eval mode.

    config: a configuration, or its name in `CONFIGS`. checkpoint: a file or folder in the official layout, as train.py
    writes it (its EMA), or in diffusers' layout, in shards or whole; None finds the model's own.
    A safetensors file is mapped, not read into memory: on the CPU its tensors are the model's where dtype and layout are
    the file's; what diffusers keeps in parts, 3.6 of FLUX.1's 11.9 billion parameters, is copied.
    Raises FileNotFoundError if there is none, UserError if it is damaged or does not fit.
    """
    if isinstance(config, str):
        config = flux_config(config)
    path = find_flux(config, checkpoint, download=download)
    with torch.device("meta"):
        model = Flux(config, attention=attention)
    return load_checkpoint(
        model, path, config=asdict(config), layouts={DIFFUSERS: convert_diffusers}, dtype=dtype, device=device
    )
