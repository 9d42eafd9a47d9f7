"""The jobs of commands that sample for prompts: what is counted, what samples depend on, where they go."""

import argparse
from pathlib import Path

import torch

from cache_dic import make_cache
from evaluation.backbones import count_caches
from evaluation.jobs import Job, output_folder, repeated
from seerkit.outputs import digest


def test_a_job_counts_its_first_batch_and_names_what_samples_depend_on():
    args = argparse.Namespace(precision="bf16", batch_size=2, accumulator_dtype="float64")
    caches = {"fora-N2-W1": make_cache("fora", interval=2)}
    settings = {"model": "flux-debug", "num_steps": 4}
    job = Job(
        command="fake.py", args=args, prompts=["a", "b", "c"], caches=caches,
        settings=settings, sizes={"height": 16, "width": 32}, out=Path("out"),
    )  # fmt: skip
    assert [batch.prompts for batch in job.batches()] == [["a", "b"], ["c"]]
    assert job.dtype == torch.bfloat16
    two, one = (
        count_caches("flux-debug", caches, 4, torch.bfloat16, height=16, width=32, num_samples=n) for n in (2, 1)
    )
    assert job.counts() == two != one
    assert job.claims("fora-N2-W1") == {**settings, "cache": "fora-N2-W1", "accumulator_dtype": "float64"}


def test_prompts_are_repeated_in_place():
    assert repeated(["a", "b"], 3) == ["a", "a", "a", "b", "b", "b"]


def test_the_output_folder_tells_settings_apart():
    settings = {"model": "wan-tiny", "seed": 0}
    assert output_folder(Path("x"), "wan", settings) == Path("x")
    assert output_folder(None, "wan", settings) == Path("outputs/wan") / f"wan-tiny-{digest(settings)}"
    assert digest(settings) == digest(dict(reversed(settings.items()))) != digest({**settings, "seed": 1})
    assert len(digest(settings)) == 8
