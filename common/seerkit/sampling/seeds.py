"""One generator per sample, so that a sample depends on its own seed and index, never on batch size, rank or resume.

The noise does; what a model makes of it does too, to the bit, where its products are summed in one order:
see `seerkit.environment`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache_dic.settings import integer


def derive_seed(seed: int, *keys: int) -> int:
    """A 63-bit seed that is a pure function of a base seed >= 0 and integer keys (sample index, step, rank).

    Keys of different number or order give different seeds, also where they end in zeros.
    """
    return int(np.random.SeedSequence(seed, spawn_key=keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, *keys: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator seeded by `derive_seed(seed, *keys)`."""
    return torch.Generator(device).manual_seed(derive_seed(seed, *keys))


class SampleGenerators:
    """The generators of a batch of samples; every draw takes one tensor from each.

    Noise is drawn on the CPU in float32, so that a sample is the same on every device.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.generators = [generator(seed, index) for index in indices]

    @classmethod
    def after(cls, seed: int, noise: Tensor) -> "SampleGenerators":
        """Those of samples 0 … B - 1 once each has drawn its starting noise; noise (B, …) gives the shape alone.

        So the draws of a solver never repeat starting noise of the same seed, and are those of a command for these samples.
        """
        generators = cls(integer("seed", seed, at_least=0), range(len(noise)))
        generators.randn(*noise.shape[1:])
        return generators

    def randn(self, *shape: int, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal noise (B, *shape), row i from the generator of sample i."""
        rows = [torch.randn(*shape, generator=g) for g in self.generators]
        return torch.stack(rows).to(device=device, dtype=dtype)
