import pytest
import torch

from seerkit.sampling.seeds import SampleGenerators, derive_seed, generator


def test_derived_seeds_are_pure_and_fit_a_generator():
    """Trailing zeros count, and a seed beyond 32 bits is not a shorter seed with a key."""
    seeds = [
        derive_seed(seed, *keys)
        for seed in (0, 1, 2**32, 2**40)
        for keys in ((), (0,), (1,), (256,), (0, 0), (0, 1), (1, 0))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, 1, 4) == derive_seed(3, 1, 4)


def test_derived_seeds_stay_what_they_are():
    """Stored results name their seeds, so a seed must mean the same noise forever."""
    assert derive_seed(0) == 7896617691693857887
    assert derive_seed(42, 7) == 8088485166088186277


def test_generator_follows_seed_and_keys():
    a, b, c = generator(0, 1), generator(0, 1), generator(0, 2)
    x, y, z = (torch.randn(8, generator=g) for g in (a, b, c))
    assert torch.equal(x, y)
    assert not torch.equal(x, z)


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_noise_does_not_depend_on_the_batch(batch):
    """Sample 4 has one noise whatever the batch it is in, for every draw of a run."""
    whole = SampleGenerators(7, range(10))
    expected = [whole.randn(1, 4, 4) for _ in range(3)]
    for first in range(0, 10, batch):
        indices = range(first, min(first + batch, 10))
        part = SampleGenerators(7, indices)
        for draw in expected:
            assert torch.equal(part.randn(1, 4, 4), draw[list(indices)])


def test_noise_does_not_depend_on_global_state():
    torch.manual_seed(1)
    first = SampleGenerators(0, [3]).randn(5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(SampleGenerators(0, [3]).randn(5), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_samples_and_seeds_differ():
    noise = SampleGenerators(0, range(4)).randn(64)
    assert len({tuple(row.tolist()) for row in noise}) == 4
    assert not torch.equal(noise, SampleGenerators(1, range(4)).randn(64))


def test_noise_is_standard_normal():
    noise = SampleGenerators(0, range(64)).randn(1000)
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.02


def test_dtype_is_rounded_from_float32():
    noise = SampleGenerators(0, [1, 2]).randn(3, 2)
    half = SampleGenerators(0, [1, 2]).randn(3, 2, dtype=torch.bfloat16)
    assert noise.shape == half.shape == (2, 3, 2)
    assert torch.equal(half, noise.bfloat16())
