import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cache_dic import UserError
from seerkit.data import captions, moving_objects
from wan.config import CONFIGS, USAGE, WanConfig

MANIFESTS = Path(__file__).parents[1] / "checkpoints"


@pytest.mark.parametrize("name", ["wan-tiny", "wan-debug"])
def test_the_embedded_models_take_the_captions_and_clips_they_are_trained_on(name):
    config, usage = CONFIGS[name], USAGE[name]
    assert config.text_len == usage.text_tokens == captions.MAX_WORDS
    assert config.text_dim == moving_objects.TEXT_DIM
    assert usage.frames == moving_objects.NUM_FRAMES
    assert usage.fps == moving_objects.FPS
    assert usage.sizes == ((moving_objects.FRAME_SIZE,) * 2,)


def official(name: str) -> dict:
    return json.loads((MANIFESTS / f"{name}.json").read_text())["config"]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("wan2_1_t2v_1_3b", "wan-t2v-1.3B"),
        ("wan2_1_t2v_14b", "wan-t2v-14B"),
        ("wan2_1_i2v_14b", "wan-i2v-14B-480P"),
        ("wan2_1_i2v_14b", "wan-i2v-14B-720P"),
    ],
)
def test_official_configurations_are_taken_whole(file, name):
    config = WanConfig(**official(file))
    assert config == CONFIGS[name]
    assert asdict(config) == asdict(CONFIGS[name])
    assert replace(config, num_layers=2).num_layers == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_size": [7, 7]}, r"WanConfig.window_size = \(7, 7\) must be \(-1, -1\), as in every model"),
        ({"window_size": 7}, r"WanConfig.window_size = 7 must be"),
        ({"qk_norm": False}, "WanConfig.qk_norm = False must be True, as in every model"),
        ({"cross_attn_norm": False}, "WanConfig.cross_attn_norm = False must be True"),
    ],
)
def test_what_no_model_has_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        WanConfig(**official("wan2_1_t2v_1_3b") | change)


def test_unknown_keys_are_named():
    with pytest.raises(TypeError, match="'num_blocks'"):
        WanConfig(**official("wan2_1_t2v_1_3b"), num_blocks=30)
