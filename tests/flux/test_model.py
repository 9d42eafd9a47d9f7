"""FLUX against its manifests and diffusers' implementation, and under the cache over whole sampling runs."""

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import flux.model
from cache_dic import ENGINES, make_cache
from flux import CONFIGS, Flux, FluxConfig, Sampler, flux_config, sample
from flux.latents import image_ids, pack, text_ids, unpack
from flux.schedule import sampling_times
from flux.weights import PUBLISHED, convert_diffusers
from seerkit.weights.checkpoints import load_weights

MANIFESTS = Path(__file__).parents[1] / "checkpoints"
NAMES = ("flux-dev", "flux-schnell")
# Odd on purpose: heads, depths and widths that a transposed or swapped tensor would not fit.
TINY = FluxConfig(
    in_channels=16, out_channels=16, vec_in_dim=10, context_in_dim=20, hidden_size=48, num_heads=3, depth=2,
    depth_single_blocks=3, axes_dim=(4, 6, 6),
)  # fmt: skip
N6 = {"interval": 6, "warmup_steps": 3}


def manifest(name: str, suffix: str = "") -> dict:
    return json.loads((MANIFESTS / f"{name.replace('-', '_')}{suffix}.json").read_text())


@pytest.fixture(scope="module")
def random_flux():
    """`random_flux(dtype)`: a tiny model with every weight random, so that no gate is zero."""

    def make(dtype: torch.dtype = torch.float64, config: FluxConfig = TINY, **options) -> Flux:
        model = Flux(config, **options)
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.08
        return model.eval().requires_grad_(False).to(dtype)

    return make


def inputs(dtype: torch.dtype = torch.float64, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise for 3 x 4 tokens, 5 text tokens, a pooled vector."""
    draw = torch.Generator().manual_seed(1)
    shapes = (batch, 4, 6, 8), (batch, 5, TINY.context_in_dim), (batch, TINY.vec_in_dim)
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype) for shape in shapes)


def arguments(dtype: torch.dtype = torch.float64, guided: bool = True) -> dict[str, torch.Tensor]:
    """Arguments of one call of a model."""
    noise, txt, y = inputs(dtype)
    guidance = {"guidance": torch.tensor([3.5, 2.0])} if guided else {}
    return {
        "img": pack(noise, 2), "img_ids": image_ids(2, 3, 4), "txt": txt, "txt_ids": text_ids(2, 5),
        "timesteps": torch.tensor([0.83, 0.12]), "y": y, **guidance,
    }  # fmt: skip


class TestManifests:
    @pytest.mark.parametrize("name", NAMES)
    def test_model_has_the_official_names_and_shapes(self, name):
        wanted = manifest(name)
        assert json.loads(json.dumps(asdict(flux_config(name)))) == wanted["config"]
        with torch.device("meta"):
            state = Flux(flux_config(name)).state_dict()
        assert {key: list(tensor.shape) for key, tensor in state.items()} == wanted["parameters"]
        assert sum(tensor.numel() for tensor in state.values()) == wanted["total_parameters"]
        assert len(state) == wanted["tensors"]

    @pytest.mark.parametrize("name", NAMES)
    def test_diffusers_names_become_the_official_ones(self, name):
        theirs = manifest(name, ".diffusers")["parameters"]
        state = convert_diffusers({key: torch.empty(shape, device="meta") for key, shape in theirs.items()})
        assert {key: list(tensor.shape) for key, tensor in state.items()} == manifest(name)["parameters"]

    @pytest.mark.parametrize("name", NAMES)
    def test_published_files_are_those_of_the_manifests(self, name):
        official, theirs = PUBLISHED[CONFIGS[name]]
        assert [official.name] == manifest(name)["official_files"]
        assert official.repo == theirs.repo == manifest(name)["official_repo"]
        assert f"{theirs.repo} ({Path(theirs.name).parent}/)" == manifest(name, ".diffusers")["official_repo"]


class TestDiffusers:
    @pytest.fixture
    def pair(self, need):
        """`pair(guided, scale)`: a diffusers model with random weights of a scale, and ours with the same ones."""
        diffusers = need("diffusers")

        def make(guided: bool = True, scale: float = 1.0):
            config = replace(TINY, guidance_embed=guided)
            theirs = diffusers.FluxTransformer2DModel(
                in_channels=config.in_channels,
                num_layers=config.depth,
                num_single_layers=config.depth_single_blocks,
                attention_head_dim=config.head_dim,
                num_attention_heads=config.num_heads,
                joint_attention_dim=config.context_in_dim,
                pooled_projection_dim=config.vec_in_dim,
                guidance_embeds=guided,
                axes_dims_rope=config.axes_dim,
            ).eval()
            draw = torch.Generator().manual_seed(0)
            with torch.no_grad():
                for parameter in theirs.parameters():
                    spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread * scale)
            with torch.device("meta"):
                ours = Flux(config)
            return theirs, load_weights(ours, convert_diffusers(theirs.state_dict())).eval()

        return make

    @staticmethod
    @torch.no_grad()
    def relative_difference(pair, guided: bool) -> float:
        """max|ours - diffusers| / max|diffusers| of one call, two samples of 3 x 4 tokens."""
        theirs, ours = pair
        call = arguments(torch.float32, guided)
        expected = theirs(
            hidden_states=call["img"], encoder_hidden_states=call["txt"], pooled_projections=call["y"],
            timestep=call["timesteps"], img_ids=call["img_ids"][0], txt_ids=call["txt_ids"][0],
            guidance=call.get("guidance"),
        ).sample  # fmt: skip
        assert expected.abs().max() > 1e-3
        return ((ours(**call) - expected).abs().max() / expected.abs().max()).item()

    @pytest.mark.parametrize("guided", [True, False])
    @pytest.mark.parametrize("scale", [1.0, 0.1])
    def test_forward_agrees(self, pair, guided, scale):
        """Row orders, token order, positions and constants; small weights show the eps of the norms."""
        assert self.relative_difference(pair(guided, scale), guided) <= 2e-5

    def test_eps_of_the_norms_shows(self, pair, monkeypatch):
        """The test above would see an eps ten times too large."""
        monkeypatch.setattr(flux.model, "EPS", 1e-5)
        assert self.relative_difference(pair(True, 0.1), True) > 2e-4

    def test_order_of_rows_of_the_head_shows(self, pair):
        theirs, ours = pair()
        layer = ours.final_layer.adaLN_modulation[1]
        layer.weight.data = torch.cat(layer.weight.data.chunk(2)[::-1])
        assert self.relative_difference((theirs, ours), True) > 1e-2


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_attention_backends_agree(random_flux, backend):
    expected = random_flux()(**arguments())
    torch.testing.assert_close(random_flux(attention=backend)(**arguments()), expected, rtol=1e-12, atol=1e-12)


def test_text_and_positions_matter(random_flux):
    model, call = random_flux(), arguments()
    output = model(**call)
    for name in ("txt", "y", "img_ids", "guidance", "timesteps"):
        changed = call | {name: call[name].flip(1 if name == "img_ids" else 0)}
        assert (model(**changed) - output).abs().max() > 1e-6, name


class TestCached:
    @pytest.mark.parametrize(
        "settings",
        [N6 | {"max_order": 1}, N6 | {"max_order": 2}, {"interval": 4, "warmup_steps": 3, "max_order": 2}],
        ids=lambda s: f"N{s['interval']}-O{s['max_order']}",
    )
    def test_folded_is_layerwise_over_a_sampling_run(self, random_flux, settings):
        model = random_flux()
        folded, layerwise = (
            sample(model, *inputs(), 50, cache=make_cache(engine=engine, **settings))
            for engine in ("folded", "layerwise")
        )
        assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()
        uncached = sample(model, *inputs(), 50)
        assert 0 < (folded - uncached).abs().max() <= 0.1 * uncached.abs().max()

    def test_full_steps_and_sites(self, random_flux):
        model = random_flux()
        _, run = Sampler(model, 50).run(*inputs(), cache=make_cache(**N6, max_order=1))
        record = run.record()
        assert record["full_steps"] == [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]
        assert record["sites"] == 2 * TINY.depth + TINY.depth_single_blocks, "the text stream has no sites"

    @pytest.mark.parametrize("engine", ENGINES)
    def test_interval_one_is_the_uncached_run_to_the_bit(self, random_flux, engine):
        model = random_flux(torch.float32)
        cache = make_cache(interval=1, warmup_steps=1, engine=engine)
        cached = sample(model, *inputs(torch.float32), 7, cache=cache)
        assert torch.equal(cached, sample(model, *inputs(torch.float32), 7))

    @pytest.mark.parametrize("guided", [True, False])
    def test_uncached_run_is_the_loop_over_the_plain_model(self, random_flux, guided):
        """The table changes nothing: the sampler equals Euler steps with calls of the model without a cache."""
        model = random_flux(config=replace(TINY, guidance_embed=guided))
        noise, txt, y = inputs()
        call = arguments(guided=guided) | {"txt": txt, "y": y}
        if guided:
            call["guidance"] = torch.full((2,), 2.5)
        x, times = pack(noise, 2), sampling_times(9, 12, shift=guided)
        for t, t_next in itertools.pairwise(times):
            x = x + (t_next - t) * model(**call | {"img": x, "timesteps": t.float().expand(2)})
        with_table = sample(model, noise, txt, y, 9, guidance_scale=2.5)
        torch.testing.assert_close(with_table, unpack(x, 6, 8, 2), rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("engine", ENGINES)
    def test_text_plays_no_part_in_forecast_steps(self, random_flux, engine):
        model = random_flux()
        noise, txt, y = inputs()
        times = sampling_times(20, 12)
        results = []
        for constant in (None, 7.0):
            x = pack(noise, 2)
            conditions = {
                "img_ids": image_ids(2, 3, 4), "txt": txt, "txt_ids": text_ids(2, 5), "y": y,
                "guidance": torch.full((2,), 3.5),
            }  # fmt: skip
            run = make_cache(**N6, max_order=2, engine=engine).start(model, x, times[:-1].float(), **conditions)
            for step in range(20):
                given = dict(conditions)
                if not run.plan.is_full(step) and constant is not None:
                    given["txt"] = torch.full_like(txt, constant)
                x = x + (times[step + 1] - times[step]) * model(
                    x, timesteps=times[step].float().expand(2), **given, cache=run.at(step)
                )
            results.append(x)
        assert torch.equal(*results)

    def test_samples_do_not_depend_on_the_batch(self, random_flux):
        model, given = random_flux(torch.float32), inputs(torch.float32, batch=3)
        cache = make_cache(**N6, max_order=2)
        together = sample(model, *given, 20, cache=cache)
        for row in range(3):
            alone = sample(model, *(tensor[row : row + 1] for tensor in given), 20, cache=cache)
            assert (alone[0] - together[row]).abs().max() <= 1e-6 * together.abs().max()

    def test_modulation_table_is_the_modulation_of_each_step(self, random_flux, check_modulation_table):
        timesteps, guidance = torch.tensor([1.0, 0.7, 0.3, 0.1]), torch.tensor([3.5, 1.0])
        check_modulation_table(random_flux(), timesteps, y=inputs()[2], guidance=guidance)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_models_sample(self, random_flux, dtype):
        """Latents stay in the dtype of the noise; the model runs in its own."""
        given, cache = inputs(torch.float32), make_cache(**N6, max_order=1)
        exact = sample(random_flux(torch.float32), *given, 20, cache=cache)
        rounded = sample(random_flux(dtype), *given, 20, cache=cache)
        assert rounded.dtype == torch.float32
        assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max()

    def test_flops_of_a_forecast_step_are_head_and_embedding(self, random_flux):
        """A forecast step multiplies by img_in, the gates' third of the image modulation, and the head."""
        model, call = random_flux(), arguments()
        dim, batch, tokens = TINY.hidden_size, 2, 12
        del call["timesteps"]
        _, forecast = model.step_flops(call.pop("img"), **call)
        streams = 2 * batch * tokens * dim * (TINY.in_channels + TINY.out_channels)
        sites = 2 * TINY.depth + TINY.depth_single_blocks
        conditions = 2 * batch * dim * (sites * dim + 2 * dim)  # gates, and shift and scale of the head
        embedders = 2 * (256 * dim + dim * dim)  # of the timestep alone: the others belong to the run
        assert forecast == streams + conditions + embedders

    @pytest.mark.gpu
    @pytest.mark.parametrize("engine", ENGINES)
    def test_cuda_is_cpu(self, random_flux, engine):
        """The same run on both devices; TF32 off."""
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        model, given = random_flux(torch.float32), inputs(torch.float32)
        cache = make_cache(**N6, max_order=2, engine=engine)
        expected = sample(model, *given, 20, cache=cache)
        result = sample(model.cuda(), *(tensor.cuda() for tensor in given), 20, cache=cache)
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_initial_weights_predict_zero_and_follow_the_seed(check_initial_weights):
    check_initial_weights(lambda seed: Flux(TINY).initialize(seed), arguments(torch.float32), "img_in.weight")


class TestErrors:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"hidden_size": 100, "num_heads": 3}, "hidden_size = 100 must be a multiple of num_heads = 3"),
            (
                {"axes_dim": (4, 6, 4)},
                r"axes_dim = \(4, 6, 4\) must be even numbers with the sum of a head's 16 channels",
            ),
            ({"axes_dim": (5, 5, 6)}, r"axes_dim = \(5, 5, 6\) must be even"),
            ({"depth": -1}, "depth = -1 must be at least 0"),
            ({"depth": 0, "depth_single_blocks": 0}, "both 0; a model needs a block"),
            ({"in_channels": 0}, "in_channels = 0 must be at least 1"),
        ],
    )
    def test_impossible_configurations_are_named(self, fields, message):
        with pytest.raises(ValueError, match=message):
            replace(TINY, **fields)

    def test_unknown_model(self):
        with pytest.raises(ValueError, match=r"model 'flux' is unknown; choose from flux-dev, flux-schnell"):
            flux_config("flux")

    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("img", (2, 12, 15), r"img of shape \(2, 12, 15\) does not fit a model for \(B, L, 16\)"),
            ("img", (2, 4, 6, 8), r"img of shape \(2, 4, 6, 8\) does not fit"),
            ("txt", (2, 5, 16), r"txt of shape \(2, 5, 16\) does not fit a model for \(B, L, 20\)"),
            ("img_ids", (2, 11, 3), r"img_ids of shape \(2, 11, 3\) must be \(2, 12, 3\)"),
            ("txt_ids", (5, 3), r"txt_ids of shape \(5, 3\) must be \(2, 5, 3\)"),
        ],
    )
    def test_bad_shapes_are_named(self, random_flux, name, shape, message):
        with pytest.raises(ValueError, match=message):
            random_flux()(**arguments() | {name: torch.zeros(shape, dtype=torch.float64)})

    @pytest.mark.parametrize(("guided", "message"), [(True, "needs guidance"), (False, "takes no guidance")])
    def test_guidance_must_fit_the_model(self, random_flux, guided, message):
        model = random_flux(config=replace(TINY, guidance_embed=guided))
        with pytest.raises(ValueError, match=message):
            model(**arguments(guided=not guided))
