"""What is known of diffusers' transformers beside their blocks: our backbone of the same model, grid, signals of time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Grid = Callable[[nn.Module, Mapping[str, Any]], tuple[int, ...]]
Signals = Callable[[nn.Module, Mapping[str, Any]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Known:
    """preset: the backbone whose published settings are the usual ones. grid(transformer, arguments): frames (of videos), rows
    and columns of the tokens. signals(transformer, arguments): by name, what the timestep is embedded as (B, …).
    """

    preset: str | None = None
    grid: Grid | None = None
    signals: Signals | None = None


def _of_positions(_: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """From the positions (L, axes) of the image's tokens."""
    ids = arguments["img_ids"]
    ids = ids[0] if ids.ndim == 3 else ids
    return tuple(1 + int(ids[:, axis].max()) for axis in (1, 2))


def _of_patches(*sizes: str) -> Grid:
    """From the latents' shape and the patch's, by names of the config: a size for each axis, or a tuple of all."""

    def grid(transformer: nn.Module, arguments: Mapping[str, Any]) -> tuple[int, ...]:
        found = [getattr(transformer.config, size) for size in sizes]
        patch = found[0] if isinstance(found[0], tuple | list) else found
        shape = arguments["hidden_states"].shape[-len(patch) :]
        return tuple(length // size for length, size in zip(shape, patch, strict=True))

    return grid


def _wan_signals(transformer: nn.Module, arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    embedder = transformer.condition_embedder
    frequencies = embedder.timesteps_proj(arguments["timestep"].flatten())
    embedded = embedder.time_embedder(frequencies.to(next(embedder.time_embedder.parameters()).dtype))
    return {"time_embedding": embedded, "time_projection": embedder.time_proj(embedder.act_fn(embedded))}


KNOWN: dict[str, Known] = {
    "FluxTransformer2DModel": Known("flux", _of_positions),
    "HunyuanVideoTransformer3DModel": Known("hunyuan_video", _of_patches("patch_size_t", "patch_size", "patch_size")),
    "WanTransformer3DModel": Known("wan", _of_patches("patch_size"), _wan_signals),
    "HiDreamImageTransformer2DModel": Known("hidream", _of_patches("patch_size", "patch_size")),
    "DiTTransformer2DModel": Known("dit", _of_patches("patch_size", "patch_size")),
}
"""By class of transformer."""


def known(transformer: nn.Module) -> Known:
    """That of the class, or of the one that it is derived from; nothing of a class that is not in the table."""
    return next((KNOWN[kind.__name__] for kind in type(transformer).__mro__ if kind.__name__ in KNOWN), Known())
