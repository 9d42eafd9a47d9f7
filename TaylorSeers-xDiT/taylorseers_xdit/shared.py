"""A pipeline's transformer on several processes, and checks of what each of its calls brings."""

import importlib
import inspect
import math
from typing import Any

import torch.distributed as dist
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import ModelHook
from torch import Tensor, nn

from cache_dic import UserError
from cache_dic.errors import check_choice
from seerkit.devices.parallel import sequence_degrees
from taylorseers_xdit.families import BACKENDS, DIFFUSERS, FAMILIES, XFUSER, Family

HOOK = "taylorseers_lengths"
PARTS = ("transformer", "transformer_2")


def xfuser_class(family: Family) -> type[nn.Module]:
    """xfuser's class of a family's transformer; UserError where it cannot be had."""
    _, module, name = family.classes
    try:
        return getattr(importlib.import_module(f"xfuser.model_executor.models.transformers.{module}"), name)
    except (ImportError, RuntimeError, AttributeError) as error:  # without an accelerator: NotImplementedError
        raise UserError(
            f"xfuser is not usable here ({type(error).__name__}: {error}): install it by pip install 'xfuser>=0.7,<0.8' beside "
            "a torch for CUDA, or take --backend diffusers"
        ) from error


def share(pipe: Any, backend: str, *, ulysses: int | None = None, ring: int | None = None) -> Any:
    """Let all processes share the tokens of a pipeline's transformer; returns the pipeline. Each of them calls it.

    backend: "xfuser" or "diffusers". ulysses, ring: degrees, whose product is the number of processes; left out, Ulysses takes
    what the ring leaves. With xfuser the transformer is to be of its class (`xfuser_class`), and xfuser's groups are made here
    where they are not yet. UserError where there is no process group, for models that the backend cannot split, and later for
    calls that it cannot split.
    """
    check_choice("backend", backend, BACKENDS)
    found = [part for name in PARTS if isinstance(part := getattr(pipe, name, None), nn.Module)]
    if not found:
        raise UserError(f"{type(pipe).__name__} has no transformer; give a pipeline of one of {', '.join(FAMILIES)}")
    if not dist.is_initialized():
        raise UserError(
            "share() is called by every process of a group, and there is none: start the program by torchrun, and call "
            "torch.distributed.init_process_group() first"
        )
    for part in found:
        family = family_of(part)
        heads = part.config.num_attention_heads
        ulysses_degree, ring_degree = sequence_degrees(dist.get_world_size(), heads, ulysses, ring)
        if backend == DIFFUSERS:
            family.check_processes(backend, 0, 0, dist.get_world_size())
            from diffusers import ContextParallelConfig

            part.enable_parallelism(
                config=ContextParallelConfig(ulysses_degree=ulysses_degree, ring_degree=ring_degree)
            )
        elif not isinstance(part, xfuser_class(family)):
            raise UserError(
                f"{type(part).__name__} is diffusers' own, which attends to its own tokens alone; load it as xfuser's "
                f"{family.classes[2]}.from_pretrained(...)"
            )
    if backend == XFUSER:
        _lay_out(pipe, ulysses_degree, ring_degree)
    for part in found:
        registry = HookRegistry.check_if_exists_or_initialize(part)
        registry.remove_hook(HOOK, recurse=False)
        registry.register_hook(LengthHook(family_of(part), backend, dist.get_world_size()), HOOK)
    return pipe


def family_of(transformer: nn.Module) -> Family:
    """UserError for a class that is none of the families', nor derived from one."""
    for kind in type(transformer).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise UserError(f"{type(transformer).__name__} is not one of the transformers here: {', '.join(FAMILIES)}")


def _lay_out(pipe: Any, ulysses: int, ring: int) -> None:
    """Make xfuser's groups, and the state that its transformers ask."""
    from xfuser import xFuserArgs
    from xfuser.core.distributed import (
        init_distributed_environment,
        initialize_model_parallel,
        initialize_runtime_state,
        runtime_state_is_initialized,
    )
    from xfuser.core.distributed.parallel_state import model_parallel_is_initialized

    if not model_parallel_is_initialized():
        init_distributed_environment(backend=dist.get_backend())
        initialize_model_parallel(
            sequence_parallel_degree=ulysses * ring,
            ulysses_degree=ulysses,
            ring_degree=ring,
            backend=dist.get_backend(),
        )
    if not runtime_state_is_initialized():
        engine, _ = xFuserArgs(ulysses_degree=ulysses, ring_degree=ring).create_config()
        initialize_runtime_state(pipe, engine)


class LengthHook(ModelHook):
    """On a transformer whose tokens are shared: UserError for calls whose tokens processes cannot share evenly."""

    def __init__(self, family: Family, backend: str, processes: int) -> None:
        super().__init__()
        self.family, self.backend, self.processes = family, backend, processes

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        given = inspect.signature(type(module).forward).bind_partial(module, *args, **kwargs).arguments
        given |= given.get("kwargs", {})
        x, text = given["hidden_states"], given["encoder_hidden_states"]
        self.family.check_processes(self.backend, _num_tokens(module, x), text.shape[1], self.processes)
        if self.backend == XFUSER:
            from xfuser.core.distributed import get_runtime_state

            get_runtime_state().max_condition_sequence_length = text.shape[1]  # FLUX's attention asks
        mask = given.get("encoder_attention_mask")
        if mask is not None and not bool((mask == mask[:1]).all()):
            lengths = ", ".join(str(int(row.sum())) for row in mask)
            raise UserError(
                f"texts of {lengths} tokens in one batch need a mask, which {self.backend} has not: it would attend to "
                "padding; sample prompts one by one"
            )
        return args, kwargs


def _num_tokens(module: nn.Module, x: Tensor) -> int:
    """Of the hidden states of a call: packed (B, L, C), or a video's latents (B, C, T, H, W)."""
    if x.ndim == 3:
        return x.shape[1]
    patch = module.config.patch_size
    sizes = patch if isinstance(patch, tuple | list) else (module.config.patch_size_t, patch, patch)
    return math.prod(length // size for length, size in zip(x.shape[2:], sizes, strict=True))
