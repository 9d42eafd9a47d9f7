"""What run_flux.py does after its checks, on a CPU: a tiny pipeline stands in for the published one, and each process samples
alone. Under torchrun, this file is that command.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import tiny
from torch import Tensor

from seerkit.command.cli import run_command
from seerkit.devices.distributed import num_processes, start_world
from taylorseers_xdit import flags, sampling
from taylorseers_xdit.families import FLUX

BROKEN = "broken"
"""A prompt whose embedding has NaN, on the first process."""


def encode(prompt: str, **_: object) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    states, pooled = torch.randn(1, 8, 32, generator=draw), torch.randn(1, 32, generator=draw)
    here = start_world("cpu").is_main and prompt == BROKEN
    return states, torch.full_like(pooled, torch.nan) if here else pooled, torch.zeros(8, 3)


@contextlib.contextmanager
def stand_ins() -> Iterator[SimpleNamespace]:
    model = tiny("flux")
    model.pipe.encode_prompt = encode
    kind = SimpleNamespace(load_config=lambda *_, **__: {"num_attention_heads": 2})
    with mock.patch.multiple(
        sampling,
        torch=SimpleNamespace(cuda=SimpleNamespace(is_available=lambda: True)),
        find=lambda _: {}, transformer_class=lambda *_: kind, load=lambda *_: model.pipe, share=lambda *_, **__: None,
        start_world=lambda: start_world("cpu"),
    ):  # fmt: skip
        yield model.pipe


def command(out: object, *more: str) -> None:
    given = ["--backend", "diffusers", "--num-steps", "4", "--height", "16", "--width", str(16 * num_processes())]
    run_command(lambda argv: flags.main(FLUX, "", "", argv), [*given, "--output-dir", str(out), *more])


def run(capsys: pytest.CaptureFixture[str], out: Path, *more: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        command(out, *more)
    return (stop.value.code, *capsys.readouterr())


@pytest.mark.parametrize("method", ["uncached", "taylorseer"])
def test_a_sample_with_nan_is_named_and_not_written(capsys, tmp_path, method):
    with stand_ins():
        code, _, err = run(capsys, tmp_path, "--method", method, "--prompt", "fox", BROKEN, "owl")
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if "error:" in line]
    remedy = "take a lower --guidance-scale, or TaylorSeer-FLUX/sample.py with --precision fp32"
    for part in (f"sample 1 of {method}", "came out with NaN or infinity: it is not written", remedy):
        assert part in line
    assert ("lower --interval" in line) == (method != "uncached")
    assert [path.name[-7:] for path in tmp_path.iterdir()] == ["000.png"]


def test_a_sample_of_infinite_latents_is_not_written_as_a_white_one(capsys, tmp_path):
    with stand_ins() as pipe:
        step = pipe.scheduler.step
        pipe.scheduler.step = lambda *given, **more: (step(*given, **more)[0] * torch.inf,)
        pipe.vae.decode = lambda latents, **_: (torch.ones(1, 3, 16, 16),)
        code, _, err = run(capsys, tmp_path, "--method", "uncached", "--prompt", "fox", "--num-steps", "1")
    assert code == 2, err
    assert "sample 0 of uncached came out with NaN or infinity" in err
    assert not list(tmp_path.iterdir())


def test_samples_are_kept_and_identical_ones_are_called_so(capsys, tmp_path):
    methods = ["--method", "uncached", "taylorseer", "--interval", "1"]
    with stand_ins():
        code, out, err = run(capsys, tmp_path, *methods, "--prompt", "fox")
    assert code == 0, err
    first, second = sorted(tmp_path.iterdir())
    assert np.array_equal(*(np.asarray(Image.open(path)) for path in (first, second)))
    assert "by diffusers, PSNR identical\n" in out


def test_psnr_is_in_db():
    black, grey = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 51, np.uint8)
    assert sampling.psnr(grey, black) == "13.98 dB"  # 20 log10(255 / 51)
    assert sampling.psnr(grey, grey) == "identical"


@pytest.mark.slow
def test_all_processes_end_where_the_first_has_nan(run_script, tmp_path):
    done = run_script(__file__, tmp_path, "--method", "uncached", "--prompt", "fox", BROKEN, "owl", processes=2)
    assert done.returncode != 0
    assert done.stderr.count("error: sample 1 of uncached came out with NaN or infinity") == 1
    assert done.stderr.count("Traceback") == 1, "torchrun's own"
    assert [path.name for path in tmp_path.iterdir()] == ["uncached-000.png"]


if __name__ == "__main__":
    with stand_ins():
        command(*sys.argv[1:])
