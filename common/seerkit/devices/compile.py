"""torch.compile for a cached backbone: one graph for full steps, one for forecast steps, the decision between them outside.

Where a step is decided after its first blocks, or computes its last ones in any case, a graph for each range of blocks. Steps
of methods that compute part of them are not compiled: `PartialSite` says why.
"""

import functools
import inspect
import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from cache_dic import Site, Streams, UserError, residual

MOST_GRAPHS = 64
"""Of either kind of step. A job needs one for each batch size, image or video size and form of what its caches keep; PyTorch's
own limit of 8 is less than eight caches side by side on a last, smaller batch take."""


def compile_steps(model: nn.Module, **options: Any) -> None:
    """Compile `model.full_step` and `model.forecast_step` in place, each as a whole and for fixed shapes; and `model.walk`.

    One graph serves any length of what `model.OF_ANY_LENGTH` names, arguments of `full_step` whose dimension 1 varies from
    call to call. Use with caches made with `static_shapes=True`, whose full steps all do the same. options: of torch.compile.
    Raises UserError where nothing can be compiled, and at a step that needs more than MOST_GRAPHS graphs.
    """
    if options.get("backend", "inductor") == "inductor":
        _check_compiler(next(model.parameters()).device.type)
    of_any_length = getattr(model, "OF_ANY_LENGTH", ())
    walk = model.walk
    model.full_step = _compiled(model.full_step, of_any_length, options)
    model.forecast_step = _compiled(model.forecast_step, (), options)
    model.walk = _by_range(walk, lambda part: _compiled(part, (), options, dynamic=None if of_any_length else False))


def _by_range(walk: Callable[..., Streams], made: Callable[[Callable], Callable]) -> Callable[..., Streams]:
    """A walk of the blocks whose every range of blocks is compiled by `made`; within a graph it is a part of that."""
    parts: dict[tuple[int, int | None], Callable[..., Streams]] = {}

    def call(
        streams: Streams, modulation: Any, site: Site = residual, start: int = 0, stop: int | None = None
    ) -> Streams:
        if torch.compiler.is_compiling() or not site.compiles:
            return walk(streams, modulation, site, start, stop)
        if (start, stop) not in parts:
            parts[start, stop] = made(lambda streams, modulation, site: walk(streams, modulation, site, start, stop))
        return parts[start, stop](streams, modulation, site)

    return call


def _compiled(
    step: Callable[..., Any], of_any_length: Sequence[str], options: dict[str, Any], dynamic: bool | None = False
) -> Callable[..., Any]:
    """dynamic: None lets a graph serve any length of what has had two."""
    graph, signature = torch.compile(step, fullgraph=True, dynamic=dynamic, **options), inspect.signature(step)

    @functools.wraps(step)
    def call(*args: Any, **given: Any) -> Any:
        arguments = signature.bind(*args, **given).arguments
        for name in of_any_length:
            if arguments.get(name) is not None:
                torch._dynamo.maybe_mark_dynamic(arguments[name], 1)
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_GRAPHS):
                return graph(*args, **given)
        except torch._dynamo.exc.FailOnRecompileLimitHit as error:
            raise UserError(
                f"this job needs more than {MOST_GRAPHS} compiled forms of a step, one for each batch size, size and kind of "
                "cache; leave out --compile, or divide the job"
            ) from error

    return call


def _check_compiler(device: str) -> None:
    """UserError if there is no compiler for what torch.compile writes: C++ for CPUs, C beside Triton's kernels for GPUs."""
    if device == "cuda":
        missing = "C" if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")) else None
    else:
        from torch._inductor import cpp_builder, exc

        try:
            cpp_builder.get_cpp_compiler()
            missing = None
        except exc.InvalidCxxCompiler:
            missing = "C++"
    if missing:
        raise UserError(
            f"--compile needs a {missing} compiler, and none is found; install one such as gcc, name it in CC or CXX, or leave "
            "out --compile"
        )
