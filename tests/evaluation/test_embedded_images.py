"""The text-to-image weights that ship with the repository: they load, follow their prompts, and are what the cards say."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import flux
import hidream
from cache_dic import make_cache
from evaluation.scorer import load_scorer
from flux.weights import load_flux
from hidream.model import Gate
from hidream.weights import load_hidream
from seerkit.data.emoji import PROMPTS
from seerkit.io.media import to_uint8
from seerkit.sampling.seeds import SampleGenerators
from seerkit.text.minilm import TEXT_TABLE, TextTable
from seerkit.text.prompts import read_prompts

ROOT = Path(__file__).resolve().parents[2]
NUM_STEPS = 30


def draw_flux(model: flux.Flux, noise: Tensor, txt: Tensor, y: Tensor) -> Tensor:
    cache = make_cache("taylorseer", interval=4, max_order=2, warmup_steps=3)
    return flux.sample(model, noise, txt, y, NUM_STEPS, guidance_scale=3.0, cache=cache)


def draw_hidream(model: hidream.HiDream, noise: Tensor, txt: Tensor, y: Tensor) -> Tensor:
    cache = make_cache("taylorseer", interval=4, max_order=2, warmup_steps=1)
    negative = torch.zeros_like(txt), torch.zeros_like(txt[None]), torch.zeros_like(y)
    return hidream.sample(
        model, noise, txt, txt[None], y, NUM_STEPS, negative=negative, guidance_scale=3.0, cache=cache
    )


FAMILIES = {"flux": (load_flux, draw_flux), "hidream": (load_hidream, draw_hidream)}


@pytest.fixture(params=FAMILIES)
def embedded(request) -> tuple[str, nn.Module, Callable[..., Tensor]]:
    """A family's name, its shipped model, and what samples it with TaylorSeer."""
    load, draw = FAMILIES[request.param]
    return request.param, load(f"{request.param}-tiny"), draw


@pytest.mark.slow
def test_images_fit_their_own_prompts_best(embedded):
    _, model, draw = embedded
    prompts, scorer = read_prompts(PROMPTS), load_scorer()
    txt, y = TextTable.load(TEXT_TABLE).encode(prompts)
    noise = SampleGenerators(0, range(len(prompts))).randn(3, 32, 32)
    images = torch.from_numpy(to_uint8(draw(model, noise, txt, y))).permute(0, 3, 1, 2)
    own, others = scorer.score(images, y).mean(), scorer.score(images, y.roll(1, 0)).mean()
    assert own - others > 0.3 * (scorer.ceiling - scorer.floor)


def test_the_card_is_of_these_weights(embedded):
    family, model, _ = embedded
    facts = json.loads((ROOT / "results" / family / f"{family}-tiny-training.json").read_text())
    assert facts["num_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert facts["config"] == json.loads(json.dumps(vars(model.config)))
    weights = next(ROOT.glob(f"TaylorSeer-*/weights/{family}-tiny.safetensors"))
    assert weights.stat().st_size < 40e6


def test_every_expert_of_every_block_is_in_use():
    """The one chosen least still gets a tenth of the choices that it would get if all were alike."""
    model, choices = load_hidream("hidream-tiny"), []
    for gate in (module for module in model.modules() if isinstance(module, Gate)):
        gate.register_forward_hook(lambda gate, inputs, answer: choices.append(answer[1]))
    txt, y = TextTable.load(TEXT_TABLE).encode(read_prompts(PROMPTS))
    noise = SampleGenerators(0, range(len(y))).randn(3, 32, 32)
    with torch.no_grad():
        model(noise, torch.full((len(y),), 500.0), txt, txt[None], y)
    assert len(choices) == model.config.num_blocks
    for chosen in choices:
        shares = torch.bincount(chosen.flatten(), minlength=model.config.num_routed_experts) / chosen.numel()
        assert shares.min() > 0.1 / model.config.num_routed_experts


def test_every_shipped_and_held_out_prompt_has_an_embedding():
    table = TextTable.load(TEXT_TABLE)
    for name in ("prompts.txt", "prompts-held-out.txt"):
        txt, y = table.encode(read_prompts(PROMPTS.with_name(name)))
        assert (txt.abs().sum((1, 2)) > 0).all()
        assert (y.unflatten(1, (2, -1)).abs().sum(-1) > 0).all(), "label and style are both known"
