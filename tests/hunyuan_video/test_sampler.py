"""HunyuanVideo's sampler against diffusers' scheduler, its texts, and under the cache."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from cache_dic import ENGINES, make_cache
from hunyuan_video import HunyuanVideo, Sampler, sample

N5 = {"interval": 5, "max_order": 1, "warmup_steps": 1}


class Field(HunyuanVideo):
    """A fixed function of latents, time, pooled text and guidance instead of blocks; elementwise, so also of videos."""

    def velocity(self, patches, grid, t, text_states, text_mask, text_states_2, guidance=None, *, cache):
        cache(self.tokens(patches), lambda site: self.touch(site, patches), None)
        return self.field(patches, t, text_states_2.sum(1), guidance)

    def touch(self, site, x: Tensor) -> Tensor:
        for _ in range(self.tokens(x).num_sites):
            x = site(x, None, torch.zeros_like(x))
        return x

    @staticmethod
    def field(x: Tensor, t: Tensor, text: Tensor, guidance: Tensor) -> Tensor:
        t, text, guidance = (v.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for v in (t, text, guidance))
        return torch.sin(3 * x) * (1 + t / 1000) - 0.1 * text * x + guidance / 6000


@pytest.fixture
def field(square) -> Field:
    return Field(square).eval().requires_grad_(False)


@pytest.fixture
def given(arguments, square):
    """`given(dtype, lengths)`: the arguments of `Sampler.run`."""

    def make(dtype: torch.dtype = torch.float64, lengths: tuple[int, int] | None = (5, 4)) -> dict[str, Tensor | None]:
        call = arguments(dtype, lengths, config=square)
        del call["t"], call["guidance"]
        return {"noise": call.pop("x"), **call}

    return make


class TestTrajectory:
    @pytest.mark.parametrize(("num_steps", "shift"), [(50, 7.0), (6, 17.0), (1, 7.0)])
    def test_loop_of_diffusers_pipeline(self, need, field, given, num_steps, shift):
        """Every step within 1e-5 of the largest value."""
        scheduler = need("diffusers").FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1])
        call, states = given(torch.float32), []
        settings = {"shift": shift, "guidance_scale": 4.0}
        latents = sample(field, **call, num_steps=num_steps, **settings, callback=lambda *at: states.append(at))
        assert [step for step, _ in states] == list(range(num_steps))
        assert torch.equal(states[-1][1], latents)
        x, text = call["noise"], call["text_states_2"].sum(1)
        for t, (_, state) in zip(scheduler.timesteps, states, strict=True):
            velocity = Field.field(x, t.expand(2), text, torch.full((2,), 4000.0))
            x = scheduler.step(velocity, t, x, return_dict=False)[0]
            assert (state - x).abs().max() <= 1e-5 * x.abs().max()

    def test_without_reverse_time_rises(self, field, given):
        """A step from level 0 to 1 along the velocity at t = 0."""
        call = given(torch.float32)
        text, guidance = call["text_states_2"].sum(1), torch.full((2,), 6000.0)
        expected = call["noise"] + Field.field(call["noise"], torch.zeros(2), text, guidance)
        torch.testing.assert_close(sample(field, **call, num_steps=1, reverse=False), expected)

    def test_models_without_guidance_get_none(self, random_model, given, square):
        model, call = random_model(config=replace(square, guidance_embed=False)), given()
        results = [sample(model, **call, num_steps=2, guidance_scale=guidance) for guidance in (1.0, 6.0)]
        assert torch.equal(*results)
        model = random_model(config=square)
        results = [sample(model, **call, num_steps=2, guidance_scale=guidance) for guidance in (1.0, 6.0)]
        assert not torch.equal(*results)


class TestText:
    @pytest.mark.parametrize("lengths", [(5, 4), (4, 4), (1, 6)], ids=str)
    def test_trimming_makes_no_difference(self, random_model, given, square, lengths):
        """Whatever the padding holds and however long it is."""
        model, call = random_model(config=square), given(lengths=lengths)
        expected = sample(model, **call, num_steps=6, cache=make_cache(**N5))
        filled = call["text_states"].masked_fill(~call["text_mask"].unsqueeze(-1), torch.nan)
        longer = {
            "text_states": torch.cat([filled, torch.full_like(filled, 1e3)], dim=1),
            "text_mask": torch.cat([call["text_mask"], torch.zeros_like(call["text_mask"])], dim=1),
        }
        assert torch.equal(sample(model, **call | longer, num_steps=6, cache=make_cache(**N5)), expected)
        for row, length in enumerate(lengths):
            cut = {
                "text_states": call["text_states"][row : row + 1, :length], "text_mask": None,
                "noise": call["noise"][row : row + 1], "text_states_2": call["text_states_2"][row : row + 1],
            }  # fmt: skip
            alone = sample(model, **cut, num_steps=6, cache=make_cache(**N5))
            torch.testing.assert_close(alone[0], expected[row], rtol=1e-12, atol=1e-12)

    def test_a_mask_of_ones_is_no_mask(self, random_model, given, square):
        model, call = random_model(config=square), given(lengths=(7, 7))
        masked, plain = (sample(model, **call | {"text_mask": m}, num_steps=3) for m in (call["text_mask"], None))
        assert torch.equal(masked, plain)


class TestCached:
    def test_table_and_trimming_change_nothing(self, random_model, given, square):
        """The sampler equals Euler steps with calls of the model without a cache."""
        model, call = random_model(config=square), given()
        sampler = Sampler(model, 5, guidance_scale=2.5)
        x, sigmas = call["noise"], sampler.sigmas.tolist()
        texts = {name: call[name] for name in ("text_states", "text_mask", "text_states_2")}
        for sigma, following in itertools.pairwise(sigmas):
            t = torch.full((2,), 1000 * sigma)
            x = x + (following - sigma) * model(x, t, **texts, guidance=torch.full((2,), 2500.0))
        torch.testing.assert_close(sampler.run(**call)[0], x, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_interval_one_is_the_uncached_run_to_the_bit(self, random_model, given, square, engine):
        model, call = random_model(torch.float32, square), given(torch.float32)
        cache = make_cache(interval=1, warmup_steps=1, engine=engine)
        assert torch.equal(sample(model, **call, num_steps=7, cache=cache), sample(model, **call, num_steps=7))

    @pytest.mark.parametrize("settings", [N5, N5 | {"warmup_steps": 3, "max_order": 2}], ids=str)
    def test_folded_is_layerwise_over_a_sampling_run(self, random_model, given, square, settings):
        model, call = random_model(config=square), given()
        folded, layerwise = (
            sample(model, **call, cache=make_cache(engine=engine, **settings)) for engine in ("folded", "layerwise")
        )
        assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()
        uncached = sample(model, **call)
        assert 0 < (folded - uncached).abs().max() <= 0.2 * uncached.abs().max()

    def test_record_and_a_fresh_cache_for_every_video(self, random_model, given, square, caplog):
        caplog.set_level("INFO", logger="cache_dic")
        model, call, cache = random_model(torch.float32, square), given(torch.float32), make_cache(**N5)
        sampler = Sampler(model, 12)
        first, run = sampler.run(**call, cache=cache)
        assert run.record()["full_steps"] == [0, 5, 10]
        assert run.record()["sites"] == 7
        sampler.run(**call | {"noise": -call["noise"]}, cache=cache)
        assert torch.equal(sampler.run(**call, cache=cache)[0], first)
        assert "3 of 12 steps full (0 5 10), weights up to 1.8, 7 sites of 2x30x48" in caplog.text

    def test_samples_do_not_depend_on_the_batch(self, random_model, given, square):
        model, call, cache = random_model(config=square), given(), make_cache(**N5)
        together = sample(model, **call, num_steps=12, cache=cache)
        for row in range(2):
            alone = sample(model, **{k: v[row : row + 1] for k, v in call.items()}, num_steps=12, cache=cache)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_latents_keep_the_dtype_of_the_noise(random_model, given, square, dtype):
    """And are computed in float32 at least."""
    model, call = random_model(torch.float32, square), given(torch.float32)
    call["noise"] = call["noise"].to(dtype)
    result = sample(model, **call, num_steps=4)
    assert result.dtype == dtype
    assert result.shape == call["noise"].shape
    if dtype == torch.bfloat16:
        full = sample(model, **call | {"noise": call["noise"].float()}, num_steps=4)
        assert torch.equal(result, full.to(dtype))


def test_half_precision_models_sample(random_model, given, square):
    call, cache = given(torch.float32), make_cache(**N5)
    exact, rounded = (
        sample(random_model(dtype, square), **call, num_steps=20, cache=cache)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max()


class TestErrors:
    def test_settings_out_of_range(self, field):
        for num_steps in (0, -1):
            with pytest.raises(ValueError, match=f"num_steps = {num_steps} must be an integer of at least 1"):
                Sampler(field, num_steps)
        with pytest.raises(ValueError, match="shift -7"):
            Sampler(field, shift=-7)

    def test_bad_inputs_are_named(self, random_model, given, square):
        model, call = random_model(torch.float32, square), given(torch.float32)
        for name, counts in (("text_states", "1 token and 2"), ("text_states_2", "2 token and 1")):
            with pytest.raises(ValueError, match=f"2 samples need as many texts, got {counts} pooled rows"):
                sample(model, **call | {name: call[name][:1]})
        with pytest.raises(ValueError, match="latents of 4 x 9 x 14 cannot be cut into patches of 2 x 3 x 3"):
            sample(model, **call | {"noise": call["noise"][..., :14]})
        with pytest.raises(ValueError, match="text_mask marks no token of a text"):
            sample(model, **call | {"text_mask": torch.zeros(2, 7, dtype=torch.bool)})
        with pytest.raises(ValueError, match="warmup_steps = 9"):
            sample(model, **call, num_steps=5, cache=make_cache(warmup_steps=9))

    def test_noise_and_masks_of_another_shape_are_named(self, random_model, given, square):
        model, call = random_model(torch.float32, square), given(torch.float32)
        for name, value, message in (
            ("noise", call["noise"][:, :3], r"x of shape \(2, 3, .*\) does not fit a model for \(B, 4, T, H, W\)"),
            ("text_mask", call["text_mask"][:, :6], r"text_mask of shape \(2, 6\) must be \(2, 7\)"),
            ("text_states", call["text_states"][..., :19], r"text_states of shape \(2, 7, 19\) does not fit"),
            ("text_states_2", call["text_states_2"][..., :9], r"pooled text, of shape \(2, 9\) must be \(2, 10\)"),
        ):
            with pytest.raises(ValueError, match=message):
                sample(model, **call | {name: value}, num_steps=2)
