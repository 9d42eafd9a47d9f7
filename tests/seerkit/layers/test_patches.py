"""Patches of videos: their order, their grid, and what cannot be cut."""

import pytest
import torch

from seerkit.layers.patches import grid_positions, patchify, token_grid, unpatchify

PATCHES = [(1, 1, 1), (1, 2, 2), (2, 1, 3), (4, 4, 4), (3, 5, 1)]


def video(grid: tuple[int, int, int], patch: tuple[int, int, int]) -> torch.Tensor:
    sides = [n * p for n, p in zip(grid, patch, strict=True)]
    return torch.randn(2, 3, *sides, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("patch", PATCHES, ids=str)
@pytest.mark.parametrize("grid", [(1, 1, 1), (3, 5, 7), (2, 4, 6)], ids=str)
def test_round_trip(grid, patch):
    x = video(grid, patch)
    tokens = patchify(x, patch)
    assert token_grid(x.shape, patch) == grid
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2], 3 * patch[0] * patch[1] * patch[2])
    assert torch.equal(unpatchify(tokens, grid, patch), x)


def test_tokens_go_by_frames_then_rows_and_values_by_channels():
    grid, patch = (2, 3, 5), (2, 1, 3)
    x = video(grid, patch)
    tokens = patchify(x, patch)
    for index, (f, h, w) in enumerate(grid_positions(grid).long().tolist()):
        block = x[:, :, 2 * f : 2 * f + 2, h : h + 1, 3 * w : 3 * w + 3]
        assert torch.equal(tokens[:, index], block.flatten(1)), index


@pytest.mark.parametrize("patch", PATCHES, ids=str)
def test_a_product_with_patches_is_the_convolution(patch):
    layer = torch.nn.Conv3d(3, 7, patch, patch).double()
    x = video((2, 3, 4), patch).double()
    expected = layer(x).flatten(2).transpose(1, 2)
    tokens = torch.nn.functional.linear(patchify(x, patch), layer.weight.flatten(1), layer.bias)
    torch.testing.assert_close(tokens, expected, rtol=1e-12, atol=1e-12)


def test_positions_count_columns_first():
    positions = grid_positions((2, 1, 3))
    assert positions.dtype == torch.float64
    assert positions.tolist() == [[f, 0, w] for f in range(2) for w in range(3)]
    assert positions.tolist() == sorted(positions.tolist())
    assert grid_positions((1, 1, 1)).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 5, 4), (4, 4, 7)], ids=str)
def test_videos_that_patches_do_not_fill(shape):
    message = f"latents of {shape[0]} x {shape[1]} x {shape[2]} cannot be cut into patches of 2 x 2 x 4"
    with pytest.raises(ValueError, match=message):
        token_grid(shape, (2, 2, 4))
    with pytest.raises(ValueError, match=message):
        patchify(torch.zeros(1, 3, *shape), (2, 2, 4))
