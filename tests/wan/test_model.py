"""Wan2.1 against its manifests and diffusers' implementation, its precision, and its parts under the cache."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import wan.model
from cache_dic import ENGINES, Site, make_cache, residual
from seerkit.devices.compile import compile_steps
from seerkit.layers.attention import sdpa
from seerkit.layers.patches import patchify, token_grid, unpatchify
from seerkit.weights.checkpoints import load_weights
from wan import CONFIGS, Wan, WanConfig, wan_config
from wan.config import USAGE, latent_shape
from wan.model import IN_FLOAT32
from wan.weights import convert_diffusers, published

MANIFESTS = Path(__file__).parents[1] / "checkpoints"
MANIFEST_OF = {
    "wan-t2v-1.3B": "wan2_1_t2v_1_3b",
    "wan-t2v-14B": "wan2_1_t2v_14b",
    "wan-i2v-14B-480P": "wan2_1_i2v_14b",
    "wan-i2v-14B-720P": "wan2_1_i2v_14b",
}
N5 = {"interval": 5, "max_order": 1, "warmup_steps": 1}


def manifest(name: str, suffix: str = "") -> dict:
    return json.loads((MANIFESTS / f"{MANIFEST_OF[name]}{suffix}.json").read_text())


def as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


class TestManifests:
    @pytest.mark.parametrize("name", MANIFEST_OF)
    def test_model_has_the_official_names_and_shapes(self, name):
        wanted = manifest(name)
        with torch.device("meta"):
            state = Wan(wan_config(name)).state_dict()
        assert {key: list(tensor.shape) for key, tensor in state.items()} == wanted["parameters"]
        assert sum(tensor.numel() for tensor in state.values()) == wanted["total_parameters"]
        assert len(state) == wanted["tensors"]

    @pytest.mark.parametrize("name", MANIFEST_OF)
    def test_configuration_is_the_official_one(self, name):
        ours, theirs = json.loads(json.dumps(asdict(wan_config(name)))), manifest(name)["config"]
        image_dim = ours.pop("image_dim")  # no field of the official one, where the CLIP model sets it
        if theirs["model_type"] == "i2v":
            assert image_dim == manifest(name, ".diffusers")["config"]["image_dim"]
        fixed = {"window_size": [-1, -1], "qk_norm": True, "cross_attn_norm": True}
        assert ours | fixed == theirs

    @pytest.mark.parametrize("name", MANIFEST_OF)
    def test_diffusers_names_become_the_official_ones(self, name):
        theirs = manifest(name, ".diffusers")["parameters"]
        state = convert_diffusers({key: torch.empty(shape, device="meta") for key, shape in theirs.items()})
        assert {key: list(tensor.shape) for key, tensor in state.items()} == manifest(name)["parameters"]

    @pytest.mark.parametrize("name", MANIFEST_OF)
    def test_published_files_are_those_of_the_manifests(self, name):
        official, theirs = published(name)
        files = manifest(name)["official_files"]
        stem = official.name.split(".")[0]
        assert all(file.startswith(stem) for file in files)
        assert official.name.endswith(".index.json") == (len(files) > 1)
        assert official.repo in as_list(manifest(name)["official_repo"])
        place = f"{theirs.repo} ({Path(theirs.name).parent}/)"
        assert place in as_list(manifest(name, ".diffusers")["official_repo"])


class TestDiffusers:
    """Agreement in float32 with diffusers' class, which is the official arithmetic but for float64 in the rotation."""

    @pytest.fixture
    def pair(self, diffusers_model, t2v, i2v):
        """`pair(kind, scale)`: a diffusers model with random weights of a scale, and ours with the same ones."""

        def make(kind: str = "t2v", scale: float = 1.0):
            # diffusers' cross-attention to an image takes the last 512 tokens of the context for the text.
            config = t2v if kind == "t2v" else replace(i2v, text_len=512)
            theirs = diffusers_model(config, scale)
            with torch.device("meta"):
                ours = Wan(config)
            return theirs, load_weights(ours, convert_diffusers(theirs.state_dict())).eval()

        return make

    @staticmethod
    @torch.no_grad()
    def relative_difference(pair, call) -> float:
        """max|ours - diffusers| / max|diffusers| of one call; diffusers' class gets its texts padded and one input."""
        theirs, ours = pair
        text_len = ours.config.text_len
        padded = torch.stack([F.pad(text, (0, 0, 0, text_len - len(text))) for text in call["context"]])
        x = torch.cat([call["x"], call["y"]], dim=1) if "y" in call else call["x"]
        expected = theirs(
            hidden_states=x, timestep=call["t"], encoder_hidden_states=padded,
            encoder_hidden_states_image=call.get("clip_fea"),
        ).sample  # fmt: skip
        assert expected.abs().max() > 1e-3
        return ((ours(**call) - expected).abs().max() / expected.abs().max()).item()

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["t2v", "i2v"])
    @pytest.mark.parametrize("scale", [1.0, 0.1])
    def test_forward_agrees(self, pair, arguments, kind, scale):
        """Names, token order, patches, positions and constants; small weights show the eps of the norms."""
        theirs, ours = pair(kind, scale)
        call = arguments(torch.float32, ours.config, grid=(3, 5, 7))
        assert self.relative_difference((theirs, ours), call) <= 1e-5

    @pytest.mark.parametrize("grid", [(1, 1, 1), (1, 6, 2), (4, 1, 3)], ids=str)
    def test_other_sizes_agree(self, pair, arguments, grid):
        assert self.relative_difference(pair(), arguments(torch.float32, grid=grid)) <= 1e-5

    def test_eps_of_the_norms_shows(self, pair, arguments):
        """The test above would see an eps ten times too large."""
        theirs, ours = pair(scale=0.1)
        wrong = Wan(replace(ours.config, eps=1e-5)).eval()
        wrong.load_state_dict(ours.state_dict())
        assert self.relative_difference((theirs, wrong), arguments(torch.float32)) > 2e-4

    def test_width_of_the_norms_of_queries_and_keys_shows(self, pair, arguments, monkeypatch):
        """A norm by head, as other models have it."""

        def by_head(self, x: Tensor) -> Tensor:
            heads = x.unflatten(-1, (3, -1))
            return F.rms_norm(heads, heads.shape[-1:], eps=self.eps).flatten(-2) * self.weight

        monkeypatch.setattr(wan.model.RMSNorm, "forward", by_head)
        assert self.relative_difference(pair(), arguments(torch.float32)) > 1e-3


@pytest.mark.parametrize("kind", ["t2v", "i2v"])
def test_attention_backends_agree(random_model, arguments, t2v, i2v, kind):
    config = {"t2v": t2v, "i2v": i2v}[kind]
    call = arguments(config=config)
    expected = random_model(config=config)(**call)
    result = random_model(config=config, attention="reference")(**call)
    torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


def test_patch_embedding_is_the_convolution(random_model, arguments, t2v):
    model, x = random_model(), arguments()["x"]
    tokens = model.embed(patchify(x, t2v.patch_size))
    torch.testing.assert_close(tokens, model.patch_embedding(x).flatten(2).transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_every_condition_matters(random_model, arguments, i2v):
    model, call = random_model(config=i2v), arguments(config=i2v)
    output = model(**call)
    for name in ("t", "context", "clip_fea", "y"):
        changed = call[name][::-1] if isinstance(call[name], list) else call[name].flip(0)
        assert (model(**call | {name: changed}) - output).abs().max() > 1e-6, name


class TestText:
    def test_list_batch_and_padded_batch_are_one(self, random_model, arguments):
        model, call = random_model(), arguments()
        output = model(**call)
        padded = model.pad_context(call["context"])
        assert padded.shape == (2, 9, 10)
        assert not padded[1, 4:].any()
        assert torch.equal(model(**call | {"context": padded}), output)
        shorter = padded[:, :7]
        assert torch.equal(model(**call | {"context": shorter}), output)

    def test_padding_is_attended_to(self, random_model, arguments, t2v):
        """A text is not the same in a model of another text_len: the zeros after it get a share of the attention."""
        call = arguments()
        longer = random_model(config=replace(t2v, text_len=12))
        assert (longer(**call) - random_model()(**call)).abs().max() > 1e-6

    def test_sample_of_a_batch_is_the_sample_alone(self, random_model, arguments, i2v):
        model, call = random_model(config=i2v), arguments(config=i2v)
        output = model(**call)
        for row in range(2):
            alone = model(**{name: value[row : row + 1] for name, value in call.items()})
            torch.testing.assert_close(alone[0], output[row], rtol=1e-12, atol=1e-12)


def test_attention_of_video_tokens_alone_is_replaced(random_model, arguments, i2v):
    model, lengths = random_model(config=i2v), []

    def attend(q, k, v, keys=None):
        lengths.append((q.shape[2], k.shape[2]))
        return sdpa(q, k, v, keys)

    call = arguments(config=i2v)
    expected = model(**call)
    model.set_attention(attend)
    assert torch.equal(model(**call), expected)
    assert lengths == [(30, 30)] * 3


class TestPrecision:
    def test_modulation_head_and_affine_norms_stay_in_float32(self, random_model, i2v):
        model = random_model(torch.bfloat16, i2v)
        wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32, torch.bfloat16}
        per_block = {f"blocks.{i}.{part}" for i in range(3) for part in ("modulation", "norm3.weight", "norm3.bias")}
        layers = ("time_embedding.0", "time_embedding.2", "time_projection.1", "head.head")
        rest = {f"{layer}.{p}" for layer in layers for p in ("weight", "bias")}
        assert wide == {*per_block, *rest, "head.modulation"}
        assert all(any(part in name for name in wide) for part in IN_FLOAT32)
        assert model.dtype == torch.bfloat16
        assert model.stream_dtype == torch.float32

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_residual_stream_is_float32_and_features_are_not(self, random_model, arguments, dtype):
        model, call, seen = random_model(dtype), arguments(torch.float32), []

        class Seeing(Site):
            def __call__(self, x, gate, feature, *, name):
                value = feature(x)
                seen.append((x.dtype, gate is None or gate.dtype, value.dtype))
                return residual(x, gate, value)

        grid, patch = token_grid(call["x"].shape, model.config.patch_size), model.config.patch_size
        modulation = wan.model.Modulation(*model.condition(call["t"]))
        patches, context = patchify(call["x"], patch), model.pad_context(call["context"])
        output = model.full_step(patches, grid, context, None, modulation, Seeing())
        stream = torch.float32
        assert seen == [(stream, stream, dtype), (stream, True, dtype), (stream, stream, dtype)] * 3
        assert output.dtype == stream
        assert torch.equal(unpatchify(output, grid, patch), model(**call))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_close(self, random_model, arguments, i2v, dtype):
        call = arguments(torch.float32, i2v)
        exact, rounded = (random_model(d, i2v)(**call) for d in (torch.float32, dtype))
        assert rounded.dtype == torch.float32
        assert 0 < (rounded - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()

    def test_double_precision_is_double_throughout(self, random_model, arguments):
        model, call = random_model(), arguments()
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
        assert model(**call).dtype == torch.float64


class TestCached:
    def test_uncached_steps_are_calls_of_the_plain_model(self, random_model, arguments):
        """The modulation table changes nothing."""
        model, call = random_model(), arguments()
        timesteps = torch.tensor([999, 700, 20])
        run = make_cache("uncached").start(model, call["x"], timesteps, context=call["context"])
        for step, t in enumerate(timesteps):
            output = model(call["x"], t.expand(2), call["context"], cache=run.at(step))
            torch.testing.assert_close(output, model(**call | {"t": t.expand(2)}), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("slice_bytes", [1, 5000, 2**30])
    def test_modulation_table_is_the_modulation_of_each_step(self, random_model, slice_bytes, monkeypatch):
        """Whatever the slices, in which rows of many steps are one product; and the gates' factors make the gates."""
        monkeypatch.setattr(wan.model, "SLICE_BYTES", slice_bytes)
        model, timesteps = random_model(), torch.tensor([999, 700, 300, 100])
        table = model.modulation_table(timesteps, [0, 2], [1, 2, 3])
        for step, t in enumerate(timesteps):
            blocks, head = model.condition(t.reshape(1))
            row = table.at(step)
            torch.testing.assert_close(row.head, head, rtol=1e-12, atol=1e-12)
            if step in (0, 2):
                torch.testing.assert_close(row.blocks, blocks, rtol=1e-12, atol=1e-12)
            else:
                assert row.blocks is None
            if step > 0:
                rows = [(block.modulation + blocks)[0] for block in model.blocks]
                gates = torch.stack([gate for r in rows for gate in (r[2], torch.ones_like(r[2]), r[5])]).unsqueeze(1)
                torch.testing.assert_close(table.gates([step])[0], gates, rtol=1e-12, atol=1e-12)
                shared = table.factors.shared([step])[0]  # (3, 1, D)
                product = torch.einsum("rld,rbd->lbd", table.factors.constant, shared)
                torch.testing.assert_close(product, gates, rtol=1e-12, atol=1e-12)

    def test_tokens_of_a_video_and_of_its_patches(self, random_model, arguments):
        model, x = random_model(torch.bfloat16), arguments()["x"]
        tokens = model.tokens(x)
        assert tokens == model.tokens(patchify(x, model.config.patch_size))
        assert (tokens.batch, tokens.length, tokens.dim, tokens.num_sites) == (2, 30, 48, 9)
        assert (tokens.dtype, tokens.stream_dtype, tokens.gate_rank) == (torch.bfloat16, torch.float32, 3)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_text_and_image_play_no_part_in_forecast_steps(self, random_model, arguments, i2v, engine):
        model, call = random_model(config=i2v), arguments(config=i2v)
        conditions = {"context": model.pad_context(call["context"]), "clip_fea": call["clip_fea"], "y": call["y"]}
        other = {"context": torch.full_like(conditions["context"], 7.0), "clip_fea": -call["clip_fea"]}
        timesteps = torch.linspace(999, 500, 11).long()
        results = []
        for change in ({}, other):
            run = make_cache(**N5, engine=engine).start(model, call["x"], timesteps, **conditions)
            for step, t in enumerate(timesteps):
                given = conditions if run.plan.is_full(step) else conditions | change
                output = model(call["x"], t.expand(2), **given, cache=run.at(step))
                if not run.plan.is_full(step):
                    results.append(output)
        assert len(results) == 16
        assert all(torch.equal(a, b) for a, b in zip(results[:8], results[8:], strict=True))

    def test_flops_by_hand(self, random_model, arguments, i2v):
        """Of a forecast step embedding, head and the modulation of its time; y is embedded with the latents, at both."""
        model, call = random_model(config=i2v), arguments(config=i2v)
        conditions = {"context": model.pad_context(call["context"]), "clip_fea": call["clip_fea"], "y": call["y"]}
        full, forecast = model.step_flops(call["x"], **conditions)
        batch, tokens, text, image, dim = 2, 30, i2v.text_len, 5, i2v.dim
        patch = 6
        ends = 2 * batch * tokens * patch * dim * (i2v.in_dim + i2v.out_dim)
        time = 2 * dim * (i2v.freq_dim + dim)
        projection = 2 * dim * 6 * dim
        assert forecast == ends + time + projection
        context = 2 * batch * (text * dim * (i2v.text_dim + dim) + image * i2v.image_dim * (i2v.image_dim + dim))
        attention = 4 * batch * tokens * dim * (tokens + text + image)
        products = 2 * batch * dim * dim * (4 * tokens + 2 * tokens + 2 * text + 2 * image)
        block = products + attention + 2 * 2 * batch * tokens * dim * i2v.ffn_dim
        assert full == ends + time + projection + context + 3 * block
        patches = {"y": patchify(call["y"], i2v.patch_size)}
        assert model.step_flops(patchify(call["x"], i2v.patch_size), **conditions | patches) == (full, forecast)

    @pytest.mark.slow
    @pytest.mark.parametrize(("backend", "factored"), [("eager", False), ("aot_eager", True)])
    def test_a_run_compiles_two_graphs_and_never_again(
        self, random_model, arguments, t2v, backend, factored, num_graphs
    ):
        """One for full steps and one for forecast steps, with accumulators by step or by full step."""
        config = replace(t2v, num_layers=1)
        call = arguments(torch.float32, config)
        context = random_model(torch.float32, config).pad_context(call["context"])
        timesteps = torch.linspace(999, 100, 13).long()
        cache = make_cache(**N5, static_shapes=True)
        cache = replace(cache, engine_settings=replace(cache.engine_settings, factored=factored))

        @torch.inference_mode()
        def sample(model: Wan) -> Tensor:
            x = call["x"]
            run = cache.start(model, x, timesteps, context=context)
            for step, t in enumerate(timesteps):
                x = x - 0.05 * model(x, t.expand(2), context, cache=run.at(step))
            return x

        expected = sample(random_model(torch.float32, config))
        compiled = random_model(torch.float32, config)
        compile_steps(compiled, backend=backend)
        for _ in range(2):
            torch.testing.assert_close(sample(compiled), expected, rtol=1e-4, atol=1e-5)
            assert num_graphs() == 2


def test_initial_weights_predict_zero_and_follow_the_seed(arguments, t2v):
    model = Wan(t2v).initialize(0)
    with torch.no_grad():
        assert model(**arguments(torch.float32)).abs().max() == 0, "the output starts at zero"
    same, other = Wan(t2v).initialize(0), Wan(t2v).initialize(1)
    parameters, copies, others = (dict(m.named_parameters()) for m in (model, same, other))
    assert [name for name, value in parameters.items() if not torch.equal(value, copies[name])] == []
    for name in ("patch_embedding.weight", "blocks.1.modulation", "head.modulation", "blocks.0.ffn.0.weight"):
        assert not torch.equal(parameters[name], others[name]), name


class TestSizes:
    @pytest.mark.parametrize(
        ("name", "size", "shape"),
        [
            ("wan-t2v-14B", (720, 1280, 81), (16, 21, 90, 160)),
            ("wan-t2v-1.3B", (480, 832, 1), (16, 1, 60, 104)),
            ("wan-i2v-14B-480P", (16, 32, 5), (16, 2, 2, 4)),
            ("wan-tiny", (32, 32, 16), (3, 16, 32, 32)),
            ("wan-debug", (4, 8, 4), (3, 4, 4, 8)),
        ],
    )
    def test_latents_of_a_video(self, name, size, shape):
        assert latent_shape(name, *size) == shape

    @pytest.mark.parametrize("name", USAGE)
    def test_published_settings_fit(self, name):
        usage, config = USAGE[name], CONFIGS[name]
        assert usage.text_tokens == config.text_len
        assert usage.latent_channels == config.out_dim
        for width, height in usage.sizes:
            shape = latent_shape(name, height, width, usage.frames)
            assert token_grid(shape, config.patch_size)

    @pytest.mark.parametrize(
        ("name", "size", "message"),
        [
            (
                "wan-t2v-14B",
                (721, 1280, 81),
                "height 721 must be a positive multiple of 16 for wan-t2v-14B; 720 is near",
            ),
            ("wan-t2v-14B", (720, 0, 81), "width 0 must be a positive multiple of 16 for wan-t2v-14B; 16 is near"),
            ("wan-t2v-14B", (720, 1280, 80), r"number of frames 80 must be 4k \+ 1 for wan-t2v-14B; 81 is near"),
            ("wan-t2v-14B", (720, 1280, 0), r"number of frames 0 must be 4k \+ 1 for wan-t2v-14B; 1 is near"),
            ("wan-tiny", (32, 30, 16), "width 30 must be a positive multiple of 4 for wan-tiny; 32 is near"),
            ("wan-tiny", (32, 32, 17), "number of frames 17 must be a multiple of 2 for wan-tiny; 16 is near"),
            ("wan-tiny", (32, 32, 0), "number of frames 0 must be a multiple of 2 for wan-tiny; 2 is near"),
        ],
    )
    def test_sizes_that_cannot_be_are_told_with_one_near(self, name, size, message):
        with pytest.raises(ValueError, match=message):
            latent_shape(name, *size)


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"dim": 50}, "dim = 50 must be a multiple of twice num_heads = 3"),
            ({"model_type": "v2v"}, "model_type = 'v2v' must be t2v or i2v"),
            ({"num_layers": 0}, "num_layers = 0 must be at least 1"),
            ({"patch_size": (1, 2)}, r"patch_size = \(1, 2\) must be three numbers of at least 1"),
            ({"patch_size": (0, 2, 2)}, r"patch_size = \(0, 2, 2\) must be three"),
            ({"in_dim": 3}, "in_dim = 3 must be at least out_dim = 4"),
        ],
    )
    def test_impossible_configurations_are_named(self, t2v, fields, message):
        with pytest.raises(ValueError, match=message):
            replace(t2v, **fields)

    def test_unknown_model_and_depth(self):
        with pytest.raises(ValueError, match=r"model 'wan' is unknown; choose from wan-t2v-1\.3B, wan-t2v-14B"):
            wan_config("wan")
        assert wan_config("wan-t2v-14B", depth=2) == replace(CONFIGS["wan-t2v-14B"], num_layers=2)

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("x", (2, 3, 4, 3, 15), r"latents of shape \(2, 3, 4, 3, 15\) do not fit a model for \(B, 4, T, H, W\)"),
            ("x", (2, 4, 3, 15), r"latents of shape \(2, 4, 3, 15\) do not fit"),
            ("context", (2, 10, 10), r"a text of shape \(10, 10\) does not fit; at most \(9, 10\)"),
            ("context", (2, 7, 11), r"a text of shape \(7, 11\) does not fit"),
            ("context", (7, 10), r"a text of shape \(10,\) does not fit"),
            ("context", (1, 7, 10), "2 samples need as many texts, got 1"),
            ("y", (2, 4, 4, 3, 15), r"y of shape \(2, 4, 4, 3, 15\) must be \(2, 5, 4, 3, 15\)"),
            ("y", (1, 5, 4, 3, 15), r"y of shape \(1, 5, 4, 3, 15\) must be \(2, 5"),
            ("clip_fea", (2, 5, 13), r"clip_fea of shape \(2, 5, 13\) must be \(2, L, 14\)"),
            ("clip_fea", (1, 5, 14), r"clip_fea of shape \(1, 5, 14\) must be \(2, L, 14\)"),
        ],
    )
    def test_bad_shapes_are_named(self, random_model, arguments, i2v, name, shape, message):
        with pytest.raises(ValueError, match=message):
            random_model(config=i2v)(**arguments(config=i2v) | {name: torch.zeros(shape, dtype=torch.float64)})

    def test_latents_that_patches_do_not_fill(self, random_model, arguments):
        with pytest.raises(ValueError, match="latents of 3 x 3 x 15 cannot be cut into patches of 2 x 1 x 3"):
            random_model()(**arguments() | {"x": torch.zeros(2, 4, 3, 3, 15, dtype=torch.float64)})

    @pytest.mark.parametrize("name", ["clip_fea", "y"])
    def test_image_must_fit_the_model(self, random_model, arguments, i2v, name):
        call = arguments(config=i2v)
        with pytest.raises(ValueError, match=rf"this model takes no {name} \(WanConfig.model_type = t2v\)"):
            random_model()(**arguments() | {name: call[name]})
        del call[name]
        with pytest.raises(ValueError, match=f"this model needs {name}"):
            random_model(config=i2v)(**call)


def test_rotated_channels_are_the_official_split():
    assert WanConfig().rope_dims == (44, 42, 42)
    assert [sum(config.rope_dims) == config.head_dim for config in CONFIGS.values()] == [True] * len(CONFIGS)
