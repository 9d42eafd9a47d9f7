"""The models that can be counted and timed by name: how each is built, what it is called with, how it is sampled.

A new backbone is one class with the members of `Backbone` and one line in `BACKBONES`; eval/flops.py and eval/benchmark.py
then take its names as --model. Everything is built on torch's default device: under `torch.device("meta")` nothing is
allocated.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import flux.config
import hidream.config
import hunyuan_video.config
import wan.config
from cache_dic import Cache, Run, UserError
from dit import CONFIGS as DIT_CONFIGS
from dit import DiT, DiTConfig, dit_config
from dit import Sampler as DiTSampler
from dit.diffusion import Diffusion
from evaluation.paper import (
    CalflopsCounter,
    Term,
    calflops_difference,
    dit_counter,
    dit_difference,
    flux_counter,
    hunyuan_counter,
    wan_counter,
    wan_difference,
)  # fmt: skip
from evaluation.rivals import (
    diffusers_arguments,
    diffusers_flux,
    diffusers_hidream,
    diffusers_hidream_arguments,
    diffusers_hunyuan_video,
    diffusers_hunyuan_video_arguments,
    diffusers_wan,
    diffusers_wan_arguments,
)  # fmt: skip
from flux import CONFIGS as FLUX_CONFIGS
from flux import Flux, FluxConfig, flux_config
from flux import Sampler as FluxSampler
from flux.config import patch_side
from flux.latents import image_ids, pack, text_ids, unpack
from flux.schedule import sampling_times
from hidream import CONFIGS as HIDREAM_CONFIGS
from hidream import HiDream, hidream_config
from hidream import Sampler as HiDreamSampler
from hunyuan_video import CONFIGS as HUNYUAN_CONFIGS
from hunyuan_video import HunyuanVideo, hunyuan_video_config
from hunyuan_video import Sampler as HunyuanSampler
from hunyuan_video.sampler import GUIDANCE_FACTOR
from hunyuan_video.schedule import sampling_timesteps as hunyuan_timesteps
from seerkit.command.cache_flags import add_cache_flags, caches_from_flags
from seerkit.command.cli import Parser, positive_float, positive_int
from seerkit.devices.dtypes import PRECISIONS
from seerkit.layers.attention import BACKENDS
from seerkit.sampling.flops import sampling_flops
from seerkit.sampling.seeds import SampleGenerators
from wan import CONFIGS as WAN_CONFIGS
from wan import Sampler as WanSampler
from wan import Wan, WanConfig, wan_config
from wan.schedule import sampling_timesteps as wan_timesteps

MOST = {
    "height": 2**16, "width": 2**16, "frames": 2**16, "num_samples": 2**20, "text_tokens": 2**20, "depth": 1000
}  # fmt: skip
"""The largest values that a workload may ask for: counted on the meta device, they fit the integers of a shape."""
CLIP_TOKENS = 257  # of a first frame, by CLIP ViT-H/14
Callback = Callable[[int, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a model call works on; made by `workload`, which knows the model's own settings.

    height, width: in pixels; None leaves them to the model. num_samples: samples a call. depth: number of blocks, for FLUX,
    HunyuanVideo and HiDream of double blocks, for trials. attention: a name in
    `seerkit.layers.attention.BACKENDS`. Of some models alone, else None:
    frames: of a video. cfg_scale: guidance weight; where that takes a second branch, as 1 does not, a
    sample has two rows, conditional and unconditional. text_tokens: of a prompt.
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    num_samples: int = 1
    depth: int | None = None
    attention: str = "sdpa"
    cfg_scale: float | None = None
    text_tokens: int | None = None


@dataclass(frozen=True)
class Case:
    """A model and the inputs of one call: `model(latents, t, **conditions)`, rows of both guidance branches together."""

    model: nn.Module
    latents: Tensor
    conditions: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return len(self.latents)


class Backbone(Protocol):
    """What counting and timing need of a model that has a name.

    preset: name in `cache_dic.PRESETS`. num_steps: sampling steps.
    own: the model's own values of those workload settings that it has, None where they follow from the configuration.
    goals: bounds for keys of eval/benchmark.py's GOALS. deepest: depth of the deepest published model of the family, or the
    most that a configuration allows.
    """

    preset: str
    num_steps: int
    own: Mapping[str, Any]
    goals: Mapping[str, float]
    deepest: int

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        """The model with random weights and random inputs, on the default device; UserError for sizes that do not fit."""

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        """Timesteps (S,) in sampling order."""

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        """A whole sampling run from the latents of `case`: final latents and the run."""

    def published_step_flops(self, case: Case) -> tuple[int, int] | None:
        """Operations of a full and a forecast step as the paper's own counter has them; None where no count is published."""

    def difference(self, case: Case, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        """What leads from the paper's counter to ours over a run, adding up exactly; `counts` as `sampling_flops` returns.

        Empty where no count is published.
        """

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]] | None:
        """The public implementation with random weights, and the arguments that make a call of it one of `case`.

        None where there is none to compare with.
        """


@dataclass(frozen=True)
class DiTBackbone:
    name: str
    preset = "dit"
    num_steps = 50
    own = MappingProxyType({"height": None, "width": None, "cfg_scale": 1.5})
    goals = MappingProxyType(
        {
            "latency_over_flops": 0.95,
            "forecast_over_full": 0.02,
            "folding_overhead": 0.05,
            "kept_ratio_order_2": 8.0,
        }
    )
    deepest = DIT_CONFIGS["DiT-XL/2"].depth

    def config(self, workload: Workload) -> DiTConfig:
        if workload.height != workload.width:
            raise UserError(f"{self.name} makes squares, not {workload.height} x {workload.width}; use --image-size")
        config = dit_config(self.name, image_size=workload.height)
        return config if workload.depth is None else replace(config, depth=workload.depth)

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config = self.config(workload)
        count, side = workload.num_samples, config.input_size
        latents = torch.randn(count, config.in_channels, side, side, dtype=dtype)
        y = torch.arange(count) % config.num_classes
        if workload.cfg_scale != 1:
            latents, y = torch.cat([latents, latents]), torch.cat([y, torch.full_like(y, config.num_classes)])
        model = DiT(config, attention=workload.attention).to(dtype).eval().requires_grad_(False)
        return Case(model, latents, {"y": y})

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        return Diffusion.respaced(num_steps).timesteps.flip(0)

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        sampler = DiTSampler(case.model, num_steps, guidance_scale=workload.cfg_scale)
        samples = slice(workload.num_samples)  # the sampler adds the unconditional rows itself
        return sampler.run(case.latents[samples].float(), case.conditions["y"][samples], cache=cache, callback=callback)

    def published_step_flops(self, case: Case) -> tuple[int, int]:
        return dit_counter(case.model.config, case.rows).steps

    def difference(self, case: Case, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        return dit_difference(case.model.config, case.rows, counts, num_steps)

    def reference(self, case: Case) -> None:
        return None


@dataclass(frozen=True)
class FluxBackbone:
    name: str
    preset = "flux"
    goals = MappingProxyType(
        {
            "latency_over_flops": 0.97,
            "forecast_over_full": 0.03,
            "folding_overhead": 0.05,
            "forecast_operations": 40,
            "peak_memory": 0.03,
        }
    )
    deepest = FLUX_CONFIGS["flux-dev"].depth

    @property
    def num_steps(self) -> int:
        return flux.config.USAGE[self.name].num_steps

    @property
    def own(self) -> Mapping[str, Any]:
        usage = flux.config.USAGE[self.name]
        return {"height": usage.image_size, "width": usage.image_size, "text_tokens": usage.text_tokens}

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config: FluxConfig = flux_config(self.name, depth=workload.depth)
        channels, height, width = flux.config.latent_shape(self.name, workload.height, workload.width)
        patch, count, length = patch_side(config.in_channels, channels), workload.num_samples, workload.text_tokens
        latents = pack(torch.randn(count, channels, height, width, dtype=dtype), patch)
        conditions = {
            "img_ids": image_ids(count, height // patch, width // patch, latents.device),
            "txt": torch.randn(count, length, config.context_in_dim, dtype=dtype),
            "txt_ids": text_ids(count, length, latents.device),
            "y": torch.randn(count, config.vec_in_dim, dtype=dtype),
        }
        if config.guidance_embed:
            conditions["guidance"] = torch.full((count,), flux.config.USAGE[self.name].guidance)
        model = Flux(config, attention=workload.attention).to(dtype).eval().requires_grad_(False)
        return Case(model, latents, conditions)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        shift = FluxSampler(case.model, num_steps).shift
        return sampling_times(num_steps, case.latents.shape[1], shift=shift)[:-1].float()

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        channels, height, width = flux.config.latent_shape(self.name, workload.height, workload.width)
        noise = unpack(case.latents.float(), height, width, patch_side(case.model.config.in_channels, channels))
        sampler = FluxSampler(case.model, num_steps, guidance_scale=flux.config.USAGE[self.name].guidance)
        return sampler.run(noise, case.conditions["txt"], case.conditions["y"], cache=cache, callback=callback)

    def published_step_flops(self, case: Case) -> tuple[int, int]:
        return self._counter(case).steps

    def difference(self, case: Case, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        return calflops_difference(self._counter(case), counts, num_steps)

    @staticmethod
    def _counter(case: Case) -> CalflopsCounter:
        return flux_counter(case.model.config, case.rows, case.latents.shape[1], case.conditions["txt"].shape[1])

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]]:
        model = diffusers_flux(case.model.config).to(case.latents.dtype).eval().requires_grad_(False)
        return model, diffusers_arguments(case.latents, case.conditions)


@dataclass(frozen=True)
class HunyuanVideoBackbone:
    name: str
    preset = "hunyuan_video"
    goals = MappingProxyType(
        {"latency_over_flops": 0.97, "forecast_over_full": 0.03, "folding_overhead": 0.05, "peak_memory": 0.1}
    )
    deepest = HUNYUAN_CONFIGS["hunyuan-video"].mm_double_blocks_depth

    @property
    def num_steps(self) -> int:
        return hunyuan_video.config.USAGE[self.name].num_steps

    @property
    def own(self) -> Mapping[str, Any]:
        usage = hunyuan_video.config.USAGE[self.name]
        return {name: getattr(usage, name) for name in ("height", "width", "frames", "text_tokens")}

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config, count = hunyuan_video_config(self.name, depth=workload.depth), workload.num_samples
        shape = hunyuan_video.config.latent_shape(self.name, workload.height, workload.width, workload.frames)
        latents = torch.randn(count, *shape, dtype=dtype)
        conditions = {
            "text_states": torch.randn(count, workload.text_tokens, config.text_states_dim, dtype=dtype),
            "text_states_2": torch.randn(count, config.text_states_dim_2, dtype=dtype),
        }
        if config.guidance_embed:
            weight = GUIDANCE_FACTOR * hunyuan_video.config.USAGE[self.name].guidance
            conditions["guidance"] = torch.full((count,), weight)
        model = HunyuanVideo(config, attention=workload.attention).to(dtype).eval().requires_grad_(False)
        return Case(model, latents, conditions)

    def _sampler(self, case: Case, num_steps: int) -> HunyuanSampler:
        usage = hunyuan_video.config.USAGE[self.name]
        return HunyuanSampler(case.model, num_steps, shift=usage.flow_shift, guidance_scale=usage.guidance)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        return hunyuan_timesteps(self._sampler(case, num_steps).sigmas)

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        texts = case.conditions["text_states"], None, case.conditions["text_states_2"]
        return self._sampler(case, num_steps).run(case.latents.float(), *texts, cache=cache, callback=callback)

    def published_step_flops(self, case: Case) -> tuple[int, int]:
        return self._counter(case).steps

    def difference(self, case: Case, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        return calflops_difference(self._counter(case), counts, num_steps)

    @staticmethod
    def _counter(case: Case) -> CalflopsCounter:
        tokens = case.model.tokens(case.latents).length
        return hunyuan_counter(case.model.config, case.rows, tokens, case.conditions["text_states"].shape[1])

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]]:
        model = diffusers_hunyuan_video(case.model.config).to(case.latents.dtype).eval().requires_grad_(False)
        return model, diffusers_hunyuan_video_arguments(case.latents, case.conditions)


@dataclass(frozen=True)
class WanBackbone:
    name: str
    preset = "wan"
    goals = MappingProxyType(
        {"latency_over_flops": 0.97, "forecast_over_full": 0.03, "folding_overhead": 0.05, "peak_memory": 0.5}
    )
    deepest = WAN_CONFIGS["wan-t2v-14B"].num_layers

    @property
    def num_steps(self) -> int:
        return wan.config.USAGE[self.name].num_steps

    @property
    def own(self) -> Mapping[str, Any]:
        usage = wan.config.USAGE[self.name]
        width, height = usage.sizes[0]
        return {"height": height, "width": width, "frames": usage.frames, "cfg_scale": usage.guidance}

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config = wan_config(self.name, depth=workload.depth)
        shape = wan.config.latent_shape(self.name, workload.height, workload.width, workload.frames)
        rows = workload.num_samples * (1 if workload.cfg_scale == 1 else 2)
        latents = torch.randn(workload.num_samples, *shape, dtype=dtype).repeat(
            rows // workload.num_samples, 1, 1, 1, 1
        )
        conditions = {"context": torch.randn(rows, config.text_len, config.text_dim, dtype=dtype)}
        if config.model_type == "i2v":
            given = config.in_dim - config.out_dim  # mask and latents of the first frame
            conditions["clip_fea"] = torch.randn(rows, CLIP_TOKENS, config.image_dim, dtype=dtype)
            conditions["y"] = torch.randn(rows, given, *shape[1:], dtype=dtype)
        model = Wan(config, attention=workload.attention).cast(dtype).eval().requires_grad_(False)
        return Case(model, latents, conditions)

    def _sampler(self, case: Case, num_steps: int, guidance: float = 1.0) -> WanSampler:
        shift = wan.config.USAGE[self.name].shift
        return WanSampler(case.model, num_steps, shift=shift, guidance_scale=guidance, batched=True)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        return wan_timesteps(self._sampler(case, num_steps).sigmas)

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        count = workload.num_samples
        context, negative = case.conditions["context"][:count], case.conditions["context"][count:]
        first_frame = {name: case.conditions[name][:count] for name in ("clip_fea", "y") if name in case.conditions}
        sampler = self._sampler(case, num_steps, workload.cfg_scale)
        noise = case.latents[:count].float()  # the sampler adds the unconditional rows itself
        return sampler.run(noise, context, negative, **first_frame, cache=cache, callback=callback)

    def published_step_flops(self, case: Case) -> tuple[int, int]:
        return wan_counter(*self._counted(case)).steps

    def difference(self, case: Case, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        return wan_difference(*self._counted(case), counts, num_steps)

    @staticmethod
    def _counted(case: Case) -> tuple[WanConfig, int, int, int]:
        """Configuration, rows, tokens, CLIP tokens of a first frame."""
        tokens, image_tokens = case.model.tokens(case.latents).length, CLIP_TOKENS * ("clip_fea" in case.conditions)
        return case.model.config, case.rows, tokens, image_tokens

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]]:
        model = diffusers_wan(case.model.config).to(case.latents.dtype).eval().requires_grad_(False)
        return model, diffusers_wan_arguments(case.latents, case.conditions)


@dataclass(frozen=True)
class HiDreamBackbone:
    name: str
    preset = "hidream"
    goals = MappingProxyType(
        {"latency_over_flops": 0.97, "forecast_over_full": 0.03, "folding_overhead": 0.05, "peak_memory": 0.03}
    )

    @property
    def deepest(self) -> int:
        """As many double blocks as the configuration names Llama layers for, with two single ones each."""
        return HIDREAM_CONFIGS[self.name].num_blocks // 3

    @property
    def num_steps(self) -> int:
        return hidream.config.USAGE[self.name].num_steps

    @property
    def own(self) -> Mapping[str, Any]:
        usage = hidream.config.USAGE[self.name]
        sizes = {"height": usage.image_size, "width": usage.image_size}
        return {**sizes, "cfg_scale": usage.guidance, "text_tokens": usage.text_tokens}

    def build(self, workload: Workload, dtype: torch.dtype) -> Case:
        config, count = hidream_config(self.name, depth=workload.depth), workload.num_samples
        shape = hidream.config.latent_shape(self.name, workload.height, workload.width)
        rows, length = count * (2 if workload.cfg_scale > 1 else 1), workload.text_tokens
        t5, llama = config.caption_channels
        latents = torch.randn(count, *shape, dtype=dtype).repeat(rows // count, 1, 1, 1)
        conditions = {
            "t5": torch.randn(rows, length, t5, dtype=dtype),
            "llama": torch.randn(1 + max(config.llama_layers), rows, length, llama, dtype=dtype),
            "pooled": torch.randn(rows, config.text_emb_dim, dtype=dtype),
        }
        model = HiDream(config, attention=workload.attention).to(dtype).eval().requires_grad_(False)
        return Case(model, latents, conditions)

    def _sampler(self, case: Case, num_steps: int, guidance: float = 1.0) -> HiDreamSampler:
        usage = hidream.config.USAGE[self.name]
        return HiDreamSampler(case.model, num_steps, solver=usage.solver, shift=usage.shift, guidance_scale=guidance)

    def timesteps(self, case: Case, num_steps: int) -> Tensor:
        return self._sampler(case, num_steps).timesteps

    def sample(
        self, case: Case, workload: Workload, num_steps: int, cache: Cache, callback: Callback
    ) -> tuple[Tensor, Run]:
        count, conditions = workload.num_samples, case.conditions
        texts = [  # of the rows without text, which come first, and of those with it; one of them without guidance
            (conditions["t5"][rows], conditions["llama"][:, rows], conditions["pooled"][rows])
            for rows in (slice(0, count), slice(case.rows - count, None))
        ]
        sampler = self._sampler(case, num_steps, workload.cfg_scale)
        generators = SampleGenerators(0, range(count))  # of the flash solver's noise
        noise = case.latents[:count].float()  # the sampler adds the unconditional rows itself
        return sampler.run(noise, *texts[1], negative=texts[0], generators=generators, cache=cache, callback=callback)

    def published_step_flops(self, case: Case) -> None:
        return None

    def difference(self, case: Case, counts: Mapping[str, Any], num_steps: int) -> list[Term]:
        return []

    def reference(self, case: Case) -> tuple[nn.Module, dict[str, Any]]:
        model = diffusers_hidream(case.model.config).to(case.latents.dtype).eval().requires_grad_(False)
        return model, diffusers_hidream_arguments(case.latents, case.conditions)


BACKBONES: dict[str, Backbone] = {
    **{name: DiTBackbone(name) for name in DIT_CONFIGS},
    **{name: FluxBackbone(name) for name in FLUX_CONFIGS},
    **{name: HunyuanVideoBackbone(name) for name in HUNYUAN_CONFIGS},
    **{name: WanBackbone(name) for name in WAN_CONFIGS},
    **{name: HiDreamBackbone(name) for name in HIDREAM_CONFIGS},
}
DEFAULT_MODEL = "DiT-XL/2"


def add_workload_flags(parser: Parser, argv: Sequence[str] | None) -> None:
    """Flags of a command that works on one model and one cache; --model in `argv` decides their defaults."""
    backbone = BACKBONES[_asked_model(argv)]
    parser.add_argument("--model", choices=tuple(BACKBONES), default=DEFAULT_MODEL)
    parser.add_argument("--image-size", type=positive_int, help="side of a square in pixels (default: the model's own)")
    parser.add_argument("--height", type=positive_int, help="pixels, with --width instead of --image-size")
    parser.add_argument("--width", type=positive_int, help="pixels")
    parser.add_argument("--frames", type=positive_int, help="of a video (default: the model's own)")
    parser.add_argument("--num-steps", type=positive_int, default=backbone.num_steps, help="sampling steps")
    parser.add_argument("--num-samples", type=positive_int, default=1, help="samples a model call")
    parser.add_argument(
        "--cfg-scale",
        type=positive_float,
        help="guidance weight of DiT, Wan2.1 and HiDream; 1 runs no second branch (default: the model's own)",
    )
    parser.add_argument(
        "--text-tokens",
        type=positive_int,
        help="of a FLUX, HunyuanVideo or HiDream prompt, for trials (default: the model's own)",
    )
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of weights and features")
    parser.add_argument(
        "--depth",
        type=positive_int,
        help="number of blocks, of FLUX, HunyuanVideo and HiDream double blocks, for trials (default: the model's own)",
    )
    parser.add_argument("--attention", choices=BACKENDS, default="sdpa")
    add_cache_flags(parser, backbone.preset)


def workload(model: str, **asked: Any) -> Workload:
    """A workload of fields that are asked for, None for those that are not, and the model's own settings.

    Raises UserError for a setting that the model does not have, or beyond MOST.
    """
    own = BACKBONES[model].own
    given = {name: value for name, value in asked.items() if value is not None}
    for name, most in MOST.items():
        if name in given and given[name] > most:
            raise UserError(f"{name.replace('_', ' ')} {given[name]} is too much; at most {most} can be counted")
    for name in sorted({"frames", "cfg_scale", "text_tokens"} & given.keys() - own.keys()):
        raise UserError(f"--{name.replace('_', '-')} {given[name]} has no effect on {model}, which has no such setting")
    return Workload(**{**own, **given})


def count_caches(
    model: str, caches: Mapping[str, Cache], num_steps: int, dtype: torch.dtype, **sizes: Any
) -> dict[str, dict[str, Any]]:
    """By label, FLOPs, full steps and kept bytes of sampling one batch, from the model on the meta device.

    sizes: of `workload`.
    """
    with torch.device("meta"):
        case = BACKBONES[model].build(workload(model, **sizes), dtype)
    return {
        label: sampling_flops(case.model, cache, num_steps, case.latents, **case.conditions)
        for label, cache in caches.items()
    }


def workload_of(args: argparse.Namespace) -> Workload:
    """The workload that the flags ask for; UserError for flags that exclude each other or do not suit the model."""
    sides = {"height": args.height, "width": args.width}
    if args.image_size is not None:
        if any(sides.values()):
            raise UserError("--image-size is a square; give either that or --height and --width")
        sides = dict.fromkeys(sides, args.image_size)
    names = ("frames", "num_samples", "depth", "attention", "cfg_scale", "text_tokens")
    return workload(args.model, **sides, **{name: getattr(args, name) for name in names})


def cache_of(args: argparse.Namespace) -> Cache:
    """The one cache that the flags ask for; UserError if they ask for several or for none that fits the steps."""
    if len(args.method or ()) > 1 or len(args.interval or ()) > 1 or args.compare:
        raise UserError("this command takes one --method and one --interval at a time, without --compare")
    made = caches_from_flags(args, BACKBONES[args.model].preset, num_steps=args.num_steps)
    (cache,) = made.values()
    return cache


def describe(args: argparse.Namespace, case: Case) -> dict[str, Any]:
    """Model, sizes and steps for a record."""
    tokens, asked = case.model.tokens(case.latents), workload_of(args)
    own = {name: getattr(asked, name) for name in BACKBONES[args.model].own}
    return {
        "model": args.model,
        "config": asdict(case.model.config),
        "reduced_depth": args.depth is not None,
        "num_steps": args.num_steps,
        "num_samples": args.num_samples,
        **{name: value for name, value in own.items() if value is not None},
        "rows": tokens.batch,
        "tokens": tokens.length,
        "sites": tokens.num_sites,
        "precision": args.precision,
        "attention": args.attention,
    }


def _asked_model(argv: Sequence[str] | None) -> str:
    """--model of a command line, before its other flags can be understood; the full parser complains of unknown ones."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--model", default=DEFAULT_MODEL)
    try:
        asked = first.parse_known_args(argv)[0].model
    except argparse.ArgumentError:
        return DEFAULT_MODEL
    return asked if asked in BACKBONES else DEFAULT_MODEL
