"""SeaCache (arXiv 2602.18993): TeaCache's rule without a polynomial, on a signal seen through the noise.

    acc <- acc + m|f(s_t) - f(s_{t-1})| / m|f(s_{t-1})|,   a step where acc has reached the threshold is full, and acc 0 again

f weights the frequencies of a signal over rows, columns and frames by the Wiener filter of an image with a power law in noise
of the step's level: early steps are told apart by coarse content alone, late ones by everything. With data in the latents at
scale a and noise at scale b, an axis has the gain

    a S / (a^2 S + b^2),   S = |frequency|^-power,

the gain of a frequency is the product over the axes, divided by its mean.

The paper's signal are the tokens that block 0 works on. diffusers' SeaCacheConfig (0.42.1) takes the latents, forecasts along a
line and skips two steps in a row at most: signal="latents", residual_order=1, max_consecutive=2, power=3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_dic.decide import Decider
from cache_dic.errors import check_choice
from cache_dic.forecast import Taylor, check_order
from cache_dic.registry import Settings, register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.engine import Tokens
    from cache_dic.look import Look

SIGNALS = ("modulated", "latents")
LEAST = 1e-16  # beside what divides
LEAST_LEVEL = 1e-6  # of data and of noise

DIFFUSERS: Settings = {"threshold": 0.25, "signal": "latents", "residual_order": 1, "max_consecutive": 2, "power": 3.0}


def _rows(power: float, *thresholds: float) -> list[Settings]:
    return [{"threshold": threshold, "power": power} for threshold in thresholds]


PRESETS: dict[str, list[Settings]] = {
    "hunyuan_video": _rows(3.0, 0.2, 0.4),
    "wan": [*_rows(3.0, 0.2, 0.35), DIFFUSERS],
    "*": _rows(2.0, 0.3, 0.6),  # FLUX.1-dev's
    # Thresholds for about 2 to 4 times fewer full steps of 50.
    **dict.fromkeys(("fashion-mnist", "flux-tiny", "hidream-tiny"), _rows(2.0, 0.15, 0.2, 0.3)),
    **dict.fromkeys(("hunyuan-tiny", "wan-tiny"), _rows(3.0, 0.2, 0.3, 0.4)),
}


@register("seacache", engine="stack", paper="arXiv 2602.18993", presets=PRESETS)
@dataclass(kw_only=True)
class SeaCache(Decider):
    """threshold: of acc; 0 computes every step. power: of the spectrum of images, 2 (videos: 3). signal: one of SIGNALS.

    max_consecutive: the most forecasts in a row, None for no bound. residual_order: 0 reuses what the blocks added, 1 continues
    it along the line through the last two full steps. retention_steps, cache_end_steps: those at the ends that are full.
    """

    threshold: float = 0.3
    power: float = 2.0
    signal: str = "modulated"
    max_consecutive: int | None = None
    residual_order: int = 0
    retention_steps: int = 1
    cache_end_steps: int = 1
    accumulated: float = field(init=False, default=0.0)
    previous: "Tensor | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        number("threshold", self.threshold, at_least=0, at_most=1e9)
        number("power", self.power, at_least=0, at_most=20)
        check_choice("signal", self.signal, SIGNALS)
        check_order(self.residual_order)
        for name in ("retention_steps", "cache_end_steps"):
            integer(name, getattr(self, name), at_least=0, at_most=MAX_STEPS)
        if self.max_consecutive is not None:
            integer("max_consecutive", self.max_consecutive, at_least=0, at_most=MAX_STEPS)

    def weights(self, full_steps: Sequence[int], step: int) -> Sequence[float]:
        return Taylor(max_order=self.residual_order, warmup_steps=1).weights(full_steps, step)

    def seen(self, look: "Look") -> "Tensor":
        """The filtered signal (B, C, …, rows, columns), float32."""
        signal = look.on_grid(look.modulated()) if self.signal == "modulated" else look.latent_image()
        return wiener_filter(signal.float(), *look.noise_level(), power=self.power)

    def kept_bytes(self, tokens: "Tokens") -> int:
        return 4 * (tokens.numel if self.signal == "modulated" else tokens.output_numel)

    def decide(self, look: "Look") -> bool:
        seen, old = self.seen(look), self.previous
        self.previous = seen
        if old is not None:
            change = relative_change(seen, old)
            self.accumulated += change
            look.report(change=change)
        look.report(accumulated=self.accumulated)
        forced = look.step < self.retention_steps or look.step >= look.num_steps - self.cache_end_steps
        is_full = old is None or forced or self.exhausted(look) or self.accumulated >= self.threshold
        if is_full:
            self.accumulated = 0.0
        return is_full


def wiener_filter(x: "Tensor", data: float, noise: float, *, power: float) -> "Tensor":
    """x (B, C, …) float32 with the gain above over all axes from the third on. data, noise: scales a and b."""
    import torch

    a, b = (min(max(level, LEAST_LEVEL), 1 - LEAST_LEVEL) for level in (data, noise))
    axes = tuple(range(2, x.ndim))
    half = torch.fft.rfftn(x, dim=axes)
    gain, mean = torch.ones((), device=x.device), 1.0
    for axis in axes:
        size = x.shape[axis]
        spectrum = 1 / (torch.fft.fftfreq(size, device=x.device).abs() ** power + LEAST)
        of_axis = a * spectrum / (a * a * spectrum + b * b + LEAST)
        mean = mean * of_axis.mean()  # the mean of a product over a grid is that of the means
        gain = gain * of_axis[: half.shape[axis]].reshape([-1] + [1] * (x.ndim - 1 - axis))
    return torch.fft.irfftn(half * (gain / mean), s=x.shape[2:], dim=axes)


def relative_change(new: "Tensor", old: "Tensor") -> float:
    """m|new - old| / m|old| of each sample of a batch, their mean."""

    moved, size = (x.abs().flatten(1).mean(1) for x in (new - old, old))
    change = (moved / (size + LEAST)).double().mean().item()
    return change if math.isfinite(change) else math.inf
