"""HiDream-I1 against its manifests and diffusers' implementation, and its parts under the cache."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hidream.model
from cache_dic import ENGINES, Site, make_cache, residual
from hidream import CONFIGS, HiDream, HiDreamConfig, hidream_config
from hidream.config import latent_shape
from hidream.model import Attention, Gate

MANIFESTS = Path(__file__).parents[1] / "checkpoints"
OFFICIAL = ("hidream-full", "hidream-dev", "hidream-fast")
GRIDS = [(3, 3), (2, 2), (2, 5), (5, 2), (1, 3), (4, 3), (2, 6)]  # squares; padded; as many tokens as there can be
N4 = {"interval": 4, "max_order": 1, "warmup_steps": 1}


def manifest(suffix: str = "") -> dict:
    return json.loads((MANIFESTS / f"hidream_i1{suffix}.json").read_text())


class TestManifests:
    @pytest.mark.parametrize("name", OFFICIAL)
    @pytest.mark.parametrize("suffix", ["", ".diffusers"])
    def test_model_has_the_official_names_and_shapes(self, name, suffix):
        """Which are diffusers', too, and in one order."""
        wanted = manifest(suffix)
        with torch.device("meta"):
            state = HiDream(hidream_config(name)).state_dict()
        assert {key: list(tensor.shape) for key, tensor in state.items()} == wanted["parameters"]
        assert list(state) == list(wanted["parameters"])
        assert sum(tensor.numel() for tensor in state.values()) == wanted["total_parameters"]
        assert len(state) == wanted["tensors"]

    @pytest.mark.parametrize("name", OFFICIAL)
    def test_configuration_is_the_official_one(self, name):
        ours = json.loads(json.dumps(asdict(hidream_config(name))))
        assert ours == manifest()["config"]
        assert ours | {"force_inference_output": False} == manifest(".diffusers")["config"]

    def test_names_are_those_of_the_class_of_diffusers(self, diffusers_model, random_model):
        theirs, ours = diffusers_model().state_dict(), random_model().state_dict()
        assert list(ours) == list(theirs)


@contextmanager
def choices(model: HiDream) -> Iterator[list[Tensor]]:
    """Scores (T, E) that the experts of every layer called inside get."""
    seen: list[Tensor] = []
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    hooks = [gate.register_forward_hook(lambda _, __, output: seen.append(output[0])) for gate in gates]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class TestDiffusers:
    """Agreement in float32 with diffusers' class, which is the official arithmetic."""

    @pytest.fixture
    def pair(self, diffusers_model, tiny):
        """`pair(scale)`: a diffusers model with random weights of a scale, and ours with the same ones."""
        config = replace(tiny, out_channels=3)

        def make(scale: float = 1.0):
            theirs, ours = diffusers_model(config, scale), HiDream(config)
            ours.load_state_dict(theirs.state_dict())
            return theirs, ours.eval()

        return make

    @staticmethod
    @torch.no_grad()
    def relative_difference(pair, call) -> float:
        """max|ours - diffusers| / max|diffusers| of one call."""
        theirs, ours = pair
        named = {"t5": "encoder_hidden_states_t5", "llama": "encoder_hidden_states_llama3", "pooled": "pooled_embeds"}
        expected = theirs(**{named.get(name, name): tensor for name, tensor in call.items()}).sample
        assert expected.abs().max() > 1e-3
        result = ours(**call)
        assert result.shape == expected.shape
        return ((result - expected).abs().max() / expected.abs().max()).item()

    @pytest.mark.slow
    @pytest.mark.parametrize("grid", GRIDS, ids=str)
    @pytest.mark.parametrize("scale", [1.0, 0.1])
    def test_forward_agrees(self, pair, arguments, grid, scale):
        """Token order, padding, positions, Llama's layers and constants; small weights show the eps of the norms."""
        assert self.relative_difference(pair(scale), arguments(torch.float32, grid)) <= 2e-5

    @pytest.mark.parametrize("scale", [1.0, 0.1])
    def test_experts_are_chosen_by_clear_margins(self, pair, arguments, scale):
        """The test above does not hang on rounding: logits around the last choice are 1e-3 apart; rounding is 1e-6."""
        _, ours = pair(scale)
        for grid in GRIDS:
            with choices(ours) as seen:
                ours(**arguments(torch.float32, grid))
            assert len(seen) == ours.config.num_blocks
            best = torch.cat(seen).log().topk(3).values
            assert (best[:, 1] - best[:, 2]).min() > 1e-3
            chosen = torch.cat(seen).topk(2).indices
            assert len(chosen.unique()) == ours.config.num_routed_experts, "every expert is used"

    @pytest.mark.parametrize(("constant", "wrong"), [("EPS", 1e-5), ("RMS_EPS", 1e-6)])
    def test_eps_of_the_norms_shows(self, pair, arguments, monkeypatch, constant, wrong):
        """The first test would see one norm's eps in the place of the other's."""
        monkeypatch.setattr(hidream.model, constant, wrong)
        assert self.relative_difference(pair(0.1), arguments(torch.float32)) > 2e-4

    def test_scores_are_not_brought_to_sum_one(self, pair, arguments, monkeypatch):
        forward = Gate.forward

        def renormalised(self, x):
            scores, chosen = forward(self, x)
            return scores / scores.gather(1, chosen).sum(1, keepdim=True), chosen

        monkeypatch.setattr(Gate, "forward", renormalised)
        assert self.relative_difference(pair(), arguments(torch.float32)) > 1e-2

    @pytest.mark.parametrize(("grid", "padded"), [((2, 5), True), ((5, 2), True), ((4, 3), False), ((3, 3), False)])
    def test_padding_takes_part_in_the_softmax(self, pair, arguments, grid, padded):
        """Masked keys of padding, the usual way, would give another image, unless there is no padding."""
        theirs, ours = pair()

        def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, (k != 0).any(-1).unsqueeze(-2))

        for module in ours.modules():
            if isinstance(module, Attention):
                module.attend = masked
        difference = self.relative_difference((theirs, ours), arguments(torch.float32, grid))
        assert difference > 1e-3 if padded else difference <= 2e-5

    def test_order_of_rows_of_the_head_shows(self, pair, arguments):
        theirs, ours = pair()
        layer = ours.final_layer.adaLN_modulation[1]
        layer.weight.data = torch.cat(layer.weight.data.chunk(2)[::-1])
        assert self.relative_difference((theirs, ours), arguments(torch.float32)) > 1e-2


def test_attention_backends_agree(random_model, arguments):
    for grid in ((3, 3), (2, 5)):
        call = arguments(grid=grid)
        expected = random_model()(**call)
        result = random_model(attention="reference")(**call)
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)


class TestText:
    def test_every_condition_matters(self, random_model, arguments):
        model, call = random_model(), arguments()
        output = model(**call)
        for name in ("timesteps", "t5", "llama", "pooled"):
            changed = call | {name: call[name].flip(1 if name == "llama" else 0)}
            assert (model(**changed) - output).abs().max() > 1e-6, name

    def test_blocks_read_the_layers_of_the_configuration(self, random_model, arguments, tiny):
        model, call = random_model(), arguments()
        output = model(**call)
        for number in range(len(call["llama"])):
            states = call["llama"].clone()
            states[number] += 1
            read = number in tiny.llama_layers
            assert torch.equal(model(**call | {"llama": states}), output) != read, number
        used = call["llama"][: 1 + max(tiny.llama_layers)]
        assert torch.equal(model(**call | {"llama": used}), output)

    @pytest.mark.parametrize("grid", [(3, 3), (2, 5)], ids=str)
    def test_sample_of_a_batch_is_the_sample_alone(self, random_model, arguments, grid):
        model, call = random_model(), arguments(grid=grid)
        output = model(**call)
        for row in range(2):
            alone = model(**{name: value.narrow(1 if name == "llama" else 0, row, 1) for name, value in call.items()})
            torch.testing.assert_close(alone[0], output[row], rtol=1e-12, atol=1e-12)


def open_loop(model: HiDream, call: dict[str, Tensor], num_steps: int, cache=None) -> tuple[list[Tensor], object]:
    """The model's answers to one input at falling timesteps, and the run."""
    x, conditions = call["hidden_states"], {name: call[name] for name in ("t5", "llama", "pooled")}
    timesteps = torch.linspace(800, 700, num_steps)
    run = (cache or make_cache("uncached")).start(model, x, timesteps, **conditions)
    answers = [model(x, t.expand(2), **conditions, cache=run.at(step)) for step, t in enumerate(timesteps)]
    return answers, run


class RecursionOnTensors:
    """TaylorSeer (arXiv 2503.06923, Eq. 3) as its recursion: every site's feature and its backward differences."""

    def __init__(self, max_order: int) -> None:
        self.max_order = max_order
        self.factors: list[list[Tensor]] = []  # by site, order 0 first
        self.last = 0

    def update(self, step: int, features: list[Tensor]) -> None:
        old, self.factors = self.factors or [[]] * len(features), []
        for feature, before in zip(features, old, strict=True):
            new = [feature]
            for order in range(min(self.max_order, len(before))):
                new.append((new[order] - before[order]) / (step - self.last))
            self.factors.append(new)
        self.last = step

    def forecast(self, step: int) -> list[Tensor]:
        x = step - self.last
        return [sum(f * x**i / math.factorial(i) for i, f in enumerate(factors)) for factors in self.factors]


class TestCached:
    @pytest.mark.parametrize("max_order", [1, 2])
    @pytest.mark.parametrize("grid", [(3, 3), (2, 5)], ids=str)
    @pytest.mark.parametrize("engine", ["folded", "layerwise"])
    def test_forecasts_are_the_recursion_site_by_site(self, random_model, arguments, engine, grid, max_order):
        """Of attention and feed-forward of every block, with the gates of the forecast step itself."""
        model, call = random_model(), arguments(grid=grid)
        answers, run = open_loop(model, call, 11, make_cache(**N4 | {"max_order": max_order}, engine=engine))
        x, texts, recursion = call["hidden_states"], (call["t5"], call["llama"]), RecursionOnTensors(max_order)
        for step, t in enumerate(torch.linspace(800, 700, 11)):
            rows = model.modulation(model.condition(t.expand(2), call["pooled"]))
            if run.plan.is_full(step):
                features = []

                class Recording(Site):
                    def __call__(self, x, gate, feature, part=None, *, name, reaches_output=True, kept=features):
                        value = feature(x)
                        kept += [value[:, part]] if reaches_output else []
                        return residual(x, gate, value)

                expected = model.full_step(x, *texts, rows, Recording())
                recursion.update(step, features)
            else:
                double, single = rows.blocks
                streams = [img for img, _ in double] + list(single)
                gates = [stream[:, g : g + 1] for stream in streams for g in (2, 5)]
                img = model.embed(x)
                for gate, feature in zip(gates, recursion.forecast(step), strict=True):
                    img = img + gate * feature
                expected = model.head(img, model.grid(x), rows)
            assert (answers[step] - expected).abs().max() <= 1e-12 * expected.abs().max(), step

    @pytest.mark.parametrize("settings", [N4, N4 | {"max_order": 2}, N4 | {"warmup_steps": 3}], ids=["O1", "O2", "W3"])
    @pytest.mark.parametrize("grid", [(3, 3), (5, 2), (4, 3)], ids=str)
    def test_folded_is_layerwise(self, random_model, arguments, grid, settings):
        model, call = random_model(), arguments(grid=grid)
        folded, layerwise = (
            torch.stack(open_loop(model, call, 13, make_cache(engine=engine, **settings))[0])
            for engine in ("folded", "layerwise")
        )
        assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()
        uncached = torch.stack(open_loop(model, call, 13)[0])
        assert (folded - uncached).abs().max() > 1e-6 * uncached.abs().max(), (
            "forecasts are none of the model's answers"
        )

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("grid", [(3, 3), (2, 5)], ids=str)
    def test_text_plays_no_part_in_forecast_steps(self, random_model, arguments, engine, grid):
        model, call = random_model(), arguments(grid=grid)
        x, timesteps = call["hidden_states"], torch.linspace(1000, 500, 11)
        conditions = {name: call[name] for name in ("t5", "llama", "pooled")}
        nothing = {name: torch.full_like(text, torch.nan) for name, text in conditions.items()}
        results = []
        for other in (conditions, nothing):
            run = make_cache(**N4, engine=engine).start(model, x, timesteps, **conditions)
            for step, t in enumerate(timesteps):
                texts = conditions if run.plan.is_full(step) else other
                output = model(x, t.expand(2), **texts, cache=run.at(step))
                if not run.plan.is_full(step):
                    results.append(output)
        assert len(results) == 16
        assert all(torch.equal(a, b) for a, b in zip(results[:8], results[8:], strict=True))
        assert all(result.isfinite().all() for result in results)

    def test_uncached_steps_are_calls_of_the_plain_model(self, random_model, arguments):
        """The modulation table changes nothing."""
        model, call = random_model(), arguments()
        answers, _ = open_loop(model, call, 4)
        for answer, t in zip(answers, torch.linspace(800, 700, 4), strict=True):
            torch.testing.assert_close(answer, model(**call | {"timesteps": t.expand(2)}), rtol=1e-12, atol=1e-12)

    def test_modulation_table_is_the_modulation_of_each_step(self, random_model, arguments, check_modulation_table):
        timesteps = torch.tensor([1000.0, 700.0, 300.0, 100.0])
        check_modulation_table(random_model(), timesteps, single_gates=(2, 5), pooled=arguments()["pooled"])

    @pytest.mark.parametrize("max_order", [1, 2])
    @pytest.mark.parametrize("grid", [(3, 3), (2, 5)], ids=str)
    def test_kept_bytes_by_formula(self, random_model, arguments, grid, max_order):
        """Folded (order + 1) (interval - 1) sums, layerwise order + 1 features of each site; none of padding or text."""
        model, call = random_model(), arguments(grid=grid)
        size = 2 * grid[0] * grid[1] * 48 * 8  # of one feature, in float64
        for engine, count in (("folded", (max_order + 1) * 3), ("layerwise", (max_order + 1) * 2 * 5)):
            _, run = open_loop(model, call, 13, make_cache(**N4 | {"max_order": max_order}, engine=engine))
            assert run.kept_bytes == count * size

    def test_kept_bytes_of_the_official_model(self):
        """1024 x 1024 pixels with guidance in bf16, order 1: 6 sums in float32, or 96 sites twice."""
        with torch.device("meta"):
            model = HiDream(CONFIGS["hidream-full"]).bfloat16()
            tokens = model.tokens(torch.empty(2, *latent_shape("hidream-full", 1024, 1024)))
        kept = make_cache(**N4).kept_bytes(50, tokens)
        assert tokens.num_sites == 96
        assert kept["folded"] == 6 * 2 * 4096 * 2560 * 4
        assert kept["layerwise"] == 16 * kept["folded"]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, random_model, arguments, dtype):
        """Rounding moves some tokens to other experts, so the mean is compared, not the largest difference."""
        call = arguments(torch.float32)
        exact = random_model(torch.float32)(**call)
        rounded = random_model(dtype)(**{name: t if name == "timesteps" else t.to(dtype) for name, t in call.items()})
        assert rounded.dtype == dtype
        assert (rounded - exact).abs().mean() <= 0.05 * exact.abs().mean()

    @pytest.mark.gpu
    @pytest.mark.parametrize("grid", [(3, 3), (2, 5)], ids=str)
    def test_cuda_is_cpu(self, random_model, arguments, grid):
        """One forward pass on both devices; TF32 off."""
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        model, call = random_model(torch.float32), arguments(torch.float32, grid)
        expected = model(**call)
        result = model.cuda()(**{name: tensor.cuda() for name, tensor in call.items()})
        torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.gpu
    def test_folded_is_layerwise_in_bf16_on_cuda(self, random_model, arguments):
        """To the rounding of bf16, which layerwise does at every site and folded once."""
        model = random_model(torch.bfloat16).cuda()
        call = {name: tensor.cuda() for name, tensor in arguments(torch.bfloat16).items()}
        folded, layerwise = (
            torch.stack(open_loop(model, call, 9, make_cache(**N4, engine=engine))[0]).float()
            for engine in ("folded", "layerwise")
        )
        assert (folded - layerwise).abs().max() <= 0.05 * layerwise.abs().max()


class TestFlops:
    BATCH, T5, LLAMA = 2, 5, 7

    def streams(self, config: HiDreamConfig, tokens: int) -> int:
        """Embedding and head of the image tokens."""
        values = config.patch_size**2 * (config.in_channels + config.out_channels)
        return 2 * self.BATCH * tokens * config.hidden_size * values

    @staticmethod
    def step(model: HiDream, call: dict[str, Tensor]) -> tuple[int, int]:
        return model.step_flops(call["hidden_states"], **{name: call[name] for name in ("t5", "llama", "pooled")})

    def test_forecast_step_is_head_and_embedding(self, random_model, arguments, tiny):
        """A forecast step multiplies by x_embedder, the gates' part of the image's modulation, and the head."""
        dim = tiny.hidden_size
        conditions = 2 * self.BATCH * dim * (10 * dim + 2 * dim)  # gates of 10 sites, and shift and scale of the head
        embedder = 2 * (256 * dim + dim * dim)  # of the timestep alone: the pooled text's belongs to the run
        for grid in ((3, 3), (2, 5)):
            _, forecast = self.step(random_model(), arguments(grid=grid))
            assert forecast == self.streams(tiny, grid[0] * grid[1]) + conditions + embedder

    @pytest.mark.parametrize(("grid", "padded"), [((3, 3), 9), ((2, 5), 12)], ids=str)
    def test_full_step_by_hand(self, random_model, arguments, tiny, grid, padded):
        """Each token is counted with its two experts and the shared one; padding is computed as image tokens are."""
        dim, batch = tiny.hidden_size, self.BATCH
        txt = self.T5 + self.LLAMA

        def linear(rows: int, width: int = dim) -> int:
            return 2 * batch * rows * dim * width

        def feed_forward(rows: int, width: int) -> int:
            return 3 * linear(rows, width)

        def experts(rows: int) -> int:
            return linear(rows, 4) + feed_forward(rows, 2 * tiny.expert_width + tiny.shared_width)

        joint = padded + txt
        attention = 4 * batch * joint * (joint + self.LLAMA) * dim
        projections = 2 * linear(joint) + 2 * linear(joint + self.LLAMA)  # queries and output; keys and values
        double = attention + projections + experts(padded) + feed_forward(txt, tiny.expert_width)
        single = attention + projections + experts(joint)
        of_t5, of_llama = tiny.caption_channels
        captions = linear(self.T5, of_t5) + 5 * linear(self.LLAMA, of_llama)
        rows = linear(1, 2 * 12 * dim + 3 * 6 * dim + 2 * dim)
        embedders = 2 * (256 * dim + dim * dim) + 2 * batch * (tiny.text_emb_dim * dim + dim * dim)
        expected = 2 * double + 3 * single + captions + rows + embedders + self.streams(tiny, grid[0] * grid[1])
        full, _ = self.step(random_model(), arguments(grid=grid))
        assert full == expected


def test_initial_weights_predict_zero_and_follow_the_seed(arguments, tiny, check_initial_weights):
    check_initial_weights(
        lambda seed: HiDream(tiny).initialize(seed), arguments(torch.float32), "x_embedder.proj.weight"
    )


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "shape", "message"),
        [
            ("hidden_states", (2, 4, 6, 6), r"hidden_states of shape \(2, 4, 6, 6\) must be \(B, 5, H, W\)"),
            ("hidden_states", (2, 5, 6, 5), r"\(2, 5, 6, 5\) must be .* with H and W multiples of 2"),
            ("hidden_states", (2, 9, 20), r"hidden_states of shape \(2, 9, 20\) must be"),
            ("hidden_states", (2, 5, 8, 8), r"\(2, 5, 8, 8\) have more than the 12 tokens of the model"),
            ("t5", (1, 5, 20), r"t5 of shape \(1, 5, 20\) must be \(2, any, 20\)"),
            ("t5", (2, 5, 14), r"t5 of shape \(2, 5, 14\) must be \(2, any, 20\)"),
            ("llama", (2, 7, 14), r"llama of shape \(2, 7, 14\) must be \(any, 2, any, 14\)"),
            ("llama", (6, 1, 7, 14), r"llama of shape \(6, 1, 7, 14\) must be"),
            ("llama", (4, 2, 7, 14), "llama has 4 hidden states, the model reads the first 5"),
            ("pooled", (2, 11), r"pooled of shape \(2, 11\) must be \(2, 10\)"),
        ],
    )
    def test_bad_shapes_are_named(self, random_model, arguments, name, shape, message):
        model, wrong = random_model(), {name: torch.zeros(shape, dtype=torch.float64)}
        with pytest.raises(ValueError, match=message):
            model(**arguments() | wrong)
