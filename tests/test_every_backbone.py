"""What holds for every backbone, on its debug model: samples depend on neither batch nor threads, and steps are few graphs."""

import inspect
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dit
import flux
import hidream
import hunyuan_video
import wan
from cache_dic import UserError, make_cache
from seerkit.devices import compile as compiling
from seerkit.devices.compile import compile_steps
from seerkit.sampling.seeds import SampleGenerators

NUM_SAMPLES, NUM_STEPS = 8, 4

Sample = Callable[..., Tensor]
"""`sample(numbers, **settings)`: latents of the samples of those numbers, int64, by settings of the backbone's `sample`."""


def random(model: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(1)
    for parameter in model.eval().requires_grad_(False).parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model


def of_samples(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Random values for all samples, (NUM_SAMPLES, *shape) each."""
    draw = torch.Generator().manual_seed(2)
    return [torch.randn(NUM_SAMPLES, *shape, generator=draw) for shape in shapes]


def of_dit(**depth: object) -> tuple[nn.Module, Sample]:
    model = random(dit.DiT(replace(dit.dit_config("debug"), **depth)))
    (noise,), y = of_samples((1, 8, 8)), torch.arange(NUM_SAMPLES) % 3
    return model, lambda rows, model=model, **settings: dit.sample(model, noise[rows], y[rows], NUM_STEPS, **settings)


def of_flux(**depth: object) -> tuple[nn.Module, Sample]:
    model = random(flux.Flux(replace(flux.flux_config("flux-debug"), **depth)))
    noise, *texts = of_samples((3, 20, 36), (16, 384), (768,))
    return model, lambda rows, model=model, **settings: flux.sample(
        model, noise[rows], *(text[rows] for text in texts), NUM_STEPS, **settings
    )


def of_hidream(**depth: object) -> tuple[nn.Module, Sample]:
    model = random(hidream.HiDream(replace(hidream.hidream_config("hidream-debug"), **depth)))
    noise, t5, llama, pooled = of_samples((3, 20, 28), (16, 384), (16, 384), (768,))

    def sample(rows: Tensor, *, model: nn.Module = model, **settings) -> Tensor:
        texts = t5[rows], llama[rows][None], pooled[rows]
        negative = tuple(-text for text in texts)
        return hidream.sample(model, noise[rows], *texts, NUM_STEPS, negative=negative, **settings)

    return model, sample


def of_hunyuan(**depth: object) -> tuple[nn.Module, Sample]:
    config = replace(hunyuan_video.hunyuan_video_config("hunyuan-debug"), **depth)
    model = random(hunyuan_video.HunyuanVideo(config))
    noise, states, pooled = of_samples((3, 16, 32, 32), (12, config.text_states_dim), (config.text_states_dim_2,))

    def sample(rows: Tensor, *, model: nn.Module = model, lengths: Tensor | int = 6, **settings) -> Tensor:
        mask = torch.arange(12) < torch.as_tensor(lengths).expand(len(rows)).unsqueeze(1)
        return hunyuan_video.sample(model, noise[rows], states[rows], mask, pooled[rows], NUM_STEPS, **settings)

    return model, sample


def of_wan(**depth: object) -> tuple[nn.Module, Sample]:
    config = replace(wan.wan_config("wan-debug"), **depth)
    model = random(wan.Wan(config))
    noise, context = of_samples((3, 16, 32, 32), (config.text_len, config.text_dim))

    def sample(rows: Tensor, *, model: nn.Module = model, lengths: int = config.text_len, **settings) -> Tensor:
        text = context[rows, :lengths]
        return wan.sample(model, noise[rows], text, -text, NUM_STEPS, **settings)

    return model, sample


BACKBONES = {"dit": of_dit, "flux": of_flux, "hidream": of_hidream, "hunyuan": of_hunyuan, "wan": of_wan}


# --------------------------------------------------------------------------------------------------------- order of sums

CPUINFO = Path("/proc/cpuinfo")
ON_INTEL = CPUINFO.exists() and "GenuineIntel" in CPUINFO.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "settings"), [*((name, {}) for name in BACKBONES), ("wan", {"batched": True})], ids=str
)
@pytest.mark.parametrize("method", ["uncached", "taylorseer", "layerwise"])
def test_a_sample_depends_on_neither_batch_size_nor_threads(backbone, settings, method):
    """To the bit, in float32 on CPUs, in the environment of `seerkit.command.cli`, where widths are multiples of 32.

    On other processors than Intel's MKL keeps one order of sums with one thread or two. For texts that are padded alike: those
    of HunyuanVideo are to the longest of a batch, and attention sums over another number of keys then.
    """
    cached = make_cache(
        interval=2, max_order=1, warmup_steps=1, engine="layerwise" if method == "layerwise" else "folded"
    )
    _, sample = BACKBONES[backbone]()
    cache = make_cache("uncached") if method == "uncached" else cached
    before, expected = torch.get_num_threads(), None
    try:
        for threads, size in ((1, 1), (1, 2), (2, 7), *(((3, 3), (5, 8)) if ON_INTEL else ())):
            torch.set_num_threads(threads)
            batches = torch.arange(NUM_SAMPLES).split(size)
            latents = torch.cat([sample(batch, cache=cache, **settings) for batch in batches])
            expected = latents if expected is None else expected
            same = [torch.equal(row, other) for row, other in zip(latents, expected, strict=True)]
            assert all(same), f"batches of {size}, {threads} threads: {same}"
    finally:
        torch.set_num_threads(before)


# -------------------------------------------------------------------------------------------------------------- settings

NOT_NUMBERS = (math.nan, math.inf, 1e308, "3", None, True, 10**400)
NOT_STEPS = (0, -1, 1.5, 10**9, math.nan, "8", None, True)


@pytest.mark.parametrize(
    ("sampler", "make", "numbers"),
    [
        (dit.Sampler, of_dit, ("guidance_scale",)),
        (flux.Sampler, of_flux, ("guidance_scale",)),
        (hidream.Sampler, of_hidream, ("guidance_scale", "shift")),
        (hunyuan_video.Sampler, of_hunyuan, ("guidance_scale", "shift")),
        (wan.Sampler, of_wan, ("guidance_scale", "shift")),
    ],
)
def test_settings_that_are_no_numbers_are_named(sampler, make, numbers):
    model, _ = make()
    for num_steps in NOT_STEPS:
        with pytest.raises(UserError, match="num_steps = "):
            sampler(model, num_steps)
    for name, value in itertools.product(numbers, NOT_NUMBERS):
        with pytest.raises(UserError, match=f"{name} = "):
            sampler(model, 4, **{name: value})
    for num_steps in (np.int64(4), torch.tensor(4)):
        assert sampler(model, num_steps, **dict.fromkeys(numbers, np.float32(3))).num_steps == 4


def test_flux_shifts_or_does_not():
    for shift in (math.nan, 3.0, "no"):
        with pytest.raises(UserError, match=r"shift = .* must be True, False or None"):
            flux.Sampler(of_flux()[0], 4, shift=shift)


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_a_batch_of_no_sample_is_refused(backbone):
    _, sample = BACKBONES[backbone]()
    with pytest.raises(UserError, match=r"noise of shape .0, .* holds no sample"):
        sample(torch.arange(0))


# ----------------------------------------------------------------------------------------------------------- signatures

PACKAGES = {"dit": dit, "flux": flux, "hidream": hidream, "hunyuan": hunyuan_video, "wan": wan}
KEYWORDS = (  # of `sample`, in this order, where a backbone has them
    "num_steps", "guidance_scale", "shift", "solver", "seed", "generators", "cache", "callback", "return_run",
)  # fmt: skip
LACKING = {  # what means nothing to a backbone: dit knows no shift; flux, hunyuan have one solver, and wan's draw no noise
    "dit": {"shift"}, "flux": {"solver", "seed", "generators"}, "hidream": set(),
    "hunyuan": {"solver", "seed", "generators"}, "wan": {"seed", "generators"},
}  # fmt: skip


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_samplers_share_the_names_of_their_arguments(backbone):
    package = PACKAGES[backbone]
    parameters = inspect.signature(package.sample).parameters
    names = list(parameters)
    assert names[:2] == ["model", "noise"]
    assert [name for name in names if name in KEYWORDS] == [k for k in KEYWORDS if k not in LACKING[backbone]]
    kinds = {name: parameter.kind for name, parameter in parameters.items()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds.values()
    after = names[names.index("num_steps") + 1 :]
    assert {kinds[name] for name in after} == {inspect.Parameter.KEYWORD_ONLY}
    of_sampler = inspect.signature(package.Sampler).parameters
    for name in ("num_steps", "guidance_scale", "shift", "solver"):
        if name in parameters:
            assert parameters[name].default == of_sampler[name].default, name


@pytest.mark.parametrize(
    ("package", "published"), [(flux, "flux-dev"), (hidream, "hidream-full"), (hunyuan_video, "hunyuan-video")]
)
def test_defaults_are_those_of_the_published_model(package, published):
    usage = package.config.USAGE[published]
    parameters = inspect.signature(package.sample).parameters
    assert parameters["num_steps"].default == usage.num_steps
    assert parameters["guidance_scale"].default == usage.guidance


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_sample_gives_the_run_where_it_is_asked_to(backbone):
    _, sample = BACKBONES[backbone]()
    alone = sample(torch.arange(2), cache=FAST)
    latents, run = sample(torch.arange(2), cache=FAST, return_run=True)
    assert torch.equal(latents, alone)
    assert run.record()["full_steps"] == [0]
    assert run.record()["num_steps"] == NUM_STEPS


# ------------------------------------------------------------------------------------------------ caches, runs and steps


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_caches_and_runs_in_the_place_of_others_are_refused(backbone):
    """A model takes a step, a sampler a cache: each error shows the right use."""
    model, sample = BACKBONES[backbone]()
    calls = []
    handle = model.register_forward_pre_hook(lambda _, args, given: calls.append((args, given)), with_kwargs=True)
    sample(torch.arange(2))
    handle.remove()
    args, given = calls[0]
    step = given["cache"]
    right = r"run = cache\.start\(model, latents, timesteps, \.\.\.\); model\(\.\.\., cache=run\.at\(step\)\)"
    for kind, wrong in (("Cache", make_cache("taylorseer")), ("Run", step.run)):
        with pytest.raises(UserError, match=f"takes a step, and this is a {kind}: {right}"):
            model(*args, **given | {"cache": wrong})
        assert not hasattr(wrong, "modulation"), "asking is no mistake"
    for kind, wrong in (("Run", step.run), ("Step", step)):
        with pytest.raises(
            UserError, match=rf"cache is a {kind}; hand it what make_cache gave, sample\(\.\.\., cache=cache\)"
        ):
            sample(torch.arange(2), cache=wrong)
    for wrong, meant in (
        ("taylorseer", "taylorseer"),
        ("tailorseer", "taylorseer"),
        ("forra", "fora"),
        (7, "taylorseer"),
        ({}, "taylorseer"),
    ):
        with pytest.raises(UserError, match=rf"cache = .* is no cache; make one, .*make_cache\('{meant}'\)"):
            sample(torch.arange(2), cache=wrong)


# -------------------------------------------------------------------------------------------------- what wraps a `forward`


class Wrapper(nn.Module):
    """Passes calls and attributes on to a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, *args, **given) -> Tensor:
        self.calls += 1
        return self.model(*args, **given)

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)


class Opaque(nn.Module):
    """Passes calls on, and no attributes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *args, **given) -> Tensor:
        return self.module(*args, **given)


def doubled(model: nn.Module) -> nn.Module:
    """A model of a class that overrides `forward`, with the arguments of the documented call, to give twice the answer."""

    class Double(type(model)):
        def forward(self, *args, cache=None, **given) -> Tensor:
            return 2 * super().forward(*args, cache=cache, **given)

    twin = Double(model.config).eval().requires_grad_(False)
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("cache", [None, "taylorseer"])
@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_a_sampler_calls_what_wraps_the_model_in_every_step(backbone, cache):
    model, sample = BACKBONES[backbone]()
    cache = cache and make_cache(cache, interval=2, max_order=1, warmup_steps=1)
    rows, counted = torch.arange(2), []
    plain = sample(rows, cache=cache)
    handle = model.register_forward_hook(lambda *_: counted.append(1))
    assert torch.equal(sample(rows, cache=cache), plain)
    handle.remove()
    calls = NUM_STEPS * (2 if backbone == "wan" else 1)  # a call for each branch
    assert len(counted) == calls
    wrapper = Wrapper(model)
    assert torch.equal(sample(rows, model=wrapper, cache=cache), plain)
    assert wrapper.calls == calls
    handle = model.register_forward_hook(lambda _, __, answer: 2 * answer)
    by_hook = sample(rows, cache=cache)
    handle.remove()
    assert not torch.equal(by_hook, plain)
    assert torch.equal(sample(rows, model=doubled(model), cache=cache), by_hook)
    with pytest.raises(
        UserError, match=r"cannot use Opaque, which has no config and no tokens and no modulation_table"
    ):
        sample(rows, model=Opaque(model), cache=cache)


@pytest.mark.slow
def test_a_sampler_calls_the_compiled_model():
    """Wan's, whose sampler has its own way of calling it where processes share the tokens."""
    graphs = []

    def count(graph: torch.fx.GraphModule, _: object) -> Callable:
        return lambda *args: (graphs.append(1), graph(*args))[1]

    model, sample = of_wan(**SHALLOW["wan"])
    plain = sample(torch.arange(2))
    torch.testing.assert_close(sample(torch.arange(2), model=torch.compile(model, backend=count)), plain)
    assert len(graphs) >= 2 * NUM_STEPS


# ---------------------------------------------------------------------------------------------- noise drawn between steps


@pytest.mark.parametrize(("backbone", "solver"), [("dit", "ddpm"), ("hidream", "flash")])
def test_a_solver_that_draws_noise_needs_a_seed_alone(backbone, solver):
    """It gives what the commands make of the same seed and indices, whose generators draw the starting noise first."""
    _model, sample = BACKBONES[backbone]()
    shape = {"dit": (1, 8, 8), "hidream": (3, 20, 28)}[backbone]
    rows, settings = torch.arange(3), {"solver": solver}
    default, again, other = (sample(rows, **settings, **given) for given in ({}, {"seed": 0}, {"seed": 4}))
    assert torch.equal(default, again)
    assert not torch.equal(default, other)
    for seed, expected in ((0, default), (4, other)):
        generators = SampleGenerators(seed, range(3))
        generators.randn(*shape)
        assert torch.equal(sample(rows, **settings, generators=generators), expected)
    alone = sample(rows[:1], **settings, seed=4)
    torch.testing.assert_close(alone, other[:1])
    for wrong in (SampleGenerators(0, range(2)), torch.Generator()):
        with pytest.raises(UserError, match=r"generators = .* must be SampleGenerators of 3 samples"):
            sample(rows, **settings, generators=wrong)
    for wrong in (-1, 1.5, "3"):
        with pytest.raises(UserError, match=r"seed = .* must be an integer of at least 0"):
            sample(rows, **settings, seed=wrong)


@pytest.mark.parametrize("backbone", ["dit", "hidream"])
def test_a_seed_that_would_change_nothing_is_refused(backbone):
    _model, sample = BACKBONES[backbone]()
    with pytest.raises(UserError, match=r"seed = 0 has no effect on the (ddim|unipc) solver, which draws no noise"):
        sample(torch.arange(1), seed=0)
    with pytest.raises(UserError, match="generators = 3 must be SampleGenerators of 1 samples"):
        sample(torch.arange(1), generators=3)


# ------------------------------------------------------------------------------------------------- modulation of layers


@pytest.mark.parametrize("backbone", ["dit", "flux", "hidream", "hunyuan"])
def test_modulation_layers_are_called_where_they_are_more_than_their_weights(backbone):
    """As one with an adapter around it, or one that somebody watches."""

    class Louder(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 1.5 * super().forward(x)

    (_, plain), (model, sample) = BACKBONES[backbone](), BACKBONES[backbone]()
    layers, calls = model.modulation_layers(), []
    handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
    rows = torch.arange(2)
    cache = make_cache(interval=3, max_order=1, warmup_steps=1)
    torch.testing.assert_close(sample(rows, cache=cache), plain(rows, cache=cache))
    assert len(calls) >= len(layers)
    for handle in handles:
        handle.remove()
    for layer in layers:
        layer.__class__ = Louder
    assert (sample(rows, cache=cache) - plain(rows, cache=cache)).abs().max() > 1e-4


# --------------------------------------------------------------------------------------------------------------- graphs


SLOW, FAST = (make_cache(interval=n, max_order=1, warmup_steps=1, static_shapes=True) for n in (2, 4))
WITHOUT = make_cache("uncached", static_shapes=True)
TEXTS = {  # of nine lengths, for so many samples; those of FLUX and HiDream are always padded to one
    "hunyuan": lambda size: [{"lengths": 2 + (torch.arange(size) + n - 1) % n} for n in range(1, 10)],
    "wan": lambda size: [{"lengths": n} for n in range(1, 10)],
}
SHALLOW = {  # one block of each kind: a graph takes about a second a block
    "dit": {"depth": 1}, "flux": {"depth_single_blocks": 1}, "hidream": {"num_single_layers": 1, "llama_layers": (0, 0)},
    "hunyuan": {"mm_single_blocks_depth": 1, "refiner_depth": 1}, "wan": {"num_layers": 1},
}  # fmt: skip
GUIDED_ROWS = {"dit": 2, "hidream": 2}  # of the model's batch, of each sample


@pytest.mark.slow
@pytest.mark.parametrize("backbone", list(BACKBONES))
@torch.inference_mode()  # a compiler tells tensors made in it from others, and guidance joins texts there
def test_graphs_are_one_of_each_kind_for_each_batch_and_cache(backbone, num_graphs):
    """Nine texts of nine lengths, three caches, guidance on and off, and a last, smaller batch.

    HiDream's full steps alone are nine graphs then, more than PyTorch allows where it is not told to.
    """
    (_, plain), (model, sample) = (BACKBONES[backbone](**SHALLOW[backbone]) for _ in range(2))
    compile_steps(model, backend="eager")
    full, forecast = set(), set()
    for size, settings in itertools.product((2, 1), ({}, {"guidance_scale": 1.0})):
        rows = size if settings else size * GUIDED_ROWS.get(backbone, 1)
        texts = [{}] if settings or backbone not in TEXTS else TEXTS[backbone](size)
        for cache, text in [*((SLOW, text) for text in texts), (FAST, {}), (WITHOUT, {})]:
            result, expected = (s(torch.arange(size), cache=cache, **settings, **text) for s in (sample, plain))
            torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
            full.add((rows, cache.label))
            forecast |= {rows} if cache is not WITHOUT else set()
            assert num_graphs() == len(full) + len(forecast)


@pytest.mark.slow
def test_too_many_graphs_are_an_error_of_the_user(num_graphs, monkeypatch):
    monkeypatch.setattr(compiling, "MOST_GRAPHS", 2)
    model, sample = of_flux(**SHALLOW["flux"])
    compile_steps(model, backend="eager")
    for size in (1, 2):
        sample(torch.arange(size), cache=FAST)
    with pytest.raises(UserError, match=r"more than 2 compiled forms of a step.*leave out --compile"):
        sample(torch.arange(3), cache=FAST)
    assert num_graphs() == 4


def test_a_missing_compiler_is_an_error_of_the_user(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def search() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", search)
    model, _ = of_flux()
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler, and none is found"):
        compile_steps(model)
    compile_steps(model, backend="eager")  # which needs none
