"""Embeddings against their formulas."""

import math

import pytest
import torch

from seerkit.layers.embeddings import apply_rope, rope_frequencies, sincos_position_2d, timestep_embedding


def test_timestep_embedding_is_cosines_then_sines_of_i_over_half():
    embedding = timestep_embedding(torch.tensor([0, 7, 999]), 8)
    for row, t in zip(embedding, (0, 7, 999), strict=True):
        angles = [t * math.exp(-math.log(10000) * i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row.tolist() == pytest.approx(expected, abs=1e-4)
    assert timestep_embedding(torch.zeros(5, 1), 8).shape == (5, 1, 8)


def test_position_embedding_agrees_with_diffusers(need):
    theirs = need("diffusers.models.embeddings").get_2d_sincos_pos_embed(16, 6, base_size=6, output_type="pt")
    torch.testing.assert_close(sincos_position_2d(16, 6, 6), theirs.float(), rtol=1e-6, atol=1e-6)


def test_position_embedding_tells_rows_from_columns():
    grid = sincos_position_2d(8, 2, 3).reshape(2, 3, 8)
    assert torch.equal(grid[0, :, 4:], grid[0, :1, 4:].expand(3, 4)), "the second half is the row"
    assert torch.equal(grid[:, 1, :4], grid[:1, 1, :4].expand(2, 4)), "the first half is the column"


def test_rope_is_a_complex_rotation_that_knows_relative_positions():
    g = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 2, 9, 8, generator=g, dtype=torch.float64) for _ in range(2))
    angles = rope_frequencies(torch.arange(9), 8)
    rotated = apply_rope(q, angles.cos(), angles.sin())
    expected = torch.view_as_complex(q.unflatten(-1, (-1, 2))) * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(rotated, torch.view_as_real(expected).flatten(-2))
    shifted = rope_frequencies(torch.arange(9) + 5, 8)
    scores = rotated @ apply_rope(k, angles.cos(), angles.sin()).transpose(-1, -2)
    moved = apply_rope(q, shifted.cos(), shifted.sin()) @ apply_rope(k, shifted.cos(), shifted.sin()).transpose(-1, -2)
    torch.testing.assert_close(moved, scores)
    assert apply_rope(q.bfloat16(), angles.cos(), angles.sin()).dtype == torch.bfloat16
