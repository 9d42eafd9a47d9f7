"""HiDream-I1's configurations: what cannot make a model, cut depths, sizes of images."""

from dataclasses import asdict, replace

import pytest

from hidream import CONFIGS, hidream_config
from hidream.config import USAGE, latent_shape


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 0}, "HiDreamConfig.patch_size = 0 must be at least 1"),
        ({"in_channels": -1}, "in_channels = -1 must be at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0 must be at least 1"),
        ({"text_emb_dim": 0}, "text_emb_dim = 0 must be at least 1"),
        ({"num_routed_experts": 0}, "num_routed_experts = 0 must be at least 1"),
        ({"num_activated_experts": 0}, "num_activated_experts = 0 must be at least 1"),
        ({"num_activated_experts": 5}, "num_activated_experts = 5 must be at most num_routed_experts = 4"),
        ({"num_layers": -1}, "num_layers = -1 must be at least 0"),
        ({"num_single_layers": -2}, "num_single_layers = -2 must be at least 0"),
        (
            {"num_layers": 0, "num_single_layers": 0, "llama_layers": ()},
            "num_layers and num_single_layers are both 0; a model needs a block",
        ),
        (
            {"axes_dims_rope": (4, 6, 4)},
            r"axes_dims_rope = \(4, 6, 4\) must be even numbers with the sum of a head's 16 channels",
        ),
        ({"axes_dims_rope": (5, 5, 6)}, r"axes_dims_rope = \(5, 5, 6\) must be even"),
        ({"axes_dims_rope": (8, 8)}, r"axes_dims_rope = \(8, 8\) must have three axes"),
        ({"caption_channels": (20,)}, r"caption_channels = \(20,\) must be two positive numbers"),
        ({"caption_channels": (20, 0)}, r"caption_channels = \(20, 0\) must be two positive numbers"),
        ({"max_resolution": (8, -8)}, r"max_resolution = \(8, -8\) must be two positive numbers"),
        ({"llama_layers": (0, 1)}, r"llama_layers = \(0, 1\) must name one hidden state for each of the 5 blocks"),
        ({"llama_layers": (0, 1, 2, 3, -1)}, r"llama_layers = \(0, 1, 2, 3, -1\) must name one hidden state"),
    ],
)
def test_impossible_configurations_are_named(tiny, fields, message):
    with pytest.raises(ValueError, match=message):
        replace(tiny, **fields)


def test_lists_of_a_file_become_tuples(tiny):
    """So that a configuration read from JSON equals the one written."""
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(tiny).items()}
    assert type(tiny)(**lists) == tiny
    assert hash(type(tiny)(**lists)) == hash(tiny)


def test_derived_sizes():
    """Widths as in the checkpoints' manifest; positions of 1024 x 1024 pixels."""
    config = CONFIGS["hidream-full"]
    assert (config.hidden_size, config.expert_width, config.shared_width) == (2560, 6912, 3584)
    assert (config.num_blocks, config.max_tokens) == (48, 4096)


def test_unknown_model():
    with pytest.raises(
        ValueError, match="model 'hidream' is unknown; choose from hidream-full, hidream-dev, hidream-fast"
    ):
        hidream_config("hidream")


class TestDepth:
    def test_cuts_double_and_single_blocks(self):
        config = hidream_config("hidream-full", depth=2)
        assert (config.num_layers, config.num_single_layers, config.llama_layers) == (2, 4, tuple(range(6)))
        assert hidream_config("hidream-full", depth=16) == hidream_config("hidream-full") == CONFIGS["hidream-full"]

    @pytest.mark.parametrize(("name", "depth", "most"), [("hidream-full", 17, 16), ("hidream-tiny", 3, 2)])
    def test_more_than_there_are_is_refused(self, name, depth, most):
        with pytest.raises(ValueError, match=f"depth {depth} of {name} must be at most {most}"):
            hidream_config(name, depth=depth)

    @pytest.mark.parametrize(
        ("depth", "message"), [(0, "both 0; a model needs a block"), (-1, "num_layers = -1 must be")]
    )
    def test_less_than_one_is_refused(self, depth, message):
        with pytest.raises(ValueError, match=message):
            hidream_config("hidream-full", depth=depth)


class TestUsage:
    def test_every_model_has_one(self):
        assert USAGE.keys() == CONFIGS.keys()

    @pytest.mark.parametrize(
        ("name", "settings"),
        [
            ("hidream-full", ("unipc", 50, 3.0, 5.0)),
            ("hidream-dev", ("flash", 28, 6.0, 1.0)),
            ("hidream-fast", ("flash", 16, 3.0, 1.0)),
        ],
    )
    def test_published_settings(self, name, settings):
        usage = USAGE[name]
        assert (usage.solver, usage.num_steps, usage.shift, usage.guidance) == settings

    @pytest.mark.parametrize("name", CONFIGS)
    def test_default_size_is_the_largest_square(self, name):
        usage, config = USAGE[name], CONFIGS[name]
        assert latent_shape(name, usage.image_size, usage.image_size) == (config.in_channels, *config.max_resolution)


class TestLatentShape:
    # The sizes of the official inference.py; the pipeline rounds them down to multiples of 16.
    @pytest.mark.parametrize(
        ("height", "width"),
        [(1024, 1024), (768, 1360), (1360, 768), (880, 1168), (1168, 880), (1248, 832), (832, 1248)],
    )
    def test_official_sizes(self, height, width):
        assert latent_shape("hidream-full", height, width) == (16, height // 8, width // 8)

    @pytest.mark.parametrize(
        ("name", "height", "width", "message"),
        [
            ("hidream-full", 1000, 1024, "height 1000 must be a positive multiple of 16 for hidream-full; 992 is near"),
            ("hidream-full", 1024, 1030, "width 1030 must be a positive multiple of 16 for hidream-full; 1024 is near"),
            ("hidream-fast", 0, 1024, "height 0 must be a positive multiple of 16 for hidream-fast; 16 is near"),
            ("hidream-dev", 1024, -16, "width -16 must be a positive multiple of 16 for hidream-dev; 16 is near"),
            ("hidream-tiny", 32, 30, "width 30 must be a positive multiple of 4 for hidream-tiny; 32 is near"),
        ],
    )
    def test_sizes_that_patches_do_not_fill(self, name, height, width, message):
        with pytest.raises(ValueError, match=message):
            latent_shape(name, height, width)

    @pytest.mark.parametrize(
        ("height", "width", "tokens", "fits"),
        [(1024, 1040, 4160, "1008 x 1024"), (2048, 2048, 16384, "1024 x 1024"), (16, 131072, 8192, "16 x 65536")],
    )
    def test_sizes_beyond_the_positions(self, height, width, tokens, fits):
        message = f"{height} x {width} pixels has {tokens} tokens, hidream-full has positions for 4096; {fits} fits"
        with pytest.raises(ValueError, match=message):
            latent_shape("hidream-full", height, width)

    @pytest.mark.parametrize(
        ("height", "width"), [(1024, 1040), (2048, 2048), (8192, 176), (16, 131072), (1040, 16016)]
    )
    def test_the_size_that_fits_does(self, height, width):
        with pytest.raises(ValueError, match=r"fits$") as raised:
            latent_shape("hidream-full", height, width)
        named = str(raised.value).rsplit("; ", 1)[1].removesuffix(" fits").split(" x ")
        latent_shape("hidream-full", *map(int, named))
