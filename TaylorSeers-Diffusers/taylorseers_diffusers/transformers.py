"""What is known of diffusers' transformers beside their blocks: published models of the class, grid, signals of time."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cache_dic import UserError

Grid = Callable[[nn.Module, Mapping[str, Any]], tuple[int, ...]]
Signals = Callable[[nn.Module, Mapping[str, Any]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Published:
    """A published model, by the name that methods have its settings under.

    config: what its configuration has. word: part of the name of its pipeline, or of the place that it was loaded from, where
    other models have the same configuration.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    word: str = ""

    def is_that(self, config: Mapping[str, Any], where: str) -> bool:
        same = all(config.get(name) == value for name, value in self.config.items())
        return same and self.word.lower() in where.lower()


@dataclass(frozen=True)
class Known:
    """preset: the backbone whose published settings are the usual ones. grid(transformer, arguments): frames (of videos), rows
    and columns of the tokens. signals(transformer, arguments): by name, what the timestep is embedded as (B, …). models: those
    that are published; the first that a transformer is stands.
    """

    preset: str | None = None
    grid: Grid | None = None
    signals: Signals | None = None
    models: tuple[Published, ...] = ()

    def name_of(self, config: Mapping[str, Any], where: str) -> str | None:
        """The published model of this configuration; where: its pipeline's class and the place that it was loaded from."""
        return next((model.name for model in self.models if model.is_that(config, where)), None)


# ----------------------------------------------------------------------------------------------------------------- grids


def _of_positions(_: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """From the positions (L, axes) of the image's tokens."""
    ids = arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    grid = tuple(1 + int(ids[:, axis].max()) for axis in (1, 2))
    if math.prod(grid) != len(ids):
        raise UserError(f"{len(ids)} tokens are those of several images, not of one grid, which this method looks at")
    return grid


def _of_shapes(_: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """From the list of images (frames, rows, columns) of each sample."""
    first = arguments["img_shapes"][0]
    shapes = first if isinstance(first, list) else [first]
    if len(shapes) > 1 or shapes[0][0] != 1:
        raise UserError(f"tokens are those of {len(shapes)} images, not of one grid, which this method looks at")
    return tuple(shapes[0][1:])


def _of_patches(*sizes: str | int, axes: tuple[int, ...] | None = None) -> Grid:
    """From the latents' shape and the patch's, by names of the config: a size for each axis, or a tuple of all.

    axes: of the latents, the last ones where they are not named. A size that the config has as None is 1.
    """

    def grid(transformer: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        found = [size if isinstance(size, int) else getattr(transformer.config, size) for size in sizes]
        patch = [size or 1 for size in (found[0] if isinstance(found[0], tuple | list) else found)]
        shape = arguments["hidden_states"].shape
        lengths = shape[-len(patch) :] if axes is None else [shape[axis] for axis in axes]
        return tuple(length // size for length, size in zip(lengths, patch, strict=True))

    return grid


def _of_ltx(_: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    return arguments["num_frames"], arguments["height"], arguments["width"]


# --------------------------------------------------------------------------------------------------------------- signals


def _embedded(
    path: str,
    argument: str = "timestep",
    scale: float = 1.0,
    names: tuple[str, str] = ("time_proj", "timestep_embedder"),
) -> Signals:
    """`time_embedding`: what a pair of submodules makes of the argument of time: frequencies, and an MLP on them."""

    def signals(transformer: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
        frequencies, mlp = (transformer.get_submodule(f"{path}.{name}".lstrip(".")) for name in names)
        dtype = next(mlp.parameters()).dtype
        return {"time_embedding": mlp(frequencies(scale * arguments[argument].flatten()).to(dtype))}

    return signals


def _wan_signals(transformer: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    embedder = transformer.condition_embedder
    found = _embedded("condition_embedder", names=("timesteps_proj", "time_embedder"))(transformer, arguments)
    return {**found, "time_projection": embedder.time_proj(embedder.act_fn(found["time_embedding"]))}


def _cogvideox_signals(transformer: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """With the offset of CogVideoX1.5 I2V, as its blocks get it."""
    found = _embedded("", names=("time_proj", "time_embedding"))(transformer, arguments)["time_embedding"]
    if getattr(transformer, "ofs_embedding", None) is not None:
        found = found + transformer.ofs_embedding(transformer.ofs_proj(arguments["ofs"]).to(found.dtype))
    return {"time_embedding": found}


def _z_image_signals(transformer: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    return {"time_embedding": transformer.t_embedder(arguments["t"] * transformer.t_scale)}


# ---------------------------------------------------------------------------------------------------------------- models

_FLUX = {"num_layers": 19, "num_single_layers": 38, "in_channels": 64}
_WAN = {"num_layers": 40, "num_attention_heads": 40}
_COGVIDEOX = {"num_layers": 42, "num_attention_heads": 48}

FLUX = (
    Published("flux-kontext-dev", {**_FLUX, "guidance_embeds": True}, "kontext"),
    Published("flux-dev", {**_FLUX, "guidance_embeds": True}),
    Published("flux-schnell", {**_FLUX, "guidance_embeds": False}),
)
HUNYUAN_VIDEO = (
    Published(
        "hunyuan-video", {"num_layers": 20, "num_single_layers": 40, "in_channels": 16, "image_condition_type": None}
    ),
)
HUNYUAN_VIDEO_15 = tuple(
    Published(f"hunyuan-video-1.5-{task}-{size}", {"num_layers": 54}, f"{size}_{task}")
    for task in ("t2v", "i2v")
    for size in ("480p", "720p")
)
WAN = (
    Published("wan-t2v-1.3B", {"num_layers": 30, "num_attention_heads": 12, "in_channels": 16}),
    Published("wan-t2v-14B", {**_WAN, "in_channels": 16}),
    *(
        Published(f"wan-i2v-14B-{size}", {**_WAN, "in_channels": 36, "image_dim": 1280}, size)
        for size in ("480P", "720P")
    ),
    Published("wan2.2-ti2v-5B-i2v", {"num_layers": 30, "in_channels": 48}, "ImageToVideo"),
    Published("wan2.2-ti2v-5B", {"num_layers": 30, "in_channels": 48}),
)
HIDREAM = tuple(
    Published(f"hidream-{kind}", {"num_layers": 16, "num_single_layers": 32}, f"I1-{kind}")
    for kind in ("full", "dev", "fast")
)
QWEN_IMAGE = (
    Published("qwen-image-edit", {"num_layers": 60, "zero_cond_t": False}, "edit"),
    Published("qwen-image", {"num_layers": 60, "zero_cond_t": False}),
)
COGVIDEOX = (
    Published("cogvideox-1.5-5b-i2v", {**_COGVIDEOX, "patch_size_t": 2, "in_channels": 32}),
    Published("cogvideox-1.5-5b", {**_COGVIDEOX, "patch_size_t": 2, "in_channels": 16}),
    Published("cogvideox-5b", {**_COGVIDEOX, "patch_size_t": None}),
    Published("cogvideox-2b", {"num_layers": 30, "num_attention_heads": 30}),
)

OF_LATENTS = _of_patches("patch_size", "patch_size")
OF_FRAMES_FIRST = _of_patches("patch_size_t", "patch_size", "patch_size", axes=(1, 3, 4))

KNOWN: dict[str, Known] = {
    "FluxTransformer2DModel": Known("flux", _of_positions, _embedded("time_text_embed", scale=1000.0), FLUX),
    "HunyuanVideoTransformer3DModel": Known(
        "hunyuan_video", _of_patches("patch_size_t", "patch_size", "patch_size"), _embedded("time_text_embed"), HUNYUAN_VIDEO
    ),
    "HunyuanVideo15Transformer3DModel": Known(
        grid=_of_patches("patch_size_t", "patch_size", "patch_size"), signals=_embedded("time_embed"), models=HUNYUAN_VIDEO_15
    ),
    "HunyuanImageTransformer2DModel": Known(grid=_of_patches("patch_size"), signals=_embedded("time_guidance_embed")),
    "WanTransformer3DModel": Known("wan", _of_patches("patch_size"), _wan_signals, WAN),
    "WanVACETransformer3DModel": Known(
        "wan", _of_patches("patch_size"), _wan_signals, (Published("wan-vace-1.3B", {"num_layers": 30}),)
    ),
    "SkyReelsV2Transformer3DModel": Known("wan", _of_patches("patch_size"), _wan_signals),
    "HiDreamImageTransformer2DModel": Known(
        "hidream", OF_LATENTS, _embedded("t_embedder", argument="timesteps"), HIDREAM
    ),
    "DiTTransformer2DModel": Known("dit", OF_LATENTS, _embedded("transformer_blocks.0.norm1.emb")),
    "QwenImageTransformer2DModel": Known(
        grid=_of_shapes, signals=_embedded("time_text_embed"), models=QWEN_IMAGE
    ),
    "SD3Transformer2DModel": Known(grid=OF_LATENTS, signals=_embedded("time_text_embed")),
    "Flux2Transformer2DModel": Known(grid=_of_positions, signals=_embedded("time_guidance_embed", scale=1000.0)),
    "ChromaTransformer2DModel": Known(grid=_of_positions),
    "BriaTransformer2DModel": Known(grid=_of_positions),
    "CogView4Transformer2DModel": Known(grid=OF_LATENTS, signals=_embedded("time_condition_embed")),
    "CogView3PlusTransformer2DModel": Known(grid=OF_LATENTS, signals=_embedded("time_condition_embed")),
    "PixArtTransformer2DModel": Known(grid=OF_LATENTS, signals=_embedded("adaln_single.emb")),
    "SanaTransformer2DModel": Known(grid=OF_LATENTS),
    "Lumina2Transformer2DModel": Known(
        signals=_embedded("time_caption_embed"), models=(Published("lumina-image-2", {"num_layers": 26}),)
    ),
    "ZImageTransformer2DModel": Known(signals=_z_image_signals),
    "CogVideoXTransformer3DModel": Known(grid=OF_FRAMES_FIRST, signals=_cogvideox_signals, models=COGVIDEOX),
    "ConsisIDTransformer3DModel": Known(
        grid=OF_FRAMES_FIRST, signals=_cogvideox_signals, models=(Published("consisid", {"num_layers": 42}),)
    ),
    "MochiTransformer3DModel": Known(
        grid=_of_patches(1, "patch_size", "patch_size"), signals=_embedded("time_embed"),
        models=(Published("mochi-1", {"num_layers": 48}),),
    ),
    "LTXVideoTransformer3DModel": Known(
        grid=_of_ltx, signals=_embedded("time_embed.emb"), models=(Published("ltx-video", {"num_layers": 28}),)
    ),
}  # fmt: skip
"""By class of transformer."""


def known(transformer: nn.Module) -> Known:
    """That of the class, or of the one that it is derived from; nothing of a class that is not in the table."""
    return next((KNOWN[kind.__name__] for kind in type(transformer).__mro__ if kind.__name__ in KNOWN), Known())


def published_name(transformer: nn.Module, pipe: Any) -> str | None:
    """Name of the published model that a pipeline's transformer is by its configuration; None for another."""
    if getattr(pipe, "transformer_2", None) is not None:  # Wan2.2, with the configurations of Wan2.1
        return None
    config = dict(getattr(transformer, "config", {}))
    return known(transformer).name_of(config, f"{type(pipe).__name__} {config.get('_name_or_path', '')}")


def published_in(folder: Path) -> str | None:
    """`published_name` of a pipeline's folder, by its files of JSON; None where it has none of these."""
    try:
        index = json.loads((folder / "model_index.json").read_text())
        config = json.loads((folder / "transformer" / "config.json").read_text())
    except (OSError, ValueError):
        return None
    if index.get("transformer_2", [None])[0] is not None:
        return None
    found = KNOWN.get(config.get("_class_name", ""), Known())
    return found.name_of(config, f"{index.get('_class_name', '')} {folder.resolve()}")
