"""Transformers whose tokens are shared by processes: by diffusers' `enable_parallelism`, or by xfuser's transformers.

diffusers splits tokens by hooks, some of them at blocks (Wan), and gathers the output by a hook behind the head; xfuser's
classes do both in their forward. Each process keeps features of its own tokens; what is decided is decided by sums over all.
(diffusers 0.42, hooks/context_parallel.py; xfuser 0.7, model_executor/models/transformers.)
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cache_dic import UserError


@dataclass(frozen=True)
class SharedTokens:
    """size: how many processes share the tokens. group: theirs."""

    size: int
    group: Any

    def total(self, sums: Tensor) -> Tensor:
        """Sums over this process's tokens, added up over all processes."""
        sums = sums.clone()
        dist.all_reduce(sums, group=self.group)
        return sums


def shared_tokens(transformer: nn.Module, hook: str) -> SharedTokens | None:
    """How a transformer's tokens are shared, None where one process has all.

    hook: name of the cache's hook, which has to be outside of the one that splits; UserError where it is not.
    """
    config = getattr(getattr(transformer, "_parallel_config", None), "context_parallel_config", None)
    if config is not None:
        order = transformer._diffusers_hook._hook_order
        if any(name.startswith("cp_") for name in order[order.index(hook) :]):
            raise UserError(
                f"enable_parallelism() of {type(transformer).__name__} was called after the cache was enabled, which would see "
                "a part of its inputs; call enable() once more"
            )
        return SharedTokens(config._flattened_mesh.size(), config._flattened_mesh.get_group())
    if _of_xfuser(transformer):
        from xfuser.core.distributed import get_sequence_parallel_world_size, get_sp_group

        if get_sequence_parallel_world_size() > 1:
            return SharedTokens(get_sequence_parallel_world_size(), get_sp_group().device_group)
    return None


def _of_xfuser(transformer: nn.Module) -> bool:
    return "xfuser" in sys.modules and any(
        kind.__module__.split(".")[0] == "xfuser" for kind in type(transformer).__mro__
    )


def _hooks(module: nn.Module, kind: str) -> list[Any]:
    """Those of a class of diffusers, which is imported only where a module has hooks of it."""
    registry = getattr(module, "_diffusers_hook", None)
    if registry is None:
        return []
    from diffusers.hooks import context_parallel

    return [hook for hook in registry.hooks.values() if isinstance(hook, getattr(context_parallel, kind))]


Arguments = tuple[Sequence[Any], Mapping[str, Any]]


def split(block: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """Arguments of a block of which this process has its part, where the block has a hook that splits them."""
    for hook in _hooks(block, "ContextParallelSplitHook"):
        args, kwargs = hook.pre_forward(block, *args, **kwargs)
    return args, kwargs


@contextmanager
def already_split(block: nn.Module) -> Iterator[None]:
    """While a block is called whose arguments have been split."""
    hooks = _hooks(block, "ContextParallelSplitHook")
    kept = [hook.metadata for hook in hooks]
    for hook in hooks:
        hook.metadata = {place: part for place, part in hook.metadata.items() if getattr(part, "split_output", False)}
    try:
        yield
    finally:
        for hook, metadata in zip(hooks, kept, strict=True):
            hook.metadata = metadata


@contextmanager
def ungathered(transformer: nn.Module) -> Iterator[None]:
    """While a pass is made whose output nobody looks at: nothing is exchanged for it, and only its shape is right."""
    shared = getattr(transformer, "_parallel_config", None) is not None
    with ExitStack() as stack:
        for module in transformer.modules() if shared else ():
            for hook in _hooks(module, "ContextParallelGatherHook"):
                config = hook.parallel_config
                # Of parts of any length only their owners know how long they are.
                if not (config.ulysses_anything or config.ring_anything):
                    gather = _repeated(hook.metadata, config._flattened_mesh.size())
                    stack.enter_context(_replaced(hook.fn_ref, "post_forward", gather))
        if _of_xfuser(transformer):
            from xfuser.core.distributed import get_sp_group

            group = get_sp_group()
            stack.enter_context(_replaced(group, "all_gather", lambda x, dim: torch.cat([x] * group.world_size, dim)))
        yield


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    own = vars(holder).get(name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(holder, name)
        else:
            setattr(holder, name, own)


def _repeated(metadata: Sequence[Any], size: int) -> Callable[[nn.Module, Any], Any]:
    def post_forward(_: nn.Module, output: Any) -> Any:
        parts = [output] if isinstance(output, Tensor) else list(output)
        whole = [
            part if to is None else torch.cat([part] * size, to.gather_dim)
            for part, to in zip(parts, metadata, strict=True)
        ]
        return whole[0] if isinstance(output, Tensor) else tuple(whole)

    return post_forward
