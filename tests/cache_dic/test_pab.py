"""PAB: when attention is computed, by kind of site, window and range; what a step then computes, keeps, records and counts."""

import logging
from types import SimpleNamespace

import pytest
import reference
import torch

from cache_dic import (
    ATTENTION,
    CROSS,
    EVERYTHING,
    FUSED,
    METHODS,
    MLP,
    NOTHING,
    REST,
    TEMPORAL,
    UserError,
    make_cache,
    read_setting,
)
from cache_dic.methods.pab import PAB
from seerkit.sampling.flops import run_flops, sampling_flops

NUM_STEPS = 12


def look(step: int, time: float, kinds: set[str], calls: int | None = None) -> SimpleNamespace:
    calls = step if calls is None else calls
    return SimpleNamespace(step=step, calls=calls, training_time=time, kinds=kinds, model_name="Toy")


def call(at: SimpleNamespace, kind: str, block: int = 0) -> SimpleNamespace:
    return SimpleNamespace(look=at, kind=kind, block=block, kept=SimpleNamespace(values=[], attended=[]))


def computed(cache, backbone: str, site: str) -> list[str]:
    """By step of an open loop, "e" where a site is computed, "n" where it is not, "r" where all but its attention is."""
    runs, _ = reference.play(backbone, reference.open_loop(backbone, NUM_STEPS), cache)
    asked = [entry.get("computed", {}).get(site, EVERYTHING) for entry in runs[0].record()["steps"]]
    assert set(asked) <= {EVERYTHING, NOTHING, REST}
    return "".join(work[0] for work in asked)


# ---------------------------------------------------------------------------------------------------------- when, by hand


def table(method: PAB, times: list[float], kind: str) -> str:
    kinds, row = {ATTENTION, TEMPORAL, CROSS, MLP, FUSED}, ""
    for step, time in enumerate(times):
        at = look(step, time, kinds)
        method.decide(at)
        row += method.work(call(at, kind))[0]
    return row


TIMES = [1000, 900, 800, 790, 700, 600, 500, 400, 300, 200, 100, 50]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [  # within 100 … 800, both ends out: steps 3 to 9
        (ATTENTION, "eeenenenenee"),  # computed at 4, 6, 8
        (FUSED, "eeererereree"),
        (TEMPORAL, "eeenennnenee"),  # at 4, 8
        (CROSS, "eeennnennnee"),  # at 6
        (MLP, "eeeeeeeeeeee"),
    ],
)
def test_each_kind_is_computed_at_its_own_range_within_the_window(kind, expected):
    assert table(PAB(spatial_range=2, temporal_range=4, cross_range=6), TIMES, kind) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"spatial_range": None}, "eeeeeeeeeeee"),
        ({"spatial_range": 1}, "eeeeeeeeeeee"),
        ({"spatial_range": 3}, "eeeennenneee"),
        ({"spatial_range": 4, "above": -1, "below": 2000}, "ennnennnennn"),
        ({"above": 500, "below": 900}, "eeeneneeeeee"),
    ],
)
def test_windows_and_ranges(settings, expected):
    assert table(PAB(**settings), TIMES, ATTENTION) == expected


def test_a_step_is_full_where_every_kind_is_computed():
    method, kinds = PAB(spatial_range=2, cross_range=3), {ATTENTION, CROSS, MLP}
    full = [step for step, time in enumerate(TIMES) if method.decide(look(step, time, kinds))]
    assert full == [0, 1, 2, 6, 10, 11]
    method = PAB(spatial_range=2, cross_range=3)
    assert [s for s, t in enumerate(TIMES) if method.decide(look(s, t, {FUSED, MLP}))] == [0, 1, 2, 4, 6, 8, 10, 11]


def test_mlps_of_the_first_blocks_are_reused_after_listed_timesteps():
    """700 is reached at step 4, 390 between 400 and 300, at step 8: two steps after each reuse."""
    method, kinds, rows = PAB(mlp_blocks=2, mlp_timesteps=(700, 390), spatial_range=None), {MLP}, {}
    for step, time in enumerate(TIMES):
        at = look(step, time, kinds)
        is_full = method.decide(at)
        assert is_full is (step not in (5, 6, 9, 10))
        for block in (0, 1, 2):
            site = call(at, MLP, block)
            rows[block] = rows.get(block, "") + method.work(site)[0]
            method.learn_feature(site, "value", None)
            assert bool(site.kept.values) is (step in (4, 8) and block < 2), "kept where it is going to be reused"
    assert rows == {0: "eeeeenneenne", 1: "eeeeenneenne", 2: "eeeeeeeeeeee"}


def test_a_listed_timestep_within_a_stretch_computes_anew():
    method = PAB(mlp_blocks=1, mlp_timesteps="700, 500", mlp_skips=3, spatial_range=None)
    assert method.mlp_timesteps == (700.0, 500.0)
    assert PAB(mlp_blocks=1, mlp_timesteps=700).mlp_timesteps == (700.0,)
    assert [method.decide(look(s, t, {MLP})) for s, t in enumerate(TIMES)] == [
        *(True,) * 5, False, True, False, False, False, True, True
    ]  # fmt: skip


def test_times_are_those_of_training_on_every_model():
    """FLUX is given times from 1, the others from 1000; a window up to 800 leaves the first steps alone on both."""
    for backbone, site in (("flux", "img_attn"), ("wan", "self_attn"), ("hidream", "attn"), ("dit", "attn")):
        loop = reference.open_loop(backbone, NUM_STEPS)
        times = loop.timesteps * (1000 if backbone == "flux" else 1)
        expected = "".join("n" if step % 2 and 100 < t < 800 else "e" for step, t in enumerate(times.tolist()))
        assert computed(make_cache("pab", spatial_range=2), backbone, site) == expected, backbone
        assert "n" in expected, backbone


# --------------------------------------------------------------------------------------------------------- what, on networks


def test_attention_is_left_out_and_all_else_computed():
    """Of Wan, whose modules stand apart: self-attention at 2, cross-attention at 3 within the window."""
    calls = {"self_attn": 0, "cross_attn": 0, "ffn": 0}
    model, loop = reference.network("wan"), reference.open_loop("wan", NUM_STEPS)
    for block in model.blocks:
        for name in calls:
            getattr(block, name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    cache = make_cache("pab", spatial_range=2, cross_range=3, above=-1, below=950)
    run = cache.start(model, loop.latents[0], loop.timesteps, **loop.branches[0])
    for latents, t in zip(loop.latents, loop.timesteps, strict=True):
        model(latents, t=t.expand(2), **loop.branches[0], cache=run.at(len(run.steps)))
    within = [t < 950 for t in loop.timesteps.tolist()]
    depth = len(model.blocks)
    assert calls["ffn"] == NUM_STEPS * depth
    assert calls["self_attn"] == depth * sum(not (inside and step % 2) for step, inside in enumerate(within))
    assert calls["cross_attn"] == depth * sum(not (inside and step % 3) for step, inside in enumerate(within))
    entry = run.record()["steps"][9]
    assert within[9]
    assert entry == {
        "step": 9, "kind": "partial", "sites": 2 * depth,
        "computed": {"self_attn": "nothing", "cross_attn": "everything", "ffn": "everything"},
    }  # fmt: skip


def test_of_a_fused_site_the_mlp_is_computed_beside_the_attention_of_before():
    """FLUX's second step by hand: x + gate · linear2([attention of the first step, mlp of now])."""
    model, loop = reference.network("flux"), reference.open_loop("flux", 2)
    conditions, seen = loop.branches[0], {}
    block = model.single_blocks[0]
    attend = block.attend
    block.attend = lambda *given: seen.setdefault("attended", attend(*given))
    entered: list = []
    block.register_forward_pre_hook(lambda _, given: entered.append(given))
    left: list = []
    block.register_forward_hook(lambda _, given, x: left.append(x))
    run = make_cache("pab", above=-1, below=2000).start(model, loop.latents[0], loop.timesteps, **conditions)
    for step in range(2):
        model(loop.latents[step], timesteps=loop.timesteps[step].expand(2), **conditions, cache=run.at(step))
    x, _, modulation, *_ = entered[1]
    shift, scale, gate = modulation.unsqueeze(2).unbind(1)
    normed = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    hidden = torch.nn.functional.gelu(block.linear1(normed)[..., 3 * x.shape[-1] :], approximate="tanh")
    of_before = seen["attended"].transpose(1, 2).flatten(2)
    expected = x + gate * block.linear2(torch.cat([of_before, hidden], dim=-1))
    assert (left[1] - expected).abs().max() <= 1e-5


def test_only_what_attention_gave_is_kept():
    """Of FLUX: 3 double blocks and 4 single ones with 12 + 5 tokens of 48 channels, for 2 samples in float32."""
    runs, _ = reference.play("flux", reference.open_loop("flux", 4), make_cache("pab"))
    assert runs[0].kept_bytes == (3 + 4) * 17 * 48 * 2 * 4
    runs, _ = reference.play("wan", reference.open_loop("wan", 4), make_cache("pab"))  # 3 · 3 · 5 tokens, 5 blocks
    assert runs[0].kept_bytes == 5 * 45 * 48 * 2 * 4
    runs, _ = reference.play("wan", reference.open_loop("wan", 4), make_cache("pab", cross_range=6))
    assert runs[0].kept_bytes == 2 * 5 * 45 * 48 * 2 * 4
    cache = make_cache("pab", mlp_blocks=2, mlp_timesteps=(900,))
    runs, _ = reference.play("wan", reference.open_loop("wan", 20), cache)
    assert runs[0].kept_bytes == (5 + 2) * 45 * 48 * 2 * 4


def test_branches_are_kept_apart_or_as_one():
    """One count and one slot: at range 2 the second call of every step within the window reuses the first one's attention."""
    loop = reference.open_loop("wan", NUM_STEPS)
    cache = make_cache("pab", spatial_range=2, below=900)
    inside = [100 < t < 900 for t in loop.timesteps.tolist()]
    (cond, uncond), _ = reference.play("wan", loop, cache)
    assert cond.full_steps == uncond.full_steps == [s for s in range(NUM_STEPS) if not (inside[s] and s % 2)]
    assert cond.kept_bytes == uncond.kept_bytes
    shared = make_cache("pab", spatial_range=2, below=900, shared_branches=True)
    (cond, uncond), outputs = reference.play("wan", loop, shared)
    assert cond.full_steps == list(range(NUM_STEPS))
    assert uncond.full_steps == [s for s in range(NUM_STEPS) if not inside[s]]
    assert (cond.kept_bytes, uncond.kept_bytes) == (5 * 45 * 48 * 2 * 4, 0)
    _, plain = reference.play("wan", loop, make_cache("uncached"))
    assert torch.equal(outputs[0], plain[0])
    assert (outputs[1][8] - plain[1][8]).abs().max() > 0.05


@pytest.mark.parametrize("backbone", ["flux", "hunyuan_video", "wan", "hidream", "dit"])
def test_a_sample_does_not_depend_on_its_batch(backbone):
    model, cache, steps = reference.network(backbone), make_cache("pab", preset=backbone), 8
    loop = reference.open_loop(backbone, steps)
    rows = len(loop.latents[0])

    def play(take: slice) -> torch.Tensor:
        part = {name: value[:, take] if name == "llama" else value[take] for name, value in loop.branches[0].items()}
        run = cache.start(model, loop.latents[0][take], loop.timesteps, **part)
        return torch.stack(
            [
                model(x[take], **{model.TIME: t.expand(len(x[take]))}, **part, cache=run.at(step))
                for step, (x, t) in enumerate(zip(loop.latents, loop.timesteps, strict=True))
            ]
        )

    whole = play(slice(None))
    for row in range(rows):
        assert (play(slice(row, row + 1)) - whole[:, row : row + 1]).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["flux", "wan", "dit"])
def test_a_run_costs_what_was_counted_before(backbone):
    loop, cache = reference.open_loop(backbone, NUM_STEPS), make_cache("pab", preset=backbone)
    runs, _ = reference.play(backbone, loop, cache)
    counted, uncached = run_flops(runs[0])
    model = reference.network(backbone)
    before = sampling_flops(model, cache, NUM_STEPS, loop.latents[0], times=loop.timesteps, **loop.branches[0])
    assert before["flops_T"] * 1e12 == pytest.approx(counted)
    assert before["full_steps"] == runs[0].full_steps
    assert before["kept_bytes"] == {"partial": runs[0].kept_bytes}
    assert counted < uncached


# ------------------------------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spatial_range": 0}, "spatial_range = 0 must be an integer of at least 1"),
        ({"cross_range": -3}, "cross_range = -3 must be an integer of at least 1"),
        ({"above": 800, "below": 100}, "above = 800 must be less than below = 100: timesteps lie between them"),
        ({"below": 1e9}, r"below = 1000000000.0 must be at most 10000"),
        ({"mlp_blocks": 2}, r"mlp_blocks = 2 and mlp_timesteps = \(\) need each other"),
        ({"mlp_timesteps": "700"}, r"mlp_blocks = 0 and mlp_timesteps = \(700.0,\) need each other"),
        ({"mlp_blocks": 1, "mlp_timesteps": "many"}, "mlp_timesteps = 'many' must be timesteps of training, such as"),
        ({"mlp_blocks": 1, "mlp_timesteps": (-5,)}, r"mlp_timesteps = \(-5,\) must be timesteps of training"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(UserError, match=message):
        make_cache("pab", **settings)


@pytest.mark.parametrize("name", ["temporal_range", "cross_range"])
def test_a_range_that_nothing_in_the_model_has_warns(name, caplog):
    with caplog.at_level(logging.WARNING, "cache_dic"):
        reference.play("flux", reference.open_loop("flux", 2), make_cache("pab", **{name: 4}))
    assert f"{name} = 4 has no effect: Flux has no such attention apart" in caplog.text
    caplog.clear()
    reference.play("wan", reference.open_loop("wan", 2), make_cache("pab", cross_range=4))
    assert "no effect" not in caplog.text


def test_a_count_names_the_model_too(caplog):
    loop = reference.open_loop("flux", 2)
    with caplog.at_level(logging.WARNING, "cache_dic"):
        sampling_flops(
            reference.network("flux"), make_cache("pab", cross_range=4), 2, loop.latents[0], **loop.branches[0]
        )
    assert "has no effect: Flux has no such attention apart" in caplog.text


def test_a_range_of_a_preset_can_be_switched_off_on_a_command_line():
    setting = read_setting("pab", "cross_range", "none")
    assert setting is None
    assert make_cache("pab", preset="wan").schedule_values["cross_range"] == 6
    assert make_cache("pab", preset="wan", cross_range=setting).schedule_values["cross_range"] is None


def test_presets_of_every_backbone():
    first = {backbone: METHODS["pab"].rows(None, backbone)[0] for backbone in reference.CONFIGS}
    assert first.pop("wan") == {"spatial_range": 2, "cross_range": 6}
    assert all(row == {"spatial_range": 2} for row in first.values())
    assert make_cache("pab", preset="wan").label == "pab-cross_range=6"
    assert make_cache("pab", preset="flux").label == "pab"
