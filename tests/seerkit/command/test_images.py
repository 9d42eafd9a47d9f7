"""What commands that make images of prompts share below sampling."""

import argparse
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from seerkit.command.images import decode_singly, fill_settings, shipped_or_given_prompts
from seerkit.data.emoji import PROMPTS
from seerkit.text.prompts import read_prompts

USAGE = SimpleNamespace(image_size=32, num_steps=50, guidance=3.0, batch_size=8, precision="fp32")


def test_what_was_given_stays():
    args = argparse.Namespace(width=64, height=None, num_steps=None, guidance=0.0, batch_size=None, precision="bf16")
    fill_settings(args, USAGE)
    assert vars(args) == {
        "width": 64, "height": 32, "num_steps": 50, "guidance": 0.0, "batch_size": 8, "precision": "bf16"
    }  # fmt: skip


def test_models_that_are_not_published_have_prompts_of_their_own():
    args = argparse.Namespace(prompt=None, prompt_file=None, model_name="a model")
    assert shipped_or_given_prompts(args, published=False) == read_prompts(PROMPTS)
    with pytest.raises(ValueError, match="a model needs --prompt"):
        shipped_or_given_prompts(args, published=True)
    args.prompt = ["a fox"]
    assert shipped_or_given_prompts(args, published=True) == ["a fox"]


@pytest.mark.parametrize("offload", [False, True])
def test_images_are_decoded_one_at_a_time(offload):
    class Autoencoder(nn.Module):
        calls = 0

        def decode(self, latents: Tensor) -> Tensor:
            assert len(latents) == 1
            assert torch.is_inference_mode_enabled()
            self.calls += 1
            return 2 * latents.to(torch.bfloat16)

    autoencoder, latents = Autoencoder(), torch.arange(6.0).view(3, 2, 1, 1)
    images = decode_singly(autoencoder, latents, torch.device("cpu"), offload=offload)
    assert images.dtype == torch.float32
    assert torch.equal(images, 2 * latents)
    assert autoencoder.calls == 3
