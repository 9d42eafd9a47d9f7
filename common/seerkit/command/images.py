"""What the commands that make images of prompts do with their flags."""

import argparse
from collections.abc import Callable
from typing import Any, Protocol

from seerkit.command.flags import is_planned
from seerkit.text.prompts import ANY_PROMPT, chosen_prompts, read_prompts


def fill_in(args: argparse.Namespace, **own: Any) -> None:
    """Set what was not given to a model's own settings."""
    for name, value in own.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


class ImageUsage(Protocol):
    """A model's own settings; image_size is the side of a square in pixels."""

    image_size: int
    num_steps: int
    guidance: float
    batch_size: int
    precision: str


def fill_image_settings(args: argparse.Namespace, usage: ImageUsage) -> None:
    """`fill_in` from what a model that makes images is used with."""
    fill_in(
        args,
        width=usage.image_size,
        height=usage.image_size,
        num_steps=usage.num_steps,
        guidance_scale=usage.guidance,
        batch_size=usage.batch_size,
        precision=usage.precision,
    )


def planned_prompts(args: argparse.Namespace) -> Callable[[], list[str]] | None:
    """Where a run is only planned, a batch of prompts that stand for any."""
    return (lambda: [ANY_PROMPT] * args.batch_size) if is_planned(args) else None


def shipped_or_given_prompts(args: argparse.Namespace, *, published: bool) -> list[str]:
    """The prompts that the flags ask for, or of models that are not published the shipped ones.

    UserError if there are none or two sources of them; a plan needs none.
    """
    from seerkit.data.emoji import PROMPTS

    default = planned_prompts(args) if published else lambda: read_prompts(PROMPTS)
    return chosen_prompts(args.prompt, args.prompt_file, model=args.model, default=default)
