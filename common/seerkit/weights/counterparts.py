"""diffusers' classes of our backbones: what their configurations call ours, and a model of one made for a configuration."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from cache_dic import UserError
from seerkit.weights.layouts import Layout

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """diffusers' class of a backbone.

    kind: its name. model, config: ours. settings: what its configuration calls our fields, theirs -> ours. to_theirs, to_ours:
    those that are not one and the same value, of our configuration and of theirs. untold: fields of ours that theirs does not
    have. idle: settings of theirs that change no output. layout: of its weights, None where they have our names. buffers: ours
    that it computes and does not store, ours -> theirs. adapt: brings a new model of theirs to what the official code computes.
    """

    kind: str
    model: type[nn.Module]
    config: type
    settings: Mapping[str, str]
    to_theirs: Callable[[Any], dict[str, Any]] = lambda config: {}
    to_ours: Callable[[Settings], dict[str, Any]] = lambda settings: {}
    untold: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    layout: Layout | None = None
    buffers: Mapping[str, str] | None = None
    adapt: Callable[[nn.Module], None] = lambda model: None

    def arguments(self, config: Any) -> dict[str, Any]:
        """What its constructor is called with for a configuration of ours."""
        return {theirs: getattr(config, ours) for theirs, ours in self.settings.items()} | self.to_theirs(config)

    def make(self, config: Any) -> nn.Module:
        """A model of theirs with random weights, on the default device."""
        with torch.device("cpu"):  # its modules make tensors when they are first imported
            import diffusers

            kind = getattr(diffusers, self.kind)
        model: nn.Module = kind(**self.arguments(config))
        self.adapt(model)
        return model

    def read(self, settings: Settings, **untold: Any) -> Any:
        """Our configuration of one of theirs. UserError for a setting that no model of ours has, or no `untold`."""
        if strange := ", ".join(sorted(untold.keys() - set(self.untold))):
            told = f"that is {', '.join(self.untold)}" if self.untold else "nothing is left to say"
            raise UserError(f"{strange} cannot be said of {self.kind}, whose configuration has the rest; {told}")
        given = {ours: settings[theirs] for theirs, ours in self.settings.items()} | self.to_ours(settings)
        config = self.config(**given, **untold)
        defaults = {
            name: parameter.default for name, parameter in inspect.signature(_constructor(self.kind)).parameters.items()
        }
        for name, value in {**defaults, **self.arguments(config)}.items():
            if name in settings and name not in self.idle and not _same(settings[name], value):
                raise UserError(
                    f"{self.kind} with {name} = {settings[name]!r} has no counterpart here, where that is {value!r}"
                )
        return config

    def check(self, config: Any) -> None:
        """UserError for a configuration of ours that theirs cannot have."""
        untold = {name: getattr(config, name) for name in self.untold}
        with torch.device("meta"):
            back = self.read(self.make(config).config, **untold)
        for field in fields(self.config):
            value, other = getattr(config, field.name), getattr(back, field.name)
            if value != other:
                raise UserError(f"{self.kind} has no setting for {field.name} = {value!r}; it is {other!r} there")


def _constructor(kind: str) -> Callable[..., None]:
    import diffusers

    constructor: Callable[..., None] = getattr(diffusers, kind).__init__
    return constructor


def _same(a: Any, b: Any) -> bool:
    """Lists and tuples alike."""
    return (list(a) == list(b)) if isinstance(a, list | tuple) and isinstance(b, list | tuple) else a == b
