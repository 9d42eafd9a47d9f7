"""Diffusers' hooks at the submodules whose results are features."""

from typing import Any, NoReturn

from diffusers.hooks.hooks import ModelHook
from torch import nn

from cache_dic import UserError
from taylorseers_diffusers.passes import Passes


class FeatureHook(ModelHook):
    """At a submodule whose result is a feature: hands it over while a pass wants it."""

    def __init__(self, module: str, passes: Passes) -> None:
        super().__init__()
        self.module, self.passes = module, passes

    def __reduce__(self) -> NoReturn:
        name = type(self.passes.transformer).__name__
        raise UserError(f"blocks of {name} cannot be copied or pickled with a cache on it; disable() it first")

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        hand = self.passes.hand
        if hand is None:
            return self.fn_ref.original_forward(*args, **kwargs)
        return hand(self.module, self.fn_ref.original_forward, args, kwargs)
