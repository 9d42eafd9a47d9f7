"""FasterCache and diffusers' form of it by hand: steps, extrapolation, bands, gains; what is left out costs nothing."""

import json
from types import SimpleNamespace

import pytest
import reference
import torch

from cache_dic import ATTENTION, CROSS, EVERYTHING, FUSED, METHODS, MLP, NOTHING, REST, UserError, make_cache
from cache_dic.look import Inputs, Look, Parts
from cache_dic.methods.fastercache import RECIPES, DiffusersFasterCache, FasterCache, low_frequencies
from cache_dic.partial import Kept
from seerkit.layers.patches import patchify
from seerkit.sampling.branches import Branches
from seerkit.sampling.flops import run_flops, sampling_flops

GUIDED = ("dit", "hidream", "wan")
NUM_STEPS = 20


def look(step: int, num_steps: int = 50, branches: int = 2, time: float = 0.0, leading=None) -> SimpleNamespace:
    return SimpleNamespace(
        step=step, num_steps=num_steps, branches=branches, training_time=time, leading=leading,
        image=lambda x: x, as_call=lambda x: x,
    )  # fmt: skip


def tables(method, num_steps: int, branches: int = 2, times: list[float] | None = None) -> tuple[list[int], list[int]]:
    """Counts, from 1, of steps that extrapolate attention, and of those that leave out a branch."""
    steps = [look(i, num_steps, branches, times[i] if times else 0.0) for i in range(num_steps)]
    is_full = [method.decide(at) or not at.step for at in steps]
    left_out = [method.conditional_alone(at) for at in steps]
    return [i + 1 for i, full in enumerate(is_full) if not full], [i + 1 for i, left in enumerate(left_out) if left]


# ---------------------------------------------------------------------------------------------------- when, as released


def test_steps_of_latte():
    """Even counts from 16 on; where both run it is skipped if the last that computed it had both: 16, and no multiple of 10."""
    attention, alone = tables(FasterCache(recipe="latte"), 50)
    assert alone == [count for count in range(18, 51) if count % 5]
    assert attention == [16, 18, 22, 24, 26, 28, 32, 34, 36, 38, 42, 44, 46, 48]


def test_steps_of_cogvideox():
    """Multiples of 3 compute from 18 on. Of both: 20 follows 18, which was alone, 25 follows 24, and so on."""
    attention, alone = tables(FasterCache(recipe="cogvideox"), 50)
    assert alone == [count for count in range(18, 51) if count % 5]
    assert attention == [count for count in range(18, 51) if count % 3 and count % 5]


def test_steps_of_open_sora_plan():
    """Branches apart from 40 on, but for multiples of 6; attention, but for multiples of 3, from 45 on."""
    attention, alone = tables(FasterCache(recipe="open_sora_plan"), 150)
    assert alone == [count for count in range(40, 151) if count % 6]
    assert attention == [count for count in range(45, 151) if count % 3]


@pytest.mark.parametrize("recipe", RECIPES)
def test_one_branch_has_the_attention_part_alone(recipe):
    released = RECIPES[recipe]
    attention, alone = tables(FasterCache(recipe=recipe), released.num_steps, branches=1)
    assert not alone
    assert attention[0] in (released.attention_from, released.attention_from + 1)
    assert all(count % released.attention_interval != released.attention_at for count in attention)


def test_counts_are_scaled_to_the_steps_of_a_run():
    """Latte's 16 and 18 of 50 are 6.4 and 7.2 of 20: from 7 and 8 on; remainders count steps of the run."""
    attention, alone = tables(FasterCache(recipe="latte"), 20)
    assert alone == [8, 9, 11, 12, 13, 14, 16, 17, 18, 19]
    assert attention == [8, 12, 14, 16, 18]


def test_intervals_of_one_compute_everything():
    assert tables(FasterCache(attention_interval=1, both_interval=1), 50) == ([], [])
    assert tables(FasterCache(both_interval=1), 50)[1] == []
    assert tables(FasterCache(both_interval=1), 50)[0] == list(range(16, 51, 2)), "both branches, always covered"


@pytest.mark.parametrize(
    ("recipe", "count", "weight"),
    [
        ("open_sora", 8, 0.045), ("open_sora", 10, 0.135), ("open_sora", 30, 1.035), ("latte", 16, 0.5), ("latte", 50, 0.5),
        ("cogvideox", 20, 0.3), ("open_sora_plan", 100, 0.3), ("vchitect", 40, 0.0),
    ],
)  # fmt: skip
def test_weights(recipe, count, weight):
    method = FasterCache(recipe=recipe)
    assert method.weight_at(look(count - 1, RECIPES[recipe].num_steps)) == pytest.approx(weight)
    assert FasterCache(recipe=recipe, weight=0.7).weight_at(look(count - 1)) == 0.7


@pytest.mark.parametrize(
    ("recipe", "count", "gains"),
    [
        ("open_sora", 19, (1.15, 1.0)), ("open_sora", 20, (1.15, 1.15)), ("open_sora", 26, (1.0, 1.15)),
        ("latte", 44, (1.1, 1.0)), ("latte", 45, (1.0, 1.1)), ("cogvideox", 30, (1.1, 1.1)), ("cogvideox", 41, (1.0, 1.1)),
        ("open_sora_plan", 130, (1.1, 1.0)), ("open_sora_plan", 131, (1.0, 1.2)), ("vchitect", 60, (1.05, 1.0)),
        ("vchitect", 61, (1.05, 1.1)), ("vchitect", 80, (1.0, 1.1)),
    ],
)  # fmt: skip
def test_gains_by_count(recipe, count, gains):
    assert FasterCache(recipe=recipe).gains(look(count - 1, RECIPES[recipe].num_steps)) == gains


# ----------------------------------------------------------------------------------------------------- when, as diffusers do


def test_steps_of_diffusers():
    """Both run at multiples of 5 counted from 0, and above 641; attention is skipped at odd steps below 681 that have one."""
    times = [1000.0 - 50 * step for step in range(20)]  # 650 at 7, 600 at 8
    attention, alone = tables(DiffusersFasterCache(), 20, times=times)
    assert alone == [step + 1 for step in range(8, 20) if step % 5]
    assert attention == [step + 1 for step in (9, 11, 13, 17, 19)]
    attention, alone = tables(DiffusersFasterCache(), 20, branches=1, times=times)
    assert (attention, alone) == ([step + 1 for step in (7, 9, 11, 13, 15, 17, 19)], [])


def test_gains_of_diffusers():
    method = DiffusersFasterCache(low_gain=1.2, high_gain=1.3)
    assert [method.gains(look(1, time=t)) for t in (901, 500, 300, 99)] == [
        (1.0, 1.0), (1.2, 1.0), (1.2, 1.3), (1.0, 1.3)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- extrapolation


def site(kind: str, at: SimpleNamespace, kept: Kept) -> SimpleNamespace:
    return SimpleNamespace(kind=kind, look=at, kept=kept)


@pytest.mark.parametrize("kind", [ATTENTION, FUSED])
def test_attention_is_extrapolated_from_what_was_computed(kind):
    """1 and 3, at half a step: 4, whatever was forecast in between; diffusers' form goes on from what it gave: 4, 4.5, 4.75."""
    for method, expected in (
        (FasterCache(recipe="latte"), [4.0, 4.0, 4.0]),
        (DiffusersFasterCache(), [4.0, 4.5, 4.75]),
    ):
        kept = Kept()
        for value in (0.0, 1.0, 3.0):
            made = torch.full((1, 2, 3), value)
            method.learn_feature(site(kind, look(20), kept), made, made)
        values = kept.attended if kind == FUSED else kept.values
        assert [v[0, 0, 0].item() for v in values] == [1.0, 3.0]
        assert not (kept.values if kind == FUSED else kept.attended), "nothing but what attention gave"
        found = [method.forecast(site(kind, look(20), kept), values)[0, 0, 0].item() for _ in expected]
        assert found == expected
        lone = [torch.ones(1, 2, 3)]
        assert method.forecast(site(kind, look(20), Kept()), lone)[0, 0, 0] == 1, "of one there is no change"


def test_what_steps_compute():
    asked = {ATTENTION: NOTHING, FUSED: REST, CROSS: EVERYTHING, MLP: EVERYTHING}
    for method in (FasterCache(), DiffusersFasterCache()):
        assert {kind: method.work(site(kind, look(20), Kept())) for kind in asked} == asked


# --------------------------------------------------------------------------------------------------------------------- bands


@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (7, 5), (16, 16), (15, 20), (4, 4)])
def test_the_low_band_is_a_circle_of_frequencies(rows, columns):
    """By the whole transform, its origin shifted to the middle: those within a fifth of the shorter side."""
    draw = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, rows, columns, generator=draw, dtype=torch.float64)
    shifted = torch.fft.fftshift(torch.fft.fft2(image), dim=(-2, -1))
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    radius = min(rows, columns) // 5
    within = (y - rows // 2) ** 2 + (x - columns // 2) ** 2 <= radius**2
    expected = torch.fft.ifft2(torch.fft.ifftshift(shifted * within, dim=(-2, -1)))
    assert expected.imag.abs().max() <= 1e-12, "the band is symmetric"
    low = low_frequencies(image)
    assert (low - expected.real).abs().max() <= 1e-12
    assert (low_frequencies(low) - low).abs().max() <= 1e-12
    assert (low_frequencies(image - low)).abs().max() <= 1e-12


def test_constants_are_low_and_chequers_high():
    rows, columns = torch.meshgrid(torch.arange(10.0), torch.arange(10.0), indexing="ij")
    chequers = (-1) ** (rows + columns)
    wave = torch.cos(2 * torch.pi * 2 * rows / 10)  # of frequency 2, the radius
    assert torch.allclose(low_frequencies(3 + chequers + wave), 3 + wave, atol=1e-6)
    assert torch.allclose(low_frequencies(torch.cos(2 * torch.pi * 3 * rows / 10)), torch.zeros(10, 10), atol=1e-6)


def answers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(1, 2, 3, 10, 10, generator=draw), torch.randn(1, 2, 3, 10, 10, generator=draw)


def test_the_unconditional_answer_keeps_its_difference():
    """Without gains: cond + (uncond - cond of the last step of both), and uncond itself where nothing changes."""
    method, (cond, uncond), (later, _) = DiffusersFasterCache(low_gain=1.0, high_gain=1.0), answers(0), answers(1)
    assert method.from_leader(look(0, leading=cond)) is None, "the first step is of both"
    method.learn(look(0, leading=cond), uncond)
    assert torch.allclose(method.from_leader(look(1, leading=cond)), uncond, atol=1e-5)
    assert torch.allclose(method.from_leader(look(2, leading=later)), later + uncond - cond, atol=1e-5)
    method.learn(look(2, leading=later), later)
    assert torch.allclose(method.from_leader(look(3, leading=later)), later + uncond - cond, atol=1e-5), (
        "an answer that was made teaches nothing"
    )


def test_gains_are_cumulative_until_both_run_again():
    """Low times 1.1 a step from 901 to 99, high from 301 on: 1.1, 1.21, 1.331, and 1, 1, 1.1."""
    method, (cond, uncond), (later, _) = DiffusersFasterCache(), answers(0), answers(1)
    difference = uncond - cond
    low = low_frequencies(difference)
    high = difference - low
    method.learn(look(0, leading=cond, time=1000), uncond)
    for step, time, of_low, of_high in (
        (1, 600, 1.1, 1),
        (2, 500, 1.21, 1),
        (3, 300, 1.331, 1.1),
        (4, 50, 1.331, 1.21),
    ):
        made = method.from_leader(look(step, leading=later, time=time))
        assert torch.allclose(made, later + of_low * low + of_high * high, atol=1e-5), step
    assert method.from_leader(look(5, leading=later, time=40)) is None
    method.learn(look(5, leading=cond, time=40), uncond)
    made = method.from_leader(look(6, leading=later, time=30))
    assert torch.allclose(made, later + low + 1.1 * high, atol=1e-5)


def test_bands_are_in_float32_whatever_the_output_is():
    method, (cond, uncond) = DiffusersFasterCache(), answers(0)
    method.learn(look(0, leading=cond.bfloat16()), uncond.bfloat16())
    assert method.low.dtype == method.high.dtype == torch.float32
    assert method.from_leader(look(1, leading=cond.bfloat16())).dtype == torch.bfloat16


def test_patches_of_a_call_become_frames_and_back():
    """Wan's calls give patches: frames, rows and columns are those of the video."""
    model, loop = reference.network("wan"), reference.open_loop("wan", 2)
    video = loop.latents[0]
    inputs = Inputs(model, video, loop.timesteps, loop.branches[0])
    patches = patchify(video, model.config.patch_size)
    parts = Parts(latents=patches, modulated=None, enter=None, walk=None, leave=None)
    at = Look(inputs, 0, 2, (), parts)
    assert torch.equal(at.image(patches), video)
    assert torch.equal(at.as_call(video), patches)
    flux, loop = reference.network("flux"), reference.open_loop("flux", 2)  # is given patches alone
    inputs = Inputs(flux, loop.latents[0], loop.timesteps, loop.branches[0])
    at = Look(inputs, 0, 2, (), Parts(latents=loop.latents[0], modulated=None, enter=None, walk=None, leave=None))
    assert at.image(loop.latents[0]).shape == (2, 16, 3, 4)
    assert torch.equal(at.as_call(at.image(loop.latents[0])), loop.latents[0])


def test_frames_are_whole_or_refused():
    """Processes that share the tokens of a video have no frames to transform."""
    model, loop = reference.network("wan"), reference.open_loop("wan", 2)
    patches = patchify(loop.latents[0], model.config.patch_size)
    inputs = Inputs(model, patches, loop.timesteps, loop.branches[0])
    at = Look(inputs, 0, 2, (), Parts(latents=patches, modulated=None, enter=None, walk=None, leave=None))
    at.leading = patches
    with pytest.raises(UserError, match="needs all of them; sample with one process"):
        FasterCache().learn(at, patches)


# --------------------------------------------------------------------------------------------------------------- on networks


def blocks_of(backbone: str, model) -> list:
    return model.single_blocks if backbone == "hidream" else list(model.blocks)


@pytest.mark.parametrize("method", ["fastercache", "fastercache_diffusers"])
@pytest.mark.parametrize("backbone", GUIDED)
def test_a_branch_that_is_left_out_enters_no_block(backbone, method):
    model, calls = reference.network(backbone), []
    blocks_of(backbone, model)[-1].register_forward_hook(lambda _, given, x: calls.append(len(given[0])))
    cache = make_cache(method, preset=backbone)
    latents, result = reference.sample(backbone, model, NUM_STEPS, cache)
    assert latents.isfinite().all()
    assert isinstance(result, Branches)
    cond, uncond = result.runs
    left_out = [entry["step"] for entry in uncond.steps if "made_of" in entry]
    assert 3 < len(left_out) < NUM_STEPS - 5
    assert calls == [reference.BATCH] * (2 * NUM_STEPS - len(left_out))
    record = result.record()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["left_out_of"] == left_out
    assert record["branches"] == 2
    assert uncond.steps[left_out[0]] == {
        "step": left_out[0], "kind": "forecast", "sites": 0, "made_of": "the other guidance branch"
    }  # fmt: skip
    assert all("made_of" not in entry for entry in cond.steps)
    assert record["kept_bytes"] == cond.kept_bytes + uncond.kept_bytes


@pytest.mark.parametrize("backbone", ["flux", "hunyuan_video"])
def test_of_one_branch_none_is_left_out(backbone):
    for method in ("fastercache", "fastercache_diffusers"):
        cache = make_cache(method, preset=backbone)
        _, run = reference.sample(backbone, reference.network(backbone), NUM_STEPS, cache)
        kinds = [entry["kind"] for entry in run.record()["steps"]]
        assert set(kinds) == {"full", "partial"}
        assert "left_out_of" not in run.record()


@pytest.mark.parametrize("backbone", GUIDED)
def test_branches_apart_that_compute_everything_are_the_batch(backbone):
    model = reference.network(backbone)
    plain, _ = reference.sample(backbone, model, 6)
    cache = make_cache("fastercache", attention_interval=1, both_interval=1)
    latents, result = reference.sample(backbone, model, 6, cache)
    assert len(result.runs) == 2
    assert (latents - plain).abs().max() <= 1e-5 * plain.abs().max().clamp_min(1)


def test_what_is_kept():
    """Of Wan: two features of 5 layers of 45 tokens with 48 channels; two differences of 4 · 3 · 6 · 10 latents, in float32."""
    _, result = reference.sample("wan", reference.network("wan"), NUM_STEPS, make_cache("fastercache"))
    features, differences = 2 * 5 * 45 * 48 * 2 * 4, 2 * 4 * 3 * 6 * 10 * 2 * 4
    assert [run.kept_bytes for run in result.runs] == [features, features + differences]
    _, result = reference.sample("wan", reference.network("wan"), NUM_STEPS, make_cache("fastercache_diffusers"))
    assert [run.kept_bytes for run in result.runs] == [features, differences]


@pytest.mark.parametrize("backbone", GUIDED)
def test_a_sample_does_not_depend_on_its_batch(backbone):
    model, cache, it = reference.network(backbone), make_cache("fastercache", preset=backbone), {}
    whole, _ = reference.sample(backbone, model, 12, cache)
    given = reference.given(backbone, 12)
    for row in range(reference.BATCH):
        it[row] = sampled_alone(backbone, model, cache, given, row)
        assert (it[row] - whole[row : row + 1]).abs().max() <= 1e-4 * whole.abs().max().clamp_min(1)


def sampled_alone(backbone: str, model, cache, given, row: int) -> torch.Tensor:
    one, first = slice(row, row + 1), given.branches[0]
    if backbone == "dit":
        return reference.dit.Sampler(model, 12).run(given.noise[one], first["y"][one], cache=cache)[0]
    if backbone == "wan":
        texts = (branch["context"][one] for branch in given.branches)
        return reference.wan.Sampler(model, 12).run(given.noise[one], *texts, cache=cache)[0]
    rows = (slice(row, row + 1), slice(reference.BATCH + row, reference.BATCH + row + 1))
    negative, asked = ((first["t5"][i], first["llama"][:, i], first["pooled"][i]) for i in rows)
    sampler = reference.hidream.Sampler(model, 12, guidance_scale=5.0)
    return sampler.run(given.noise[one], *asked, negative=negative, cache=cache)[0]


def test_batched_guidance_gives_way():
    """Wan's sampler has both branches in one call where it is asked to, but not for a method that may leave one out."""
    it, model = reference.given("wan", 8), reference.network("wan")
    texts = [branch["context"] for branch in it.branches]
    apart, runs = reference.wan.Sampler(model, 8, batched=True).run(it.noise, *texts, cache=make_cache("fastercache"))
    assert len(runs.runs) == 2
    assert torch.equal(apart, reference.wan.Sampler(model, 8).run(it.noise, *texts, cache=make_cache("fastercache"))[0])
    _, runs = reference.wan.Sampler(model, 8, batched=True).run(it.noise, *texts, cache=make_cache("pab"))
    assert len(runs.runs) == 1


@pytest.mark.slow
@pytest.mark.parametrize("backbone", GUIDED)
def test_a_branch_that_is_left_out_costs_nothing(backbone):
    """With attention computed always, what is left is the steps of each branch; and that was counted before."""
    model, it = reference.network(backbone), reference.given(backbone, NUM_STEPS)
    cache = make_cache("fastercache", attention_interval=1)
    _, result = reference.sample(backbone, model, NUM_STEPS, cache)
    cached, uncached = run_flops(result)
    left_out = len(result.record()["left_out_of"])
    assert cached / uncached == pytest.approx((2 * NUM_STEPS - left_out) / (2 * NUM_STEPS), rel=1e-6)
    conditions = {}
    for name in it.branches[0]:
        values = [branch[name] for branch in it.branches]
        conditions[name] = torch.cat(values * (2 if backbone == "dit" else 1))
    latents = torch.cat([it.noise, it.noise])
    counted = sampling_flops(model, cache, NUM_STEPS, latents, times=it.timesteps, branches=2, **conditions)
    assert counted["flops_ratio"] == pytest.approx(uncached / cached, rel=1e-3)
    record = result.record()
    assert (counted["full_steps"], counted["partial_steps"]) == (record["full_steps"], record["partial_steps"])


# ------------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("fastercache", {"recipe": "lattes"}, "recipe 'lattes' is unknown; choose from .*; did you mean 'latte'"),
        ("fastercache", {"both_interval": 0}, "both_interval = 0 must be an integer of at least 1"),
        ("fastercache", {"weight": float("nan")}, "weight = nan must be"),
        ("fastercache_diffusers", {"attention_range": 0}, "attention_range = 0 must be an integer of at least 1"),
        ("fastercache_diffusers", {"both_above": 700}, "both_above = 700 must be less than both_below = 641"),
        ("fastercache_diffusers", {"low_gain": 1e9}, "low_gain = 1000000000.0 must be at most 1e"),
    ],
)
def test_settings_that_cannot_be(method, settings, message):
    with pytest.raises(UserError, match=message):
        make_cache(method, **settings)


def test_every_backbone_has_settings():
    for backbone in reference.CONFIGS:
        assert METHODS["fastercache"].rows(None, backbone)[0]["recipe"] in RECIPES
        assert make_cache("fastercache_diffusers", preset=backbone).label == "fastercache_diffusers"
