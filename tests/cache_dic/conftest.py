"""A toy backbone in the three-part form, small enough to enumerate schedules on."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from cache_dic import ATTENTION, GateFactors, Parts, Site, Step, Streams, Tokens, residual


class ToyTable:
    def __init__(self, modulation, constant: Tensor | None = None) -> None:
        self.modulation = modulation
        self.factors = None if constant is None else GateFactors(constant, self.shared)

    def at(self, step: int):
        return self.modulation[step]

    def gates(self, steps: Sequence[int]) -> Tensor:
        return torch.stack([self.modulation[s].gates for s in steps])

    def shared(self, steps: Sequence[int]) -> Tensor:
        return torch.stack([self.modulation[s].shared for s in steps])

    def forget_before(self, step: int) -> None:
        pass


class Toy(nn.Module):
    """x + gate_l(t, y) · tanh(W_l mean-mixed x), l = 1 … sites; the head scales by a function of t.

    gate_rank: terms of a constant of the site times a vector that all share, which the gates are sums of; 0 for other gates.
    """

    TIME = "t"
    SITE_KINDS: ClassVar = {"mlp": ATTENTION}  # tokens meet in it

    def __init__(
        self, num_sites: int = 5, dim: int = 6, dtype: torch.dtype = torch.float64, gate_rank: int = 0
    ) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(num_sites)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) / dim**0.5)

        self.config = SimpleNamespace(num_sites=num_sites, dim=dim)
        self.weights = nn.ParameterList([draw(dim, dim) for _ in range(num_sites)])
        self.rates, self.label = draw(gate_rank or num_sites, dim), draw(4, dim)
        self.constant = draw(gate_rank, num_sites, dim) if gate_rank else None

    def modulation(self, t: Tensor, y: Tensor):
        shared = torch.sin(t.to(self.rates.dtype) * self.rates.unsqueeze(1) + self.label[y])  # (sites or terms, B, D)
        gates = shared if self.constant is None else torch.einsum("rld,rbd->lbd", self.constant, shared)
        return SimpleNamespace(gates=gates, shared=shared, head=torch.cos(t.to(self.rates.dtype)))

    def blocks(self, x: Tensor, modulation, site: Site = residual, start: int = 0, stop: int | None = None) -> Tensor:
        for weight, gate in list(zip(self.weights, modulation.gates, strict=True))[start:stop]:
            x = site(
                x, gate.unsqueeze(1), lambda x, w=weight: torch.tanh((x + x.mean(1, keepdim=True)) @ w), name="mlp"
            )
        return x

    def block_sites(self) -> list[tuple[str, ...]]:
        return [("mlp",)] * len(self.weights)

    def noise_levels(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - timesteps, timesteps

    def token_grid(self, latents: Tensor, **_) -> tuple[int, ...]:
        return 1, latents.shape[1]

    def time_signals(self, timesteps: Tensor, **_) -> dict[str, Tensor]:
        return {"time_embedding": torch.cos(timesteps.unsqueeze(1) * torch.arange(1, 4))}

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, cache: Step | None = None) -> Tensor:
        modulation = self.modulation(t, y) if cache is None else cache.modulation
        if cache is None:
            return self.blocks(x, modulation) * modulation.head
        return cache(
            self.tokens(x),
            lambda site: self.blocks(x, modulation, site) * modulation.head,
            lambda advance: advance(x) * modulation.head,
            Parts(
                latents=x,
                modulated=lambda: x * modulation.head,
                enter=lambda: Streams(x),
                walk=lambda streams, site, *part: streams._replace(x=self.blocks(streams.x, modulation, site, *part)),
                leave=lambda streams: streams.x * modulation.head,
            ),
        )

    def tokens(self, latents: Tensor) -> Tokens:
        batch, length, dim = latents.shape
        return Tokens(
            batch=batch,
            length=length,
            dim=dim,
            num_sites=len(self.weights),
            dtype=self.rates.dtype,
            gate_rank=0 if self.constant is None else len(self.constant),
            output_numel=latents.numel(),
        )

    def modulation_table(self, timesteps: Tensor, full_steps, gated_steps, *, y: Tensor) -> ToyTable:
        return ToyTable([self.modulation(t, y) for t in timesteps], self.constant)

    def step_flops(self, latents: Tensor, *, y: Tensor) -> tuple[int, int]:
        return 1000, 1


@pytest.fixture
def make_toy():
    return Toy


@pytest.fixture
def trajectory():
    """`trajectory(model, cache, num_steps)` -> (latents after every step, the run), an Euler loop from seeded noise."""

    def sample(model, cache, num_steps: int = 20, *, batch: int = 2, length: int = 3, seed: int = 0):
        dtype, dim = model.rates.dtype, model.config.dim
        x = torch.randn(batch, length, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(
            dtype
        )
        y = torch.arange(batch) % 4
        timesteps = torch.linspace(1, 0.1, num_steps, dtype=torch.float64)
        run = cache.start(model, x, timesteps, y=y)
        states = []
        for step in range(num_steps):
            x = x - model(x, timesteps[step], y, cache=run.at(step)) / num_steps
            states.append(x)
        return torch.stack(states), run

    return sample
