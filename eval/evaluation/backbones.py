"""The models that can be counted, timed and sampled by name. Naming them needs no torch; a backbone is loaded when one of its
models is asked for.

A new backbone is an adapter.py beside it, which has what `seerkit.sampling.workload.Backbone` lists, and a line in `_CONFIGS`;
eval/flops.py and eval/benchmark.py then take its names as --model.
"""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cache_dic import UserError
from dit.config import CONFIGS as DIT
from flux.config import CONFIGS as FLUX
from hidream.config import CONFIGS as HIDREAM
from hunyuan_video.config import CONFIGS as HUNYUAN_VIDEO
from seerkit.sampling.workload import Backbone, Case, Workload
from wan.config import CONFIGS as WAN

if TYPE_CHECKING:
    import torch

    from cache_dic import Cache

ROOT = Path(__file__).resolve().parents[2]
MOST = {
    "height": 2**16, "width": 2**16, "frames": 2**16, "num_samples": 2**20, "text_tokens": 2**20, "depth": 1000
}  # fmt: skip
"""The largest values that a workload may ask for: counted on the meta device, they fit the integers of a shape."""

_CONFIGS = {"dit": DIT, "flux": FLUX, "hunyuan_video": HUNYUAN_VIDEO, "wan": WAN, "hidream": HIDREAM}
PACKAGES = {name: package for package, configs in _CONFIGS.items() for name in configs}
"""By model, the package of its backbone, which has the name of a preset in `cache_dic.PRESETS`."""


class _Backbones(Mapping[str, Backbone]):
    def __getitem__(self, model: str) -> Backbone:
        return importlib.import_module(f"{PACKAGES[model]}.adapter").Adapter(model)

    def __iter__(self) -> Iterator[str]:
        return iter(PACKAGES)

    def __len__(self) -> int:
        return len(PACKAGES)


BACKBONES: Mapping[str, Backbone] = _Backbones()
"""By model; asking for one imports its backbone."""


def shipped_schedules(model: str, num_steps: int) -> list[Path]:
    """Files of the searched schedules that lie beside a model, for runs of so many steps; most full steps first."""
    prefix = f"{model.replace('/', '-')}-"
    found = ROOT.glob(f"TaylorSeer-*/schedules/{prefix}*-of-{num_steps}.json")
    counted = {int(path.stem.removeprefix(prefix).partition("-")[0]): path for path in found}
    return [counted[count] for count in sorted(counted, reverse=True)]


def flag_of(setting: str) -> str:
    """What a setting of a workload is called on the command line."""
    others = {"frames": "num_frames", "num_samples": "batch_size", "cfg_scale": "guidance_scale"}
    return f"--{others.get(setting, setting).replace('_', '-')}"


def workload(model: str, **asked: Any) -> Workload:
    """A workload of fields that are asked for, None for those that are not, and the model's own settings.

    Raises UserError for a setting that the model does not have, or beyond MOST.
    """
    own = BACKBONES[model].own
    given = {name: value for name, value in asked.items() if value is not None}
    for name, most in MOST.items():
        if name in given and given[name] > most:
            raise UserError(f"{flag_of(name)} {given[name]} is too much; at most {most} can be counted")
    for name in sorted({"frames", "cfg_scale", "text_tokens"} & given.keys() - own.keys()):
        raise UserError(f"{flag_of(name)} {given[name]} has no effect on {model}, which has no such setting")
    return Workload(**{**own, **given})


def count_caches(
    model: str, caches: "Mapping[str, Cache]", num_steps: int, dtype: "torch.dtype", **sizes: Any
) -> dict[str, dict[str, Any]]:
    """By label, FLOPs, full steps and kept bytes of sampling one batch, from the model on the meta device.

    sizes: of `workload`.
    """
    import torch

    with torch.device("meta"):
        case = BACKBONES[model].build(workload(model, **sizes), dtype)
    return {label: count_case(BACKBONES[model], case, cache, num_steps) for label, cache in caches.items()}


def count_case(backbone: Backbone, case: Case, cache: "Cache", num_steps: int) -> dict[str, Any]:
    """`seerkit.sampling.flops.sampling_flops` of a model's case, with its own timesteps."""
    from cache_dic.engine import PartialEngine
    from seerkit.sampling.flops import sampling_flops

    times = backbone.timesteps(case, num_steps).cpu() if cache.engine == PartialEngine.name else None
    return sampling_flops(
        case.model, cache, num_steps, case.latents, times=times, branches=case.branches, **case.conditions
    )
