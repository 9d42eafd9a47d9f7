"""Guidance on two processes: each computes one branch, and both have both answers before they step."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cache_dic import Cache, UserError
from seerkit.devices.distributed import num_processes

WITH_TEXT, WITHOUT = 0, 1
"""The branches, by the rank of the process that computes them."""


@dataclass(frozen=True)
class GuidanceSplit:
    """One branch of guidance in this process, the other in the other: what they tell each other.

    hosts: group of both by which decisions travel, so that no device waits for them. A split is also a leader of the runs of
    the second branch (`Cache.start`), and a shard of rows for schedules that decide by both branches together.
    """

    branch: int
    hosts: dist.ProcessGroup
    size: int = 2

    @property
    def place(self) -> int:
        """Of its rows where both branches make one batch, in which the one without text is first."""
        return WITHOUT - self.branch

    @property
    def leads(self) -> bool:
        return self.branch == WITH_TEXT

    def led(self) -> dict[str, Any]:
        """What `Cache.start` takes of a run whose branch has calls of its own: the first decides for both."""
        return {"announce": self.announce} if self.leads else {"leader": self}

    def announce(self, is_full: bool) -> None:
        """Tell the other process what is decided of the step at hand."""
        dist.broadcast(torch.tensor(int(is_full)), WITH_TEXT, group=self.hosts)

    def decision(self, step: int) -> bool:
        """What the other process has decided of the step at hand."""
        told = torch.empty((), dtype=torch.int64)
        dist.broadcast(told, WITH_TEXT, group=self.hosts)
        return bool(told)

    def total(self, sums: Tensor) -> Tensor:
        """Sums over this process's branch, added up over both."""
        sums = sums.clone()
        dist.all_reduce(sums)
        return sums

    def both(self, answer: Tensor) -> list[Tensor]:
        """The answers with the text and without."""
        answers = [torch.empty_like(answer, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(answers, answer.contiguous())
        return answers


def check_guidance_processes(processes: int) -> None:
    """UserError where there are not as many processes as branches."""
    if processes != 2:
        raise UserError(
            f"--guidance-parallel wants two processes, one for each guidance branch, and was given {processes}; start it by "
            "torchrun --nproc_per_node=2"
        )


def check_split(cache: Cache) -> None:
    """UserError for a method whose branches one process has to compute."""
    if cache.joins_branches:
        raise UserError(
            f"method {cache.method!r} makes one guidance branch of the other, which --guidance-parallel computes in another "
            "process; leave that out, or take another method"
        )


def split_guidance() -> GuidanceSplit:
    """Branches of guidance for the two processes that `start_world` has joined, each of which calls it."""
    check_guidance_processes(num_processes())
    return GuidanceSplit(dist.get_rank(), dist.new_group(backend="gloo"))
