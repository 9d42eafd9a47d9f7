"""What the samplers of all backbones ask of their settings and of the noise they start from."""

from typing import Any

from torch import Tensor

from cache_dic import UserError
from cache_dic.errors import shown
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import check_kind, integer
from seerkit.limits import MAX_GUIDANCE


def checked_steps(num_steps: Any) -> int:
    """The number of sampling steps; UserError unless it is an integer that a plan can have."""
    return integer("num_steps", num_steps, at_least=1, at_most=MAX_STEPS)


def checked_number(name: str, value: Any) -> float:
    """A guidance weight or a shift; UserError naming it unless it is a number of at most MAX_GUIDANCE."""
    value = check_kind(name, value, float)
    if abs(value) > MAX_GUIDANCE:
        raise UserError(
            f"{name} = {shown(value)} must be at most {MAX_GUIDANCE:.0e} in magnitude; usual values are 1 to 20"
        )
    return value


def check_noise(noise: Tensor) -> None:
    """UserError if there is no sample to make, or nothing of it."""
    if not noise.numel():
        raise UserError(f"noise of shape {tuple(noise.shape)} holds no sample; give at least one")
