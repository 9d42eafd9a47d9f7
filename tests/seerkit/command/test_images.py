"""What commands that make images of prompts do with their flags."""

import argparse

import pytest

from seerkit.command.images import fill_in, shipped_or_given_prompts
from seerkit.data.emoji import PROMPTS
from seerkit.text.prompts import read_prompts


def test_what_was_given_stays():
    args = argparse.Namespace(width=64, height=None, guidance_scale=0.0, precision="bf16")
    fill_in(args, width=32, height=32, guidance_scale=3.0, precision="fp32")
    assert vars(args) == {"width": 64, "height": 32, "guidance_scale": 0.0, "precision": "bf16"}


def test_models_that_are_not_published_have_prompts_of_their_own():
    args = argparse.Namespace(dry_run=False, prompt=None, prompt_file=None, model="a model")
    assert shipped_or_given_prompts(args, published=False) == read_prompts(PROMPTS)
    with pytest.raises(ValueError, match="a model needs --prompt"):
        shipped_or_given_prompts(args, published=True)
    args.prompt = ["a fox"]
    assert shipped_or_given_prompts(args, published=True) == ["a fox"]
