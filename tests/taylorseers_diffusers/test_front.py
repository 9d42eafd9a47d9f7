"""enable and disable on tiny pipelines: steps and forecasts are those of the engines, and nothing is left behind."""

import pytest
import torch
from tiny_pipelines import MAKERS, tiny

from cache_dic import UserError, make_cache
from taylorseers_diffusers import disable, enable, report

SETTINGS = {"interval": 3, "max_order": 1, "warmup_steps": 2}
FULL = [0, 1, 4, 7, 10]


@pytest.mark.parametrize("name", MAKERS)
def test_the_site_form_is_exact_and_disabling_leaves_the_model_as_it_was(name: str) -> None:
    model = tiny(name)
    before, state = model(), {k: v.clone() for k, v in model.transformer.state_dict().items()}
    enable(model.pipe, "uncached")
    assert torch.equal(model(), before)

    enable(model.pipe, "taylorseer", **SETTINGS)
    folded, done = model(), model.pipe.cache_report()
    assert (done.engine, done.form) == ("folded", "site")
    assert all(record["full_steps"] == FULL for records in done.branches.values() for record in records)
    enable(model.pipe, "taylorseer", engine="layerwise", **SETTINGS)
    layerwise = model()
    assert (folded - before).norm() > 1e-4 * before.norm(), "nothing was forecast"
    torch.testing.assert_close(folded, layerwise, rtol=1e-5, atol=2e-6)

    disable(model.pipe)
    assert torch.equal(model(), before)
    assert "forward" not in vars(model.transformer)
    assert not hasattr(model.pipe, "cache_report")
    assert all(torch.equal(value, state[key]) for key, value in model.transformer.state_dict().items())
    hooked = [n for n, m in model.transformer.named_modules() if n and hasattr(m, "_diffusers_hook")]
    assert not hooked, "hooks are left"


@pytest.mark.parametrize("engine", ["stack", "hidden"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_whole_forms_keep_what_the_blocks_add_or_give(name: str, engine: str) -> None:
    model = tiny(name)
    enable(model.pipe, "fora", interval=2, warmup_steps=1, engine=engine)
    ends: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = model.transformer._diffusers_hook.get_hook("taylorseers_cache")
    run = hook.passes.run

    def watched(forward, arguments, walk):
        output = run(forward, arguments, walk)
        if walk.last is not None or walk.site.__class__.__name__ == "Recorder":
            ends.append(
                (walk.entered.x, walk.left.x if walk.last is None else walk.last(walk.entered.x, walk.entered.x))
            )
        return output

    hook.passes.run = watched
    model(4)
    branches = len(ends) // 4
    (x0, x_final), (later, forecast) = ends[0], ends[branches]
    expected = later + (x_final - x0) if engine == "stack" else x_final
    torch.testing.assert_close(forecast, expected)


def test_the_published_settings_of_a_model_are_the_usual_ones() -> None:
    model = tiny("flux")
    enable(model.pipe)
    assert model.pipe.cache_report().label == make_cache("taylorseer", preset="flux").label


def test_a_pipeline_without_a_transformer_is_refused() -> None:
    class StableDiffusionPipeline:
        unet = torch.nn.Linear(2, 2)

    with pytest.raises(UserError, match="StableDiffusionPipeline has no transformer; what is supported"):
        enable(StableDiffusionPipeline())


def test_diffusers_own_cache_is_refused_beside_it() -> None:
    from diffusers import FirstBlockCacheConfig

    model = tiny("flux")
    model.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(UserError, match=r"FirstBlockCacheConfig is on; call transformer\.disable_cache"):
        enable(model.pipe)
    model.transformer.disable_cache()
    enable(model.pipe)
    model.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(UserError, match="FirstBlockCacheConfig is on"):
        model(2)


def test_methods_for_tokens_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="method 'toca' computes some tokens"):
        enable(tiny("flux").pipe, "toca")


def test_a_forecast_of_the_output_calls_nothing_of_the_transformer() -> None:
    model = tiny("flux")
    enable(model.pipe, "taylorseer", engine="output", **SETTINGS)
    embedded: list[int] = []
    handle = model.transformer.x_embedder.register_forward_hook(lambda *_: embedded.append(1))
    model(12)
    handle.remove()
    assert len(embedded) == len(FULL) + 1, "a full step each, and a look at the first tokens"


def test_names_of_the_package_are_what_it_lends_and_not_modules_of_it() -> None:
    """A module of the same name would stand in a function's place once it was imported."""
    import taylorseers_diffusers.calibration
    import taylorseers_diffusers.reports

    assert all(callable(getattr(taylorseers_diffusers, name)) for name in taylorseers_diffusers.__all__)
    model = tiny("flux")
    with pytest.raises(UserError, match="FluxPipeline has no cache; call enable"):
        report(model.pipe)
    enable(model.pipe)
    assert str(report(model.pipe)) == str(model.pipe.cache_report())


def test_a_report_says_what_every_step_was_and_what_was_kept() -> None:
    model = tiny("flux")
    enable(model.pipe, "taylorseer", **SETTINGS)
    head = "FluxTransformer2DModel (site form): taylorseer-N3-W2-O1, folded engine\n"
    assert str(model.pipe.cache_report()) == f"{head}  no run yet"
    model()
    assert str(model.pipe.cache_report()) == (
        f"{head}  cond: 5 of 12 steps full (0 1 4 7 10), 7 forecast\n  kept from step to step: 32.00 KiB"
    )
    enable(model.pipe, "pab")
    model(8)
    assert "cond: 5 of 8 steps full (0 1 2 4 6), 3 partial\n" in str(model.pipe.cache_report())


def test_the_report_of_two_transformers_names_the_second() -> None:
    model = tiny("wan22")
    enable(model.pipe, "taylorseer", **SETTINGS)
    model(10)
    first, second = str(model.pipe.cache_report()).split("\ntransformer_2, ")
    assert "cond: 2 of 4 steps full (0 1), 2 forecast" in first
    assert "cond, from step 4: 3 of 6 steps full (4 5 8), 3 forecast" in second


def test_settings_beside_a_ready_cache_and_a_transformer_without_its_pipeline_are_refused() -> None:
    model = tiny("flux")
    with pytest.raises(UserError, match="interval would have no effect on a cache that is made already"):
        enable(model.pipe, make_cache("fora", preset="flux"), interval=3)
    with pytest.raises(UserError, match="FluxTransformer2DModel is a model; give the pipeline that calls it"):
        enable(model.transformer)
