"""What FLUX brings to training on emoji: its velocity, of images where the model is one of tokens."""

from typing import Any

import pytest
import torch

from flux import Flux, flux_config
from flux.latents import image_ids, pack, text_ids
from seerkit.training import emoji

PATCH = 4


@pytest.fixture(scope="module")
def given(load_command) -> dict[str, Any]:
    """What the command trains with."""
    found = {}

    def train(args, config, make_model, velocity, sample, **settings) -> None:
        found.update(make_model=make_model, velocity=velocity, sample=sample, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emoji, "train", train)
        load_command("TaylorSeer-FLUX/train.py").main(
            ["--model", "flux-debug", "--output-dir", "outputs", "--seed", "3"]
        )
    return found


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Two wide images, noise, texts, times and weights."""
    g = torch.Generator().manual_seed(0)
    shapes = {"x": (2, 3, 8, 16), "noise": (2, 3, 8, 16), "txt": (2, 16, 384), "y": (2, 768), "t": (2,), "weight": (2,)}
    return {name: torch.rand(shape, generator=g) for name, shape in shapes.items()}


def test_velocity_is_that_of_the_packed_tokens(given, batch):
    """So is the loss: the mean square of an image is that of its tokens."""
    x, txt, y, t, weight = (batch[name] for name in ("x", "txt", "y", "t", "weight"))
    model = Flux(flux_config("flux-debug"))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1, generator=draw)
    tokens = model(pack(x, PATCH), image_ids(2, 2, 4), txt, text_ids(2, 16), t, y, weight)
    answer = given["velocity"](model, x, t, (txt, y), weight)
    assert answer.shape == x.shape
    assert torch.equal(pack(answer, PATCH), tokens)
    loss = (tokens - pack(batch["noise"] - x, PATCH)).square().mean()
    torch.testing.assert_close((answer - (batch["noise"] - x)).square().mean(), loss)


def test_weight_of_guidance_is_learnt(given):
    assert (given["patch"], given["distilled"]) == (PATCH, True)
    assert given["make_model"]().config == flux_config("flux-debug")


def test_weights_are_drawn_from_the_seed(given):
    one, other = given["make_model"](), given["make_model"]()
    again = Flux(flux_config("flux-debug")).initialize(3)
    for model in (other, again):
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in one.state_dict().items())


def test_samples_are_of_the_texts_and_of_noise(given, batch):
    """By the distilled model's one call per step, so what is drawn without text plays no part."""
    model, none = given["make_model"](), (torch.full((2, 16, 384), torch.nan), torch.full((2, 768), torch.nan))
    images = given["sample"](model, batch["noise"], (batch["txt"], batch["y"]), none)
    assert images.shape == batch["noise"].shape
    assert torch.isfinite(images).all()
