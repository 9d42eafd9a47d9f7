"""Packing, times and steps of FLUX's sampler against diffusers' pipeline and scheduler."""

import math

import numpy as np
import pytest
import torch

from cache_dic import make_cache
from flux import Flux, FluxConfig, Sampler, sample
from flux.config import patch_side
from flux.latents import image_ids, pack, text_ids, unpack
from flux.schedule import sampling_times, shift_times
from seerkit.sampling.flow_solvers import shift_mu

SIZES = [(256, 256), (512, 768), (1024, 1024), (16, 48), (1392, 752)]  # of images, in pixels
PUBLISHED = {
    "dev": {
        "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15,
        "num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True,
    },
    "schnell": {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False},
}  # fmt: skip


class TestLatents:
    @pytest.mark.parametrize(("height", "width"), SIZES)
    def test_packing_and_positions_are_diffusers(self, need, height, width):
        pipeline = need("diffusers").FluxPipeline
        h, w = height // 8, width // 8
        latents = torch.randn(2, 16, h, w, generator=torch.Generator().manual_seed(0))
        tokens = pack(latents, 2)
        assert tokens.shape == (2, h * w // 4, 64)
        assert torch.equal(tokens, pipeline._pack_latents(latents, 2, 16, h, w))
        assert torch.equal(unpack(tokens, h, w, 2), latents)
        assert torch.equal(unpack(tokens, h, w, 2), pipeline._unpack_latents(tokens, height, width, 8))
        theirs = pipeline._prepare_latent_image_ids(2, h // 2, w // 2, "cpu", torch.float32)
        assert torch.equal(image_ids(2, h // 2, w // 2), theirs.expand(2, -1, -1))
        assert torch.equal(text_ids(2, 7), torch.zeros(2, 7, 3))

    def test_tokens_go_row_by_row_and_channels_before_pixels(self):
        latents = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
        tokens = pack(latents, 2)
        assert tokens[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33]
        assert image_ids(1, 2, 3)[0].tolist() == [[0, r, c] for r in range(2) for c in range(3)]

    @pytest.mark.parametrize("patch", [1, 2, 4])
    def test_patches_of_any_side(self, patch):
        latents = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
        assert torch.equal(unpack(pack(latents, patch), 8, 12, patch), latents)
        assert patch_side(3 * patch * patch, 3) == patch

    @pytest.mark.parametrize(("height", "width"), [(33, 32), (32, 31)])
    def test_sizes_that_cannot_be_cut(self, height, width):
        with pytest.raises(ValueError, match=f"latents of {height} x {width} cannot be cut into patches of 2"):
            pack(torch.zeros(1, 16, height, width), 2)

    @pytest.mark.parametrize(("tokens", "latents"), [(64, 3), (48, 16), (64, 128)])
    def test_channels_that_do_not_fit(self, tokens, latents):
        with pytest.raises(ValueError, match=f"latents of {latents} channels cannot be packed into tokens of {tokens}"):
            patch_side(tokens, latents)


def scheduler(need, model: str, num_steps: int, num_tokens: int):
    """diffusers' scheduler as FluxPipeline sets it up."""
    made = need("diffusers").FlowMatchEulerDiscreteScheduler(**PUBLISHED[model])
    calculate_shift = need("diffusers.pipelines.flux.pipeline_flux").calculate_shift
    made.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=calculate_shift(num_tokens))
    return made


class TestTimes:
    @pytest.mark.parametrize("model", list(PUBLISHED))
    @pytest.mark.parametrize("num_steps", [1, 4, 28, 50])
    @pytest.mark.parametrize(("height", "width"), SIZES)
    def test_sigmas_are_diffusers(self, need, model, num_steps, height, width):
        num_tokens = height * width // 256
        theirs = scheduler(need, model, num_steps, num_tokens).sigmas
        times = sampling_times(num_steps, num_tokens, shift=model == "dev")
        assert times.shape == theirs.shape
        assert (times - theirs).abs().max() <= 1e-6

    def test_shift_by_hand(self):
        assert shift_mu(256) == 0.5
        assert shift_mu(4096) == pytest.approx(1.15, abs=1e-15)
        t = torch.tensor([0.0, 0.25, 1.0], dtype=torch.float64)
        expected = [0.0, math.e / (math.e + 3), 1.0]
        assert shift_times(t, 1.0).tolist() == pytest.approx(expected, abs=1e-15)

    def test_times_are_double_and_descend(self):
        times = sampling_times(50, 4096)
        assert times.dtype == torch.float64
        assert times[0] == 1
        assert times[-1] == 0
        assert (times.diff() < 0).all()
        assert sampling_times(4, 4096, shift=False).tolist() == [1, 0.75, 0.5, 0.25, 0]

    @pytest.mark.parametrize("num_steps", [0, -3])
    def test_no_steps(self, num_steps):
        with pytest.raises(ValueError, match=f"number of sampling steps {num_steps} must be at least 1"):
            sampling_times(num_steps, 16)


class Field(Flux):
    """A fixed function of latents, time and guidance instead of blocks."""

    def forward(self, img, *, timesteps, guidance=None, cache, **conditions):
        cache(self.tokens(img), lambda site: self.touch(site, img), None)
        return self.velocity(img, timesteps, guidance)

    def touch(self, site, img):
        for _ in range(self.tokens(img).num_sites):
            img = site(img, None, img)
        return img

    @staticmethod
    def velocity(img, t, guidance):
        weight = 1 if guidance is None else guidance.reshape(-1, 1, 1)
        return torch.sin(3 * img) * (1 + t.reshape(-1, 1, 1)) - 0.3 * img * weight


def field(guided: bool) -> Field:
    config = FluxConfig(
        in_channels=16, out_channels=16, vec_in_dim=4, context_in_dim=4, hidden_size=8, num_heads=1, depth=1,
        depth_single_blocks=1, axes_dim=(2, 2, 4), guidance_embed=guided,
    )  # fmt: skip
    return Field(config).eval().requires_grad_(False)


def given(batch: int = 2, height: int = 10, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(batch, 4, height, width, generator=draw), torch.zeros(batch, 3, 4), torch.zeros(batch, 4)


class TestSampler:
    @pytest.mark.parametrize("model", list(PUBLISHED))
    def test_trajectory_is_diffusers(self, need, model):
        """Every step of a fixed function, shifted with guidance (dev) and unshifted without (schnell)."""
        noise, txt, y = given()
        guided, num_steps = model == "dev", 20
        states = []
        sample(
            field(guided),
            noise,
            txt,
            y,
            num_steps,
            guidance_scale=2.0,
            callback=lambda step, x: states.append((step, x)),
        )
        assert [step for step, _ in states] == list(range(num_steps))
        theirs, x = scheduler(need, model, num_steps, 15), pack(noise, 2)
        guidance = torch.full((2,), 2.0) if guided else None
        for t, (_, state) in zip(theirs.timesteps, states, strict=True):
            velocity = Field.velocity(x, (t / 1000).expand(2), guidance)
            x = theirs.step(velocity, t, x, return_dict=False)[0]
            difference = (state - unpack(x, 10, 6, 2)).abs().max() / x.abs().max()
            assert difference <= 1e-5

    def test_shift_follows_the_model_unless_told(self):
        assert Sampler(field(True)).shift
        assert not Sampler(field(False)).shift
        assert Sampler(field(False), shift=True).shift

    def test_latents_keep_the_dtype_of_the_noise(self):
        noise, txt, y = given()
        result = sample(field(True), noise.double(), txt, y, 3)
        assert result.dtype == torch.float64
        assert result.shape == noise.shape

    def test_run_of_one_step(self):
        noise, txt, y = given()
        expected = noise - unpack(Field.velocity(pack(noise, 2), torch.ones(2), torch.full((2,), 3.5)), 10, 6, 2)
        torch.testing.assert_close(sample(field(True), noise, txt, y, 1), expected)

    @pytest.mark.parametrize("num_steps", [0, -1])
    def test_no_steps(self, num_steps):
        with pytest.raises(ValueError, match=f"num_steps = {num_steps} must be an integer of at least 1"):
            Sampler(field(True), num_steps)

    def test_bad_inputs_are_named(self):
        model, (noise, txt, y) = field(True), given()
        with pytest.raises(ValueError, match="2 samples need as many texts, got 1 token and 2 pooled rows"):
            sample(model, noise, txt[:1], y, 3)
        with pytest.raises(ValueError, match="latents of 9 x 6 cannot be cut into patches of 2"):
            sample(model, noise[:, :, :9], txt, y, 3)
        with pytest.raises(ValueError, match="latents of 3 channels cannot be packed into tokens of 16"):
            sample(model, noise[:, :3], txt, y, 3)
        with pytest.raises(ValueError, match="warmup_steps = 9"):
            sample(model, noise, txt, y, 5, cache=make_cache(warmup_steps=9))
