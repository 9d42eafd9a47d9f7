"""The weights that ship with the repository: they load, follow their prompts, and are what the card says."""

import json
from pathlib import Path

import pytest
import torch

from cache_dic import make_cache
from evaluation.scorer import load_scorer
from flux import CONFIGS, sample
from flux.command import PROMPTS, TEXT_TABLE
from flux.minilm import TextTable
from flux.weights import EMBEDDED, load_flux
from seerkit.media import to_uint8
from seerkit.prompts import read_prompts
from seerkit.seeds import SampleGenerators

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def drawn():
    """Images (16, 3, 32, 32) of the shipped prompts with TaylorSeer, and their pooled embeddings."""
    model, prompts = load_flux("flux-tiny"), read_prompts(PROMPTS)
    txt, y = TextTable.load(TEXT_TABLE).encode(prompts)
    noise = SampleGenerators(0, range(len(prompts))).randn(3, 32, 32)
    cache = make_cache("taylorseer", interval=4, max_order=2, warmup_steps=3)
    images = sample(model, noise, txt, y, 30, guidance=3.0, cache=cache)
    return torch.from_numpy(to_uint8(images)).permute(0, 3, 1, 2), y


def test_images_fit_their_own_prompts_best(drawn):
    images, y = drawn
    scorer = load_scorer()
    own, others = scorer.score(images, y).mean(), scorer.score(images, y.roll(1, 0)).mean()
    assert own - others > 0.3 * (scorer.ceiling - scorer.floor)


def test_every_shipped_and_held_out_prompt_has_an_embedding():
    table = TextTable.load(TEXT_TABLE)
    for name in ("prompts.txt", "prompts-held-out.txt"):
        txt, y = table.encode(read_prompts(PROMPTS.with_name(name)))
        assert (txt.abs().sum((1, 2)) > 0).all()
        assert (y.unflatten(1, (2, -1)).abs().sum(-1) > 0).all(), "label and style are both known"


def test_the_card_is_of_these_weights():
    facts = json.loads((ROOT / "results" / "flux" / "flux-tiny-training.json").read_text())
    model = load_flux("flux-tiny")
    assert facts["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["config"]["depth"] == CONFIGS["flux-tiny"].depth
    assert sum(path.stat().st_size for path in EMBEDDED[CONFIGS["flux-tiny"]].parent.iterdir()) < 60e6
