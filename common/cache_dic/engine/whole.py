"""One tensor of a full step: the residual of all blocks, the tokens after them, or what the model as a whole gave.

They keep `history` tensors whatever the depth is and need no gates. What they leave out of the site form: `stack` has the gates
of the full step inside it, `hidden` the embedded latents of that step too, and neither `output` nor `latent` enters the model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cache_dic.engine.base import (
    Engine,
    EngineSettings,
    Forecast,
    Gates,
    Increment,
    Recorder,
    Snapshots,
    Tokens,
    weighted_sum,
)
from cache_dic.errors import UserError, run_of_user_code, source_of
from cache_dic.plan import AnyPlan


@dataclass(frozen=True)
class Replacement:
    """Stands in for what would have been computed, whatever comes in; None for zeros."""

    value: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.value is None else self.value


class WholeEngine(Engine):
    """Values of full steps; a forecast is their weighted sum, to which subclasses add what it is relative to."""

    needs_gates = False

    def __init__(self, plan: AnyPlan, tokens: Tokens, gates: Gates, settings: EngineSettings) -> None:
        super().__init__(plan, tokens, gates, settings)
        if plan.by_site:
            raise UserError(
                f"weights by site need the features of sites, which the {self.name} engine has not; take the folded one"
            )
        self.snapshots = Snapshots(plan)

    def record(self, step: int, *, ends: bool = False) -> Recorder:
        return Recorder(self.tokens.num_sites, ends=ends or self.enters_model)

    def forecast(self, step: int) -> Forecast:
        row = self.plan.row(step)
        kept = [self.snapshots.by_step[m] for m in row]
        return Replacement(weighted_sum(kept, row.values()) if row else None)

    @staticmethod
    def kept_bytes(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.stream_bytes

    @staticmethod
    def forecast_flops(plan: AnyPlan, tokens: Tokens, settings: EngineSettings, step: int) -> int:
        return 2 * len(plan.row(step)) * tokens.numel


class StackEngine(WholeEngine):
    """The whole residual x_final - x0 of full steps ("Lite"): differs from the site form by the drift of the gates."""

    name = "stack"

    def forecast(self, step: int) -> Forecast:
        row = self.plan.row(step)
        if self.settings.static_shapes:  # one compiled forecast step serves any number of terms
            return Increment(weighted_sum([self.snapshots.by_step[m] for m in row], row.values()) if row else None)

        def advance(x: Tensor) -> Tensor:
            for m, weight in row.items():
                x = torch.add(x, self.snapshots.by_step[m], alpha=weight)
            return x

        return advance

    def finish(self, step: int, site: Recorder | None) -> None:
        if site is not None:
            x0, x_final = site.both_ends()
            self.snapshots.push(step, x_final - x0)

    @staticmethod
    def full_step_flops(plan: AnyPlan, tokens: Tokens, settings: EngineSettings, step: int) -> int:
        return tokens.numel


class HiddenEngine(WholeEngine):
    """The tokens after the last block (TaylorSeer-Lite): the latents of a forecast step itself are not looked at.

    Forecasters with `bands(full_steps, step)` weight low frequencies over the tokens otherwise than high ones (FreqCa):
    Σ_m high_m F_m + Low(Σ_m (low_m - high_m) F_m).
    """

    name = "hidden"
    low_pass: Forecast | None = None

    def forecast(self, step: int) -> Forecast:
        forecaster: Any = self.plan.forecaster
        if not hasattr(forecaster, "bands"):
            return super().forecast(step)
        so_far, kind = [m for m in self.plan.full_steps if m < step], type(forecaster)
        with run_of_user_code(f"{kind.__name__} failed at step {step}", *source_of(kind, "bands")):
            low, high = forecaster.bands(so_far, step)
            # Snapshots that no weight asks for are not there any more.
            used = [(m, a, b) for m, a, b in zip(so_far[-len(high) :], low, high, strict=True) if a or b]
            kept, low, high = (
                [self.snapshots.by_step[m] for m, *_ in used],
                [a for _, a, _ in used],
                [b for *_, b in used],
            )
            if self.low_pass is None:
                self.low_pass = forecaster.low_pass(self.grid(), kept[0])
            lower = weighted_sum(kept, [a - b for a, b in zip(low, high, strict=True)])
            return Replacement(weighted_sum(kept, high) + self.low_pass(lower))

    def finish(self, step: int, site: Recorder | None) -> None:
        if site is not None:
            self.snapshots.push(step, site.both_ends()[1])


class OutputEngine(WholeEngine):
    """What the model gave; at a forecast step it is not entered at all."""

    name = "output"
    enters_model = False

    def see(self, step: int, latents: Tensor, output: Tensor) -> None:
        self.snapshots.push(step, output.detach())

    @staticmethod
    def kept_bytes(plan: AnyPlan, tokens: Tokens, settings: EngineSettings) -> int:
        return Snapshots.most(plan) * tokens.output_numel * (tokens.stream_dtype or tokens.dtype).itemsize

    @staticmethod
    def forecast_flops(plan: AnyPlan, tokens: Tokens, settings: EngineSettings, step: int) -> int:
        return 2 * len(plan.row(step)) * tokens.output_numel


class LatentEngine(OutputEngine):
    """Output minus input of the model, added to the input of a forecast step; the model is not entered.

    For models whose output has the shape of their input.
    """

    name = "latent"

    def forecast(self, step: int) -> Forecast:
        def advance(latents: Tensor) -> Tensor:
            for m, weight in self.plan.row(step).items():
                latents = torch.add(latents, self.snapshots.by_step[m], alpha=weight)
            return latents

        return advance

    def see(self, step: int, latents: Tensor, output: Tensor) -> None:
        if latents.shape != output.shape:
            raise UserError(
                f"the latent engine adds the model's output to its input, and they differ in shape: {tuple(output.shape)} and "
                f"{tuple(latents.shape)}; take the output engine"
            )
        self.snapshots.push(step, (output - latents).detach())

    @staticmethod
    def full_step_flops(plan: AnyPlan, tokens: Tokens, settings: EngineSettings, step: int) -> int:
        return tokens.output_numel
