"""Muon, against torch's own and what it promises."""

from argparse import Namespace

import pytest
import torch
from torch import nn

from seerkit.sampling.seeds import generator
from seerkit.training.loop import make_optimizers
from seerkit.training.muon import SIZE, Muon, orthogonalized

SHAPES = ((16, 48), (48, 16), (16, 48), (32, 32))


def matrices(seed: int) -> list[nn.Parameter]:
    draw = generator(seed)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]


def test_singular_values_come_near_one_and_singular_vectors_stay():
    given = torch.randn(3, 20, 50, generator=generator(0))
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    found = u.mT @ orthogonalized(given) @ v.mT
    values = found.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(found, torch.diag_embed(values), atol=1e-4, rtol=0)


def test_steps_are_those_of_torch():
    """Which multiplies in bf16 and whose steps are half as long; three of them, so that momentum counts.

    The matrices are tall, wide and square.
    """
    ours, theirs, began = matrices(1), matrices(1), matrices(1)
    one = Muon(ours, lr=0.1)
    other = torch.optim.Muon(theirs, lr=0.2, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for step in range(3):
        for a, b, gradient in zip(ours, theirs, matrices(step + 2), strict=True):
            a.grad, b.grad = gradient.detach(), gradient.detach().clone()
        one.step()
        other.step()
    for a, b, start in zip(ours, theirs, began, strict=True):
        assert (a - b).norm() < 0.02 * (b - start).norm()


def test_a_step_has_the_size_of_adamws():
    (matrix,) = matrices(3)[:1]
    before = matrix.detach().clone()
    matrix.grad = torch.randn_like(matrix)
    Muon([matrix], lr=0.1).step()
    assert (matrix - before).square().mean().sqrt().item() == pytest.approx(0.1 * SIZE, rel=0.2)


def test_parameters_without_a_gradient_stay():
    ours, before = matrices(4), matrices(4)
    ours[1].grad = torch.ones_like(ours[1])
    Muon(ours, lr=0.1).step()
    assert [torch.equal(a, b) for a, b in zip(ours, before, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_matrices_of_blocks_are_muons_alone(optimizer):
    model = nn.ModuleDict({"blocks": nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), "head": nn.Linear(4, 2)})
    made = make_optimizers(model, Namespace(optimizer=optimizer, lr=0.1))
    sizes = {name: sum(p.numel() for p in one.param_groups[0]["params"]) for name, one in made.items()}
    assert sizes == ({"adamw": 22, "muon": 12} if optimizer == "muon" else {"adamw": 34})
