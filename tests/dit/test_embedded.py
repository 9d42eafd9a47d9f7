"""The weights that come with the repository: size, configuration, and samples that the shipped classifier recognises."""

import pytest
import torch

from cache_dic import make_cache
from dit import CONFIGS, sample
from dit.weights import EMBEDDED, load_dit
from evaluation.classifier import class_accuracy, load_classifier
from seerkit.sampling.seeds import SampleGenerators


def test_file_is_small_and_of_its_configuration():
    path = EMBEDDED[CONFIGS["fashion-mnist"]]
    assert path.stat().st_size <= 25 * 2**20
    assert load_dit("fashion-mnist").config == CONFIGS["fashion-mnist"]


@pytest.mark.slow
def test_cached_samples_are_recognisable():
    """Twenty guided samples with TaylorSeer N=5; by chance a tenth would be right."""
    y = torch.arange(10).repeat(2)
    noise = SampleGenerators(0, range(20)).randn(1, 32, 32)
    cache = make_cache("taylorseer", interval=5, max_order=3, warmup_steps=2)
    images = sample(load_dit("fashion-mnist"), noise, y, 50, guidance_scale=2.0, cache=cache)
    assert class_accuracy(load_classifier(), images, y) >= 0.8
