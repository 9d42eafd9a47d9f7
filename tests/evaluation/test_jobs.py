"""The jobs of commands that sample for prompts: what is counted, what samples depend on, where they go."""

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cache_dic import UserError, make_cache
from evaluation.backbones import count_caches
from evaluation.jobs import Job, check_memory, failure_message, make_claim, output_folder
from seerkit.io.images import digest


def test_a_job_counts_its_first_batch_and_names_what_samples_depend_on():
    args = argparse.Namespace(precision="bf16", batch_size=2, accumulator_dtype="float64")
    caches = {"fora-N2-W1": make_cache("fora", interval=2)}
    settings = {"model": "flux-debug", "num_steps": 4}
    job = Job(
        command="fake.py", args=args, prompts=["a", "b", "c"], caches=caches,
        settings=settings, sizes={"height": 16, "width": 32}, out=Path("out"), find=lambda _: {},
    )  # fmt: skip
    assert [batch.prompts for batch in job.batches()] == [["a", "b"], ["c"]]
    assert job.dtype == torch.bfloat16
    two, one = (
        count_caches("flux-debug", caches, 4, torch.bfloat16, height=16, width=32, num_samples=n) for n in (2, 1)
    )
    assert job.counts() == two != one
    assert job.page_path == Path("out/index.html")
    assert replace(job, record_name="a").page_path == Path("out/a.html"), "of several records, each has its own"
    claim = job.claims({"transformer": "abc"}, torch.device("cpu"))["fora-N2-W1"]
    assert claim == {
        **settings,
        "prompts": ["a", "b", "c"],
        "device": "cpu",
        "contents": {"transformer": "abc"},
        "cache": {
            "method": "fora",
            "plan": caches["fora-N2-W1"].plan(4).claim(),
            "engine": "folded",
            "accumulator_dtype": "float64",
        },
    }


@pytest.mark.parametrize(
    ("dtype", "device", "compiled", "claimed"),
    [
        (torch.float32, "cpu", False, False),
        (torch.bfloat16, "cpu", False, True),
        (torch.float32, "cuda", False, True),
        (torch.float32, "cpu", True, True),
    ],
)
def test_the_size_of_a_batch_is_claimed_where_it_may_move_a_pixel(dtype, device, compiled, claimed):
    settings = {"batch_size": 2, "compile": compiled, "ckpt": "a/place"}
    claim = make_claim(settings, {}, make_cache("fora"), 8, None, dtype, torch.device(device))
    assert ("batch_size" in claim) is claimed
    assert "ckpt" not in claim, "the contents are claimed, not the place"


def test_a_step_that_cannot_fit_is_refused():
    counts = {"fora": {"stream_bytes": 2**60}}
    with pytest.raises(UserError, match=r"a step of this size holds at least \d+\.\d\d GiB at once, and"):
        check_memory(counts, torch.device("cpu"))
    check_memory({"fora": {"stream_bytes": 2**10}}, torch.device("cpu"))


@pytest.mark.parametrize(
    ("method", "settings", "advice"),
    [
        ("taylorseer", {}, "lower --interval or --max-order, or take a lower"),
        ("taylorseer", {"full_steps": [0, 1, 5]}, "lower --max-order, or take a lower"),
        ("taylorseer", {"max_order": 0}, "lower --interval, or take a lower"),
        ("fora", {}, "lower --interval, or take a lower"),
        ("dbcache", {}, "of that cache made; take a lower"),
        ("uncached", {}, "of that cache made; take a lower"),
    ],
)
def test_what_is_advised_against_infinity_is_there_to_be_lowered(method, settings, advice):
    """And more precision where there is more."""
    broken, caches = {method: [0]}, {method: make_cache(method, **settings)}
    assert f"{advice} guidance weight" in failure_message(broken, caches, torch.float32, kept=False)
    assert "take another --output-dir with --precision fp32 or a lower guidance weight" in failure_message(
        broken, caches, torch.bfloat16, kept=True
    )


def test_the_output_folder_tells_settings_apart():
    settings = {"model": "wan-tiny", "seed": 0}
    assert output_folder(Path("x"), "wan", settings) == Path("x")
    assert output_folder(None, "wan", settings) == Path("outputs/wan") / f"wan-tiny-{digest(settings)}"
    assert digest(settings) == digest(dict(reversed(settings.items()))) != digest({**settings, "seed": 1})
    assert len(digest(settings)) == 8
