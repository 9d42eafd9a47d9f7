"""The weights that ship with the repository: they load, are small, follow their prompts, and forecasts beat reuse."""

import pytest
import torch
from torch import Tensor

from cache_dic import make_cache
from evaluation.video_metrics import video_psnr
from seerkit.media import video_to_uint8
from seerkit.moving_objects import BACKGROUNDS, COLOURS, encode
from seerkit.seeds import SampleGenerators
from wan import Sampler
from wan.config import USAGE
from wan.weights import EMBEDDED, load_wan

WEIGHTS = EMBEDDED["wan-tiny"]
PROMPTS = ["red sneaker moving left on black", "cyan t-shirt moving up on brown"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not WEIGHTS.is_file(), reason=f"{WEIGHTS} is not there; bash scripts/train_wan.sh trains a model"
    ),
]


@pytest.fixture(scope="module")
def videos() -> dict[str, Tensor]:
    """By cache: uint8 videos (2, 16, 32, 32, 3) of the prompts, by the settings the model was made for."""
    usage, noise = USAGE["wan-tiny"], SampleGenerators(0, range(2)).randn(3, 16, 32, 32)
    sampler = Sampler(load_wan("wan-tiny"), 50, shift=usage.shift, guidance=usage.guidance)
    texts = encode(PROMPTS)[0], encode(["", ""])[0]
    caches = {
        "uncached": make_cache("uncached"),
        "taylorseer": make_cache("taylorseer", interval=3, max_order=1, warmup_steps=1),
        "fora": make_cache("fora", interval=3),
    }
    drawn = {label: sampler.run(noise, *texts, cache=cache)[0] for label, cache in caches.items()}
    return {label: torch.from_numpy(video_to_uint8(latents)) for label, latents in drawn.items()}


def test_the_file_is_small():
    assert WEIGHTS.stat().st_size <= 40e6


def test_forecasts_are_nearer_to_the_uncached_videos_than_reuse(videos):
    psnr = {label: video_psnr(videos[label], videos["uncached"])["mean_db"] for label in ("taylorseer", "fora")}
    assert psnr["taylorseer"].mean() > psnr["fora"].mean()


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_the_objects_colour_is_the_one_asked_for(videos, index):
    """Of what differs from the background, which the object shades but does not tint."""
    colour, background = PROMPTS[index].split()[0], torch.tensor(BACKGROUNDS[PROMPTS[index].split()[-1]])
    pixels = videos["uncached"][index].reshape(-1, 3).float()
    shown = pixels[(pixels - background).abs().amax(dim=1) > 60]
    assert 0.03 * len(pixels) < len(shown) < 0.6 * len(pixels), "an object on a background"
    names = {name: torch.tensor(value).float() for name, value in COLOURS.items()}
    likeness = {name: torch.cosine_similarity(shown.mean(dim=0), value, dim=0).item() for name, value in names.items()}
    assert max(likeness, key=likeness.get) == colour
