"""xfuser's own transformers on processes of gloo: what it takes from devices and from yunchang, which need a GPU, is put in.

Its groups, exchanges, ring, processors and forwards are its own; the attention kernel is PyTorch's for CPUs, with its
log-sum-exp.
"""

from typing import Any

from torch import Tensor

from seerkit.devices.parallel import attend_with_lse


def attend(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return attend_with_lse(q, k, v)


def start(pipe: Any, ulysses: int, ring: int) -> None:
    """Let xfuser lay out the processes that have been joined, and run its attention on the CPU."""
    import xfuser.config.config as config
    import xfuser.core.distributed.runtime_state as states
    from xfuser import envs, xFuserArgs
    from xfuser.core.distributed import group_coordinator as coordinator
    from xfuser.core.distributed import init_distributed_environment, initialize_model_parallel
    from xfuser.core.distributed import parallel_state as groups
    from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY, AttentionBackendType
    from xfuser.model_executor.layers import usp
    from yunchang.globals import PROCESS_GROUP

    envs._is_cuda = lambda: False
    config.HAS_LONG_CTX_ATTN = coordinator.HAS_LONG_CTX_ATTN = groups.HAS_LONG_CTX_ATTN = True
    usp.PROCESS_GROUP = PROCESS_GROUP
    if groups.model_parallel_is_initialized():
        groups.destroy_model_parallel()
    init_distributed_environment(backend="gloo")
    initialize_model_parallel(
        sequence_parallel_degree=ulysses * ring, ulysses_degree=ulysses, ring_degree=ring, backend="gloo"
    )
    ATTENTION_FUNCTION_REGISTRY[AttentionBackendType.SDPA_EFFICIENT] = attend
    engine, _ = xFuserArgs(ulysses_degree=ulysses, ring_degree=ring, attention_backend="sdpa_efficient").create_config()

    states._RUNTIME = None
    states.initialize_runtime_state(pipe, engine)
    if type(pipe).__name__.startswith("Flux"):
        states.get_runtime_state().set_input_parameters(
            batch_size=1, num_inference_steps=4, max_condition_sequence_length=8
        )
