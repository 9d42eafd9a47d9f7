"""Presets: the published settings of a backbone, where nothing else is asked for; and names that need no torch."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from cache_dic import ENGINE_NAMES, ENGINES, METHODS, PRESETS, UserError, make_cache, register


@pytest.mark.parametrize(
    ("method", "settings", "label"),
    [
        ("taylorseer", {"preset": "wan"}, "taylorseer-N5-W1-O1"),
        ("taylorseer", {"preset": "flux"}, "taylorseer-N6-W3-O2"),
        ("taylorseer", {"preset": "dit"}, "taylorseer-N4-W2-O4"),
        ("taylorseer", {"preset": "dit", "interval": 3}, "taylorseer-N3-W2-O3"),
        ("taylorseer", {"preset": "dit", "interval": 3, "max_order": 1}, "taylorseer-N3-W2-O1"),
        ("taylorseer", {"preset": "hidream", "warmup_steps": 2}, "taylorseer-N4-W2-O2"),
        ("fora", {"preset": "hunyuan_video"}, "fora-N5-W1"),
        ("taylorseer", {"preset": "wan", "full_steps": [0, 1, 5]}, "taylorseer-full_steps=0,1,5-O1-W1"),
        ("uncached", {"preset": "flux"}, "uncached-N1-W1"),
    ],
)
def test_what_is_not_asked_for_is_the_presets(method, settings, label):
    assert make_cache(method, **settings).label == label


def test_a_presets_warm_up_gives_way_to_few_steps():
    assert make_cache("taylorseer", preset="flux").plan(2).full_steps == (0, 1)
    with pytest.raises(UserError, match="warmup_steps = 3 must lie between 1 and the number of steps, 2"):
        make_cache("taylorseer", preset="flux", warmup_steps=3).plan(2)


def test_an_unknown_preset_is_refused():
    with pytest.raises(UserError, match=r"preset 'flux-dev' is unknown; choose from dit, flux, .*did you mean 'flux'"):
        make_cache("taylorseer", preset="flux-dev")
    with pytest.raises(UserError, match=r"interval = \[4\] must be an integer"):
        make_cache("taylorseer", preset="flux", interval=[4])


@pytest.mark.parametrize("settings", [{"interval": 4}, {"full_steps": [0]}, {"schedule": "fora"}, {"warmup_steps": 1}])
def test_uncached_takes_no_setting_that_would_cache(settings):
    with pytest.raises(UserError, match="'uncached' computes every step; leave out"):
        make_cache("uncached", **settings)
    with pytest.raises(UserError, match="preset 'nonsense' is unknown"):
        make_cache("uncached", preset="nonsense")


def test_what_a_method_of_ones_own_says_of_itself_stands(monkeypatch):
    monkeypatch.setattr("cache_dic.registry.METHODS", dict(METHODS))

    @register("own", schedule="taylorseer", interval=7)
    @dataclass(frozen=True, kw_only=True)
    class Own:
        warmup_steps: int
        max_order: int = 5

        def weights(self, full_steps, step):
            return [1.0]

    assert make_cache("own", preset="dit").label == "own-N7-W2-O5", "the warm-up alone is left to the preset"
    assert make_cache("own", preset="dit", max_order=1).label == "own-N7-W2-O1"


def test_presets_and_engines_have_their_names():
    assert list(PRESETS) == ["dit", "flux", "hidream", "hunyuan_video", "wan"]
    assert tuple(ENGINES) == ENGINE_NAMES
    assert all(engine.name == name for name, engine in ENGINES.items())


def test_naming_methods_and_presets_loads_no_torch():
    code = "import cache_dic, sys; cache_dic.METHODS, cache_dic.PRESETS, cache_dic.SCHEDULES; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
