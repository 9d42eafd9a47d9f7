"""The samplers here and diffusers' pipelines give the same latents from the same noise, weights and texts, cached or not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from random_backbones import random_backbone
from torch import Tensor, nn

import dit
import flux
import hidream
import hunyuan_video
import wan
from cache_dic import Cache, UserError, make_cache
from cache_dic.plan import Plan
from dit.diffusion import Diffusion
from flux.latents import pack, unpack
from taylorseers_diffusers import enable
from taylorseers_diffusers.convert import to_diffusers
from taylorseers_diffusers.official import official_scheduler

STEPS, GUIDANCE, BATCH = 14, 2.5, 2
SETTINGS = {"interval": 4, "warmup_steps": 2}


@dataclass
class Pair:
    """A pipeline, what calls it for latents, and the sampler here: from noise and cache to latents."""

    pipe: Any
    noise: Tensor
    piped: Callable[[], Tensor]
    sampled: Callable[[Cache | None], Tensor]


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def latents_of(pipe: Any, **inputs: Any) -> Tensor:
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipe(num_inference_steps=STEPS, output_type="latent", return_dict=False, **inputs)[0]


def of_flux(scheduler: Any = None) -> Pair:
    model = random_backbone("flux")
    transformer = to_diffusers(model)
    pipe = diffusers.FluxPipeline(
        scheduler=scheduler or official_scheduler(transformer), transformer=transformer, vae=None, text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    noise, txt, y = drawn(BATCH, 3, 32, 32), drawn(BATCH, 5, 384, seed=2), drawn(BATCH, 768, seed=3)
    side = 8 * pipe.vae_scale_factor * 2  # the pipeline takes a token for two latents of eight pixels along each side

    def piped() -> Tensor:
        tokens = latents_of(
            pipe, prompt_embeds=txt, pooled_prompt_embeds=y, latents=pack(noise, 4), height=side, width=side,
            guidance_scale=GUIDANCE,
        )  # fmt: skip
        return unpack(tokens, 32, 32, 4)

    return Pair(
        pipe, noise, piped,
        lambda cache: flux.sample(model, noise, txt, y, STEPS, guidance_scale=GUIDANCE, cache=cache),
    )  # fmt: skip


def of_hunyuan_video(scheduler: Any = None) -> Pair:
    model = random_backbone("hunyuan_video")
    transformer = to_diffusers(model)
    pipe = diffusers.HunyuanVideoPipeline(
        scheduler=scheduler or official_scheduler(transformer), transformer=transformer, vae=None, text_encoder=None,
        tokenizer=None, text_encoder_2=None, tokenizer_2=None,
    )  # fmt: skip
    noise, states, pooled = drawn(BATCH, 3, 8, 16, 16), drawn(BATCH, 6, 48, seed=2), drawn(BATCH, 48, seed=3)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    return Pair(
        pipe, noise,
        lambda: latents_of(
            pipe, prompt_embeds=states, pooled_prompt_embeds=pooled, prompt_attention_mask=mask, latents=noise, height=16,
            width=16, guidance_scale=GUIDANCE,
        ),
        lambda cache: hunyuan_video.sample(
            model, noise, states, mask, pooled, STEPS, guidance_scale=GUIDANCE, cache=cache
        ),
    )  # fmt: skip


def of_wan(scheduler: Any = None) -> Pair:
    model = random_backbone("wan")
    transformer = to_diffusers(model)
    pipe = diffusers.WanPipeline(
        scheduler=scheduler or official_scheduler(transformer), transformer=transformer, vae=None, text_encoder=None,
        tokenizer=None,
    )  # fmt: skip
    noise, text, negative = drawn(BATCH, 3, 8, 16, 16), drawn(BATCH, 8, 48, seed=2), drawn(BATCH, 8, 48, seed=3)
    sampler = wan.Sampler(model, STEPS, guidance_scale=GUIDANCE)
    if scheduler is not None:
        sampler.sigmas = levels_of(scheduler)
    return Pair(
        pipe, noise,
        lambda: latents_of(
            pipe, prompt_embeds=text, negative_prompt_embeds=negative, latents=noise, height=64, width=64, num_frames=5,
            guidance_scale=GUIDANCE,
        ),
        lambda cache: sampler.run(noise, text, negative, cache=cache)[0],
    )  # fmt: skip


def of_hidream(scheduler: Any = None) -> Pair:
    model = random_backbone("hidream")
    transformer = to_diffusers(model)
    none = dict.fromkeys([f"{part}{i}" for part in ("text_encoder", "tokenizer") for i in ("", "_2", "_3", "_4")])
    pipe = diffusers.HiDreamImagePipeline(
        scheduler=scheduler or official_scheduler(transformer), transformer=transformer, vae=None, **none
    )
    pipe.default_sample_size = 32  # the pipeline makes every size this large, in latents
    noise = drawn(BATCH, 3, 32, 32)
    (t5, llama, pooled), negative = (
        (drawn(BATCH, 6, 384, seed=s), drawn(1, BATCH, 6, 384, seed=s + 1), drawn(BATCH, 768, seed=s + 2)) for s in (2, 5)
    )  # fmt: skip
    sampler = hidream.Sampler(model, STEPS, guidance_scale=GUIDANCE)
    if scheduler is not None:
        sampler.sigmas = levels_of(scheduler)
        sampler.timesteps = scheduler.timesteps
    names = ("prompt_embeds_t5", "prompt_embeds_llama3", "pooled_prompt_embeds")
    texts = dict(zip(names, (t5, llama, pooled), strict=True))
    texts |= {f"negative_{name}": value for name, value in zip(names, negative, strict=True)}
    return Pair(
        pipe, noise,
        lambda: latents_of(pipe, **texts, latents=noise, height=256, width=256, guidance_scale=GUIDANCE),
        lambda cache: sampler.run(noise, t5, llama, pooled, negative=negative, cache=cache)[0],
    )  # fmt: skip


class Seen(nn.Module):
    """In place of an autoencoder: shows what it is given, without the pipeline's clamping."""

    config = type("Config", (), {"scaling_factor": 1.0})
    device, dtype = torch.device("cpu"), torch.float32

    def decode(self, latents: Tensor) -> Any:
        self.latents = latents
        return type("Decoded", (), {"sample": latents})


def of_dit(scheduler: Any = None) -> Pair:
    model = random_backbone("dit")
    transformer, seen = to_diffusers(model), Seen()
    pipe = diffusers.DiTPipeline(
        transformer=transformer, vae=seen, scheduler=scheduler or official_scheduler(transformer)
    )
    pipe.set_progress_bar_config(disable=True)
    noise, classes = drawn(BATCH, 4, 8, 8), torch.tensor([3, 141])
    sampler = dit.Sampler(model, STEPS, guidance_scale=GUIDANCE, guidance_channels=None)
    if scheduler is not None:
        scheduler.set_timesteps(STEPS)
        sampler.diffusion = respaced(scheduler.timesteps.flip(0))

    def piped() -> Tensor:
        pipe(
            classes.tolist(),
            GUIDANCE,
            generator=torch.Generator().manual_seed(1),
            num_inference_steps=STEPS,
            output_type="pt",
        )
        return seen.latents

    return Pair(pipe, noise, piped, lambda cache: sampler.run(noise, classes, cache=cache)[0])


def levels_of(scheduler: Any) -> Tensor:
    scheduler.set_timesteps(STEPS)
    return scheduler.sigmas.double()


def respaced(timesteps: Tensor) -> Diffusion:
    """DiT's process at timesteps of diffusers."""
    whole = Diffusion.respaced(1000).alphas_bar[timesteps]
    return Diffusion(timesteps, 1 - whole / torch.cat([whole.new_ones(1), whole[:-1]]))


OFFICIAL = {
    "flux": of_flux,
    "hunyuan_video": of_hunyuan_video,
    "wan": of_wan,
    "hidream": of_hidream,
    "dit": of_dit,
}
PUBLISHED = {
    "flux": (of_flux, lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)),
    "hunyuan_video": (of_hunyuan_video, lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)),
    "wan": (
        of_wan,
        lambda: diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
        ),
    ),
    "hidream": (
        of_hidream,
        lambda: diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    ),
    "dit": (of_dit, lambda: diffusers.DDIMScheduler(clip_sample=False)),
}
"""By family: schedulers as they are published, whose levels the sampler here is given where the official ones are others."""


def check(pair: Pair, family: str, **settings: Any) -> None:
    plain = pair.sampled(None)
    assert plain.shape == pair.noise.shape
    torch.testing.assert_close(pair.piped(), plain, rtol=1e-4, atol=1e-4)
    cache = make_cache("taylorseer", preset=family, **settings)
    enable(pair.pipe, "taylorseer", **settings)
    forecast, ours = pair.piped(), pair.sampled(cache)
    report = pair.pipe.cache_report()
    assert (report.engine, report.label) == (cache.engine, cache.label)
    assert cache.engine == "folded"
    plan: Plan = cache.plan(STEPS)
    assert all(record["full_steps"] == list(plan.full_steps) for runs in report.branches.values() for record in runs)
    assert (ours - plain).norm() > 5e-3 * plain.norm(), "nothing was forecast"
    torch.testing.assert_close(forecast, ours, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", OFFICIAL)
def test_the_official_sampler_and_the_pipeline_are_one(family: str) -> None:
    """At the published settings of TaylorSeer for the family."""
    check(OFFICIAL[family](), family)


@pytest.mark.parametrize("family", PUBLISHED)
def test_the_published_pipeline_and_the_sampler_at_its_levels_are_one(family: str) -> None:
    make, scheduler = PUBLISHED[family]
    check(make(scheduler()), family, **SETTINGS)


def test_a_difference_shows() -> None:
    """With other levels than its own the pipeline gives another image."""
    pair = of_wan()
    pair.pipe.scheduler = PUBLISHED["wan"][1]()
    assert (pair.piped() - pair.sampled(None)).abs().max() > 1e-2


def test_a_model_without_an_official_sampler_here_is_refused() -> None:
    with pytest.raises(UserError, match="the official sampler of Linear is not known; keep the pipeline's scheduler"):
        official_scheduler(torch.nn.Linear(2, 2))
