"""A backbone on the device: its model on random weights, made when it is first asked for, and runs of it by steps."""

import contextlib
import gc
import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cache_dic import Cache, UserError, make_cache
from evaluation.backbones import BACKBONES, workload
from evaluation.benchmark import Bench, FullSteps, check_memory, time_engine
from evaluation.gpu.slices import SUBJECTS, Slice, package_of
from seerkit.devices.compile import compile_steps
from seerkit.devices.dtypes import torch_dtype
from seerkit.devices.timing import peak_memory, reset_peak_memory, spread, synchronize, timed
from seerkit.sampling.workload import Backbone, Case, Workload


class _Enough(Exception):  # noqa: N818, nothing is wrong
    """Ends a sampling run of which no more steps are wanted."""


@dataclass(frozen=True)
class Taken:
    """A sampling run: seconds of its steps, the first with what is set up for a run, and the run, None where it was ended."""

    seconds: list[float]
    run: Any


class Subject:
    """The backbone of a slice; `settings` are of `slices.settings_of`."""

    def __init__(self, one: Slice, settings: dict[str, Any], device: torch.device) -> None:
        assert one.folder is not None, "of a slice of a backbone"
        self.device, self.settings = device, settings
        self.tiny = settings["size"] == "tiny"
        self.package, self.published = package_of(one), SUBJECTS[one.folder][0]
        self.backbone: Backbone = BACKBONES[settings["model"]]
        self.workload: Workload = workload(settings["model"])
        self.dtype = torch_dtype(settings["precision"])
        self.num_steps = self.backbone.num_steps
        self.is_compiled = False

    def cache(self, method: str = "taylorseer", **further: Any) -> Cache:
        """A method by its first published row for the model; UserError where it cannot be had there."""
        return make_cache(method, preset=self.package, model=self.published, **further)

    @cached_property
    def meta(self) -> Case:
        """Shapes alone."""
        with torch.device("meta"), torch.inference_mode(False):  # counts look at operations one by one
            return self.backbone.build(self.workload, self.dtype)

    @cached_property
    def flops(self) -> int:
        """Of a full step."""
        return self.meta.model.step_flops(self.meta.latents, **self.meta.conditions)[0]

    def timesteps(self, case: Case) -> Tensor:
        return self.backbone.timesteps(case, self.num_steps).to(case.latents.device)

    @cached_property
    def case(self) -> Case:
        check_memory(self.backbone, self.workload, self.dtype, self.device, with_reference=False)
        torch.manual_seed(0)
        with torch.device(self.device):
            case = self.backbone.build(self.workload, self.dtype)
        draw_zeros(case.model)
        return case

    @cached_property
    def bench(self) -> Bench:
        return Bench(
            case=self.case,
            timesteps=self.timesteps(self.case),
            device=self.device,
            repeats=self.settings["repeats"],
            dropped=self.settings["dropped"],
            tick=lambda: None,
        )

    def repeated(self, function: Callable[[], Any]) -> dict[str, Any]:
        """Timings of a piece of work, the first dropped."""
        repeats, dropped = self.settings["repeats"], self.settings["dropped"]
        return spread([timed(function, self.device)[1] for _ in range(dropped + repeats)][dropped:])

    @cached_property
    def full_step_s(self) -> float:
        """Of a warm full step, eager or compiled as the model is when this is first asked."""
        plain = FullSteps(self.bench)
        return [plain.take() for _ in range(2)][-1]

    @cached_property
    def reference(self) -> tuple[nn.Module, dict[str, Any]]:
        """diffusers' model beside ours, and the arguments of its call; UserError where both do not fit, or it is not there."""
        need("diffusers")
        case = self.case
        check_memory(self.backbone, self.workload, self.dtype, self.device, with_reference=False)  # of one more
        with torch.device(self.device):
            found = self.backbone.reference(case)
        assert found is not None, "slices without are not made"
        draw_zeros(found[0])
        return found

    def compile(self) -> None:
        """Compile the model's steps in place, once; tiny ones are traced and not compiled, which takes minutes."""
        if not self.is_compiled:
            compile_steps(self.case.model, **({"backend": "eager"} if self.tiny else {}))
            self.is_compiled = True

    def sample(self, cache: Cache, *, stop: int | None = None) -> Taken:
        """A sampling run, the device synchronised after every step; stop: after so many."""
        marks: list[float] = []

        def mark(*_: Any) -> None:
            synchronize(self.device)
            marks.append(time.perf_counter())
            if len(marks) - 1 == stop:
                raise _Enough

        mark()
        run = None
        with contextlib.suppress(_Enough):
            _, run = self.backbone.sample(self.case, self.workload, self.num_steps, cache, mark)
        return Taken([after - before for before, after in itertools.pairwise(marks)], run)

    def uncached_step_s(self) -> list[float]:
        """Seconds of steps of an uncached sampling run, those dropped that are not wanted, and the first with its set-up."""
        wanted = 1 + self.settings["dropped"] + self.settings["repeats"]
        return self.sample(make_cache("uncached"), stop=wanted).seconds[1 + self.settings["dropped"] :]

    @cached_property
    def own_steps(self) -> dict[str, float]:
        """Medians in this process: of a full step, and of a forecast step of TaylorSeer."""
        plain = FullSteps(self.bench)
        full = [plain.take() for _ in range(self.bench.num_timings)]
        _, forecasts = time_engine(self.bench, self.cache(), pairs=0)
        kept = slice(self.bench.dropped, None)
        return {"full_s": statistics.median(full[kept]), "forecast_s": statistics.median(forecasts[kept])}


def need(module: str) -> None:
    """UserError for a package that is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{module} is not installed; `pip install {module}` and call again")


def draw_zeros(model: nn.Module) -> None:
    """Give small random values to weights that training starts from zero, as gates and the head: with zeros features would
    not change from step to step, and products of zeros take less power and so less time."""
    with torch.no_grad():
        for weight in model.parameters():
            if not weight.any():
                weight.normal_(std=0.02)


def free(device: torch.device) -> None:
    """Give back what is no longer held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def memory_of(function: Callable[[], Any], device: torch.device) -> dict[str, int] | None:
    """Bytes allocated before, most of them during, and after a piece of work; None where no device tells."""
    if device.type != "cuda":
        function()
        return None
    before = torch.cuda.memory_allocated(device)
    reset_peak_memory(device)
    held = function()
    synchronize(device)
    found = {"before": before, "peak": peak_memory(device), "after": torch.cuda.memory_allocated(device)}
    del held
    return found
