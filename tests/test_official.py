"""Every method beside the code that was published with it: the same decisions, the same outputs.

Stored runs are of code that is not installed; diffusers' hooks and cache-dit run here, on the same networks and inputs.
"""

from typing import Any

import pytest
import reference

from cache_dic import METHODS, make_cache

TOLERANCE = 1e-4  # of outputs and latents, which are about 1
METHODS_STORED = sorted({reference.stored(path.stem)["method"] for path in reference.FOLDER.glob("*.json")})


def needs(method: str) -> None:
    if method not in METHODS:
        pytest.skip(f"needs the method {method}; there are {', '.join(METHODS)}")


@pytest.mark.parametrize(("file", "number"), [run for method in METHODS_STORED for run in reference.files(method)])
def test_stored_run(file, number):
    stored = reference.stored(file)
    needs(stored["method"])
    settings = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in stored["runs"][number]["settings"].items()
    }
    compared = reference.compare(file, number, make_cache(stored["method"], **settings))
    assert compared.ours == compared.theirs
    assert compared.difference <= TOLERANCE


def assert_agrees(name: str, method: str, played: Any, **settings: object) -> None:
    """played: what `reference.side_by_side` tells of a run over the open loop of this network."""
    loop = reference.open_loop(name, len(played.outputs[0]))
    runs, outputs = reference.play(name, loop, make_cache(method, **settings))
    assert [run.record()["full_steps"] for run in runs] == played.full_steps
    for ours, theirs in zip(outputs, played.outputs, strict=True):
        assert (ours - theirs).abs().max() <= TOLERANCE


@pytest.mark.parametrize("threshold", [0.06, 0.1, 0.12, 0.16, 0.3])
@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "wan"])
def test_first_block_cache_of_diffusers(need, name, threshold):
    needs("first_block_cache")
    config = need("diffusers").FirstBlockCacheConfig(threshold=threshold)
    from reference import side_by_side

    played = side_by_side.play_hook(name, reference.open_loop(name, 20), config)
    assert_agrees(name, "first_block_cache", played, threshold=threshold)
