"""Muon: momentum whose steps are made orthogonal, for matrices (Moonlight, arXiv 2502.16982)."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)  # of Keller Jordan's Muon: brings singular values near 1 in five iterations
ITERATIONS = 5
SIZE = 0.4  # root mean square of a step's elements for a rate of 1; that of AdamW's steps is 0.2 to 0.4


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (K, M, N), M <= N, each with its singular values brought to about 1 (0.7 to 1.2), by Newton and Schulz."""
    a, b, c = QUINTIC
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon(torch.optim.Optimizer):
    """Of matrices alone; a step of rate lr has elements of root mean square SIZE · lr, so AdamW's rates fit.

    Unlike torch.optim.Muon it multiplies in the parameters' own precision, since many CPUs have no bf16 products, and takes
    matrices of one shape together.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[tuple(sorted(parameter.shape))].append(parameter)
            for (short, long), parameters in alike.items():
                steps = torch.stack([self._momentum(p, group["momentum"]) for p in parameters])
                scale = -SIZE * group["lr"] * long**0.5
                for parameter, step in zip(parameters, orthogonalized(steps), strict=True):
                    parameter.add_(step if parameter.shape[0] == short else step.mT, alpha=scale)

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's, (short side, long side)."""
        buffer = self.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
        buffer.lerp_(parameter.grad, 1 - momentum)
        ahead = parameter.grad.lerp(buffer, momentum)
        return ahead if parameter.shape[0] <= parameter.shape[1] else ahead.mT
