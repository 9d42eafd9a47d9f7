"""TeaCache (arXiv 2411.19108; ali-vilab/TeaCache @ 7c10efc): reuse while a cheap signal of the input says that little moved.

    acc <- acc + polynomial(mean |s_t - s_{t-1}| / mean |s_{t-1}|)

A step where acc has reached the threshold is full, and acc 0 again. The polynomial says how much the output changes where the
signal changes so much. Those in teacache_polynomials.json are published, those in calibrations/ fitted by eval/calibrate.py.

Of one step of Wan's, the code counts two calls, one for each branch; its 2 and 10 forced calls are 1 and 5 steps. In bf16 its
changes are rounded to bf16, these are float32. HiDream's dev and fast polynomials are those of welltop-cn/ComfyUI-TeaCache
@ 91dff8e, where the last tenth of the noise levels, not of the steps, is full. Models that the code has no polynomial of have
those that their source in the file names: HunyuanVideo-1.5's and Wan2.2's are LightX2V's, Qwen-Image's, in round numbers
without a calibration described, vLLM-Omni's. Lumina-Image-2.0's is Lumina-Next's, as in the code, where lumina-image-2-v2 is
another one without a threshold.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic.decide import Decider
from cache_dic.errors import UserError, check_choice, shown
from cache_dic.registry import register
from cache_dic.schedule import MAX_STEPS
from cache_dic.settings import integer, number, plain

if TYPE_CHECKING:
    from torch import Tensor

    from cache_dic.engine import Tokens
    from cache_dic.look import Look

OF_TIME = ("time_embedding", "time_projection")
"""Signals that follow from the timestep alone."""
SIGNALS = ("modulated", "embedded_latent", *OF_TIME)
"""The first are the tokens that block 0 works on, the second those before it."""
MODES = ("plain", "use_ret_steps")

POLYNOMIALS_FILE = Path(__file__).with_name("teacache_polynomials.json")
CALIBRATIONS = Path(__file__).with_name("calibrations")
HOW = (
    "fit one with `python eval/calibrate.py --model NAME --method teacache --out FILE.json`, of a pipeline of diffusers with "
    'taylorseers_diffusers.calibrate(pipe, call, out="FILE.json"), then give calibration=FILE.json'
)
GIVEN_BY_CALIBRATION = ("coefficients", "signal", "forced_first", "forced_last")


def signal_of(look: "Look", signal: str) -> "Tensor":
    """What one of SIGNALS is at a step."""
    if signal in OF_TIME:
        return look.time_signal(signal)
    return look.modulated() if signal == "modulated" else look.parts.enter().x


@dataclass(frozen=True, kw_only=True)
class Polynomial:
    """coefficients: highest power first. signal: one of SIGNALS, the change of which they are of.

    forced_first, forced_last: as in `TeaCache`. source: where it is from.
    """

    coefficients: tuple[float, ...]
    signal: str
    forced_first: float = 1
    forced_last: float = 1
    source: str = ""

    def __post_init__(self) -> None:
        check_choice("signal", self.signal, SIGNALS)
        for name in ("forced_first", "forced_last"):
            number(name, getattr(self, name), at_least=0, at_most=MAX_STEPS)
        given = self.coefficients
        fits = isinstance(given, Sequence) and not isinstance(given, str) and len(given) > 0
        if not fits or not all(type(plain(c)) in (int, float) and math.isfinite(c) for c in given):
            raise UserError(
                f"coefficients = {shown(given)} must be a list of finite numbers, that of the highest power first"
            )

    def __call__(self, change: float) -> float:
        value = 0.0
        for coefficient in self.coefficients:
            value = value * change + coefficient
        return value


@cache
def _polynomials() -> dict[str, dict[str, Any]]:
    """By name of a calibration and mode, what the package has."""
    own = {path.stem.removeprefix("teacache-"): path for path in sorted(CALIBRATIONS.glob("teacache-*.json"))}
    return json.loads(POLYNOMIALS_FILE.read_text(encoding="utf-8")) | {
        name: {"plain": json.loads(path.read_text(encoding="utf-8"))} for name, path in own.items()
    }


def calibration_names() -> tuple[str, ...]:
    """Names of the calibrations that come with the package."""
    return tuple(_polynomials())


def read_calibration(calibration: str, mode: str = "plain") -> Polynomial:
    """A polynomial by the name of its calibration, or from a file.json; UserError for an unknown one and what is none."""
    check_choice("mode", mode, MODES)
    if not calibration.endswith(".json"):
        check_choice("calibration", calibration, _polynomials())
        modes = _polynomials()[calibration]
        if mode not in modes:
            raise UserError(f"mode {mode!r} is not published for {calibration}; it has {', '.join(modes)}")
        return _polynomial(calibration, modes[mode])
    try:
        entry = json.loads(Path(calibration).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"calibration {calibration!r} cannot be read: {error}") from error
    return _polynomial(calibration, entry)


def _polynomial(name: str, entry: Any) -> Polynomial:
    keys = {"coefficients", "signal"}
    if not isinstance(entry, Mapping) or not keys <= entry.keys():
        raise UserError(f"calibration {name!r} is no object with coefficients and signal; {HOW}")
    known = {key: entry[key] for key in (*keys, "forced_first", "forced_last", "source") if key in entry}
    try:
        return Polynomial(**known)
    except UserError as error:
        raise UserError(f"calibration {name!r}: {error}") from error


def _rows(calibration: str, *thresholds: float, **settings: Any) -> list[dict[str, Any]]:
    return [{"threshold": threshold, "calibration": calibration, **settings} for threshold in thresholds]


def _wan(model: str, plain_: Sequence[float], with_ret_steps: Sequence[float]) -> list[dict[str, Any]]:
    return [*_rows(model, *plain_), *_rows(model, *with_ret_steps, mode="use_ret_steps")]


PRESETS = {
    "flux-dev": _rows("flux-dev", 0.25, 0.4, 0.6, 0.8),
    "hunyuan-video": _rows("hunyuan-video", 0.1, 0.15),
    "wan-t2v-1.3B": _wan("wan-t2v-1.3B", (0.05, 0.07, 0.08), (0.05, 0.1)),
    "wan-t2v-14B": _wan("wan-t2v-14B", (0.14, 0.15, 0.2), (0.1, 0.2)),
    "wan-i2v-14B-480P": _wan("wan-i2v-14B-480P", (0.13, 0.19, 0.26), (0.2, 0.3)),
    "wan-i2v-14B-720P": _wan("wan-i2v-14B-720P", (0.18, 0.2, 0.3), (0.2, 0.3)),
    "hidream-full": _rows("hidream-full", 0.17, 0.25, 0.3, 0.45),
    "hidream-dev": _rows("hidream-dev", 1.0),
    "hidream-fast": _rows("hidream-fast", 1.5),
    "flux-kontext-dev": [{"calibration": "flux-kontext-dev"}],
    "cogvideox-2b": _rows("cogvideox-2b", 0.1, 0.2),
    "cogvideox-5b": [{"calibration": "cogvideox-5b"}],
    "cogvideox-1.5-5b": _rows("cogvideox-1.5-5b", 0.1, 0.2, 0.3),
    "cogvideox-1.5-5b-i2v": _rows("cogvideox-1.5-5b-i2v", 0.1, 0.2, 0.3),
    "consisid": _rows("consisid", 0.1, 0.15, 0.2),
    "mochi-1": _rows("mochi-1", 0.06, 0.09),
    "ltx-video": _rows("ltx-video", 0.03, 0.05),
    "lumina-image-2": _rows("lumina-image-2", 0.3),
    "hunyuan-video-1.5-t2v-480p": _rows("hunyuan-video-1.5-t2v-480p", 0.15),
    "hunyuan-video-1.5-t2v-720p": _rows("hunyuan-video-1.5-t2v-720p", 0.15),
    "hunyuan-video-1.5-i2v-480p": _rows("hunyuan-video-1.5-i2v-480p", 0.15),
    "hunyuan-video-1.5-i2v-720p": _rows("hunyuan-video-1.5-i2v-720p", 0.15),
    "wan2.2-ti2v-5B": _rows("wan2.2-ti2v-5B", 0.26),
    "wan2.2-ti2v-5B-i2v": _rows("wan2.2-ti2v-5B", 0.26),
    "qwen-image": _rows("qwen-image", 0.2),
    # Thresholds for about 2, 3 and 4 times fewer full steps of 50.
    "fashion-mnist": _rows("fashion-mnist", 0.05, 0.07, 0.1),
    "flux-tiny": _rows("flux-tiny", 0.1, 0.15, 0.2),
    "hidream-tiny": _rows("hidream-tiny", 0.1, 0.15, 0.2),
    "hunyuan-tiny": _rows("hunyuan-tiny", 0.08, 0.12, 0.2),
    "wan-tiny": _rows("wan-tiny", 0.07, 0.1, 0.15),
}


@register("teacache", engine="stack", paper="arXiv 2411.19108", presets=PRESETS)
@dataclass(kw_only=True)
class TeaCache(Decider):
    """threshold: of acc; 0 computes every step. calibration: whose polynomial, of `calibration_names()` or a file.json of
    eval/calibrate.py. mode: of Wan's, one of MODES.

    The others say what they are for in place of the calibration, None leaves it as it is. coefficients: of a polynomial,
    highest power first. signal: one of SIGNALS. forced_first, forced_last: steps at the ends that are full whatever the signal
    says; below 1, a share of all steps.
    clamp: a polynomial below 0, outside of the range that it was fitted on, counts as 0. As published, it lets acc fall, and
    the run of forecasts may never end. max_consecutive: the most forecasts in a row, None for no bound.
    """

    threshold: float = 0.1
    calibration: str | None = None
    mode: str = "plain"
    coefficients: tuple[float, ...] | None = None
    signal: str | None = None
    forced_first: float | None = None
    forced_last: float | None = None
    clamp: bool = False
    max_consecutive: int | None = None
    accumulated: float = field(init=False, default=0.0)
    previous: "Tensor | None" = field(init=False, default=None)

    def __post_init__(self) -> None:
        number("threshold", self.threshold, at_least=0, at_most=1e9)
        if self.max_consecutive is not None:
            integer("max_consecutive", self.max_consecutive, at_least=0, at_most=MAX_STEPS)
        if self.calibration is not None:
            read = read_calibration(self.calibration, self.mode)
        elif self.coefficients is not None:
            read = Polynomial(coefficients=self.coefficients, signal=self.signal or SIGNALS[0])
        else:
            raise UserError(
                f"teacache has no polynomial for this model; {HOW}, or name one of {', '.join(calibration_names())}"
            )
        # What a record tells and samples are claimed by is the polynomial, not its name or file alone.
        for name in GIVEN_BY_CALIBRATION:
            if getattr(self, name) is None:
                setattr(self, name, getattr(read, name))
        self.polynomial = Polynomial(**{name: getattr(self, name) for name in GIVEN_BY_CALIBRATION})

    @property
    def of_time(self) -> bool:  # type: ignore[override]
        return self.signal in OF_TIME

    def seen(self, look: "Look") -> "Tensor":
        return signal_of(look, self.polynomial.signal)

    def kept_bytes(self, tokens: "Tokens") -> int:
        return 0 if self.of_time else tokens.stream_bytes

    def decide(self, look: "Look") -> bool:
        signal, old = self.seen(look), self.previous
        self.previous = signal
        if old is not None:
            change = look.change(signal, old)
            grown = self.polynomial(change)
            look.report(change=change, grown=grown)
            if grown < 0:
                look.note("the polynomial is negative here, outside of the range that it was fitted on")
            self.accumulated += max(grown, 0.0) if self.clamp else grown
        look.report(accumulated=self.accumulated)
        first, last = (
            n if n >= 1 else n * look.num_steps for n in (self.polynomial.forced_first, self.polynomial.forced_last)
        )
        forced = look.step < first or look.step >= look.num_steps - last or self.threshold == 0
        is_full = forced or self.exhausted(look) or self.accumulated >= self.threshold
        if is_full:
            self.accumulated = 0.0
        return is_full
