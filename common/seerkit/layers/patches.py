"""Videos as tokens: a patch of frames, rows and columns is one token, its values channel first, as a convolution reads it."""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

from cache_dic import UserError

Grid = tuple[int, int, int]
"""Tokens along frames, height and width; their order in a sequence is frames first, columns last."""


def token_grid(shape: Sequence[int], patch: Sequence[int]) -> Grid:
    """Tokens along each axis of latents of shape (…, T, H, W); UserError where patches do not fill it."""
    frames, height, width = shape[-3:]
    pt, ph, pw = patch
    if frames % pt or height % ph or width % pw:
        raise UserError(f"latents of {frames} x {height} x {width} cannot be cut into patches of {pt} x {ph} x {pw}")
    return frames // pt, height // ph, width // pw


def whole_grid(latents: Tensor, patch: Sequence[int]) -> Grid:
    """The grid of a video's tokens; UserError for patches (B, l, ·) of it, which are those of one of several processes."""
    if latents.ndim != 5:
        raise UserError("a method that looks at the grid of tokens needs all of them; sample with one process")
    return token_grid(latents.shape, patch)


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """Latents (B, C, T, H, W) -> tokens (B, L, C · pt · ph · pw)."""
    token_grid(x.shape, patch)
    pt, ph, pw = patch
    return rearrange(x, "b c (f p) (h q) (w r) -> b (f h w) (c p q r)", p=pt, q=ph, r=pw)


def unpatchify(tokens: Tensor, grid: Grid, patch: Sequence[int]) -> Tensor:
    """Tokens (B, L, C · pt · ph · pw) -> latents (B, C, T, H, W)."""
    (f, h, w), (pt, ph, pw) = grid, patch
    return rearrange(tokens, "b (f h w) (c p q r) -> b c (f p) (h q) (w r)", f=f, h=h, w=w, p=pt, q=ph, r=pw)


def grid_positions(grid: Grid, device: torch.device | str = "cpu") -> Tensor:
    """Frame, row and column of every token, (L, 3) float64."""
    axes = [torch.arange(n, dtype=torch.float64, device=device) for n in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(math.prod(grid), 3)
