"""HiDream-I1's samplers against diffusers' schedulers, guidance, noise, and whole cached runs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cache_dic import ENGINES, make_cache
from hidream import HiDream, Sampler, sample
from seerkit.sampling.seeds import SampleGenerators

N4 = {"interval": 4, "max_order": 1, "warmup_steps": 1}
TEXTS = ("t5", "llama", "pooled")


class Field(HiDream):
    """A fixed function of latents, time and text instead of blocks; its answers are negated, as HiDream's are."""

    def forward(self, hidden_states, timesteps, t5, llama, pooled, *, cache):
        cache(self.tokens(hidden_states), lambda site: self.touch(site, hidden_states), None)
        return -self.velocity(hidden_states, timesteps, (t5, llama, pooled))

    def touch(self, site, x: Tensor) -> Tensor:
        for _ in range(self.tokens(x).num_sites):
            x = site(x, None, torch.zeros_like(x))
        return x

    @staticmethod
    def velocity(x: Tensor, t: Tensor, texts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        t5, llama, pooled = texts
        text = t5.mean((1, 2)) + llama.mean((0, 2, 3)) + pooled.mean(1)
        t, text = (value.to(x.dtype).reshape(-1, 1, 1, 1) for value in (t, text))
        return torch.sin(3 * x) * (1 + t / 1000) - 0.3 * text * x


@pytest.fixture
def field(tiny) -> Field:
    return Field(tiny).eval().requires_grad_(False)


@pytest.fixture
def states():
    """`states(model, call, **settings)`: the latents after every step of a run."""

    def trajectory(model: HiDream, call: dict, num_steps: int, **settings) -> list[Tensor]:
        seen = []
        result = sample(model, **call, num_steps=num_steps, **settings, callback=lambda *at: seen.append(at))
        assert [step for step, _ in seen] == list(range(num_steps))
        assert torch.equal(seen[-1][1], result)
        return [x for _, x in seen]

    return trajectory


def unguided(call: dict) -> dict:
    return {name: value for name, value in call.items() if name != "negative"}


def texts_of(call: dict) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(call[name] for name in TEXTS)


class TestTrajectories:
    @pytest.mark.parametrize("num_steps", [50, 3, 1])
    def test_unipc_is_diffusers(self, need, field, given, states, num_steps):
        """On the official levels, which are not those that diffusers' scheduler makes; with guidance."""
        scheduler = need("diffusers").UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=2, solver_type="bh2"
        )
        scheduler.set_timesteps(num_steps)
        sampler, call = Sampler(field, num_steps), given(torch.float32)
        scheduler.sigmas = sampler.sigmas.float()
        x = call["noise"]
        answers = states(field, call, num_steps, guidance_scale=3.0)
        for t, at, state in zip(sampler.timesteps, scheduler.timesteps, answers, strict=True):
            with_text, without = (field.velocity(x, t, texts) for texts in (texts_of(call), call["negative"]))
            x = scheduler.step(without + 3 * (with_text - without), at, x, return_dict=False)[0]
            assert (state - x).abs().max() <= 1e-5 * x.abs().max()

    @pytest.mark.parametrize(("num_steps", "shift"), [(28, 6.0), (16, 3.0), (2, 6.0)])
    def test_flash_is_diffusers_but_for_the_last_step(self, need, field, given, states, num_steps, shift):
        """Noise from the same generators. diffusers ends on the data prediction, the official scheduler, followed here,
        leaves the sample where it was."""
        scheduler = need("diffusers").FlowMatchLCMScheduler(shift=shift)
        scheduler.set_timesteps(num_steps)
        call = unguided(given(torch.float32))
        settings = {"solver": "flash", "shift": shift, "guidance_scale": 1.0, "generators": SampleGenerators(5, [0, 1])}
        answers = states(field, call, num_steps, **settings)
        x, generators = call["noise"], SampleGenerators(5, [0, 1]).generators
        for t, state in zip(scheduler.timesteps[:-1], answers, strict=False):
            velocity = field.velocity(x, t, texts_of(call))
            x = scheduler.step(velocity, t, x, generator=generators, return_dict=False)[0]
            assert (state - x).abs().max() <= 1e-5 * x.abs().max()
        assert torch.equal(answers[-1], answers[-2])
        velocity = field.velocity(x, scheduler.timesteps[-1], texts_of(call))
        ended = scheduler.step(velocity, scheduler.timesteps[-1], x, generator=generators, return_dict=False)[0]
        assert (ended - answers[-1]).abs().max() > 1e-3

    def test_flash_by_hand(self, field, given, states):
        """x0 = x - sigma v, then (1 - sigma') x0 + sigma' noise."""
        field, call = field.double(), unguided(given())
        settings = {"solver": "flash", "shift": 3.0, "guidance_scale": 0.0, "generators": SampleGenerators(5, [0, 1])}
        first, last = states(field, call, 2, **settings)
        sampler = Sampler(field, 2, solver="flash", shift=3.0)
        sigma, after = sampler.sigmas[:2]
        noise = SampleGenerators(5, [0, 1]).randn(*call["noise"].shape[1:], dtype=torch.float64)
        x0 = call["noise"] - sigma * field.velocity(call["noise"], sampler.timesteps[0], texts_of(call))
        torch.testing.assert_close(first, (1 - after) * x0 + after * noise, rtol=1e-12, atol=1e-12)
        assert torch.equal(last, first)

    def test_levels_follow_the_positions_of_the_model(self, field, tiny):
        """The second shift of UniPC is that of the largest image."""
        larger = Field(replace(tiny, max_resolution=(128, 128)))
        assert Sampler(larger).timesteps[25] == 759
        assert (Sampler(larger).sigmas - Sampler(field).sigmas).abs().max() > 0.1


class TestGuidance:
    def test_output_is_negated_and_the_negative_text_comes_first(self, field, given):
        answers = torch.tensor([[2.0], [3.0], [1.0], [5.0]])
        assert Sampler(field, guidance_scale=4.0)._velocity(answers, guided=True).tolist() == [[2.0], [-11.0]]
        assert Sampler(field, guidance_scale=1.0)._velocity(answers, guided=False).tolist() == [
            [-2.0],
            [-3.0],
            [-1.0],
            [-5.0],
        ]

    def test_both_branches_are_one_batch(self, field, given, monkeypatch):
        call, seen = given(torch.float32), []
        forward = Field.forward
        monkeypatch.setattr(
            Field,
            "forward",
            lambda self, *given, **named: (seen.append((given, named)), forward(self, *given, **named))[1],
        )
        sample(field, **call, num_steps=2)
        assert len(seen) == 2
        for (latents,), named in seen:
            assert torch.equal(*latents.chunk(2))
            assert len(named["timesteps"]) == 4
            for name, negative, dim in zip(TEXTS, call["negative"], (0, 1, 0), strict=True):
                assert torch.equal(named[name], torch.cat([negative, call[name]], dim))

    @pytest.mark.parametrize("guidance", [1.0, 0.0])
    def test_up_to_one_makes_no_second_branch(self, random_model, shallow, given, guidance):
        model, call = random_model(torch.float32, shallow), given(torch.float32)
        latents, run = Sampler(model, 3, guidance_scale=guidance).run(**call)
        assert run.tokens.batch == 2
        assert torch.equal(latents, sample(model, **unguided(call), num_steps=3, guidance_scale=1.0))

    def test_branches_never_mix(self, random_model, shallow, given, monkeypatch):
        """Were only one branch's answers used, the run would be that without the other."""
        model, call, cache = random_model(config=shallow), given(), make_cache(**N4)
        others = unguided(call) | dict(zip(TEXTS, call["negative"], strict=True))
        for branch, texts in enumerate((others, unguided(call))):
            alone = sample(model, **texts, num_steps=9, guidance_scale=1.0, cache=cache)
            monkeypatch.setattr(Sampler, "_velocity", lambda self, x, guided, branch=branch: -x.chunk(2)[branch])
            together = sample(model, **call, num_steps=9, cache=cache)
            monkeypatch.undo()
            torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-10)


class TestNoise:
    @pytest.mark.parametrize("cached", [False, True])
    def test_samples_do_not_depend_on_the_batch(self, random_model, shallow, given, cached):
        """Each draws its steps' noise from a generator of its own."""
        model, call, cache = random_model(config=shallow), unguided(given()), make_cache(**N4) if cached else None
        settings = {"solver": "flash", "shift": 6.0, "guidance_scale": 1.0, "cache": cache, "num_steps": 12}
        together = sample(model, **call, **settings, generators=SampleGenerators(5, [3, 8]))
        for row, index in enumerate((3, 8)):
            mine = {name: value.narrow(1 if name == "llama" else 0, row, 1) for name, value in call.items()}
            alone = sample(model, **mine, **settings, generators=SampleGenerators(5, [index]))
            torch.testing.assert_close(alone[0], together[row], rtol=1e-10, atol=1e-10)

    def test_seed_decides(self, random_model, shallow, given):
        model, call = random_model(torch.float32, shallow), unguided(given(torch.float32))
        first, again, other = (
            sample(
                model,
                **call,
                num_steps=4,
                solver="flash",
                guidance_scale=1.0,
                generators=SampleGenerators(seed, [0, 1]),
            )
            for seed in (5, 5, 6)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestCached:
    @pytest.mark.parametrize("warmup_steps", [1, 3])
    @pytest.mark.parametrize("max_order", [1, 2])
    @pytest.mark.parametrize("grid", [(3, 3), (2, 5)], ids=str)
    def test_folded_is_layerwise_over_a_sampling_run(self, random_model, shallow, given, grid, max_order, warmup_steps):
        """50 steps of UniPC with guidance."""
        model, call = random_model(config=shallow), given(grid=grid)
        settings = N4 | {"max_order": max_order, "warmup_steps": warmup_steps}
        folded, layerwise = (
            sample(model, **call, cache=make_cache(engine=engine, **settings)) for engine in ("folded", "layerwise")
        )
        assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()

    def test_forecasts_stay_near_the_uncached_run(self, random_model, shallow, given):
        model, call = random_model(config=shallow), given()
        cached, uncached = (sample(model, **call, cache=cache) for cache in (make_cache(**N4), None))
        assert 1e-6 < (cached - uncached).abs().max() / uncached.abs().max() < 0.5

    @pytest.mark.parametrize(
        ("warmup_steps", "full_steps"), [(1, list(range(0, 50, 4))), (3, [0, 1, *range(2, 50, 4)])]
    )
    def test_full_steps_and_sites(self, random_model, shallow, given, warmup_steps, full_steps):
        cache = make_cache(**N4 | {"warmup_steps": warmup_steps, "max_order": 2})
        _, run = Sampler(random_model(torch.float32, shallow)).run(**given(torch.float32), cache=cache)
        assert run.record()["full_steps"] == full_steps
        assert run.record()["sites"] == 2 * 1 + 2 * 2, "attention and feed-forward; the text stream has no sites"

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("grid", [(3, 3), (2, 5)], ids=str)
    def test_interval_one_is_the_uncached_run_to_the_bit(self, random_model, shallow, given, engine, grid):
        model, call = random_model(torch.float32, shallow), given(torch.float32, grid)
        cache = make_cache(interval=1, warmup_steps=1, engine=engine)
        assert torch.equal(sample(model, **call, num_steps=7, cache=cache), sample(model, **call, num_steps=7))

    def test_every_run_begins_with_a_fresh_cache(self, random_model, shallow, given):
        call, cache = given(torch.float32), make_cache(**N4)
        sampler = Sampler(random_model(torch.float32, shallow), 9)
        first, _ = sampler.run(**call, cache=cache)
        sampler.run(**call | {"noise": -call["noise"]}, cache=cache)
        again, _ = sampler.run(**call, cache=cache)
        assert torch.equal(first, again)

    def test_guided_run_keeps_both_branches(self, random_model, shallow, given):
        cache, model, call = make_cache(**N4), random_model(config=shallow), given()
        runs = [Sampler(model, 9, guidance_scale=guidance).run(**call, cache=cache)[1] for guidance in (1.0, 5.0)]
        assert runs[1].kept_bytes == 2 * runs[0].kept_bytes == 2 * (6 * 2 * 9 * 48 * 8)


@pytest.mark.parametrize("solver", ["unipc", "flash"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_latents_keep_the_dtype_of_the_noise(random_model, shallow, given, solver, dtype):
    """And are computed in float32 at least, from the first step on."""
    model, call = random_model(torch.float32, shallow), given(torch.float32)
    call["noise"] = call["noise"].to(dtype)

    def draw(noise: Tensor) -> Tensor:
        settings = {"num_steps": 4, "solver": solver, "generators": SampleGenerators(5, [0, 1])}
        return sample(model, **call | {"noise": noise}, **settings)

    result = draw(call["noise"])
    assert result.dtype == dtype
    assert result.shape == call["noise"].shape
    if dtype == torch.bfloat16:
        assert torch.equal(result, draw(call["noise"].float()).to(dtype))


class TestErrors:
    def test_settings_out_of_range(self, field):
        with pytest.raises(ValueError, match="unknown solver 'euler'; choose from unipc, flash"):
            Sampler(field, solver="euler")
        for num_steps in (0, -1):
            with pytest.raises(ValueError, match=f"num_steps = {num_steps} must be an integer of at least 1"):
                Sampler(field, num_steps)
        with pytest.raises(ValueError, match="shift -1"):
            Sampler(field, shift=-1)

    def test_guidance_needs_a_negative_text(self, field, given):
        with pytest.raises(
            ValueError, match=r"guidance_scale = 5\.0 needs a negative text; an empty one will do, or use 1"
        ):
            sample(field, **unguided(given(torch.float32)))

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("noise", (2, 4, 6, 6), r"hidden_states of shape \(2, 4, 6, 6\) must be \(B, 5, H, W\)"),
            ("noise", (2, 5, 6, 10), r"\(2, 5, 6, 10\) have more than the 12 tokens"),
            ("t5", (1, 5, 20), r"t5 of shape \(1, 5, 20\) must be \(2, any, 20\)"),
            ("llama", (6, 1, 7, 14), r"llama of shape \(6, 1, 7, 14\) must be \(any, 2, any, 14\)"),
            ("pooled", (1, 10), r"pooled of shape \(1, 10\) must be \(2, 10\)"),
        ],
    )
    def test_bad_shapes_are_named(self, field, given, name, shape, message):
        with pytest.raises(ValueError, match=message):
            sample(field, **given(torch.float32) | {name: torch.zeros(shape)})

    @pytest.mark.parametrize(("number", "shape"), [(0, (2, 4, 20)), (1, (6, 3, 7, 14)), (2, (1, 10))])
    def test_negative_text_must_have_the_shape_of_the_text(self, field, given, number, shape):
        call = given(torch.float32)
        negative = list(call["negative"])
        negative[number] = torch.zeros(shape)
        with pytest.raises(ValueError, match=f"negative {TEXTS[number]} of shape .* must be .*, as the text"):
            sample(field, **call | {"negative": tuple(negative)})

    def test_cache_must_fit_the_steps(self, field, given):
        with pytest.raises(ValueError, match="warmup_steps = 9"):
            sample(field, **given(torch.float32), num_steps=5, cache=make_cache(warmup_steps=9))
