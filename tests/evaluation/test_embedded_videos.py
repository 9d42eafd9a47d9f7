"""The video weights that ship with the repository: they load, are small, follow their prompts, and forecasts beat reuse."""

import pytest
import torch
from torch import Tensor

import hunyuan_video.config
import hunyuan_video.weights
import wan.config
import wan.weights
from cache_dic import make_cache
from evaluation.tracking import asked, told
from evaluation.video_metrics import video_psnr
from hunyuan_video import CONFIGS as HUNYUAN_CONFIGS
from hunyuan_video import Sampler as HunyuanSampler
from seerkit.data.moving_objects import FRAME_SIZE, NUM_FRAMES, encode, pooled
from seerkit.io.media import video_to_uint8
from seerkit.sampling.seeds import SampleGenerators
from wan import Sampler as WanSampler

WEIGHTS = {
    "wan": wan.weights.EMBEDDED["wan-tiny"],
    "hunyuan": hunyuan_video.weights.EMBEDDED[HUNYUAN_CONFIGS["hunyuan-tiny"]],
}
PROMPTS = ["yellow moon moving right on navy", "pink ring moving down on black"]

pytestmark = pytest.mark.slow


def wan_sampler() -> tuple[WanSampler, tuple[Tensor, ...]]:
    """As the model was made for, and what its run takes after the noise."""
    usage = wan.config.USAGE["wan-tiny"]
    sampler = WanSampler(wan.weights.load_wan("wan-tiny"), 50, shift=usage.shift, guidance_scale=usage.guidance)
    return sampler, (encode(PROMPTS)[0], encode(["", ""])[0])


def hunyuan_sampler() -> tuple[HunyuanSampler, tuple[Tensor, ...]]:
    """The same of HunyuanVideo."""
    usage, words = hunyuan_video.config.USAGE["hunyuan-tiny"], encode(PROMPTS)[0]
    model = hunyuan_video.weights.load_hunyuan_video("hunyuan-tiny")
    sampler = HunyuanSampler(model, 50, shift=usage.flow_shift, guidance_scale=usage.guidance)
    return sampler, (words, torch.ones(words.shape[:2], dtype=torch.bool), pooled(words))


@pytest.fixture(scope="session", params=(wan_sampler, hunyuan_sampler), ids=WEIGHTS)
def videos(request) -> dict[str, Tensor]:
    """By cache: uint8 videos (2, 8, 24, 24, 3) of the prompts."""
    sampler, texts = request.param()
    noise = SampleGenerators(0, range(len(PROMPTS))).randn(3, NUM_FRAMES, FRAME_SIZE, FRAME_SIZE)
    caches = {
        "uncached": make_cache("uncached"),
        "taylorseer": make_cache("taylorseer", interval=3, max_order=1, warmup_steps=1),
        "fora": make_cache("fora", interval=3),
    }
    drawn = {label: sampler.run(noise, *texts, cache=cache)[0] for label, cache in caches.items()}
    return {label: torch.from_numpy(video_to_uint8(latents)) for label, latents in drawn.items()}


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_file_is_small(name):
    assert WEIGHTS[name].stat().st_size <= 40e6


def test_forecasts_are_nearer_to_the_uncached_videos_than_reuse(videos):
    psnr = {label: video_psnr(videos[label], videos["uncached"])["mean_db"] for label in ("taylorseer", "fora")}
    assert psnr["taylorseer"].mean() > psnr["fora"].mean()


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_videos_show_what_their_prompts_ask_for(videos, index):
    assert told(videos["uncached"][index].numpy()) == asked(PROMPTS[index])
