import pytest

from seerkit.data import captions, moving_objects
from wan.config import CONFIGS, USAGE


@pytest.mark.parametrize("name", ["wan-tiny", "wan-debug"])
def test_the_embedded_models_take_the_captions_and_clips_they_are_trained_on(name):
    config, usage = CONFIGS[name], USAGE[name]
    assert config.text_len == usage.text_tokens == captions.MAX_WORDS
    assert config.text_dim == moving_objects.TEXT_DIM
    assert usage.frames == moving_objects.NUM_FRAMES
    assert usage.fps == moving_objects.FPS
    assert usage.sizes == ((moving_objects.FRAME_SIZE,) * 2,)
