"""Packing: latents as a sequence of image tokens with their positions, and back (flux sampling.py)."""

import torch
from einops import rearrange
from torch import Tensor

from cache_dic import UserError


def pack(latents: Tensor, patch: int) -> Tensor:
    """Latents (B, C, H, W) -> tokens (B, H/p · W/p, C · p · p), row by row."""
    height, width = latents.shape[-2:]
    if height % patch or width % patch:
        raise UserError(f"latents of {height} x {width} cannot be cut into patches of {patch}")
    return rearrange(latents, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def unpack(tokens: Tensor, height: int, width: int, patch: int) -> Tensor:
    """Tokens (B, H/p · W/p, C · p · p) -> latents (B, C, H, W) of that height and width."""
    return rearrange(
        tokens, "b (h w) (c p q) -> b c (h p) (w q)", h=height // patch, w=width // patch, p=patch, q=patch
    )


def image_ids(batch: int, height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Positions (B, height · width, 3) of image tokens: 0, row, column."""
    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    ids = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(1, height * width, 3)
    return ids.expand(batch, -1, -1)


def text_ids(batch: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """Positions (B, length, 3) of text tokens: all zero."""
    return torch.zeros(batch, length, 3, device=device)
