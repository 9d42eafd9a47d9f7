"""Schedules that decide while sampling: every form under any decisions, who decides, what weights may be, and clean starts."""

import random
from dataclasses import dataclass, field

import pytest
import torch

from cache_dic import ENGINES, METHODS, SCHEDULES, Decider, UserError, accepted_settings, make_cache, register
from cache_dic.engine import PairEngine
from cache_dic.settings import values_of

NUM_STEPS = 24


@dataclass(kw_only=True)
class Drawn(Decider):
    """Full steps by a list of 0 and 1 that was drawn, as far as the horizon lets it."""

    decisions: tuple[int, ...]
    max_consecutive: int | None = None

    def decide(self, look):
        return bool(self.decisions[look.step]) or self.exhausted(look)


@pytest.fixture(autouse=True)
def _registries(monkeypatch):
    registries = METHODS, SCHEDULES
    before = [dict(registry) for registry in registries]
    monkeypatch.setitem(SCHEDULES, "drawn", Drawn)
    yield
    for registry, old in zip(registries, before, strict=True):
        registry.clear()
        registry.update(old)


def drawn(seed: int, horizon: int | None, first: int = 1) -> dict[str, object]:
    """Settings: `first` full steps, then any, more of them with one seed than with another."""
    draw = random.Random(seed)
    share = draw.uniform(0.1, 0.6)
    decisions = tuple(int(step < first or draw.random() < share) for step in range(NUM_STEPS))
    return {"schedule": "drawn", "decisions": decisions, "max_consecutive": horizon}


def kept(engine) -> int:
    """Bytes of features that an engine holds now."""
    values = engine.snapshots.by_step.values()
    parts = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))


# ------------------------------------------------------------------------------------------------------- the fold by pairs


@pytest.mark.parametrize("horizon", [1, 2, 3, 5])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("method", ["taylorseer", "newton"])
def test_the_fold_by_pairs_is_the_site_form_whatever_is_decided(make_toy, trajectory, method, order, horizon):
    model, sequences = make_toy(), set()
    for seed in range(6):
        settings = drawn(seed, horizon) | {"max_order": order}
        folded, run = trajectory(model, make_cache(method, **settings), NUM_STEPS)
        layerwise, other = trajectory(model, make_cache(method, engine="layerwise", **settings), NUM_STEPS)
        assert type(run.engine) is PairEngine
        assert run.full_steps == other.full_steps
        assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()
        sequences.add(tuple(run.full_steps))
        assert max(b - a for a, b in zip(run.full_steps, [*run.full_steps[1:], NUM_STEPS], strict=True)) <= horizon + 1
    assert len(sequences) > 3


@pytest.mark.parametrize("static_shapes", [False, True])
@pytest.mark.parametrize(
    ("order", "horizon", "sums"), [(0, 3, 3), (1, 3, 7 + 3), (2, 5, 17 + 11 + 5), (1, None, 23 + 23)]
)
def test_kept_bytes_are_the_most_that_is_kept(make_toy, order, horizon, sums, static_shapes):
    """After order + 1 full steps in a row the latest of K serves K (h + 1) - 1 steps, the one before (K - 1) (h + 1) - 1."""
    model, x = make_toy(), torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, timesteps = torch.tensor([0, 1]), torch.linspace(1, 0.1, NUM_STEPS, dtype=torch.float64)
    settings = drawn(3, horizon, first=order + 1) | {"max_order": order, "warmup_steps": 1}
    run, most = make_cache(static_shapes=static_shapes, **settings).start(model, x, timesteps, y=y), 0
    for step in range(NUM_STEPS):
        model(x, timesteps[step], y, cache=run.at(step))
        most = max(most, kept(run.engine))
    assert run.kept_bytes == sums * x.nbytes
    if horizon is None:  # what would be for steps past the end is not kept
        assert most == (22 + (23 if static_shapes else 22)) * x.nbytes
    else:
        assert most == run.kept_bytes


@pytest.mark.parametrize("engine", ENGINES)
def test_every_form_runs_under_any_decisions_and_threshold_zero_is_uncached(make_toy, trajectory, engine):
    model = make_toy()
    states, run = trajectory(model, make_cache(engine=engine, max_order=1, **drawn(1, 4)), NUM_STEPS)
    assert states.isfinite().all()
    assert 1 < len(run.full_steps) < NUM_STEPS
    always = {"schedule": "drawn", "decisions": (1,) * NUM_STEPS, "max_consecutive": 4}
    states, _ = trajectory(model, make_cache(engine=engine, max_order=1, **always), NUM_STEPS)
    assert torch.equal(states, trajectory(model, make_cache("uncached"), NUM_STEPS)[0])


def test_decisions_that_are_a_known_schedule_give_its_samples(make_toy, trajectory):
    """0 1 2, then every fourth: the same full steps as TaylorSeer's rule, decided one by one."""
    model, settings = make_toy(), {"interval": 4, "warmup_steps": 3, "max_order": 2}
    known, run = trajectory(model, make_cache(**settings), NUM_STEPS)
    decisions = tuple(int(step in run.full_steps) for step in range(NUM_STEPS))
    settings = {"schedule": "drawn", "decisions": decisions, "max_consecutive": 3, "warmup_steps": 3, "max_order": 2}
    found, other = trajectory(model, make_cache(**settings), NUM_STEPS)
    assert other.full_steps == run.full_steps
    assert (found - known).abs().max() <= 1e-12 * known.abs().max()


# ----------------------------------------------------------------------------------------------- weights by site and channel


@dataclass(frozen=True, kw_only=True)
class BySite:
    """A slope of its own for every site, or for every site and channel."""

    channels: int = 1

    def weights(self, full_steps, step):
        if len(full_steps) < 2:
            return [1.0]
        draw = torch.Generator().manual_seed(0)
        slopes = torch.rand(5, self.channels, generator=draw, dtype=torch.float64) * (step - full_steps[-1]) / 4
        return [-slopes, 1 + slopes]


@pytest.fixture
def by_site() -> str:
    register("by_site", interval=4, warmup_steps=2)(BySite)
    return "by_site"


@pytest.mark.parametrize("channels", [1, 6])
def test_weights_by_site_and_channel_fold_exactly(make_toy, trajectory, by_site, channels):
    model = make_toy()
    folded, run = trajectory(model, make_cache(by_site, channels=channels))
    layerwise, _ = trajectory(model, make_cache(by_site, channels=channels, engine="layerwise"))
    assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()
    plain, other = trajectory(model, make_cache("newton", interval=4, warmup_steps=2, max_order=1))
    assert (folded - plain).abs().max() > 1e-3, "the slopes are not Newton's"
    assert run.kept_bytes == other.kept_bytes, "weights that differ by site cost nothing more"
    assert run.work_flops == other.work_flops


@pytest.mark.parametrize("engine", ["stack", "hidden", "output", "latent"])
def test_weights_by_site_are_refused_where_there_are_no_sites(make_toy, trajectory, by_site, engine):
    with pytest.raises(
        UserError, match=f"weights by site need the features of sites, which the {engine} engine has not"
    ):
        trajectory(make_toy(), make_cache(by_site, engine=engine))


def test_weights_for_another_number_of_sites_are_refused(make_toy, trajectory, by_site):
    with pytest.raises(UserError, match=r"weights by site of shape \(5, 3\) must be \(5, 1\) or \(5, 6\)"):
        trajectory(make_toy(), make_cache(by_site, channels=3))
    with pytest.raises(UserError, match=r"weights by site of shape \(5, 1\) must be \(7, 1\) or \(7, 6\)"):
        trajectory(make_toy(num_sites=7), make_cache(by_site))


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_by_site_need_steps_that_are_known(make_toy, trajectory, by_site, engine):
    with pytest.raises(UserError, match="weights by site need full steps that are known before the run"):
        trajectory(make_toy(), make_cache(by_site, engine=engine, **drawn(0, 3)))


# ------------------------------------------------------------------------------------------------------------ who decides


@dataclass(kw_only=True)
class Moved(Decider):
    """Full where the latents have changed by a quarter since the last full step."""

    by_branch = False
    old: object = field(init=False, default=None)

    def decide(self, look):
        is_full = self.old is None or look.change(look.latents, self.old) > 0.25
        look.report(asked=1)
        if is_full:
            self.old = look.latents
        return is_full


@dataclass(kw_only=True)
class MovedApart(Moved):
    by_branch = True


def two_branches(model, cache) -> tuple:
    """Two runs over latents of their own, which move at rates of their own; the second follows where the method shares."""
    timesteps, y = torch.linspace(1, 0.1, 12, dtype=torch.float64), torch.tensor([0])
    start = torch.ones(1, 3, 6, dtype=torch.float64)
    cond = cache.start(model, start, timesteps, y=y)
    uncond = cache.start(model, start, timesteps, leader=cond, y=y)
    for step in range(12):
        for run, rate in ((cond, 1.1), (uncond, 1.3)):
            model(start * rate**step, timesteps[step], y, cache=run.at(step))
    return cond, uncond


def test_the_first_branch_decides_for_all_unless_each_decides(make_toy):
    """Growing by 1.1 a step, latents have changed by a quarter after 3 steps (1.331), by 1.3 after one."""
    register("moved", engine="stack")(Moved)
    register("moved_apart", engine="stack")(MovedApart)
    cond, uncond = two_branches(make_toy(), make_cache("moved"))
    assert cond.full_steps == uncond.full_steps == [0, 3, 6, 9]
    assert [entry.get("asked") for entry in uncond.record()["steps"]] == [None] * 12, "what follows looks at nothing"
    cond, uncond = two_branches(make_toy(), make_cache("moved_apart"))
    assert cond.full_steps == [0, 3, 6, 9]
    assert uncond.full_steps == list(range(12))


def test_a_branch_that_follows_waits_for_the_one_that_decides(make_toy):
    register("moved", engine="stack")(Moved)
    model, timesteps, y = make_toy(), torch.linspace(1, 0.1, 4, dtype=torch.float64), torch.tensor([0])
    x = torch.ones(1, 3, 6, dtype=torch.float64)
    cache = make_cache("moved")
    cond = cache.start(model, x, timesteps, y=y)
    uncond = cache.start(model, x, timesteps, leader=cond, y=y)
    with pytest.raises(ValueError, match="step 0 of the guidance branch that decides is to be taken before"):
        model(x, timesteps[0], y, cache=uncond.at(0))


# ----------------------------------------------------------------------------------------------------------- clean starts


def adaptive() -> list[str]:
    return [name for name, method in METHODS.items() if isinstance(SCHEDULES[method.schedule], type)]


@pytest.mark.parametrize("method", adaptive())
def test_runs_that_take_turns_and_have_other_sizes_are_as_alone(make_toy, method):
    """Nothing of a run is in the cache or the model: two in turn, of other sizes and numbers of steps, give what each gives."""
    model = make_toy()
    settings = {"teacache": {"coefficients": (1.0, 0.0)}, "dbcache": {"Fn_compute_blocks": 1}}.get(method, {})
    accepted = accepted_settings(method)
    bounds = {name: 0.2 for name in ("threshold", "residual_diff_threshold", "base") if name in accepted}
    cache = make_cache(method, **settings | bounds)
    before = values_of(cache.decider())

    def steps(length: int, num_steps: int, seed: int):
        draw = torch.Generator().manual_seed(seed)
        x = torch.randn(1, length, 6, generator=draw, dtype=torch.float64)
        y, timesteps = torch.tensor([seed]), torch.linspace(1, 0.1, num_steps, dtype=torch.float64)
        run = cache.start(model, x, timesteps, y=y)
        for step in range(num_steps):
            x = x - model(x, timesteps[step], y, cache=run.at(step)) / num_steps
            yield x, run

    alone = [list(steps(3, 14, 0)), list(steps(5, 14, 1))]
    turns = list(zip(steps(3, 14, 0), steps(5, 14, 1), strict=True))
    for i, expected in enumerate(alone):
        assert torch.equal(turns[-1][i][0], expected[-1][0])
        assert turns[-1][i][1].record() == expected[-1][1].record()
    assert values_of(cache.decider()) == before
