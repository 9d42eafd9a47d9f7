"""One process or many: rank, world size and device under torchrun, the trivial values without it."""

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from cache_dic import UserError

Result = TypeVar("Result")


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that exists here; UserError otherwise."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"device {name!r} is unknown; choose auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not supported; choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise UserError(f"device {name!r} is not there ({count} CUDA devices found); use --device cpu")
    return device


def num_processes() -> int:
    """As torchrun says, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start_world(device: str = "auto") -> World:
    """Join the process group that torchrun set up (nccl on CUDA, gloo on CPU), or stand alone."""
    resolved = resolve_device(device)
    size = num_processes()
    if size == 1:
        return World(0, 1, resolved)
    if resolved.type == "cuda":
        resolved = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(resolved)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if resolved.type == "cuda" else "gloo")
    return World(dist.get_rank(), size, resolved)


def gather(value: Result, world: World) -> list[Result]:
    """What every process of `world` has of a value, by rank."""
    if world.size == 1:
        return [value]
    shares: list[Any] = [None] * world.size
    dist.all_gather_object(shares, value)
    return shares


def on_main(world: World, function: Callable[[], Result]) -> Result:
    """What `function` returns on rank 0, passed to all; where it raises, rank 0 reports and the others leave quietly."""
    told: list[Any] = [None, False]
    error = None
    if world.is_main:
        try:
            told[0] = function()
        except Exception as raised:
            told[1], error = True, raised
    if world.size > 1:
        dist.broadcast_object_list(told, device=world.device)
    if error is not None:
        raise error
    if told[1]:
        sys.exit(2)
    return told[0]


def stop_world() -> None:
    """Leave the process group, if there is one.

    What still holds the group in reference cycles, such as a DistributedDataParallel, goes first: left to the end of the
    interpreter, the group's threads can abort the process.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
