import pytest

from hunyuan_video.config import CONFIGS, USAGE
from seerkit.data import captions, moving_objects


@pytest.mark.parametrize("name", ["hunyuan-tiny", "hunyuan-debug"])
def test_the_embedded_models_take_the_captions_and_clips_they_are_trained_on(name):
    config, usage = CONFIGS[name], USAGE[name]
    assert config.text_states_dim == config.text_states_dim_2 == moving_objects.TEXT_DIM
    assert usage.text_tokens == captions.MAX_WORDS
    assert usage.frames == moving_objects.NUM_FRAMES
    assert usage.fps == moving_objects.FPS
    assert usage.height == usage.width == moving_objects.FRAME_SIZE
