"""HunyuanVideo against its manifests and diffusers' implementation, its text, and under the cache over whole runs."""

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import hunyuan_video.model
from cache_dic import ENGINES, make_cache
from hunyuan_video import CONFIGS, HunyuanVideo, hunyuan_video_config
from hunyuan_video.config import USAGE, latent_shape
from hunyuan_video.model import trim_text
from hunyuan_video.weights import PUBLISHED, convert_diffusers
from seerkit.devices.compile import compile_steps
from seerkit.devices.parallel import Shard
from seerkit.layers.attention import sdpa
from seerkit.layers.patches import patchify, token_grid, unpatchify
from seerkit.weights.checkpoints import load_weights

MANIFESTS = Path(__file__).parents[1] / "checkpoints"
OFFICIAL = json.loads((MANIFESTS / "hunyuan_video_t2v.json").read_text())
THEIRS = json.loads((MANIFESTS / "hunyuan_video_t2v.diffusers.json").read_text())
N5 = {"interval": 5, "max_order": 1}


class TestManifests:
    def test_model_has_the_official_names_and_shapes(self):
        with torch.device("meta"):
            state = HunyuanVideo(CONFIGS["hunyuan-video"]).state_dict()
        assert {key: list(tensor.shape) for key, tensor in state.items()} == OFFICIAL["parameters"]
        assert sum(tensor.numel() for tensor in state.values()) == OFFICIAL["total_parameters"]
        assert len(state) == OFFICIAL["tensors"]

    def test_configuration_is_the_official_one(self):
        ours = json.loads(json.dumps(asdict(CONFIGS["hunyuan-video"])))
        assert ours.pop("refiner_depth") == THEIRS["config"]["num_refiner_layers"]
        assert ours == {field: OFFICIAL["config"][field] for field in ours}

    def test_diffusers_names_become_the_official_ones(self):
        theirs = {key: torch.empty(shape, device="meta") for key, shape in THEIRS["parameters"].items()}
        state = convert_diffusers(theirs)
        assert {key: list(tensor.shape) for key, tensor in state.items()} == OFFICIAL["parameters"]

    def test_published_files_are_those_of_the_manifests(self):
        official, theirs = PUBLISHED[CONFIGS["hunyuan-video"]]
        assert [official.name] == OFFICIAL["official_files"]
        assert official.repo == OFFICIAL["official_repo"]
        assert f"{theirs.repo} ({Path(theirs.name).parent}/)" == THEIRS["official_repo"]


class TestDiffusers:
    """Agreement in float32 with diffusers' class, whose numbers are the official ones but for its padding.

    There as in Tencent/HunyuanVideo, padded text attends to the first text token in the refiner; ours attends to the text. It
    is no key of any other token, so that no output shows it.
    """

    @pytest.fixture
    def pair(self, diffusers_model, tiny):
        """`pair(guided, scale)`: a diffusers model with random weights of a scale, and ours with the same ones."""

        def make(guided: bool = True, scale: float = 1.0):
            config = replace(tiny, guidance_embed=guided)
            theirs = diffusers_model(config, scale)
            with torch.device("meta"):
                ours = HunyuanVideo(config)
            return theirs, load_weights(ours, convert_diffusers(theirs.state_dict())).eval()

        return make

    @staticmethod
    @torch.no_grad()
    def relative_difference(pair, call) -> float:
        """max|ours - diffusers| / max|diffusers| of one call."""
        theirs, ours = pair
        mask = torch.ones(call["text_states"].shape[:2]) if call["text_mask"] is None else call["text_mask"]
        expected = theirs(
            hidden_states=call["x"], timestep=call["t"], encoder_hidden_states=call["text_states"],
            encoder_attention_mask=mask.to(torch.int64), pooled_projections=call["text_states_2"], guidance=call["guidance"],
        ).sample  # fmt: skip
        assert expected.abs().max() > 1e-3
        return ((ours(**call) - expected).abs().max() / expected.abs().max()).item()

    @pytest.mark.parametrize("lengths", [None, (7, 4), (3, 5), (6, 6)], ids=str)
    @pytest.mark.parametrize("scale", [1.0, 0.1])
    def test_forward_agrees(self, pair, arguments, scale, lengths):
        """Row orders, token order, positions, masks and constants; small weights show the eps of the norms."""
        assert self.relative_difference(pair(True, scale), arguments(torch.float32, lengths, (3, 5, 7))) <= 2e-5

    def test_forward_without_guidance_agrees(self, pair, arguments):
        theirs, ours = pair(guided=False)
        assert self.relative_difference((theirs, ours), arguments(torch.float32, config=ours.config)) <= 2e-5

    def test_eps_of_the_norms_shows(self, pair, arguments, monkeypatch):
        """The test above would see an eps ten times too large."""
        monkeypatch.setattr(hunyuan_video.model, "EPS", 1e-5)
        assert self.relative_difference(pair(True, 0.1), arguments(torch.float32)) > 2e-4

    def test_order_of_rows_of_the_head_shows(self, pair, arguments):
        theirs, ours = pair()
        layer = ours.final_layer.adaLN_modulation[1]
        layer.weight.data = torch.cat(layer.weight.data.chunk(2)[::-1])
        assert self.relative_difference((theirs, ours), arguments(torch.float32)) > 1e-2


def test_attention_backends_agree(random_model, arguments):
    expected = random_model()(**arguments())
    torch.testing.assert_close(random_model(attention="reference")(**arguments()), expected, rtol=1e-12, atol=1e-12)


def test_patch_embedding_is_the_convolution(random_model, arguments, tiny):
    model, x = random_model(), arguments()["x"]
    tokens = model.embed(patchify(x, tiny.patch_size))
    torch.testing.assert_close(tokens, model.img_in.proj(x).flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_every_condition_matters(random_model, arguments):
    model, call = random_model(), arguments()
    output = model(**call)
    for name in ("t", "text_states", "text_mask", "text_states_2", "guidance"):
        assert (model(**call | {name: call[name].flip(0)}) - output).abs().max() > 1e-6, name


class TestText:
    def test_trimmed_to_the_longest_and_masked_where_lengths_differ(self):
        text, mask = torch.arange(24.0).reshape(2, 12, 1), torch.zeros(2, 12, dtype=torch.int64)
        mask[0, :5] = mask[1, :3] = 1
        cut, left = trim_text(text, mask)
        assert torch.equal(cut, text[:, :5])
        assert left.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
        cut, left = trim_text(text, mask[:1].expand(2, -1))
        assert torch.equal(cut, text[:, :5])
        assert left is None
        assert trim_text(text, None) == (text, None)

    @pytest.mark.parametrize("lengths", [(7, 4), (4, 4), (1, 6)], ids=str)
    def test_padding_never_matters(self, random_model, arguments, lengths):
        """Whatever it holds, however long it is, and whether or not it was trimmed."""
        model, call = random_model(), arguments(lengths=lengths)
        output = model(**call)
        assert output.isfinite().all()
        filled = call["text_states"].masked_fill(~call["text_mask"].unsqueeze(-1), torch.nan)
        assert torch.equal(model(**call | {"text_states": filled}), output)
        longer = {
            "text_states": torch.cat([filled, torch.full_like(filled, 1e3)], dim=1),
            "text_mask": torch.cat([call["text_mask"], torch.zeros_like(call["text_mask"])], dim=1).long(),
        }
        assert torch.equal(model(**call | longer), output)
        patch, grid = model.config.patch_size, token_grid(call["x"].shape, model.config.patch_size)
        rest = {name: value for name, value in (call | longer).items() if name != "x"}
        untrimmed = unpatchify(model.velocity(patchify(call["x"], patch), grid, **rest), grid, patch)
        torch.testing.assert_close(untrimmed, output, rtol=1e-12, atol=1e-12)

    def test_sample_of_a_batch_is_the_sample_alone(self, random_model, arguments):
        model, call = random_model(), arguments(lengths=(7, 2))
        output = model(**call)
        for row in range(2):
            alone = model(**{name: value[row : row + 1] for name, value in call.items()})
            torch.testing.assert_close(alone[0], output[row], rtol=1e-12, atol=1e-12)

    def test_attention_gets_keys_only_where_lengths_differ(self, random_model, arguments):
        model, seen = random_model(), []

        def attend(q, k, v, keys=None):
            seen.append(keys)
            return sdpa(q, k, v, keys)

        model.set_attention(attend)
        for lengths in (None, (4, 4)):
            model(**arguments(lengths=lengths))
        assert seen == [None] * 10, "of two double and three single blocks, twice; the refiner's own attention stays"
        seen.clear()
        model(**arguments(lengths=(3, 5)))
        assert [keys.tolist() for keys in seen] == [[[True] * 33 + [False] * 2, [True] * 35]] * 5

    def test_text_without_a_token_is_refused(self, random_model, arguments):
        with pytest.raises(ValueError, match="text_mask marks no token of a text"):
            random_model()(**arguments(lengths=(7, 0)))


class TestCached:
    @pytest.mark.parametrize("warmup_steps", [1, 3])
    @pytest.mark.parametrize("lengths", [None, (7, 4)], ids=str)
    def test_folded_is_layerwise_over_a_sampling_run(
        self, random_model, arguments, euler, square, warmup_steps, lengths
    ):
        model, call = random_model(config=square), arguments(lengths=lengths, config=square)
        folded, layerwise = (
            euler(model, call, cache=make_cache("taylorseer", engine=engine, warmup_steps=warmup_steps, **N5))[0]
            for engine in ("folded", "layerwise")
        )
        assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()
        uncached = euler(model, call)[0]
        assert 0 < (folded - uncached).abs().max() <= 0.1 * uncached.abs().max()

    @pytest.mark.parametrize(
        ("warmup_steps", "full_steps"), [(1, list(range(0, 50, 5))), (3, [0, 1, *range(2, 50, 5)])]
    )
    def test_full_steps_and_sites(self, random_model, arguments, euler, square, warmup_steps, full_steps):
        model = random_model(torch.float32, square)
        call = arguments(torch.float32, config=square)
        _, run = euler(model, call, cache=make_cache("taylorseer", warmup_steps=warmup_steps, **N5))
        assert run.record()["full_steps"] == full_steps
        assert run.record()["sites"] == 2 * 2 + 3, "the text stream has no sites"

    @pytest.mark.parametrize("engine", ENGINES)
    def test_interval_one_is_the_uncached_run_to_the_bit(self, random_model, arguments, euler, square, engine):
        model, call = random_model(torch.float32, square), arguments(torch.float32, config=square)
        cached, _ = euler(model, call, 7, make_cache(interval=1, warmup_steps=1, engine=engine))
        assert torch.equal(cached, euler(model, call, 7)[0])

    @pytest.mark.parametrize(
        "engine", [engine for engine in ENGINES if engine != "latent"]
    )  # its output has more channels
    def test_text_plays_no_part_in_forecast_steps(self, random_model, arguments, engine):
        model, call = random_model(), arguments()
        conditions = {name: call[name] for name in ("text_states", "text_mask", "text_states_2", "guidance")}
        timesteps = torch.linspace(1000, 500, 11)
        results = []
        for text in (call["text_states"], torch.full_like(call["text_states"], 7.0)):
            run = make_cache(**N5, warmup_steps=1, engine=engine).start(model, call["x"], timesteps, **conditions)
            for step, t in enumerate(timesteps):
                given = conditions if run.plan.is_full(step) else conditions | {"text_states": text}
                output = model(call["x"], t.expand(2), **given, cache=run.at(step))
                if not run.plan.is_full(step):
                    results.append(output)
        assert len(results) == 16
        assert all(torch.equal(a, b) for a, b in zip(results[:8], results[8:], strict=True))

    def test_uncached_steps_are_calls_of_the_plain_model(self, random_model, arguments):
        """The modulation table changes nothing."""
        model, call = random_model(), arguments()
        given = {name: value for name, value in call.items() if name not in ("x", "t")}
        timesteps = torch.tensor([1000.0, 700.0, 20.0])
        run = make_cache("uncached").start(model, call["x"], timesteps, **given)
        for step, t in enumerate(timesteps):
            output = model(call["x"], t.expand(2), **given, cache=run.at(step))
            torch.testing.assert_close(output, model(**call | {"t": t.expand(2)}), rtol=1e-12, atol=1e-12)

    def test_modulation_table_is_the_modulation_of_each_step(self, random_model, arguments, check_modulation_table):
        call, timesteps = arguments(), torch.tensor([1000.0, 700.0, 300.0, 100.0])
        given = {name: call[name] for name in ("text_states_2", "guidance")}
        check_modulation_table(random_model(), timesteps, **given)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, random_model, arguments, dtype):
        call = arguments(torch.float32)
        exact = random_model(torch.float32)(**call)
        rounded = random_model(dtype)(**call | {"x": call["x"].to(dtype)})
        assert rounded.dtype == dtype
        assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max()

    @pytest.mark.slow
    @pytest.mark.parametrize("lengths", [None, (7, 4)], ids=str)
    def test_steps_compile_to_one_graph_each(self, random_model, arguments, euler, square, lengths, num_graphs):
        """Without a break in either; both kinds of text."""
        cache = make_cache(**N5, warmup_steps=1, static_shapes=True)
        config = replace(square, mm_double_blocks_depth=1, mm_single_blocks_depth=1, refiner_depth=1)
        call = arguments(torch.float32, lengths, config=config)
        expected, _ = euler(random_model(torch.float32, config), call, 12, cache)
        compiled = random_model(torch.float32, config)
        compile_steps(compiled, backend="eager")
        torch.testing.assert_close(euler(compiled, call, 12, cache)[0], expected, rtol=1e-4, atol=1e-5)
        assert num_graphs() == 2


class TestFlops:
    def test_forecast_step_is_head_and_embedding(self, random_model, arguments, tiny):
        """A forecast step multiplies by img_in, the gates' third of the video's modulation, and the head."""
        call, dim, batch, tokens = arguments(lengths=None), tiny.hidden_size, 2, 30
        del call["t"]
        _, forecast = random_model().step_flops(call.pop("x"), **call)
        streams = 2 * batch * tokens * dim * 18 * (tiny.in_channels + tiny.out_channels)
        conditions = 2 * batch * dim * (7 * dim + 2 * dim)  # gates of 7 sites, and shift and scale of the head
        embedder = 2 * (256 * dim + dim * dim)  # of the timestep alone: the others belong to the run
        assert forecast == streams + conditions + embedder

    def test_patches_count_as_their_video(self, random_model, arguments, tiny):
        call, model = arguments(), random_model()
        del call["t"]
        x = call.pop("x")
        expected = model.step_flops(x, **call)
        assert model.step_flops(patchify(x, tiny.patch_size), **call) == expected
        assert expected[0] > 20 * expected[1]

    @pytest.mark.slow
    def test_official_model_at_480_by_640(self):
        """TaylorSeer's setting, 65 frames: 595.4 · 10^12 operations per step, and 29.77 · 10^15 of 50, as its table has."""
        with torch.device("meta"):
            model = HunyuanVideo(CONFIGS["hunyuan-video"])
            x = torch.empty(1, *latent_shape("hunyuan-video", 480, 640, 65))
            given = {
                "text_states": torch.empty(1, 256, 4096), "text_states_2": torch.empty(1, 768), "guidance": torch.empty(1),
            }  # fmt: skip
        full, forecast = model.step_flops(x, **given)
        assert full / 1e12 == pytest.approx(595.4, abs=0.5)
        assert forecast < 2e-4 * full


@pytest.mark.parametrize("lengths", [None, (7, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_share_the_tokens_compute_the_whole(random_model, arguments, lengths, size):
    """Threads stand for processes; they exchange keys and values in attention alone. 45 tokens do not divide by 2."""
    call, whole = arguments(lengths=lengths, grid=(3, 3, 5)), random_model()
    grid, patch = (3, 3, 5), whole.config.patch_size
    patches = patchify(call["x"], patch)
    text, mask = trim_text(call["text_states"], call["text_mask"])
    conditions = (grid, call["t"], text, mask, call["text_states_2"], call["guidance"])
    barrier, shared, results = threading.Barrier(size, timeout=20), [None] * size, [None] * size

    def process(rank: int) -> None:
        def attend(q, k, v, keys=None):
            shared[rank] = (k, v, keys)
            barrier.wait()
            all_k, all_v, all_keys = zip(*shared, strict=True)
            barrier.wait()
            joined = None if keys is None else torch.cat(all_keys, dim=1)
            return sdpa(q, torch.cat(all_k, dim=2), torch.cat(all_v, dim=2), joined)

        model = random_model()
        model.shard = Shard(rank, size)
        model.set_attention(attend)
        own = model.shard.split(patches)
        assert model.tokens(call["x"]) == model.tokens(own)
        results[rank] = model.velocity(own, *conditions)

    threads = [threading.Thread(target=process, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = whole.velocity(patches, *conditions)
    torch.testing.assert_close(torch.cat(results, dim=1), expected, rtol=1e-12, atol=1e-12)


def test_initial_weights_predict_zero_and_follow_the_seed(arguments, tiny, check_initial_weights):
    check_initial_weights(
        lambda seed: HunyuanVideo(tiny).initialize(seed), arguments(torch.float32), "img_in.proj.weight"
    )


class TestConfigs:
    def test_depth_cuts_the_blocks(self):
        config = hunyuan_video_config("hunyuan-video", depth=3)
        assert (config.mm_double_blocks_depth, config.mm_single_blocks_depth) == (3, 6)
        assert hunyuan_video_config("hunyuan-video") is CONFIGS["hunyuan-video"]

    @pytest.mark.parametrize("name", CONFIGS)
    def test_default_sizes_fill_their_patches(self, name):
        usage, config = USAGE[name], CONFIGS[name]
        shape = latent_shape(name, usage.height, usage.width, usage.frames)
        assert shape[0] == config.in_channels == usage.latent_channels
        assert token_grid(shape, config.patch_size) == ((17, 30, 40) if name == "hunyuan-video" else (4, 6, 6))

    def test_first_frame_has_a_latent_of_its_own(self):
        assert latent_shape("hunyuan-video", 720, 1280, 129) == (16, 33, 90, 160)
        assert latent_shape("hunyuan-video", 16, 16, 1) == (16, 1, 2, 2)


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"hidden_size": 100}, "hidden_size = 100 must be a multiple of heads_num = 3"),
            (
                {"rope_dim_list": (4, 6, 4)},
                r"rope_dim_list = \(4, 6, 4\) must be even numbers with the sum of a head's 16 channels",
            ),
            ({"rope_dim_list": (5, 5, 6)}, r"rope_dim_list = \(5, 5, 6\) must be even"),
            ({"patch_size": (2, 2)}, r"patch_size = \(2, 2\) must be three positive numbers"),
            ({"patch_size": (1, 0, 2)}, r"patch_size = \(1, 0, 2\) must be three positive numbers"),
            ({"mm_double_blocks_depth": -1}, "mm_double_blocks_depth = -1 must be at least 0"),
            ({"mm_double_blocks_depth": 0, "mm_single_blocks_depth": 0}, "both 0; a model needs a block"),
            ({"text_states_dim_2": 0}, "text_states_dim_2 = 0 must be at least 1"),
        ],
    )
    def test_impossible_configurations_are_named(self, tiny, fields, message):
        with pytest.raises(ValueError, match=message):
            replace(tiny, **fields)

    def test_unknown_model(self):
        with pytest.raises(ValueError, match=r"model 'hunyuan' is unknown; choose from hunyuan-video, hunyuan-tiny"):
            hunyuan_video_config("hunyuan")

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            ("hunyuan-video", (500, 640, 65), "height 500 must be a positive multiple of 16 for hunyuan-video; 496"),
            ("hunyuan-video", (480, 0, 65), "width 0 must be a positive multiple of 16 for hunyuan-video; 16 is near"),
            ("hunyuan-video", (480, 640, 64), "number of frames 64 must be 1, 5, 9, … for hunyuan-video; 65 is near"),
            ("hunyuan-video", (480, 640, 0), "number of frames 0 must be 1, 5, 9, … for hunyuan-video; 1 is near"),
            ("hunyuan-tiny", (32, 30, 16), "width 30 must be a positive multiple of 4 for hunyuan-tiny; 32 is near"),
            ("hunyuan-tiny", (32, 32, 17), "number of frames 17 must be 2, 4, 6, … for hunyuan-tiny; 18 is near"),
            ("hunyuan-tiny", (32, 32, 1), "number of frames 1 must be 2, 4, 6, … for hunyuan-tiny; 2 is near"),
        ],
    )
    def test_sizes_that_patches_do_not_fill(self, name, size, message):
        with pytest.raises(ValueError, match=message):
            latent_shape(name, *size)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("x", (2, 3, 4, 9, 15), r"x of shape \(2, 3, 4, 9, 15\) does not fit a model for \(B, 4, T, H, W\)"),
            ("x", (2, 4, 9, 15), r"x of shape \(2, 4, 9, 15\) does not fit a model"),
            ("x", (2, 4, 4, 9, 16), "latents of 4 x 9 x 16 cannot be cut into patches of 2 x 3 x 3"),
            ("x", (3, 4, 4, 9, 15), r"patches of shape \(3, 30, 72\) must be \(2, 30, 72\) for 2 texts"),
            ("text_states", (2, 7, 19), r"text_states of shape \(2, 7, 19\) does not fit a model for \(B, L, 20\)"),
            ("text_mask", (2, 6), r"text_mask of shape \(2, 6\) must be \(2, 7\)"),
            ("text_states_2", (2, 11), r"text_states_2, the pooled text, of shape \(2, 11\) must be \(2, 10\)"),
            ("text_states_2", None, r"text_states_2, the pooled text, of shape None must be \(2, 10\)"),
        ],
    )
    def test_inputs_that_do_not_fit(self, random_model, arguments, name, shape, message):
        value = None if shape is None else torch.ones(shape, dtype=torch.float64)
        with pytest.raises(ValueError, match=message):
            random_model()(**arguments() | {name: value})

    def test_guidance_that_the_model_does_not_take(self, random_model, arguments, tiny):
        with pytest.raises(ValueError, match=r"this model needs guidance \(HunyuanVideoConfig.guidance_embed = True\)"):
            random_model()(**arguments() | {"guidance": None})
        with pytest.raises(ValueError, match="this model takes no guidance"):
            random_model(config=replace(tiny, guidance_embed=False))(**arguments())

    def test_patches_of_another_grid(self, random_model, arguments, tiny):
        call = arguments()
        patches = patchify(call.pop("x"), tiny.patch_size)
        with pytest.raises(ValueError, match=r"must be \(2, 24, 72\) for 2 texts and a grid of 2 x 3 x 4 tokens"):
            random_model().velocity(patches, (2, 3, 4), **call)

    def test_step_of_a_run_for_another_size(self, random_model, arguments):
        model, call = random_model(), arguments()
        given = {name: value for name, value in call.items() if name not in ("x", "t")}
        run = make_cache(**N5, warmup_steps=1).start(model, call["x"], torch.linspace(1000, 500, 8), **given)
        call["x"] = call["x"][..., :9]
        with pytest.raises(ValueError, match=r"length=18.* reached a run started for .*length=30"):
            model(**call, cache=run.at(0))
