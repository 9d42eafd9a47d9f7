"""Hooks on modules that other libraries hook, too: diffusers' own, and accelerate's that move weights where they compute."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from diffusers.hooks.hooks import ModelHook

GROUP_OFFLOADING = "group_offloading"
"""Name of diffusers' hook that moves a group of modules."""


def put_on(module: nn.Module, hook: "ModelHook", name: str) -> None:
    """Put a hook on a module, inside of accelerate's where there is one: pipelines take that off and on after every run."""
    from diffusers.hooks import HookRegistry

    with _inside(module):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)


def take_off(module: nn.Module, name: str) -> None:
    """Take a hook off again, and the registry if nothing is left in it; accelerate's stays."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None or registry.get_hook(name) is None:
        return
    place = registry._hook_order.index(name)
    after = registry._fn_refs[place + 1 : place + 2]  # the hook around it, whose own call would be lost
    calls = [outer.forward for outer in after]
    with _inside(module):
        registry.remove_hook(name, recurse=False)
    for outer, call in zip(after, calls, strict=True):
        if outer.original_forward is not None:
            outer.original_forward, outer.forward = outer.forward, call
    if not registry.hooks:
        if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
            del module.forward
        del module._diffusers_hook


def hook_on(module: nn.Module, name: str) -> "ModelHook | None":
    registry = getattr(module, "_diffusers_hook", None)
    return None if registry is None else registry.get_hook(name)


@contextmanager
def _inside(module: nn.Module) -> Iterator[None]:
    """Meanwhile a module's forward is the one that accelerate's hook calls (`accelerate.hooks.add_hook_to_module`)."""
    if "_old_forward" not in vars(module):
        yield
        return
    outer, module.forward = module.forward, module._old_forward
    try:
        yield
    finally:
        module._old_forward, module.forward = module.forward, outer


@contextmanager
def present(block: nn.Module) -> Iterator[None]:
    """Meanwhile the parameters of a block that is not called are where it would compute, whatever offloads them.

    Those of its submodules are moved when these are called, but where diffusers moves blocks as a whole.
    """
    with ExitStack() as after:
        by_accelerate = getattr(block, "_hf_hook", None)
        if by_accelerate is not None:
            by_accelerate.pre_forward(block)
            after.callback(by_accelerate.post_forward, block, None)
        by_group = hook_on(block, GROUP_OFFLOADING)
        if by_group is not None:
            by_group.group.onload_()
            after.callback(by_group.group.offload_)
        yield
