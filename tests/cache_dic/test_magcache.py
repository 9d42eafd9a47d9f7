"""MagCache's schedules: those of every table, the rule by hand and as the scripts count, tables from files."""

import json
import math

import pytest
import torch

from cache_dic import UserError
from cache_dic.methods.magcache import CALIBRATIONS, PRESETS, magcache, read_table, table_names

# Full steps that each table gives at its own number of steps and settings; 0-9 stands for 0 1 2 … 9.
FULL_STEPS = {
    "flux_1_dev": "0-2 5 9 11 17 23 26",
    "flux_1_kontext_dev": "0-5 7 10 11 16 21 24 26 27",
    "hunyuan_video_720p": "0-9 14 18 23 29 34 41 46 48 49",
    "hunyuan_video_544p": "0-9 14 18 23 29 34 41 46 48",
    "wan2_1_t2v_1_3b": "0-9 14 19 24 29 34 38 41 44 46 48 49",
    "wan2_1_t2v_14b": "0-9 16 23 30 36 41 44 47 49",
    "wan2_1_i2v_14b_480p": "0-7 14 20 25 30 34 37 39",
    "wan2_1_i2v_14b_720p": "0-7 14 21 27 32 35 38",
    "wan2_1_vace_1_3b": "0-9 13 17 21 24 27 30 33 35 37 39 41-49",
    "wan2_2_ti2v_5b_t2v": "0-9 12 15 18 21 24 27 30 33 36 38 40 42 44 46 48",
    "wan2_2_ti2v_5b_i2v": "0-9 12 15 18 21 24 27 30 33 36 38 40 42 44 46-48",
    "qwen_image": "0-15 17-19 21 23 25 27 29 31 34 37 39 41-49",
    "qwen_image_edit": "0-12 14 16 18 20 22 24 26 29 32 35 37 39-49",
    "framepack": "0-4 7 9 12 15 18 22 24",
    "framepack_f1": "0-4 7 9 12 16 20 22 24",
    "omnigen2_t2i_cond": "0-9 13 17 21 25 29 33 37 41 45 47-49",
    "omnigen2_t2i_uncond": "0-9 13 17 21 25 29 33 37 41 45 47-49",
    "omnigen2_edit_cond": "0-9 13 17 21 25 29 33 37 41 44 47 49",
    "omnigen2_edit_uncond": "0-9 13 17 21 25 29 33 37 41 44 46 48 49",
    "omnigen2_edit_ref": "0-9 13 17 21 25 29 33 37 41 44 46 48 49",
    "hunyuan_video_1_5_i2v_480p": "0-9 16 23 30 37 42 46 49",
}


def expand(text):
    runs = [[int(end) for end in run.split("-")] for run in text.split()]
    return tuple(step for run in runs for step in range(run[0], run[-1] + 1))


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@pytest.mark.parametrize(("table", "expected"), FULL_STEPS.items(), ids=FULL_STEPS)
def test_every_table(table, expected, branch):
    assert magcache(read_table(table).num_steps, table=table, branch=branch) == expand(expected)


def test_every_table_is_tested_and_complete():
    measured = {path.stem.removeprefix("magcache-") for path in CALIBRATIONS.glob("magcache-*.json")}
    assert set(table_names()) == set(FULL_STEPS) | measured
    for name in table_names():
        table = read_table(name)
        assert {len(ratios) for ratios in table.ratios.values()} == {table.num_steps}
        assert all(0.5 < ratio < 2 for ratios in table.ratios.values() for ratio in ratios)


def test_tables_of_two_branches_differ_and_others_do_not():
    wan, flux = read_table("wan2_1_t2v_1_3b").ratios, read_table("flux_1_dev").ratios
    assert (wan["cond"][1], wan["uncond"][1]) == (1.0124, 1.02213)
    assert flux["cond"] == flux["uncond"]
    assert flux["cond"][:3] == (1.0, 1.21094, 1.11719)


def test_rule_by_hand():
    """Retained: 2 of 8. Then 1.1, 1.21, 1.331: errors 0.1, 0.31, 0.641, so the third skip fails 0.5; then 0.9, 0.81, 0.729."""
    ratios = [1.0, 5.0, 1.1, 1.1, 1.1, 0.9, 0.9, 0.9]
    assert magcache(8, table=ratios, threshold=0.5, retention_ratio=0.25) == (0, 1, 4, 7)
    assert magcache(8, table=ratios, threshold=0.5, retention_ratio=0.25, max_consecutive=1) == (0, 1, 3, 5, 7)
    assert magcache(8, table=ratios, threshold=0.65, retention_ratio=0.25) == (0, 1, 5)


def test_error_at_the_threshold():
    """Skipped at it, as in most scripts; where calls are counted, below it alone. 0.25 is exact in binary."""
    one = {"num_steps": 4, "ratio": [1.0, 1.25, 1.0, 1.0]}
    two = {"num_steps": 4, "ratio_cond": one["ratio"], "ratio_uncond": one["ratio"], "calls": True}
    assert magcache(4, table=one, threshold=0.25, retention_ratio=0) == (0, 2)
    assert magcache(4, table=two, threshold=0.25, retention_ratio=0) == (0, 1)


@pytest.mark.parametrize("table", table_names())
def test_threshold_zero_skips_nothing(table):
    assert magcache(50, table=table, threshold=0) == tuple(range(50))
    assert magcache(50, table=table, max_consecutive=0) == tuple(range(50))
    assert magcache(50, table=table, retention_ratio=1) == tuple(range(50))


def test_forced_step_of_flux():
    """Index 11 of the table: step 11 of 28, 20 of 50."""
    assert 11 in magcache(28, table="flux_1_dev")
    assert magcache(28, table="flux_1_dev", forced=False) == (0, 1, 2, 5, 9, 15, 21, 26)
    assert 20 in magcache(50, table="flux_1_dev")
    assert 20 not in magcache(50, table="flux_1_dev", forced=False)


def test_retained_steps_are_rounded_as_each_script_does():
    """0.1 of 28 is 2.8 and 0.2 of 28 is 5.6: to the nearest in FLUX's, down in HunyuanVideo's, up in OmniGen2's."""
    patient = {"threshold": 100.0, "max_consecutive": 1000, "forced": False}
    assert magcache(28, table="flux_1_dev", **patient) == (0, 1, 2)
    assert magcache(26, table="flux_1_dev", retention_ratio=0.2, **patient) == (0, 1, 2, 3, 4)
    assert magcache(28, table="hunyuan_video_720p", **patient) == (0, 1, 2, 3, 4)
    assert magcache(26, table="omnigen2_t2i_cond", **patient) == (0, 1, 2, 3, 4, 5)


def test_wan_counts_calls():
    """int(2 · 28 · 0.2) = 11 calls are retained: six of cond, five of uncond."""
    patient = {"threshold": 100.0, "max_consecutive": 1000}
    assert magcache(28, table="wan2_1_t2v_1_3b", **patient) == (0, 1, 2, 3, 4, 5)
    assert magcache(28, table="wan2_1_t2v_1_3b", branch="uncond", **patient) == (0, 1, 2, 3, 4)


@pytest.mark.parametrize("num_steps", [20, 25, 28, 33, 50, 77])
@pytest.mark.parametrize("retention_ratio", [0.1, 0.2, 0.25])
def test_wan_is_its_loop_over_calls(num_steps, retention_ratio):
    """The script's own walk: one interleaved table, both branches in turn, resampled apart."""
    table = read_table("wan2_1_t2v_14b")

    def nearest(values):
        scale = (len(values) - 1) / (num_steps - 1)
        return torch.tensor(values)[torch.round(torch.arange(num_steps, dtype=torch.float64) * scale).long()].tolist()

    interleaved = [
        v for pair in zip(*(nearest(table.ratios[b]) for b in ("cond", "uncond")), strict=True) for v in pair
    ]
    growth, error, skips, full = [1.0, 1.0], [0.0, 0.0], [0, 0], ([], [])
    for call in range(2 * num_steps):
        branch, skip = call % 2, False
        if call >= int(2 * num_steps * retention_ratio):
            growth[branch] *= interleaved[call]
            skips[branch] += 1
            error[branch] += abs(1 - growth[branch])
            skip = error[branch] < 0.2 and skips[branch] <= 5
        if not skip:
            growth[branch], error[branch], skips[branch] = 1.0, 0.0, 0
            full[branch].append(call // 2)
    settings = {"threshold": 0.2, "max_consecutive": 5, "retention_ratio": retention_ratio}
    for branch, expected in zip(("cond", "uncond"), full, strict=True):
        assert magcache(num_steps, table="wan2_1_t2v_14b", branch=branch, **settings) == tuple(expected)


@pytest.mark.parametrize("num_steps", [4, 10, 20, 28, 50])
@pytest.mark.parametrize("threshold", [0.02, 0.06, 0.24])
def test_agrees_with_the_hook_of_diffusers(need, num_steps, threshold):
    """Its decisions, block by block on a stand-in; it knows no forced step."""
    hook = need("diffusers.hooks.mag_cache")
    table = read_table("flux_1_dev")
    config = hook.MagCacheConfig(
        threshold=threshold, num_inference_steps=num_steps, mag_ratios=list(table.ratios["cond"])
    )
    state = hook.MagCacheState()
    state.previous_residual = torch.zeros(1, 1, 1)
    manager = type("Manager", (), {"get_state": lambda self: state, "_context": "set"})()
    head = hook.MagCacheHeadHook(manager, config)
    head._metadata = type(
        "Metadata",
        (),
        {
            "hidden_states_argument_name": "x",
            "return_encoder_hidden_states_index": None,
            "_get_parameter_from_args_kwargs": lambda self, name, args, kwargs: kwargs[name],
        },
    )()
    head.fn_ref = type("Fn", (), {"original_forward": staticmethod(lambda **kwargs: kwargs["x"])})()
    full = []
    for step in range(num_steps):
        state.step_index = step
        head.new_forward(None, x=torch.zeros(1, 1, 1))
        full += [step] * bool(state.should_compute)
    got = magcache(
        num_steps, table="flux_1_dev", threshold=threshold, max_consecutive=3, retention_ratio=0.2, forced=False
    )
    assert got == tuple(full)


def test_resampling_takes_the_nearest_entry():
    """By hand for 5 entries: at 9 steps 0, 0.5, 1 … 4, where halves go to the even neighbour; at 3 steps 0, 2, 4."""
    table = read_table({"num_steps": 5, "ratio": [1.0, 1.1, 1.2, 1.3, 1.4]})
    assert table.at(5, "cond") == [1.0, 1.1, 1.2, 1.3, 1.4]
    assert table.at(3, "uncond") == [1.0, 1.2, 1.4]
    assert table.at(9, "cond") == [1.0, 1.0, 1.1, 1.2, 1.2, 1.2, 1.3, 1.4, 1.4]
    assert table.at(1, "cond") == [1.4]


@pytest.mark.parametrize("num_steps", [1, 2, 3])
@pytest.mark.parametrize("table", table_names())
def test_short_runs_begin_full(table, num_steps):
    assert magcache(num_steps, table=table, retention_ratio=0)[0] == 0


def test_table_from_a_file(tmp_path):
    """Without settings of its own it has those of diffusers."""
    ratios = [1.0, 1.2, 1.01, 1.01, 1.01, 1.01, 1.01, 1.01]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"num_steps": 8, "ratio": ratios}))
    got = magcache(8, table=str(path))
    assert got == magcache(8, table=ratios, threshold=0.06, max_consecutive=3, retention_ratio=0.2) == (0, 1, 4, 7)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"num_steps": 3}, "has no ratio_cond, ratio_uncond; it needs num_steps and ratio"),
        ({"num_steps": 3, "ratio": [1.0, 1.1]}, "ratio of table .* must be a list of 3 numbers"),
        ({"num_steps": 2, "ratio": [1.0, -1.1]}, "must be finite numbers above 0"),
        ({"num_steps": 2, "ratio": [1.0, math.nan]}, "must be finite numbers above 0"),
        ({"num_steps": 2, "ratio": [1.0, True]}, "must be finite numbers above 0"),
        ({"num_steps": 2, "ratio": [1.0, 1.1], "treshold": 1}, "has unknown treshold"),
        ({"num_steps": 2, "ratio": [1.0, 1.1], "ratios": {}}, "has unknown ratios"),
        ({"num_steps": 2, "ratio": [1.0, 1.1], "retention": "off"}, "retention 'off' is unknown"),
        ({"num_steps": 2, "ratio": [1.0, 1.1], "forced": 2}, "forced = 2 must be at most 1"),
        ({"num_steps": 0, "ratio": []}, "num_steps of table .* = 0 must be an integer of at least 1"),
        ([1.0], "is no object"),
    ],
)
def test_what_is_no_table(tmp_path, entry, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(entry))
    with pytest.raises(UserError, match=message):
        magcache(2, table=str(path))


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "mine.json"
    with pytest.raises(UserError, match=r"cannot be read: .*No such file"):
        magcache(2, table=str(path))
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read: Expecting"):
        magcache(2, table=str(path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"table": "flux_dev"}, "table 'flux_dev' is unknown; choose from .*; did you mean 'flux_1_dev'"),
        ({"threshold": -0.1}, "threshold = -0.1 must be at least 0"),
        ({"max_consecutive": 1.5}, "max_consecutive = 1.5 must be an integer"),
        ({"retention_ratio": 1.1}, "retention_ratio = 1.1 must be at most 1"),
        ({"branch": "both"}, "branch 'both' is unknown; choose from cond, uncond"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(UserError, match=message):
        magcache(28, **{"table": "flux_1_dev", **settings})


def test_presets_are_possible():
    for rows in PRESETS.values():
        for row in rows:
            assert 1 < len(magcache(50, **row)) < 50
