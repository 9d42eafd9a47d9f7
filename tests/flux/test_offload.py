"""What FLUX.1 takes of a device with `seerkit.devices.offload`: 24 GB are enough."""

from dataclasses import replace

import pytest
import torch

from cache_dic import Cache, make_cache
from cache_dic.settings import GROUP_BYTES
from flux import Flux, FluxConfig, Sampler, flux_config
from seerkit.devices.offload import Packed, offload_modulation, peak_bytes, resident_bytes, store_fp8
from seerkit.weights.autoencoders import FLUX_CONFIG, Autoencoder

GB = 1e9
NAMES = ("flux-dev", "flux-schnell")


def meta_flux(config: FluxConfig, dtype: torch.dtype = torch.bfloat16) -> Flux:
    with torch.device("meta"):
        return Flux(config).eval().requires_grad_(False).to(dtype)


def cache() -> Cache:
    return make_cache(interval=6, warmup_steps=3, max_order=2)


def sampling_bytes(model: Flux, cache: Cache | None, num_steps: int, *, tokens: int, text_tokens: int) -> int:
    """Activations, modulation table and kept features of sampling one image on the meta device."""
    config = model.config
    with torch.device("meta"):
        noise = torch.empty(1, config.in_channels, 1, tokens)  # patches of 1: the shapes of the tokens are the same
        txt, y = torch.empty(1, text_tokens, config.context_in_dim), torch.empty(1, config.vec_in_dim)
    return peak_bytes(lambda: Sampler(model, num_steps).run(noise, txt, y, cache=cache))


def test_bytes_halve():
    """A byte per weight and four per row for FLUX.1's blocks; all else stays."""
    config = replace(flux_config("flux-dev"), depth=1, depth_single_blocks=1)
    model = meta_flux(config)
    before = resident_bytes(model)
    after = resident_bytes(store_fp8(model))
    stored = [module for module in model.modules() if isinstance(module, Packed)]
    shapes = [module.weight.codes.shape for module in stored]
    assert before - after == sum(rows * columns - 4 * rows for rows, columns in shapes)
    assert sum(buffer.nbytes for module in stored for buffer in module.buffers()) <= 0.501 * sum(
        2 * rows * columns for rows, columns in shapes
    )


def test_work_holds_the_accumulators():
    config = FluxConfig(
        in_channels=16, out_channels=16, vec_in_dim=10, context_in_dim=20, hidden_size=48, num_heads=3, depth=1,
        depth_single_blocks=1, axes_dim=(4, 6, 6),
    )  # fmt: skip
    model = meta_flux(config, torch.float32)
    few = make_cache(interval=5, warmup_steps=1, max_order=1)
    cached = sampling_bytes(model, few, 11, tokens=1024, text_tokens=8)
    uncached = sampling_bytes(model, None, 1, tokens=1024, text_tokens=8)
    kept = few.kept_bytes(11, model.tokens(torch.empty(1, 1024, 16)))["folded"]
    assert kept == 8 * 1024 * 48 * 4, "two periods of four forecast steps"
    assert cached > uncached + kept


@pytest.mark.slow
def test_flux_fits_24_gb():
    """In bf16 at 1024 x 1024 pixels, interval 6, order 2, 512 text tokens, modulation on the host, 1 GB to spare.

    The work is counted, for time, on as many blocks as fill a group of features and as many steps as fill the
    accumulators: the rest would add rows of modulation alone, less than 0.1 GB.
    """
    weights = {name: resident_bytes(offload_modulation(meta_flux(flux_config(name)))) for name in NAMES}
    assert weights["flux-dev"] / GB == pytest.approx(17.3, abs=0.05)
    few = offload_modulation(meta_flux(replace(flux_config("flux-dev"), depth=1, depth_single_blocks=20)))
    tokens = few.tokens(torch.empty(1, 4096, 64))
    assert tokens.row_numel * tokens.dtype.itemsize * tokens.num_sites > GROUP_BYTES
    assert cache().kept_bytes(26, tokens)["folded"] == cache().kept_bytes(50, tokens)["folded"]
    work = sampling_bytes(few, cache(), 26, tokens=4096, text_tokens=512)
    assert 1.5 * GB < work < 3 * GB
    assert max(weights.values()) + work + 0.1 * GB < 23 * GB
    whole = resident_bytes(meta_flux(flux_config("flux-dev")))
    assert whole / GB == pytest.approx(23.8, abs=0.05)
    assert whole + work > 24 * GB, "with modulation on the device it does not fit"


def test_text_encoders_fit_24_gb(meta_t5_xxl, need):
    """T5-v1.1-XXL and CLIP-L together, on a prompt of 512 tokens."""
    tf = need("transformers")
    with torch.device("meta"):
        clip = tf.CLIPTextModel(
            tf.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, projection_dim=768)
        ).to(torch.bfloat16)
        ids = torch.zeros(1, 512, dtype=torch.int64)
    assert resident_bytes(meta_t5_xxl()) / GB == pytest.approx(9.5, abs=0.05)
    assert resident_bytes(clip) / GB == pytest.approx(0.25, abs=0.01)
    two_layers = meta_t5_xxl(num_layers=2)  # activations do not grow with depth
    assert peak_bytes(lambda: two_layers(input_ids=ids)) < 1 * GB


def test_autoencoder_fits_24_gb(need):
    """Decoding 1024 x 1024 pixels in bf16."""
    with torch.device("meta"):
        model = need("diffusers").AutoencoderKL.from_config(FLUX_CONFIG).to(torch.bfloat16).eval()
        latents = torch.empty(1, 16, 128, 128)
    autoencoder = Autoencoder(model)
    assert resident_bytes(autoencoder) < 0.2 * GB
    work = peak_bytes(lambda: autoencoder.decode(latents))
    assert 1 * GB < work < 8 * GB
