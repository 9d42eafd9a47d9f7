"""What envs/legacy-eval/answer.py uses of torch."""

import contextlib
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import NamedTuple


class device:  # noqa: N801
    def __init__(self, name: str) -> None:
        self.type = name.partition(":")[0]


class Incompatible(NamedTuple):
    missing_keys: list[str]
    unexpected_keys: list[str]


class Module:
    """A model of some tensors, by their names."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def state_dict(self) -> dict[str, None]:
        return dict.fromkeys(self.names)

    def load_state_dict(self, state: Mapping[str, object], strict: bool = True) -> Incompatible:
        missing = [name for name in self.names if name not in state]
        return Incompatible(missing, [name for name in state if name not in self.names])


@contextlib.contextmanager
def no_grad() -> Iterator[None]:
    yield


cuda = SimpleNamespace(is_available=lambda: False)
nn = SimpleNamespace(Module=Module)
