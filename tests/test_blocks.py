"""Methods that decide after a step's first blocks, compute its last ones, or verify a forecast by the last one."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import reference
import torch
from torch import Tensor, nn

from cache_dic import METHODS, SCHEDULES, Cache, Decider, Run, UserError, make_cache, register
from cache_dic.methods.cg_taylor import CGTaylor
from cache_dic.methods.dbcache import DBCache
from cache_dic.methods.speca import SpeCa
from seerkit.devices.compile import compile_steps
from seerkit.sampling.flops import count_flops, run_flops

NETWORKS = list(reference.CONFIGS)
SPLIT = {
    "first_block_cache": {"threshold": 0.2},
    "dbcache": {"Fn_compute_blocks": 2, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.3, "max_warmup_steps": 2},
    "cg_taylor": {"threshold": 0.3, "warmup_steps": 2},
}
SPECA = {"base": 1.0, "min_interval": 1, "max_interval": 4}


def full_steps(runs: list[Run]) -> list[list[int]]:
    return [run.full_steps for run in runs]


def largest_difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(ours, theirs, strict=True))


def cache_of(method: str, name: str, **settings: object) -> Cache:
    return make_cache(method, preset=name, **{**SPLIT.get(method, SPECA), **settings})


# --------------------------------------------------------------------------------------------------------------- rules


class Scripted:
    """A look at a run whose first blocks add one number a step, the decider's own answers being its full steps."""

    def __init__(self, added: list[float]) -> None:
        self.num_steps, self.added_by, self.full_steps = len(added), added, ()
        self.reported: dict[str, float] = {}

    def added(self) -> float:
        return self.added_by[self.step]

    @staticmethod
    def change(new: float, old: float) -> float:
        return abs(new - old) / abs(old)

    def report(self, **numbers: float) -> None:
        self.reported.update(numbers)

    def decided(self, decider: object, verified: dict[int, float] | None = None) -> list[int]:
        """Full steps; verified: error by step, of a decider that verifies."""
        for step in range(self.num_steps):
            self.step = step
            self.since = self.step - self.full_steps[-1] if self.full_steps else 1
            self.is_last = self.step == self.num_steps - 1
            if decider.decide(self):
                self.full_steps = (*self.full_steps, self.step)
            elif verified is not None and decider.checks(self):
                decider.error = verified[self.step]
        return list(self.full_steps)


STILL, GROWING = [1.0] * 12, [1 + 0.1 * step for step in range(12)]


@pytest.mark.parametrize(
    ("added", "settings", "expected"),
    [
        (STILL, {"max_warmup_steps": 3}, [0, 1, 2]),
        (STILL, {"max_warmup_steps": 6, "warmup_interval": 2}, [0, 2, 4]),
        (STILL, {"max_warmup_steps": 0}, [0]),
        (STILL, {"max_warmup_steps": 1, "residual_diff_threshold": 0.0}, list(range(12))),
        (STILL, {"max_warmup_steps": 1, "max_cached_steps": 4}, [0, 5, 6, 7, 8, 9, 10, 11]),
        (STILL, {"max_warmup_steps": 1, "max_continuous_cached_steps": 3}, [0, 4, 8]),
        (STILL, {"max_warmup_steps": 1, "max_continuous_cached_steps": 0}, list(range(12))),
        # A change of 0.24 or less is a forecast: up to 1.2 after 1, 1.6 after 1.3, 2.0 after 1.7.
        (GROWING, {"max_warmup_steps": 1, "residual_diff_threshold": 0.25}, [0, 3, 7]),
        # One of exactly the threshold is full.
        ([1.0, 1.25, 1.25], {"max_warmup_steps": 1, "residual_diff_threshold": 0.25}, [0, 1]),
        # From 1 on nothing is compared.
        ([1.0, 9.0, 81.0], {"max_warmup_steps": 1, "residual_diff_threshold": 1.0}, [0]),
        # 0.1, 0.2 and 0.3 are summed, over full steps, too; then all are full.
        (
            GROWING,
            {"max_warmup_steps": 1, "residual_diff_threshold": 0.25, "max_accumulated_residual_diff_threshold": 0.6},
            [0, 3, 4, 5, 6, 7, 8, 9, 10, 11],
        ),
        # The mask "fast" of 9 steps has 4, 1 and 1 full steps with 1 and 2 between; it cuts the warm-up to 4.
        ([1.0] * 9, {"mask": "fast"}, [0, 1, 2, 3, 5, 8]),
        ([2.0**step for step in range(9)], {"mask": "fast"}, list(range(9))),
        (
            [2.0**step for step in range(9)],
            {"mask": "fast", "mask_policy": "static", "max_continuous_cached_steps": 1},
            [0, 1, 2, 3, 5, 8],
        ),
    ],
    ids=str,
)
def test_dbcache_decides_in_the_order_of_cache_dit(added, settings, expected):
    assert Scripted(added).decided(DBCache(Fn_compute_blocks=1, **settings)) == expected


@pytest.mark.parametrize(
    ("settings", "errors", "expected"),
    [
        # The step after a full one is a forecast, in the warm-up, too; at most three follow each other.
        ({"min_interval": 9, "max_interval": 3}, 0.0, [0, 2, 6, 10]),
        # Verified past one forecast: of 3 and 4 after 2 the second, which makes 5 full.
        ({"min_interval": 1, "max_interval": 8}, 5.0, [0, 2, 5, 8, 11]),
        # Verified from the first forecast on: 4 is full by the error of 3.
        ({"min_interval": 1, "max_interval": 8, "check_all": True}, 5.0, [0, 2, 4, 6, 8, 10]),
        # 0.3 · 0.05^((step + 1) / 12) falls below 0.05 at step 7.
        ({"min_interval": 1, "max_interval": 12}, 0.05, [0, 2, 7, 10]),
        # One step less of the run has passed: a threshold later.
        ({"min_interval": 1, "max_interval": 12, "ahead": 0}, 0.05, [0, 2, 8, 11]),
        # The floor is above the error.
        ({"min_interval": 1, "max_interval": 12, "floor": 0.06}, 0.05, [0, 2]),
    ],
    ids=str,
)
def test_speca_decides_by_the_error_of_the_step_before(settings, errors, expected):
    assert Scripted(STILL).decided(SpeCa(**settings), dict.fromkeys(range(12), errors)) == expected


def test_speca_means_ratios():
    """|2 - 1| / 1 and |3 - 4| / 4 of the features, not (1 + 1) / (1 + 4); and of the tokens 0."""
    forecast, computed = (
        SimpleNamespace(feature=torch.tensor([[values]]), output=torch.zeros(1, 1, 1))
        for values in ([2.0, 3.0], [1.0, 4.0])
    )
    look = SimpleNamespace(sums=lambda *values: [value.sum().item() for value in values], report=lambda **_: None)
    decider = SpeCa(error_of="feature")
    decider.verify(look, forecast, computed)
    assert decider.error == pytest.approx((1 + 0.25) / 2)
    decider = SpeCa(error_of="output")
    decider.verify(look, forecast, computed)
    assert decider.error == 0


def test_cg_taylor_forecasts_block_0():
    """Tokens after block 0 grow by one a step: order 1 is right from the second full step on, order 0 never."""
    for order, expected in ((1, [0, 1, 2, 7]), (0, list(range(8)))):
        look, decider = Scripted([0.0] * 8), CGTaylor(threshold=0.05, first_block_order=order, warmup_steps=3)
        look.change = lambda a, b: float((a - b).abs().sum() / b.abs().sum())
        type(look).after = property(lambda self: torch.tensor([1.0 + self.step]))
        assert look.decided(decider) == expected
        del type(look).after


# -------------------------------------------------------------------------------------------------- the published code


@pytest.mark.slow
@pytest.mark.parametrize(("first", "last", "max_order"), [(1, 0, 0), (1, 0, 1), (2, 1, 0), (2, 1, 2), (1, 2, 1)])
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_dbcache_is_that_of_cache_dit(need, name, first, last, max_order):
    settings = {
        "Fn_compute_blocks": first, "Bn_compute_blocks": last, "residual_diff_threshold": 0.12, "max_warmup_steps": 4
    }  # fmt: skip
    assert_is_cache_dit(need, name, 20, max_order, settings, settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"residual_diff_threshold": 0.2, "max_warmup_steps": 4, "max_cached_steps": 4},
        {"residual_diff_threshold": 0.5, "max_warmup_steps": 6, "warmup_interval": 2, "max_continuous_cached_steps": 2},
        {"residual_diff_threshold": 1.0, "max_warmup_steps": 4, "max_continuous_cached_steps": 3},
        {
            "residual_diff_threshold": 0.2, "max_warmup_steps": 4, "max_accumulated_residual_diff_threshold": 0.8
        },
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("name", ["flux", "wan"])
def test_limits_of_dbcache_are_those_of_cache_dit(need, name, settings):
    settings = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 2, **settings}
    assert_is_cache_dit(need, name, 20, 1, settings, settings)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["dynamic", "static"])
@pytest.mark.parametrize("num_steps", [20, 40])
def test_masks_of_dbcache_are_those_of_cache_dit(need, num_steps, policy):
    common = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 1, "residual_diff_threshold": 0.12, "max_warmup_steps": 8}
    mask = need("cache_dit").steps_mask(total_steps=num_steps, mask_policy="fast")
    theirs = {**common, "steps_computation_mask": mask, "steps_computation_policy": policy}
    assert_is_cache_dit(need, "flux", num_steps, 1, {**common, "mask": "fast", "mask_policy": policy}, theirs)


def assert_is_cache_dit(need, name: str, num_steps: int, max_order: int, ours: dict, theirs: dict) -> None:
    """The same decisions of each guidance branch, the same outputs."""
    need("cache_dit")
    from reference import side_by_side

    loop = reference.open_loop(name, num_steps)
    played = side_by_side.play_cache_dit(name, loop, max_order or None, **theirs)
    runs, outputs = reference.play(name, loop, make_cache("dbcache", max_order=max_order, **ours))
    assert full_steps(runs) == played.full_steps
    assert len(runs[0].full_steps) < num_steps
    assert largest_difference(outputs, played.outputs) <= 1e-4


# ------------------------------------------------------------------------------------------------------- every backbone


@pytest.mark.parametrize("method", SPLIT)
@pytest.mark.parametrize("name", NETWORKS)
def test_threshold_0_is_the_uncached_model_to_the_bit(name, method):
    threshold = "residual_diff_threshold" if method == "dbcache" else "threshold"
    loop = reference.open_loop(name, 6)
    runs, outputs = reference.play(name, loop, cache_of(method, name, **{threshold: 0.0}))
    _, plain = reference.play(name, loop, make_cache("uncached"))
    assert full_steps(runs) == [list(range(6))] * len(runs)
    assert all(torch.equal(a, b) for a, b in zip(outputs, plain, strict=True))


@pytest.mark.parametrize("method", [*SPLIT, "speca"])
@pytest.mark.parametrize("name", NETWORKS)
def test_samplers_take_these_methods(name, method):
    """The method's published settings but for those that a short run and a shallow network need; both kinds of step."""
    latents, run = reference.sample(name, reference.network(name), 10, cache_of(method, name, telemetry=True))
    assert latents.isfinite().all()
    for branch in getattr(run, "runs", [run]):
        record = branch.record()
        assert 1 < len(record["full_steps"]) < 10
        errors = [e["forecast_error"] for e in record["steps"] if e["kind"] == "full" and e["step"]]
        assert all(0 <= error < 10 for error in errors)


@pytest.mark.parametrize("name", NETWORKS)
def test_speca_takes_the_forecasts_of_taylorseer(name):
    """Verified or not, they are those of the layerwise form at the same full steps; the first branch decides for all."""
    loop, cache = reference.open_loop(name, 16), cache_of("speca", name)
    runs, outputs = reference.play(name, loop, cache)
    taylor = cache.forecaster
    same = make_cache(
        full_steps=runs[0].full_steps, max_order=taylor.max_order, warmup_steps=taylor.warmup_steps, engine="layerwise"
    )
    assert largest_difference(outputs, reference.play(name, loop, same)[1]) <= 1e-5
    assert full_steps(runs) == [runs[0].full_steps] * len(runs)
    steps = runs[0].record()["steps"]
    assert {"verified" in e for e in steps if e["kind"] == "forecast"} == (
        {True} if name in CHECKED_ALL else {True, False}
    )
    assert all(("error" in e) == ("verified" in e) for e in steps)
    assert not any("verified" in e for run in runs[1:] for e in run.steps)


CHECKED_ALL = ("hunyuan_video", "wan")


@pytest.mark.parametrize("engine", ["layerwise", "folded", "walked"])
def test_a_walked_forecast_is_the_layerwise_one(engine):
    loop = reference.open_loop("flux", 10)
    settings = {"interval": 3, "max_order": 2, "warmup_steps": 2}
    _, outputs = reference.play("flux", loop, make_cache(engine=engine, **settings))
    _, walked = reference.play("flux", loop, make_cache(engine="walked", **settings))
    assert largest_difference(outputs, walked) <= 1e-5


def test_a_walked_run_counts_the_bytes_of_the_other_streams():
    """FLUX of 3 double and 4 single blocks, 12 image and 5 text tokens: (3 · 2 + 4) · (12 + 5) rows at each full step."""
    runs, _ = reference.play("flux", reference.open_loop("flux", 10), cache_of("speca", "flux", max_order=1))
    assert runs[0].kept_bytes == 2 * reference.BATCH * 10 * 17 * 48 * 4


def test_what_decides_is_kept_too():
    """Of tokens: the residual and that of block 0; the latest hidden states and those after block 0."""
    tokens = 2 * 16 * 48 * 4
    for method, settings, count in (
        ("first_block_cache", {}, 2), ("dbcache", {}, 2), ("dbcache", {"max_order": 1}, 3),
        ("cg_taylor", {"first_block_order": 2, "last_block_order": 1}, 5),
    ):  # fmt: skip
        cache = cache_of(method, "dit", **settings)
        (run,), _ = reference.play("dit", reference.open_loop("dit", 8), cache)
        assert run.kept_bytes == count * tokens == cache.kept_bytes(8, run.tokens)[cache.engine]


# --------------------------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize("method", [*SPLIT, "speca"])
def test_nothing_crosses_runs_or_sizes(method):
    """Two runs of one cache, at two sizes, taken in turn, are those taken alone; so is one after them."""
    cache, whole = cache_of(method, "wan"), reference.open_loop("wan", 12)
    small = replace(whole, latents=whole.latents[..., :1, :4, :])
    alone = [reference.play("wan", loop, cache) for loop in (whole, small)]
    model = reference.network("wan")
    runs = [cache.start(model, loop.latents[0], loop.timesteps, **loop.branches[0]) for loop in (whole, small)]
    for step, t in enumerate(whole.timesteps):
        for loop, run, (first, outputs) in zip((whole, small), runs, alone, strict=True):
            latents = loop.latents[step]
            output = model(latents, t.expand(len(latents)), **loop.branches[0], cache=run.at(step))
            assert torch.equal(output, outputs[0][step])
            assert first[0].steps[step] == run.steps[step]
    again, outputs = reference.play("wan", whole, cache)
    assert full_steps(again) == full_steps(alone[0][0])
    assert largest_difference(outputs, alone[0][1]) == 0


@pytest.mark.parametrize("method", ["first_block_cache", "dbcache"])
def test_guidance_branches_decide_apart_or_together(method):
    loop = reference.open_loop("wan", 20)
    settings = {"threshold": 0.12} if method == "first_block_cache" else {"residual_diff_threshold": 0.12}
    apart, _ = reference.play("wan", loop, cache_of(method, "wan", **settings))
    together, _ = reference.play("wan", loop, cache_of(method, "wan", by_branch=False, **settings))
    assert apart[0].full_steps != apart[1].full_steps
    assert full_steps(together) == [apart[0].full_steps] * 2


# ---------------------------------------------------------------------------------------------------------------- FLOPs


@torch.no_grad()
@pytest.mark.parametrize("method", [*SPLIT, "speca"])
@pytest.mark.parametrize("name", ["dit", pytest.param("wan", marks=pytest.mark.slow)])
def test_flops_are_those_of_the_run(name, method):
    """As torch counts them while it runs; the element-wise work of engines is counted by formula alone."""
    played = []
    loop = reference.open_loop(name, 8)
    counted = count_flops(lambda: played.append(reference.play(name, loop, cache_of(method, name))[0]))
    assert sum(run_flops(run)[0] - run.work_flops for run in played[0]) == counted


def test_flops_of_a_split_step_by_hand():
    """DiT of 4 blocks of width 48 on 2 · 16 tokens: every step has the first block, all modulation and both ends."""
    (run,), _ = reference.play(
        "dit", reference.open_loop("dit", 8), cache_of("first_block_cache", "dit", threshold=99.0)
    )
    assert run.full_steps == [0]
    rows, dim = 2 * 16, 48
    block = 2 * rows * dim * (4 * dim + 2 * 4 * dim) + 4 * rows * 16 * dim
    modulation = 2 * 2 * dim * (4 * 6 * dim + 2 * dim)
    condition = 2 * (256 * dim + dim * dim)  # of the time, which all rows share
    ends = 2 * rows * (16 * dim + dim * 2 * 16)
    assert run_flops(run)[0] - run.work_flops == 8 * (block + modulation + condition + ends) + 3 * block


# ----------------------------------------------------------------------------------------------------------------- else


def compiled(name: str) -> nn.Module:
    model = reference.network(name)
    compile_steps(model, backend="eager")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_each_range_of_blocks_is_a_graph(name, num_graphs):
    """Head and rest of FirstBlockCache, which CG-Taylor shares; head, rest and tail of DBCache; each as uncompiled.

    Where text comes first in single blocks, the image tokens after them are a view, those of a forecast are not: two tails.
    """
    model = compiled(name)
    both = 5 + (name in ("flux", "hidream"))
    for method, graphs in (("first_block_cache", 2), ("cg_taylor", 2), ("dbcache", both), ("first_block_cache", both)):
        cache = cache_of(method, name, static_shapes=True)
        expected, _ = reference.sample(name, reference.network(name), 8, cache)
        latents, _ = reference.sample(name, model, 8, cache)
        torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)
        assert num_graphs() == graphs


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("dbcache", {"Fn_compute_blocks": 0}, "Fn_compute_blocks = 0 must be an integer of at least 1"),
        ("dbcache", {"Bn_compute_blocks": -1}, "Bn_compute_blocks = -1 must be an integer of at least 0"),
        ("dbcache", {"residual_diff_threshold": -0.1}, "residual_diff_threshold = -0.1 must be at least 0"),
        ("dbcache", {"warmup_interval": 0}, "warmup_interval = 0 must be an integer of at least 1"),
        ("dbcache", {"mask": "quick"}, "mask 'quick' is unknown; choose from slow, medium, fast, ultra"),
        ("dbcache", {"mask_policy": "none"}, "mask_policy 'none' is unknown; choose from dynamic, static"),
        ("first_block_cache", {"threshold": -1.0}, "threshold = -1.0 must be at least 0"),
        ("cg_taylor", {"threshold": -1.0}, "threshold = -1.0 must be at least 0"),
        ("cg_taylor", {"first_block_order": -1}, "max_order = -1 must be an integer of at least 0"),
        ("speca", {"decay": 0.0}, "decay = 0.0 must be above 0"),
        ("speca", {"max_interval": 0}, "max_interval = 0 must be an integer of at least 1"),
        ("speca", {"error_of": "x"}, "error_of 'x' is unknown; choose from output, feature"),
        ("speca", {"engine": "stack"}, "schedule 'speca' verifies forecasts.*leave out engine=stack"),
    ],
)  # fmt: skip
def test_bad_settings_are_named(method, settings, message):
    with pytest.raises(UserError, match=message):
        make_cache(method, preset="dit", **settings)


def test_a_schedule_of_ones_own_may_verify():
    """And what goes wrong in it is named with its file and line."""
    seen = []

    @register("checking", engine="walked")
    @dataclass(kw_only=True)
    class Checking(Decider):
        verifies = True

        def decide(self, look):
            return look.step % 3 == 0

        def verify(self, look, forecast, computed):
            if look.step == 4:
                raise ZeroDivisionError("four")
            seen.append((look.step, forecast.output.shape == computed.output.shape == computed.feature.shape))

    try:
        with pytest.raises(UserError, match=r"failed to verify step 4: .*test_blocks.py:\d+: ZeroDivisionError: four"):
            reference.play("dit", reference.open_loop("dit", 6), make_cache("checking"))
    finally:
        del METHODS["checking"], SCHEDULES["checking"]
    assert seen == [(1, True), (2, True)]


def test_a_model_without_a_block_to_forecast_is_refused():
    loop = reference.open_loop("dit", 4)
    with pytest.raises(
        UserError, match="3 first and 1 last blocks leave none of the model's 4 to forecast; take fewer"
    ):
        reference.play("dit", loop, make_cache("dbcache", Fn_compute_blocks=3, Bn_compute_blocks=1))


@pytest.mark.parametrize(
    ("method", "model", "backbone", "settings"),
    [
        ("first_block_cache", "flux-dev", "flux", {"threshold": 0.08}),
        ("first_block_cache", "hunyuan-video", "hunyuan_video", {"threshold": 0.06}),
        ("first_block_cache", "wan-t2v-1.3B", "wan", {"threshold": 0.02}),
        ("first_block_cache", "hidream-full", "hidream", {"threshold": 0.05}),
        ("dbcache", "flux-dev", "flux", {"Fn_compute_blocks": 8, "residual_diff_threshold": 0.08, "max_order": 0}),
        ("dbcache", "flux-tiny", "flux", {"Fn_compute_blocks": 1, "max_warmup_steps": 8, "max_order": 0}),
        ("cg_taylor", "wan-t2v-14B", "wan", {"threshold": 0.36, "first_block_order": 3, "warmup_steps": 6}),
        ("speca", "flux-dev", "flux", {"base": 7.0, "max_order": 2, "error_of": "feature", "ahead": 0}),
        ("speca", "DiT-XL/2", "dit", {"base": 0.3, "max_order": 4, "warmup_steps": 3, "ahead": 1}),
    ],
)
def test_published_settings(method, model, backbone, settings):
    assert make_cache(method, preset=backbone, model=model).schedule_settings.items() >= settings.items()
