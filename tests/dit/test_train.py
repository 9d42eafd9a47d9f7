"""What DiT brings to training on Fashion-MNIST: its batches."""

import argparse

import torch

from dit import CONFIGS
from dit.training import DiffusionLoss
from seerkit.devices.distributed import World


def test_processes_share_the_batch_of_one():
    images = torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1).expand(50, 1, 4, 4)
    labels, args = torch.arange(50) % 10, argparse.Namespace(batch_size=6, seed=0)
    config, cpu = CONFIGS["fashion-mnist"], torch.device("cpu")

    def parts(rank: int, size: int) -> tuple[torch.Tensor, ...]:
        return DiffusionLoss(images, labels, config, args, World(rank, size, cpu)).batch(5)

    for one, first, second in zip(parts(0, 1), parts(0, 2), parts(1, 2), strict=True):
        torch.testing.assert_close(torch.stack([first, second], dim=1).flatten(0, 1), one, rtol=0, atol=0)
