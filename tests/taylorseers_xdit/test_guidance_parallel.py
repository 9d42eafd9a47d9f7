"""Guidance branches of Wan and HiDream on two processes. Under torchrun, this file prints what its tests look at."""

import json
from typing import Any

import pytest
import reference
import torch
from torch import Tensor

import hidream
import wan
from cache_dic import make_cache
from seerkit.command.cli import run_command
from seerkit.devices.distributed import World, start_world, stop_world
from seerkit.devices.guidance import GuidanceSplit, split_guidance

PROCESSES, NUM_STEPS, TOLERANCE = 2, 9, 1e-5
TAYLORSEER = {"method": "taylorseer", "interval": 3, "max_order": 1, "warmup_steps": 1}
ENGINES = ("folded", "layerwise", "walked", "stack", "hidden", "output", "latent")
CACHES: dict[str, dict[str, Any]] = {
    **{
        engine: {**TAYLORSEER, "engine": engine}
        for engine in ("folded", "layerwise", "walked", "stack", "hidden", "output", "latent")
    },
    "first_block_cache": {"method": "first_block_cache", "threshold": 0.3, "by_branch": False},
    "each by its first block": {"method": "first_block_cache", "threshold": 0.3},
    "teacache": {"method": "teacache", "threshold": 0.3, "coefficients": (1.0, 0.0)},
    "easycache": {"method": "easycache", "threshold": 0.3, "forced_first": 1},
    "speca": {"method": "speca"},
    "pab": {"method": "pab"},
    "toca": {"method": "toca", "interval": 3},
}
MODELS = ("wan", "hidream")


def sample(name: str, split: GuidanceSplit | None, **cache: Any) -> tuple[Tensor, list[list[dict[str, Any]]]]:
    """Latents, and by run of this process the steps of its record."""
    model, draw = reference.network(name), torch.Generator().manual_seed(0)
    chosen = make_cache(**cache) if cache else None
    if name == "wan":
        noise, texts = torch.randn(1, 4, 3, 8, 6, generator=draw), torch.randn(2, 1, 9, 10, generator=draw)
        latents, run = wan.sample(
            model, noise, texts[0], texts[1], NUM_STEPS, guidance_scale=4.0, split=split, cache=chosen, return_run=True
        )
    else:
        noise = torch.randn(1, 4, 8, 8, generator=draw)
        texts = [
            tuple(torch.randn(shape, generator=draw) for shape in ((1, 6, 20), (5, 1, 7, 14), (1, 10)))
            for _ in range(2)
        ]
        latents, run = hidream.sample(
            model, noise, *texts[0], num_steps=NUM_STEPS, negative=texts[1], guidance_scale=4.0, split=split,
            cache=chosen, return_run=True,
        )  # fmt: skip
    return latents, [one.record()["steps"] for one in getattr(run, "runs", [run])]


def measure(name: str, world: World) -> dict[str, Any]:
    split, found = split_guidance(), {}
    uncached, _ = sample(name, None)
    for label, cache in {"uncached": {}, **CACHES}.items():
        wanted, alone = sample(name, None, **cache)
        latents, steps = sample(name, split, **cache)
        together: list[Any] = [None] * world.size
        torch.distributed.all_gather_object(together, (latents, steps[0]))
        found[label] = {
            "error": float((latents - wanted).abs().max() / wanted.abs().max()),
            "spread": float((wanted - uncached).abs().max() / wanted.abs().max()),
            "alike": torch.equal(together[0][0], together[1][0]),
            "alone": [[entry["kind"] for entry in run] for run in alone],
            "together": [[entry["kind"] for entry in run] for _, run in together],
        }
    return found


def main() -> None:
    world = start_world("cpu")
    found = {name: measure(name, world) for name in MODELS}
    if world.is_main:
        print(json.dumps(found))
    stop_world()


@pytest.fixture(scope="session")
def found(run_script) -> dict:
    done = run_script(__file__, processes=PROCESSES)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("label", ["uncached", *CACHES])
@pytest.mark.parametrize("model", MODELS)
def test_two_processes_give_what_one_gives(found, model, label):
    case = found[model][label]
    assert case["error"] <= TOLERANCE
    assert case["alike"], "both step to the same latents, to the bit"
    alone = case["alone"]
    expected = (
        alone if len(alone) == PROCESSES else alone * PROCESSES
    )  # HiDream's branches are one batch in one process
    assert case["together"] == expected
    if label != "uncached":
        assert case["spread"] > 100 * TOLERANCE, "the cache changes nothing"
        assert {"full"} < set(expected[0])


COMMANDS = {
    "TaylorSeer-Wan2.1/generate.py": ["--model", "wan-debug", "--ckpt", "no such file"],
    "TaylorSeer-HiDream/sampling.py": ["--model", "hidream-debug", "--ckpt", "no such file"],
}


@pytest.mark.parametrize(
    ("processes", "flags", "refusal"),
    [
        (
            1,
            [],
            "--guidance-parallel wants two processes, one for each guidance branch, and was given 1; start it by torchrun",
        ),
        (4, [], "--guidance-parallel wants two processes, one for each guidance branch, and was given 4"),
        (2, ["--method", "fastercache"], "method 'fastercache' makes one guidance branch of the other, which"),
        (2, ["--guidance-scale", "1"], "--guidance-parallel has no effect with"),
    ],
)
@pytest.mark.parametrize("script", COMMANDS)
def test_what_cannot_be_on_two_processes_is_refused_before_weights_are_looked_for(
    load_command, capsys, monkeypatch, tmp_path, script, processes, flags, refusal
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    given = [*COMMANDS[script], "--guidance-parallel", "--output-dir", str(tmp_path), *flags]
    with pytest.raises(SystemExit) as stop:
        run_command(load_command(script).main, given)
    assert stop.value.code == 2
    assert refusal in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--batched-guidance"], ["--ulysses-degree", "2"]])
def test_branches_on_two_processes_have_calls_of_their_own(load_command, capsys, flag):
    script = "TaylorSeer-Wan2.1/generate.py"
    with pytest.raises(SystemExit):
        run_command(load_command(script).main, [*COMMANDS[script], "--guidance-parallel", *flag])
    assert "leave out --batched-guidance, --ulysses-degree and --ring-degree" in capsys.readouterr().err


if __name__ == "__main__":
    main()
