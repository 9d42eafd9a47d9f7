"""SeaCache's filter and rule on cases worked out by hand, and its runs beside diffusers' hook."""

import math

import pytest
import reference
import torch

from cache_dic import UserError, make_cache
from cache_dic.look import Inputs, Look, Parts
from cache_dic.methods.seacache import SeaCache, relative_change, wiener_filter

NETWORKS = ["dit", "flux", "hunyuan_video", "wan", "hidream"]
DIFFUSERS = {"signal": "latents", "power": 3.0}


class TestFilter:
    def test_gains_of_one_axis(self):
        """Four values: frequencies 0, 1/4, 1/2 with power 2 have S = 1e16, 16, 4; a = 0.6, b = 0.8."""
        a, b = 0.6, 0.8
        gains = torch.tensor([1 / a, a * 16 / (a * a * 16 + b * b), a * 4 / (a * a * 4 + b * b)])
        mean = (gains[0] + 2 * gains[1] + gains[2]) / 4
        constant = torch.ones(4)
        wave, fast = torch.tensor([1.0, 0.0, -1.0, 0.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
        for signal, gain in zip((constant, wave, fast), gains / mean, strict=True):
            found = wiener_filter(signal.view(1, 1, 4), a, b, power=2.0)
            assert torch.allclose(found, gain * signal.view(1, 1, 4), atol=1e-5)

    def test_is_the_product_over_the_axes(self):
        x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
        both = wiener_filter(x, 0.3, 0.7, power=2.0)
        columns = wiener_filter(x.reshape(2, 15, 4), 0.3, 0.7, power=2.0).view_as(x)
        rows = wiener_filter(columns.movedim(2, 3).reshape(2, 12, 5), 0.3, 0.7, power=2.0)
        assert torch.allclose(both, rows.view(2, 3, 4, 5).movedim(2, 3), atol=1e-5)

    def test_much_noise_leaves_coarse_content_alone(self):
        fast = torch.tensor([1.0, -1.0] * 4).view(1, 1, 8)
        late, early = (wiener_filter(fast, 1 - noise, noise, power=2.0).abs().max() for noise in (0.02, 0.98))
        assert late > 0.99
        assert early < 0.02

    def test_both_ends_of_the_noise_are_finite(self):
        for noise in (0.0, 1.0):
            assert wiener_filter(torch.ones(1, 1, 3, 3), 1 - noise, noise, power=3.0).isfinite().all()

    def test_change_is_the_mean_over_samples(self):
        old = torch.tensor([[[1.0, 1.0]], [[10.0, 10.0]]])
        new = torch.tensor([[[1.5, 0.5]], [[11.0, 11.0]]])
        assert relative_change(new, old) == pytest.approx((0.5 + 0.1) / 2)
        assert relative_change(torch.full_like(old, math.inf), old) == math.inf


class TestRule:
    def decide(self, method, values):
        full_steps = []
        sigmas = torch.linspace(0.9, 0.1, len(values), dtype=torch.float64)
        given = Inputs(None, torch.zeros(1, 1, 2, 2), torch.arange(len(values)), sigmas=sigmas)
        for step, value in enumerate(values):
            latents = torch.full((1, 1, 2, 2), value)
            parts = Parts(latents=latents, modulated=None, enter=None, walk=None, leave=None)
            if method.decide(Look(given, step, len(values), full_steps, parts)):
                full_steps.append(step)
        return full_steps

    def constant(self, values):
        """What a constant image is filtered to: the gain of frequency 0 over the mean gain, times its value."""
        sigmas = torch.linspace(0.9, 0.1, len(values), dtype=torch.float64).tolist()
        images = [torch.full((1, 1, 2, 2), value) for value in values]
        return [wiener_filter(x, 1 - s, s, power=2.0).mean().item() for x, s in zip(images, sigmas, strict=True)]

    def test_changes_add_up(self):
        values = [1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.7, 1.8]
        seen = self.constant(values)
        expected, total = [0], 0.0
        for step in range(1, len(values)):
            total += abs(seen[step] - seen[step - 1]) / seen[step - 1]
            if total >= 0.3 or step == len(values) - 1:
                expected.append(step)
                total = 0.0
        assert 2 < len(expected) < len(values)
        assert self.decide(SeaCache(threshold=0.3, signal="latents"), values) == expected

    def test_forced_steps_and_the_most_in_a_row(self):
        free = {"threshold": 1e6, "signal": "latents"}
        values = [1.0] * 10
        assert self.decide(SeaCache(**free), values) == [0, 9]
        assert self.decide(SeaCache(**free, cache_end_steps=0), values) == [0]
        assert self.decide(SeaCache(**free, retention_steps=3, cache_end_steps=2), values) == [0, 1, 2, 8, 9]
        assert self.decide(SeaCache(**free, max_consecutive=2), values) == [0, 3, 6, 9]

    def test_order_1_continues_the_line_of_the_last_two_full_steps(self):
        method = SeaCache(residual_order=1)
        assert method.weights((0,), 1) == [1.0]
        assert method.weights((0, 3, 5), 7) == pytest.approx([-1.0, 2.0])
        assert SeaCache().weights((0, 3, 5), 7) == [1.0]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"threshold": -0.1}, "threshold = -0.1 must be at least 0"),
            ({"power": -1.0}, "power = -1.0 must be at least 0"),
            ({"signal": "tokens"}, "signal 'tokens' is unknown"),
            ({"retention_steps": -1}, "retention_steps = -1 must be"),
            ({"max_consecutive": -1}, "max_consecutive = -1 must be"),
        ],
    )
    def test_what_is_wrong_is_named(self, settings, message):
        with pytest.raises(UserError, match=message):
            make_cache("seacache", **settings)

    def test_rows_of_images_and_videos(self):
        assert make_cache("seacache", preset="flux", model="flux-dev").schedule_values["power"] == 2
        video = make_cache("seacache", preset="wan", model="wan-t2v-14B").schedule_values
        assert (video["threshold"], video["power"]) == (0.2, 3)


class TestRuns:
    @pytest.mark.parametrize("name", NETWORKS)
    @pytest.mark.parametrize("signal", ["modulated", "latents"])
    def test_threshold_0_is_the_uncached_run_and_a_large_one_skips(self, name, signal):
        loop = reference.open_loop(name, 5)
        expected = reference.play(name, loop, make_cache("uncached"))[1]
        runs, outputs = reference.play(name, loop, make_cache("seacache", threshold=0.0, signal=signal))
        assert [run.full_steps for run in runs] == [[0, 1, 2, 3, 4]] * len(runs)
        assert all(torch.equal(a, b) for a, b in zip(outputs, expected, strict=True))
        runs, outputs = reference.play(name, loop, make_cache("seacache", threshold=1e6, signal=signal))
        assert [run.full_steps for run in runs] == [[0, 4]] * len(runs)
        assert all(run.steps[2]["accumulated"] > run.steps[1]["accumulated"] > 0 for run in runs[:1])

    @pytest.mark.parametrize("name", ["wan", "hunyuan_video"])
    def test_latents_are_those_of_the_run_and_not_patches(self, name):
        """The record's change is that of the image, which a filter over patches does not give."""
        loop = reference.open_loop(name, 3)
        (run, *_), _ = reference.play(name, loop, make_cache("seacache", **DIFFUSERS))
        first, second = (
            wiener_filter(x, 1 - s, s, power=3.0) for x, s in zip(loop.latents[:2], loop.sigmas.tolist(), strict=False)
        )
        assert run.steps[1]["change"] == pytest.approx(relative_change(second, first), rel=1e-4)

    def test_state_is_of_one_run(self):
        cache = make_cache("seacache", threshold=0.6)
        loop = reference.open_loop("flux", 12)
        (first,), outputs = reference.play("flux", loop, cache)
        (second,), again = reference.play("flux", loop, cache)
        assert first.steps == second.steps
        assert 1 < len(first.full_steps) < 12
        assert torch.equal(outputs[0], again[0])

    @pytest.mark.parametrize("num_steps", [20, 30])
    @pytest.mark.parametrize("threshold", [0.1, 0.25, 0.5, 1.0])
    @pytest.mark.parametrize(("order", "most"), [(1, 2), (0, 0)])
    def test_is_that_of_diffusers(self, need, num_steps, threshold, order, most):
        diffusers = need("diffusers")
        from reference import side_by_side

        loop = reference.open_loop("wan", num_steps)
        config = diffusers.SeaCacheConfig(threshold=threshold, residual_order=order, max_consecutive_cached=most)
        played = side_by_side.play_hook("wan", loop, config)
        settings = {"threshold": threshold, "residual_order": order, "max_consecutive": most or None}
        runs, outputs = reference.play("wan", loop, make_cache("seacache", **settings, **DIFFUSERS))
        assert [run.full_steps for run in runs] == played.full_steps
        for ours, theirs in zip(outputs, played.outputs, strict=True):
            assert (ours - theirs).abs().max() <= 1e-4
