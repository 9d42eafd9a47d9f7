"""The transformers that diffusers has, and the form of each, read from their sources without making one."""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from taylorseers_diffusers.forms import (
    BLOCK_LISTS,
    FORMS,
    MIXED_BETWEEN,
    WRAPPERS,
    block_lists,
    form_of,
    given_names,
    proper,
    streams_of,
)

SITE, STACK, REFUSED = "site", "stack", "refused"
MAY_BE_GATED = {"BasicTransformerBlock": ("ada_norm_zero", "ada_norm_single")}
"""Blocks that have the site form for some values of their model's `norm_type`."""
OF_ANOTHER_SHAPE = ("LatteTransformer3DModel",)
"""Transformers whose tokens have another shape after the last block than before the first."""


@dataclass(frozen=True)
class Listed:
    """A class of transformers: its classes of blocks, the form that it is kept in, and what is to be said of that."""

    name: str
    blocks: tuple[str, ...]
    form: str
    note: str = ""


def listed() -> list[Listed]:
    """All classes of `diffusers.models.transformers`, by name."""
    return sorted((_listed(kind) for kind in _transformers()), key=lambda one: one.name)


def kept_sites(transformers: Iterable[nn.Module]) -> dict[tuple[str, str], list[str]]:
    """Names of the sites that are kept of some transformers, by class of transformer and of block, and by "" and block."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for transformer in transformers:
        for block in (block for blocks in block_lists(transformer).values() for block in blocks):
            for name in type(transformer).__name__, "":
                names = found.setdefault((name, type(proper(block)).__name__), {})
                names |= dict.fromkeys(feature.name for feature in form_of(block).sites)
    return {key: list(names) for key, names in found.items()}


def _transformers() -> Iterator[type]:
    from diffusers import ModelMixin
    from diffusers.models import transformers

    for info in pkgutil.iter_modules(transformers.__path__):
        module = importlib.import_module(f"{transformers.__name__}.{info.name}")
        for kind in vars(module).values():
            if inspect.isclass(kind) and issubclass(kind, ModelMixin) and kind.__module__ == module.__name__:
                yield kind


def _block_lists(kind: type) -> dict[str, list[type]]:
    """By name of a list, the classes of blocks that the class's source puts into it, wrappers left out."""
    space = vars(inspect.getmodule(kind))
    found: dict[str, list[type]] = {}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(kind)))):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Attribute):
            continue
        name = node.targets[0].attr
        calls = [n.func.id for n in ast.walk(node.value) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
        blocks = [space[c] for c in calls if inspect.isclass(space.get(c)) and issubclass(space[c], nn.Module)]
        if name in BLOCK_LISTS and blocks:
            found.setdefault(name, []).extend(b for b in blocks if b.__name__ not in WRAPPERS)
    return found


def _listed(kind: type) -> Listed:
    lists = _block_lists(kind)
    blocks = tuple(dict.fromkeys(block for of_list in lists.values() for block in of_list))
    names = tuple(block.__name__ for block in blocks)
    if not blocks:
        return Listed(kind.__name__, (), REFUSED, "no list of blocks")
    if kind.__name__ in OF_ANOTHER_SHAPE:
        return Listed(kind.__name__, names, REFUSED, "tokens of another shape after the blocks")
    gated = {block for block in blocks if _is_gated(kind, block)}
    if all(gated.intersection(of_list) for of_list in lists.values()) and kind.__name__ not in MIXED_BETWEEN:
        others = [block.__name__ for block in blocks if block not in gated]
        return Listed(kind.__name__, names, SITE, f"stack with {', '.join(others)}" if others else "")
    unclear = [b.__name__ for b in blocks if b not in gated and streams_of(b).x_out is None and given_names(b)]
    if unclear:
        return Listed(kind.__name__, names, REFUSED, f"{', '.join(unclear)} gives several values, not told which")
    return Listed(kind.__name__, names, STACK)


def _is_gated(kind: type, block: type) -> bool:
    values = MAY_BE_GATED.get(block.__name__)
    if values is None:
        return block.__name__ in FORMS
    default = inspect.signature(kind.__init__).parameters.get("norm_type")
    return default is not None and default.default in values
