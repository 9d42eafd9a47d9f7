"""NaN and infinity are named as what they are: by enable(), and by run.py with the sample and the cache."""

from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from tiny_pipelines import Tiny, tiny

from cache_dic import UserError, make_cache
from seerkit.command.cli import run_command
from seerkit.io.media import finite_rows
from seerkit.text.prompts import Batch
from taylorseers_diffusers import enable
from taylorseers_diffusers.embedded import NAME
from taylorseers_diffusers.model import as_rows
from taylorseers_diffusers.pipeline import Pipeline

SETTINGS = {"interval": 3, "max_order": 1, "warmup_steps": 2}
FEATURES, GATES = "prompt_embeds", "pooled_prompt_embeds"
"""What tokens, and what gates too, are made of."""


def two(name: str, *broken: int) -> Tiny:
    """A pipeline that is called with two samples, some of which have NaN in an input."""
    model = tiny("flux")
    model.inputs |= {key: model.inputs[key].repeat(2, *[1] * (model.inputs[key].ndim - 1)) for key in (FEATURES, GATES)}
    model.inputs[name][list(broken)] = torch.nan
    return model


@pytest.mark.parametrize("engine", ["folded", "layerwise", "stack"])
@pytest.mark.parametrize("name", [FEATURES, GATES])
def test_a_call_of_nothing_else_ends_in_an_error_of_its_own(name: str, engine: str) -> None:
    model = two(name, 0, 1)
    enable(model.pipe, "taylorseer", engine=engine, **SETTINGS)
    with pytest.raises(
        UserError, match=r"FluxTransformer2DModel .* with NaN or infinity; take torch\.float32 or a lower"
    ):
        model(4)


@pytest.mark.parametrize("name", [FEATURES, GATES])
def test_a_sample_beside_one_with_nan_is_what_it_is_beside_any_other(name: str) -> None:
    found = []
    for broken in ((), (1,)):
        torch.manual_seed(0)
        model = two(name, *broken)
        enable(model.pipe, "taylorseer", **SETTINGS)
        found.append(model(6))
    assert finite_rows(found[1]) == [True, False]
    assert torch.equal(found[1][0], found[0][0])


def test_a_wrong_gate_is_found_beside_a_sample_with_nan() -> None:
    model = two(FEATURES, 1)
    enable(model.pipe, "taylorseer", **SETTINGS)
    passes = model.transformer._diffusers_hook.get_hook("taylorseers_cache").passes
    first = id(passes.blocks[0])
    form = passes.forms[first]
    passes.forms[first] = replace(form, gates=lambda *given: [1.2 * gate for gate in form.gates(*given)])
    with pytest.raises(UserError, match="added something else than its gates times its features"):
        model(4)


def test_gates_of_nan_do_not_differ_by_token() -> None:
    gates = torch.ones(1, 3, 2)
    assert as_rows([gates * torch.nan], "model").isnan().all()
    with pytest.raises(UserError, match="gates differ by token"):
        as_rows([gates.cumsum(1)], "model")


def test_infinite_latents_do_not_become_white_images() -> None:
    args = Namespace(
        model=NAME, precision="fp32", compile_blocks=False, offload=None, seed=0, height=32, width=32, num_steps=1,
        guidance_scale=3.0,
    )  # fmt: skip
    pipeline = Pipeline(args, torch.device("cpu"))
    step = pipeline.pipe.scheduler.step

    def overflowing(*given: object, **more: object) -> tuple[torch.Tensor]:
        latents = step(*given, **more)[0]
        latents[1] = torch.inf
        return (latents,)

    pipeline.pipe.scheduler.step = overflowing
    images, _ = pipeline.sample(make_cache("uncached"), Batch([0, 1], ["red apple, noto", "rocket, 3d render"]))
    assert finite_rows(images) == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["1e6", "1e9"])
def test_run_names_sample_cache_and_remedy(load_command, capsys, tmp_path, weight: str) -> None:
    flags = ["--prompt", "red apple, noto", "rocket, 3d render", "--precision", "fp16", "--guidance-scale", weight]
    flags += ["--num-steps", "6", "--compare", "--device", "cpu", "--output-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        run_command(load_command("TaylorSeers-Diffusers/run.py").main, flags)
    assert stop.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    for part in (
        "sample 0, 1 of uncached;",
        "sample 0, 1 of taylorseer-N6-W3-O2;",
        "NaN or infinity",
        "--precision fp32",
    ):
        assert part in line
    assert not list(tmp_path.rglob("*.png"))
