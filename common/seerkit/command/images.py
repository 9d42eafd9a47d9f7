"""What the commands that make images of prompts do with their flags."""

import argparse
from typing import Any

from seerkit.text.prompts import chosen_prompts, read_prompts


def fill_in(args: argparse.Namespace, **own: Any) -> None:
    """Set what was not given to a model's own settings."""
    for name, value in own.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def shipped_or_given_prompts(args: argparse.Namespace, *, published: bool) -> list[str]:
    """The prompts that the flags ask for, or of models that are not published the shipped ones.

    UserError if there are none or two sources of them.
    """
    from seerkit.data.emoji import PROMPTS

    default = None if published else lambda: read_prompts(PROMPTS)
    return chosen_prompts(args.prompt, args.prompt_file, model=args.model, default=default)
