"""xfuser's transformers in diffusers' pipelines, two processes on CPU (`xfuser_on_cpu` says what is put in). Under torchrun,
this file prints what its tests look at.

Not run: xfuser's kernels, NCCL, and pipelines at published size, which need GPUs.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from shared_runs import check_agreement, check_decisions, collectives, measure
from tiny_pipelines import Tiny, tiny

from cache_dic import UserError
from seerkit.devices.distributed import start_world, stop_world

pytestmark = pytest.mark.slow

PROCESSES = 2
LAYOUTS = {"ulysses": (2, 1), "ring": (1, 2)}
METHODS = ("taylorseer", "first_block_cache", "magcache")
MODELS = ("flux", "hunyuan_video", "wan")
TEXT = {"prompt_embeds": torch.zeros(1, 7, 32)}  # tokens that two processes cannot share


def shared_by(ulysses: int, ring: int) -> Callable[[Tiny], None]:
    import xfuser_on_cpu

    from taylorseers_xdit.shared import family_of, share, xfuser_class

    def use(model: Tiny) -> None:
        given = model.transformer
        made = xfuser_class(family_of(given)).from_config(given.config).eval()
        made.load_state_dict({**made.state_dict(), **given.state_dict()})
        model.pipe.transformer = made
        xfuser_on_cpu.start(model.pipe, ulysses, ring)
        share(model.pipe, "xfuser", ulysses=ulysses, ring=ring)

    return use


def said(act: Callable[[], Any]) -> str | None:
    try:
        act()
    except UserError as error:
        return str(error)
    return None


def refusals() -> dict[str, str | None]:
    from taylorseers_xdit.shared import share

    flux, wan, hunyuan = (tiny(name) for name in ("flux", "wan", "hunyuan_video"))
    own = said(lambda: share(flux.pipe, "xfuser"))
    for model in (flux, wan, hunyuan):
        shared_by(*LAYOUTS["ulysses"])(model)
    masks = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    two = {
        name: value.repeat(2, *[1] * (value.ndim - 1))
        for name, value in hunyuan.inputs.items()
        if torch.is_tensor(value)
    }
    return {
        "own": own,
        "text": said(lambda: flux(2, **TEXT)),
        "frames": said(lambda: wan(2, height=16, width=16, num_frames=1)),
        "masks": said(lambda: hunyuan(2, **{**two, "prompt_attention_mask": masks})),
        "context": said(lambda: share(tiny("hunyuan_video").pipe, "diffusers")),
        "class": said(lambda: share(tiny("dit").pipe, "xfuser")),
    }


REFUSED = {
    "own": "FluxTransformer2DModel is diffusers' own, which attends to its own tokens alone; load it as xfuser's",
    "text": "7 tokens of the text (--max-sequence-length) are not the same number for each of 2 processes, which xfuser",
    "frames": "1 tokens of the image or video are not the same number for each of 2 processes",
    "masks": "texts of 4, 2 tokens in one batch need a mask, which xfuser has not",
    "context": "ContextParallelConfig has no plan for HunyuanVideoTransformer3DModel",
    "class": "DiTTransformer2DModel is not one of the transformers here: FluxTransformer2DModel,",
}


def main() -> None:
    world = start_world("cpu")
    ways = {layout: shared_by(*degrees) for layout, degrees in LAYOUTS.items()}
    found: dict[str, Any] = {name: measure(name, METHODS, ways) for name in MODELS}
    found["refused"] = refusals()
    if world.is_main:
        print(json.dumps(found))
    stop_world()


@pytest.fixture(scope="session")
def found(run_script, need) -> dict:
    need("xfuser")
    done = run_script(__file__, processes=PROCESSES)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_give_what_one_gives_without_xfuser(found, model, layout):
    check_agreement(found[model], layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_processes_decide_together_what_one_decides(found, model, layout):
    check_decisions(found[model], layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("model", MODELS)
def test_a_forecast_step_puts_its_output_together_and_exchanges_nothing_else(found, model, layout):
    assert collectives(found[model], layout, "forecast") == {1}
    assert min(collectives(found[model], layout, "full")) > 3


@pytest.mark.parametrize("case", REFUSED)
def test_what_xfuser_cannot_do_is_refused_by_name(found, case):
    assert REFUSED[case] in found["refused"][case]


if __name__ == "__main__":
    main()
