"""DiT under the cache: the three parts, the modulation table, engines over whole sampling runs."""

import pytest
import torch

from cache_dic import ENGINES, make_cache
from dit import DiT, DiTConfig, Sampler, dit_config, sample
from seerkit.devices.offload import HostLinear, offload_modulation
from seerkit.layers import modulation as modulation_table


@pytest.fixture(scope="module")
def random_dit():
    """`random_dit(dtype)`: the debug model with every weight random, so that no gate is zero."""

    def make(dtype: torch.dtype = torch.float64, **options) -> DiT:
        model = DiT(dit_config("debug"), **options)
        generator = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.08
        return model.eval().requires_grad_(False).to(dtype)

    return make


def inputs(dtype: torch.dtype = torch.float64, batch: int = 3):
    noise = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return noise, torch.arange(batch) % 3


@pytest.mark.parametrize(
    "settings",
    [
        {"interval": 4, "warmup_steps": 2, "max_order": 4},
        {"interval": 6, "warmup_steps": 3, "max_order": 2},
        {"interval": 5, "warmup_steps": 1, "max_order": 1},
        {"interval": 5, "warmup_steps": 3, "max_order": 0, "schedule": "diffusers"},
        {"full_steps": [0, 3, 4, 9, 11, 30, 44], "max_order": 3},
    ],
    ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items()),
)
def test_folded_is_layerwise_over_a_sampling_run(random_dit, settings):
    model, (noise, y) = random_dit(), inputs()
    folded, layerwise = (
        sample(model, noise, y, 50, guidance_scale=2.0, cache=make_cache(engine=engine, **settings))
        for engine in ("folded", "layerwise")
    )
    assert (folded - layerwise).abs().max() <= 1e-12 * layerwise.abs().max()


@pytest.mark.parametrize("engine", ENGINES)
def test_interval_one_is_the_uncached_run_to_the_bit(random_dit, engine):
    model, (noise, y) = random_dit(torch.float32), inputs(torch.float32)
    cached = sample(model, noise, y, 7, cache=make_cache(interval=1, warmup_steps=1, engine=engine))
    assert torch.equal(cached, sample(model, noise, y, 7))


def test_uncached_run_is_the_loop_over_the_plain_model(random_dit):
    """The table changes nothing: the sampler equals calls of model(x, t, y) without a cache."""
    model, (noise, y) = random_dit(), inputs()

    class Plain(DiT):
        def forward(self, x, t, y, *, cache=None):
            if cache is not None:
                cache(self.tokens(x), lambda site: [site(x, None, x) for _ in range(4)].pop(), lambda advance: x)
            return super().forward(x, t, y)

    with_table = sample(model, noise, y, 9)
    model.__class__ = Plain
    without = sample(model, noise, y, 9)
    model.__class__ = DiT
    torch.testing.assert_close(with_table, without, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("slice_bytes", [1, 5000, 2**30])
def test_modulation_table_is_the_modulation_of_each_step(random_dit, slice_bytes, monkeypatch):
    """Whatever the slices, in which rows of many steps are one product."""
    monkeypatch.setattr(modulation_table, "SLICE_BYTES", slice_bytes)
    model, y, timesteps = random_dit(), torch.tensor([0, 2, 3]), torch.tensor([900, 600, 300, 0])
    table = model.modulation_table(timesteps, [0, 2], [1, 2, 3], y=y)
    for step, t in enumerate(timesteps):
        expected = model.modulation(model.condition(t.expand(3), y))
        row = table.at(step)
        torch.testing.assert_close(row.head, expected.head, rtol=1e-13, atol=1e-13)
        if step in (0, 2):
            torch.testing.assert_close(list(row.blocks), list(expected.blocks), rtol=1e-13, atol=1e-13)
        else:
            assert row.blocks is None
        if step > 0:
            gates = torch.stack([rows[:, g] for rows in expected.blocks for g in (2, 5)])
            torch.testing.assert_close(table.gates([step])[0], gates, rtol=1e-13, atol=1e-13)
    table.forget_before(4)
    assert not table.blocks.known
    assert not table.gate_rows.known


def test_samples_do_not_depend_on_the_batch(random_dit):
    model, (noise, y) = random_dit(), inputs()
    cache = make_cache(interval=4, warmup_steps=2, max_order=2)
    together = sample(model, noise, y, 20, cache=cache)
    for row in range(3):
        alone = sample(model, noise[row : row + 1], y[row : row + 1], 20, cache=cache)
        torch.testing.assert_close(alone[0], together[row], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_attention_backends_agree(random_dit, backend):
    noise, y = inputs()
    t = torch.tensor([10, 500, 999])
    expected = random_dit()(noise, t, y)
    torch.testing.assert_close(random_dit(attention=backend)(noise, t, y), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_sample(random_dit, dtype):
    """Latents stay in the dtype of the noise; the model runs in its own."""
    noise, y = inputs(torch.float32)
    cache = make_cache(interval=4, warmup_steps=2, max_order=1)
    exact = sample(random_dit(torch.float32), noise, y, 20, cache=cache)
    rounded = sample(random_dit(dtype), noise, y, 20, cache=cache)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() <= 0.1 * exact.abs().max()


def test_autocast(random_dit):
    model, (noise, y) = random_dit(torch.float32), inputs(torch.float32)
    cache = make_cache(interval=4, warmup_steps=2, max_order=1)
    exact = sample(model, noise, y, 12, cache=cache)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = sample(model, noise, y, 12, cache=cache)
    assert 0 < (rounded - exact).abs().max() <= 0.1 * exact.abs().max()


@pytest.mark.gpu
@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "latent"])  # its output has more channels
def test_cuda_is_cpu(random_dit, engine):
    """The same run on both devices; TF32 off."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    model, (noise, y) = random_dit(torch.float32), inputs(torch.float32)
    cache = make_cache(interval=4, warmup_steps=2, max_order=2, engine=engine)
    expected = sample(model, noise, y, 20, cache=cache)
    result = sample(model.cuda(), noise.cuda(), y.cuda(), 20, cache=cache)
    torch.testing.assert_close(result.cpu(), expected, rtol=1e-4, atol=1e-4)


def test_modulation_weights_on_the_host_change_nothing(random_dit):
    model, (noise, y) = random_dit(torch.float32), inputs(torch.float32)
    cache = make_cache(interval=4, warmup_steps=2, max_order=2)
    expected, names = sample(model, noise, y, 14, cache=cache), model.state_dict().keys()
    offload_modulation(model)
    moved = {name for name, module in model.named_modules() if isinstance(module, HostLinear)}
    assert moved == {"blocks.0.adaLN_modulation.1", "blocks.1.adaLN_modulation.1", "final_layer.adaLN_modulation.1"}
    assert model.state_dict().keys() == names
    assert torch.equal(sample(model, noise, y, 14, cache=cache), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_is_that_of_the_token_stream(random_dit, dtype):
    model, (noise, _) = random_dit(dtype), inputs(dtype)
    assert model.dtype == model.embed(noise).dtype == model.tokens(noise).dtype == dtype


def test_initial_weights_predict_zero_and_follow_the_seed():
    model = DiT(dit_config("debug")).initialize(0)
    noise, y = inputs(torch.float32)
    assert model(noise, torch.tensor([1, 2, 3]), y).abs().max() == 0, "gates and output start at zero"
    same, other = DiT(dit_config("debug")).initialize(0), DiT(dit_config("debug")).initialize(1)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert not torch.equal(model.x_embedder.proj.weight, other.x_embedder.proj.weight)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_size": 30, "patch_size": 4}, "input_size = 30 is not a multiple of patch_size = 4"),
        ({"hidden_size": 100, "num_heads": 3}, "hidden_size = 100 must be a multiple of 4 and of num_heads = 3"),
        ({"depth": 0}, "depth = 0 must be at least 1"),
        ({"class_dropout_prob": 1.0}, r"class_dropout_prob = 1.0 must lie in \[0, 1\)"),
    ],
)
def test_impossible_configurations_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(**fields)


def test_bad_inputs_are_named(random_dit):
    model, (noise, y) = random_dit(), inputs()
    with pytest.raises(ValueError, match="class 3 is out of range; the model knows 0 … 2"):
        sample(model, noise, torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match=r"latents of shape \(6, 2, 8, 8\) do not fit"):
        sample(model, noise.repeat(1, 2, 1, 1), y)
    with pytest.raises(ValueError, match="3 samples need as many int64 classes"):
        sample(model, noise, y[:2])
    with pytest.raises(ValueError, match="solver 'euler' is unknown; choose from ddim, ddpm"):
        Sampler(model, solver="euler")
    with pytest.raises(ValueError, match="number of sampling steps 1001 must lie between 1 and 1000"):
        Sampler(model, 1001)
    with pytest.raises(ValueError, match="model 'DiT-XXL/2' is unknown; choose from DiT-S/2"):
        dit_config("DiT-XXL/2")
    with pytest.raises(ValueError, match="image size 250 does not fit DiT-XL/2"):
        dit_config("DiT-XL/2", image_size=250)
    with pytest.raises(ValueError, match="warmup_steps = 9"):
        sample(model, noise, y, 5, cache=make_cache(warmup_steps=9))
