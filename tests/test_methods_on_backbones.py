"""Every method on every backbone: it runs, its record says what was computed, it leaves nothing behind, and it is what it says.

Where a method has no settings for a backbone the test gives some; where it cannot be had there, asking is one clear line.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference
import torch
from torch import Tensor, nn

from cache_dic import METHODS, SCHEDULES, Cache, UserError, accepted_settings, make_cache

BACKBONES = ("dit", "flux", "hidream", "hunyuan_video", "wan")
NUM_STEPS = 9
FULL = {"uncached"}  # computes every step whatever is asked for
FORECASTS = {"speca"}  # forecasts the step after every full one whatever is asked for
CALIBRATIONS = Path(__file__).parent / "shared" / "calibrations"
SETTINGS: dict[str, dict[str, Any]] = {  # of methods without any for a tiny network, or none for few steps
    "teacache": {"coefficients": (1.0, 0.0)},
    "magcache": {"table": [1.0, 0.9, 0.95, 0.98, 0.99, 0.99, 0.98, 0.97, 0.9], "threshold": 0.06},
    "dbcache": {"Fn_compute_blocks": 1, "max_warmup_steps": 1},
    "easycache": {"forced_first": 2},
    "navicache": {"forced_first": 2, "align_steps": 3},
    "loopseer": {"calibration": str(CALIBRATIONS / "loopseer-3-of-9.json")},
}
NEVER_ALL = {
    ("toca", "dit"),
    ("duca", "dit"),
}  # released with an interval of 2 in a stretch of the run, whatever is asked for
EVERY: dict[str, dict[str, Any]] = {  # settings of methods without an interval or threshold that compute everything
    "loopseer": {"calibration": str(CALIBRATIONS / "loopseer-9-of-9.json")},
    "pab": {"spatial_range": 1, "cross_range": 1},
    "fastercache": {"attention_interval": 1, "both_interval": 1},
    "fastercache_diffusers": {"attention_range": 1, "both_range": 1},
}
BOUNDS = (
    "threshold",
    "residual_diff_threshold",
    "base",
)  # settings below which a method that decides while sampling forecasts
PAIRS = [(method, backbone) for method in METHODS for backbone in BACKBONES]
LISTED = {"smoothcache", "procache"}  # have lists for 50 steps and for some backbones
DEFINED = [
    (method, backbone)
    for method, backbone in PAIRS
    if backbone not in METHODS[method].undefined and (method not in LISTED or METHODS[method].rows(None, backbone))
]


@functools.cache
def network(backbone: str) -> nn.Module:
    return reference.network(backbone)


def num_steps(method: str) -> int:
    """Those that published lists are for, else a few."""
    return 50 if method in LISTED else NUM_STEPS


def sampled(backbone: str, cache: Cache, steps: int = NUM_STEPS) -> tuple[Tensor, list[Any]]:
    """Latents, and the runs of the guidance branches."""
    latents, result = reference.sample(backbone, network(backbone), steps, cache)
    return latents, getattr(result, "runs", [result])


def bound_of(method: str) -> str | None:
    """The setting that says when a method that decides while sampling computes, None of the others."""
    chosen = METHODS[method]
    if not isinstance(SCHEDULES[chosen.schedule], type):
        return None
    return next((name for name in BOUNDS if name in accepted_settings(method)), None)


@functools.cache
def settings_of(method: str, backbone: str) -> dict[str, Any]:
    """Settings under which some steps of the tiny network are forecast and some are not."""
    settings, bound = SETTINGS.get(method, {}), bound_of(method)
    if bound is None:
        return settings
    for exponent in range(-5, 4, 2):
        tried = settings | {bound: 2.0**exponent}
        _, runs = sampled(backbone, make_cache(method, preset=backbone, **tried))
        if all(len(run.full_steps) < NUM_STEPS - 1 for run in runs):
            return tried
    raise AssertionError(f"{method} forecasts nothing on {backbone}")


def cache_of(method: str, backbone: str, **more: Any) -> Cache:
    return make_cache(method, preset=backbone, **settings_of(method, backbone) | more)


@pytest.mark.parametrize(("method", "backbone"), DEFINED)
def test_runs_tells_what_it_computed_and_leaves_nothing_behind(method, backbone):
    cache, steps = cache_of(method, backbone), num_steps(method)
    latents, runs = sampled(backbone, cache, steps)
    assert latents.isfinite().all()
    for run in runs:
        record = run.record()
        assert json.loads(json.dumps(record, allow_nan=False)) == record
        kinds = [entry["kind"] for entry in record["steps"]]
        assert [step for step, kind in enumerate(kinds) if kind == "full"] == record["full_steps"]
        assert len(kinds) == steps
        assert record["full_steps"][0] == 0
        assert (len(record["full_steps"]) == steps) is (method in FULL)
        assert record["kept_bytes"] >= 0
        assert record["method"] == method
    again, others = sampled(backbone, cache, steps)
    assert torch.equal(again, latents), "a second run begins as the first"
    assert [run.record() for run in others] == [run.record() for run in runs]


@pytest.mark.parametrize(("method", "backbone"), [pair for pair in DEFINED if pair not in NEVER_ALL])
def test_that_computes_every_step_is_the_uncached_model(method, backbone):
    """With interval 1, with a threshold of 0, or with a list of all steps: to the bit, but where guidance branches are calls of
    their own, whose products have other numbers of rows, which not every processor sums in the same order."""
    if method in EVERY:
        settings = EVERY[method]
    elif (bound := bound_of(method)) and method not in FORECASTS:
        settings = SETTINGS.get(method, {}) | {bound: 0.0}
    elif "interval" in accepted_settings(method) and method not in FULL:
        settings = {"interval": 1}
    else:
        settings = {"full_steps": range(NUM_STEPS)} if method not in FULL else {}
    cache, expected = make_cache(method, preset=backbone, **settings), uncached(backbone)
    latents, runs = sampled(backbone, cache)
    assert [run.full_steps for run in runs] == [list(range(NUM_STEPS))] * len(runs)
    if cache.separate_branches:
        assert (latents - expected).abs().max() <= 1e-4 * expected.abs().max()
    else:
        assert torch.equal(latents, expected)


@functools.cache
def uncached(backbone: str) -> Tensor:
    return reference.sample(backbone, network(backbone), NUM_STEPS)[0]


@pytest.mark.parametrize(("method", "backbone"), [pair for pair in DEFINED if METHODS[pair[0]].engine == "folded"])
def test_the_folded_form_is_the_site_form(method, backbone, in_float64):
    steps, settings = num_steps(method), settings_of(method, backbone)
    model = reference.network(backbone)
    states = [
        reference.sample(backbone, model, steps, make_cache(method, preset=backbone, engine=engine, **settings))[0]
        for engine in ("folded", "layerwise")
    ]
    assert states[0].dtype == torch.float64
    assert (states[0] - states[1]).abs().max() <= 1e-12 * states[1].abs().max()


@pytest.fixture
def in_float64() -> Callable:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("method", "backbone"), [pair for pair in PAIRS if pair not in DEFINED])
def test_where_it_cannot_be_had_one_line_says_why(method, backbone):
    why = f"method '{method}' is not defined for {backbone}: "
    if method in LISTED:
        why = (
            rf"schedule 'published' of method '{method}' needs list_name, which it has for dit.* and not for {backbone}"
        )
    with pytest.raises(UserError, match=why) as error:
        make_cache(method, preset=backbone, **SETTINGS.get(method, {}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", ["smoothcache", "procache"])
def test_lists_for_another_number_of_steps_say_so(method):
    with pytest.raises(UserError, match=r"schedule list '\w+(\.\d+)?' is of 50 steps, not 28; take num_steps=50"):
        make_cache(method, preset="dit").plan(28)


@pytest.mark.slow
def test_methods_join_a_command_beside_each_other(run_script, tmp_path):
    """Of the embedded model, each with all settings that it comes with; every row says what it computed."""
    methods = (
        "spectrum",
        "freqca",
        "ab_cache",
        "hicache",
        "chebbooster",
        "foca",
        "taylorseer_lite",
        "easycache",
        "navicache",
    )
    flags = [
        "--model",
        "flux-tiny",
        "--num-steps",
        12,
        "--prompt",
        "sunflower, noto",
        "--json",
        "--output-dir",
        tmp_path,
    ]
    done = run_script("TaylorSeer-FLUX/sample.py", *flags, "--compare", "--method", *methods)
    assert done.returncode == 0, done.stderr
    rows = {row["label"]: row for row in json.loads(done.stdout)["rows"]}
    for method in methods:
        of_method = [row for label, row in rows.items() if label.startswith(f"{method}-")]
        assert len(of_method) >= 2, method
        assert all(row["psnr"] is not None and row["kept_bytes"] >= 0 for row in of_method)
    assert [label for label in rows if label.startswith("hicache")] == [
        "hicache-N6-W3-O1", "hicache-N6-W3-O2-contraction=0.6", "hicache-N7-W3-O2-contraction=0.7"
    ]  # fmt: skip
