import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cache_dic import UserError
from hunyuan_video.config import CONFIGS, USAGE, HunyuanVideoConfig
from seerkit.data import captions, moving_objects

OFFICIAL = json.loads((Path(__file__).parents[1] / "checkpoints" / "hunyuan_video_t2v.json").read_text())["config"]


@pytest.mark.parametrize("name", ["hunyuan-tiny", "hunyuan-debug"])
def test_the_embedded_models_take_the_captions_and_clips_they_are_trained_on(name):
    config, usage = CONFIGS[name], USAGE[name]
    assert config.text_states_dim == config.text_states_dim_2 == moving_objects.TEXT_DIM
    assert usage.text_tokens == captions.MAX_WORDS
    assert usage.frames == moving_objects.NUM_FRAMES
    assert usage.fps == moving_objects.FPS
    assert usage.height == usage.width == moving_objects.FRAME_SIZE


def test_the_official_configuration_is_taken_whole():
    config = HunyuanVideoConfig(**OFFICIAL)
    assert config == CONFIGS["hunyuan-video"]
    assert json.dumps(asdict(config)) == json.dumps(asdict(CONFIGS["hunyuan-video"])), "4 is written as 4.0"
    assert replace(config, heads_num=24) == config
    undistilled = HunyuanVideoConfig(**OFFICIAL | {"name": "HYVideo-T/2", "guidance_embed": False})
    assert undistilled == replace(config, guidance_embed=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mlp_act_type": "gelu"}, "HunyuanVideoConfig.mlp_act_type = 'gelu' must be 'gelu_tanh', as in every model"),
        ({"qk_norm": False}, "qk_norm = False must be True"),
        ({"qk_norm_type": "layer"}, "qk_norm_type = 'layer' must be 'rms'"),
        ({"text_projection": "linear"}, "text_projection = 'linear' must be 'single_refiner'"),
        ({"use_attention_mask": False}, "use_attention_mask = False must be True"),
        ({"name": "HYVideo-S/2"}, "name = 'HYVideo-S/2' must be 'HYVideo-T/2-cfgdistill' where guidance_embed = True"),
        (
            {"guidance_embed": False},
            "name = 'HYVideo-T/2-cfgdistill' must be 'HYVideo-T/2' where guidance_embed = False",
        ),
    ],
)
def test_what_no_model_has_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        HunyuanVideoConfig(**OFFICIAL | change)


def test_unknown_keys_are_named():
    with pytest.raises(TypeError, match="'num_blocks'"):
        HunyuanVideoConfig(**OFFICIAL, num_blocks=60)
