"""xfuser's own transformers on processes of gloo: what it takes from devices and from yunchang, which need a GPU, is put in.

Its groups, exchanges, ring, processors and forwards are its own; the attention kernel is PyTorch's for CPUs, with its
log-sum-exp.
"""

from types import SimpleNamespace
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from seerkit.devices.parallel import attend_with_lse


def attend(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    return attend_with_lse(q, k, v)


def start(ulysses: int, ring: int) -> None:
    """Let xfuser lay out the processes that have been joined, and run its attention on the CPU."""
    import xfuser.config.config as config
    import xfuser.core.distributed.runtime_state as states
    from xfuser import envs, xFuserArgs
    from xfuser.core.distributed import init_distributed_environment, initialize_model_parallel
    from xfuser.core.distributed import parallel_state as groups
    from xfuser.core.distributed.attention_backend import ATTENTION_FUNCTION_REGISTRY, AttentionBackendType
    from xfuser.model_executor.layers import usp

    envs._is_cuda = lambda: False
    config.HAS_LONG_CTX_ATTN = True
    if not groups.model_parallel_is_initialized():
        init_distributed_environment(backend="gloo")
    else:
        groups.destroy_model_parallel()
    initialize_model_parallel(
        sequence_parallel_degree=ulysses * ring, ulysses_degree=ulysses, ring_degree=ring, backend="gloo"
    )
    mesh = init_device_mesh("cpu", (ring, ulysses), mesh_dim_names=("ring", "ulysses"))
    usp.PROCESS_GROUP = SimpleNamespace(ULYSSES_PG=mesh.get_group("ulysses"), RING_PG=mesh.get_group("ring"))
    ATTENTION_FUNCTION_REGISTRY[AttentionBackendType.SDPA_EFFICIENT] = attend
    engine, _ = xFuserArgs(
        ulysses_degree=ulysses, ring_degree=ring, attention_backend="sdpa_efficient"
    ).create_config()

    class State(states.ExternalRuntimeState):
        def __init__(self) -> None:
            states.RuntimeState.__init__(self, engine)

        def increment_step_counter(self) -> None:
            pass

    states._RUNTIME = State()
