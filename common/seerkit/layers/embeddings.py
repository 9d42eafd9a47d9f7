"""Timestep and positional embeddings, rotary position embedding."""

import math

import torch
from torch import Tensor


def timestep_embedding(
    t: Tensor, dim: int, max_period: float = 10000.0, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sinusoidal embedding of timesteps, cosines first (Ho et al. 2020; facebookresearch/DiT models.py).

    t: any shape, integer or fractional timesteps. dim: even. dtype: of the angles, float64 for Wan. Returns (*t.shape, dim)
    in float32.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=dtype, device=t.device) / half)
    angles = t.to(dtype).unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def sincos_position_2d(dim: int, height: int, width: int) -> Tensor:
    """Fixed 2-D sine-cosine position embedding, row-major (height * width, dim) in float32 (MAE, used by DiT).

    The first half of the channels encodes the column, the second the row, each as sines then cosines; dim divisible by 4.
    """
    omega = 10000.0 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))

    def encode(position: Tensor) -> Tensor:
        angles = position.reshape(-1, 1) * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # (L, dim / 2)

    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64), indexing="ij"
    )
    return torch.cat([encode(columns), encode(rows)], dim=1).float()


def rope_frequencies(positions: Tensor, dim: int, theta: float = 10000.0) -> Tensor:
    """Rotary angles of one axis: positions (..., L) -> (..., L, dim / 2), float64 in, float64 out."""
    omega = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    return positions.to(torch.float64).unsqueeze(-1) * omega


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate interleaved channel pairs (2i, 2i + 1) of x (B, H, L, d) by angles given as cos, sin (L, d / 2).

    Computed in float32 (float64 for float64 input) and returned in the dtype of x (RoFormer, arXiv 2104.09864, Eq. 34).
    """
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    even, odd = pairs.unbind(-1)
    cos, sin = cos.to(even.dtype), sin.to(even.dtype)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)
