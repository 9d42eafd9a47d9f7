"""Wan2.1's sampler against diffusers' schedulers, its guidance, and both branches under the cache over whole runs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cache_dic import ENGINES, Cache, UserError, make_cache
from cache_dic.engine import FactoredEngine, FoldedEngine
from seerkit.layers.patches import patchify
from wan import Sampler, Wan, sample
from wan.schedule import sampling_timesteps

N5 = {"interval": 5, "max_order": 1, "warmup_steps": 1}
SCHEDULES = {
    "N5 O1 W1": N5,
    "N5 O1 W3": N5 | {"warmup_steps": 3},
    "N5 O3 W1": N5 | {"max_order": 3},
    "N3 O1 W1": N5 | {"interval": 3},
    "irregular": {"full_steps": [0, 1, 4, 5, 11, 13, 30, 31, 44], "max_order": 2},
}
FORMS = {
    "by step": {"engine_settings": {"factored": False}},
    "factored": {"engine_settings": {"factored": True}},
    "layerwise": {"engine": "layerwise"},
}


def cache_of(form: str, settings: dict) -> Cache:
    """A cache whose folded engine keeps what `form` says."""
    given = dict(FORMS[form])
    changes = given.pop("engine_settings", {})
    cache = make_cache(**settings, **given)
    return replace(cache, engine_settings=replace(cache.engine_settings, **changes))


class Field(Wan):
    """A fixed function of latents, time and text instead of blocks; elementwise, so that it holds for videos, too."""

    def velocity(self, patches, grid, t, context, clip_fea=None, y=None, *, cache):
        cache(self.tokens(patches), lambda site: self.touch(site, patches), None)
        return self.field(patches, t, context.sum((1, 2)))

    def touch(self, site, x: Tensor) -> Tensor:
        for _ in range(self.tokens(x).num_sites):
            x = site(x, None, torch.zeros_like(x))
        return x

    @staticmethod
    def field(x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        t, text = (v.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for v in (t, text))
        return torch.sin(3 * x) * (1 + t / 1000) - 0.1 * text * x


def guided_field(x: Tensor, t: Tensor, texts: list[Tensor], negative: list[Tensor], guidance: float) -> Tensor:
    """What the sampler is to make of `Field`: the negative answer, and the difference to the other times the weight."""
    with_text, without = (Field.field(x, t, torch.stack([text.sum() for text in part])) for part in (texts, negative))
    return without + guidance * (with_text - without)


@pytest.fixture
def field(t2v) -> Field:
    return Field(t2v).eval().requires_grad_(False)


class TestTrajectories:
    def check(self, field, given, scheduler, solver: str, num_steps: int, shift: float) -> None:
        """Every step of both loops on the official levels, which are not those of diffusers, within 1e-5 of the largest."""
        scheduler.sigmas = Sampler(field, num_steps, solver=solver, shift=shift).sigmas.float()
        call, states = given(torch.float32), []
        settings = {"solver": solver, "shift": shift, "guidance_scale": 3.0}
        latents = sample(field, **call, num_steps=num_steps, **settings, callback=lambda *at: states.append(at))
        assert [step for step, _ in states] == list(range(num_steps))
        assert torch.equal(states[-1][1], latents)
        x, timesteps = call["noise"], sampling_timesteps(Sampler(field, num_steps, solver=solver, shift=shift).sigmas)
        for t, at, (_, state) in zip(timesteps, scheduler.timesteps, states, strict=True):
            velocity = guided_field(x, t.expand(2), call["context"], call["negative"], 3.0)
            x = scheduler.step(velocity, at, x, return_dict=False)[0]
            assert (state - x).abs().max() <= 1e-5 * x.abs().max()

    @pytest.mark.parametrize(("num_steps", "shift"), [(50, 5.0), (40, 3.0), (3, 5.0), (1, 3.0)])
    @pytest.mark.parametrize(("solver", "name"), [("unipc", "UniPCMultistep"), ("dpm++", "DPMSolverMultistep")])
    def test_loop_of_diffusers_pipeline(self, need, field, given, solver, name, num_steps, shift):
        make = getattr(need("diffusers"), f"{name}Scheduler")
        scheduler = make(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        scheduler.set_timesteps(num_steps)
        self.check(field, given, scheduler, solver, num_steps, shift)

    def test_euler_is_diffusers(self, need, field, given):
        scheduler = need("diffusers").FlowMatchEulerDiscreteScheduler(shift=5.0)
        scheduler.set_timesteps(20)
        self.check(field, given, scheduler, "euler", 20, 5.0)


class TestGuidance:
    def test_formula_by_hand(self, field):
        answers = torch.tensor([[2.0], [3.0], [1.0], [5.0]])
        assert Sampler(field, 1, guidance_scale=4.0).combine(answers).tolist() == [[5.0], [-3.0]]
        assert torch.equal(Sampler(field, 1, guidance_scale=1.0).combine(answers), answers)

    def test_one_makes_no_second_branch(self, random_model, given):
        model, call = random_model(torch.float32), given(torch.float32)
        latents, branches = Sampler(model, 3, guidance_scale=1).run(**call)
        assert len(branches.runs) == branches.record()["branches"] == 1
        assert torch.equal(latents, sample(model, call["noise"], call["context"], num_steps=3, guidance_scale=1))

    def test_weight_zero_is_the_negative_text_alone(self, random_model, given):
        model, call = random_model(), given()
        without = sample(model, call["noise"], call["negative"], num_steps=4, guidance_scale=1)
        zero = sample(model, **call, num_steps=4, guidance_scale=0)
        torch.testing.assert_close(zero, without, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("cached", [False, True])
    @pytest.mark.parametrize("kind", ["t2v", "i2v"])
    def test_batched_is_unbatched(self, random_model, given, t2v, i2v, kind, cached):
        config = {"t2v": t2v, "i2v": i2v}[kind]
        model, call, cache = random_model(config=config), given(config=config), make_cache(**N5) if cached else None
        apart, together = (Sampler(model, 12, batched=batched).run(**call, cache=cache) for batched in (False, True))
        torch.testing.assert_close(together[0], apart[0], rtol=0, atol=1e-12 * apart[0].abs().max().item())
        assert [len(run.runs) for _, run in (apart, together)] == [2, 1]
        assert apart[1].record()["kept_bytes"] == together[1].record()["kept_bytes"]


class TestCached:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_all_forms_are_one_over_a_sampling_run(self, random_model, given, t2v, schedule):
        """Both branches of 50 steps: accumulators by step, by full step and by site."""
        model = random_model(config=replace(t2v, num_layers=2))
        call = given()
        states = {}
        for form in FORMS:
            states[form], run = Sampler(model, 50, guidance_scale=3.0).run(
                **call, cache=cache_of(form, SCHEDULES[schedule])
            )
            factored = {type(branch.engine) is FactoredEngine for branch in run.runs}
            assert factored == {form == "factored"}
        scale = states["layerwise"].abs().max()
        for form in ("by step", "factored"):
            assert (states[form] - states["layerwise"]).abs().max() <= 1e-12 * scale, form
        uncached = sample(model, **call, guidance_scale=3.0)
        assert 1e-9 * scale < (states["by step"] - uncached).abs().max() <= 0.2 * scale

    def test_image_to_video(self, random_model, given, i2v):
        model, call = random_model(config=i2v), given(config=i2v)
        states = [sample(model, **call, num_steps=12, cache=cache_of(form, N5)) for form in FORMS]
        for state in states[:2]:
            assert (state - states[2]).abs().max() <= 1e-12 * states[2].abs().max()

    @pytest.mark.parametrize(
        ("warmup_steps", "full_steps"), [(1, list(range(0, 50, 5))), (3, [0, 1, *range(2, 50, 5)])]
    )
    def test_full_steps_and_sites(self, random_model, given, warmup_steps, full_steps):
        cache = make_cache(**N5 | {"warmup_steps": warmup_steps})
        _, branches = Sampler(random_model(torch.float32), 50).run(**given(torch.float32), cache=cache)
        for run in branches.runs:
            assert run.record()["full_steps"] == full_steps
        assert branches.record()["full_steps"] == full_steps
        assert branches.record()["sites"] == 9, "self-attention, cross-attention, MLP of three blocks"

    @pytest.mark.parametrize("engine", ENGINES)
    def test_interval_one_is_the_uncached_run_to_the_bit(self, random_model, given, engine):
        model, call = random_model(torch.float32), given(torch.float32)
        cache = make_cache(interval=1, warmup_steps=1, engine=engine)
        assert torch.equal(sample(model, **call, num_steps=7, cache=cache), sample(model, **call, num_steps=7))

    @pytest.mark.parametrize("form", FORMS)
    def test_branches_never_mix(self, random_model, given, form, monkeypatch):
        """Were only the answers with the text used, the run would be that without the other branch, to the bit."""
        model, call, cache = random_model(torch.float32), given(torch.float32), cache_of(form, N5)
        alone = sample(model, call["noise"], call["context"], num_steps=12, guidance_scale=1, cache=cache)
        guided = sample(model, **call, num_steps=12, cache=cache)
        assert not torch.equal(guided, alone)
        monkeypatch.setattr(Sampler, "combine", lambda self, answers: answers.chunk(2)[0])
        assert torch.equal(sample(model, **call, num_steps=12, cache=cache), alone)
        monkeypatch.setattr(Sampler, "combine", lambda self, answers: answers.chunk(2)[1])
        alone = sample(model, **call | {"context": call["negative"]}, num_steps=12, cache=cache)
        assert torch.equal(sample(model, **call, num_steps=12, cache=cache), alone)

    @pytest.mark.parametrize("form", FORMS)
    def test_every_video_begins_with_fresh_caches(self, random_model, given, form):
        model, call, cache = random_model(torch.float32), given(torch.float32), cache_of(form, N5)
        sampler = Sampler(model, 12)
        first, _ = sampler.run(**call, cache=cache)
        sampler.run(**call | {"noise": -call["noise"]}, cache=cache)
        again, _ = sampler.run(**call, cache=cache)
        assert torch.equal(first, again)

    @pytest.mark.parametrize(
        ("interval", "form", "sums"), [(5, FactoredEngine, 6), (4, FoldedEngine, 6), (3, FoldedEngine, 4)]
    )
    def test_the_form_that_keeps_less_is_chosen(self, random_model, given, interval, form, sums):
        """Of order 1: twice interval - 1 sums by step, or 3 of each of two full steps."""
        model, call = random_model(torch.bfloat16), given(torch.float32)
        cache = make_cache(**N5 | {"interval": interval})
        _, branches = Sampler(model, 12).run(**call, cache=cache)
        size = 2 * 30 * 48 * 4  # of one sum, in float32
        assert [type(run.engine) for run in branches.runs] == [form] * 2
        assert [run.kept_bytes for run in branches.runs] == [sums * size] * 2
        assert branches.record()["kept_bytes"] == 2 * sums * size
        tokens = model.tokens(call["noise"])
        assert cache.kept_bytes(12, tokens)["folded"] == sums * size

    def test_samples_do_not_depend_on_the_batch(self, random_model, given, i2v):
        model, call, cache = random_model(config=i2v), given(config=i2v), make_cache(**N5)
        together = sample(model, **call, num_steps=12, cache=cache)
        for row in range(2):
            alone = sample(model, **{k: v[row : row + 1] for k, v in call.items()}, num_steps=12, cache=cache)
            torch.testing.assert_close(alone[0], together[row], rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_models_sample(self, random_model, given, dtype):
        call, cache = given(torch.float32), make_cache(**N5)
        exact, rounded = (sample(random_model(d), **call, num_steps=20, cache=cache) for d in (torch.float32, dtype))
        assert rounded.dtype == torch.float32
        assert (rounded - exact).abs().max() <= 0.05 * exact.abs().max()

    def test_the_run_announces_itself(self, random_model, given, i2v, caplog):
        """Which counts operations by the patches that the model is given."""
        caplog.set_level("INFO", logger="cache_dic")
        call = given(torch.float32, i2v)
        _, run = Sampler(random_model(torch.bfloat16, i2v), 12).run(**call, cache=make_cache(**N5))
        said = "3 of 12 steps full (0 5 10), weights up to 1.8, 9 sites of 2x30x48"
        lines = [message for message in caplog.messages if said in message]
        assert len(lines) == 2
        kept = run.record()["kept_bytes"]
        assert kept == 2 * run.runs[0].kept_bytes
        assert all(f"keeps {kept / 2**20:.1f} MiB, " in line for line in lines), "that of both branches"
        assert all("fewer FLOPs expected" in line for line in lines)


def test_a_model_that_was_not_cast_by_its_own_method_is_refused(random_model, given):
    model = random_model(torch.float32).to(torch.bfloat16)
    with pytest.raises(UserError, match=r"needs its modulation in torch.float32; bring it there by model.cast"):
        sample(model, **given(torch.float32), num_steps=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("solver", ["unipc", "dpm++", "euler"])
def test_latents_keep_the_dtype_of_the_noise(random_model, given, solver, dtype):
    """And are computed in float32 at least, from the first step on."""
    model, call = random_model(torch.float32), given(torch.float32)
    call["noise"] = call["noise"].to(dtype)
    result = sample(model, **call, num_steps=4, solver=solver)
    assert result.dtype == dtype
    assert result.shape == call["noise"].shape
    if dtype == torch.bfloat16:
        full = sample(model, **call | {"noise": call["noise"].float()}, num_steps=4, solver=solver)
        assert torch.equal(result, full.to(dtype))


def test_callback_gets_videos(random_model, given):
    call, seen = given(torch.float32), []
    sample(random_model(torch.float32), **call, num_steps=2, callback=lambda step, x: seen.append((step, x.shape)))
    assert seen == [(0, call["noise"].shape), (1, call["noise"].shape)]


class TestErrors:
    def test_settings_out_of_range(self, field):
        with pytest.raises(ValueError, match=r"unknown solver 'heun'; choose from unipc, dpm\+\+, euler"):
            Sampler(field, solver="heun")
        for num_steps in (0, -1):
            with pytest.raises(ValueError, match=f"num_steps = {num_steps} must be an integer of at least 1"):
                Sampler(field, num_steps)
        with pytest.raises(ValueError, match="shift 0"):
            Sampler(field, shift=0)

    def test_texts(self, field, given):
        call = given(torch.float32)
        with pytest.raises(ValueError, match=r"guidance_scale = 5\.0 needs a negative text; an empty one will do"):
            sample(field, call["noise"], call["context"])
        for name in ("context", "negative"):
            with pytest.raises(ValueError, match="2 samples need as many texts, got 1"):
                sample(field, **call | {name: call[name][:1]})
        with pytest.raises(ValueError, match=r"a text of shape \(12, 10\) does not fit; at most \(9, 10\)"):
            sample(field, **call | {"negative": torch.zeros(2, 12, 10)})

    def test_latents(self, field, given):
        call = given(torch.float32)
        with pytest.raises(ValueError, match=r"latents of shape \(2, 3, 4, 3, 15\) do not fit a model for \(B, 4, T"):
            sample(field, **call | {"noise": call["noise"][:, :3]})
        with pytest.raises(ValueError, match="latents of 4 x 3 x 14 cannot be cut into patches of 2 x 1 x 3"):
            sample(field, **call | {"noise": call["noise"][..., :14]})
        with pytest.raises(ValueError, match="warmup_steps = 9"):
            sample(field, **call, num_steps=5, cache=make_cache(warmup_steps=9))

    @pytest.mark.parametrize("name", ["clip_fea", "y"])
    def test_image_conditions(self, field, random_model, given, i2v, name):
        call = given(torch.float32, i2v)
        with pytest.raises(ValueError, match=f"this model takes no {name}"):
            sample(field, **given(torch.float32), **{name: call[name]})
        model = random_model(torch.float32, i2v)
        with pytest.raises(ValueError, match=f"{name} of shape .* must be"):
            sample(model, **call | {name: call[name][:1]})
        del call[name]
        with pytest.raises(ValueError, match=f"this model needs {name}"):
            sample(model, **call)


def test_patches_of_the_field_are_the_field_of_the_video(t2v, given):
    """What the trajectories above rest on."""
    x = given(torch.float32)["noise"]
    t, text = torch.tensor([500, 20]), torch.tensor([0.3, -1.0])
    assert torch.equal(
        Field.field(patchify(x, t2v.patch_size), t, text), patchify(Field.field(x, t, text), t2v.patch_size)
    )
